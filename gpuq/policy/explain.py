"""Why a job waits, with the numbers behind it, and what this host can never do. Data; the command line renders it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpuq.model import ANY_GPU, Host, Queue, Reason, Request, Settings, Wishes
from gpuq.policy.fleet import Fleet
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import Seen, Wish, fits, largest, of_queue, seen, wishes
from gpuq.units import format_size

#: Neighbours that a reason names.
MOST_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """The typed reason, and one line that says it with its numbers."""

    reason: Reason
    text: str


def asked(request: Request) -> str:
    """The request in words: `2 GPUs of type A100 with 10GiB each`."""
    if request.gpus == 0:
        return f"{request.cpus} CPU{'s' if request.cpus != 1 else ''}"
    count = str(request.gpus) if request.gpus_at_most == request.gpus else f"{request.gpus} to {request.gpus_at_most}"
    several = request.gpus_at_most > 1
    words = [count, *(["whole"] if request.vram is None else []), "GPUs" if several else "GPU", *_which(request.which)]
    if request.vram is not None:
        words.append(f"with {format_size(request.vram)}{' each' if several else ''}")
    return " ".join(words)


def _which(wishes: Wishes) -> Iterator[str]:
    if wishes.types:
        yield f"of type {'|'.join(wishes.types)}"
    if wishes.min_memory:
        yield f"of at least {format_size(wishes.min_memory)}"
    if wishes.only:
        yield f"among {', '.join(wishes.only)}"
    if wishes.exclude:
        yield f"other than {', '.join(wishes.exclude)}"


def why_not(
    request: Request, fleet: Fleet, host: Host, cpus_used: int, ram_used: int, gpu_fault: str | None
) -> Verdict:
    """Why a request that does not fit now does not. The `fleet` are the GPUs that it may have."""
    if request.gpus and (fitting := fleet.room(request)) < request.gpus:
        return _why_no_gpu(request, fleet, fitting, gpu_fault)
    if request.cpus and request.cpus > host.cpus - cpus_used:
        cpus = f"{request.cpus} CPU{'s' if request.cpus > 1 else ''}"
        return Verdict(Reason.RESOURCES, f"asks for {cpus}, {host.cpus - cpus_used} of {host.cpus} free")
    return Verdict(
        Reason.RESOURCES,
        f"asks for {format_size(request.ram)} of host memory, "
        f"{format_size(max(0, host.ram - ram_used))} of {format_size(host.ram)} not given to jobs",
    )


def _why_no_gpu(request: Request, fleet: Fleet, fitting: int, gpu_fault: str | None) -> Verdict:
    able = fleet.able(request)
    if able < request.gpus:
        if gpu_fault is not None:
            return Verdict(Reason.GPU_UNAVAILABLE, gpu_fault)
        faults = "; ".join(f"{gpu.place}: {gpu.fault}" for gpu in fleet.gpus if gpu.fault is not None)
        has = f"{able} GPU{'s' if able != 1 else ''}{'' if request.vram is None else ' large enough'}"
        return Verdict(Reason.GPU_UNAVAILABLE, faults or f"asks for {asked(request)}, and this host has {has} now")
    says = f"asks for {asked(request)}; {fitting} of {len(fleet.healthy)} GPUs fit now"
    alone = fleet.room_alone(request)
    if alone >= request.gpus:
        large = fleet.large(request)
        most = max(large, key=lambda gpu: gpu.foreign)
        used = f" ({format_size(most.foreign)} on {most.place})" if most.foreign else ""
        claimed = [line for gpu in large for line in neighbour_lines(gpu)][:MOST_NEIGHBOURS]
        return Verdict(Reason.FOREIGN_USE, "; ".join([f"{says}, {alone} without foreign use{used}", *claimed]))
    if request.vram is not None:
        says += f", most headroom {format_size(max(0, fleet.most_headroom(request)))}"
    return Verdict(Reason.RESOURCES, says)


def neighbour_lines(gpu: GpuState) -> list[str]:
    """Who else's gpuq claims what of a GPU, the largest claims first. One line per user."""
    claims = [use for use in gpu.neighbours if not use.waits]
    whole = [f"{use.owner}'s gpuq claims the whole {gpu.place}" for use in claims if use.claimed is None]
    turn = [
        f"{use.owner}'s gpuq waits for longer, and it is its turn on {gpu.place}" for use in gpu.neighbours if use.waits
    ]
    left: dict[str, int] = {}
    for use in claims:
        left[use.owner] = left.get(use.owner, 0) + use.unallocated
    return list(dict.fromkeys(whole + turn)) + [
        f"{owner}'s gpuq claims {format_size(size)} on {gpu.place} that it has not allocated yet"
        for owner, size in sorted(left.items(), key=lambda item: (-item[1], item[0]))
        if size
    ]


def why_there(request: Request, places: Sequence[str], fitting: int, queue: Queue) -> str:
    """Why a job of that queue got these GPUs, of so many that had room."""
    got = " and ".join(places)
    if fitting == len(places):
        of = " that it may have" if queue.gpus is not None or any(wishes(request.which)) else ""
        return f"{got} had room, and no other GPU{'' if fitting == 1 else 's'}{of}"
    if request.which.spread:
        how = "those with the most memory left" if len(places) > 1 else "the one with the most memory left"
    elif len(places) > 1:
        how = "the closest to each other"
    else:
        how = "the smallest" if request.vram is None else "the fullest, so that big holes stay whole"
    return f"{fitting} GPUs had room, and of these it got {got}: {how}"


def sieve(request: Request, gpus: Sequence[GpuState], queue: Queue) -> Iterator[tuple[str, Sequence[GpuState]]]:
    """The conditions that a GPU must pass, in turn, and those that are left after each."""
    left = list(gpus)
    yield "on this host", left
    if any(gpu.fault is not None for gpu in left):
        left = [gpu for gpu in left if gpu.fault is None]
        yield "in order", left
    if queue.gpus is not None:
        left = [gpu for gpu in left if gpu.uuid in queue.gpus]
        yield f"of queue {queue.name}", left
    for wish in wishes(request.which):
        left = [gpu for gpu in left if wish.passes(gpu)]
        yield wish.counted, left
    if request.vram is not None:
        left = [gpu for gpu in left if gpu.capacity >= request.vram]
        yield f"large enough for {format_size(request.vram)}", left
    left = [gpu for gpu in left if fits(request, gpu.without_claims)]
    yield "not taken by others", left
    left = [gpu for gpu in left if fits(request, gpu)]
    yield "with room beside our running jobs", left


def gpu_verdict(request: Request, gpu: GpuState, queue: Queue | None = None) -> str:
    """What one GPU says to a request in that queue, in a few words."""
    if queue is not None and queue.gpus is not None and gpu.uuid not in queue.gpus:
        return f"not of queue {queue.name}"
    for wish in wishes(request.which):
        if not wish.passes(gpu):
            return wish.failed
    if gpu.fault is not None:
        return f"unavailable: {gpu.fault}"
    if fits(request, gpu):
        return "fits"
    if request.vram is not None:
        if gpu.taken:
            return f"job {gpu.claims[0].job_id} has the whole GPU"
        if gpu.promised_whole:
            return f"{gpu.promised_whole.owner}'s gpuq has the whole GPU"
        if gpu.capacity < request.vram:
            return f"too small: at most {format_size(gpu.capacity)} can be claimed"
        return f"{format_size(request.vram - gpu.headroom)} too little"
    if gpu.claims:
        jobs = ", ".join(str(claim.job_id) for claim in gpu.claims)
        return f"claimed by job{'s' if len(gpu.claims) > 1 else ''} {jobs}"
    if gpu.neighbours:
        return f"claimed by {', '.join(sorted({use.owner for use in gpu.neighbours}))}'s gpuq"
    if gpu.only_compute:
        return f"foreign process {gpu.only_compute[0].pid} computes on it"
    return f"foreign use {format_size(gpu.foreign_besides)}, {format_size(gpu.tolerated)} tolerated"


def impossible(
    request: Request, host: Host, settings: Settings, queue: Queue | None = None, *, gpus_known: bool
) -> str | None:
    """Why this host can never run the request in that queue, None if it can.

    GPUs, where they are known, by the capacities seen.
    """
    if request.cpus > host.cpus:
        return f"{request.cpus} CPUs asked for with --cpus, and gpuq may use {host.cpus} here"
    if request.ram > host.ram:
        return f"{format_size(request.ram)} asked for with --ram, and this host has {format_size(host.ram)}"
    if queue is not None and queue.max_gpus is not None and request.gpus > queue.max_gpus:
        return more_than_queue_has(queue, request)
    if not gpus_known or not request.gpus:
        return None
    if not host.capacities:
        on_cpus = ": without --vram, --gpus 0 runs it on CPUs" if request.which == ANY_GPU else ""
        return f"{asked(request)} asked for, and this host has no GPUs{on_cpus}"
    if request.gpus > len(host.capacities):
        has = f"{len(host.capacities)} GPU{'s' if len(host.capacities) != 1 else ''}"
        return f"{request.gpus} GPU{'s' if request.gpus != 1 else ''} asked for with --gpus, and this host has {has}"
    return _too_few(request, seen(host), settings.margin, queue)


def more_than_queue_has(queue: Queue, request: Request) -> str:
    """Why a request for more GPUs than its queue may have at a time never starts."""
    has = f"{queue.max_gpus} GPU{'' if queue.max_gpus == 1 else 's'}"
    return f"queue {queue.name} has at most {has} at a time, and {are_asked(request)}"


def are_asked(request: Request) -> str:
    return f"{request.gpus} GPU{' is' if request.gpus == 1 else 's are'} asked for"


def _too_few(request: Request, gpus: Sequence[Seen], margin: int, queue: Queue | None) -> str | None:
    """Which condition leaves too few GPUs, each counted on those that the conditions before it leave."""
    told: list[str] = []
    left = gpus
    for wish in (*of_queue(queue), *_conditions(request, margin)):
        before, left = left, [gpu for gpu in left if wish.passes(gpu)]
        of = "of them" if told else f"of {len(gpus)} GPU{'s' if len(gpus) != 1 else ''}"
        told.append(f"{len(left)} {of} {wish.singular if len(left) == 1 else wish.plural} {wish.what}")
        if len(left) < request.gpus:
            asks = f"{request.gpus} {'is' if request.gpus == 1 else 'are'} asked for"
            return "; ".join([f"{', '.join(told)}: {asks}", *wish.instead(before)])
    return None


def _conditions(request: Request, margin: int) -> Iterator[Wish]:
    """All that a request asks of a GPU, whatever is on it."""
    yield from wishes(request.which)
    if (vram := request.vram) is not None:
        yield Wish(
            "can",
            "can",
            f"hold the {format_size(vram)} of --vram",
            lambda card: not card.total or card.total - margin >= vram,
            lambda cards: [
                f"at most {format_size(max(0, largest(cards) - margin))} can be claimed on a GPU "
                f"(its memory less {format_size(margin)} margin)"
            ],
        )
