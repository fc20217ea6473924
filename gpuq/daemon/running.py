"""A running attempt as the daemon holds it in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from gpuq.launch.supervisors import Supervisor
from gpuq.model import Attempt, Claim, GpuReading, Job, State
from gpuq.policy.lifecycle import Step
from gpuq.policy.predict import Prediction, Predictions, kind_of
from gpuq.policy.reserve import Ongoing
from gpuq.units import format_size


@dataclass(slots=True)
class Running:
    """A running attempt in memory."""

    job: Job
    attempt: Attempt
    claims: tuple[Claim, ...]
    #: None before it is known, and once it has ended
    supervisor: Supervisor | None = None
    #: the supervisor's pid, by which processes are told to be the attempt's until it is settled
    shim: int | None = None
    #: the supervisor's pid and start time, as others may be told them
    identity: tuple[int, int] | None = None
    #: bytes in use now, by GPU, as of the last reading
    use: dict[str, int] = field(default_factory=dict)
    over_told: bool = False
    #: when what is left of it is killed, in seconds since the epoch, where it was asked to end since the daemon started
    ends_at: float | None = None
    #: GPUs of its own that broke while it ran, with what NVML said
    broken: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """What a planned start is about to become: the job before it and with it, and its next attempt."""

    before: Job
    started: Step
    attempt: Attempt


def ongoing(running: Running, predictions: Predictions, grace: float, priority: int, now: float) -> Ongoing:
    """The attempt as planning sees it. `grace` is in seconds, `priority` its own with its queue's."""
    job = running.job
    ran = 0.0
    if job.started_at is not None:
        ran = max(0.0, (job.suspended_at or now) - job.started_at - job.suspended_seconds)
    known = predictions.of(kind_of(job.name)) if job.name else None
    return Ongoing(
        job.id,
        job.request.cpus,
        job.request.ram,
        ends=_ends(running, known, ran, grace, now),
        likely=inf if known is None or job.state is State.SUSPENDED else now + known.likely_left(ran),
        gpus=len(job.gpus),
        queue=job.queue,
        array_id=job.array.array_id if job.array else None,
        preemptible=job.preemptible and job.ending is None,
        priority=priority,
        ran=ran,
        grace=grace,
    )


def _ends(running: Running, known: Prediction | None, ran: float, grace: float, now: float) -> float:
    """When it has ended at the latest: by what it was told, by its limit, or without one by the prediction."""
    job = running.job
    if job.ending is not None:
        return now + grace if running.ends_at is None else running.ends_at
    if job.state is State.SUSPENDED:
        return inf
    if job.time_limit is not None:
        return now + max(0.0, job.time_limit - ran) + grace
    return inf if known is None else now + known.left(ran)


def note_broken(running: Running, gpus: Mapping[str, GpuReading]) -> None:
    """Remember which of its GPUs broke. One that is well again with memory of the attempt's in use did not."""
    for claim in running.claims:
        gpu = gpus.get(claim.uuid)
        if gpu is not None and gpu.lost:
            running.broken.setdefault(claim.uuid, gpu.fault or "it is lost")
        elif gpu is not None and gpu.fault is None and running.use.get(claim.uuid):
            running.broken.pop(claim.uuid, None)


def over_text(running: Running, index: Callable[[str], int | None]) -> str:
    """`used 12GiB of the 10GiB it claimed on GPU 0`, for the worst of its GPUs."""
    worst = max(running.claims, key=lambda c: c.peak - (c.bytes or 0))
    place = index(worst.uuid)
    where = worst.uuid if place is None else f"GPU {place}"
    return f"used {format_size(worst.peak)} of the {format_size(worst.bytes or 0)} it claimed on {where}"
