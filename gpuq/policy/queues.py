"""What a queue allows its jobs: whether one may start now, and for how long it may run. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from gpuq.errors import UsageError
from gpuq.model import Queue, Reason, Request
from gpuq.policy.explain import Verdict, are_asked, more_than_queue_has
from gpuq.units import format_duration


def limits(queue: Queue) -> bool:
    """Whether it ever keeps a job from starting."""
    return queue.paused or any(limit is not None for limit in (queue.max_jobs, queue.max_gpus, queue.gpus))


def gate(queue: Queue, request: Request, jobs: int, gpus: int) -> Verdict | None:
    """What keeps jobs of the queue from starting whatever is free, while so many run, which have so many GPUs."""
    if queue.paused:
        return Verdict(Reason.QUEUE_PAUSED, f"queue {queue.name} is paused{because(queue)}")
    if (never := _never(queue, request)) is not None:
        return Verdict(Reason.LIMIT, never)
    if queue.max_jobs is not None and jobs >= queue.max_jobs:
        return Verdict(Reason.LIMIT, f"{jobs} of at most {queue.max_jobs} jobs of queue {queue.name} run")
    if queue.max_gpus is not None and request.gpus and gpus + request.gpus > queue.max_gpus:
        return Verdict(
            Reason.LIMIT,
            f"queue {queue.name} has {gpus} of at most {queue.max_gpus} GPUs, and {request.gpus} "
            f"{'is' if request.gpus == 1 else 'are'} asked for",
        )
    return None


@dataclass(slots=True)
class Turn:
    """The first job of a queue that its limit of GPUs keeps from starting: smaller ones do not pass it for ever.

    As with a reservation, one that has ended by the time at which the job can start passes, or one beside which it can.
    """

    job_id: int
    #: when the queue's running jobs leave it enough of the limit, in seconds since the epoch; infinity for nobody knows
    at: float
    #: GPUs of the limit that are left then beside it
    left: int

    def lets(self, gpus: int, ends: float) -> bool:
        return not gpus or ends <= self.at < inf or gpus <= self.left

    def book(self, gpus: int, ends: float) -> None:
        """A job of the queue has started on so many."""
        if not ends <= self.at < inf:
            self.left -= gpus

    @property
    def verdict(self) -> Verdict:
        return Verdict(Reason.LIMIT, f"its queue's GPUs are kept for job {self.job_id}, which is first and needs more")


def turn(queue: Queue, gpus: int, job_id: int, running: Collection[tuple[float, int]], now: float) -> Turn | None:
    """The turn of a job that asks for so many GPUs; `running` are ends and GPUs of the queue's running jobs.

    None where not the limit of GPUs keeps it, or it could never start.
    """
    if queue.max_gpus is None or not 0 < gpus <= queue.max_gpus:
        return None
    used = sum(count for _, count in running)
    if used + gpus <= queue.max_gpus:
        return None
    for ends, count in sorted(running):
        if ends == inf:
            break
        used -= count
        if used + gpus <= queue.max_gpus:
            still = sum(count for other, count in running if other > max(ends, now))
            return Turn(job_id, max(ends, now), queue.max_gpus - still - gpus)
    return Turn(job_id, inf, 0)


def _never(queue: Queue, request: Request) -> str | None:
    """Why no job of the queue that asks for so many GPUs ever starts, as far as their numbers tell."""
    if queue.max_gpus is not None and request.gpus > queue.max_gpus:
        return more_than_queue_has(queue, request)
    if queue.gpus is not None and request.gpus > len(queue.gpus):
        has = f"{len(queue.gpus)} GPU{'' if len(queue.gpus) == 1 else 's'}"
        return f"queue {queue.name} may have {has}, and {are_asked(request)}"
    return None


def because(queue: Queue) -> str:
    """The rest of a sentence that says that it is paused or draining."""
    return f": {queue.why}" if queue.why else ""


def time_limit(queue: Queue, given: float | None, default: float | None) -> float | None:
    """Seconds that a job of the queue may run: what was given, else the queue's default, else the submitter's own.

    Never more than the queue allows. Raises UsageError where more was given.
    """
    if given is not None:
        if queue.max_time is not None and given > queue.max_time:
            most = format_duration(queue.max_time)
            raise UsageError(f"--time {format_duration(given)} is more than queue {queue.name} allows: {most} at most")
        return given
    limit = default if queue.default_time is None else queue.default_time
    if queue.max_time is None:
        return limit
    return queue.max_time if limit is None else min(limit, queue.max_time)
