"""The planner: which waiting jobs start now and where, who has a reservation, and why each group of the others waits.

Pure. In order of priority and age; what happens when the first cannot start, `Order` says. The cost grows with distinct
requests, GPUs, running jobs and starts, not with the length of the queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from gpuq.model import Host, Order, Queue, Reason, Request, Settings
from gpuq.policy.explain import Verdict, why_not
from gpuq.policy.fleet import Fleet
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.placing import choose, permitted, ranked
from gpuq.policy.predict import Predictions
from gpuq.policy.preempt import Preemption, victims
from gpuq.policy.queues import Turn, gate, limits, turn
from gpuq.policy.reserve import Books, Held, Ongoing, Reservation, domain_of, enough, gpus_within_limits, reserve
from gpuq.policy.waiting import GroupKey

#: Reasons that pass as soon as enough jobs end.
PLACEABLE = frozenset({Reason.RESOURCES, Reason.FOREIGN_USE})
#: A queue that nobody has said anything about.
PLAIN = Queue()
#: Most jobs that have a reservation with the daemon at a time, each on GPUs of its own.
RESERVATIONS = 8


@dataclass(frozen=True, slots=True)
class Policy:
    """What a site may choose."""

    order: Order = Order.EASY
    #: seconds of waiting that outweigh one point of priority; 0 for no ageing
    ageing: float = 0.0
    #: seconds after which a job whose start nobody can foresee has GPUs kept free for it
    reserve_after: float = 600.0
    #: seconds that a preemptible job runs before it gives way
    preempt_after: float = 300.0
    #: of so many that cannot start, the first, each may have a reservation, on GPUs of its own
    reservations: int = 1

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """The daemon's."""
        return cls(settings.order, settings.ageing, settings.reserve_after, settings.preempt_after, RESERVATIONS)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that planning depends on apart from the GPUs."""

    groups: Mapping[GroupKey, Line]
    host: Host
    #: seconds since the epoch
    now: float = 0.0
    policy: Policy = Policy()
    ongoing: Sequence[Ongoing] = ()
    queues: Mapping[str, Queue] = field(default_factory=dict)
    #: groups that start nothing more, and why
    stopped: Mapping[str, str] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=Predictions)
    #: the reservations of the plan before
    reserved: Sequence[Reservation] = ()
    #: what is wrong with the driver as a whole
    gpu_fault: str | None = None

    @property
    def cpus_used(self) -> int:
        return sum(one.cpus for one in self.ongoing)

    @property
    def ram_used(self) -> int:
        """Bytes of host memory."""
        return sum(one.ram for one in self.ongoing)

    def priority(self, key: GroupKey) -> int:
        return key.priority + self.queues.get(key.queue, PLAIN).priority

    def rank(self, key: GroupKey, job_id: int) -> tuple[float, int]:
        """Smaller is earlier. As all jobs age alike, no pair of jobs ever changes its order."""
        if not self.policy.ageing:
            return (-self.priority(key), job_id)
        return (self.groups[key].since(job_id) - self.priority(key) * self.policy.ageing, job_id)

    def ends(self, key: GroupKey, job_id: int) -> float:
        """When a job that starts now has ended: by its limit, or without one by the prediction."""
        length = self.groups[key].length(job_id)
        if length == inf and (known := self.predictions.of(key.kind)) is not None:
            length = known.longest
        return self.now + length

    def likely_end(self, key: GroupKey, job_id: int) -> float:
        """When a job that starts now has probably ended."""
        known = self.predictions.of(key.kind)
        length = self.groups[key].length(job_id)
        return self.now + (length if known is None else min(length, known.likely))


@dataclass(frozen=True, slots=True)
class Start:
    job_id: int
    key: GroupKey
    gpus: tuple[str, ...]
    #: how many GPUs had room for it
    fitting: int = 0
    #: jobs with a reservation that it passes
    passes: tuple[int, ...] = ()

    @property
    def request(self) -> Request:
        return self.key.request


@dataclass(frozen=True, slots=True)
class Plan:
    starts: tuple[Start, ...]
    #: why each group with jobs left waits; groups that were not looked at are not in it
    verdicts: Mapping[GroupKey, Verdict]
    reservations: tuple[Reservation, ...] = ()
    #: running jobs that give way to waiting ones, which have a reservation for when these have ended
    preemptions: tuple[Preemption, ...] = ()


def plan(snapshot: Snapshot, gpus: Sequence[GpuState] | None) -> Plan:
    """Starts in order, reservations, and a verdict for each group that must wait on.

    `gpus` is None while no reading is at hand: jobs that ask for GPUs are then left as they are, reservations included.
    """
    return _Planner(snapshot, gpus).run()


def position(snapshot: Snapshot, key: GroupKey, job_id: int) -> int:
    """1 for the job that is looked at first. For people: it costs by the number of groups."""
    rank, _ = snapshot.rank(key, job_id)
    ahead = 0
    for other, line in snapshot.groups.items():
        if other == key:
            ahead += line.before(job_id)
        elif snapshot.policy.ageing:
            ahead += line.older(rank + snapshot.priority(other) * snapshot.policy.ageing, job_id)
        elif snapshot.priority(other) > snapshot.priority(key):
            ahead += len(line)
        elif snapshot.priority(other) == snapshot.priority(key):
            ahead += line.before(job_id)
    return ahead + 1


def begun(snapshot: Snapshot, key: GroupKey, job_id: int, gpus: int) -> Ongoing:
    """The job as one that has just started on so many GPUs."""
    return Ongoing(
        job_id,
        key.request.cpus,
        key.request.ram,
        snapshot.ends(key, job_id),
        snapshot.likely_end(key, job_id),
        gpus,
        key.queue,
        key.array[0] if key.array else None,
        priority=snapshot.priority(key),
    )


class _Planner:
    def __init__(self, snapshot: Snapshot, gpus: Sequence[GpuState] | None) -> None:
        self._snapshot = snapshot
        self._with_gpus = gpus is not None
        self._books = Books(gpus or (), snapshot.host, snapshot.now, snapshot.ongoing)
        self._starts: list[Start] = []
        self._verdicts: dict[GroupKey, Verdict] = {}
        self._held: list[Held] = []
        self._preemptions: list[Preemption] = []
        #: queues that may keep their jobs from starting: most do not, and each group asks
        self._limited = {name: queue for name, queue in snapshot.queues.items() if limits(queue)}
        #: the first of each queue that its limit of GPUs keeps from starting
        self._turns: dict[str, Turn] = {}
        #: of the next job of each group: rank, id to rank by, a number of the group's, the group, id
        self._order: list[tuple[float, int, int, GroupKey, int]] = []
        #: groups of which only jobs that are over in time are still looked at, in seconds that they may take
        self._short: dict[GroupKey, float] = {}
        #: jobs that had a reservation, and are looked at by themselves
        self._apart: set[int] = set()
        #: how many GPUs had room for the job that was looked at last
        self._fitting = 0
        #: how many that cannot start have been looked at, for a reservation
        self._behind = 0
        #: the first that cannot start, where that keeps the others from starting
        self._first: int | None = None

    def run(self) -> Plan:
        for number, (key, line) in enumerate(self._snapshot.groups.items()):
            if self._with_gpus or not key.request.gpus:
                self._put(key, number, line.first)
        kept = self._put_holders_first() if self._snapshot.policy.order is Order.EASY else []
        heapq.heapify(self._order)
        while self._order:
            _, _, number, key, job_id = heapq.heappop(self._order)
            if number < 0:
                self._look_at(key, job_id)
                continue
            after = job_id if job_id in self._apart else self._look_at(key, job_id)
            following = None if after is None else self._next(key, after)
            if following is not None:
                self._put(key, number, following)
        reservations = (*kept, *(held.reservation for held in self._held[len(kept) :]))
        return Plan(tuple(self._starts), self._verdicts, reservations, tuple(self._preemptions))

    def _put(self, key: GroupKey, number: int, job_id: int) -> None:
        rank, tie = self._snapshot.rank(key, job_id)
        heapq.heappush(self._order, (rank, tie, number, key, job_id))

    def _next(self, key: GroupKey, after: int) -> int | None:
        """The next job of a group that is worth a look."""
        longest, known = self._short.get(key, inf), self._snapshot.predictions.of(key.kind)
        endless = known is not None and known.longest <= longest
        return self._snapshot.groups[key].after(after, longest, endless=endless)

    def _put_holders_first(self) -> list[Reservation]:
        """Who has a reservation keeps it: it goes ahead of all but those of higher priority.

        Returns the reservations of jobs that are not looked at now, for want of a reading: they stay as they are.
        """
        kept, snapshot = [], self._snapshot
        for number, reservation in enumerate(snapshot.reserved, -len(snapshot.reserved)):
            key, job_id = reservation.key, reservation.job_id
            if key not in snapshot.groups or job_id not in snapshot.groups[key]:
                continue
            if key.request.gpus and not self._with_gpus:
                kept.append(reservation)
                self._held.append(Held(reservation, (), self._books, self._held))
                continue
            own = snapshot.priority(key)
            first = min(entry[0] for entry in self._order if entry[2] >= 0 and snapshot.priority(entry[3]) <= own)
            if not self._overtaken(key, job_id, first):
                self._apart.add(job_id)
                self._order.append((first, -1, number, key, job_id))
        self._behind = len(kept)
        return kept

    def _overtaken(self, key: GroupKey, job_id: int, first: float) -> bool:
        """Whether a job of higher priority comes between this one and the first that it would go ahead of.

        Without ageing none does: all of higher priority are ahead of that.
        """
        snapshot, ageing = self._snapshot, self._snapshot.policy.ageing
        if not ageing:
            return False
        own, (rank, _) = snapshot.priority(key), snapshot.rank(key, job_id)
        higher = ((snapshot.priority(other) * ageing, line) for other, line in snapshot.groups.items())
        return any(
            worth > own * ageing and line.older(rank + worth, job_id) > line.older(first + worth, 0)
            for worth, line in higher
        )

    def _look_at(self, key: GroupKey, job_id: int) -> int | None:
        """Start the job if it can; after which job its group goes on, None where it does not."""
        verdict = self._gate(key)
        if verdict is None:
            if self._turns and (first := self._passed(key, job_id)) is not None:
                self._verdicts.setdefault(key, first.verdict)
                return self._only_short(key, job_id, first.at)
            chosen = self._room(key, job_id)
            if not isinstance(chosen, Verdict):
                self._start(key, job_id, chosen)
                return job_id
            verdict = chosen
        elif verdict.reason is Reason.LIMIT:
            self._take_turn(key, job_id)
        self._verdicts.setdefault(key, verdict)
        if verdict.reason in PLACEABLE:
            self._cannot_start(key, job_id)
        if verdict.reason is not Reason.RESERVATION:
            return None
        self._behind = self._snapshot.policy.reservations  # who had one from here on would go ahead of it for good
        return self._only_short(key, job_id, min((held.reservation.at for held in self._held), default=inf))

    def _only_short(self, key: GroupKey, job_id: int, by: float) -> int | None:
        """Go on in the group after this job with those that have ended by then; None where that was so already."""
        if key in self._short or by == inf:
            return None
        self._short[key] = by - self._snapshot.now
        return job_id

    def _passed(self, key: GroupKey, job_id: int) -> Turn | None:
        """The first of its queue, where that needs more GPUs than its limit leaves, and would be passed for long."""
        first = self._turns.get(key.queue)
        return None if first is None or first.lets(key.request.gpus, self._snapshot.ends(key, job_id)) else first

    def _take_turn(self, key: GroupKey, job_id: int) -> None:
        snapshot, policy = self._snapshot, self._snapshot.policy
        if policy.order is not Order.EASY or key.queue in self._turns:
            return
        running = [(one.ends, one.gpus) for one in self._books.ongoing.values() if one.queue == key.queue]
        found = turn(self._queue(key), key.request.gpus, job_id, running, snapshot.now)
        if found is None or (found.at == inf and self._waited(key, job_id) < policy.reserve_after):
            return
        self._turns[key.queue] = found

    def _waited(self, key: GroupKey, job_id: int) -> float:
        """Seconds."""
        return self._snapshot.now - self._snapshot.groups[key].since(job_id)

    def _gate(self, key: GroupKey) -> Verdict | None:
        """What keeps the jobs of a group from starting whatever is free."""
        snapshot, books = self._snapshot, self._books
        if self._first is not None:
            return Verdict(Reason.PRIORITY, f"jobs start in order, and job {self._first} is first")
        if key.group is not None and key.group in snapshot.stopped:
            return Verdict(Reason.LIMIT, snapshot.stopped[key.group])
        if key.array is not None:
            array_id, limit = key.array
            running = books.arrays.get(array_id, 0)
            if running >= limit:
                return Verdict(Reason.LIMIT, f"{running} of at most {limit} jobs of array {array_id} run")
        queue = self._limited.get(key.queue)
        return None if queue is None else gate(queue, key.request, *books.queues.get(key.queue, (0, 0)))

    def _queue(self, key: GroupKey) -> Queue:
        return self._snapshot.queues.get(key.queue, PLAIN)

    def _room(self, key: GroupKey, job_id: int) -> tuple[str, ...] | Verdict:
        """GPUs for a job now, or why there are none."""
        books, request = self._books, key.request
        fleet = books.fleet
        if request.gpus and (mine := permitted(request, books.gpus, self._queue(key).gpus)) is not books.gpus:
            fleet = Fleet(mine)
        used = (books.cpus_used, books.ram_used)
        if (request.gpus and fleet.room(request) < request.gpus) or not enough(request, books.host, *used):
            return why_not(request, fleet, books.host, *used, self._snapshot.gpu_fault)
        fitting = fleet.fitting(request) if request.gpus else []
        self._fitting = len(fitting)
        most = gpus_within_limits(key, self._queue(key), books, self._held)
        if most is None:
            return self._keeps_its_place(key)
        ends = self._snapshot.ends(key, job_id)
        if request.most:
            first = self._turns.get(key.queue)
            most = min(most, first.left) if first is not None and not first.lets(request.most, ends) else most
            request = replace(request, most=int(min(request.most, most)))
        delayed = [held for held in self._held if not held.over_by(ends)]
        return _beside(request, fitting, delayed, books.host) if delayed else choose(request, fitting) or ()

    def _keeps_its_place(self, key: GroupKey) -> Verdict:
        """Why a job waits that what runs leaves a place for in its array and its queue."""
        holders = [one.reservation for one in self._held]
        first = next(
            one
            for one in holders
            if one.key.queue == key.queue or (key.array and one.key.array and one.key.array[0] == key.array[0])
        )
        return Verdict(Reason.RESERVATION, f"fits now, and job {first.job_id} will have the place that a limit leaves")

    def _start(self, key: GroupKey, job_id: int, chosen: tuple[str, ...]) -> None:
        ends = self._snapshot.ends(key, job_id)
        passes = tuple(held.reservation.job_id for held in self._held)
        self._starts.append(Start(job_id, key, chosen, self._fitting, passes))
        self._books.start(begun(self._snapshot, key, job_id, len(chosen)), key.request.vram, chosen)
        for held in self._held:
            held.book(key.request, chosen, ends)
        if key.queue in self._turns:
            self._turns[key.queue].book(len(chosen), ends)

    def _cannot_start(self, key: GroupKey, job_id: int) -> None:
        """The job would start if others had ended: what that means for those behind it, and for those who run."""
        policy = self._snapshot.policy
        if policy.order is Order.FIT_FIRST or self._behind >= policy.reservations:
            return
        domain = domain_of(key, self._books, self._queue(key).gpus, self._held) if key.request.gpus else []
        held = reserve(key, job_id, self._books, domain, self._held)
        if self._preempt(key, job_id, domain, inf if held is None else held.reservation.at):
            held = reserve(key, job_id, self._books, domain, self._held)
        if policy.order is Order.FIFO:
            self._first = job_id
            return
        if held is None and not self._held:
            return  # whatever of ours ends, it cannot start: it is no reason to let those behind it be passed for ever
        if held is None or gpus_within_limits(key, self._queue(key), self._books, self._held) is None:
            self._behind = policy.reservations  # what others have reserved is in its way, and must not become more
            return
        self._behind += 1
        if held.reservation.at == inf and self._waited(key, job_id) < policy.reserve_after:
            return
        for other in self._held:
            other.make_way(held)
        self._held.append(held)

    def _preempt(self, key: GroupKey, job_id: int, domain: Sequence[GpuState], otherwise: float) -> bool:
        """Have running jobs give way to this one, if it could then start before the time when it could `otherwise`."""
        books, policy, priority = self._books, self._snapshot.policy, self._snapshot.priority(key)
        candidates = [
            one
            for one in books.ongoing.values()
            if one.preemptible
            and one.priority < priority
            and one.ran >= policy.preempt_after
            and books.now + one.grace < otherwise
        ]
        chosen = victims(key.request, domain, books.ongoing.values(), books.host, candidates) if candidates else None
        for one in chosen or ():
            self._preemptions.append(Preemption(one.job_id, job_id))
            books.ongoing[one.job_id] = replace(one, preemptible=False, ends=min(one.ends, books.now + one.grace))
        return bool(chosen)


def _beside(
    request: Request, fitting: Sequence[GpuState], held: Sequence[Held], host: Host
) -> tuple[str, ...] | Verdict:
    """GPUs for a job that runs on beyond these reservations, such that none is delayed; or which one would be."""
    for one in held:
        if not one.leaves_enough(request, host):
            return one.would_be_delayed
    harmed = {gpu.uuid: [n for n, one in enumerate(held) if one.harms(request, gpu)] for gpu in fitting}
    taken = [gpu for gpu in fitting if not harmed[gpu.uuid]]
    spare = [one.spare for one in held]
    if len(taken) < request.gpus:  # then of those that harm, as few as will do
        for gpu in ranked(request, (gpu for gpu in fitting if harmed[gpu.uuid])):
            if len(taken) < request.gpus and all(spare[n] > 0 for n in harmed[gpu.uuid]):
                taken.append(gpu)
                for n in harmed[gpu.uuid]:
                    spare[n] -= 1
    if len(taken) >= request.gpus:
        return choose(request, taken) or ()
    return next(held[n] for gpu in fitting for n in harmed[gpu.uuid]).would_be_delayed
