"""Which GPUs a job may have, which have room for it now, and which of those it gets. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gpuq.model import ANY_GPU, Request, Wishes
from gpuq.policy.ledger import GpuState


def permitted(request: Request, gpus: Sequence[GpuState], subset: Collection[str] | None = None) -> Sequence[GpuState]:
    """The GPUs that the request's own conditions, and its queue's (`subset`), leave."""
    if subset is None and request.which is ANY_GPU:  # as of most jobs
        return gpus
    return [gpu for gpu in gpus if (subset is None or gpu.uuid in subset) and _suits(request.which, gpu)]


def _suits(which: Wishes, gpu: GpuState) -> bool:
    if which.only and gpu.uuid not in which.only:
        return False
    if gpu.uuid in which.exclude or gpu.total < which.min_memory:
        return False
    return not which.types or is_of_type(gpu.name, which.types)


def is_of_type(name: str, types: Sequence[str]) -> bool:
    """Whether one of these parts of names is in the product's name, however it is written."""
    plain = name.casefold()
    return any(part.casefold() in plain for part in types)


def fits(request: Request, gpu: GpuState) -> bool:
    """Whether this GPU could take its share of the request now."""
    if gpu.fault is not None:
        return False
    return gpu.whole_free if request.vram is None else gpu.headroom >= request.vram


def choose(request: Request, fitting: Sequence[GpuState]) -> tuple[str, ...] | None:
    """Of GPUs with room, those that the request gets, by index; None where they are too few.

    Jobs that share a GPU take the one with the least headroom that is enough, so that big holes stay whole, or with
    `spread` the one with the most; whole-GPU jobs prefer GPUs without a desktop.
    """
    if len(fitting) < request.gpus:
        return None
    chosen = sorted(ranked(request, fitting)[: request.gpus_at_most], key=lambda gpu: gpu.order)
    return tuple(gpu.uuid for gpu in chosen)


def ranked(request: Request, gpus: Iterable[GpuState]) -> list[GpuState]:
    """The GPUs, which have room, the best first."""
    return sorted(gpus, key=lambda gpu: _preference(request, gpu))


def _preference(request: Request, gpu: GpuState) -> tuple[float, tuple[float, str]]:
    if request.vram is None:
        return (gpu.draws, gpu.order)
    return (-gpu.headroom if request.which.spread else gpu.headroom, gpu.order)


def place(request: Request, gpus: Sequence[GpuState], subset: Collection[str] | None = None) -> tuple[str, ...] | None:
    """GPUs for a request, None when it does not fit now."""
    if request.gpus == 0:
        return ()
    return choose(request, [gpu for gpu in permitted(request, gpus, subset) if fits(request, gpu)])
