"""Reservations: when and where a job that cannot start now will, and whether another one would delay that. Pure.

EASY backfill after Lifka (The ANL/IBM SP Scheduling System, JSSPP 1995), as Mu'alem and Feitelson describe it
(Utilization, Predictability, Workloads, and User Runtime Estimates in Scheduling the IBM SP2 with Backfilling, IEEE
TPDS 12(6), 2001): the reservation is at the earliest time at which the ends of running jobs leave room; a later job may
start if it has ended by then, or takes what is left over then. GPUs are not alike here, and are shared by memory. So
what is left over is counted GPU by GPU: a GPU is harmed by a start if the reserved job could have its share there at
that time without it, and cannot with it; as many may be harmed as there are more than the reserved job needs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf

from gpuq.model import DEFAULT_QUEUE, Claim, Host, Queue, Reason, Request
from gpuq.policy.explain import Verdict
from gpuq.policy.fleet import Fleet
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import choose, fits, permitted
from gpuq.policy.waiting import GroupKey


@dataclass(frozen=True, slots=True)
class Ongoing:
    """A running job as planning sees it. Its claims stand with the GPUs."""

    job_id: int
    cpus: int = 0
    ram: int = 0
    #: when it has ended at the latest, in seconds since the epoch; infinity where nothing says so
    ends: float = inf
    #: when it has probably ended
    likely: float = inf
    gpus: int = 0
    queue: str = DEFAULT_QUEUE
    #: its array, where that limits how many run
    array_id: int | None = None
    #: whether it gives way to jobs of a priority above its own
    preemptible: bool = False
    priority: int = 0
    #: seconds that its attempt has run, and that it has to save its work once it is asked to end
    ran: float = 0.0
    grace: float = 0.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """The first job that cannot start will have these GPUs, at this time at the latest.

    Infinity where nobody knows when the jobs in its way end: the GPUs are kept free as they come free.
    """

    job_id: int
    key: GroupKey
    #: seconds since the epoch
    at: float
    #: UUIDs
    gpus: tuple[str, ...]


def enough(request: Request, host: Host, cpus_used: int, ram_used: int) -> bool:
    """Whether the CPUs and the host memory that are left are enough."""
    cpus = not request.cpus or request.cpus <= host.cpus - cpus_used
    return cpus and (not request.ram or request.ram <= host.ram - ram_used)


class Books:
    """What is given to jobs while a plan is made."""

    def __init__(self, gpus: Iterable[GpuState], host: Host, now: float, ongoing: Iterable[Ongoing]) -> None:
        self.gpus = list(gpus)
        self._fleet = Fleet(self.gpus)
        self.host = host
        self.now = now
        #: by id, those that the plan starts included
        self.ongoing: dict[int, Ongoing] = {}
        self.cpus_used = self.ram_used = 0
        #: running members by array
        self.arrays: dict[int, int] = {}
        #: running jobs and their GPUs by queue
        self.queues: dict[str, tuple[int, int]] = {}
        for one in ongoing:
            self.add(one)

    @property
    def fleet(self) -> Fleet:
        """The GPUs as they are now."""
        if self._fleet.gpus is not self.gpus:
            self._fleet = Fleet(self.gpus)
        return self._fleet

    def add(self, one: Ongoing) -> None:
        self.ongoing[one.job_id] = one
        self.cpus_used += one.cpus
        self.ram_used += one.ram
        if one.array_id is not None:
            self.arrays[one.array_id] = self.arrays.get(one.array_id, 0) + 1
        jobs, gpus = self.queues.get(one.queue, (0, 0))
        self.queues[one.queue] = (jobs + 1, gpus + one.gpus)

    def start(self, one: Ongoing, vram: int | None, chosen: Collection[str]) -> None:
        """Give a job what it asked for, on these GPUs."""
        self.add(one)
        if chosen:
            self.gpus = [
                gpu.with_claim(Claim(one.job_id, 0, gpu.uuid, vram)) if gpu.uuid in chosen else gpu for gpu in self.gpus
            ]


class Held:
    """A reservation while a plan is made, with what will be free at its time."""

    def __init__(
        self,
        reservation: Reservation,
        then: Iterable[GpuState],
        books: Books,
        others: Iterable[Held] = (),
    ) -> None:
        """`then` are the GPUs that the job may have, as they will be; `others` have been made before."""
        self.reservation = reservation
        self._request = request = reservation.key.request
        self._then = {gpu.uuid: gpu for gpu in then}
        #: those of them on which its share has room
        self._fit = {uuid for uuid, gpu in self._then.items() if fits(request, gpu)}
        still = [one for one in books.ongoing.values() if one.ends > reservation.at or one.ends == inf]
        self._cpus_used = sum(one.cpus for one in still)
        self._ram_used = sum(one.ram for one in still)
        for other in others:
            self._count(other)

    def _count(self, other: Held) -> None:
        """The CPUs and the memory of another reservation, if that is as early."""
        if other.reservation.at <= self.reservation.at:
            self._cpus_used += other.needs[0]
            self._ram_used += other.needs[1]

    @property
    def spare(self) -> int:
        """Of the GPUs that have room for it then, how many it does not need."""
        return 0 if self.reservation.at == inf else len(self._fit) - self._request.gpus

    def over_by(self, ends: float) -> bool:
        """Whether a job that ends then leaves all as it was."""
        return ends <= self.reservation.at < inf

    def harms(self, request: Request, gpu: GpuState) -> bool:
        """Whether a share of that request on the GPU would take the place of this one's."""
        uuid = gpu.uuid
        if self.reservation.at == inf:
            return uuid in self.reservation.gpus
        claim = Claim(0, 0, uuid, request.vram)
        return uuid in self._fit and not fits(self._request, self._then[uuid].with_claim(claim))

    def leaves_enough(self, request: Request, host: Host) -> bool:
        """Whether CPUs and host memory are enough for both."""
        own = self._request
        cpus = not (own.cpus and request.cpus) or self._cpus_used + request.cpus + own.cpus <= host.cpus
        return cpus and (not (own.ram and request.ram) or self._ram_used + request.ram + own.ram <= host.ram)

    @property
    def would_be_delayed(self) -> Verdict:
        """Why another job waits that has room now."""
        job_id, gpus = self.reservation.job_id, self.reservation.gpus
        places = " and ".join(self._then[uuid].place for uuid in gpus if uuid in self._then)
        what, are = places or "CPUs or memory", "is" if places and len(gpus) == 1 else "are"
        if self.reservation.at == inf:
            return Verdict(Reason.RESERVATION, f"fits now, and {what} {are} kept free for job {job_id}")
        reserved = f"{what} {are} reserved"
        return Verdict(Reason.RESERVATION, f"fits now, and would delay job {job_id}, for which {reserved}")

    def book(self, request: Request, chosen: Collection[str], ends: float) -> None:
        """A job has started, and is still there at the time of the reservation unless it ends before."""
        if self.over_by(ends):
            return
        self._cpus_used += request.cpus
        self._ram_used += request.ram
        for uuid in self._then.keys() & set(chosen):
            self._then[uuid] = self._then[uuid].with_claim(Claim(0, 0, uuid, request.vram))
            if not fits(self._request, self._then[uuid]):
                self._fit.discard(uuid)
        if self.reservation.at < inf and not self._fit.issuperset(self.reservation.gpus):  # it took one of the spare
            self.reservation = replace(self.reservation, gpus=_chosen(self._request, self._then, self._fit))

    def make_way(self, other: Held) -> None:
        """For a reservation that is made after this one."""
        self._count(other)
        for uuid in other.reservation.gpus:
            self._then.pop(uuid, None)
            self._fit.discard(uuid)

    @property
    def needs(self) -> tuple[int, int]:
        """CPUs and bytes of host memory."""
        return self._request.cpus, self._request.ram


def reserve(
    key: GroupKey, job_id: int, books: Books, domain: Sequence[GpuState], others: Sequence[Held]
) -> Held | None:
    """The reservation of a job that cannot start now, on GPUs of the domain, as they are now, beside the others.

    Where the ends that are known do not make room for it, it names GPUs, and has no time. None where nothing that is
    ours stands in its way, or it would be too much for the host alone.
    """
    request = key.request
    if not enough(request, books.host, 0, 0):
        return None
    then = {gpu.uuid: gpu for gpu in domain}
    fitting = {uuid for uuid, gpu in then.items() if fits(request, gpu)}
    holders = _holders(domain)
    cpus = books.cpus_used + sum(other.needs[0] for other in others)
    ram = books.ram_used + sum(other.needs[1] for other in others)
    ends = sorted((one for one in books.ongoing.values() if one.ends < inf), key=lambda one: one.ends)
    for at, together in groupby(ends, key=lambda one: max(one.ends, books.now)):
        for one in together:
            cpus, ram = cpus - one.cpus, ram - one.ram
            for uuid in holders.get(one.job_id, ()):
                then[uuid] = then[uuid].without(one.job_id)
                if fits(request, then[uuid]):
                    fitting.add(uuid)
        if len(fitting) >= request.gpus and enough(request, books.host, cpus, ram):
            reservation = Reservation(job_id, key, at, _chosen(request, then, fitting))
            return Held(reservation, then.values(), books, others)
    named = _named(request, then, fitting)
    return None if named is None else Held(Reservation(job_id, key, inf, named), then.values(), books, others)


def _chosen(request: Request, then: Mapping[str, GpuState], fitting: Collection[str]) -> tuple[str, ...]:
    """Of GPUs that are enough, those that are reserved: as few as will do."""
    return choose(replace(request, most=0), [then[uuid] for uuid in fitting]) or ()


def _holders(gpus: Iterable[GpuState]) -> dict[int, list[str]]:
    """The GPUs of each job that has claims there."""
    found: dict[int, list[str]] = {}
    for gpu in gpus:
        for claim in gpu.claims:
            found.setdefault(claim.job_id, []).append(gpu.uuid)
    return found


def _named(request: Request, then: dict[str, GpuState], fitting: Collection[str]) -> tuple[str, ...] | None:
    """GPUs on which nothing but jobs of ours, whose ends are not known, stands in the way; the least of that first."""
    able = [gpu for gpu in then.values() if gpu.uuid in fitting or fits(request, gpu.without_claims)]
    if len(able) < request.gpus:
        return None
    able.sort(key=lambda gpu: (gpu.uuid not in fitting, len(gpu.claims), gpu.claimed, gpu.order))
    return tuple(gpu.uuid for gpu in sorted(able[: request.gpus], key=lambda gpu: gpu.order))


def domain_of(key: GroupKey, books: Books, subset: Collection[str] | None, others: Iterable[Held]) -> list[GpuState]:
    """The GPUs that a job may have, and that no other reservation has named."""
    taken = {uuid for held in others for uuid in held.reservation.gpus}
    return [gpu for gpu in permitted(key.request, books.gpus, subset) if gpu.uuid not in taken]


def gpus_within_limits(key: GroupKey, queue: Queue, books: Books, held: Iterable[Held]) -> float | None:
    """How many GPUs the limits of its queue leave to a job beside what runs and has reservations; None where these, or
    those of its array, leave it no place.

    Whoever is over by the time of the reservation counts as well: the holder may be able to start before.
    """
    holders = [one.reservation.key for one in held]
    jobs = gpus = inf
    if key.array is not None:
        members = sum(other.array is not None and other.array[0] == key.array[0] for other in holders)
        jobs = key.array[1] - books.arrays.get(key.array[0], 0) - members
    inside = [other.request.gpus for other in holders if other.queue == key.queue]
    running, used = books.queues.get(key.queue, (0, 0))
    if queue.max_jobs is not None:
        jobs = min(jobs, queue.max_jobs - running - len(inside))
    if queue.max_gpus is not None:
        gpus = queue.max_gpus - used - sum(inside)
    return gpus if jobs >= 1 and (not key.request.gpus or gpus >= key.request.gpus) else None
