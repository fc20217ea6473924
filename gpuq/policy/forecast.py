"""When a waiting job will start: the planner itself, run ahead from end to end. Pure.

Nobody knows what will be submitted, so that a forecast is of the queue as it is. Once jobs are taken to run for as long
as they may, and once for as long as those of their kind did: the two times are the range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from gpuq.model import Claim
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.scheduler import Snapshot, begun, plan
from gpuq.policy.waiting import GroupKey


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known of one moment to come."""

    #: seconds since the epoch
    at: float
    #: jobs that start then
    started: frozenset[int]
    #: whether nothing more can be known: no job runs of which it is known that it ends
    last: bool


def forecast(snapshot: Snapshot, gpus: Sequence[GpuState], *, likely: bool) -> Iterator[Moment]:
    """Who starts when, if all jobs take what is `likely`, or else as long as they may: a plan for each moment.

    Who has heard enough, or has no more time, stops.
    """
    future = _Future(snapshot, gpus, likely=likely)
    more = True
    while more:
        at, started = future.now, future.step()
        more = future.advance()
        yield Moment(at, frozenset(started), not more)


class _Future:
    """The queue and the host at a moment that is yet to come."""

    def __init__(self, snapshot: Snapshot, gpus: Sequence[GpuState], *, likely: bool) -> None:
        self._likely = likely
        self._groups = dict(snapshot.groups)
        #: lines that are copies already, which may be changed
        self._own: set[GroupKey] = set()
        self._gpus = list(gpus)
        self._snapshot = snapshot
        self._ongoing = {
            one.job_id: replace(one, ends=min(one.ends, one.likely) if likely else one.ends) for one in snapshot.ongoing
        }
        self.now = snapshot.now

    def step(self) -> set[int]:
        """Plan, and start what is planned; which jobs that is."""
        now = replace(self._snapshot, now=self.now, groups=self._groups, ongoing=list(self._ongoing.values()))
        planned = plan(now, self._gpus)
        for one in planned.preemptions:
            victim = self._ongoing[one.job_id]
            self._ongoing[one.job_id] = replace(
                victim, preemptible=False, ends=min(victim.ends, self.now + victim.grace)
            )
        for start in planned.starts:
            job = begun(now, start.key, start.job_id, len(start.gpus))
            self._ongoing[start.job_id] = replace(job, ends=job.likely) if self._likely else job
            self._take(start.key, start.job_id)
            claim = Claim(start.job_id, 0, "", start.request.vram)
            self._gpus = [
                gpu.with_claim(replace(claim, uuid=gpu.uuid)) if gpu.uuid in start.gpus else gpu for gpu in self._gpus
            ]
        self._snapshot = replace(self._snapshot, reserved=planned.reservations)
        return {start.job_id for start in planned.starts}

    def advance(self) -> bool:
        """Go on to the next end; whether there is one."""
        soonest = min((one.ends for one in self._ongoing.values()), default=inf)
        if soonest == inf:
            return False
        self.now = max(self.now, soonest)
        gone = {one.job_id for one in self._ongoing.values() if one.ends <= self.now}
        for job_id in gone:
            del self._ongoing[job_id]
        self._gpus = [
            replace(gpu, claims=tuple(claim for claim in gpu.claims if claim.job_id not in gone))
            if any(claim.job_id in gone for claim in gpu.claims)
            else gpu
            for gpu in self._gpus
        ]
        return True

    def _take(self, key: GroupKey, job_id: int) -> None:
        if key not in self._own:
            self._own.add(key)
            self._groups[key] = self._groups[key].copy()
        line: Line = self._groups[key]
        line.remove(job_id)
        if not line:
            del self._groups[key]
