"""The NVML library's file: whether it was replaced since it was loaded, and loading the new one beside the old.

An upgrade of the driver replaces `libnvidia-ml.so.1`. A process that has the old one loaded keeps it: it fits the old
kernel module only, and dlopen(3) of the same name gives it out again.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path

NAME = "libnvidia-ml.so.1"

#: Device, inode, size and time of change of a file: another file of the same name differs in one of them.
_Key = tuple[int, int, int, int]


@dataclass(slots=True)
class Library:
    """The library that this process has loaded."""

    #: where it lies; None before it was found
    folder: Path | None = None
    _key: _Key | None = field(default=None)
    _reloads: int = 0

    def note_loaded(self) -> None:
        """Remember the file, now that it is loaded. Costs a look at /proc/self/maps the first time."""
        if self.folder is None:
            self.folder = _folder()
            self._key = self._look()

    def replacement(self) -> ctypes.CDLL | None:
        """The file that has taken its place, loaded; None where there is none, or it cannot be loaded."""
        key = self._look()
        if self.folder is None or key is None or key == self._key:
            return None
        self._reloads += 1
        # a name that was not used before: for a known one dlopen(3) does not look at the file
        path = f"{self.folder}/{'./' * self._reloads}{NAME}"
        try:
            loaded = ctypes.CDLL(path)
        except OSError:
            return None  # half installed; looked at again
        self._key = key
        return loaded

    def _look(self) -> _Key | None:
        if self.folder is None:
            return None
        try:
            found = os.stat(self.folder / NAME)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _folder() -> Path | None:
    """Where the loaded library lies, as the kernel tells (proc(5), maps)."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                path = line.rstrip("\n").partition("/")[2].removesuffix(" (deleted)")
                if Path(path).name.startswith("libnvidia-ml.so"):
                    return Path("/" + path).parent
    except OSError:
        return None
    return None
