"""The daemon's own log: one JSON object per line, put aside when it is large. Nothing that befalls it harms the daemon.

Whoever has something to say takes `logging.getLogger("gpuq.…")` and gives what a program may look for as `extra`:

    log.info("job %d starts", job.id, extra={"event": "start", "job": job.id})

`extra` names none of a LogRecord's own attributes (`name`, `args`, `module`, `process`, …): logging refuses those.
Values of environment variables never go in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import threading
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpuq.config import log_files
from gpuq.errors import StateFolderError

log = logging.getLogger("gpuq.daemon")

#: A log of this many bytes is put aside.
SIZE = 10 * 1024 * 1024
#: Longest message and longest trace of a line, in characters: they may quote what somebody sent.
LONGEST = 8192
#: What every LogRecord has; all else in one came by `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Journal(logging.Handler):
    """Appends to `daemon.log`. What cannot be written is counted, and told of in the line after the next success."""

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        """Raises StateFolderError if what is at the path is no file of ours to write to."""
        super().__init__()
        self._folder = folder
        self._names = [path.name for path in log_files(folder)]
        self._size = size
        #: the folder itself: where it is moved to, the log goes with it
        self._dir = _open_folder(folder)
        self._fd, self._identity = self._open()
        self._torn = False
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line. Whatever is wrong with the record or with the disk, nobody is kept from going on."""
        line = encode(record)
        try:
            self._look()
            if self._lost and self._append(encode(_about_lost(self._lost))):
                self._lost = 0
            written = self._append(line)
        except OSError:
            written = False
        self._lost += not written

    def _look(self) -> None:
        """See that the file in the folder is the one that is open, and not too large."""
        try:
            found = os.stat(self._names[-1], dir_fd=self._dir, follow_symlinks=False)
        except FileNotFoundError:
            self._reopen()
            return
        if (found.st_dev, found.st_ino) != self._identity:
            self._reopen()
        elif found.st_size >= self._size:
            self._rotate()

    def _reopen(self) -> None:
        """Somebody took file or folder away: go on in a new one; in the old one where none can be made."""
        if os.fstat(self._dir).st_nlink == 0:  # removed; perhaps it has been made anew
            fresh_folder = _open_folder(self._folder)
            os.close(self._dir)
            self._dir = fresh_folder
        try:
            fresh = self._open()
        except (OSError, StateFolderError):
            return
        os.close(self._fd)
        (self._fd, self._identity), self._torn = fresh, False

    def _rotate(self) -> None:
        """`daemon.log` becomes `daemon.log.1`, and so on; where that cannot be, it begins anew: it must not fill the
        disk."""
        try:
            for older, newer in pairwise(self._names):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, older, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except OSError:
            os.ftruncate(self._fd, 0)
        self._reopen()

    def _open(self) -> tuple[int, tuple[int, int]]:
        """A descriptor of the log, and which file it is (device, inode). Raises StateFolderError."""
        path = self._folder / self._names[-1]
        # not blocking: opening a FIFO would wait for a reader
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(path.name, flags, 0o600, dir_fd=self._dir)
        except OSError as error:
            raise StateFolderError(f"the log {path} cannot be opened: {error.strerror}; move it away") from None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise StateFolderError(f"the log {path} is not a file: move it away")
        return fd, (found.st_dev, found.st_ino)

    def _append(self, line: bytes) -> bool:
        """Write a line; whether all of it could be. What comes after half a line begins on one of its own."""
        whole = b"\n" + line if self._torn else line
        written = os.write(self._fd, whole)
        self._torn = not whole[:written].endswith(b"\n")
        return written == len(whole)

    def close(self) -> None:
        super().close()
        os.close(self._fd)
        os.close(self._dir)


#: Made once: `json.dumps` would make an encoder for each line.
_ENCODE = json.JSONEncoder(default=str, separators=(",", ":")).encode


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def encode(record: logging.LogRecord) -> bytes:
    """The line of a record: `at level logger message`, what came by `extra`, and `trace` of an exception."""
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # words and arguments do not match: say what there is
        message = f"{record.msg} {record.args!r}"
    told: dict[str, Any] = {
        "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": message[:LONGEST],
    }
    told |= {key: value for key, value in vars(record).items() if key not in _OWN}
    if record.exc_info:
        told["trace"] = logging.Formatter().formatException(record.exc_info)[-LONGEST:]
    return _ENCODE(told).encode() + b"\n"


def _about_lost(count: int) -> logging.LogRecord:
    text = f"{count:,} lines before this one could not be written (no space on the disk?)"
    return logging.makeLogRecord(
        {"name": "gpuq.daemon", "levelno": logging.WARNING, "levelname": "WARNING", "msg": text, "lost": count}
    )


def begin(folder: Path) -> None:
    """From now on the log of this process is the journal in `folder`, also for what nobody catches.

    Raises StateFolderError.
    """
    # what no line of ours has (https://docs.python.org/3/howto/logging.html#optimization)
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[Journal(folder)])
    logging.captureWarnings(True)
    threading.excepthook = lambda told: log.error(
        "a thread broke",
        exc_info=(told.exc_type, told.exc_value or told.exc_type(), told.exc_traceback),
    )
    sys.unraisablehook = lambda told: log.error("an error that nobody could take: %s", told.exc_value)
