"""A file that keeps room on the disk for what must still be written when the disk is full: how running jobs end.

The daemon takes it away when a write fails for want of room, and a supervisor when its result does not fit. While it
cannot be put back, nothing is added to the queue and nothing starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from gpuq.errors import DiskFull
from gpuq.store.connection import disk_full, free_bytes

log = logging.getLogger("gpuq.reserve")

#: Known to supervisors by this name as well (launch/parts/files.py).
NAME = "reserve"
SIZE = 4 * 1024 * 1024
#: So much must be free beside it, in bytes: it would be gone again with the next write.
BESIDE = 1024 * 1024


class Reserve:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._told = False

    @property
    def held(self) -> bool:
        return os.path.lexists(self._path)

    def keep(self) -> bool:
        """Put the file back if it is gone and there is room; whether it is there."""
        if self.held:
            return True
        free = free_bytes(self._folder)
        if free is not None and free >= SIZE + BESIDE and self._make():
            if self._told:
                log.warning("the disk of %s has room again", self._folder, extra={"event": "disk-room"})
            self._told = False
            return True
        self._tell()
        return False

    def _make(self) -> bool:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self._path, flags, 0o600)
        except OSError:
            return False
        try:
            os.posix_fallocate(file, 0, SIZE)
        except OSError:
            self.give_up()
            return False
        finally:
            os.close(file)
        return True

    def give_up(self) -> bool:
        """Make room; whether there was any to make."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._tell()
            return True
        return False

    def require(self, beside: int = 0) -> None:
        """For what only adds. Raises DiskFull while the reserve is gone, or less than `beside` bytes are free."""
        if not self.keep():
            raise self.full()
        if beside and (free := free_bytes(self._folder)) is not None and free < beside:
            raise self.full()

    def full(self) -> DiskFull:
        return disk_full(self._folder)

    def _tell(self) -> None:
        if not self._told:
            log.error("%s", self.full().message, extra={"event": "disk-full"})
        self._told = True
