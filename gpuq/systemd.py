"""What gpuq has to do with systemd, where there is one: the user unit, lingering, and what ends processes at logout.

Nothing here is needed: without systemd, or without the unit, commands start the daemon by themselves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpuq import config
from gpuq.errors import UsageError

UNIT = "gpuq.service"
#: First line of a unit that we wrote, and may write again.
MARK = "# Written by `gpuq daemon install`; `gpuq daemon uninstall` removes it."
#: The variable by which a daemon knows that it runs as the unit.
VARIABLE = "GPUQ_UNIT"
#: The control group that systemd starts the daemon in, below the unit's; `launch/cgroup.py` makes room beside it.
SUBGROUP = "gpuq-daemon"
#: Variables that the daemon reads, beside one for each setting; the unit carries those that are set.
READ = (
    *("GPUQ_STATE_DIR", "GPUQ_GPUS", "GPUQ_CLAIMS_DIR", "GPUQ_CGROUP", "XDG_STATE_HOME", "XDG_CONFIG_HOME"),
    *("LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME"),
)
#: Where logind.conf(5) and its drop-ins are, the first that has a file of a name wins.
LOGIND = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd")
#: What prevents that a logout ends everything: the first is enough for what the user manager runs already.
ENABLE, INSTALL = "`loginctl enable-linger`", "`gpuq daemon install`"
#: A program that has said nothing for this long says nothing more, in seconds.
PATIENCE = 10.0
#: The unit may migrate and check a large database before it is ready, in seconds.
START_PATIENCE = 600.0


class Said(NamedTuple):
    """What a program said, and whether it succeeded."""

    ok: bool
    out: str
    err: str


def ask(*command: str, patience: float = PATIENCE) -> Said:
    """Run a program to its end. One that is missing or hangs has failed."""
    import subprocess

    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=patience
        )
    except FileNotFoundError:
        return Said(False, "", f"there is no program {command[0]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Said(False, "", str(error))
    return Said(done.returncode == 0, done.stdout.strip(), done.stderr.strip())


# --- the unit -------------------------------------------------------------------------------------


def unit_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where a user's own units are (systemd.unit(5))."""
    return config.config_file(environ).parent.parent / "systemd" / "user" / UNIT


def unit_text(environ: Mapping[str, str] = os.environ, python: str = sys.executable) -> str:
    """The unit for this installation and environment (systemd.service(5)). Raises UsageError.

    KillMode=process: stopping the daemon leaves supervisors and jobs. Delegate=yes: they get control groups of their
    own; DelegateSubgroup (systemd 254, older ones pass over it) keeps the daemon out of their way. OOMPolicy=continue:
    one of them that runs out of memory does not take the daemon along. A daemon that says 2, 4 or 5 would say so again,
    so it is not started again for that.
    """
    settings = (f"GPUQ_{name.upper()}" for name in config.SETTINGS)
    carried = [(name, environ[name]) for name in (*READ, *settings) if environ.get(name)]
    lines = [f"Environment={_quoted(f'{name}={value}')}" for name, value in [*carried, (VARIABLE, UNIT)]]
    return "\n".join(
        [
            MARK,
            "[Unit]",
            "Description=gpuq, the queue of GPU jobs",
            "",
            "[Service]",
            "Type=notify",
            f"ExecStart={_quoted(python)} -P -X utf8 -m gpuq.daemon",
            *lines,
            "WorkingDirectory=/",
            "KillMode=process",
            "Delegate=yes",
            f"DelegateSubgroup={SUBGROUP}",
            "OOMPolicy=continue",
            "Restart=on-failure",
            "RestartSec=2",
            "RestartPreventExitStatus=2 4 5",
            f"TimeoutStartSec={START_PATIENCE:.0f}",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        ]
    )


def _quoted(text: str) -> str:
    """A word of a unit file: quoted, `%` doubled, the rest escaped as systemd.syntax(7) reads it. Raises UsageError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} is not UTF-8, and a unit file must be") from None
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "%": "%%"}
    return '"' + "".join(escapes.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) + '"'


def installed_for(folder: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether our unit is installed, and is that of this state folder."""
    try:
        text = unit_path(environ).read_text(errors="replace")
    except OSError:
        return False
    if not text.startswith(MARK):
        return False
    carried = dict(re.findall(r'^Environment="(GPUQ_STATE_DIR|XDG_STATE_HOME)=(.*)"$', text, re.M))
    plain = {name: re.sub(r"\\(.)|%(%)", r"\1\2", value) for name, value in carried.items()}
    return config.state_dir({"HOME": environ.get("HOME", ""), **plain}) == folder


def start_unit(folder: Path) -> bool:
    """Start the daemon through its unit, if that is installed for this folder; whether it runs."""
    if not installed_for(folder):
        return False
    said = ask("systemctl", "--user", "start", UNIT, patience=START_PATIENCE)
    if not said.ok:
        why = said.err.splitlines()[0] if said.err else "systemctl says no more"
        print(f"gpuq: {UNIT} could not be started, so the daemon runs without it: {why}", file=sys.stderr)
    return said.ok


# --- logging out ----------------------------------------------------------------------------------


def lingers() -> bool:
    """Whether this user's processes may stay when nobody is logged in (loginctl(1))."""
    said = ask("loginctl", "show-user", str(os.geteuid()), "--property=Linger", "--value")
    if said.ok and said.out in ("yes", "no"):
        return said.out == "yes"
    return Path("/var/lib/systemd/linger", user_name()).exists()


def user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


class Logout(NamedTuple):
    """Why systemd would end a process when its user logs out, and what prevents it."""

    why: str
    cure: str


def ends_at_logout(pid: int | None = None, *, as_unit: bool = False) -> Logout | None:
    """Whether systemd would end this process, or that of `pid`, when its user logs out; None if it would not.

    `as_unit`: one that is to be started as our unit.
    """
    if not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        return None
    try:
        cgroup = Path(f"/proc/{pid or 'self'}/cgroup").read_text()
    except OSError:
        cgroup = ""
    if as_unit:
        cgroup = f"0::/user.slice/user-{os.geteuid()}.slice/user@{os.geteuid()}.service/{UNIT}"
    return at_logout(cgroup, logind_settings(_logind_files()), user_name(), lingers())


def at_logout(cgroup: str, logind: Mapping[str, str], user: str, lingering: bool) -> Logout | None:
    """Why a process in this control group ends with its user's last session, or with its own.

    Lingering keeps the user manager and what it runs. It keeps no session: what logind is to end with that is ended
    for whoever lingers too. `cgroup` is the text of its /proc/PID/cgroup. See logind.conf(5) and user@.service(5).
    """
    if re.search(r"/user@\d+\.service(/|$)", cgroup, re.M):
        why = "it belongs to your user manager (user@.service), which ends with your last session"
        return None if lingering else Logout(why, ENABLE)
    if not re.search(r"/session-[^/]+\.scope(/|$)", cgroup, re.M):
        return None
    if logind.get("KillUserProcesses", "no").lower() not in ("yes", "true", "on", "1"):
        return None
    only, excluded = logind.get("KillOnlyUsers", "").split(), logind.get("KillExcludeUsers", "root").split()
    if user in excluded or (only and user not in only):
        return None
    why = "logind ends all processes of a session with it (KillUserProcesses=yes)"
    return Logout(why, INSTALL if lingering else f"{ENABLE}, then {INSTALL}")


def logind_settings(texts: Iterable[str]) -> dict[str, str]:
    """The assignments of these files, of which later ones win."""
    found: dict[str, str] = {}
    for text in texts:
        for line in text.splitlines():
            name, equals, value = line.partition("=")
            if equals and not name.lstrip().startswith(("#", ";")):
                found[name.strip()] = value.strip()
    return found


def _logind_files() -> list[str]:
    """logind.conf, then its drop-ins by name, as systemd reads them."""
    mains = [Path(folder, "logind.conf") for folder in LOGIND]
    drops: dict[str, Path] = {}
    for folder in reversed(LOGIND):
        drops |= {path.name: path for path in Path(folder, "logind.conf.d").glob("*.conf")}
    return _texts([*[path for path in mains if path.exists()][:1], *(drops[name] for name in sorted(drops))])


def _texts(paths: Sequence[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue  # what we may not read, we cannot know
    return found
