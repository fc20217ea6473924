"""The daemon's life: lock, open the store, take back what runs, listen, say so; and the end of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import psutil

from gpuq import config, crash
from gpuq.daemon import decisions, journal
from gpuq.daemon.core import Core
from gpuq.daemon.handlers import Daemon
from gpuq.daemon.runner import Runner
from gpuq.daemon.server import STOPPED, Server
from gpuq.errors import DaemonUnreachable, GpuqError, StateFolderError, StoreError
from gpuq.events import Event, Kind
from gpuq.model import Host, Settings
from gpuq.store.store import Store

log = logging.getLogger("gpuq.daemon")

#: A daemon that is about to end releases its lock within this time, in seconds.
LOCK_PATIENCE = 8.0
#: Inode of the initial PID namespace: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
#: Environments that no job needs are looked for this often, in seconds.
CLEAN_EVERY = 86400.0


def main(ready_fd: int) -> None:
    """Run until told to stop. Tells `ready_fd` once, then closes it."""
    os.umask(0o077)
    folder = config.state_dir()
    try:
        with _alone(folder):
            journal.begin(folder)
            crash.arm(os.environ.get(crash.VARIABLE))
            _raise_descriptor_limit()
            settings = config.load_settings()
            run_root = _run_root(folder)
            store = Store(folder / "queue.db", network=config.on_network(folder))
            store.start_ids_after(_last_run(run_root))
            try:
                asyncio.run(_live(settings, store, folder, run_root, ready_fd))
            finally:
                store.close()
    except GpuqError as error:
        log.error("%s", error.message)
        _say(ready_fd, error.message)
        sys.exit(error.exit_code)
    except Exception as error:
        log.exception("the daemon fails")
        _say(ready_fd, f"it failed ({type(error).__name__}: {error}); {folder / 'daemon.log'} tells more")
        sys.exit(1)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the daemon's lock. Raises DaemonUnreachable if another one holds it and does not go."""
    config.check_state_dir(folder, create=True)
    lock = filelock.FileLock(folder / "daemon.lock", timeout=LOCK_PATIENCE, mode=0o600)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DaemonUnreachable(
            f"{_holder(folder)} holds {folder / 'daemon.lock'} and does not listen on {folder / 'sock'}: end it by its "
            "pid, and the next command starts another; running jobs run on"
        ) from None
    except OSError as error:
        raise StateFolderError(f"{folder / 'daemon.lock'} cannot be locked: {error.strerror}") from None
    try:
        _write_pid(folder)
        yield
    finally:
        lock.release()


def _write_pid(folder: Path) -> None:
    """For people who meet a daemon that does not answer; nothing relies on it."""
    try:
        (folder / "daemon.pid").unlink(missing_ok=True)
        fd = os.open(folder / "daemon.pid", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, f"{os.getpid()}\n".encode())
        os.close(fd)
    except OSError as error:
        log.warning("the pid could not be written down: %s", error)


def _holder(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f"daemon {int((folder / 'daemon.pid').read_bytes()[:20])}"
    return "another process"


async def _live(settings: Settings, store: Store, folder: Path, run_root: Path, ready_fd: int) -> None:
    loop = asyncio.get_running_loop()
    core = Core(settings, store, _host(), folder, run_root)
    decisions.began(settings, core.host, str(folder))
    runner = Runner(core, loop)
    daemon = Daemon(core, runner, time.time(), loop.create_future())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.end, False)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    _note(core, Kind.DAEMON_STARTED, pid=os.getpid())
    runner.begin()
    server = Server(daemon)
    await server.listen()
    cleaning = asyncio.ensure_future(_clean(core))
    log.info("daemon %d listens in %s", os.getpid(), folder, extra={"event": "listen", "pid": os.getpid()})
    _say(ready_fd, "ready")
    restart = await daemon.stop
    core.draining += 1
    cleaning.cancel()
    _note(core, Kind.DAEMON_STOPPED, running=len(core.running))
    await server.close(None if restart else STOPPED)


def _note(core: Core, kind: Kind, **data: object) -> None:
    """An event of the daemon's own life. A full disk is no reason not to live it."""
    try:
        core.note_event(Event(time.time(), kind, data=data))
    except StoreError as error:
        log.error("%s", error.message)


async def _clean(core: Core) -> None:
    """Erase environments that no attempt can need any more, now and once a day."""
    while True:
        try:
            with core.store.transaction():
                core.store.erase_environments(time.time() - core.settings.keep_environment)
        except StoreError as error:
            log.error("%s", error.message)
        await asyncio.sleep(CLEAN_EVERY)


def _host() -> Host:
    return Host(
        cpus=len(os.sched_getaffinity(0)),
        ram=psutil.virtual_memory().total,
        foreign_pids=Path("/proc/self/ns/pid").stat().st_ino != INITIAL_PID_NAMESPACE,
    )


def _run_root(folder: Path) -> Path:
    """Where attempts have their folders: local disk, because flock tells whether a supervisor lives."""
    if not config.on_network(folder):
        return folder / "jobs"
    local = Path("/var/tmp") / f"gpuq-{os.geteuid()}"
    config.check_state_dir(local, create=True)
    return local / "jobs"


def _last_run(run_root: Path) -> int:
    """The largest id that has a run folder: a new database beside old folders must not use it again."""
    with contextlib.suppress(OSError):
        return max((int(name) for name in os.listdir(run_root) if name.isdecimal()), default=0)
    return 0


def _raise_descriptor_limit() -> None:
    """As many descriptors as the kernel lets us have; jobs get their submitter's limits, not ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(fd: int, text: str) -> None:
    """The one word to whoever started the daemon, who may have gone."""
    with contextlib.suppress(OSError):
        os.write(fd, text.encode("utf-8", "replace") + b"\n")
        os.close(fd)
