"""How soon a job runs: after its submission on an idle queue, and after the end of the one that it waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.bench.bed import Bed
from tests.bench.measure import Measure
from tests.bench.peers.base import Peer
from tests.bench.report import Goal
from tests.bench.stamps import Stamps
from tests.bench.world import CPUS, GPUS, World
from tests.fakenvml import GiB


def first(world: World) -> list[Measure]:
    idle, gpus = world.bed("idle"), world.gpus()
    stamps, on_gpus = world.stamps("idle"), world.stamps("gpus")
    sharing: dict[str, Any] = {"gpus": 1, "vram": GiB}
    found = [
        Measure("first", "gpuq, accepted", _accepted(idle, stamps), Goal(0.006, p95=0.015)),
        Measure("first", "gpuq, accepted, for a GPU (fake NVML)", _accepted(gpus, on_gpus, **sharing)),
        Measure("first", "gpuq, typed", _typed(idle, stamps)),
    ]
    for peer in world.peers:
        own = world.stamps(f"{peer.name}-first")
        submit = peer.submit(own.job)
        if submit is not None:
            found.append(Measure("first", f"{peer.name}, typed", _typed_peer(peer, own, submit), peer=peer.name))
    return found


def _accepted(bed: Bed, stamps: Stamps, **template: Any) -> Callable[[], float]:
    """From when the submission's answer has arrived."""

    def take() -> float:
        job, at = bed.submit([stamps.job], **template)
        began = stamps.next()
        bed.wait(job)
        return began - at

    return take


def _typed(bed: Bed, stamps: Stamps) -> Callable[[], float]:
    def take() -> float:
        began = time.monotonic()
        bed.call("submit", "--gpus", "0", "--", *stamps.job)
        ran = stamps.next()
        bed.wait(bed.last())
        return ran - began

    return take


def _typed_peer(peer: Peer, stamps: Stamps, submit: list[str]) -> Callable[[], float]:
    def take() -> float:
        began = time.monotonic()
        peer.execute(submit)
        return stamps.next() - began

    return take


def following(world: World) -> list[Measure]:
    idle, gpus = world.bed("idle"), world.gpus()
    goal = Goal(0.008)
    found = [
        Measure("next", "gpuq", _after(idle, world.stamps("idle-next"), cpus=CPUS), goal),
        Measure("next", "gpuq, for a GPU (fake NVML)", _after(gpus, world.stamps("gpus-next"), gpus=GPUS), goal),
    ]
    for peer in world.peers:
        stamps = world.stamps(f"{peer.name}-next")
        gated, job = peer.submit_whole(stamps.gated), peer.submit_whole(stamps.job)
        if gated is not None and job is not None:
            found.append(Measure("next", peer.name, _after_peer(peer, stamps, gated, job), peer=peer.name))
    return found


def _after(bed: Bed, stamps: Stamps, **template: Any) -> Callable[[], float]:
    """Two jobs that need everything: the second waits until the first, which waits for us, has ended."""

    def take() -> float:
        bed.submit([stamps.gated], **template)
        job, _ = bed.submit([stamps.job], **template)
        stamps.open_gate()
        ended, began = stamps.next(), stamps.next()
        bed.wait(job)
        return began - ended

    return take


def _after_peer(peer: Peer, stamps: Stamps, gated: list[str], job: list[str]) -> Callable[[], float]:
    def take() -> float:
        peer.execute(gated)
        peer.execute(job)
        stamps.open_gate()
        ended = stamps.next()
        return stamps.next() - ended

    return take
