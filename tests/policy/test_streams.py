"""What the planner promises, over random streams of jobs on a virtual clock (`tests/policy/stream.py`).

That no card, CPU, byte of host memory, array or queue is ever given twice, `Stream.check` says after each plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.model import Order, Queue, Reason
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.placing import place
from gpuq.policy.predict import Predictions
from gpuq.policy.reserve import enough
from gpuq.policy.scheduler import RESERVATIONS, Plan, Policy, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from tests.policy.stream import HOST, Stream, Work, cpu, share, whole

REQUESTS = st.one_of(
    st.builds(share, st.integers(1, 8), st.integers(1, 3), st.integers(0, 2)),
    st.builds(whole, st.integers(1, 3), st.integers(0, 1)),
    st.builds(cpu, st.integers(1, 4), st.integers(0, 12)),
)
RANGES = st.builds(lambda some, more: replace(some, most=some.gpus + more), REQUESTS, st.integers(0, 2))
LIMITS = st.sampled_from([10.0, 20.0, 50.0])
#: All that hold GPUs are of one size, so that every request above fits an empty host.
CARDS = st.integers(3, 4).map(lambda count: {f"GPU-{n}": 8 for n in range(count)})
QUEUES = {
    "one": Queue("one", max_jobs=1),
    "few": Queue("few", max_gpus=3, priority=1),
    "some": Queue("some", gpus=frozenset({"GPU-1", "GPU-2", "GPU-3"})),
    "shut": Queue("shut", paused=True),
}


@st.composite
def streams(
    draw: st.DrawFn, limits: st.SearchStrategy[float] = LIMITS, priorities: int = 0, *, bounded: bool = False
) -> list[Work]:
    """Jobs in the order of their ids, which they were submitted in. Some may start only later: they were held, or had
    been tried before. With `bounded` there are limits of arrays and queues as well, and ranges."""
    found, now = [], 0.0
    for n in range(1, draw(st.integers(2, 14)) + 1):
        now += draw(st.sampled_from([0.0, 0.0, 3.0, 8.0]))
        held = draw(st.sampled_from([0.0, 0.0, 0.0, 15.0]))
        limit = draw(limits)
        lasts = draw(st.sampled_from([1.0, 9.0, 10.0, 20.0, 50.0]))
        work = Work(n, draw(REQUESTS), now, now + held, limit, lasts, draw(st.integers(0, priorities)))
        if bounded:
            array = draw(st.sampled_from([None, None, (1, 1), (2, 2)]))
            queue = draw(st.sampled_from(["default", "default", *QUEUES]))
            request = work.request if not work.request.gpus else draw(RANGES.filter(lambda some: some.gpus > 0))
            group = draw(st.sampled_from([None, None, "broken"]))
            work = replace(work, request=request, array=array, queue=queue, group=group)
        found.append(work)
    return found


POLICIES = st.builds(
    Policy,
    order=st.sampled_from(list(Order)),
    ageing=st.sampled_from([0.0, 10.0]),
    reserve_after=st.sampled_from([0.0, 20.0]),
    reservations=st.sampled_from([1, 2, RESERVATIONS]),
)


def gated(snapshot: Snapshot, work: Work, running: Mapping[int, Work]) -> bool:
    """Whether something other than room keeps a job back, by the rules as a user would say them."""
    queue = snapshot.queues.get(work.queue, Queue())
    inside = [other for other in running.values() if other.queue == work.queue]
    used = sum(one.gpus for one in snapshot.ongoing if one.queue == work.queue)
    if queue.paused or work.group in snapshot.stopped:
        return True
    if queue.max_jobs is not None and len(inside) >= queue.max_jobs:
        return True
    if queue.max_gpus is not None and used + work.request.gpus > queue.max_gpus:
        return True
    members = sum(other.array is not None and other.array == work.array for other in running.values())
    return work.array is not None and members >= work.array[1]


class WithCause(Stream):
    """Sees to it that nothing waits but for a reason that holds once the starts have been made."""

    def check(self) -> None:
        super().check()
        assert self.last is not None
        told = {key: verdict.reason for key, verdict in self.last.verdicts.items()}
        snapshot, gpus = self.snapshot(), self.gpus()
        running = {n: run.work for n, run in self.running.items()}
        for work in self.waiting.values():
            room = place(work.request, gpus, self.queues.get(work.queue, Queue()).gpus) is not None
            room = room and enough(work.request, HOST, snapshot.cpus_used, snapshot.ram_used)
            if not room or gated(snapshot, work, running):
                continue
            assert self.policy.order is not Order.FIT_FIRST, f"job {work.job_id} could start, and waits"
            wanted = Reason.RESERVATION if self.policy.order is Order.EASY else Reason.PRIORITY
            assert told[work.key] is wanted or any(other.key == work.key for other in self._before(work))
            assert self.reserved or self.policy.order is Order.FIFO

    def _before(self, work: Work) -> list[Work]:
        """The verdict on a group is that on the first of its jobs that does not start."""
        return [other for other in self.waiting.values() if other.job_id < work.job_id]


@settings(max_examples=150)
@given(CARDS, streams(st.sampled_from([10.0, 30.0, inf]), 2, bounded=True), POLICIES)
def test_nothing_is_given_twice_and_nothing_waits_without_cause(
    cards: dict[str, int], works: list[Work], policy: Policy
) -> None:
    """A job that waits after a plan is kept back by a limit, has no room, or is told of the job that it must let by."""
    stream = WithCause(cards, policy, QUEUES, {"broken": "3 failures in a row"})
    stream.run(works)
    assert not any(work.group == "broken" or work.queue == "shut" for work in works if work.job_id in stream.started)


class Promises:
    """Sees to it that the first reservation is kept: it never moves later, and its job starts by then.

    A reservation ends when a job of higher base priority waits. The second and later ones, where a policy has them,
    are made anew behind the first in each plan, and are no promise.
    """

    def __init__(self) -> None:
        self.job_id = 0
        self.at = inf
        self.seen = 0

    def look(self, snapshot: Snapshot, _: list[GpuState], result: Plan) -> None:
        started = {start.job_id for start in result.starts}
        now_held = {reservation.job_id: reservation.at for reservation in result.reservations}
        mine = next((key for key, line in snapshot.groups.items() if self.job_id in line), None)
        if mine is not None and not any(snapshot.priority(key) > snapshot.priority(mine) for key in snapshot.groups):
            assert snapshot.now <= self.at, f"job {self.job_id} was to start by {self.at}"
            assert self.job_id in started or now_held.get(self.job_id, inf) <= self.at
            assert self.job_id in started or result.reservations[0].job_id == self.job_id
            self.seen += 1
        self.job_id, self.at = next(iter(now_held.items()), (0, inf))


@settings(max_examples=200)
@given(CARDS, streams(priorities=1), st.sampled_from([0.0, 10.0]), st.sampled_from([1, 2, RESERVATIONS]))
def test_no_reservation_is_delayed(cards: dict[str, int], works: list[Work], ageing: float, most: int) -> None:
    """All jobs have limits, and end then or before. Older ones that come back take nothing from a holder."""
    stream = Stream(cards, Policy(ageing=ageing, reservations=most), look=Promises().look)
    stream.run(works)
    assert len(stream.started) == len(works)


@settings(max_examples=100)
@given(CARDS, streams(priorities=1, bounded=True), st.sampled_from([1, RESERVATIONS]))
def test_no_reservation_is_delayed_where_arrays_and_queues_have_limits(
    cards: dict[str, int], works: list[Work], most: int
) -> None:
    Stream(cards, Policy(reservations=most), QUEUES, {"broken": "x"}, look=Promises().look).run(works)


@settings(max_examples=200)
@given(CARDS, streams(priorities=2), st.sampled_from([0.0, 10.0, 100.0]), st.sampled_from([1, 2, RESERVATIONS]))
def test_each_job_starts_within_a_bound(cards: dict[str, int], works: list[Work], ageing: float, most: int) -> None:
    """Every job has a limit of at most L, and nothing else than room keeps it back.

    The rank of a job, `since - ageing * priority` (without ageing its priority, then its id), never changes, so that
    the jobs that ever go ahead of it are known: those of smaller rank, and those, at most as many as there are
    reservations, that held one when it came. Let t be when the last of them has come, or itself. From then on, whoever
    is first of those that wait starts within L: all that runs has ended by then, and nothing that was started meanwhile
    is in its way, or it would have delayed the reservation. So the job itself starts before t + (n + r + 1) * L.
    """
    longest = max(work.limit for work in works)
    policy = Policy(ageing=ageing, reservations=most)
    stream = Stream(cards, policy)
    stream.run(works)
    assert len(stream.started) == len(works), "nothing runs, and a job waits"
    for work in works:
        ahead = [other for other in works if _rank(other, ageing) < _rank(work, ageing)]
        last = max(other.comes for other in [work, *ahead])
        assert stream.started[work.job_id] <= last + (len(ahead) + most + 1) * longest


def _rank(work: Work, ageing: float) -> tuple[float, int]:
    return (work.since - ageing * work.priority if ageing else -work.priority, work.job_id)


# --- the same input gives the same plan -----------------------------------------------------------


@st.composite
def moments(draw: st.DrawFn) -> tuple[Snapshot, list[GpuState]]:
    """What the planner is asked somewhere in the middle of a stream."""
    policy = draw(POLICIES)
    limits = st.sampled_from([10.0, 30.0, inf])
    stream = Stream(draw(CARDS), policy, QUEUES, {"broken": "x"})
    asked: list[tuple[Snapshot, list[GpuState]]] = []
    stream.look = lambda snapshot, gpus, _: asked.append((snapshot, gpus))
    stream.run(draw(streams(limits, 2, bounded=True)))
    return draw(st.sampled_from(asked))


@settings(max_examples=100)
@given(moments(), st.randoms(use_true_random=False))
def test_the_order_in_which_groups_came_is_of_no_account(
    moment: tuple[Snapshot, list[GpuState]], random: Random
) -> None:
    snapshot, gpus = moment
    result = plan(snapshot, gpus)
    assert plan(snapshot, gpus) == result
    groups = list(snapshot.groups.items())
    random.shuffle(groups)
    ongoing = list(snapshot.ongoing)
    random.shuffle(ongoing)
    random.shuffle(gpus)
    assert plan(replace(snapshot, groups=dict(groups), ongoing=ongoing), gpus) == result


@settings(max_examples=100)
@given(moments(), st.randoms(use_true_random=False))
def test_of_equal_jobs_only_the_ids_change(moment: tuple[Snapshot, list[GpuState]], random: Random) -> None:
    """Jobs that differ only in their owner, which is nothing to the planner, exchange him; and all get larger ids."""
    snapshot, gpus = moment
    lines: dict[GroupKey, Line] = {}
    for key, line in snapshot.groups.items():
        for job_id in line:
            other = replace(key, owner=random.choice([1000, 1001]))
            lines.setdefault(other, Line()).add(job_id * 3 + 1, line.since(job_id), line.length(job_id))
    whose = {job_id: key for key, line in lines.items() for job_id in line}
    reserved = [
        replace(one, job_id=one.job_id * 3 + 1, key=whose[one.job_id * 3 + 1])
        for one in snapshot.reserved
        if one.job_id * 3 + 1 in whose
    ]
    one, two = plan(snapshot, gpus), plan(replace(snapshot, groups=lines, reserved=reserved), gpus)
    assert [(s.job_id * 3 + 1, s.gpus) for s in one.starts] == [(s.job_id, s.gpus) for s in two.starts]
    assert [(r.job_id * 3 + 1, r.at, r.gpus) for r in one.reservations] == [
        (r.job_id, r.at, r.gpus) for r in two.reservations
    ]


# --- predictions ----------------------------------------------------------------------------------


def learned(*seconds: float) -> Predictions:
    return Predictions([("train-7", length) for length in seconds])


def backfilled(stream: Stream, *works: Work) -> list[int]:
    """Job 1 runs until 100, job 2 is for both GPUs; which of the others start at once."""
    stream.now = 0.0
    stream.waiting = {w.job_id: w for w in (Work(1, whole(), limit=100.0), Work(2, whole(2), limit=10.0), *works)}
    stream.plan()
    assert [(r.job_id, r.at) for r in stream.reserved] == [(2, 100.0)]
    return sorted(stream.started.keys() - {1})


def test_a_kind_that_has_run_three_times_counts_as_ending_then() -> None:
    job = Work(3, whole(), kind="train-#")
    for runs, expected in [((90.0, 80.0), []), ((90.0, 80.0, 100.0), [3]), ((90.0, 80.0, 101.0), [])]:
        assert backfilled(Stream({"GPU-0": 8, "GPU-1": 8}, predictions=learned(*runs)), job) == expected
    stream = Stream({"GPU-0": 8, "GPU-1": 8}, predictions=learned(90.0, 80.0, 100.0))
    assert backfilled(stream, replace(job, kind="eval-#")) == []


def test_a_limit_goes_before_a_prediction() -> None:
    """It is what will be kept; and of the same kind those count that nothing limits."""
    stream = Stream({"GPU-0": 8, "GPU-1": 8}, predictions=learned(10.0, 10.0, 10.0))
    long, none = Work(3, whole(), limit=500.0, kind="train-#"), Work(4, whole(), kind="train-#")
    assert backfilled(stream, long, none) == [4]


def test_one_that_overruns_its_prediction_is_expected_to_go_on() -> None:
    """So the reservation behind it has a time all along, which is never past, and moves on."""
    stream = Stream({"GPU-0": 8}, predictions=learned(10.0, 10.0, 10.0))
    stream.waiting = {1: Work(1, whole(), kind="train-#"), 2: Work(2, whole(), limit=5.0)}
    at = []
    for stream.now in (0.0, 9.0, 10.0, 40.0):
        stream.plan()
        at += [reservation.at for reservation in stream.reserved]
    assert at[:2] == [10.0, 10.0]
    assert at[2] > 10.0 and at[3] > 40.0


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=14), st.floats(0.001, 1e7))
def test_what_is_left_of_a_prediction(runs: list[float], elapsed: float) -> None:
    """Never nothing, and what is likely is never more than what planning counts with."""
    known = learned(*runs).of("train-#")
    assert known is not None
    assert known.longest == max(runs[-10:])
    assert min(runs[-10:]) <= known.likely <= known.longest
    assert 0 < known.likely_left(elapsed) <= known.left(elapsed)
    if elapsed < known.longest:
        assert elapsed + known.left(elapsed) >= known.longest * (1 - 1e-9)


def test_what_is_remembered_of_runs() -> None:
    known = learned(*[float(n) for n in range(1, 14)])
    found = known.of("train-#")
    assert found is not None and (found.likely, found.longest) == (8.5, 13.0)
    known.learn("train-12", 100.0)
    found = known.of("train-#")
    assert found is not None and found.longest == 100.0
    known.learn("train-12", -1.0)
    assert known.of("train-#") == found
    assert known.of(None) is None and known.of("train-7") is None
