"""What is read back from a run folder. The job can write there, so that nothing in it is taken on trust."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from pathlib import Path

from gpuq.errors import HostBusy, LaunchError, StoreBusy, StoreError
from gpuq.model import Identity

LOCK = "lock"
IDENTITY = "identity"
RESULT = "result"
#: what the attempt is, written before it is claimed (`store.runrecord`)
RECORD = "job"

#: The host is short of processes, files or memory for now (errno(3)); it says nothing about what was asked for.
BUSY = frozenset((errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM))
#: So is its disk, or what its user may have of it.
FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
#: Longest identity or result that is read, in bytes.
MAX_FILE = 64 * 1024
#: Longest complaint of a broken supervisor that is read, in bytes.
_COMPLAINT = 64 * 1024


def valid_text(text: str) -> str:
    """The text with whatever is not UTF-8 as a backslash escape, as what leaves this room must be.

    Names of files and words of commands are bytes; Python shows those that are not text as lone surrogates (PEP 383).
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def unreadable(what: str, error: OSError) -> StoreError:
    """The error to raise for a file, folder or process that cannot be looked at."""
    kind = StoreBusy if error.errno in BUSY else StoreError
    return kind(valid_text(f"{what} cannot be read: {error.strerror or error}"))


def launch_failure(text: str, error: OSError) -> LaunchError:
    """The error to raise for an attempt that could not be started."""
    return (HostBusy if error.errno in BUSY | FULL else LaunchError)(valid_text(text))


def for_a_while(step: str, number: int) -> bool:
    """Whether an attempt that failed at this step of its start, with this errno, may succeed when tried again."""
    return (step == "fork" and number in BUSY) or (step in ("identity", "log") and number in FULL)


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading; never waits, as for a FIFO, and follows no link. Raises OSError."""
    # a FIFO, or a device that a link names, may do something at open already: O_NONBLOCK, O_NOFOLLOW (open(2))
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def read_file(path: Path, limit: int = MAX_FILE) -> bytes | None:
    """The whole file, None if there is none. Raises StoreError, also for a file of more than `limit` bytes."""
    try:
        file = open_regular(path)
        try:
            data = _read(file, 0, limit + 1)
        finally:
            os.close(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(str(path), error) from None
    if len(data) > limit:
        raise StoreError(valid_text(f"{path} is damaged: it has more than {limit} bytes"))
    return data


def read_tail(path: str | os.PathLike[str], start: int, size: int) -> bytes:
    """The last `size` bytes of what a regular file holds from the offset `start`. Raises OSError, or ValueError."""
    file = open_regular(path)
    try:
        end = os.fstat(file).st_size
        offset = max(0, end - size, min(start, end))
        return _read(file, offset, end - offset)
    finally:
        os.close(file)


def _read(file: int, offset: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
        data += more
    return data


def locked(run_dir: Path) -> bool | None:
    """Whether somebody holds the lock: True while a supervisor lives; None if there is no lock. Raises StoreError.

    Tried as a shared lock, so that two who look do not take each other for one.
    """
    try:
        lock = open_regular(run_dir / LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(lock)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BlockingIOError:
        return True
    except OSError as error:
        raise unreadable(str(run_dir / LOCK), error) from None
    return False


def wait_unlocked(run_dir: Path) -> None:
    """Block until nobody holds the lock; not at all where there is none that could be waited for."""
    try:
        lock = open_regular(run_dir / LOCK)
    except OSError:
        return  # who asks looks again, and learns why
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def has_result(run_dir: Path) -> bool:
    """Whether a supervisor may have written its result: what is no regular file is not from one. Raises OSError."""
    return stat.S_ISREG(_mode(run_dir / RESULT))


def is_there(run_dir: Path) -> bool:
    """Whether the run folder exists. Raises OSError where that cannot be known."""
    return stat.S_ISDIR(_mode(run_dir))


def has_record(run_dir: Path) -> bool:
    """Whether what was written there before the claim still is. Raises OSError."""
    return stat.S_ISREG(_mode(run_dir / RECORD))


def _mode(path: Path) -> int:
    """0 for what does not exist."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def drop_drafts(run_dir: Path) -> None:
    """Remove the room that a supervisor which is gone had set aside for its result."""
    with contextlib.suppress(OSError):  # what cannot be removed is only a little room
        for name in os.listdir(run_dir):
            if name.startswith(f"{RESULT}.") and name.endswith(".tmp"):
                os.unlink(run_dir / name)


def complaint(run_dir: Path) -> str | None:
    """The last line that a broken supervisor printed, None where there is none to be had."""
    try:
        said = read_tail(run_dir / LOCK, 0, _COMPLAINT).decode("utf-8", "backslashreplace")
    except OSError:
        return None
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    return lines[-1] if lines else None


def read_identity(run_dir: Path) -> Identity | None:
    """None before the supervisor wrote it. It is renamed into place, so half a file is damage: raises StoreError."""
    data = read_file(run_dir / IDENTITY)
    if data is None:
        return None
    try:
        fields = json.loads(data)
        identity = Identity(int(fields["pid"]), int(fields["start_time"]), str(fields["boot_id"]))
        if not 0 < identity.pid < 2**31:
            raise ValueError("no process has such a number")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise StoreError(valid_text(f"{run_dir / IDENTITY} is damaged: it does not name a process")) from None
    return identity
