"""Events as they are read. One row may stand for many jobs, whose ids follow each other: it is told as one of each.

Of such a row `job_id` is the first and `last_id` the last; the jobs of two submissions never mix, so that the row
with the largest first id up to a job's is the only one that can be about it. What was pruned is told no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from sqlite3 import Connection
from typing import Any

from gpuq.events import Event, Kind
from gpuq.protocol import MAX_ID
from gpuq.store.rows import dump, event_from_row


def of_all(conn: Connection, since: int, limit: int | None) -> list[Event]:
    """Events after the id `since`, oldest first; with a limit, the newest ones."""
    left = -1 if limit is None else limit
    found: list[Event] = []
    for row in conn.execute("SELECT * FROM events WHERE id > ? ORDER BY id DESC LIMIT ?", (since, left)).fetchall():
        if left == 0:
            break
        events = [event_from_row(row)] if row["last_id"] is None else list(_each(conn, row, left))
        found += events
        left -= len(events) if limit is not None else 0
    found.reverse()
    return found


def of_jobs(conn: Connection, since: int, jobs: str, values: list[int | str], limit: int | None) -> list[Event]:
    """The same of some jobs: `jobs` is an SQL condition, with its values."""
    most = -1 if limit is None else limit
    own = conn.execute(
        f"""SELECT * FROM events WHERE id > ? AND last_id IS NULL AND job_id IN (SELECT id FROM jobs WHERE {jobs})
            ORDER BY id DESC LIMIT ?""",
        [since, *values, most],
    )
    shared = conn.execute(
        f"""SELECT shared.*, j.one, j.name FROM (SELECT id AS one, name FROM jobs WHERE {jobs}) AS j
            CROSS JOIN events AS shared
            ON shared.last_id IS NOT NULL AND shared.last_id >= j.one AND shared.id > ? AND shared.job_id =
                (SELECT max(job_id) FROM events WHERE last_id IS NOT NULL AND job_id <= j.one)
            ORDER BY shared.id DESC, j.one DESC LIMIT ?""",
        [*values, since, most],
    )
    found = [event_from_row(row) for row in own.fetchall()]
    found += [_one(row, row["one"], row["name"]) for row in shared.fetchall()]
    found.sort(key=lambda event: (event.id, event.job_id or 0))
    return found if limit is None else found[max(0, len(found) - limit) :]


#: An event and, where its row stands for many jobs, the last of them that was told of.
Place = tuple[int, int]


def page(
    conn: Connection, after: Place, upto: int, jobs: str, values: Sequence[int | str], most: int
) -> tuple[list[Event], Place]:
    """Events after that place up to that one, oldest first, with the place to go on at, which is at `upto` at the end.

    `jobs` is an SQL condition of those that are told of, with its values; without one so is what is about no job. No
    more than `most` rows are read of either table, and there may be no event in a page though more follow.
    """
    about = f"EXISTS (SELECT 1 FROM jobs WHERE jobs.id = events.job_id AND {jobs})" if jobs else "1"
    rows = conn.execute(
        f"""SELECT *, last_id IS NOT NULL OR {about} AS told FROM events
            WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?""",
        [*values, after[0], upto, most + 1],  # the first may have been told before
    ).fetchall()
    found: list[Event] = []
    for row in rows:
        upto_job = after[1] if row["id"] == after[0] else 0
        if upto_job >= (row["last_id"] or 1):
            continue
        if row["last_id"] is None:
            found += [event_from_row(row)] if row["told"] else []
            continue
        low, left = max(row["job_id"], upto_job + 1), max(0, most - len(found))
        some = conn.execute(
            "SELECT id, name FROM jobs WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?", (low, row["last_id"], left)
        ).fetchall()
        chosen = _chosen(conn, [job["id"] for job in some], jobs, values)
        found += [_one(row, job["id"], job["name"]) for job in some if job["id"] in chosen]
        if len(some) == left:
            return found, (row["id"], some[-1]["id"] if some else low - 1)
    return found, (rows[-1]["id"] if len(rows) > most else upto, MAX_ID)


def _chosen(conn: Connection, ids: list[int], jobs: str, values: Sequence[int | str]) -> set[int]:
    """Those of the jobs that meet the condition."""
    if not jobs:
        return set(ids)
    rows = conn.execute(
        f"SELECT id FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND {jobs}", [dump(ids), *values]
    )
    return {row["id"] for row in rows}


def _each(conn: Connection, row: Mapping[str, Any], limit: int) -> Iterator[Event]:
    """The newest events first that a row stands for, at most `limit`."""
    jobs = conn.execute(
        "SELECT id, name FROM jobs WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT ?",
        (row["job_id"], row["last_id"], limit),
    )
    return (_one(row, job["id"], job["name"]) for job in jobs)


def _one(row: Mapping[str, Any], job_id: int, name: str) -> Event:
    event = event_from_row(row)
    told = {"name": name, **event.data} if event.kind is Kind.SUBMITTED else event.data
    return Event(event.at, event.kind, job_id, event.attempt, told, event.id)
