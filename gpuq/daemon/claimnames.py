"""The names in the folder of claims that may count: found once, then kept up to date by word of the kernel, inotify(7).

Anybody may put any number of names there. Each costs one look when it comes, by whoever owns it; of each user only the
newest few are remembered. An event is there before the rename(2) that it tells of has returned: who tells a claim and
then looks, and who looks and then tells, cannot miss each other.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
import struct
import sys
import termios
import weakref
from collections.abc import Iterable, Iterator

from gpuq.config import CLAIMS_PREFIX

NAME = re.compile(re.escape(CLAIMS_PREFIX) + r"([0-9]{1,10})\.[0-9a-f]{32}", re.ASCII)
#: Files of one user that are looked at.
MAX_OF_USER = 16

#: <sys/inotify.h>
_MOVED_TO = 0x80
_CREATE = 0x100
_OVERFLOW = 0x4000
_IGNORED = 0x8000
#: struct inotify_event: watch, mask, cookie, length of the name that follows
_EVENT = struct.Struct("iIII")
_PREFIX = os.fsencode(CLAIMS_PREFIX)


class Names:
    """Not for use by two threads at a time."""

    def __init__(self) -> None:
        #: times of change by name, by the user who owns the file
        self._known: dict[int, dict[str, int]] = {}
        self._watch = _Watch()

    def current(self, folder: int) -> Iterator[tuple[int, str, os.stat_result]]:
        """Owner, name and status of each file that may count, at most MAX_OF_USER of a user. Raises OSError."""
        fresh = self._watch.fresh(folder)
        if fresh is None:
            self._known.clear()
            with os.scandir(folder) as entries:
                self._consider(folder, (entry.name for entry in entries))
        else:
            self._consider(folder, fresh)
        for uid, names in sorted(self._known.items()):
            for name in list(names):
                found = _status(folder, name)
                if found is None or found.st_uid != uid:
                    del names[name]
                    continue
                names[name] = found.st_mtime_ns
                yield uid, name, found
        self._known = {uid: names for uid, names in self._known.items() if names}

    def _consider(self, folder: int, names: Iterable[str]) -> None:
        for name in names:
            match = NAME.fullmatch(name) if name.startswith(CLAIMS_PREFIX) else None
            found = _status(folder, name) if match else None
            if match is None or found is None or found.st_uid != int(match[1]):
                continue
            of_user = self._known.setdefault(found.st_uid, {})
            of_user[name] = found.st_mtime_ns
            if len(of_user) > MAX_OF_USER:
                del of_user[min(of_user, key=lambda name: (of_user[name], name))]


def _status(folder: int, name: str) -> os.stat_result | None:
    """Of a regular file; None for all else, and for what is gone."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


class _Watch:
    """Word of the names that come into one folder."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        self._folder: tuple[int, int] | None = None

    def fresh(self, folder: int) -> list[str] | None:
        """Names that have come since the last look; None where all are to be looked at: the first time, in another
        folder, after more than the kernel keeps, and always where it gives no such word."""
        if self._fd < 0:
            self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if self._fd < 0:
                return None
            weakref.finalize(self, os.close, self._fd)
        names = self._drain()
        found = os.fstat(folder)
        if self._folder == (found.st_dev, found.st_ino):
            return names
        path = os.fsencode(f"/proc/self/fd/{folder}")
        watched = self._libc.inotify_add_watch(self._fd, path, _CREATE | _MOVED_TO) >= 0
        self._folder = (found.st_dev, found.st_ino) if watched else None
        return None

    def _drain(self) -> list[str] | None:
        names: list[str] | None = []
        left = self._told()  # and no more: somebody may make changes faster than they are read here
        while left > 0 and (data := self._some()):
            left -= len(data)
            at = 0
            while at < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                if mask & _IGNORED:
                    self._folder = None  # it was removed: what has its place is another one
                if mask & (_OVERFLOW | _IGNORED):
                    names = None
                elif names is not None and data.startswith(_PREFIX, at - length):
                    names.append(os.fsdecode(data[at - length : at].rstrip(b"\0")))
        return names

    def _told(self) -> int:
        """Bytes of events that wait to be read."""
        size = bytearray(4)
        fcntl.ioctl(self._fd, termios.FIONREAD, size)
        return int.from_bytes(size, sys.byteorder)

    def _some(self) -> bytes:
        try:
            return os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return b""
