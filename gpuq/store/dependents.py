"""Who waits on a job that has started or ended: found and written a page at a time, a few statements for each page.

That a job has ended and an open dependency on it is left is how the database itself says that not all who wait on it
have been told, and so is an open one on the start of a job that runs: the next start of the daemon goes on there.

A clause that holds has no open alternative, whatever becomes of the others; one that has none left and does not hold
is broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuq.events import Event
from gpuq.model import ACTIVE, ENDED, WAITING, Clause, Condition, Dependency, State
from gpuq.policy.dependencies import DependencyBroken, Standing, find_cycle, weigh
from gpuq.store.rows import dump

if TYPE_CHECKING:
    from gpuq.store.queries import Queries

_WAITING = ",".join(f"'{state}'" for state in sorted(WAITING))
_ACTIVE = ",".join(f"'{state}'" for state in sorted(ACTIVE))

#: The jobs with an open dependency of a kind on them: each is found by a look into the index, not by its rows.
_AWAITED = """
    WITH RECURSIVE awaited(id) AS (
        SELECT min(on_id) FROM dependencies WHERE {open}
        UNION ALL
        SELECT (SELECT min(on_id) FROM dependencies WHERE {open} AND on_id > awaited.id)
        FROM awaited WHERE awaited.id IS NOT NULL)
    SELECT jobs.id, jobs.state, jobs.attempt FROM awaited CROSS JOIN jobs ON jobs.id = awaited.id WHERE {which}
"""
_STARTED = f"met = 0 AND condition = '{Condition.STARTED}'"


@dataclass(frozen=True, slots=True)
class Alternative:
    """An open dependency, and whether its job waits."""

    row: int
    job_id: int
    clause: int
    condition: Condition
    waits: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Open dependencies on one job, in the order in which they were written."""

    found: list[Alternative]
    #: the row to go on after; None where there are no more
    after: int | None


def page(store: Queries, on_id: int, standing: Standing, after: int, most: int) -> Page:
    """Up to `most` dependencies that are open until the job stands so, after that row; only those on its start while
    it has not ended. What nobody sees yet is left to its submission.
    """
    which = "d.met = 0" if standing.state in ENDED else f"d.met = 0 AND d.condition = '{Condition.STARTED}'"
    cursor = store.conn.execute(
        f"""SELECT d.rowid, d.job_id, d.clause, d.condition, coalesce(jobs.state IN ({_WAITING}), 0)
            FROM dependencies AS d LEFT JOIN jobs ON jobs.id = d.job_id
            WHERE d.on_id = ? AND {which} AND d.rowid > ? ORDER BY d.rowid LIMIT ?""",
        (on_id, after, most),
    )
    cursor.row_factory = None
    found = cursor.fetchall()
    seen = [row for row in found if not store.is_unseen(row[1])] if store.unseen else found
    return Page(
        [Alternative(row, job_id, clause, Condition(c), bool(waits)) for row, job_id, clause, c, waits in seen],
        found[-1][0] if len(found) == most else None,
    )


def close_clauses(store: Queries, rows: Sequence[int]) -> None:
    """These dependencies hold: the clauses that they are of wait for nothing more. In a transaction."""
    if rows:
        store.conn.execute(
            """UPDATE dependencies SET met = 1 WHERE met = 0 AND rowid IN (
                   SELECT other.rowid FROM json_each(?) AS held CROSS JOIN dependencies AS this
                   ON this.rowid = held.value CROSS JOIN dependencies AS other
                   ON other.job_id = this.job_id AND other.clause = this.clause)""",
            (dump(rows),),
        )


def close(store: Queries, rows: Sequence[int]) -> None:
    """These dependencies are open no more, whatever came of them. In a transaction."""
    if rows:
        store.conn.execute(
            "UPDATE dependencies SET met = 1 WHERE rowid IN (SELECT value FROM json_each(?))", (dump(rows),)
        )


def broken(store: Queries, clauses: Iterable[tuple[int, int]]) -> dict[DependencyBroken, list[int]]:
    """Those of the clauses, by job and number and none of which holds, that have no open alternative left.

    What is broken, with the jobs of which that is true; each job once, with the first of its own.
    """
    rows = store.conn.execute(
        """SELECT a.job_id, a.clause, a.condition, a.on_id, jobs.state, jobs.attempt
           FROM json_each(?) AS given CROSS JOIN dependencies AS a
           ON a.job_id = json_extract(given.value, '$[0]') AND a.clause = json_extract(given.value, '$[1]')
           LEFT JOIN jobs ON jobs.id = a.on_id
           WHERE NOT EXISTS (SELECT 1 FROM dependencies AS o WHERE o.job_id = a.job_id AND o.clause = a.clause
                             AND o.met = 0)
           ORDER BY a.job_id, a.clause, a.rowid""",
        (dump(sorted(clauses)),),
    )
    rows.row_factory = None
    parts: dict[tuple[int, int], list[tuple[Dependency, Standing | None]]] = {}
    for job_id, number, condition, on_id, state, attempt in rows:
        wanted = Dependency(Condition(condition), on_id)
        parts.setdefault((job_id, number), []).append((wanted, _standing(state, attempt)))
    found: dict[DependencyBroken, list[int]] = {}
    told: set[int] = set()
    for (job_id, _), alternatives in parts.items():
        if job_id not in told:
            told.add(job_id)
            clause = Clause(tuple(wanted for wanted, _ in alternatives))
            fact = DependencyBroken(clause, tuple(standing for _, standing in alternatives))
            found.setdefault(fact, []).append(job_id)
    return found


def _standing(state: str | None, attempt: int | None) -> Standing | None:
    return None if state is None else Standing(State(state), bool(attempt))


def add_ready(store: Queries, ids: Sequence[int], event: Event) -> None:
    """The event of each of these jobs that waits and has no open dependency left. In a transaction."""
    store.conn.execute(
        f"""INSERT INTO events (at, kind, job_id, attempt, data)
            SELECT ?, ?, id, ?, ? FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN ({_WAITING})
            AND NOT EXISTS (SELECT 1 FROM dependencies WHERE job_id = jobs.id AND met = 0) ORDER BY id""",
        (event.at, event.kind.value, event.attempt, dump(dict(event.data)), dump(ids)),
    )


def left(store: Queries) -> dict[int, Standing]:
    """Jobs that have ended, or started, while there are open dependencies on that. Costs by the jobs that others wait
    on.
    """
    ended = _AWAITED.format(open="met = 0", which="jobs.ended_at IS NOT NULL")
    started = _AWAITED.format(open=_STARTED, which=f"jobs.ended_at IS NULL AND jobs.state IN ({_ACTIVE})")
    rows = [*store.conn.execute(ended).fetchall(), *store.conn.execute(started).fetchall()]
    return {row["id"]: Standing(State(row["state"]), row["attempt"] > 0) for row in rows}


def decided(store: Queries, low: int, high: int) -> dict[int, Standing]:
    """Jobs that have come to what is waited for, or to their end, while jobs from `low` to `high` wait on them."""
    rows = store.conn.execute(
        f"""SELECT DISTINCT jobs.id, jobs.state, jobs.attempt
            FROM dependencies AS d CROSS JOIN jobs ON jobs.id = d.on_id
            WHERE d.job_id BETWEEN ? AND ? AND d.met = 0
            AND (jobs.ended_at IS NOT NULL OR (d.condition = '{Condition.STARTED}' AND jobs.attempt > 0))
            ORDER BY jobs.id DESC""",
        (low, high),
    )
    return {row["id"]: Standing(State(row["state"]), row["attempt"] > 0) for row in rows.fetchall()}


def awaited(store: Queries, ids: Sequence[int]) -> dict[int, bool]:
    """Those of the jobs on which there is an open dependency, and whether they have started."""
    rows = store.conn.execute(
        """SELECT jobs.id, jobs.attempt > 0 AS started FROM json_each(?) AS given
           CROSS JOIN jobs ON jobs.id = given.value
           WHERE EXISTS (SELECT 1 FROM dependencies WHERE met = 0 AND on_id = given.value) ORDER BY jobs.id""",
        (dump(ids),),
    )
    return {row["id"]: bool(row["started"]) for row in rows}


def starts_awaited(store: Queries, ids: Sequence[int]) -> list[int]:
    """Those of the jobs on whose start others may wait. Most starts are awaited by nobody, and cost no statement."""
    if store.awaited_starts is None:
        rows = store.conn.execute(_AWAITED.format(open=_STARTED, which="1"))
        store.awaited_starts = {row["id"] for row in rows}
    return [job_id for job_id in ids if job_id in store.awaited_starts]


def note_starts(store: Queries, open_: Iterable[Dependency]) -> None:
    """These dependencies are open from now on, or will be when what is being written is committed."""
    if store.awaited_starts is not None:
        store.awaited_starts.update(one.job_id for one in open_ if one.condition is Condition.STARTED)


def is_needed(store: Queries, job_id: int) -> bool:
    """Whether a job that is still to start, seen or not, waits for this one."""
    row = store.conn.execute(
        f"""SELECT EXISTS (SELECT 1 FROM dependencies AS d JOIN jobs ON jobs.id = d.job_id
                           WHERE d.on_id = ? AND d.met = 0 AND jobs.state IN ({_WAITING}))""",
        (job_id,),
    ).fetchone()
    return bool(row[0])


# --- a job that is tried again, or waits for others than before --------------------------------------


def renew(store: Queries, job_ids: Sequence[int]) -> None:
    """Jobs that are tried again wait for what has not ended, or is tried again with them; not for the rest.

    Of a clause that does not hold and has no such alternative nothing is waited for: it has had its say. Where jobs
    that are tried again together would wait for each other, which only an edit can have brought about, the older of
    two does not wait for the newer. In a transaction, in which they are queued already.
    """
    together = frozenset(job_ids)
    upward: list[Any] = []
    for job_id in job_ids:
        rows = store.conn.execute(
            """SELECT d.rowid, d.job_id, d.clause, d.condition, d.on_id, jobs.state, jobs.attempt
               FROM dependencies AS d LEFT JOIN jobs ON jobs.id = d.on_id WHERE d.job_id = ? ORDER BY d.rowid""",
            (job_id,),
        ).fetchall()
        if not rows:
            continue
        clauses: dict[int, list[Any]] = {}
        for row in rows:
            clauses.setdefault(row["clause"], []).append(row)
        open_ = [row for alternatives in clauses.values() for row in _open_again(alternatives, together)]
        store.conn.execute(
            "UPDATE dependencies SET met = rowid NOT IN (SELECT value FROM json_each(?)) WHERE job_id = ?",
            (dump([row["rowid"] for row in open_]), job_id),
        )
        note_starts(store, (Dependency(Condition(row["condition"]), row["on_id"]) for row in open_))
        upward += [row for row in open_ if row["on_id"] > job_id and row["on_id"] in together]
    for row in upward:
        if cycle(store, row["job_id"], [row["on_id"]], most=_WHOLE):
            close(store, [row["rowid"]])


def _open_again(alternatives: Sequence[Any], together: frozenset[int]) -> list[Any]:
    """The rows of one clause that are open for a job that is tried again together with others."""
    wanted = tuple(Dependency(Condition(row["condition"]), row["on_id"]) for row in alternatives)
    standings: dict[int, Standing | None] = {
        row["on_id"]: Standing(State.QUEUED, False) if row["on_id"] in together else _of(row) for row in alternatives
    }
    open_, _ = weigh([Clause(wanted)], standings.get)
    still = {dependency for _, dependency in open_}
    return [row for row, dependency in zip(alternatives, wanted, strict=True) if dependency in still]


def _of(row: Any) -> Standing | None:
    return _standing(row["state"], row["attempt"])


#: Steps of a search for a cycle among jobs that are tried again together: it always comes to its end.
_WHOLE = 2**62


def cycle(store: Queries, job_id: int, wanted: Iterable[int], most: int = 100_000) -> list[int] | None:
    """The jobs of a cycle that there would be if the job waited for those that are `wanted`, from it to itself.

    Costs what is cheaper: to look at all that wait on the job, or at all that the others wait for. Raises
    `policy.dependencies.TooMany` after so many steps of each.
    """

    def needs(found: int) -> Iterable[int]:
        rows = store.conn.execute(
            f"""SELECT d.on_id FROM jobs CROSS JOIN dependencies AS d ON d.job_id = jobs.id AND d.met = 0
                WHERE jobs.id = ? AND jobs.state IN ({_WAITING})""",
            (found,),
        )
        return (row[0] for row in rows)

    def needed_by(found: int) -> Iterable[int]:
        rows = store.conn.execute(
            f"""SELECT d.job_id FROM dependencies AS d CROSS JOIN jobs ON jobs.id = d.job_id
                WHERE d.on_id = ? AND d.met = 0 AND jobs.state IN ({_WAITING})""",
            (found,),
        )
        return (row[0] for row in rows)

    return find_cycle(job_id, wanted, needs, needed_by, most)
