"""The schema, as numbered functions that each take a database one version further.

`PRAGMA user_version` counts those that ran. A migration that has landed is never edited: the next change is a new one,
here and in `schema.py`, of which a new database is made.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpuq.errors import StoreError
from gpuq.store import schema

if TYPE_CHECKING:
    from sqlite_utils import Database


def m001_jobs(db: Database) -> None:
    """Jobs with the outcome of their newest attempt. Text that may hold undecodable bytes is kept as ASCII JSON."""
    # AUTOINCREMENT, which sqlite-utils does not write: an id is never used again, not even after the newest is deleted
    db.conn.execute(
        """CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            owner INTEGER NOT NULL,
            state TEXT NOT NULL,
            command TEXT NOT NULL,
            cwd TEXT NOT NULL,
            gpus_asked INTEGER NOT NULL,
            vram INTEGER,
            cpus INTEGER NOT NULL,
            ram INTEGER NOT NULL,
            env_hash TEXT NOT NULL,
            submitted_at REAL NOT NULL,
            priority INTEGER NOT NULL,
            time_limit REAL,
            begin_at REAL,
            after TEXT NOT NULL,
            tags TEXT NOT NULL,
            array_id INTEGER,
            array_index INTEGER,
            array_limit INTEGER,
            umask INTEGER NOT NULL,
            limits TEXT NOT NULL,
            output TEXT,
            attempt INTEGER NOT NULL,
            gpus TEXT NOT NULL,
            started_at REAL,
            ended_at REAL,
            exit_code INTEGER,
            signal INTEGER,
            failure TEXT,
            note TEXT,
            ending TEXT,
            peak_vram INTEGER,
            peak_ram INTEGER,
            log_path TEXT
        )"""
    )
    # what has not ended is a small part of the table for ever: partial indexes keep look-ups flat
    db.conn.execute(
        "CREATE INDEX jobs_live ON jobs (state, id) WHERE ended_at IS NULL",
    )
    db.conn.execute("CREATE INDEX jobs_env ON jobs (env_hash, ended_at)")


def m002_attempts(db: Database) -> None:
    """Each run of a job, and the GPU memory it was entitled to and used."""
    db.create_table(
        "attempts",
        {
            "job_id": int,
            "number": int,
            "started_at": float,
            "run_dir": str,
            "log_path": str,
            "ended_at": float,
            "exit_code": int,
            "signal": int,
            "failure": str,
            "note": str,
            "peak_ram": int,
            "user_seconds": float,
            "system_seconds": float,
        },
        pk=("job_id", "number"),
    )
    db.conn.execute("CREATE INDEX attempts_live ON attempts (job_id) WHERE ended_at IS NULL")
    db.create_table(
        "claims",
        {"job_id": int, "attempt": int, "uuid": str, "bytes": int, "peak": int},
        pk=("job_id", "attempt", "uuid"),
        defaults={"peak": 0},
    )


def m003_submissions(db: Database) -> None:
    """Submissions by the client's random key, so that one sent twice is done once; and distinct environments."""
    db.create_table("submissions", {"key": str, "first_id": int, "last_id": int}, pk="key")
    db.create_table("environments", {"hash": str, "body": bytes}, pk="hash")


def m004_dependencies(db: Database) -> None:
    """Open and met dependencies; a broken one is told by the state of the job."""
    db.create_table(
        "dependencies",
        {"job_id": int, "on_id": int, "condition": str, "met": int},
        pk=("job_id", "on_id", "condition"),
        defaults={"met": 0},
    )
    db.conn.execute("CREATE INDEX dependencies_open ON dependencies (on_id) WHERE met = 0")


def m005_events(db: Database) -> None:
    db.create_table(
        "events", {"id": int, "at": float, "kind": str, "job_id": int, "attempt": int, "data": str}, pk="id"
    )
    db.conn.execute("CREATE INDEX events_job ON events (job_id, id)")


def m006_supervision(db: Database) -> None:
    """How a job is ended and tried again, how much of its log is kept, and how long it was suspended."""
    for column, kind in {
        "grace": "REAL",
        "early_signal": "INTEGER",
        "early_seconds": "REAL",
        "log_limit": "INTEGER",
        "retry": "TEXT NOT NULL DEFAULT '[]'",
        "spent": "TEXT NOT NULL DEFAULT '[]'",
        "suspended_at": "REAL",
        "suspended_seconds": "REAL NOT NULL DEFAULT 0",
    }.items():
        db.conn.execute(f"ALTER TABLE jobs ADD COLUMN {column} {kind}")


def m007_unfinished(db: Database) -> None:
    """A submission of which nobody may see a job yet, and one event for many jobs whose ids follow each other."""
    db.conn.execute("ALTER TABLE submissions ADD COLUMN unfinished INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("CREATE INDEX submissions_unfinished ON submissions (first_id) WHERE unfinished")
    # of such an event `job_id` is the first
    db.conn.execute("ALTER TABLE events ADD COLUMN last_id INTEGER")
    db.conn.execute("CREATE INDEX events_ranges ON events (job_id) WHERE last_id IS NOT NULL")


def m008_lists(db: Database) -> None:
    """Indexes in the order of lists: what lives by priority and age, what has ended by its end, each by state."""
    db.conn.execute("DROP INDEX IF EXISTS jobs_live")
    db.conn.execute("CREATE INDEX jobs_live ON jobs (state, priority DESC, id) WHERE ended_at IS NULL")
    db.conn.execute("CREATE INDEX jobs_ended ON jobs (state, ended_at, id) WHERE ended_at IS NOT NULL")


def m009_slices(db: Database) -> None:
    """Of a job that was written in a slice, the first id of its submission: it counts with the event of that range."""
    db.conn.execute("ALTER TABLE jobs ADD COLUMN submission INTEGER")
    for first, last in db.conn.execute("SELECT first_id, last_id FROM submissions WHERE unfinished").fetchall():
        db.conn.execute("UPDATE jobs SET submission = ? WHERE id BETWEEN ? AND ?", (first, first, last))


def m010_scheduling(db: Database) -> None:
    """What planning wants to know of a job: its queue and group, which GPUs it may have, and whether it gives way."""
    for column, kind in {
        "queue": "TEXT NOT NULL DEFAULT 'default'",
        "job_group": "TEXT",
        "stop_after": "INTEGER",
        "preemptible": "INTEGER NOT NULL DEFAULT 0",
        "most_gpus": "INTEGER NOT NULL DEFAULT 0",
        "which_gpus": "TEXT",
    }.items():
        db.conn.execute(f"ALTER TABLE jobs ADD COLUMN {column} {kind}")


def m011_clauses(db: Database) -> None:
    """Dependencies with alternatives: a row is one, and those of a job with the same number are a clause.

    Also who waits for a start, and jobs by their tags and groups.
    """
    db.conn.execute("DROP INDEX IF EXISTS dependencies_open")
    db.conn.execute("ALTER TABLE dependencies RENAME TO dependencies_before")
    db.conn.execute(
        """CREATE TABLE dependencies (
            job_id INTEGER,
            on_id INTEGER,
            condition TEXT,
            met INTEGER DEFAULT 0,
            clause INTEGER DEFAULT 0,
            PRIMARY KEY (job_id, clause, on_id, condition)
        )"""
    )
    db.conn.execute(
        """INSERT INTO dependencies (job_id, on_id, condition, met, clause)
           SELECT job_id, on_id, condition, met, row_number() OVER (PARTITION BY job_id ORDER BY rowid) - 1
           FROM dependencies_before ORDER BY rowid"""
    )
    db.conn.execute("DROP TABLE dependencies_before")
    db.conn.execute("CREATE INDEX dependencies_open ON dependencies (on_id) WHERE met = 0")
    db.conn.execute("CREATE INDEX dependencies_started ON dependencies (on_id) WHERE met = 0 AND condition = 'started'")
    db.conn.execute("CREATE INDEX jobs_tags ON jobs (tags) WHERE tags != '[]'")
    db.conn.execute("CREATE INDEX jobs_group ON jobs (job_group) WHERE job_group IS NOT NULL")


def m012_rules(db: Database) -> None:
    """What holds until somebody changes it: queues, disabled GPUs, how the jobs of groups have fared."""
    db.conn.execute(
        """CREATE TABLE queues (
            name TEXT PRIMARY KEY NOT NULL,
            priority INTEGER NOT NULL,
            gpus TEXT,
            default_time REAL,
            max_time REAL,
            max_jobs INTEGER,
            max_gpus INTEGER,
            paused INTEGER NOT NULL,
            draining INTEGER NOT NULL,
            why TEXT
        )"""
    )
    db.conn.execute("CREATE TABLE disabled_gpus (uuid TEXT PRIMARY KEY NOT NULL, why TEXT NOT NULL, at REAL NOT NULL)")
    db.conn.execute(
        """CREATE TABLE job_groups (
            name TEXT PRIMARY KEY NOT NULL,
            failures INTEGER NOT NULL,
            failed TEXT NOT NULL,
            stopped_at REAL
        )"""
    )


MIGRATIONS: tuple[Callable[[Database], None], ...] = (
    m001_jobs,
    m002_attempts,
    m003_submissions,
    m004_dependencies,
    m005_events,
    m006_supervision,
    m007_unfinished,
    m008_lists,
    m009_slices,
    m010_scheduling,
    m011_clauses,
    m012_rules,
)
#: What the newest version has: a start looks for them, and to learn them from the migrations takes a fifth of its time.
TABLES = frozenset(
    {"jobs", "attempts", "claims", "submissions", "environments", "dependencies", "events"}
    | {"queues", "disabled_gpus", "job_groups"}
)


#: What `fingerprint` says of each version from 0 on. A start compares; to learn them takes a fifth of its time.
FINGERPRINTS = (
    0xD4CBB29,
    0xC2E0D9A8,
    0xFBC840A6,
    0x474C4C9C,
    0x58048281,
    0x7A56BAA2,
    0xB54F593F,
    0x125048EF,
    0xC8D58C33,
    0xBD625667,
    0x9668451C,
    0x3AF887B3,
    0xA12D9121,
)
#: A version beyond this is none that a newer gpuq may have reached, but damage.
SANE_VERSION = 100_000


def fingerprint(conn: sqlite3.Connection) -> int:
    """A number that stands for the tables and indexes of ours that are there, and the names of their columns."""
    columns = conn.execute(
        """SELECT t.name, c.cid, c.name FROM sqlite_schema AS t JOIN pragma_table_info(t.name) AS c
           WHERE t.type = 'table' ORDER BY t.name, c.cid"""
    ).fetchall()
    indexes = conn.execute("SELECT tbl_name, name FROM sqlite_schema WHERE sql IS NOT NULL AND type = 'index'")
    ours = [tuple(row) for row in columns if row[0] in TABLES]
    return zlib.crc32(repr([*ours, *sorted(tuple(row) for row in indexes if row[0] in TABLES)]).encode())


def schema_fault(conn: sqlite3.Connection) -> str | None:
    """What is wrong with version and schema of a database; None where they are as gpuq made them.

    Raises StoreError for a newer one, of which that is not known.
    """
    version = version_of(conn)
    if not 0 <= version <= SANE_VERSION:
        return f"it says that it is of version {version}"
    refuse_newer(version)
    if fingerprint(conn) != FINGERPRINTS[version]:
        return f"its tables are not those of version {version}, which it says it is of"
    return None


def version_of(conn: sqlite3.Connection) -> int:
    """The schema's version; 0 for a database that holds nothing yet."""
    return int(conn.execute("PRAGMA user_version").fetchone()[0])


def refuse_newer(version: int) -> None:
    """Raises StoreError for a database from a newer gpuq, of which we could only guess what it means."""
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the database is of version {version}, and this gpuq knows {len(MIGRATIONS)}: it was written by a newer "
            "gpuq; install that one again, or go on with a copy that this one made: `gpuq db restore FILE`"
        )


def outdated(version: int) -> bool:
    """Whether a database of this version holds something, and has to be migrated."""
    return 0 < version < len(MIGRATIONS)


def migrate(conn: sqlite3.Connection, to: int | None = None) -> None:
    """Bring the database to version `to`, the newest if None, all or nothing. Raises StoreError for a newer one."""
    version = version_of(conn)
    refuse_newer(version)
    target = len(MIGRATIONS) if to is None else to
    if version >= target:
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        if version == 0 and target >= schema.VERSION:
            for statement in schema.STATEMENTS:
                conn.execute(statement)
            version = schema.VERSION
        if version < target:
            _run(conn, MIGRATIONS[version:target])
        conn.execute(f"PRAGMA user_version = {target}")
        conn.commit()
    except BaseException:
        conn.rollback()
        raise


def _run(conn: sqlite3.Connection, steps: tuple[Callable[[Database], None], ...]) -> None:
    from sqlite_utils import Database  # slow to import, and most starts have nothing to migrate

    # plugins would be looked for among all packages that are installed, and run in the daemon
    db = Database(conn, use_counts_table=False, execute_plugins=False)
    for step in steps:
        step(db)
