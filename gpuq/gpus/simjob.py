"""What `gpuq sim-job` does: hold memory of simulated GPUs as a training run does, late, and die as CUDA does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from gpuq import config
from gpuq.errors import UsageError
from gpuq.gpus.simulated import Cards, OutOfMemory
from gpuq.launch.identity import identity_of
from gpuq.model import GiB

#: Seconds between two allocations while memory grows.
STEP = 0.1


def run(vram: int, ramp: float, duration: float, environ: Mapping[str, str] = os.environ) -> int:
    """Hold `vram` bytes of each visible GPU: growing over `ramp` seconds, until `duration` seconds from now.

    Returns the exit code: 0, or 1 when a GPU is full or none is visible, with the reason on stderr. Which GPUs are
    visible is said by CUDA_VISIBLE_DEVICES (UUIDs or indexes); without it, the first one is used, as frameworks do.
    Raises UsageError where no GPUs are simulated, or a visible one is not among them.
    """
    cards = Cards.load(config.state_dir(environ) / "sim")
    visible = _visible(environ.get("CUDA_VISIBLE_DEVICES"), tuple(cards.totals))
    if not visible:
        print("gpuq sim-job: no GPU is visible: CUDA_VISIBLE_DEVICES is empty", file=sys.stderr)
        return 1
    try:
        return _hold(cards, visible, vram, ramp, duration)
    finally:
        for uuid in visible:
            cards.release(uuid, os.getpid())


def _visible(value: str | None, uuids: tuple[str, ...]) -> tuple[str, ...]:
    if value is None:
        return uuids[:1]
    chosen: list[str] = []
    for word in filter(None, (word.strip() for word in value.split(","))):
        if word in uuids:
            chosen.append(word)
        elif word.isascii() and word.isdigit() and int(word) < len(uuids):
            chosen.append(uuids[int(word)])
        else:
            raise UsageError(
                f"CUDA_VISIBLE_DEVICES names {word!r}, which is no simulated GPU here ({', '.join(uuids)}): "
                "sim-job needs a daemon that runs with GPUQ_GPUS=sim:2x24GiB"
            )
    return tuple(chosen)


def _hold(cards: Cards, visible: tuple[str, ...], vram: int, ramp: float, duration: float) -> int:
    me = identity_of(os.getpid())
    assert me is not None  # we are here
    start = time.monotonic()
    steps = max(1, round(ramp / STEP))
    held = 0
    for step in range(1, steps + 1):
        due = ramp * step / steps
        _sleep_until(start + min(due, duration))
        if due > duration:
            break
        size = vram * step // steps
        for place, uuid in enumerate(visible):
            try:
                cards.allocate(uuid, me, size)
            except OutOfMemory as full:
                print(_cuda_says(size - held, place, full), file=sys.stderr)
                return 1
        held = size
    _sleep_until(start + duration)
    return 0


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _cuda_says(asked: int, place: int, full: OutOfMemory) -> str:
    """The message of PyTorch's torch.OutOfMemoryError, which is what gpuq's and other tools look for."""
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {asked / GiB:.2f} GiB. "
        f"GPU {place} has a total capacity of {full.total / GiB:.2f} GiB "
        f"of which {full.free / GiB:.2f} GiB is free. (simulated by gpuq sim-job)"
    )
