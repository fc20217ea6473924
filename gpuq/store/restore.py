"""A copy of the database that somebody wants to go on with: weighed before anything is changed, then taken."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpuq.errors import StoreDamaged, StoreError
from gpuq.model import ENDED, WAITING
from gpuq.protocol import spans
from gpuq.store import check, recovery, rules, staging
from gpuq.store.backup import copy_file, stamp
from gpuq.store.connection import connect_readonly
from gpuq.store.migrations import refuse_newer, version_of
from gpuq.store.store import Store


@dataclass(frozen=True, slots=True)
class Weighed:
    """A copy that can be gone on with."""

    jobs: int
    #: jobs of the present database that are not in it; None where the present one cannot be read
    missing: int | None
    #: ranges of ids of those that wait: nothing else knows them
    waiting: list[list[int]]
    #: ranges of ids of those that wait in it, and have been cancelled or skipped since
    revived: list[list[int]]


def weigh(folder: Path, path: Path, owner: int) -> Weighed:
    """Check a copy, every row of it, beside the database of `folder`. Raises StoreError with what is wrong."""
    with _checked(folder, path, owner) as copied:
        return _weighed(folder, copied)


def take(folder: Path, path: Path, owner: int) -> Weighed:
    """As `weigh`, and have the next start go on with the copy. Raises StoreError, OSError."""
    with _checked(folder, path, owner) as copied:
        weighed = _weighed(folder, copied)
        copied.replace(folder / recovery.RESTORE)
        recovery.mark(folder, f"from {path}", restore=True)
        return weighed


@contextmanager
def _checked(folder: Path, path: Path, owner: int) -> Iterator[Path]:
    """A copy of the copy, in `folder`, of today's schema, whose rows all make sense."""
    _refuse_file(folder, path)
    copied = folder / f".restore.{stamp()}"
    try:
        check.refuse_backup(path, owner)
        copy_file(path, copied)
        with contextlib.closing(Store(copied, network=True, backups=False)) as store:
            staging.remove_unfinished(store, time.time())
            for job in store.every_job():
                store.attempts(job.id)
            store.events(0, None, None)
            rules.read(store)
        yield copied
    except StoreDamaged as error:
        raise StoreError(f"{path} cannot be gone on with: {error.message}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be gone on with: {error.strerror or error}") from None
    finally:
        for part in ("", "-wal", "-shm", "-journal"):
            Path(f"{copied}{part}").unlink(missing_ok=True)


def _refuse_file(folder: Path, path: Path) -> None:
    """Raises StoreError for what is no file of its own, or is in use."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        kind = "a symbolic link: name the file itself" if stat.S_ISLNK(mode) else "not a file"
        raise StoreError(f"{path} is {kind}")
    if any(path.samefile(own) for own in folder.glob(f"{recovery.DATABASE}*")):
        raise StoreError(f"{path} is of the present database: name a copy")


def _weighed(folder: Path, copied: Path) -> Weighed:
    with contextlib.closing(connect_readonly(copied)) as conn:
        held = {
            row["id"]: (row["state"], row["attempt"]) for row in conn.execute("SELECT id, state, attempt FROM jobs")
        }
    missing, waiting, revived = 0, list[int](), list[int]()
    try:
        with contextlib.closing(connect_readonly(folder / recovery.DATABASE)) as conn:
            refuse_newer(version_of(conn))
            for row in conn.execute("SELECT id, state, attempt FROM jobs ORDER BY id"):
                state, attempt = held.get(row["id"], (None, 0))
                if state is None:
                    missing += 1
                    if row["state"] in WAITING:
                        waiting.append(row["id"])
                elif state in WAITING and row["state"] in ENDED and row["attempt"] == attempt:
                    revived.append(row["id"])
    except (OSError, StoreError):
        return Weighed(len(held), None, [], [])
    return Weighed(len(held), missing, spans(waiting), spans(revived))
