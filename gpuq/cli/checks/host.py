"""Checks of the program and its host: versions, the daemon, processes, limits, logout, control groups, the clock."""

import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from gpuq import __version__, config, systemd
from gpuq.cli.checks.check import FAIL, OK, WARN, Check
from gpuq.cli.checks.folders import last_event
from gpuq.errors import GpuqError, NoDaemon, NotAllowed
from gpuq.units import format_duration

#: Inode of the first PID namespace: PROC_PID_INIT_INO of <linux/proc_ns.h>.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
#: A running job takes about five descriptors of the daemon, a client one.
FEW_DESCRIPTORS = 1024
#: Processes and threads that should still be possible for jobs.
FEW_PROCESSES = 256
#: A clock that is this far behind what happened already was set back, in seconds.
BEHIND = 60.0
#: No machine that runs this program has a true clock before 2026: seconds since the epoch.
FIRST_DAY = 1_767_225_600
#: adjtimex(2): the clock is not synchronised.
TIME_ERROR = 5
#: Room for a struct timex, of which nothing is read.
_TIMEX = 512


def check_program() -> Iterable[Check]:
    yield Check("python", OK, f"{sys.version.split()[0]}, {sys.executable}")
    yield Check("gpuq", OK, __version__)
    yield packages({name: _version(name) for name in ("typer", "nvidia-ml-py", "pynvml", "sqlite-utils", "filelock")})


def packages(found: dict[str, str | None]) -> Check:
    """Whether the packages that are installed (None: not) are those that gpuq works with."""
    typer, nvml = found["typer"], found["nvidia-ml-py"]
    missing = [name for name, version in found.items() if version is None and name != "pynvml"]
    again = "install gpuq again, in an environment of its own"
    if missing:
        return Check("packages", FAIL, f"{', '.join(missing)} cannot be found", again)
    if nvml is not None and _numbers(nvml) < (12, 550, 52):
        return Check("packages", FAIL, f"nvidia-ml-py {nvml} misreads the processes of newer drivers", again)
    if found["pynvml"] is not None:
        text = f"the retired package pynvml {found['pynvml']} is there, and slows every start of Python"
        return Check("packages", WARN, text, f"{sys.executable} -m pip uninstall pynvml")
    if typer is not None and not (0, 27) <= _numbers(typer)[:2] < (0, 29):
        return Check("packages", WARN, f"typer {typer} was not tried with this gpuq; 0.29 doubles its start-up", again)
    return Check("packages", OK, ", ".join(f"{name} {version}" for name, version in found.items() if version))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def check_daemon() -> Iterable[Check]:
    from gpuq.client import Client

    try:
        with Client.connect(start=False) as client:
            client.socket.settimeout(5)
            status = client.request("status")
    except NoDaemon:
        yield Check("daemon", OK, "does not run; the first job starts it")
        yield from _logout(None)
        return
    except NotAllowed as error:
        yield Check("daemon", FAIL, error.message)
        return
    except GpuqError as error:
        yield Check("daemon", FAIL, error.message, "`gpuq daemon logs` tells more; `gpuq daemon restart` replaces it")
        return
    same = status["version"] == __version__
    unit = f", as {status['unit']}" if status.get("unit") else ""
    text = f"runs, pid {status['pid']}, version {status['version']}{unit}"
    fix = None if same else f"`gpuq daemon restart` brings it to {__version__}; running jobs run on"
    yield Check("daemon", OK if same else WARN, text, fix)
    yield from _logout(int(status["pid"]))


def _logout(pid: int | None) -> Iterable[Check]:
    """Whether a logout would end the daemon and its jobs."""
    ends = systemd.ends_at_logout(pid, as_unit=pid is None and systemd.installed_for(config.state_dir()))
    if ends is None:
        yield Check("logout", OK, "jobs outlive the session")
    else:
        yield Check("logout", FAIL, f"jobs end when you log out: {ends.why}", f"once: {ends.cure}")


def check_unit() -> Iterable[Check]:
    """Whether the unit, where one is installed, still starts a program that is there."""
    path = systemd.unit_path()
    if not path.exists():
        return
    found = re.search(r'^ExecStart="(.*?)" -P', path.read_text(errors="replace"), re.M)
    if found is None:
        yield Check("unit", WARN, f"{path} is not as gpuq writes it", "`gpuq daemon install` writes it again")
    elif not os.access(found[1].replace("%%", "%"), os.X_OK):
        text = f"{path} starts {found[1]}, which is not there"
        yield Check("unit", FAIL, text, "`gpuq daemon install` writes it again, for this installation")
    else:
        yield Check("unit", OK, str(path))


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


def check_limits() -> Iterable[Check]:
    """Descriptors for the daemon, which raises its own limit as far as it may, and processes for jobs."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    yield limits(files, processes, _threads() if processes != resource.RLIM_INFINITY and os.geteuid() else 0)


def limits(files: int, processes: int, used: int) -> Check:
    """`files` and `processes` are the limits (RLIM_INFINITY for none), `used` the threads that the user has."""
    if files != resource.RLIM_INFINITY and files < FEW_DESCRIPTORS:
        return Check("limits", WARN, f"at most {files} open files: few jobs at a time", "raise `ulimit -Hn`")
    if processes != resource.RLIM_INFINITY and processes - used < FEW_PROCESSES:
        text = f"you have {used} processes and threads of at most {processes}: jobs may fail to start"
        return Check("limits", WARN, text, "raise `ulimit -u`")
    shown = "any number of" if files == resource.RLIM_INFINITY else f"{files:,}"
    return Check("limits", OK, f"{shown} open files")


def _threads() -> int:
    """Threads of this user, which RLIMIT_NPROC counts."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if entry.stat().st_uid == os.geteuid():
                    count += sum(1 for _ in (entry / "task").iterdir())
    return count


def check_cgroups() -> Iterable[Check]:
    """How jobs are kept together: as the daemon says, and where none runs, as one started here would."""
    from gpuq.client import Client
    from gpuq.launch import cgroup

    try:
        with Client.connect(start=False) as client:
            client.socket.settimeout(5)
            said = str(client.request("status")["supervision"])
    except (GpuqError, KeyError):
        said = cgroup.find().describe()
    # asked for by name, and not to be had
    asked = f"because {cgroup.VARIABLE}" in said
    fix = f"correct or unset {cgroup.VARIABLE}, then `gpuq daemon restart`"
    yield Check("cgroups", WARN, said, fix) if asked else Check("cgroups", OK, said)


def check_clock() -> Iterable[Check]:
    folder = config.state_dir()
    marks = [moment for moment in (last_event(folder / "queue.db"), _written(folder / "daemon.log")) if moment]
    booted = Path("/run/systemd/system").is_dir()  # sd_booted(3)
    yield clock(time.time(), max(marks, default=None), synchronised=_synchronised(), systemd_runs=booted)


def clock(now: float, last: float | None, *, synchronised: bool, systemd_runs: bool = True) -> Check:
    """`last` is when the last thing happened that is written down, in seconds since the epoch."""
    begin = "`timedatectl set-ntp true`" if systemd_runs else "start an NTP client (chrony, ntpd)"
    fix = f"{begin}, or set it by hand; begin times follow it, time limits do not"
    if now < FIRST_DAY:
        return Check("clock", FAIL, f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}, which cannot be", fix)
    if last is not None and now < last - BEHIND:
        text = f"it is {format_duration(last - now)} behind what gpuq wrote down last: it was set back, or is wrong"
        return Check("clock", WARN, text, fix)
    if not synchronised:
        return Check("clock", WARN, "nothing keeps it right (NTP)", fix)
    return Check("clock", OK, "synchronised")


def _synchronised() -> bool:
    """As the kernel says (adjtimex(2)); a kernel that says nothing is believed to be right."""
    try:
        return bool(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX)) != TIME_ERROR)
    except AttributeError:
        return True


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
