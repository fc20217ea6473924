"""The newest schema in one piece, for a database that is new.

It is what all migrations together make of an empty one; a test compares the two. To run these statements takes a
millisecond, and to import sqlite-utils, which the migrations need, took a quarter of a first start.
"""

from __future__ import annotations

#: The version that the statements make.
VERSION = 12

STATEMENTS = (
    # AUTOINCREMENT: an id is never used again, not even after the newest is deleted
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
        log_path TEXT,
        grace REAL,
        early_signal INTEGER,
        early_seconds REAL,
        log_limit INTEGER,
        retry TEXT NOT NULL DEFAULT '[]',
        spent TEXT NOT NULL DEFAULT '[]',
        suspended_at REAL,
        suspended_seconds REAL NOT NULL DEFAULT 0,
        submission INTEGER,
        queue TEXT NOT NULL DEFAULT 'default',
        job_group TEXT,
        stop_after INTEGER,
        preemptible INTEGER NOT NULL DEFAULT 0,
        most_gpus INTEGER NOT NULL DEFAULT 0,
        which_gpus TEXT
    )""",
    "CREATE INDEX jobs_live ON jobs (state, priority DESC, id) WHERE ended_at IS NULL",
    "CREATE INDEX jobs_ended ON jobs (state, ended_at, id) WHERE ended_at IS NOT NULL",
    "CREATE INDEX jobs_env ON jobs (env_hash, ended_at)",
    "CREATE INDEX jobs_tags ON jobs (tags) WHERE tags != '[]'",
    "CREATE INDEX jobs_group ON jobs (job_group) WHERE job_group IS NOT NULL",
    """CREATE TABLE attempts (
        job_id INTEGER,
        number INTEGER,
        started_at REAL,
        run_dir TEXT,
        log_path TEXT,
        ended_at REAL,
        exit_code INTEGER,
        signal INTEGER,
        failure TEXT,
        note TEXT,
        peak_ram INTEGER,
        user_seconds REAL,
        system_seconds REAL,
        PRIMARY KEY (job_id, number)
    )""",
    "CREATE INDEX attempts_live ON attempts (job_id) WHERE ended_at IS NULL",
    """CREATE TABLE claims (
        job_id INTEGER,
        attempt INTEGER,
        uuid TEXT,
        bytes INTEGER,
        peak INTEGER DEFAULT 0,
        PRIMARY KEY (job_id, attempt, uuid)
    )""",
    """CREATE TABLE submissions (
        key TEXT PRIMARY KEY,
        first_id INTEGER,
        last_id INTEGER,
        unfinished INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX submissions_unfinished ON submissions (first_id) WHERE unfinished",
    "CREATE TABLE environments (hash TEXT PRIMARY KEY, body BLOB)",
    """CREATE TABLE dependencies (
        job_id INTEGER,
        on_id INTEGER,
        condition TEXT,
        met INTEGER DEFAULT 0,
        clause INTEGER DEFAULT 0,
        PRIMARY KEY (job_id, clause, on_id, condition)
    )""",
    "CREATE INDEX dependencies_open ON dependencies (on_id) WHERE met = 0",
    "CREATE INDEX dependencies_started ON dependencies (on_id) WHERE met = 0 AND condition = 'started'",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at REAL,
        kind TEXT,
        job_id INTEGER,
        attempt INTEGER,
        data TEXT,
        last_id INTEGER
    )""",
    "CREATE INDEX events_job ON events (job_id, id)",
    "CREATE INDEX events_ranges ON events (job_id) WHERE last_id IS NOT NULL",
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
    )""",
    "CREATE TABLE disabled_gpus (uuid TEXT PRIMARY KEY NOT NULL, why TEXT NOT NULL, at REAL NOT NULL)",
    """CREATE TABLE job_groups (
        name TEXT PRIMARY KEY NOT NULL,
        failures INTEGER NOT NULL,
        failed TEXT NOT NULL,
        stopped_at REAL
    )""",
)
