"""The smallest changes of a waiting job with which it would start now, each tried on the planner itself. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from math import floor, inf

from gpuq.model import ANY_GPU, GiB, MiB
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.placing import permitted
from gpuq.policy.scheduler import PLAIN, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from gpuq.protocol import MAX_PRIORITY

#: Least time limit that is proposed, and what is left for a person to type it, in seconds.
SHORTEST, TYPING = 60.0, 30.0
#: Of each kind so many are tried.
MOST_TRIES = 8


@dataclass(frozen=True, slots=True)
class Variant:
    """A job as it would be with other options."""

    key: GroupKey
    #: seconds that it may run for, with its grace period
    length: float
    #: the options, as they are typed
    options: tuple[str, ...] = ()

    def with_request(self, option: str, **changes: object) -> Variant:
        request = replace(self.key.request, **changes)  # type: ignore[arg-type]
        return replace(self, key=replace(self.key, request=request), options=(*self.options, option))


@dataclass(frozen=True, slots=True)
class Case:
    """A waiting job, and all that its start depends on."""

    snapshot: Snapshot
    gpus: Sequence[GpuState]
    key: GroupKey
    job_id: int
    #: most GPU memory that an attempt of it was seen to use on one GPU, in bytes
    peak: int = 0
    #: its grace period, and how long before its time limit it wants a signal, in seconds
    grace: float = 0.0
    early: float = 0.0


def advice(case: Case) -> Iterator[tuple[str, ...] | None]:
    """Options of each change that would start the job now, the single ones first; pairs where there is none.

    None after each try that fails, so that who has no more time may stop.
    """
    trial = _Trial(case)
    found = False
    for kind in _KINDS:
        for variant in islice(kind(case, trial.own), MOST_TRIES):
            if trial.starts(variant):
                found = True
                yield variant.options
                break
            yield None
    if not found:
        yield from _pairs(case, trial)


def _pairs(case: Case, trial: _Trial) -> Iterator[tuple[str, ...] | None]:
    """Two changes together: of each kind, the smallest that the other leaves."""
    for one, other in combinations(_KINDS, 2):
        if one is _less_vram:  # how much there is depends on all the others
            one, other = other, one
        each = (islice(other(case, first), MOST_TRIES // 2) for first in islice(one(case, trial.own), MOST_TRIES // 2))
        for variant in islice(chain.from_iterable(each), MOST_TRIES // 2):
            if trial.starts(variant):
                yield variant.options
                break
            yield None


class _Trial:
    """The planner with one job changed."""

    def __init__(self, case: Case) -> None:
        self._case = case
        line = case.snapshot.groups[case.key]
        self.own = Variant(case.key, line.length(case.job_id))
        self._since = line.since(case.job_id)
        rest = line.copy()
        rest.remove(case.job_id)
        self._groups = {key: other for key, other in case.snapshot.groups.items() if key != case.key}
        if rest:
            self._groups[case.key] = rest
        self._reserved = tuple(one for one in case.snapshot.reserved if one.job_id != case.job_id)

    def starts(self, variant: Variant) -> bool:
        """Whether the job starts at once, as one that has waited for as long as this one."""
        there = self._groups.get(variant.key)
        line = Line() if there is None else there.copy()
        line.add(self._case.job_id, self._since, variant.length)
        groups = {**self._groups, variant.key: line}
        planned = plan(replace(self._case.snapshot, groups=groups, reserved=self._reserved), self._case.gpus)
        return any(start.job_id == self._case.job_id for start in planned.starts)


def _less_vram(case: Case, own: Variant) -> Iterator[Variant]:
    """What fits on as many GPUs as it asks for, beside what is reserved there; never less than it was seen to need."""
    request = own.key.request
    if not request.gpus:
        return
    subset = case.snapshot.queues.get(own.key.queue, PLAIN).gpus
    room = [gpu for gpu in permitted(request, case.gpus, subset) if gpu.fault is None and gpu.headroom > 0]
    free = sorted((gpu.headroom for gpu in room), reverse=True)
    beside = sorted((_beside_reserved(case, gpu) for gpu in room), reverse=True)
    sizes = {sizes[request.gpus - 1] for sizes in (free, beside) if len(sizes) >= request.gpus}
    for size in sorted(sizes, reverse=True):
        size = neat_size(size, case.peak)
        if size >= max(case.peak, 1) and (request.vram is None or size < request.vram):
            yield own.with_request(f"--vram {size_text(size)}", vram=size)


def _beside_reserved(case: Case, gpu: GpuState) -> int:
    """Bytes that are left now, and once those have come for whom there are reservations."""
    left = gpu.headroom
    for one in case.snapshot.reserved:
        if one.job_id == case.job_id or gpu.uuid not in one.gpus:
            continue
        if one.at == inf or one.key.request.vram is None:
            return 0
        gone = {running.job_id for running in case.snapshot.ongoing if running.ends <= one.at}
        then = replace(gpu, claims=tuple(claim for claim in gpu.claims if claim.job_id not in gone))
        left = min(left, then.headroom - one.key.request.vram)
    return left


def neat_size(size: int, least: int) -> int:
    """A size that is easy to type and no larger; the exact one where the easy one would be too small."""
    for step in (GiB, 256 * MiB, MiB):
        neat = size // step * step
        if neat >= max(least, 4 * step):
            return neat
    return size // MiB * MiB


def size_text(size: int) -> str:
    return f"{size // GiB}GiB" if size % GiB == 0 else f"{size // MiB}MiB"


def _less_time(case: Case, own: Variant) -> Iterator[Variant]:
    """To have ended before a reservation begins, the last one that will do."""
    most = case.snapshot.queues.get(own.key.queue, PLAIN).max_time or inf
    times = {one.at for one in case.snapshot.reserved if one.job_id != case.job_id and one.at < inf}
    for at in sorted(times, reverse=True):
        limit = neat_time(min(at - case.snapshot.now - case.grace - TYPING, most))
        if limit >= SHORTEST and limit > case.early and limit + case.grace < own.length:
            yield replace(own, length=limit + case.grace, options=(*own.options, f"--time {time_text(limit)}"))


def neat_time(seconds: float) -> float:
    return seconds // 60 * 60 if seconds >= 600 else seconds // 1


def time_text(seconds: float) -> str:
    return f"{seconds / 60:.0f}m" if seconds % 60 == 0 else f"{seconds:.0f}s"


def _fewer_gpus(_case: Case, own: Variant) -> Iterator[Variant]:
    request = own.key.request
    for count in range(request.gpus - 1, 0, -1):
        most = f":{request.most}" if request.most > count else ""
        yield own.with_request(f"--gpus {count}{most}", gpus=count)


def _less_of_the_host(case: Case, own: Variant) -> Iterator[Variant]:
    request, host = own.key.request, case.snapshot.host
    cpus = max(host.cpus - case.snapshot.cpus_used, 0)
    if cpus < request.cpus and (cpus or request.gpus):
        own = own.with_request(f"--cpus {cpus}", cpus=cpus)
    ram = neat_size(max(host.ram - case.snapshot.ram_used, 0), 1)
    if 0 < ram < request.ram:
        own = own.with_request(f"--ram {size_text(ram)}", ram=ram)
    if own.key.request != request:
        yield own


def _other_gpus(_case: Case, own: Variant) -> Iterator[Variant]:
    """Without one of its conditions, then without any."""
    which = own.key.request.which
    each = [
        ("--gpu-type none", replace(which, types=())),
        ("--gpu-min-memory none", replace(which, min_memory=0)),
        ("--gpu-id none", replace(which, only=())),
        ("--exclude-gpu none", replace(which, exclude=())),
    ]
    dropped = [(option, changed) for option, changed in each if changed != which]
    if len(dropped) > 1:
        dropped.append((" ".join(option for option, _ in dropped), replace(ANY_GPU, spread=which.spread)))
    for option, changed in dropped:
        yield own.with_request(option, which=ANY_GPU if changed == ANY_GPU else changed)


def _other_queue(case: Case, own: Variant) -> Iterator[Variant]:
    for name in sorted({PLAIN.name, *case.snapshot.queues} - {own.key.queue}):
        queue = case.snapshot.queues.get(name, PLAIN)
        if not queue.draining and (queue.max_time is None or own.length - case.grace <= queue.max_time):
            yield replace(own, key=replace(own.key, queue=name), options=(*own.options, f"--queue {name}"))


def _more_priority(case: Case, own: Variant) -> Iterator[Variant]:
    """Just above each that may keep it from starting: who has a reservation, and who is first of all."""
    snapshot = case.snapshot
    ahead = [(one.key, one.job_id) for one in snapshot.reserved if one.job_id in snapshot.groups.get(one.key, ())]
    ahead.append(min(((key, line.first) for key, line in snapshot.groups.items()), key=lambda one: snapshot.rank(*one)))
    base = snapshot.priority(own.key) - own.key.priority
    for above in sorted({_above(case, *other) - base for other in ahead if other[1] != case.job_id}):
        if own.key.priority < above <= MAX_PRIORITY:
            key = replace(own.key, priority=above)
            yield replace(own, key=key, options=(*own.options, f"--priority {above}"))


def _above(case: Case, other: GroupKey, job_id: int) -> int:
    """Least priority, that of its queue included, with which the job goes ahead of another one, however old that is."""
    snapshot = case.snapshot
    priority, ageing = snapshot.priority(other), snapshot.policy.ageing
    if not ageing:
        return priority + 1
    younger = snapshot.groups[case.key].since(case.job_id) - snapshot.groups[other].since(job_id)
    return priority + 1 + max(0, floor(younger / ageing))


_KINDS: tuple[Callable[[Case, Variant], Iterator[Variant]], ...] = (
    _less_vram,
    _less_time,
    _fewer_gpus,
    _less_of_the_host,
    _other_gpus,
    _other_queue,
    _more_priority,
)
