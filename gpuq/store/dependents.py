"""Who waits on a job that has ended: found and written a page at a time, with a few statements for each page.

That a job has ended and an open dependency on it is left is how the database itself says that not all who wait on it
have been told: the next start goes on there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuq.events import Event
from gpuq.model import WAITING, Condition, State
from gpuq.store.rows import dump

if TYPE_CHECKING:
    from gpuq.store.queries import Queries

_WAITING = ",".join(f"'{state}'" for state in sorted(WAITING))


@dataclass(frozen=True, slots=True)
class Page:
    """Open dependencies on one job, in the order in which they were written."""

    #: waiting jobs, each with its condition
    waiting: list[tuple[int, Condition]]
    #: the rows of the dependencies, also of jobs that do not wait any more
    rows: list[int]
    #: the row to go on after; None where there are no more
    after: int | None


def page(store: Queries, ended_id: int, after: int, most: int) -> Page:
    """Up to `most` open dependencies on the job, after that row. What nobody sees yet is left to its submission."""
    cursor = store.conn.execute(
        f"""SELECT d.rowid, d.job_id, d.condition, coalesce(jobs.state IN ({_WAITING}), 0)
            FROM dependencies AS d LEFT JOIN jobs ON jobs.id = d.job_id
            WHERE d.on_id = ? AND d.met = 0 AND d.rowid > ? ORDER BY d.rowid LIMIT ?""",
        (ended_id, after, most),
    )
    cursor.row_factory = None
    found = cursor.fetchall()
    seen = [row for row in found if not store.is_unseen(row[1])] if store.unseen else found
    waiting = [(job_id, Condition(condition)) for _, job_id, condition, waits in seen if waits]
    return Page(waiting, [row[0] for row in seen], found[-1][0] if len(found) == most else None)


def close(store: Queries, rows: Sequence[int]) -> None:
    """These dependencies are open no more, whatever came of them. In a transaction."""
    if rows:
        store.conn.execute(
            "UPDATE dependencies SET met = 1 WHERE rowid IN (SELECT value FROM json_each(?))", (dump(rows),)
        )


def add_ready(store: Queries, ids: Sequence[int], event: Event) -> None:
    """The event of each of these jobs that waits and has no open dependency left. In a transaction."""
    store.conn.execute(
        f"""INSERT INTO events (at, kind, job_id, attempt, data)
            SELECT ?, ?, id, ?, ? FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN ({_WAITING})
            AND NOT EXISTS (SELECT 1 FROM dependencies WHERE job_id = jobs.id AND met = 0) ORDER BY id""",
        (event.at, event.kind.value, event.attempt, dump(dict(event.data)), dump(ids)),
    )


def left(store: Queries) -> dict[int, State]:
    """Jobs that have ended and on which there are open dependencies. Costs by the jobs that others wait on."""
    rows = store.conn.execute(
        """WITH RECURSIVE awaited(id) AS (
               SELECT min(on_id) FROM dependencies WHERE met = 0
               UNION ALL
               SELECT (SELECT min(on_id) FROM dependencies WHERE met = 0 AND on_id > awaited.id)
               FROM awaited WHERE awaited.id IS NOT NULL)
           SELECT jobs.id, jobs.state FROM awaited CROSS JOIN jobs ON jobs.id = awaited.id
           WHERE jobs.ended_at IS NOT NULL"""
    )
    return {row["id"]: State(row["state"]) for row in rows.fetchall()}
