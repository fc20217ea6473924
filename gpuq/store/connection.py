"""Connections to SQLite: how they are opened, and SQLite's errors as ours, wherever they surface."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpuq.config import is_readonly
from gpuq.errors import DiskFull, StoreDamaged, StoreError

#: Primary result codes (https://sqlite.org/rescode.html).
_IOERR, _CORRUPT, _FULL, _NOTADB = 10, 11, 13, 26
#: With less room than this, in bytes, an input or output error is one for want of room.
_NO_ROOM = 1 << 16


class Connection(sqlite3.Connection):
    """Raises StoreError, StoreDamaged or DiskFull instead of SQLite's own errors, also while rows are fetched."""

    #: the file that is open
    path: Path = Path()
    #: told once more of each damage that is met, with what SQLite said
    on_damage: Callable[[str], None] | None = None

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _Cursor)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        try:  # not `translating`, which takes longer than many a statement
            # sqlite3.Connection.execute makes a plain cursor, whatever `cursor` is here (CPython 3.11)
            return super().cursor(_Cursor).execute(sql, parameters)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self.translated(error) from None

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        try:
            return super().cursor(_Cursor).executemany(sql, parameters)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self.translated(error) from None

    @contextlib.contextmanager
    def translating(self) -> Iterator[None]:
        """What SQLite raises in the block becomes an error of ours."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self.translated(error) from None

    def senseless(self, text: str) -> StoreDamaged:
        """The error to raise for content that SQLite can read and gpuq cannot have written."""
        if self.on_damage is not None:
            self.on_damage(text)
        return StoreDamaged(text)

    def translated(self, error: sqlite3.Error | UnicodeDecodeError) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        # text that is none has no code: Python finds it, in a row or in what SQLite says of a broken schema
        no_text = isinstance(error, UnicodeDecodeError) or str(error).startswith("Could not decode to UTF-8")
        if code in (_CORRUPT, _NOTADB) or no_text:
            if self.on_damage is not None:
                self.on_damage(str(error))
            return StoreDamaged(f"SQLite cannot read the database: {error}")
        if code == _FULL or (code == _IOERR and (free := free_bytes(self.path.parent)) is not None and free < _NO_ROOM):
            return disk_full(self.path.parent)
        if is_readonly(self.path.parent):
            return StoreError(f"the database {self.path} is on a file system that is mounted read-only now")
        return StoreError(f"the database {self.path} cannot be used: {error}")


#: Rows that are read at a time by who goes through them.
AT_ONCE = 500


class _Cursor(sqlite3.Cursor):
    """Rows come one by one from the file, and any of them may be the one that cannot be read."""

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._translated(error) from None

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._translated(error) from None

    def fetchmany(self, size: int | None = AT_ONCE) -> list[Any]:
        try:
            return super().fetchmany(size)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._translated(error) from None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """AT_ONCE rows are read ahead: what is asked of each in Python is a third of a start with many jobs."""
        while rows := self.fetchmany():
            yield from rows

    def _translated(self, error: sqlite3.Error | UnicodeDecodeError) -> StoreError:
        assert isinstance(self.connection, Connection)
        return self.connection.translated(error)


def connect(path: Path) -> Connection:
    """Open for reading and writing; the file is made if there is none. Raises OSError, StoreError."""
    # made by us first: SQLite would follow a symlink, and give it the umask's mode
    if not is_file(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return _open(path, f"file:{quote(os.fsencode(path))}?mode=rw")


def connect_readonly(path: Path) -> Connection:
    """Open for reading, in whichever thread. Raises OSError, StoreError."""
    if not is_file(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    connection = _open(path, f"file:{quote(os.fsencode(path))}?mode=ro")
    connection.execute("PRAGMA query_only = ON")
    return connection


def refuse_symlink(path: Path) -> None:
    """Raises StoreError."""
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link, and none is followed: put the file itself there")


def is_file(path: Path) -> bool:
    """Whether there is a file. Raises StoreError for what is none, OSError.

    It is not opened for that: SQLite's locks are the process's (fcntl(2)), and closing any other descriptor of the file
    would drop them. Then whoever else looks into the database takes its log away from under us
    (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    refuse_symlink(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise StoreError(f"{path} is not a file: move it away")
    return True


def _open(path: Path, uri: str) -> Connection:
    try:
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, cached_statements=256, factory=Connection, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise StoreError(f"the database {path} cannot be opened: {error}") from None
    connection.path = path
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection


def free_bytes(folder: Path) -> int | None:
    """Room that is left for us on the file system of `folder`; None where that cannot be known."""
    with contextlib.suppress(OSError):
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize
    return None


def disk_full(folder: Path) -> DiskFull:
    """The error to raise when something could not be written there for want of room."""
    free = free_bytes(folder)
    left = "" if free is None else f": {free // 1024:,} KiB are free"
    return DiskFull(
        f"the disk of {folder} is full{left}: free some; running jobs run on, and while the daemon runs "
        "`gpuq prune --older 30d` removes ended ones with their logs"
    )
