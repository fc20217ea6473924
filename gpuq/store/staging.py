"""A submission in slices: its jobs are written where nobody sees them, and one commit shows all, or they are removed.

They are rows of `jobs` from the first, in the range of ids of a submission that is marked as unfinished; whatever reads
jobs leaves such ranges out (`Store.unseen`). So the last commit is as short for a million jobs as for two. What is
unfinished when the daemon starts is removed: its submitter was told nothing.

That one row may be damaged. Each of the jobs therefore says of which submission it is, and counts only where an event
tells that this was submitted, which is written in the commit that shows them (`unvouched`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuq.events import Event, Kind
from gpuq.model import Clause, Job
from gpuq.policy.dependencies import Numbered
from gpuq.protocol import spans
from gpuq.store.rows import after_value, dump, job_values, live_values

if TYPE_CHECKING:
    from gpuq.store.queries import Queries
    from gpuq.store.store import Store

#: So begins what stands for the key of a submission that is not finished.
_TOKEN = "unfinished "
#: Columns in which the jobs of one submission differ; `command` is JSON as it is stored.
OWN = ("id", "name", "command", "array_index")
Own = tuple[int, str, str, int | None]
#: Jobs whose rows are written, changed or removed in one go: a few milliseconds.
SLICE = 200
#: Commands of a slice, in bytes.
SLICE_BYTES = 256 * 1024
#: What a job takes in the log beside its command, with its part of the indexes.
ROW_BYTES = 600


class Needs(NamedTuple):
    """What a job waits for, and which alternatives of that are open."""

    after: tuple[Clause, ...]
    open: frozenset[Numbered]


def insert_alike(
    store: Store,
    template: Job,
    own: Sequence[Own],
    unmet: Collection[Numbered],
    staged: Staged | None = None,
    each: Mapping[int, Needs] | None = None,
) -> None:
    """Add jobs that are as the template but for their own columns; `unmet` of its dependencies are open.

    With `each`, by id, they wait for different jobs. In a transaction.
    """
    columns: tuple[str, ...] = OWN
    rows: Sequence[tuple[object, ...]] = own
    if each is not None:
        columns = (*OWN, "after")
        rows = [(*row, after_value(each[row[0]].after)) for row in own]
    common = {name: value for name, value in job_values(template).items() if name not in columns}
    if staged is not None:
        common["submission"] = staged.first
    # one statement, for to bind forty values to each row takes three times as long
    values = [f"json_extract(value, '$[{n}]')" for n in range(len(columns))]
    values += [f"?{n}" for n in range(2, len(common) + 2)]
    store.conn.execute(
        f"INSERT INTO jobs ({','.join((*columns, *common))}) SELECT {','.join(values)} FROM json_each(?1)",
        (dump(rows), *common.values()),
    )
    if staged is None:
        store.tally({template.state: len(own)})
    if each is not None:
        for job_id, needs in each.items():
            store.add_dependencies([job_id], needs.after, needs.open)
    elif template.after:
        store.add_dependencies((row[0] for row in own), template.after, unmet)
    if store.changes is not None:
        listed = [dict(zip(columns, row, strict=True)) for row in rows]
        store.changes.jobs(common, listed, staged.token if staged else None)


def in_slices(own: Iterable[Own]) -> Iterator[list[Own]]:
    """What is written in one go each."""
    some: list[Own] = []
    size = 0
    for row in own:
        some.append(row)
        size += len(row[2])
        if len(some) == SLICE or size >= SLICE_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some


class Staged:
    """A submission that nobody sees yet. Each method is a transaction of its own, or a slice of the work in one.

    Made by `Store.stage`; ends with `show`, or with `remove_some` until nothing is left. All raise StoreError.
    """

    def __init__(self, store: Store, first: int, last: int) -> None:
        self._store = store
        self.first, self.last = first, last
        #: stands for the submission while it has no key, here and in the file of changes
        self.token = f"{_TOKEN}{os.urandom(8).hex()}"
        #: jobs written so far
        self.written = 0
        #: about so many bytes of them are in the database's log; whoever writes it back sets it to 0
        self.in_log = 0

    def __contains__(self, job_id: int) -> bool:
        return self.first <= job_id <= self.last

    def begin(self, digest: str, environment: bytes) -> None:
        """Take the ids, and keep the environment."""
        store = self._store
        with store.transaction():
            store.start_ids_after(self.last)
            store.put_environment(digest, environment)
            store.conn.execute(
                "INSERT INTO submissions (key, first_id, last_id, unfinished) VALUES (?, ?, ?, 1)",
                (self.token, self.first, self.last),
            )
        store.unseen.append(self)

    def write(
        self,
        template: Job,
        own: Sequence[Own],
        unmet: Collection[Numbered],
        each: Mapping[int, Needs] | None = None,
    ) -> None:
        """Add jobs, whose ids follow those written before; as `insert_alike`."""
        store = self._store
        with store.unsynced():
            insert_alike(store, template, own, unmet, self, each)
        self.written += len(own)
        self.in_log += sum([len(row[2]) + ROW_BYTES for row in own])

    def slices(self) -> list[tuple[int, int]]:
        """The first and last ids of slices of what is written."""
        end = self.first + self.written
        return [(low, min(low + SLICE, end) - 1) for low in range(self.first, end, SLICE)]

    def meet(self, met: Collection[Numbered], low: int, high: int) -> None:
        """These dependencies are open no more for the jobs from `low` to `high`."""
        with self._store.unsynced():
            self._store.conn.executemany(
                """UPDATE dependencies SET met = 1
                   WHERE job_id BETWEEN ? AND ? AND clause = ? AND on_id = ? AND condition = ?""",
                ((low, high, number, wanted.job_id, wanted.condition.value) for number, wanted in met),
            )

    def change(self, template: Job, low: int, high: int) -> None:
        """The jobs from `low` to `high` are now as this one, in what may change; they wait for nothing."""
        store, values = self._store, live_values(template)
        with store.unsynced():
            columns = ",".join(f"{c} = :{c}" for c in values)
            store.conn.execute(
                f"UPDATE jobs SET {columns} WHERE id BETWEEN :low AND :high", {**values, "low": low, "high": high}
            )
            store.conn.execute("UPDATE dependencies SET met = 1 WHERE job_id BETWEEN ? AND ?", (low, high))
            if store.changes is not None:
                store.changes.jobs(values, [{"id": n} for n in range(low, high + 1)], self.token)

    def show(self, key: str, events: Sequence[Event]) -> None:
        """Everybody sees the jobs from now on, as the submission `key`; each event is one of each of them."""
        store = self._store
        try:
            with store.transaction():
                store.conn.execute("UPDATE submissions SET key = ?, unfinished = 0 WHERE key = ?", (key, self.token))
                store.add_events(events, last_id=self.last)
                if store.changes is not None:
                    store.changes.shown(self.token)
                    store.changes.submission(key, self.first, self.last)
                store.unseen.remove(self)
            store.forget_counts()
        except BaseException:
            if self not in store.unseen:
                store.unseen.append(self)
            raise

    def remove_some(self, now: float) -> bool:
        """Remove a slice of the jobs, the newest first; whether any are left."""
        low, high = (self.slices() or [(self.first, self.first - 1)])[-1]
        with self._store.unsynced():
            remove(self._store, self.first, low, high)
            if low == self.first:
                _give_back(self._store, self.first, self.last, now)
        self.written = low - self.first
        if low == self.first:
            self._store.unseen.remove(self)
        return low > self.first


def remove(store: Store, first: int, low: int, high: int) -> None:
    """Remove jobs that nobody has seen, of the submission that begins with `first`. In a transaction."""
    # only what says itself that it is of that submission: the range comes from a row that may be damaged
    those = "SELECT id FROM jobs WHERE id BETWEEN ? AND ? AND submission = ?"
    store.conn.execute(f"DELETE FROM dependencies WHERE job_id IN ({those})", (low, high, first))
    store.conn.execute("DELETE FROM jobs WHERE id BETWEEN ? AND ? AND submission = ?", (low, high, first))


def _give_back(store: Store, first: int, last: int, now: float) -> None:
    """The ids may be given out again; where later ones were already, an event tells that these are of no job."""
    store.conn.execute("DELETE FROM submissions WHERE unfinished AND first_id = ?", (first,))
    if store.next_id() == last + 1:
        store.conn.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'jobs'", (first - 1,))
    else:
        store.add_events([Event(now, Kind.WITHDRAWN, data={"ids": [[first, last]]})])


def unfinished(store: Store) -> list[Staged]:
    """What an earlier daemon left unfinished. Its jobs are not seen."""
    rows = store.conn.execute("SELECT first_id, last_id FROM submissions WHERE unfinished ORDER BY first_id")
    return [Staged(store, row["first_id"], row["last_id"]) for row in rows.fetchall()]


def unvouched(store: Queries, firsts: Iterable[int | None]) -> list[int]:
    """Those of the submissions, by their first ids, of which no event tells that they were submitted."""
    rows = store.conn.execute(
        """SELECT value FROM json_each(?) WHERE value IS NOT NULL AND NOT EXISTS
           (SELECT 1 FROM events WHERE job_id = value AND last_id IS NOT NULL AND kind = ?) ORDER BY value""",
        (dump(list(firsts)), Kind.SUBMITTED.value),
    )
    return [row["value"] for row in rows]


def disown(store: Store, acknowledged: Container[int], now: float) -> list[dict[str, Any]]:
    """After damage: remove jobs of submissions of which nothing tells that they were acknowledged; their rows.

    What else tells is the submission's own row, whatever happened to one of its jobs later, and that the file of
    changes has one that was shown (`acknowledged`, ids). In a transaction.
    """
    removed: list[dict[str, Any]] = []
    firsts = store.conn.execute("SELECT DISTINCT submission FROM jobs WHERE submission IS NOT NULL").fetchall()
    for first in unvouched(store, (row["submission"] for row in firsts)):
        rows = store.conn.execute("SELECT * FROM jobs WHERE submission = ? ORDER BY id", (first,)).fetchall()
        ids = [row["id"] for row in rows]
        if _was_shown(store, first, ids) or any(job_id in acknowledged for job_id in ids):
            store.conn.execute("UPDATE jobs SET submission = NULL WHERE submission = ?", (first,))
            continue
        removed += map(dict, rows)
        remove(store, first, ids[0], ids[-1])
        store.add_events([Event(now, Kind.WITHDRAWN, data={"ids": spans(ids)})])
        store.forget_counts()
    return removed


def _was_shown(store: Store, first: int, ids: Sequence[int]) -> bool:
    """Whether the submission has a row with its client's key, or something happened to one of its jobs."""
    row = store.conn.execute(
        """SELECT EXISTS (SELECT 1 FROM submissions WHERE first_id = ? AND NOT unfinished AND key NOT LIKE ?)
           OR EXISTS (SELECT 1 FROM jobs WHERE submission = ? AND attempt > 0)
           OR EXISTS (SELECT 1 FROM events WHERE last_id IS NULL AND job_id IN (SELECT value FROM json_each(?)))""",
        (first, f"{_TOKEN}%", first, dump(ids)),
    ).fetchone()
    return bool(row[0])


def remove_unfinished(store: Store, now: float) -> int:
    """Remove, in one transaction, what an earlier daemon left unfinished; how many submissions that were."""
    left = sorted(store.unseen, key=lambda staged: staged.first, reverse=True)
    if left:
        with store.transaction():
            for staged in left:
                remove(store, staged.first, staged.first, staged.last)
                _give_back(store, staged.first, staged.last, now)
        store.unseen.clear()
    return len(left)


def hidden(unseen: Sequence[Staged]) -> str:
    """An SQL condition of jobs that may be seen; every value in it is an integer of ours."""
    return " AND ".join(f"id NOT BETWEEN {s.first} AND {s.last}" for s in unseen) or "1"
