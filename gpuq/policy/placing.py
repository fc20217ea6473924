"""Which GPUs a job may have, which have room for it now, and which of those it gets. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gpuq.model import ANY_GPU, Host, MiB, Queue, Request, Wishes
from gpuq.policy.closeness import closest
from gpuq.policy.ledger import GpuState
from gpuq.units import format_size


class Card(Protocol):
    """What conditions look at: a GPU with its product name and the bytes that it has in all."""

    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def total(self) -> int: ...


C = TypeVar("C", bound=Card)


@dataclass(frozen=True, slots=True)
class Seen:
    """A GPU as it was when it was last in order: without a name, and with a total of 0, if it has never been so."""

    uuid: str
    name: str
    total: int


def seen(host: Host) -> list[Seen]:
    """Every GPU of the host, lost ones included."""
    return [Seen(uuid, host.names.get(uuid, ""), total) for uuid, total in host.capacities.items()]


@dataclass(frozen=True, slots=True)
class Wish:
    """One condition, in words after a count of GPUs: `1 is of type A100`, `2 are of type A100`."""

    singular: str
    plural: str
    what: str
    passes: Callable[[Card], bool]
    #: what there is instead on these GPUs, for one who asked for too much
    instead: Callable[[Sequence[Card]], Sequence[str]] = lambda _: ()
    #: what is said of a GPU that does not pass; otherwise `not`, and what it is not
    otherwise: str = ""

    @property
    def counted(self) -> str:
        """After a count: `2 of type A100`, `2 with at least 60GiB`."""
        return f"with {self.what}" if self.singular == "has" else self.what

    @property
    def failed(self) -> str:
        return self.otherwise or f"not {self.what}"


def wishes(which: Wishes) -> Iterator[Wish]:
    """The conditions, in the order in which they are applied and told of.

    A GPU that has never been in order may turn out to be of any type and size; until then it has room for nothing.
    """
    if which.types:
        yield Wish(
            "is",
            "are",
            f"of type {' or '.join(which.types)}",
            lambda card: not card.total or is_of_type(card.name, which.types),
            _names,
        )
    if which.min_memory:
        yield Wish(
            "has",
            "have",
            f"at least {format_size(which.min_memory)}",
            lambda card: not card.total or card.total >= which.min_memory,
            lambda cards: [f"the largest has {_size_beside(largest(cards), which.min_memory)}"],
            f"has less than {format_size(which.min_memory)}",
        )
    if which.only:
        yield Wish("is", "are", "named by --gpu-id", lambda card: card.uuid in which.only)
    if which.exclude:
        yield Wish("is", "are", "not excluded", lambda card: card.uuid not in which.exclude, otherwise="excluded")


def of_queue(queue: Queue | None) -> Iterator[Wish]:
    """The condition that a queue adds for its jobs."""
    if queue is not None and (subset := queue.gpus) is not None:
        yield Wish("is", "are", f"for queue {queue.name}", lambda card: card.uuid in subset)


def _names(cards: Sequence[Card]) -> list[str]:
    found = Counter(card.name for card in cards if card.total)
    return [f"there are {', '.join(f'{count} {name}' for name, count in sorted(found.items()))}"] if found else []


def _size_beside(size: int, other: int) -> str:
    """In MiB where the two would look alike: cards have a little less than what they are sold with."""
    text = format_size(size)
    return text if text != format_size(other) else f"{size / MiB:.0f}MiB"


def largest(cards: Iterable[Card]) -> int:
    """Bytes."""
    return max((card.total for card in cards), default=0)


def permitted(request: Request, gpus: Sequence[C], subset: Collection[str] | None = None) -> Sequence[C]:
    """The GPUs that the request's own conditions, and its queue's (`subset`), leave."""
    if subset is None and request.which is ANY_GPU:  # as of most jobs
        return gpus
    own = [wish.passes for wish in wishes(request.which)]
    return [gpu for gpu in gpus if (subset is None or gpu.uuid in subset) and all(passes(gpu) for passes in own)]


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

    One GPU: the first of `ranked`. Several: those that are closest to each other, and of equally close ones the first,
    unless the request has them spread. GPUs with a desktop are left to it where a whole-GPU job can do without them.
    """
    if len(fitting) < request.gpus:
        return None
    best = ranked(request, fitting)
    count = min(request.gpus_at_most, len(best))
    if request.vram is None:
        calm = [gpu for gpu in best if not gpu.draws]
        best = calm if len(calm) >= count else best
    chosen = best[:count] if request.which.spread else closest(best, count) or ()
    return tuple(gpu.uuid for gpu in sorted(chosen, key=lambda gpu: gpu.order))


def ranked(request: Request, gpus: Iterable[GpuState]) -> list[GpuState]:
    """The GPUs, which have room, the best first.

    Jobs that share a GPU take the one with the least headroom that is enough, so that big holes stay whole; whole-GPU
    jobs one without a desktop, and of these the smallest. With `spread` it is the one with the most instead.
    """
    return sorted(gpus, key=lambda gpu: _preference(request, gpu))


def _preference(request: Request, gpu: GpuState) -> tuple[bool, int, tuple[float, str]]:
    size = gpu.total if request.vram is None else gpu.headroom
    return (request.vram is None and gpu.draws, -size if request.which.spread else size, gpu.order)


def place(request: Request, gpus: Sequence[GpuState], subset: Collection[str] | None = None) -> tuple[str, ...] | None:
    """GPUs for a request, None when it does not fit now."""
    if request.gpus == 0:
        return ()
    return choose(request, [gpu for gpu in permitted(request, gpus, subset) if fits(request, gpu)])
