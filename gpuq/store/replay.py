"""Jobs, and rules, whose rows are lost, or older than what was acknowledged, as the file of changes tells them."""

from __future__ import annotations

import hashlib

from gpuq.model import Job, State
from gpuq.store import rules
from gpuq.store.changes import Told, Values
from gpuq.store.rows import job_from_row, job_values
from gpuq.store.store import Store


def replay(store: Store, told: Told, *, mixed: bool) -> int:
    """Bring back in one transaction what the database lacks; how many jobs that were.

    A row that is there is newer than a line up to whose event the database reaches, unless it is `mixed` of pages of
    different times: then whichever went further counts.
    """
    reaches = 0 if mixed else store.last_event()
    defaults = store.job_defaults()
    count = 0
    with store.transaction():
        for digest, body in told.environments.items():
            store.put_environment(digest, body)
        for job_id, (event, values) in sorted(told.rows.items()):
            present = store.row(job_id)
            job = _job({**defaults, **(present or {}), **values}, job_id)
            if job is None or (present is not None and not _better(job, present, event > reaches)):
                continue
            if present is not None:
                store.delete_job(job_id)
            store.put_job({"id": job_id, **job_values(job)})
            count += 1
        _replay_rules(store, told, reaches)
        for key, (first, last) in told.submissions.items():
            if store.submission(key) is None:
                store.put_submission(key, first, last)
        store.start_ids_after(told.last_id)
    return count


def _replay_rules(store: Store, told: Told, reaches: int) -> None:
    """Queues and what else holds for many: what is missing, and what the database does not reach up to."""
    present = {(table, row[rules.KEYS[table]]) for table, row in rules.rows(store)}
    for (table, key), (event, row) in told.rules.items():
        if table not in rules.KEYS or ((table, key) in present and event <= reaches):
            continue
        if row is None:
            rules.remove_row(store, table, key)
        elif _makes_sense(store, table, key, row):
            rules.put_row(store, table, row)


def _makes_sense(store: Store, table: str, key: str, row: Values) -> bool:
    columns = {column["name"] for column in store.conn.execute(f"PRAGMA table_info({table})").fetchall()}
    try:
        rules.READERS[table](row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return row.keys() == columns and row[rules.KEYS[table]] == key


def drop_false_environments(store: Store) -> None:
    """One that is not what it was must not be given to a program. In a transaction."""
    for row in store.conn.execute("SELECT hash, body FROM environments").fetchall():
        if hashlib.sha256(row["body"] or b"").hexdigest() != row["hash"]:
            store.conn.execute("DELETE FROM environments WHERE hash IS ?", (row["hash"],))


def _job(values: Values, job_id: int) -> Job | None:
    try:
        job = job_from_row(values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return job if job.id == job_id else None


def _better(job: Job, present: Values, newer: bool) -> bool:
    """Whether the line counts instead of the row. A row that makes no sense counts for nothing."""
    row = _job(present, job.id)
    return row is None or (newer and job != row and _progress(job) >= _progress(row))


def _progress(job: Job) -> tuple[int, bool, bool]:
    return (job.attempt, job.ended, job.state not in (State.QUEUED, State.HELD))
