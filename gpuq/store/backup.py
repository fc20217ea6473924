"""Copies of the database: one file each, complete, made beside its name and then given it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from pathlib import Path

from gpuq.errors import StoreError, UsageError
from gpuq.store.connection import Connection, connect_readonly, disk_full

#: Where copies are kept, in the state folder.
FOLDER = "backups"
#: Copies made before a migration that are kept.
KEPT = 3


def before_migration(source: Connection, folder: Path, version: int) -> Path:
    """Copy a database of schema `version` into `folder`; older such copies but the newest go. Raises StoreError."""
    for unfinished in folder.glob(".queue.v*.db.*"):  # of a daemon that was killed meanwhile
        unfinished.unlink(missing_ok=True)
    target = folder / f"queue.v{version}.{stamp()}.db"
    make_folder(folder)
    copy(source, target)
    copies = sorted(folder.glob("queue.v*.*.db"), key=lambda path: path.name.split(".")[2])
    for old in copies[:-KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
    return target


def make_folder(folder: Path) -> None:
    """The folder of copies in the state folder; any other is its owner's affair. Raises StoreError."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}") from None


def stamp() -> str:
    """The time now, UTC, as part of a file's name; its order is the order of time."""
    now = time.time()
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"{int(now * 1e6) % 1_000_000:06d}Z"


def refuse_target(target: Path, state: Path) -> None:
    """Raises UsageError for what a copy must not replace: what is no file, and what a state folder is made of."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise UsageError(f"{target} is there and is not a regular file: name another one")
    parent, home = Path(os.path.realpath(target.parent)), Path(os.path.realpath(state))
    if parent.is_relative_to(home) and parent != home / FOLDER:
        raise UsageError(f"{target} is in the state folder: name a file elsewhere, or in {home / FOLDER}")


def copy_file(path: Path, target: Path, *, replace: bool = False) -> None:
    """As `copy`, from a connection of its own, so that it can run beside a daemon that writes."""
    try:
        source = connect_readonly(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    with contextlib.closing(source):
        copy(source, target, replace=replace)


def copy(source: Connection, target: Path, *, replace: bool = False) -> None:
    """A complete copy, 0600, which needs no journal beside it. A symlink at `target` is not followed.

    Raises UsageError where there is something already and `replace` is false, StoreError where it cannot be written.
    """
    if not replace and os.path.lexists(target):
        raise _exists(target)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{stamp()}")
    try:
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        try:
            _write(source, unfinished)
            _name(unfinished, target, replace=replace)
        finally:
            unfinished.unlink(missing_ok=True)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise disk_full(target.parent) from None
        raise source.translated(error) from None
    except OSError as error:
        raise StoreError(f"the copy {target} cannot be written: {error.strerror or error}") from None


def _write(source: Connection, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copied:
        source.backup(copied)
        # a copy is one file: no log beside it, which somebody who moves it would forget
        copied.execute("PRAGMA journal_mode = DELETE")
    sync(path)


def _name(unfinished: Path, target: Path, *, replace: bool) -> None:
    if replace:
        unfinished.replace(target)
    else:
        try:
            os.link(unfinished, target)  # unlike a rename, it fails where something is
        except FileExistsError:
            raise _exists(target) from None
    sync(target.parent)


def _exists(target: Path) -> UsageError:
    return UsageError(f"{target} exists already: name another file, or write --force to replace it")


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
