"""What the start and the end of jobs mean for those that wait on them: they become ready, or are skipped, and so on.

However many they are, one transaction sees to a bounded part of them. The first part is in that of the start or end
itself, so that a few are told of with it; the others follow, and other requests are served in between. What is left
stands in the database (`store/dependents.py`), so that the next daemon goes on where this one died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gpuq.daemon import decisions
from gpuq.daemon.hub import let_others
from gpuq.errors import StoreError
from gpuq.events import Event, Kind
from gpuq.model import State
from gpuq.policy.dependencies import DependencyBroken, Standing, holds
from gpuq.policy.lifecycle import advance
from gpuq.policy.waiting import Waiting
from gpuq.store import dependents
from gpuq.store.dependents import Alternative
from gpuq.store.store import Store

log = logging.getLogger("gpuq.cascade")

#: Dependents that are seen to in one transaction, and for how many the jobs of one condition count at least.
MOST, GROUP = 250, 10
#: After a write that failed (disk full) it is tried again this often, in seconds.
RETRY = 5.0


@dataclass(slots=True)
class Told:
    """What one transaction has come to, for memory."""

    #: jobs whose dependents were not all seen to: how they stand, and after which row to go on
    left: dict[int, tuple[Standing, int]]
    #: jobs with an open dependency less
    freed: set[int] = field(default_factory=set)
    #: what happened to jobs that can never start, each with those to which it did
    skipped: list[tuple[Event, list[int]]] = field(default_factory=list)

    #: jobs on whose start others may have waited
    started: list[int] = field(default_factory=list)

    @property
    def changed(self) -> set[int]:
        return self.freed.union(*(ids for _, ids in self.skipped))


class Cascade:
    def __init__(self, store: Store, waiting: Waiting) -> None:
        self._store, self._waiting = store, waiting
        self.left: dict[int, tuple[Standing, int]] = {}

    def load(self) -> None:
        """What an earlier daemon did not come to."""
        self.left = {job_id: (standing, 0) for job_id, standing in dependents.left(self._store).items()}

    def awaited(self, ids: Sequence[int], state: State) -> dict[int, Standing]:
        """Those of the jobs, which have come to this state, on which others wait."""
        return {job_id: Standing(state, started) for job_id, started in dependents.awaited(self._store, ids).items()}

    def add(self, decided: Mapping[int, Standing]) -> None:
        """What became of these jobs is not told yet to some that wait on them."""
        self.left |= {job_id: (standing, 0) for job_id, standing in decided.items() if job_id not in self.left}

    def tell(self, ended: Mapping[int, Standing], started: Sequence[int], now: float) -> Told:
        """See to dependents of these jobs, and of earlier ones, the latest first. In a transaction."""
        told = Told({**self.left, **{job_id: (standing, 0) for job_id, standing in ended.items()}})
        told.started = dependents.starts_awaited(self._store, started)
        for job_id in told.started:
            told.left.setdefault(job_id, (Standing(State.RUNNING, True), 0))  # an end tells those as well
        room = MOST
        while told.left and room > 0:
            job_id, (standing, after) = told.left.popitem()
            page = dependents.page(self._store, job_id, standing, after, room)
            if page.after is not None:
                told.left[job_id] = (standing, page.after)
            if page.found:
                room -= max(len(page.found), GROUP * self._tell(standing, page.found, told, now))
        return told

    def _tell(self, standing: Standing, found: Sequence[Alternative], told: Told, now: float) -> int:
        """Write what becomes of a page of dependents; into how many parts, at least one, they were put for that."""
        held = [one for one in found if holds(one.condition, standing)]
        lost = [one for one in found if not holds(one.condition, standing)]
        dependents.close_clauses(self._store, [one.row for one in held])
        dependents.close(self._store, [one.row for one in lost])
        suspects = {(one.job_id, one.clause) for one in lost if one.waits} - {(one.job_id, one.clause) for one in held}
        broken = dependents.broken(self._store, suspects) if suspects else {}
        for fact, ids in broken.items():
            self._skip(ids, fact, told, now)
        freed = sorted({one.job_id for one in found if one.waits}.difference(*broken.values()))
        if freed:
            dependents.add_ready(self._store, freed, Event(now, Kind.READY))
        told.freed.update(freed)
        return max(1, len(broken))

    def _skip(self, ids: list[int], fact: DependencyBroken, told: Told, now: float) -> None:
        """Write that these jobs, which wait, can never start."""
        sample = self._store.job(ids[0])
        assert sample is not None
        step = advance(sample, fact, now)
        self._store.change_alike(ids, sample, step.job, step.event)
        told.skipped.append((step.event, ids))
        told.freed.difference_update(ids)
        told.left |= {job_id: (standing, 0) for job_id, standing in self.awaited(ids, step.job.state).items()}

    def keep(self, told: Told, now: float) -> None:
        """It is committed: bring memory to what the store holds."""
        self.left = told.left
        if self._store.awaited_starts is not None:
            self._store.awaited_starts.difference_update(told.started)
        for event, ids in told.skipped:
            decisions.happened_alike(event, ids)
            self._waiting.remove_all(ids)
        for job in self._store.waits(sorted(told.freed), self._waiting.grace):
            self._waiting.add(job, now)


class Afterwards:
    """Goes on, between other requests, with what a transaction has left to do."""

    def __init__(self, cascade: Cascade, work: Callable[[], object], wake: Callable[[], None]) -> None:
        """`work` is a transaction of it, after each of which `wake` is called."""
        self._cascade, self._work, self._wake = cascade, work, wake
        self._task: asyncio.Task[None] | None = None
        self._still = asyncio.Event()
        self._still.set()
        self._failure: StoreError | None = None

    def begin(self) -> None:
        """See to it that nothing is left."""
        if self._cascade.left and (self._task is None or self._task.done()):
            self._still.clear()
            self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def done(self) -> None:
        """Until nothing is left. Raises StoreError where that cannot be written now; it is tried again."""
        await self._still.wait()
        if self._failure is not None:
            raise self._failure

    async def _go_on(self) -> None:
        while self._cascade.left:
            await let_others()
            try:
                self._work()
            except StoreError as error:
                log.error("who waits on a job that ended is not told yet: %s", error.message)
                self._failure = error
                self._still.set()
                await asyncio.sleep(RETRY)
                continue
            self._failure = None
            self._wake()
        self._still.set()
