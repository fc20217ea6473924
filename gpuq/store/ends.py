"""What somebody who waits for many jobs asks: which of them still live, and how the others ended. All of it by pages.

Each function reads at most so many rows of jobs as it is told, so that others can be served between two pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gpuq.model import ENDED
from gpuq.store.rows import dump

if TYPE_CHECKING:
    from gpuq.store.queries import Queries

Span = tuple[int, int]


def first_living(store: Queries, span: Span, most: int) -> tuple[int | None, int]:
    """The first job of the range that has not ended, and up to which id that was looked for, in `most` rows."""
    row = store.conn.execute(
        f"""SELECT min(id) FILTER (WHERE ended_at IS NULL) AS living, max(id) AS last, count(*) AS rows
            FROM (SELECT id, ended_at FROM jobs WHERE id BETWEEN ? AND ? AND {store.seen} ORDER BY id LIMIT ?)""",
        (*span, most),
    ).fetchone()
    return row["living"], row["last"] if row["rows"] == most else span[1]


class End(NamedTuple):
    job_id: int
    state: str
    #: seconds since the epoch
    at: float


def ended(store: Queries, span: Span, most: int) -> tuple[list[End], list[int], int]:
    """The ends of the range's jobs that have ended, ids of those that have not, and up to which id that was looked for,
    in `most` rows."""
    rows = store.conn.execute(
        f"""SELECT id, state, ended_at FROM jobs WHERE id BETWEEN ? AND ? AND {store.seen} ORDER BY id LIMIT ?""",
        (*span, most),
    )
    rows.row_factory = None
    found = rows.fetchall()
    upto = found[-1][0] if len(found) == most else span[1]
    return [End(*row) for row in found if row[2] is not None], [row[0] for row in found if row[2] is None], upto


def count(store: Queries, span: Span) -> int:
    """How many jobs of the range there are."""
    row = store.conn.execute(
        f"SELECT count(*) AS jobs FROM jobs WHERE id BETWEEN ? AND ? AND {store.seen}", span
    ).fetchone()
    return int(row["jobs"])


def have_ended(store: Queries, ids: Sequence[int]) -> bool:
    """Whether one of these jobs has ended."""
    states = ",".join(f"'{state}'" for state in sorted(ENDED))
    row = store.conn.execute(
        f"SELECT 1 FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN ({states}) LIMIT 1", (dump(ids),)
    ).fetchone()
    return row is not None
