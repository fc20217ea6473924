"""The state folder while a daemon lives in it: its lock, and what to do when somebody removes lock, socket or folder.

The kernel tells of it (inotify(7)), so that nothing looks every so often. A daemon without its socket could not be
reached, and one without its lock would not be the only one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from gpuq import config
from gpuq.daemon.server import Server
from gpuq.errors import DaemonUnreachable, GpuqError, StateFolderError

log = logging.getLogger("gpuq.home")

#: A daemon that is about to end releases its lock within this time, in seconds.
LOCK_PATIENCE = 8.0
#: Whether it ends, or has begun to listen, is looked at this often, in seconds.
LOCK_LOOK = 0.2
#: <sys/inotify.h>
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_DELETE = 0x200
IN_MOVE_SELF = 0x800
IN_ONLYDIR = 0x1000000
#: struct inotify_event: watch, mask, cookie, length of the name that follows
_EVENT = struct.Struct("iIII")
#: Names that must stay where they are.
OURS = frozenset({b"sock", b"daemon.lock", b"queue.db", b"queue.db-wal"})
#: What is taken away again while it is put back is put back so many times.
PATIENCE = 20

Identity = tuple[int, int]


class Home:
    """Takes the daemon's lock when it is made. Raises DaemonUnreachable if another daemon holds it and does not go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config.check_state_dir(folder, create=True)
        self._lock = filelock.FileLock(folder / "daemon.lock", mode=0o600)
        try:
            self._take_lock(LOCK_PATIENCE)
            self._folder_is = _identity(folder)
        except (FileNotFoundError, FileExistsError):
            raise StateFolderError(f"{folder} was removed while the daemon started") from None
        _write_pid(folder)

    def close(self) -> None:
        self._lock.release()

    def _take_lock(self, patience: float) -> None:
        """Raises FileNotFoundError or FileExistsError where the folder goes meanwhile, which filelock makes anew."""
        path = self.folder / "daemon.lock"
        end = time.monotonic() + patience
        try:
            while not self._acquired(min(LOCK_LOOK, patience)) and time.monotonic() < end:
                if _listens(self.folder):
                    raise DaemonUnreachable(f"{_holder(self.folder)} holds {path}, and listens")
            if self._lock.is_locked:
                self._lock_is = _identity(path)
                return
            raise DaemonUnreachable(
                f"{_holder(self.folder)} holds {path} and does not listen on {self.folder / 'sock'}: end it by its "
                "pid, and the next command starts another; running jobs run on"
            )
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise StateFolderError(f"{path} cannot be locked: {error.strerror}") from None

    def _acquired(self, patience: float) -> bool:
        with contextlib.suppress(filelock.Timeout):
            self._lock.acquire(timeout=patience)
        return self._lock.is_locked

    async def keep(self, server: Server, look: Callable[[], None]) -> None:
        """Put back what is taken away, for as long as the daemon lives. `look` is called to look after the database.

        Raises GpuqError when the daemon can no longer live here: the folder was moved, or is another's by now.
        """
        watch = _Watch()
        if watch.fd < 0:
            log.warning("nothing tells when socket or lock are removed: %s", os.strerror(-watch.fd))
            return
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(watch.fd, changed.set)
        try:
            watch.add(self.folder)
            while True:
                await self._put_back(server, watch, look)
                await changed.wait()
                changed.clear()
                while not watch.drain():
                    await changed.wait()
                    changed.clear()
                if watch.moved:
                    raise StateFolderError(f"the state folder {self.folder} was moved away")
        finally:
            loop.remove_reader(watch.fd)
            os.close(watch.fd)

    async def _put_back(self, server: Server, watch: _Watch, look: Callable[[], None]) -> None:
        for _ in range(PATIENCE):
            try:
                if self._restore_folder():
                    watch.add(self.folder)
                self._restore_lock()
                look()
                if not server.reachable():
                    await server.listen()
                    log.warning("the socket %s was removed, and is there again", self.folder / "sock")
                if self._whole() and server.reachable():
                    return
            except (FileNotFoundError, FileExistsError):
                continue  # the folder went while we were at it
        raise StateFolderError(f"what the daemon needs in {self.folder} is removed again and again")

    def _whole(self) -> bool:
        return self._folder_is == _found(self.folder) and self._lock_is == _found(self.folder / "daemon.lock")

    def _restore_folder(self) -> bool:
        """Make the folder again if it is gone; whether it was. Raises StateFolderError if another is in its place."""
        found = _found(self.folder)
        if found == self._folder_is:
            return False
        if found is None:
            config.check_state_dir(self.folder, create=True)
        elif self._lock_is != _found(self.folder / "daemon.lock"):
            raise StateFolderError(f"another folder is at {self.folder} now")
        # else filelock has made it, together with the lock that we hold: it went just before that
        self._folder_is = _identity(self.folder)
        log.error("the state folder %s was removed, and is made anew", self.folder, extra={"event": "folder-removed"})
        return True

    def _restore_lock(self) -> None:
        if _found(self.folder / "daemon.lock") == self._lock_is:
            return
        self._lock.release()  # of a file that nobody finds any more
        self._take_lock(LOCK_LOOK)  # it may have to be made twice, where it is removed meanwhile
        _write_pid(self.folder)
        log.warning("the lock %s was removed, and is there again", self.folder / "daemon.lock")


class _Watch:
    """Word of names that leave one folder or come there. `fd` is readable then; negative, an errno, without inotify."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        made: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self.fd = made if made >= 0 else -ctypes.get_errno()
        #: whether the folder itself was moved
        self.moved = False

    def add(self, folder: Path) -> None:
        mask = IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | IN_ONLYDIR
        if self._libc.inotify_add_watch(self.fd, os.fsencode(folder), mask) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))

    def drain(self) -> bool:
        """Read what was told; whether it concerns us."""
        concerns = False
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.fd, 1 << 16):
                at = 0
                while at < len(data):
                    _, mask, _, length = _EVENT.unpack_from(data, at)
                    at += _EVENT.size + length
                    name = data[at - length : at].rstrip(b"\0")
                    self.moved = self.moved or bool(mask & IN_MOVE_SELF)
                    concerns = concerns or name in OURS or not name
        return concerns


def _identity(path: Path) -> Identity:
    """Which file this is, and no other (device, inode). Raises FileNotFoundError."""
    found = os.stat(path, follow_symlinks=False)
    return found.st_dev, found.st_ino


def _found(path: Path) -> Identity | None:
    try:
        return _identity(path)
    except FileNotFoundError:
        return None


def _listens(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with config.socket_address(folder) as address:
                connection.connect(address)
        except OSError:
            return False
        return True


def hold_starters(folder: Path) -> int:
    """Have clients that would start a daemon wait until the descriptor is closed, also across an exec; -1 where one
    of them is at it (see `client.only_starter`).
    """
    try:
        held = os.open(folder / "start.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return -1
    return held


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


async def keep_or_end(home: Home, server: Server, look: Callable[[], None], end: Callable[[], None]) -> None:
    """Keep the home; where that is over, say so and end. Running jobs run on, and the next command starts a daemon."""
    try:
        await home.keep(server, look)
    except (GpuqError, OSError) as error:
        log.error("the daemon ends: %s", error, extra={"event": "homeless"})
        end()
