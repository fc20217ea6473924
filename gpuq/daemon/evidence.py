"""How an attempt ended: what its result and log say, and what GPUs do: which broke, who may have filled them."""

from __future__ import annotations

from dataclasses import replace

from gpuq.daemon.core import Core
from gpuq.daemon.running import Running, over_text
from gpuq.launch import outcome
from gpuq.model import Attempt, Driver, Failure
from gpuq.policy.lifecycle import Ended
from gpuq.units import format_size

#: Failures that a broken GPU may be behind. One that ran into its time limit keeps that as its failure, because that
#: is what ended it, and is told of the GPU.
_ASK = frozenset({Failure.EXIT, Failure.SIGNAL, Failure.VRAM_OOM, Failure.GPU_LOST, Failure.TIMEOUT})


def wants_a_look(running: Running, fact: Ended) -> bool:
    """Whether a reading of the GPUs taken after this end may tell more about it."""
    return bool(running.claims) and not fact.asked and fact.failure in _ASK


def examined(core: Core, running: Running, fact: Ended) -> Ended:
    """The end of an attempt with what the newest reading says of it. `fact` is one that wants a look."""
    broken = broken_gpus(core, running)
    if broken is not None:
        proof = f"NVML says of {broken}"
        note = f"{fact.note}; {proof}" if fact.note else proof
        failure = fact.failure if fact.failure is Failure.TIMEOUT else Failure.GPU_LOST
        return replace(fact, failure=failure, note=note)
    if fact.failure is Failure.VRAM_OOM:
        why = blame(core, running)
        return replace(fact, note=f"{fact.note} ({why})") if why else fact
    if core.silent is not None and fact.failure in (Failure.EXIT, Failure.SIGNAL):
        silence = f"{core.gpu_fault()}: nobody knows whether its GPU broke"
        return replace(fact, note=f"{fact.note}; {silence}" if fact.note else silence)
    return fact


def broken_gpus(core: Core, running: Running) -> str | None:
    """`GPU 1: the GPU is lost`, for each GPU of the attempt that broke while it ran; None where none did."""
    found = dict(running.broken)
    readings = core.readings
    if readings is not None and readings.driver is Driver.OK:
        listed = {gpu.uuid for gpu in readings.gpus}
        for claim in running.claims:
            if claim.uuid not in listed:
                found.setdefault(claim.uuid, readings.fault or "not listed by the driver")
    return "; ".join(f"{core.gpu_place(uuid)}: {text}" for uuid, text in found.items()) or None


def blame(core: Core, running: Running) -> str | None:
    """Who else may have brought about that GPU memory ran out: neighbours over their claims, strangers, itself."""
    uuids = {claim.uuid for claim in running.claims}
    guilty = [
        f"job {other.job.id} {over_text(other, core.gpu_index)}"
        for other in core.running.values()
        if other is not running and any(c.over and c.uuid in uuids for c in other.claims)
    ]
    for gpu in core.gpu_states():
        if gpu.uuid in uuids and gpu.foreign and gpu.headroom < 0:
            guilty.append(f"foreign processes used {format_size(gpu.foreign)} on {gpu.place}")
    if running.over_told:
        guilty.append(f"it {over_text(running, core.gpu_index)}")
    return "; ".join(guilty) or None


def ended(result: outcome.Result, attempt: Attempt) -> Ended:
    """The fact that an attempt's result states."""
    failed = result.wait_status != 0 or result.start_failure is not None
    tail = outcome.log_tail(attempt.log_path, result.log_start) if failed else b""
    judged = outcome.judge(result, tail, gpus=bool(attempt.claims))
    return Ended(
        asked=result.ended,
        failure=judged.failure,
        exit_code=judged.exit_code,
        signal=judged.signal,
        note=judged.note,
        peak_ram=result.max_rss_bytes,
        user_seconds=result.user_seconds,
        system_seconds=result.system_seconds,
        ended_at=result.ended_at,
        warned=outcome.warning(result),
    )
