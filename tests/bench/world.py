"""What the sections share: how much to do, daemons in folders of their own, and the peers."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bed import Bed
from tests.bench.peers.base import Peer
from tests.bench.stamps import Stamps, compiled
from tests.fakenvml import FakeNvml, GiB, fake_gpus

CPUS = len(os.sched_getaffinity(0))
#: What each of two jobs needs that run at a time; on three CPUs there are three.
HALF = max(1, CPUS // 2)

#: Fake GPUs of the daemon that has some.
GPUS = 2


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done."""

    #: of what takes milliseconds, those before that do not count, and of batches
    rounds: int
    warm_up: int
    batches: int
    #: jobs of a batch, lines of a large file
    count: int
    lines: int
    #: jobs that wait where a long queue is looked at
    waiting: int
    #: jobs that wait, and that have ended, where the queue is full
    crowd: int
    ended: int
    #: jobs whose GPUs are watched
    watched: int
    #: for which what rests is left alone first, and then watched
    settle: float
    seconds: float


class World:
    def __init__(self, stack: ExitStack, folder: Path, scale: Scale, peers: list[Peer]) -> None:
        self._stack = stack
        self.folder = folder
        self.scale = scale
        self.peers = peers
        self._beds: dict[str, Bed] = {}
        self._program: Path | None = None

    def bed(self, name: str, nvml: FakeNvml | None = None) -> Bed:
        """The daemon of this name, on that driver; started at the first call, and then the same."""
        if name not in self._beds:
            env = {"GPUQ_GPUS": "none"} if nvml is None else nvml.env
            self._beds[name] = self._stack.enter_context(Bed(self.folder / name, **env))
        return self._beds[name]

    def gpus(self) -> Bed:
        """A daemon with two fake GPUs."""
        if "gpus" not in self._beds:
            self.bed("gpus", self.nvml("gpus", GPUS))
        return self._beds["gpus"]

    def nvml(self, name: str, gpus: int) -> FakeNvml:
        return FakeNvml(self.folder / f"{name}-nvml", fake_gpus(*[24 * GiB] * gpus))

    def full(self) -> Bed:
        """A daemon with a job that takes all CPUs, and jobs that wait for it."""
        bed = self.bed("full")
        if bed.runs is None:
            bed.fill(self.scale.waiting)
        return bed

    def stamps(self, name: str) -> Stamps:
        if self._program is None:
            self._program = compiled(self.folder)
        return Stamps(self._program, self.folder / f"{name}-stamps")
