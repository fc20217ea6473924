"""Whose turn it is when the daemons of several users wait for the same GPUs. Pure.

Each daemon learns first of what its own jobs give back, and would start its next one before another daemon had looked.
So every daemon tells the most urgent request that it could not place, and since when it waits; the time counts anew
after each start of its own. What such a request could take now is left to it by those that wait for less long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuq.model import Request
from gpuq.policy.ledger import GpuState
from gpuq.policy.neighbours import NeighbourUse
from gpuq.policy.placing import place

#: Seconds for which memory is left to another daemon that could take it: several of its readings.
PATIENCE = 3.0
#: Seconds for which a user who did not take it is not waited for again.
OFFENCE = 30.0


@dataclass(frozen=True, slots=True)
class NeighbourWait:
    """What another daemon waits for."""

    uid: int
    owner: str
    #: monotonic milliseconds, which all processes of a host share (clock_gettime(2))
    since: int
    gpus: int
    #: bytes on each; None for whole GPUs
    bytes: int | None
    #: UUIDs of the GPUs that will do, None for all
    only: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Courtesy:
    """Whom we have left something, and who did not take it: monotonic seconds by uid."""

    given: Mapping[int, float]
    vain: Mapping[int, float]


NONE = Courtesy({}, {})


def give_way(
    gpus: Sequence[GpuState], waits: Iterable[NeighbourWait], ours: float, past: Courtesy, now: float
) -> tuple[tuple[GpuState, ...], Courtesy]:
    """The GPUs as they are for us, who wait since `ours`, and whom we gave way; times in monotonic seconds.

    A daemon that is given way and starts nothing is not waited for any longer: no file can keep our jobs from GPUs.
    """
    states = {gpu.uuid: gpu for gpu in gpus}
    given: dict[int, float] = {}
    vain = {uid: until for uid, until in past.vain.items() if until > now}
    for wait in sorted(waits, key=lambda w: (w.since, w.uid)):
        if wait.since >= ours * 1000 or wait.uid in vain:
            continue
        chosen = place(Request(wait.gpus, wait.bytes, 0, 0), list(states.values()), wait.only)
        if not chosen:
            continue
        given[wait.uid] = past.given.get(wait.uid, now)
        if now - given[wait.uid] > PATIENCE:
            vain[wait.uid] = now + OFFENCE
            continue
        for uuid in chosen:
            states[uuid] = _left(states[uuid], wait)
    return tuple(states.values()), Courtesy({uid: at for uid, at in given.items() if uid not in vain}, vain)


def _left(gpu: GpuState, wait: NeighbourWait) -> GpuState:
    """The GPU with the request on it."""
    use = NeighbourUse(wait.owner, wait.bytes, 0, waits=True)
    promised = gpu.total if wait.bytes is None else gpu.promised + wait.bytes
    return replace(gpu, neighbours=(*gpu.neighbours, use), promised=promised)
