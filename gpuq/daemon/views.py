"""The objects that clients see. Their fields are a promise (`gpuq.jobs/1` and so on): added to, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from math import modf
from typing import Any

import psutil

from gpuq.daemon.core import Core
from gpuq.daemon.evidence import broken_gpus
from gpuq.daemon.owners import owner_name
from gpuq.daemon.running import Running, over_text
from gpuq.events import Event, Kind
from gpuq.launch.environment import log_path
from gpuq.model import Attempt, Claim, Driver, Job
from gpuq.policy.ledger import GpuState
from gpuq.protocol import Selection

View = dict[str, Any]

#: Foreign processes of a GPU that `why` names, the largest.
MOST_STRANGERS = 5


def moment(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond, which is cut off from the microsecond that is nearest."""
    if seconds is None:
        return None
    part, whole = modf(seconds)
    micro = round(part * 1e6)
    if micro == 1_000_000:
        whole, micro = whole + 1, 0
    return f"{_second(whole)}.{micro // 1000:03d}Z"


@lru_cache(maxsize=1024)
def _second(seconds: float) -> str:
    """Of many jobs, and much of the time of a list of them otherwise."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def job_view(core: Core, job: Job) -> View:
    """A job as `gpuq.jobs/1` has it."""
    verdict = core.reason(job)
    running = core.running.get(job.id)
    over = running is not None and running.over_told
    ending_at, kill_at = ending_times(core, job)
    used = max(running.use.values(), default=None) if running is not None and running.use else None
    return {
        "id": job.id,
        "name": job.name,
        "state": str(job.state),
        "reason": str(verdict.reason) if verdict else None,
        "reason_text": verdict.text if verdict else None,
        "failure": str(job.failure) if job.failure else None,
        "note": job.note if running is None else _running_note(core, running),
        "exit_code": job.exit_code,
        "signal": job.signal,
        "owner": owner_name(job.owner),
        "uid": job.owner,
        "command": list(job.command),
        "cwd": job.cwd,
        "gpus": list(job.gpus),
        "gpu_indexes": [core.gpu_index(uuid) for uuid in job.gpus],
        "gpu_count": job.request.gpus,
        "gpu_count_most": job.request.gpus_at_most,
        "gpu_types": list(job.request.which.types),
        "gpu_min_memory_bytes": job.request.which.min_memory or None,
        "gpu_ids": list(job.request.which.only),
        "gpus_excluded": list(job.request.which.exclude),
        "spread": job.request.which.spread,
        "vram_bytes": job.request.vram,
        "used_vram_bytes": used,
        "peak_vram_bytes": job.peak_vram,
        "over_claim": over or _was_over(job),
        "cpus": job.request.cpus,
        "ram_bytes": job.request.ram or None,
        "peak_ram_bytes": job.peak_ram,
        "priority": job.priority,
        "queue": job.queue,
        "group": job.group,
        "stop_after": job.stop_after,
        "tags": list(job.tags),
        "after": [str(d) for d in job.after],
        "array": {"id": job.array.array_id, "index": job.array.index, "limit": job.array.limit or None}
        if job.array
        else None,
        "time_limit_seconds": job.time_limit,
        "grace_seconds": job.grace,
        "signal_before_limit": {"signal": job.early_signal.signal, "seconds": job.early_signal.before}
        if job.early_signal
        else None,
        "log_limit_bytes": job.log_limit,
        "retry": [str(rule) for rule in job.retry],
        "retries": sum(job.spent),
        "preemptible": job.preemptible,
        "begin_at": moment(job.begin_at),
        "attempt": job.attempt,
        "ending": str(job.ending) if job.ending else None,
        "ending_at": moment(ending_at),
        "kill_at": moment(kill_at),
        "submitted_at": moment(job.submitted_at),
        "started_at": moment(job.started_at),
        "ended_at": moment(job.ended_at),
        "suspended_at": moment(job.suspended_at),
        "suspended_seconds": job.suspended_seconds,
        "log_path": job.log_path,
        "output": log_path(job, "") if job.output is not None else None,
    }


def current_view(core: Core, job: Job) -> View:
    """The same; of one that runs, as memory has it."""
    running = core.running.get(job.id)
    return job_view(core, running.job if running is not None else job)


def ending_times(core: Core, job: Job) -> tuple[float | None, float | None]:
    """Since when a running attempt is being ended, and when what is left of it is killed; None for one that is not.

    Asked again, it gets no second grace period: the first event counts.
    """
    if job.ending is None:
        return None, None
    events = core.store.events(0, Selection(ranges=((job.id, job.id),)), None)
    asked_at = next((e.at for e in events if e.kind is Kind.ENDING and e.attempt == job.attempt), None)
    if asked_at is None:
        return None, None
    limit_at = _limit_at(job)
    begun_at = asked_at if limit_at is None else min(asked_at, limit_at)  # the limit may have come before
    return asked_at, begun_at + core.grace(job)


def _limit_at(job: Job) -> float | None:
    """When the time limit of a running attempt is reached; None where that cannot be said."""
    if job.time_limit is None or job.started_at is None or job.suspended_at is not None:
        return None
    return job.started_at + job.suspended_seconds + job.time_limit


def _running_note(core: Core, running: Running) -> str | None:
    """What its owner should know of a running attempt: a broken GPU, over-use, why it is being ended."""
    broken = broken_gpus(core, running)
    if broken is not None:
        return f"NVML says of {broken}"
    return over_text(running, core.gpu_index) if running.over_told else running.job.note


def _was_over(job: Job) -> bool:
    return job.request.vram is not None and (job.peak_vram or 0) > job.request.vram


def attempt_view(core: Core, attempt: Attempt, running: Running | None) -> View:
    live = running is not None and running.attempt.number == attempt.number
    claims = running.claims if live and running is not None else attempt.claims
    return {
        "attempt": attempt.number,
        "started_at": moment(attempt.started_at),
        "ended_at": moment(attempt.ended_at),
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "failure": str(attempt.failure) if attempt.failure else None,
        "note": attempt.note,
        "peak_ram_bytes": attempt.peak_ram,
        "user_seconds": attempt.user_seconds,
        "system_seconds": attempt.system_seconds,
        "log_path": attempt.log_path,
        "run_dir": attempt.run_dir,
        "claims": [_claim_view(core, claim, running if live else None) for claim in claims],
    }


def _claim_view(core: Core, claim: Claim, running: Running | None) -> View:
    return {
        "gpu": claim.uuid,
        "index": core.gpu_index(claim.uuid),
        "declared_bytes": claim.bytes,
        "peak_bytes": claim.peak or None,
        "used_bytes": running.use.get(claim.uuid) if running is not None else None,
        "over": claim.over,
    }


def event_view(event: Event) -> View:
    return {
        "id": event.id,
        "at": moment(event.at),
        "kind": str(event.kind),
        "job": event.job_id,
        "attempt": event.attempt,
        "data": dict(event.data),
    }


def gpu_view(gpu: GpuState) -> View:
    """A GPU as `gpuq.gpus/1` has it."""
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "total_bytes": gpu.total,
        "used_bytes": gpu.used,
        "foreign_bytes": gpu.foreign,
        "neighbours_bytes": gpu.promised,
        "claimed_bytes": gpu.claimed,
        "headroom_bytes": max(0, gpu.headroom) if gpu.fault is None else 0,
        "margin_bytes": gpu.margin,
        "jobs": [claim.job_id for claim in gpu.claims],
        "available": gpu.fault is None,
        "fault": gpu.fault,
        "per_process_told": gpu.told,
        "processes": [
            {"pid": p.pid, "used_bytes": p.used, "job": None, "graphics": p.graphics, **who(p.pid)}
            for p in gpu.strangers
        ],
        "neighbours": [
            {"owner": use.owner, "claimed_bytes": use.claimed, "used_bytes": use.used} for use in gpu.neighbours
        ],
        "near": dict(gpu.near),
    }


def who(pid: int) -> View:
    """Program and owner of a foreign process; None for one that is gone, or in another PID namespace."""
    try:
        process = psutil.Process(pid)
        return {"program": process.name(), "owner": process.username()}
    except psutil.Error:
        return {"program": None, "owner": None}


def gpus_view(core: Core) -> View:
    readings = core.readings
    return {
        "gpus": [gpu_view(gpu) for gpu in core.gpu_states()],
        "driver": str(readings.driver) if readings else None,
        "version": readings.version if readings else None,
        "fault": core.gpu_fault(),
        "note": gpus_note(core),
    }


def gpus_note(core: Core) -> str | None:
    """One line for people on what the GPUs of this host are, where it is not plain."""
    fault = core.gpu_fault()
    if fault is not None:
        none = core.readings is not None and core.readings.driver is Driver.NONE
        return f"{fault}: jobs run on its CPUs (--gpus 0 is the default)" if none else fault
    if not core.gpu_states():
        return "the driver lists no GPU: jobs run on CPUs (--gpus 0 is the default)"
    if any(not gpu.told and gpu.fault is None for gpu in core.gpu_states()):
        return "use per process is not told: claims stand in for it"
    if core.sharing_fault is not None:
        return f"other daemons of this host are not heard, or do not hear us: {core.sharing_fault}"
    return None


def frame(core: Core, waiting: Sequence[Job], waiting_total: int) -> View:
    """One picture of everything, for `top`."""
    return {
        **gpus_view(core),
        "running": [job_view(core, running.job) for running in core.running.values()],
        "waiting": [job_view(core, job) for job in waiting],
        "waiting_total": waiting_total,
        "counts": core.store.counts(),
    }
