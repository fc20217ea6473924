"""The waiting jobs in memory: who may start, grouped so that planning looks at heads only.

A job that may start is an id in a sorted list of its group; what keeps another from starting (its owner, a
dependency, its begin time) is kept beside it. The job itself stays in the store: a hundred thousand ids are small.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass

from gpuq.model import Job, Reason, Request, State


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Jobs that are alike to the planner."""

    priority: int
    owner: int
    request: Request
    #: (array id, most members at a time), where the array has such a limit
    array: tuple[int, int] | None = None


def key_of(job: Job) -> GroupKey:
    array = (job.array.array_id, job.array.limit) if job.array and job.array.limit else None
    return GroupKey(job.priority, job.owner, job.request, array)


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

    def put(self, job: Job, unmet: int, now: float) -> None:
        """Add a job, or move it to where it belongs now. `unmet` counts its open dependencies."""
        self.remove(job.id)
        if job.state is State.HELD:
            self._blocked[job.id] = Reason.HELD
        elif job.state is State.QUEUED and unmet:
            self._blocked[job.id] = Reason.DEPENDENCY
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
        begin = self._begin_of(alike, now)
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

    def _put_free(self, job: Job, now: float) -> None:
        """One that only its begin time may keep from starting."""
        begin = self._begin_of(job, now)
        if begin is not None:
            self._timed.add(job.id)
        if begin is not None and begin > now:
            self._blocked[job.id] = Reason.BEGIN_TIME
            heapq.heappush(self._begin, (begin, job.id))
        else:
            key = key_of(job)
            self._key[job.id] = key
            insort(self.groups.setdefault(key, []), job.id)

    def _begin_of(self, job: Job, now: float) -> float | None:
        """When it may begin. A retry is put off for a while, which must not become a day because the clock was set."""
        if job.begin_at is not None and job.attempt:
            return min(job.begin_at, now + self._longest_pause)
        return job.begin_at

    def remove(self, job_id: int) -> None:
        self._timed.discard(job_id)
        self._blocked.pop(job_id, None)
        key = self._key.pop(job_id, None)
        if key is not None:
            ids = self.groups[key]
            del ids[bisect_left(ids, job_id)]
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
