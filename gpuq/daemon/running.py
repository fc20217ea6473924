"""A running attempt as the daemon holds it in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gpuq.launch.supervisors import Supervisor
from gpuq.model import Attempt, Claim, GpuReading, Job
from gpuq.policy.lifecycle import Step
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
