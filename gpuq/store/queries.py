"""What the daemon asks the queue: reading only.

Whoever lists, counts or looks something up pays for what is shown, not for what is stored: lists read ids from an
index that has their order, and the numbers of jobs by state are counted once and then kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from gpuq.events import Event
from gpuq.model import ENDED, LIVE, Attempt, Claim, Clause, Condition, Dependency, Job, State
from gpuq.policy.dependencies import Standing
from gpuq.policy.predict import kind_of
from gpuq.policy.waiting import Free, GroupKey, Waits, longest_run
from gpuq.protocol import MAX_ID, Selection
from gpuq.store import history
from gpuq.store.connection import Connection
from gpuq.store.lists import LIVING, LOOK, Key, Order, Part, Row, Walk, fitting, in_states, inside, part_of, width
from gpuq.store.rows import attempt_from_row, claim_from_row, dump, job_from_row, request_of
from gpuq.store.staging import Staged, hidden, unvouched

T = TypeVar("T")

#: What memory keeps of a job that waits: itself, and what puts it with others.
_OF_WAITS = """id, begin_at, state, attempt, submitted_at, time_limit, grace,
    priority, owner, gpus_asked, vram, cpus, ram, most_gpus, which_gpus, array_id, array_limit, queue, job_group,
    nullif(name, '')"""
#: How many of these are the job's own.
_OWN = 7


class Queries:
    """The reading half of the store."""

    conn: Connection

    def __init__(self) -> None:
        #: how many jobs are in a state, where that was counted
        self._counted: dict[State, int] = {}
        #: submissions that are being written, whose jobs nobody may see yet
        self.unseen: list[Staged] = []
        #: all jobs on whose start others wait, and perhaps more; None until that is asked for
        self.awaited_starts: set[int] | None = None

    @property
    def seen(self) -> str:
        """An SQL condition, of jobs that may be seen."""
        return hidden(self.unseen) if self.unseen else "1"

    def is_unseen(self, job_id: int) -> bool:
        return any(job_id in staged for staged in self.unseen)

    def forget_counts(self) -> None:
        """Count jobs anew when somebody asks how many there are."""
        self._counted.clear()

    # --- one job ----------------------------------------------------------------------------------

    def job(self, job_id: int) -> Job | None:
        if self.is_unseen(job_id):
            return None
        row = self.conn.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else self.job_of(row)

    def row(self, job_id: int) -> dict[str, Any] | None:
        """The row of a job as it stands there, whether or not it makes sense."""
        row = self.conn.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else dict(row)

    def state_of(self, job_id: int) -> State | None:
        if self.is_unseen(job_id):
            return None
        row = self.conn.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else self.made(f"the state of job {job_id}", lambda: State(row["state"]))

    def standing(self, job_id: int) -> Standing | None:
        """How a job stands for those that wait on it."""
        if self.is_unseen(job_id):
            return None
        row = self.conn.execute("SELECT state, attempt FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            return None
        return self.made(f"the state of job {job_id}", lambda: Standing(State(row["state"]), row["attempt"] > 0))

    def job_of(self, row: Any) -> Job:
        """The job in a row. Raises StoreDamaged for one that makes no sense."""
        return self.made(f"the row of job {row['id']}", lambda: job_from_row(row))

    def made(self, what: str, make: Callable[[], T]) -> T:
        """Raises StoreDamaged for a row that makes no sense: the next start leaves it out, and says so."""
        try:
            return make()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self.conn.senseless(f"{what} makes no sense: {error}") from None

    # --- many jobs --------------------------------------------------------------------------------

    def every_job(self) -> Iterator[Job]:
        for row in self.conn.execute(f"SELECT * FROM jobs WHERE {self.seen} ORDER BY id"):
            yield self.job_of(row)

    def live_jobs(self, state: State) -> Iterator[Job]:
        live = f"SELECT * FROM jobs WHERE state = ? AND {LIVING} AND {self.seen} ORDER BY id"
        for row in self.conn.execute(live, (state.value,)):
            yield self.job_of(row)

    def waiting(self, grace: float) -> tuple[dict[GroupKey, Free], list[Waits]]:
        """The jobs that wait: those that may start, as they are planned; and the others.

        `grace` is the grace period, in seconds, of a job that has none of its own. A start reads a hundred thousand of
        them: nothing is made of one that is like others. Raises StoreDamaged where they are of a submission that nobody
        was told of.
        """
        rows = self.conn.execute(
            f"""SELECT {_OF_WAITS}, submission FROM jobs
                WHERE state IN ('held', 'queued') AND {LIVING} AND {self.seen} ORDER BY id"""
        )
        rows.row_factory = None
        unmet = self.unmet_counts()
        alike: dict[tuple[Any, ...], Free] = {}
        found: dict[GroupKey, Free] = {}
        others: list[Waits] = []
        submissions: set[int | None] = set()
        for row in rows:
            job_id, begin_at, state, _, since, limit, own_grace = row[:_OWN]
            submissions.add(row[-1])
            if begin_at is not None or state != "queued" or job_id in unmet:
                others.append(self._waits(row[:-1], unmet.get(job_id, 0), grace))
                continue
            free = alike.get(row[_OWN:-1])
            if free is None:  # names, and arrays without a limit, do not set all of them apart
                key = self.made(f"the row of job {job_id}", lambda row=row: _group_key(*row[_OWN:-1]))  # type: ignore[misc]
                free = alike[row[_OWN:-1]] = found.setdefault(key, Free())
            free.ids.append(job_id)
            free.since.append(since)
            free.lengths.append(longest_run(limit, grace if own_grace is None else own_grace))
        if lost := unvouched(self, submissions):
            raise self.conn.senseless(f"there are jobs of a submission from {lost[0]} on, and nothing that tells of it")
        return found, others

    def last_runs(self, most: int) -> list[tuple[str, float]]:
        """Names of jobs that succeeded, and how many seconds they ran: those that ended last, in that order."""
        rows = self.conn.execute(
            """SELECT name, ended_at - started_at - suspended_seconds FROM (
                   SELECT * FROM jobs
                   WHERE state = 'succeeded' AND ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT ?)
               WHERE name != '' AND started_at IS NOT NULL ORDER BY ended_at""",
            (most,),
        )
        rows.row_factory = None
        return rows.fetchall()

    def waits(self, ids: Sequence[int], grace: float) -> list[Waits]:
        """Those of the jobs that wait, ascending, as they are kept in memory."""
        if not ids:
            return []
        listed = dump(ids)
        unmet = self.conn.execute(
            """SELECT job_id, count(*) FROM dependencies
               WHERE met = 0 AND job_id IN (SELECT value FROM json_each(?)) GROUP BY job_id""",
            (listed,),
        )
        unmet.row_factory = None
        open_: dict[int, int] = dict(unmet.fetchall())
        rows = self.conn.execute(
            f"""SELECT {_OF_WAITS} FROM jobs WHERE id IN (SELECT value FROM json_each(?))
                AND state IN ('held', 'queued') ORDER BY id""",
            (listed,),
        )
        rows.row_factory = None
        return [self._waits(row, open_.get(row[0], 0), grace) for row in rows]

    def _waits(self, row: Sequence[Any], unmet: int, grace: float) -> Waits:
        job_id, begin_at, state, attempt, since, limit, own_grace = row[:_OWN]
        key = self.made(f"the row of job {job_id}", lambda: _group_key(*row[_OWN:]))
        length = longest_run(limit, grace if own_grace is None else own_grace)
        return Waits(job_id, State(state), key, begin_at, attempt > 0, unmet, since, length)

    def live_attempts(self) -> Iterator[tuple[int, int]]:
        """Id and number of the newest attempt of each job that has not ended."""
        states = ",".join(f"'{state}'" for state in sorted(LIVE))
        rows = self.conn.execute(f"SELECT id, attempt FROM jobs WHERE state IN ({states}) AND {LIVING} AND {self.seen}")
        rows.row_factory = None
        yield from rows

    def jobs(self, ids: Sequence[int]) -> list[Job]:
        """The jobs in the order of the ids, without those that there are not."""
        return list(self.each(ids))

    def each(self, ids: Iterable[int]) -> Iterator[Job]:
        """The same one by one; nothing may be changed meanwhile."""
        # CROSS JOIN keeps the order
        rows = self.conn.execute(
            "SELECT jobs.* FROM json_each(?) AS given CROSS JOIN jobs ON jobs.id = given.value", (dump(list(ids)),)
        )
        rows.row_factory = None
        names = [column[0] for column in rows.description]
        for row in rows:
            yield self.job_of(dict(zip(names, row, strict=True)))  # a Row is searched for each of its forty names

    def select(self, selection: Selection, states: Iterable[State] = ()) -> list[int]:
        """Ids in the selection, ascending; `states` narrows it further. `@last` must be resolved before."""
        clause, values = self._where(selection, states)
        # as one text: a hundred thousand rows would be a hundred thousand objects
        found = self.conn.execute(f"SELECT json_group_array(id) FROM jobs WHERE {clause}", values).fetchone()[0]
        return sorted(json.loads(found))

    def outlines(self, ids: Sequence[int]) -> list[tuple[int, str, int]]:
        """Id, state and owner of each job, ascending."""
        rows = self.conn.execute(
            "SELECT id, state, owner FROM jobs WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id", (dump(ids),)
        )
        rows.row_factory = None
        return rows.fetchall()

    def walk(
        self,
        selection: Selection,
        states: Iterable[State],
        order: Order,
        most: int,
        after: Key | None = None,
        upto: int = MAX_ID,
    ) -> Part:
        """The selection's jobs in these states, in order: up to `most` after that key, of ids up to that one.

        However many there are, no more than LOOK rows of each state are read: then there may be few in a part, or none.
        """
        chosen = [state for state in states if not selection.states or state in selection.states]
        if not chosen or most < 1:
            return Part([], None)
        if selection.ranges and width(selection.ranges) <= LOOK:
            return self._walk_named(selection, chosen, order, most, after, upto)
        fits = fitting(selection.tags, selection.groups)
        look = max(most, LOOK) if selection.ranges or fits else most
        found: list[Row] = []
        walk = Walk(order, look, after, upto, fits)
        for statement, values in walk.statements(chosen, self.seen):
            rows = self.conn.execute(statement, values)
            rows.row_factory = None
            found += rows.fetchall()
        return part_of(sorted(found)[:look], look, most, inside(selection.ranges))

    def _walk_named(
        self, selection: Selection, states: list[State], order: Order, most: int, after: Key | None, upto: int
    ) -> Part:
        """The same of few ids that are named: the index of the order would be gone through to its end."""
        clause, values = self._where(selection, states)
        rows = self.conn.execute(f"SELECT {order.value[1]}, id, 1 FROM jobs NOT INDEXED WHERE {clause}", values)
        rows.row_factory = None
        found = sorted(row for row in rows if row[2] <= upto and (after is None or row[:2] > after))
        return part_of(found, None, most, lambda _: True)

    def moved(self, since: int, until: int, upto: int, most: int) -> tuple[dict[int, int], int]:
        """Jobs, of ids up to that one, to which something happened after one event and until another.

        With the first such event of each, by which they ascend; and up to which event that is, for no more than `most`
        are read.
        """
        rows = self.conn.execute(
            "SELECT id, job_id FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (since, until, most)
        )
        rows.row_factory = None
        found = rows.fetchall()
        first: dict[int, int] = {}
        for event, job in found:
            if job is not None and job <= upto:
                first.setdefault(job, event)
        return first, found[-1][0] if len(found) == most else until

    def among(self, selection: Selection, states: Iterable[State], ids: Iterable[int]) -> list[int]:
        """Those of the jobs, ascending, that are in the selection and in these states."""
        clause, values = self._where(selection, states)
        given = "id IN (SELECT value FROM json_each(?))"
        rows = self.conn.execute(
            f"SELECT id FROM jobs NOT INDEXED WHERE {given} AND {clause}", [dump(list(ids)), *values]
        )
        return sorted(row["id"] for row in rows)

    def ended(self, selection: Selection, before: float, size: int) -> Iterator[list[int]]:
        """Ids of the selection's jobs that ended until then, `size` at a time; whoever takes them may remove them."""
        for state in sorted(ENDED):
            if selection.states and state not in selection.states:
                continue
            clause, values = self._where(selection, [state])
            last: tuple[float, int] = (-1.0, 0)
            while True:
                found = self.conn.execute(
                    f"""SELECT ended_at, id FROM jobs WHERE {clause} AND ended_at <= ? AND (ended_at, id) > (?, ?)
                        ORDER BY ended_at, id LIMIT ?""",
                    [*values, before, *last, size],
                ).fetchall()
                if not found:
                    break
                last = (found[-1]["ended_at"], found[-1]["id"])
                yield [row["id"] for row in found]

    def select_jobs(self, selection: Selection, states: Iterable[State], order: Order, limit: int | None) -> list[Job]:
        """The first `limit` jobs of the selection in that order; `states` narrows it further."""
        states, ids, after = list(states), list[int](), None
        while limit is None or len(ids) < limit:
            part = self.walk(selection, states, order, LOOK if limit is None else limit - len(ids), after)
            ids += part.ids
            after = part.last
            if after is None:
                break
        return self.jobs(ids)

    def unknown(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of the inclusive ranges in which there is no job."""
        rows = self.conn.execute(
            f"""SELECT low, high FROM (SELECT json_extract(value, '$[0]') AS low, json_extract(value, '$[1]') AS high
                                       FROM json_each(?))
                WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id BETWEEN low AND high AND {self.seen})""",
            (dump(ranges),),
        )
        return [(row["low"], row["high"]) for row in rows]

    def count(self, selection: Selection, states: Iterable[State]) -> int:
        """Jobs of the selection in these states."""
        chosen = [state for state in states if not selection.states or state in selection.states]
        if not chosen:
            return 0
        if not selection.ranges and not selection.tags and not selection.groups:
            return sum(map(self._count, chosen))
        clause, values = self._where(selection, chosen)
        table = "jobs NOT INDEXED" if selection.ranges else "jobs"
        return int(self.conn.execute(f"SELECT count(*) FROM {table} WHERE {clause}", values).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Jobs that have not ended, by state."""
        found = {state.value: self._count(state) for state in sorted(LIVE)}
        return {state: count for state, count in found.items() if count}

    def _count(self, state: State) -> int:
        if state not in self._counted:
            clause, _ = self._where(Selection(), [state])
            self._counted[state] = int(self.conn.execute(f"SELECT count(*) FROM jobs WHERE {clause}").fetchone()[0])
        return self._counted[state]

    # --- what belongs to jobs -----------------------------------------------------------------------

    def waiting_on(self, job_id: int) -> list[tuple[int, Condition]]:
        """Jobs with an open dependency on this one."""
        rows = self.conn.execute(
            "SELECT job_id, condition FROM dependencies WHERE on_id = ? AND met = 0 ORDER BY job_id", (job_id,)
        )
        return [(row["job_id"], Condition(row["condition"])) for row in rows if not self.is_unseen(row["job_id"])]

    def open_dependencies(self, job_id: int) -> list[Dependency]:
        """The alternatives that are open, clause by clause."""
        return [wanted for clause in self.open_clauses(job_id).values() for wanted in clause.alternatives]

    def open_clauses(self, job_id: int) -> dict[int, Clause]:
        """The clauses that do not hold yet, by their numbers, each with the alternatives that may still hold."""
        rows = self.conn.execute(
            "SELECT clause, on_id, condition FROM dependencies WHERE job_id = ? AND met = 0 ORDER BY clause, rowid",
            (job_id,),
        )
        found: dict[int, list[Dependency]] = {}
        for row in rows:
            found.setdefault(row["clause"], []).append(Dependency(Condition(row["condition"]), row["on_id"]))
        return {number: Clause(tuple(alternatives)) for number, alternatives in found.items()}

    # --- jobs that are depended on by what they are of --------------------------------------------

    def array_of(self, job_id: int) -> int | None:
        """The array that the job is of, 0 for none; None where there is no such job.

        An array goes by the id of its first member, also once that was removed.
        """
        row = self.conn.execute(
            f"SELECT id, array_id FROM jobs WHERE id >= ? AND {self.seen} ORDER BY id LIMIT 1", (job_id,)
        ).fetchone()
        if row is None or (row["id"] != job_id and row["array_id"] != job_id):
            return None
        return row["array_id"] or 0

    def array_members(self, array_id: int, after: int, most: int) -> list[tuple[int, int]]:
        """Id and index of the array's members of ids after that one: their ids follow each other."""
        rows = self.conn.execute(
            f"SELECT id, array_index, array_id FROM jobs WHERE id > ? AND {self.seen} ORDER BY id LIMIT ?",
            (after, most),
        )
        rows.row_factory = None
        return [(job_id, index) for job_id, index, array in itertools.takewhile(lambda row: row[2] == array_id, rows)]

    def tagged_jobs(self, tag: str, owner: int, after: str, look: int, most: int) -> tuple[list[int], str | None]:
        """Up to `most` jobs of the owner's with a tag, and where to go on; None where there are no more.

        Mostly many jobs have the same tags, which are looked at once: an index has them side by side, of which no more
        than `look` entries are read here.
        """
        entries = self.conn.execute(
            "SELECT tags FROM jobs WHERE tags != '[]' AND tags > ? ORDER BY tags LIMIT ?", (after, look)
        )
        entries.row_factory = None
        found = [tags for (tags,) in entries]
        ids: list[int] = []
        word = dump(tag)
        for tags in dict.fromkeys(found):
            if word in tags and tag in json.loads(tags):
                rows = self.conn.execute(
                    f"SELECT id FROM jobs WHERE tags = ? AND tags != '[]' AND owner = ? AND {self.seen} LIMIT ?",
                    (tags, owner, most - len(ids)),
                )
                ids += [row["id"] for row in rows]
        return ids, found[-1] if len(found) == look else None

    def group_jobs(self, group: str, owner: int, most: int) -> list[int]:
        """Up to `most` jobs of the owner's in a group."""
        rows = self.conn.execute(
            f"SELECT id FROM jobs WHERE job_group = ? AND owner = ? AND {self.seen} LIMIT ?", (group, owner, most)
        )
        return [row["id"] for row in rows]

    def with_open_dependencies(self, low: int, high: int) -> set[int]:
        """Those of the jobs from `low` to `high` that have an open dependency."""
        rows = self.conn.execute(
            "SELECT DISTINCT job_id FROM dependencies WHERE job_id BETWEEN ? AND ? AND met = 0", (low, high)
        )
        return {row["job_id"] for row in rows}

    def unmet_counts(self) -> dict[int, int]:
        """Open dependencies by waiting job."""
        # +job_id: not by the primary key, which has those that were met long ago as well
        rows = self.conn.execute("SELECT job_id, count(*) AS n FROM dependencies WHERE met = 0 GROUP BY +job_id")
        return {row["job_id"]: row["n"] for row in rows}

    def attempt(self, job_id: int, number: int) -> Attempt | None:
        found = [a for a in self.attempts(job_id) if a.number == number]
        return found[0] if found else None

    def attempts(self, job_id: int) -> list[Attempt]:
        return self.made(f"an attempt of job {job_id}", lambda: self._attempts(job_id))

    def _attempts(self, job_id: int) -> list[Attempt]:
        claims = self.conn.execute("SELECT * FROM claims WHERE job_id = ? ORDER BY attempt, rowid", (job_id,))
        by_attempt: dict[int, list[Claim]] = {}
        for row in claims:
            by_attempt.setdefault(row["attempt"], []).append(claim_from_row(row))
        rows = self.conn.execute("SELECT * FROM attempts WHERE job_id = ? ORDER BY number", (job_id,))
        return [attempt_from_row(row, tuple(by_attempt.get(row["number"], ()))) for row in rows]

    def events(self, since: int, selection: Selection | None, limit: int | None) -> list[Event]:
        """Events after the id `since`, oldest first; with a limit, the newest ones. None of jobs when not selected."""
        if selection is None:
            return self.made("an event", lambda: history.of_all(self.conn, since, limit))
        jobs, values = self._where(selection)
        return self.made("an event", lambda: history.of_jobs(self.conn, since, jobs, values, limit))

    def events_page(
        self, after: history.Place, upto: int, selection: Selection | None, most: int
    ) -> tuple[list[Event], history.Place]:
        """Some of the events after that place up to that one, oldest first, and the place to go on at."""
        jobs, values = ("", []) if selection is None else self._where(selection)
        return self.made("an event", lambda: history.page(self.conn, after, upto, jobs, values, most))

    def last_event(self) -> int:
        return int(self.conn.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])

    def last_job(self, owner: int, upto: int = MAX_ID) -> int | None:
        """The newest job of a user, of ids up to that one."""
        newest = f"SELECT id FROM jobs WHERE owner = ? AND id <= ? AND {self.seen} ORDER BY id DESC LIMIT 1"
        row = self.conn.execute(newest, (owner, upto)).fetchone()
        return None if row is None else int(row["id"])

    def _where(self, selection: Selection, states: Iterable[State] = ()) -> tuple[str, list[int | str]]:
        """SQL for a selection; `states` narrows it further. Every value is bound or one of our own words."""
        parts, values = [self.seen], list[int | str]()
        if len(selection.ranges) == 1:
            parts.append("id BETWEEN ? AND ?")
            values += selection.ranges[0]
        elif selection.ranges:
            # CROSS JOIN keeps the order: one index range per range, however many thousand there are
            parts.append(
                """id IN (SELECT jobs.id FROM json_each(?) AS r CROSS JOIN jobs
                   ON jobs.id BETWEEN json_extract(r.value, '$[0]') AND json_extract(r.value, '$[1]'))"""
            )
            values.append(dump(selection.ranges))
        named = [frozenset(map(State, some)) for some in (selection.states, tuple(states)) if some]
        if named:
            parts.append(in_states(frozenset.intersection(*named)))
        for sql, value in fitting(selection.tags, selection.groups):
            parts.append(sql.format("?"))
            values.append(value)
        return " AND ".join(parts), values


def _group_key(
    priority: int,
    owner: int,
    gpus: int,
    vram: int | None,
    cpus: int,
    ram: int,
    most: int,
    which: str | None,
    array_id: int | None,
    array_limit: int | None,
    queue: str,
    group: str | None,
    name: str | None,
) -> GroupKey:
    array = (array_id, array_limit) if array_id is not None and array_limit else None
    kind = None if name is None else kind_of(name)
    return GroupKey(priority, owner, request_of(gpus, vram, cpus, ram, most, which), array, queue, group, kind)
