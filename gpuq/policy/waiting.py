"""The waiting jobs in memory: who may start, grouped so that planning looks at heads only.

A job that may start is an id in a sorted list of its group; what keeps another from starting (its owner, a
dependency, its begin time) is kept beside it. The job itself stays in the store: a hundred thousand ids are small.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpuq.model import Job, Reason, Request, State


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Jobs that are alike to the planner."""

    priority: int
    owner: int
    request: Request
    #: (array id, most members at a time), where the array has such a limit
    array: tuple[int, int] | None = None
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # a plan looks each key up several times, and the hash of nested records is made anew each time
        object.__setattr__(self, "_hash", hash((self.priority, self.owner, self.request, self.array)))

    def __hash__(self) -> int:
        return self._hash


def key_of(job: Job) -> GroupKey:
    array = (job.array.array_id, job.array.limit) if job.array and job.array.limit else None
    return GroupKey(job.priority, job.owner, job.request, array)


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


def _waits(job: Job, unmet: int) -> Waits:
    return Waits(job.id, job.state, key_of(job), job.begin_at, job.attempt > 0, unmet)


class Waiting:
    """All jobs in `held` and `queued`."""

    def __init__(self, longest_pause: float = float("inf")) -> None:
        """`longest_pause` is the longest that a retry may be put off, in seconds."""
        #: ids that may start, oldest first
        self.groups: dict[GroupKey, list[int]] = {}
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
        self.add(_waits(job, unmet), now)

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
        begin = self._begin_of(_waits(alike, 0), now)
        if begin is not None:
            self._timed.update(ids)
        if begin is not None and begin > now:
            self._blocked.update(dict.fromkeys(ids, Reason.BEGIN_TIME))
            self._begin += [(begin, job_id) for job_id in ids]
            heapq.heapify(self._begin)
        else:
            key = key_of(alike)
            self._key.update(dict.fromkeys(ids, key))
            there = self.groups.setdefault(key, [])
            at = bisect_left(there, ids.start)  # larger ids may have been seen first
            there[at:at] = ids

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
            self._key[job.job_id] = job.key
            insort(self.groups.setdefault(job.key, []), job.job_id)

    def _begin_of(self, job: Waits, now: float) -> float | None:
        """When it may begin. A retry is put off for a while, which must not become a day because the clock was set."""
        if job.begin_at is not None and job.tried:
            return min(job.begin_at, now + self._longest_pause)
        return job.begin_at

    def add_free(self, key: GroupKey, job_ids: list[int]) -> None:
        """Add jobs, ascending, that may start and are not known yet."""
        ids = self.groups.setdefault(key, [])
        after = bool(ids) and ids[-1] > job_ids[0]
        ids += job_ids
        if after:
            ids.sort()
        self._key.update(dict.fromkeys(job_ids, key))

    def remove(self, job_id: int) -> None:
        self._timed.discard(job_id)
        self._blocked.pop(job_id, None)
        key = self._key.pop(job_id, None)
        if key is not None:
            ids = self.groups[key]
            del ids[bisect_left(ids, job_id)]
            if not ids:
                del self.groups[key]

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
            ids, members = self.groups[key], set(some)
            start, end = bisect_left(ids, min(some)), bisect_right(ids, max(some))
            ids[start:end] = [job_id for job_id in ids[start:end] if job_id not in members]
            if not ids:
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

    def position(self, job_id: int) -> int | None:
        """1 for the job that is looked at first, None for one that may not start."""
        own = self._key.get(job_id)
        if own is None:
            return None
        ahead = 0
        for key, ids in self.groups.items():
            if key.priority > own.priority:
                ahead += len(ids)
            elif key.priority == own.priority:
                ahead += bisect_left(ids, job_id)
        return ahead + 1

    def wants_gpus(self) -> bool:
        """Whether a job that may start asks for GPUs."""
        return any(key.request.gpus for key in self.groups)
