"""Whether a database is whole: quickly at every start, thoroughly in the background."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from gpuq.errors import StoreDamaged, StoreError
from gpuq.model import LIVE
from gpuq.store.columns import READ_AT_STARTS, misfits
from gpuq.store.connection import Connection, connect_readonly, refuse_symlink
from gpuq.store.format import HEADER, MAGIC, read_header, read_log
from gpuq.store.migrations import MIGRATIONS, TABLES, refuse_newer, schema_fault, version_of
from gpuq.store.rows import job_from_row

#: SQLite asks this often, in instructions of its own, whether to go on with a thorough check: every few milliseconds,
#: for each time this thread has to wait for the others to let it.
_ASK_EVERY = 500_000
#: Most lines of what a thorough check finds.
_LINES = 20


def before_opening(path: Path) -> str | None:
    """What is wrong with the file, as far as its size and its first bytes tell; None if nothing is.

    An empty file and none at all are new databases. Takes no longer for a large database than for a small one: only
    the log, which is short, is read as a whole. Not for one that is open here: see `connection.is_file`.
    Raises OSError, StoreError for a symbolic link.
    """
    refuse_symlink(path)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return "it is not a file"
        size, first = os.fstat(file).st_size, os.pread(file, HEADER, 0)
    finally:
        os.close(file)
    log = read_log(path.with_name(path.name + "-wal"))
    if log is not None and log.damage is not None:
        return log.damage
    if size == 0:
        return "it is empty, and its write-ahead log is not" if log is not None and log.frames else None
    if not first.startswith(MAGIC):
        return "it does not begin as a database does"
    header = read_header(first)
    if header is None:
        return "its header is damaged"
    told = log.pages if log is not None and log.pages else header.pages
    held = size // header.page_size
    missing = told - held
    if log is not None:  # pages that are new are in the log first
        missing -= sum(1 for number in log.frames if held < number <= told)
    return f"it is cut: {missing:,} of its {told:,} pages are missing" if missing > 0 else None


def after_opening(conn: Connection) -> None:
    """Whether live rows and the last id are what they must be. Raises StoreDamaged."""
    given = conn.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'").fetchone()[0]
    newest = conn.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0]
    if not isinstance(given, int) or given < newest:
        raise StoreDamaged(f"it says that {given!r:.40} was the last id, and there is job {newest}")
    states = ",".join(f"'{state}'" for state in sorted(LIVE))
    row = conn.execute(
        f"SELECT id, state FROM jobs WHERE ended_at IS NULL AND state NOT IN ({states}) LIMIT 1"
    ).fetchone()
    if row is not None:
        raise StoreDamaged(f"job {row['id']} is in the state {row['state']!r:.40}, which there is not while it lives")
    for fault in misfits(conn, READ_AT_STARTS):
        raise StoreDamaged(fault)
    _read_live(conn)


#: Text that differs from job to job; what else there is in a job's row is alike in many.
_OWN_JSON = ("command", "output", "log_path")
_OWN_TEXT = ("name", "note")


def _read_live(conn: Connection) -> None:
    """Whether gpuq can read the rows of jobs that live. Raises StoreDamaged.

    Of a hundred thousand that are alike but for their commands one is read as a whole; of the others SQLite tells
    whether what is their own is JSON.
    """
    columns = conn.execute("PRAGMA table_info(jobs)").fetchall()
    shared = [c["name"] for c in columns if c["type"] == "TEXT" and c["name"] not in (*_OWN_JSON, *_OWN_TEXT)]
    valid = " AND ".join(f"({column} IS NULL OR json_valid({column}))" for column in _OWN_JSON)
    own = ", ".join((*_OWN_JSON, *_OWN_TEXT))
    rows = conn.execute(f"SELECT id, {valid}, {own}, {', '.join(shared)} FROM jobs WHERE ended_at IS NULL")
    rows.row_factory = None
    known: set[tuple[object, ...]] = set()
    for row in rows:
        alike = row[-len(shared) :]
        if row[1] and alike in known:
            continue
        try:
            job_from_row(conn.execute("SELECT * FROM jobs WHERE id = ?", row[:1]).fetchone())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreDamaged(f"the row of job {row[0]} makes no sense: {error}") from None
        known.add(alike)


def thorough(path: Path, stop: Callable[[], bool]) -> list[str] | None:
    """What SQLite's own `integrity_check` finds, line by line, and what gpuq cannot have written; None
    where it was told to stop.

    Uses a connection of its own. Takes seconds per gigabyte. Raises OSError, StoreError.
    """
    with contextlib.closing(connect_readonly(path)) as conn:
        conn.set_progress_handler(lambda: int(stop()), _ASK_EVERY)
        try:
            rows = conn.execute(f"PRAGMA integrity_check({_LINES})").fetchall()
            lines = [str(row[0]) for row in rows if row[0] != "ok"]
            return lines or list(_faults(conn))
        except StoreDamaged as error:
            return [error.message]
        except StoreError:
            if stop():
                return None
            raise


def _faults(conn: Connection) -> Iterator[str]:
    """What SQLite finds nothing wrong with, and gpuq cannot have written; of a database of ours."""
    if not 0 < version_of(conn) <= len(MIGRATIONS) or schema_fault(conn) is not None:
        return
    there = {row[0] for row in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    found = list(misfits(conn, dict.fromkeys(sorted(TABLES & there), "1")))
    yield from found
    states = ",".join(f"'{state}'" for state in sorted(LIVE))
    row = conn.execute(f"SELECT id FROM jobs WHERE (state IN ({states})) != (ended_at IS NULL) LIMIT 1").fetchone()
    if row is not None:
        yield f"job {row['id']} is in a state that does not go with the time of its end"
    if not found and "environments" in there:
        for row in conn.execute("SELECT hash, body FROM environments"):
            if hashlib.sha256(row["body"]).hexdigest() != row["hash"]:
                yield f"the environment {row['hash']:.12} is not what it was"


def refuse_backup(path: Path, owner: int) -> None:
    """Check a file that somebody wants to go on with. Raises StoreError with what is wrong, OSError."""
    problem = before_opening(path)
    if problem is not None:
        raise StoreError(f"{path} is damaged: {problem}")
    found = thorough(path, lambda: False)
    if found:
        raise StoreError(f"{path} is damaged: {found[0]}")
    with contextlib.closing(connect_readonly(path)) as conn:
        tables = {row["name"] for row in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if version_of(conn) == 0 or "jobs" not in tables:
            raise StoreError(f"{path} is not a database of gpuq")
        refuse_newer(version_of(conn))
        row = conn.execute("SELECT id, owner FROM jobs WHERE owner != ? LIMIT 1", (owner,)).fetchone()
        if row is not None:
            raise StoreError(f"{path} belongs to somebody else: job {row['id']} is of uid {row['owner']}")
