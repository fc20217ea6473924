"""The waiting jobs in memory: who may start, grouped so that planning looks at heads only.

A job that may start is an id in a sorted list of its group; what keeps another from starting (its owner, a
dependency, its begin time) is kept beside it. The job itself stays in the store: a hundred thousand ids are small.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import repeat
from math import inf

from gpuq.model import DEFAULT_QUEUE, Job, Reason, Request, State
from gpuq.policy.line import Line
from gpuq.policy.predict import kind_of

#: Most kinds of jobs that are told apart for the sake of predictions.
MOST_KINDS = 200


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Jobs that are alike to the planner."""

    priority: int
    owner: int
    request: Request
    #: (array id, most members at a time), where the array has such a limit
    array: tuple[int, int] | None = None
    queue: str = DEFAULT_QUEUE
    #: the group of jobs that stop together
    group: str | None = None
    #: what the run time is predicted by
    kind: str | None = None
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # a plan looks each key up several times, and the hash of nested records is made anew each time
        parts = (self.priority, self.owner, self.request, self.array, self.queue, self.group, self.kind)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash


def key_of(job: Job) -> GroupKey:
    array = (job.array.array_id, job.array.limit) if job.array and job.array.limit else None
    kind = kind_of(job.name) if job.name else None
    return GroupKey(job.priority, job.owner, job.request, array, job.queue, job.group, kind)


def longest_run(time_limit: float | None, grace: float) -> float:
    """Seconds after which a job has surely ended: its limit, and the grace period before what is left is killed."""
    return inf if time_limit is None else time_limit + grace


@dataclass(frozen=True, slots=True)
class Waits:
    """A job in `held` or `queued`, as far as it matters here."""

    job_id: int
    state: State
    key: GroupKey
    begin_at: float | None = None
    #: whether it has been tried before
    tried: bool = False
    #: open dependencies
    unmet: int = 0
    #: when it was submitted
    since: float = 0.0
    #: seconds that it may run for, with its grace period
    length: float = inf


@dataclass(slots=True)
class Free:
    """Jobs that are alike and may start, ascending: ids, and of each when it was submitted and how long it may run."""

    ids: list[int] = field(default_factory=list)
    since: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)


class Waiting:
    """All jobs in `held` and `queued`."""

    def __init__(self, longest_pause: float = inf, grace: float = 0.0) -> None:
        """`longest_pause` is the longest that a retry may be put off, `grace` a job's grace period where it has none
        of its own, both in seconds."""
        #: those that may start
        self.groups: dict[GroupKey, Line] = {}
        self.grace = grace
        self._kinds: set[str] = set()
        self._key: dict[int, GroupKey] = {}
        #: what keeps a job out of the groups
        self._blocked: dict[int, Reason] = {}
        self._begin: list[tuple[float, int]] = []
        #: jobs with a begin time that wait for nothing else, or for nothing any more
        self._timed: set[int] = set()
        self._longest_pause = longest_pause
        #: how often jobs have come that wait for nothing, or only for their time
        self.freed = 0

    def put(self, job: Job, unmet: int, now: float) -> None:
        """Add a job, or move it to where it belongs now. `unmet` counts its open dependencies."""
        self.add(self._waits(job, unmet), now)

    def _waits(self, job: Job, unmet: int) -> Waits:
        length = longest_run(job.time_limit, self.grace if job.grace is None else job.grace)
        tried = job.attempt > 0
        return Waits(job.id, job.state, key_of(job), job.begin_at, tried, unmet, job.submitted_at, length)

    def add(self, job: Waits, now: float) -> None:
        """The same of a job of which no more is known."""
        self.remove(job.job_id)
        if job.state is State.HELD:
            self._blocked[job.job_id] = Reason.HELD
        elif job.state is State.QUEUED and job.unmet:
            self._blocked[job.job_id] = Reason.DEPENDENCY
        elif job.state is State.QUEUED:
            self._put_free(job, now)

    def put_all(self, alike: Job, ids: range, unmet: int, now: float) -> None:
        """Add new jobs that are as `alike`, and of which none is here yet: one step for them all."""
        if alike.state is State.HELD or (alike.state is State.QUEUED and unmet):
            why = Reason.HELD if alike.state is State.HELD else Reason.DEPENDENCY
            self._blocked.update(dict.fromkeys(ids, why))
        elif alike.state is State.QUEUED:
            self._put_all_free(alike, ids, now)

    def _put_all_free(self, alike: Job, ids: range, now: float) -> None:
        self.freed += 1
        waits = self._waits(alike, 0)
        begin = self._begin_of(waits, now)
        if begin is not None:
            self._timed.update(ids)
        if begin is not None and begin > now:
            self._blocked.update(dict.fromkeys(ids, Reason.BEGIN_TIME))
            self._begin += [(begin, job_id) for job_id in ids]
            heapq.heapify(self._begin)
        else:
            key = self._known(waits.key)
            self._key.update(dict.fromkeys(ids, key))
            self.groups.setdefault(key, Line()).extend(ids, repeat(waits.since), repeat(waits.length))

    def _put_free(self, job: Waits, now: float) -> None:
        """One that only its begin time may keep from starting."""
        self.freed += 1
        begin = self._begin_of(job, now)
        if begin is not None:
            self._timed.add(job.job_id)
        if begin is not None and begin > now:
            self._blocked[job.job_id] = Reason.BEGIN_TIME
            heapq.heappush(self._begin, (begin, job.job_id))
        else:
            key = self._known(job.key)
            self._key[job.job_id] = key
            self.groups.setdefault(key, Line()).add(job.job_id, job.since, job.length)

    def _known(self, key: GroupKey) -> GroupKey:
        """The key; without its kind where there are too many of them to plan each by itself."""
        if key.kind is None or key.kind in self._kinds:
            return key
        if not self.groups:
            self._kinds.clear()
        if len(self._kinds) >= MOST_KINDS:
            return replace(key, kind=None)
        self._kinds.add(key.kind)
        return key

    def _begin_of(self, job: Waits, now: float) -> float | None:
        """When it may begin. A retry is put off for a while, which must not become a day because the clock was set."""
        if job.begin_at is not None and job.tried:
            return min(job.begin_at, now + self._longest_pause)
        return job.begin_at

    def add_free(self, key: GroupKey, jobs: Free) -> None:
        """Add jobs, ascending, that may start and are not known yet."""
        key = self._known(key)
        self.groups.setdefault(key, Line()).extend(jobs.ids, jobs.since, jobs.lengths)
        self._key.update(dict.fromkeys(jobs.ids, key))

    def remove(self, job_id: int) -> None:
        self.remove_all([job_id])

    def remove_all(self, job_ids: Iterable[int]) -> None:
        """Take away many at once: each group is gone through once, not moved up for each."""
        gone: dict[GroupKey, list[int]] = {}
        for job_id in job_ids:
            self._timed.discard(job_id)
            self._blocked.pop(job_id, None)
            key = self._key.pop(job_id, None)
            if key is not None:
                gone.setdefault(key, []).append(job_id)
        for key, some in gone.items():
            line = self.groups[key]
            line.remove_all(sorted(some))
            if not line:
                del self.groups[key]

    def due(self, now: float) -> list[int]:
        """Ids whose begin time has come; the caller puts them again."""
        ids = []
        while self._begin and self._begin[0][0] <= now:
            _, job_id = heapq.heappop(self._begin)
            if self._blocked.get(job_id) is Reason.BEGIN_TIME:
                ids.append(job_id)
        return ids

    def clock_set(self) -> list[int]:
        """The wall clock was set: ids whose begin time is to be looked at anew. The caller puts all of them again."""
        self._begin.clear()
        return sorted(self._timed)

    def next_begin(self) -> float | None:
        """Seconds since the epoch when the next begin time comes, None when none is waited for."""
        while self._begin and self._blocked.get(self._begin[0][1]) is not Reason.BEGIN_TIME:
            heapq.heappop(self._begin)
        return self._begin[0][0] if self._begin else None

    def blocked(self, job_id: int) -> Reason | None:
        """What keeps the job from being looked at, None when the planner looks at it."""
        return self._blocked.get(job_id)

    def key(self, job_id: int) -> GroupKey | None:
        return self._key.get(job_id)

    def wants_gpus(self) -> bool:
        """Whether a job that may start asks for GPUs."""
        return any(key.request.gpus for key in self.groups)
