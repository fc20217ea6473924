"""Jobs that have ended, in the order of their ends and a part at a time, with what figures are made of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gpuq.model import ENDED
from gpuq.policy.figures import Past
from gpuq.store.lists import in_states
from gpuq.store.rows import Row

if TYPE_CHECKING:
    from gpuq.store.queries import Queries

#: Where a part ended: the time and the id of its last job.
Place = tuple[float, int]


def part(store: Queries, after: Place, until: float, most: int) -> tuple[list[Past], Place]:
    """Up to `most` jobs that ended after that place, and by that time, in seconds since the epoch."""
    found: list[tuple[Place, Past]] = []
    for state in sorted(ENDED):  # the index has a state's jobs in the order of their ends
        rows = store.conn.execute(
            f"""SELECT id, state, failure, name, submitted_at, started_at, ended_at, suspended_seconds,
                    (SELECT json_group_array(json_array(c.uuid, a.started_at, coalesce(a.ended_at, jobs.ended_at)))
                     FROM attempts AS a JOIN claims AS c ON c.job_id = a.job_id AND c.attempt = a.number
                     WHERE a.job_id = jobs.id) AS used,
                    CASE WHEN attempt > 0 THEN (SELECT data FROM events AS e WHERE e.job_id = jobs.id AND
                        e.kind = 'started' AND e.attempt = jobs.attempt ORDER BY e.id DESC LIMIT 1) END AS told
                FROM jobs WHERE {in_states([state])} AND ended_at IS NOT NULL AND (ended_at, id) > (?, ?)
                AND ended_at <= ? ORDER BY ended_at, id LIMIT ?""",
            (*after, until, most),
        )
        found += [((row["ended_at"], row["id"]), _past(row)) for row in rows]
    found.sort(key=lambda one: one[0])
    some = found[:most]
    return [past for _, past in some], some[-1][0] if some else after


def _past(row: Row) -> Past:
    reserved = json.loads(row["told"]).get("reserved_at") if row["told"] else None
    return Past(
        row["state"],
        row["failure"],
        row["name"],
        row["submitted_at"],
        row["started_at"],
        row["ended_at"],
        row["suspended_seconds"],
        tuple((uuid, since, until) for uuid, since, until in json.loads(row["used"])),
        float(reserved) if isinstance(reserved, int | float) else None,
    )
