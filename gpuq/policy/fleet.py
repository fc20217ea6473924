"""GPUs against which many requests are held while nothing changes: how many have room, by bisection. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from gpuq.model import Request
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import fits


class Fleet:
    def __init__(self, gpus: Sequence[GpuState]) -> None:
        self.gpus = gpus

    @cached_property
    def healthy(self) -> list[GpuState]:
        return [gpu for gpu in self.gpus if gpu.fault is None]

    @cached_property
    def _headrooms(self) -> list[int]:
        return sorted(gpu.headroom for gpu in self.healthy)

    @cached_property
    def _capacities(self) -> list[int]:
        return sorted(gpu.capacity for gpu in self.healthy)

    @cached_property
    def _whole(self) -> int:
        return sum(gpu.whole_free for gpu in self.healthy)

    @cached_property
    def _without_foreign(self) -> Fleet:
        """These GPUs if nobody but us used them."""
        calm = all(gpu.without_foreign is gpu for gpu in self.healthy)
        return self if calm else Fleet([gpu.without_foreign for gpu in self.healthy])

    def room(self, request: Request) -> int:
        """How many GPUs could take their share of the request now."""
        if request.vram is None:
            return self._whole
        return len(self._headrooms) - bisect_left(self._headrooms, request.vram)

    def fitting(self, request: Request) -> list[GpuState]:
        """Those GPUs."""
        return [gpu for gpu in self.gpus if fits(request, gpu)]

    def able(self, request: Request) -> int:
        """How many are large enough, whatever is on them."""
        if request.vram is None:
            return len(self.healthy)
        return len(self._capacities) - bisect_left(self._capacities, request.vram)

    def room_alone(self, request: Request) -> int:
        """How many could take their share if nobody but us used them."""
        return self._without_foreign.room(request)

    def most_headroom(self, request: Request) -> int:
        """Bytes that may still be claimed on one of those that are large enough."""
        if self.able(request) == len(self.healthy):
            return self._headrooms[-1]
        return max(gpu.headroom for gpu in self.large(request))

    def large(self, request: Request) -> list[GpuState]:
        """Those that are large enough."""
        return [gpu for gpu in self.healthy if request.vram is None or gpu.capacity >= request.vram]
