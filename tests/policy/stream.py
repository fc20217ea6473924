"""A small virtual clock for the planner: jobs come, start where it says, and end; what it says is kept and checked.

It knows nothing of how the planner works. Times are seconds, memory is in GiB, and cards have no margin, so that the
sums that check the starts can be done by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from gpuq.model import Claim, GiB, Host, Queue, Request
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.predict import Predictions
from gpuq.policy.reserve import Ongoing, Reservation
from gpuq.policy.scheduler import Plan, Policy, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from tests.policy.build import make_gpu

HOST = Host(cpus=4, ram=16 * GiB)


def share(vram: int, gpus: int = 1, cpus: int = 0, most: int = 0) -> Request:
    return Request(gpus, vram * GiB, cpus, 0, most)


def whole(gpus: int = 1, cpus: int = 0, most: int = 0) -> Request:
    return Request(gpus, None, cpus, 0, most)


def cpu(cpus: int = 1, ram: int = 0) -> Request:
    return Request(0, None, cpus, ram * GiB)


def card(number: int, total: int = 8, claims: Iterable[Claim] = ()) -> GpuState:
    size = total * GiB
    return make_gpu(number, total=size, margin=0, tolerated=0, claims=tuple(claims))


@dataclass(frozen=True, slots=True)
class Work:
    """A job as the test knows it: what it asks for, and what really happens."""

    job_id: int
    request: Request
    #: when it is submitted, and from when on it may start
    since: float = 0.0
    comes: float = 0.0
    limit: float = inf
    lasts: float = 10.0
    priority: int = 0
    array: tuple[int, int] | None = None
    queue: str = "default"
    group: str | None = None
    kind: str | None = None

    @property
    def key(self) -> GroupKey:
        return GroupKey(self.priority, 1000, self.request, self.array, self.queue, self.group, self.kind)


def lines(waiting: Iterable[Work]) -> dict[GroupKey, Line]:
    groups: dict[GroupKey, Line] = {}
    for work in waiting:
        groups.setdefault(work.key, Line()).add(work.job_id, work.since, work.limit)
    return groups


@dataclass(frozen=True, slots=True)
class Runs:
    work: Work
    started: float
    gpus: tuple[str, ...]


@dataclass
class Stream:
    """The world that the planner is asked about, again and again."""

    cards: Mapping[str, int]
    policy: Policy = field(default_factory=Policy)
    queues: Mapping[str, Queue] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)
    predictions: Predictions = field(default_factory=Predictions)
    now: float = 0.0
    waiting: dict[int, Work] = field(default_factory=dict)
    running: dict[int, Runs] = field(default_factory=dict)
    reserved: tuple[Reservation, ...] = ()
    #: when each job started
    started: dict[int, float] = field(default_factory=dict)
    #: what the planner said last
    last: Plan | None = None
    #: called after each plan, with it, before its starts are made
    look: Callable[[Snapshot, list[GpuState], Plan], None] = lambda *_: None

    def gpus(self) -> list[GpuState]:
        found: dict[str, list[Claim]] = {uuid: [] for uuid in self.cards}
        for run in self.running.values():
            for uuid in run.gpus:
                found[uuid].append(Claim(run.work.job_id, 1, uuid, run.work.request.vram))
        return [card(int(uuid[4:]), total, found[uuid]) for uuid, total in self.cards.items()]

    def ends(self, run: Runs) -> float:
        """As the daemon counts it: by the limit, without one by the prediction, else never."""
        if run.work.limit < inf:
            return run.started + run.work.limit
        known = self.predictions.of(run.work.kind)
        return inf if known is None else self.now + known.left(self.now - run.started)

    def snapshot(self) -> Snapshot:
        return Snapshot(
            groups=lines(sorted(self.waiting.values(), key=lambda work: work.job_id)),
            host=HOST,
            now=self.now,
            policy=self.policy,
            ongoing=[self.ongoing(run) for run in self.running.values()],
            queues=self.queues,
            stopped=self.stopped,
            predictions=self.predictions,
            reserved=self.reserved,
        )

    def ongoing(self, run: Runs) -> Ongoing:
        work, array = run.work, run.work.array
        return Ongoing(
            work.job_id,
            work.request.cpus,
            work.request.ram,
            self.ends(run),
            gpus=len(run.gpus),
            queue=work.queue,
            array_id=array[0] if array else None,
        )

    def plan(self) -> Plan:
        """Ask the planner once, and start what it says."""
        snapshot, gpus = self.snapshot(), self.gpus()
        result = plan(snapshot, gpus)
        self.last = result
        self.look(snapshot, gpus, result)
        for start in result.starts:
            work = self.waiting.pop(start.job_id)
            self.started[work.job_id] = self.now
            self.running[work.job_id] = Runs(work, self.now, start.gpus)
        self.reserved = result.reservations
        self.check()
        return result

    def check(self) -> None:
        """Nothing is given twice."""
        runs = list(self.running.values())
        assert sum(r.work.request.cpus for r in runs) <= HOST.cpus
        assert sum(r.work.request.ram for r in runs) <= HOST.ram
        for uuid, total in self.cards.items():
            here = [r.work.request.vram for r in runs if uuid in r.gpus]
            assert here == [None] or sum(size or total * GiB + 1 for size in here) <= total * GiB
        for run in runs:
            request = run.work.request
            assert len(set(run.gpus)) == len(run.gpus)
            assert request.gpus <= len(run.gpus) <= request.gpus_at_most
        for (array_id, limit), count in Counter(r.work.array for r in runs if r.work.array).items():
            assert count <= limit, f"{count} of array {array_id} run"
        for name, queue in self.queues.items():
            inside = [r for r in runs if r.work.queue == name]
            assert queue.max_jobs is None or len(inside) <= queue.max_jobs
            assert queue.max_gpus is None or sum(len(r.gpus) for r in inside) <= queue.max_gpus
            assert queue.gpus is None or all(queue.gpus.issuperset(r.gpus) for r in inside)

    def run(self, works: Iterable[Work]) -> None:
        """Everything that comes, until nothing runs and nothing more comes. A job never outlives its limit."""
        coming = sorted(works, key=lambda work: (work.comes, work.job_id))
        while coming or self.running:
            over = {n: run.started + min(run.work.lasts, run.work.limit) for n, run in self.running.items()}
            self.now = min([*over.values(), *(work.comes for work in coming[:1])])
            for job_id, end in over.items():
                if end <= self.now:
                    del self.running[job_id]
            while coming and coming[0].comes <= self.now:
                work = coming.pop(0)
                self.waiting[work.job_id] = work
            self.plan()
