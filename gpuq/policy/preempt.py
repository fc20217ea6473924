"""Which running jobs give way to one of higher priority that cannot start otherwise. Pure.

Only jobs that were submitted as preemptible do, and have run for a while, so that nobody is sent away again and again.
Of all choices that make room the one counts that loses the fewest GPU-hours: what its jobs have done in this attempt.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from gpuq.model import Host, Request
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import fits
from gpuq.policy.reserve import Ongoing, enough

#: So many choices are looked at, the cheapest first. Where none of them makes room, one that need not be the cheapest
#: is put together job by job.
MOST_CHOICES = 500

#: GPU-seconds, CPU-seconds and jobs.
Cost = tuple[float, float, int]


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running job is to end for another one, and to go on later."""

    job_id: int
    for_job: int


def victims(
    request: Request, gpus: Sequence[GpuState], ongoing: Collection[Ongoing], host: Host, candidates: Sequence[Ongoing]
) -> tuple[Ongoing, ...] | None:
    """Of the candidates, whose end makes room for the request; None where that of all would not.

    `gpus` are those that it may have; what others on them have reserved is the caller's affair.
    """
    room = _Room(request, gpus, ongoing, host)
    if not room.after(candidates):
        return None
    for number, chosen in enumerate(_cheapest_first(candidates)):
        if room.after(chosen):
            return chosen
        if number >= MOST_CHOICES:
            break
    return _enough_of(candidates, room)


class _Room:
    """Whether a request has room once some jobs have ended."""

    def __init__(self, request: Request, gpus: Sequence[GpuState], ongoing: Collection[Ongoing], host: Host) -> None:
        self._request, self._gpus, self._host = request, gpus, host
        self._cpus_used = sum(one.cpus for one in ongoing)
        self._ram_used = sum(one.ram for one in ongoing)

    def after(self, ended: Sequence[Ongoing]) -> bool:
        cpus = self._cpus_used - sum(one.cpus for one in ended)
        ram = self._ram_used - sum(one.ram for one in ended)
        if not enough(self._request, self._host, cpus, ram):
            return False
        gone = {one.job_id for one in ended}
        fitting = 0
        for gpu in self._gpus:
            there = gone.intersection(claim.job_id for claim in gpu.claims)
            for job_id in there:
                gpu = gpu.without(job_id)
            fitting += fits(self._request, gpu)
        return fitting >= self._request.gpus


def _cost(chosen: Sequence[Ongoing]) -> Cost:
    return (sum(one.ran * one.gpus for one in chosen), sum(one.ran * one.cpus for one in chosen), len(chosen))


def _cheapest_first(candidates: Sequence[Ongoing]) -> Iterator[tuple[Ongoing, ...]]:
    """Every choice of at least one. A choice leads to two that cost no less: with the next one more, or in exchange for
    its last (Lawler, A procedure for computing the K best solutions, Management Science 18(7), 1972)."""
    each = sorted(candidates, key=lambda one: (_cost([one]), one.job_id))
    ahead: list[tuple[Cost, tuple[int, ...]]] = [(_cost(each[:1]), (0,))] if each else []
    while ahead:
        _, numbers = heapq.heappop(ahead)
        yield tuple(each[n] for n in numbers)
        following = numbers[-1] + 1
        if following < len(each):
            for more in ((*numbers, following), (*numbers[:-1], following)):
                heapq.heappush(ahead, (_cost([each[n] for n in more]), more))


def _enough_of(candidates: Sequence[Ongoing], room: _Room) -> tuple[Ongoing, ...]:
    """All, less those that are not needed, the dearest first."""
    chosen = sorted(candidates, key=lambda one: (_cost([one]), one.job_id), reverse=True)
    for one in list(chosen):
        rest = [other for other in chosen if other is not one]
        if room.after(rest):
            chosen = rest
    return tuple(chosen)
