"""`daemon install` and `daemon uninstall`: the systemd user unit, and handing the daemon over to it."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpuq import config, systemd
from gpuq.cli.common import count_jobs, tell
from gpuq.client import Client, only_starter
from gpuq.errors import DaemonUnreachable, GpuqError

#: Ends the daemon if one runs, so that waiters come again; how many jobs run on.
Stop = Callable[[], int]


def install(stop_daemon: Stop) -> None:
    """Write the unit, and let it run the daemon. Raises GpuqError where that would be of no use."""
    text = systemd.unit_text()
    folder = config.state_dir()
    _refuse_without_manager()
    _refuse_without_lingering()
    config.check_state_dir(folder, create=True)
    _write(systemd.unit_path(), text)
    _systemctl("daemon-reload")
    _systemctl("enable", systemd.UNIT)
    with only_starter(folder):
        running = stop_daemon()
        _systemctl("start", systemd.UNIT, patience=systemd.START_PATIENCE)
    with Client.connect() as client:
        status = client.request("status")
    tell(
        f"{systemd.unit_path()} is written and enabled, and runs the daemon: pid {status['pid']}; "
        f"{count_jobs(running)} ran on. `systemctl --user status {systemd.UNIT}` shows it"
    )


def uninstall(stop_daemon: Stop) -> None:
    """Stop the unit's daemon and remove the unit. Raises GpuqError if there is none of ours."""
    path = systemd.unit_path()
    if not _is_ours(path):
        raise GpuqError(f"there is no {path} that gpuq wrote: nothing is to be removed")
    folder = config.state_dir()
    running = 0
    with suppress(DaemonUnreachable), Client.connect(start=False) as client:
        if client.request("status").get("unit") == systemd.UNIT:
            with only_starter(folder):
                running = stop_daemon()
    there = systemd.ask("systemctl", "--user", "disable", systemd.UNIT).ok
    try:
        path.unlink()
        (path.parent / "default.target.wants" / systemd.UNIT).unlink(missing_ok=True)
    except OSError as error:
        raise GpuqError(f"{path} cannot be removed: {error.strerror}") from None
    if there:
        _systemctl("daemon-reload")
    tell(f"{path} is removed; {count_jobs(running)} ran on, and the next command starts a daemon without it")


def _refuse_without_manager() -> None:
    said = systemd.ask("systemctl", "--user", "show", "--property=Version", "--value")
    if not said.ok:
        raise GpuqError(
            f"no systemd user manager answers here ({_first(said.err)}), and a unit would be of no use. Nothing is "
            "needed: commands start the daemon by themselves, it outlives the session unless logind has "
            "KillUserProcesses=yes, and after a reboot the next command starts it again"
        )


def _refuse_without_lingering() -> None:
    if not systemd.lingers():
        raise GpuqError(
            "you do not linger: systemd would end the unit, and every job, with your last session. Run "
            f"`loginctl enable-linger` (where that is not allowed, an administrator runs `sudo loginctl enable-linger "
            f"{systemd.user_name()}`), then this again"
        )


def _systemctl(*words: str, patience: float = systemd.PATIENCE) -> None:
    said = systemd.ask("systemctl", "--user", *words, patience=patience)
    if not said.ok:
        raise GpuqError(
            f"`systemctl --user {' '.join(words)}` failed: {_first(said.err)}; "
            f"`systemctl --user status {systemd.UNIT}` and `gpuq daemon logs` tell more"
        )


def _first(text: str) -> str:
    return text.splitlines()[0] if text else "it says no more"


def _is_ours(path: Path) -> bool:
    try:
        return path.read_text(errors="replace").startswith(systemd.MARK)
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    """Put the unit in its place, whole or not at all. Raises GpuqError if somebody else's is there."""
    if os.path.lexists(path) and not _is_ours(path):
        raise GpuqError(f"{path} is there already, and gpuq did not write it: move it away, then try again")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise GpuqError(f"{path} cannot be written: {error.strerror}") from None
