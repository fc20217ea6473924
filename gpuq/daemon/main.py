"""The daemon's life: lock, open the store, take back what runs, listen, say so; and the end of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpuq import config, crash, systemd
from gpuq.daemon import children, decisions, journal
from gpuq.daemon.asking import Daemon
from gpuq.daemon.core import Core
from gpuq.daemon.home import Home, hold_starters, keep_or_end
from gpuq.daemon.notify import Notifier
from gpuq.daemon.reserve import Reserve
from gpuq.daemon.runner import Runner
from gpuq.daemon.server import STOPPED, Server
from gpuq.daemon.upkeep import Upkeep
from gpuq.errors import DiskFull, GpuqError, StoreDamaged, StoreError
from gpuq.events import Event, Kind
from gpuq.launch import cgroup
from gpuq.model import Host, Settings
from gpuq.store import recovery
from gpuq.store.connection import disk_full
from gpuq.store.recovery import open_store
from gpuq.store.store import Store

log = logging.getLogger("gpuq.daemon")

#: Inode of the initial PID namespace: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
#: A daemon that has begun anew so often, and lived for less than STEADY seconds each time, ends.
MOST_TRIES = 3
STEADY = 60.0
#: Environments that no job needs are looked for this often, in seconds.
CLEAN_EVERY = 86400.0


@dataclass(slots=True)
class Life:
    """What one life of the daemon hands to the next, where it begins anew in its own place."""

    #: descriptor of who started it and is still to be told; -1 when that was done
    ready_fd: int
    #: how often it has just begun anew
    tries: int
    #: descriptor that keeps clients from starting another daemon meanwhile, or -1 (`home.hold_starters`)
    gate: int = -1


def main(ready_fd: int, tries: int = 0, gate: int = -1) -> None:
    """Run until told to stop. Tells `ready_fd` once, then closes it; for the rest see Life."""
    environ = dict(os.environ)
    os.umask(0o077)
    folder = config.state_dir()
    life = Life(ready_fd, tries, gate)
    if gate >= 0:
        os.set_inheritable(gate, False)
    try:
        if not _run(folder, life):
            return
    except GpuqError as error:
        log.error("%s", error.message)
        _say(life.ready_fd, error.message)
        sys.exit(error.exit_code)
    except Exception as error:
        log.exception("the daemon fails")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say(life.ready_fd, disk_full(folder).message)
            sys.exit(DiskFull.exit_code)
        _say(life.ready_fd, f"it failed ({type(error).__name__}: {error}); {folder / 'daemon.log'} tells more")
        sys.exit(1)
    # a new program in the same process: supervisors stay its children, and nothing of the old state is left
    if life.gate >= 0:
        os.set_inheritable(life.gate, True)
    handed = (life.ready_fd, life.tries + 1, life.gate)
    os.execve(sys.executable, [sys.executable, "-P", "-X", "utf8", "-m", "gpuq.daemon", *map(str, handed)], environ)


def _run(folder: Path, life: Life) -> bool:
    """One life of the daemon; whether it begins anew, with what `life` is then. Raises GpuqError."""
    with contextlib.closing(Home(folder)) as home:
        journal.begin(folder)
        crash.arm(os.environ.get(crash.VARIABLE))
        _raise_descriptor_limit()
        settings = config.load_settings()
        run_root = _run_root(folder)
        store, recovered = _opened(folder, run_root, life.ready_fd)
        if recovered is not None:
            _write(life.ready_fd, f"note: {recovered.summary}")
        began = time.monotonic()
        try:
            return asyncio.run(_live(settings, store, home, run_root, life))
        except StoreDamaged as error:
            if life.tries >= MOST_TRIES and time.monotonic() - began < STEADY:
                raise
            recovery.mark(folder, error.message)
            return True
        finally:
            store.close()


def _opened(folder: Path, run_root: Path, ready_fd: int) -> tuple[Store, recovery.Recovered | None]:
    """The database. What a start has to write there has room at the cost of the reserve. Raises StoreError."""
    network = config.on_network(folder)

    def tell(text: str) -> None:
        _write(ready_fd, f"note: {text}")

    try:
        return open_store(folder, run_root, network=network, tell=tell)
    except DiskFull:
        if not Reserve(folder).give_up():
            raise
        return open_store(folder, run_root, network=network, tell=tell)


async def _live(settings: Settings, store: Store, home: Home, run_root: Path, life: Life) -> bool:
    """From the first look at the queue to the last word; whether the daemon begins anew in its own place."""
    folder = home.folder
    notifier = Notifier()
    loop = asyncio.get_running_loop()
    core = Core(settings, store, _host(), folder, run_root)
    decisions.began(settings, core.host, str(folder))
    supervision = cgroup.prepare()
    log.info("jobs are supervised by %s", supervision.describe(), extra={"event": "supervision"})
    runner = Runner(core, loop, supervision)
    daemon = Daemon(core, runner, time.time(), loop.create_future(), os.environ.pop(systemd.VARIABLE, None))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.end, False)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    children.take_orphans()
    children.attend(loop, runner.children)
    _note(core, Kind.DAEMON_STARTED, pid=os.getpid())
    upkeep = daemon.upkeep = Upkeep(core, daemon.begin_anew)
    runner.begin()
    server = Server(daemon)
    await server.listen()
    living = [
        asyncio.ensure_future(_clean(core)),
        asyncio.ensure_future(upkeep.keep()),
        asyncio.ensure_future(keep_or_end(home, server, lambda: _look(store), lambda: daemon.end(False))),
    ]
    log.info("daemon %d listens in %s", os.getpid(), folder, extra={"event": "listen", "pid": os.getpid()})
    _ready(life)
    notifier.tell(f"READY=1\nSTATUS=listens in {folder}")
    restart = await daemon.stop
    if daemon.anew:
        life.gate = hold_starters(folder)
    notifier.tell("STOPPING=1")
    core.draining += 1
    for task in living:
        task.cancel()
    _note(core, Kind.DAEMON_STOPPED, running=len(core.running))
    await server.close(None if restart else STOPPED)
    children.leave(loop)
    runner.end()
    return daemon.anew


def _note(core: Core, kind: Kind, **data: object) -> None:
    """An event of the daemon's own life. A full disk is no reason not to live it."""
    try:
        core.note_event(Event(time.time(), kind, data=data))
    except StoreError as error:
        log.error("%s", error.message)


def _look(store: Store) -> None:
    """Whether the database is still there; it is written anew where it is not."""
    try:
        store.at_home()
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


def _raise_descriptor_limit() -> None:
    """As many descriptors as the kernel lets us have; jobs get their submitter's limits, not ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _ready(life: Life) -> None:
    """Tell whoever waits that the daemon listens."""
    _say(life.ready_fd, "ready")
    if life.gate >= 0:
        os.close(life.gate)
    life.ready_fd = life.gate = -1


def _say(fd: int, text: str) -> None:
    """The one word to whoever started the daemon, who may have gone; -1 is nobody."""
    if fd < 0:
        return
    _write(fd, text)
    with contextlib.suppress(OSError):
        if fd > 2:
            os.close(fd)
        else:  # of a service manager, or a person who tries it out: nothing else may become our standard output
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), fd)


def _write(fd: int, text: str) -> None:
    """A line to whoever started the daemon; `note: ` begins one that is for a person, whatever comes after."""
    with contextlib.suppress(OSError):
        os.write(fd, text.replace("\n", " ").encode("utf-8", "replace") + b"\n")
