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

from gpuq import config
from gpuq.daemon.core import Core
from gpuq.daemon.handlers import Daemon
from gpuq.daemon.runner import Runner
from gpuq.daemon.server import STOPPED, Server
from gpuq.errors import DaemonUnreachable, GpuqError
from gpuq.events import Event, Kind
from gpuq.model import Host, Settings
from gpuq.store.store import Store

log = logging.getLogger("gpuq.daemon")

#: A daemon that is about to end releases its lock within this time, in seconds.
LOCK_PATIENCE = 15.0
#: At start a log of more than this many bytes is put aside as daemon.log.1.
LOG_SIZE = 10 * 1024 * 1024
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
            _open_log(folder / "daemon.log")
            _raise_descriptor_limit()
            settings = config.load_settings()
            store = Store(folder / "queue.db", network=config.on_network(folder))
            try:
                asyncio.run(_live(settings, store, folder, ready_fd))
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
    except (filelock.Timeout, OSError) as error:
        raise DaemonUnreachable(
            f"another daemon holds {folder / 'daemon.lock'} and does not answer ({error})"
        ) from None
    try:
        yield
    finally:
        lock.release()


async def _live(settings: Settings, store: Store, folder: Path, ready_fd: int) -> None:
    loop = asyncio.get_running_loop()
    core = Core(settings, store, _host(), folder, _run_root(folder))
    runner = Runner(core, loop)
    daemon = Daemon(core, runner, time.time(), loop.create_future())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.end, False)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    core.note_event(Event(time.time(), Kind.DAEMON_STARTED, data={"pid": os.getpid()}))
    runner.begin()
    server = Server(daemon)
    await server.listen()
    cleaning = asyncio.ensure_future(_clean(core))
    log.info("daemon %d listens in %s", os.getpid(), folder)
    _say(ready_fd, "ready")
    restart = await daemon.stop
    core.draining = True
    cleaning.cancel()
    log.info("daemon %d stops with %d running jobs", os.getpid(), len(core.running))
    core.note_event(Event(time.time(), Kind.DAEMON_STOPPED, data={"running": len(core.running)}))
    await server.close(None if restart else STOPPED)


async def _clean(core: Core) -> None:
    """Erase environments that no attempt can need any more, now and once a day."""
    while True:
        with core.store.transaction():
            core.store.erase_environments(time.time() - core.settings.keep_environment)
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


def _open_log(path: Path) -> None:
    if path.exists() and path.stat().st_size > LOG_SIZE:
        path.replace(path.with_suffix(".log.1"))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    handler = logging.StreamHandler(os.fdopen(fd, "a", encoding="utf-8", errors="backslashreplace"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


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
