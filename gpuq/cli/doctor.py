"""`doctor`: looks at this machine and says what is wrong and what to do about it. Changes nothing, starts nothing."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gpuq import __version__, config
from gpuq.cli.common import Json, examples, new_app, print_json
from gpuq.errors import GpuqError, NoDaemon, NotAllowed
from gpuq.model import Driver, GiB, Readings, Settings
from gpuq.units import format_duration, format_size, printable

app = new_app()

#: Inode of the first PID namespace: PROC_PID_INIT_INO of <linux/proc_ns.h>.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
#: Less free space than this is worth a warning.
LITTLE_SPACE = 1 * GiB
#: What loads the completions of a person's own folder in bash, where distributions install it.
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` says what to do where something is to be done."""

    name: str
    result: str
    text: str
    fix: str | None = None


@app.command(
    "doctor", epilog=examples("gpuq doctor", "gpuq doctor --json | jq '.checks[] | select(.result != \"ok\")'")
)
def doctor(as_json: Json = False) -> int:
    """Check this machine, and say what to fix. Exit code 1 if something does not work."""
    checks = run_checks()
    if as_json:
        print_json("gpuq.doctor/1", checks=[asdict(check) for check in checks])
    else:
        sys.stdout.write(text_of(checks))
    return int(any(check.result == FAIL for check in checks))


def run_checks() -> list[Check]:
    """Every check, in the order in which one thing needs another."""
    groups: dict[str, Callable[[], Iterable[Check]]] = {
        "program": check_program,
        "settings": check_settings,
        "state folder": check_state,
        "daemon": check_daemon,
        "GPUs": check_gpus,
        "neighbours": check_neighbours,
        "processes": check_pid_namespace,
        "logout": check_sessions,
        "cgroups": check_cgroups,
        "completion": check_completion,
    }
    return [check for name, group in groups.items() for check in _guarded(name, group)]


def _guarded(name: str, group: Callable[[], Iterable[Check]]) -> Iterable[Check]:
    """The findings of a group; an error in it is one of them, and keeps no other check from being made."""
    try:
        yield from group()
    except GpuqError as error:
        yield Check(name, FAIL, error.message)
    except OSError as error:
        yield Check(name, FAIL, f"{error.filename}: {error.strerror}" if error.filename else str(error))


def text_of(checks: Iterable[Check]) -> str:
    """A line per check, and below it what to do."""
    lines = []
    for check in checks:
        lines.append(f"{check.result:<4}  {check.name}: {printable(check.text)}\n")
        if check.fix:
            lines.append(f"      → {printable(check.fix)}\n")
    return "".join(lines)


def check_program() -> Iterable[Check]:
    yield Check("python", OK, f"{sys.version.split()[0]}, {sys.executable}")
    yield Check("gpuq", OK, __version__)


def check_settings() -> Iterable[Check]:
    try:
        found = config.find_settings()
    except GpuqError as error:
        yield Check("settings", FAIL, error.message, "correct that line; `gpuq config show` checks it")
        return
    changed = sum(one.source != "default" for one in found.values())
    yield Check("settings", OK, f"{changed} of {len(found)} changed from their defaults")


def check_state() -> Iterable[Check]:
    folder = config.state_dir()
    try:
        config.check_state_dir(folder, create=False)
    except FileNotFoundError:
        yield from _not_yet(folder)
        return
    except GpuqError as error:
        yield Check("state folder", FAIL, error.message)
        return
    yield Check("state folder", OK, f"{folder}, ours alone (0700)")
    yield from _file_system(folder)


def _not_yet(folder: Path) -> Iterable[Check]:
    parent = next(p for p in folder.parents if p.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        yield Check("state folder", OK, f"{folder}, made with the first job")
        yield from _file_system(parent)
    else:
        yield Check(
            "state folder",
            FAIL,
            f"{folder} cannot be made: {parent} is not writable",
            "set GPUQ_STATE_DIR to a folder of yours",
        )


def _file_system(folder: Path) -> Iterable[Check]:
    kind = config.filesystem_type(folder, Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    if config.on_network(folder):
        yield Check(
            "file system",
            WARN,
            f"{kind}, a network file system: the database uses a rollback journal there, which is slower",
            "set GPUQ_STATE_DIR to a folder on a local disk",
        )
    else:
        yield Check("file system", OK, kind)
    free = shutil.disk_usage(folder).free
    fix = "logs and the database need room: free some, or set GPUQ_STATE_DIR"
    yield Check(
        "disk", OK if free >= LITTLE_SPACE else WARN, f"{format_size(free)} free", fix if free < LITTLE_SPACE else None
    )


def check_daemon() -> Iterable[Check]:
    from gpuq.client import Client

    try:
        with Client.connect(start=False) as client:
            client.socket.settimeout(5)
            status = client.request("status")
    except NoDaemon:
        yield Check("daemon", OK, "does not run; the first job starts it")
        return
    except NotAllowed as error:
        yield Check("daemon", FAIL, error.message)
        return
    except GpuqError as error:
        yield Check("daemon", FAIL, error.message, "`gpuq daemon logs` tells more; `gpuq daemon restart` replaces it")
        return
    same = status["version"] == __version__
    text = f"runs, pid {status['pid']}, version {status['version']}"
    fix = None if same else f"`gpuq daemon restart` brings it to {__version__}; running jobs run on"
    yield Check("daemon", OK if same else WARN, text, fix)


def check_gpus() -> Iterable[Check]:
    """Read the GPUs once, in this process, as the daemon does. A driver that does not answer is not waited for."""
    from gpuq.gpus.source import open_source

    try:
        source = open_source(os.environ.get("GPUQ_GPUS"))
    except GpuqError as error:
        yield Check("GPUs", FAIL, error.message)
        return
    found: list[Readings] = []

    def read() -> None:
        found.append(source.read())
        source.close()

    reader = threading.Thread(target=read, daemon=True)  # which does not keep this process from ending
    reader.start()
    patience = _nvml_patience()
    reader.join(patience)
    if found:
        yield from _gpu_checks(found[0])
    else:
        text = f"NVML has not answered for {format_duration(patience)}: GPU jobs wait until it does"
        yield Check("GPUs", FAIL, text, "`dmesg | grep -i -e nvrm -e xid` may tell why; often only a reboot helps")


def _nvml_patience() -> float:
    """Seconds after which a driver counts as silent; the default where the settings cannot be read, which is told."""
    try:
        return config.load_settings().nvml_patience
    except GpuqError:
        return Settings().nvml_patience


def _gpu_checks(readings: Readings) -> Iterable[Check]:
    if readings.driver is Driver.NONE:
        yield Check("GPUs", OK, "no NVIDIA driver on this machine: jobs run on its CPUs")
        return
    if readings.driver is Driver.BROKEN:
        yield Check(
            "GPUs",
            FAIL,
            readings.fault or "the driver does not work",
            "does `nvidia-smi` work? after an upgrade of the driver, reboot",
        )
        return
    yield Check("driver", OK, f"version {readings.version or 'unknown'}, {len(readings.gpus)} GPU(s)")
    for gpu in readings.gpus:
        name = f"GPU {gpu.index}"
        if gpu.fault is not None:
            yield Check(
                name,
                FAIL,
                f"{gpu.name}: {gpu.fault}",
                "`dmesg | grep -i xid` tells more; a reset or reboot brings it back",
            )
        elif not gpu.told:
            yield Check(
                name,
                WARN,
                f"{gpu.name}: the driver does not tell which process uses how much memory (a container, WSL or vGPU?)",
                "jobs then count as what they claim: claim with --vram what they really need",
            )
        else:
            yield Check(name, OK, f"{gpu.name}, {format_size(gpu.used)} of {format_size(gpu.total)} used")


def check_neighbours() -> Iterable[Check]:
    """Whether daemons of other users can be told what we claim."""
    folder = config.claims_dir()
    fault = config.claims_dir_fault(folder)
    if fault is None:
        yield Check("neighbours", OK, f"the daemons of this host tell each other their claims in {folder}")
    else:
        yield Check(
            "neighbours",
            WARN,
            f"{fault}: other users' gpuq does not know of your claims, nor yours of theirs",
            "`sudo chmod 1777 /tmp`, or set GPUQ_CLAIMS_DIR, for all users alike, to a folder of root's with that mode",
        )


def check_pid_namespace() -> Iterable[Check]:
    inode = Path("/proc/self/ns/pid").stat().st_ino
    if inode == INITIAL_PID_NAMESPACE:
        yield Check("processes", OK, "seen as the driver sees them")
    else:
        yield Check(
            "processes",
            WARN,
            "this is a PID namespace of its own (a container?): the driver's process ids are not ours",
            "on the host itself, or in a container with --pid=host, memory is told per process",
        )


def check_sessions() -> Iterable[Check]:
    """Whether a logout would end the daemon and its jobs: KillUserProcesses of logind.conf(5)."""
    loginctl = shutil.which("loginctl")
    if loginctl is None or not Path("/run/systemd/system").is_dir():
        yield Check("logout", OK, "no systemd session manager: nothing ends jobs at logout")
        return
    kills = _say(
        "busctl",
        "get-property",
        "org.freedesktop.login1",
        "/org/freedesktop/login1",
        "org.freedesktop.login1.Manager",
        "KillUserProcesses",
    )
    linger = _say(loginctl, "show-user", str(os.geteuid()), "--property=Linger", "--value")
    if kills == "b true" and linger != "yes":
        yield Check(
            "logout",
            FAIL,
            "systemd ends your processes when you log out, jobs included",
            "run `loginctl enable-linger` once",
        )
    else:
        yield Check("logout", OK, "jobs outlive the session")


def _say(*command: str) -> str:
    """What a program prints, empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_cgroups() -> Iterable[Check]:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        yield Check("cgroups", OK, "version 2")
    else:
        yield Check(
            "cgroups",
            OK,
            "no version 2: jobs are ended by session and process tree, and a host OOM is told by its signal",
        )


def check_completion() -> Iterable[Check]:
    """Whether the completion of the login shell is where its instructions put it."""
    from gpuq.cli.completion import BASH_NEEDS, INSTALL, install_commands

    shell = Path(os.environ.get("SHELL", "")).name
    if shell not in INSTALL:
        yield Check("completion", OK, "for bash, zsh and fish: `gpuq completion --help`")
        return
    place = Path(INSTALL[shell]).expanduser()
    if not place.exists():
        yield Check("completion", WARN, f"not installed for {shell}", " && ".join(install_commands(shell)))
    elif shell == "bash" and not bash_finds_completions(BASH_COMPLETION, Path("~/.bashrc").expanduser()):
        yield Check("completion", WARN, "installed for bash, which does not look there by itself", BASH_NEEDS)
    else:
        yield Check("completion", OK, f"installed for {shell}")


def bash_finds_completions(package: Path, bashrc: Path) -> bool:
    """Whether bash reads the script: through the bash-completion package, or because ~/.bashrc names it."""
    if package.exists():
        return True
    try:
        return "gpuq" in bashrc.read_text(errors="replace")
    except FileNotFoundError:
        return False
