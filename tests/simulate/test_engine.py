"""The simulator against an oracle that counts GPUs, loads whose answers are known, and what holds for any run."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.errors import CannotFit
from gpuq.model import GiB, Order, Queue, Settings
from gpuq.simulate.cards import Cards
from gpuq.simulate.engine import simulate
from gpuq.simulate.parallel import WORTH_A_PROCESS, run_all
from gpuq.simulate.results import Run, summary
from gpuq.simulate.rules import PLAIN, current, queues_of
from gpuq.simulate.trace import ALONE, NO_LIMIT, SECOND, WHOLE, Member, Trace
from tests.simulate import oracle
from tests.simulate.oracle import Job

POLICIES = list(PLAIN)


def trace_of(jobs: list[Job], vram: list[int] | None = None, members: list[Member] | None = None) -> Trace:
    trace = Trace()
    for n, job in enumerate(jobs):
        limit = NO_LIMIT if job.limit is None else job.limit * SECOND
        trace.add(
            f"j{n}",
            job.submit * SECOND,
            job.gpus,
            job.duration * SECOND,
            limit=limit,
            vram=vram[n] if vram else WHOLE,
            priority=job.priority,
            member=members[n] if members else ALONE,
        )
    return trace.close()


def run(jobs: list[Job], gpus: int, policy: str) -> Run:
    return simulate(trace_of(jobs), (0,) * gpus, PLAIN[policy])


def starts(jobs: list[Job], gpus: int, policy: str) -> list[float]:
    origin = jobs[0].submit
    return [at / SECOND + origin for at in run(jobs, gpus, policy).start]


GPUS = 4
JOB = st.builds(
    Job,
    submit=st.integers(0, 12),
    gpus=st.integers(1, GPUS),
    duration=st.integers(0, 9),
    limit=st.one_of(st.none(), st.integers(1, 12)),
    priority=st.sampled_from([0, 0, 0, 1]),
)
JOBS = st.lists(JOB, min_size=1, max_size=12).map(lambda jobs: sorted(jobs, key=lambda job: job.submit))


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs=JOBS, more=st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_every_start_is_the_oracles(policy: str, jobs: list[Job], more: int) -> None:
    assert starts(jobs, GPUS + more, policy) == oracle.starts(jobs, GPUS + more, policy)


def sixty(seed: int, most: int = 8) -> list[Job]:
    """A trace as published ones are: mostly small jobs, some on all GPUs, times over two orders of magnitude."""
    dice = random.Random(seed)
    sizes = [size for size in (1, 1, 1, 2, 4, 8) if size <= most]
    at, jobs = 0, []
    for _ in range(60):
        at += dice.randint(20, 44)
        jobs.append(Job(at, dice.choice(sizes), dice.choice([121, 121, 130, dice.randint(120, 1800)])))
    return jobs


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("gpus", [8, 11, 16])
@pytest.mark.parametrize("seed", range(5))
def test_sixty_jobs(seed: int, gpus: int, policy: str) -> None:
    jobs = sixty(seed)
    assert starts(jobs, gpus, policy) == oracle.starts(jobs, gpus, policy)


def test_the_oracle_tells_the_policies_apart() -> None:
    found = {policy: tuple(oracle.starts(sixty(0), 8, policy)) for policy in POLICIES}
    assert len(set(found.values())) == len(POLICIES)


# --- loads with known answers ---------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_one_gpu_serves_a_batch_one_after_the_other(policy: str) -> None:
    jobs = [Job(0, 1, 7)] * 20
    found = summary(trace_of(jobs), run(jobs, 1, policy))
    assert starts(jobs, 1, policy) == [7 * n for n in range(20)]
    assert (found.wait.mean, found.wait.max, found.makespan) == (7 * 9.5, 7 * 19, 140)
    assert found.completion.mean == 7 * 10.5 and found.utilisation == 1.0


def test_a_queue_that_grows_at_a_known_rate() -> None:
    # D/D/1: each comes 4 s after the one before and takes 5 s, so the nth waits n seconds
    jobs = [Job(4 * n, 1, 5) for n in range(50)]
    found = summary(trace_of(jobs), run(jobs, 1, "fifo"))
    assert found.wait.mean == 24.5 and found.wait.max == 49 and found.wait.median == 24.5
    assert found.wait.p95 == pytest.approx(46.55)


def test_one_gpu_of_half_the_load_makes_nobody_wait() -> None:
    jobs = [Job(10 * n, 1, 5) for n in range(50)]
    found = summary(trace_of(jobs), run(jobs, 1, "easy"))
    assert found.wait.max == 0 and found.completion.mean == 5
    assert found.utilisation == pytest.approx(250 / 495)


def test_the_textbook_backfill() -> None:
    # 4 GPUs: one job has 2 until 10; the head wants all 4, so the shadow time is 10, with nothing left over
    jobs = [Job(0, 2, 10), Job(1, 4, 5), Job(2, 2, 9), Job(2, 2, 8), Job(3, 1, 7)]
    assert starts(jobs, 4, "easy") == [0, 10, 15, 2, 15]
    assert starts(jobs, 4, "fifo") == [0, 10, 15, 15, 23]
    assert starts(jobs, 4, "fit-first") == [0, 18, 2, 10, 11]


def test_a_long_job_backfills_onto_what_the_head_leaves() -> None:
    # the head wants 3 of 4 at 10: one is left over, for as long as somebody likes, and no second one
    jobs = [Job(0, 2, 10), Job(1, 3, 5), Job(2, 1, 100), Job(2, 1, 100)]
    assert starts(jobs, 4, "easy") == [0, 10, 2, 15]


def test_shortest_first() -> None:
    jobs = [Job(0, 1, 5), Job(1, 1, 9), Job(2, 1, 3), Job(3, 1, 3), Job(4, 1, 1)]
    assert starts(jobs, 1, "sjf") == [0, 12, 6, 9, 5]


def test_a_limit_is_the_estimate_and_the_end() -> None:
    jobs = [Job(0, 1, 100, limit=10), Job(0, 1, 1, limit=50), Job(0, 1, 30)]
    assert starts(jobs, 1, "sjf") == [0, 40, 10]
    assert trace_of(jobs).cut() == 1
    assert summary(trace_of(jobs), run(jobs, 1, "fifo")).makespan == 41


@pytest.mark.parametrize("policy", POLICIES)
def test_higher_priority_is_first_under_every_policy(policy: str) -> None:
    jobs = [Job(0, 1, 5), Job(1, 1, 1), Job(2, 1, 9, priority=1)]
    assert starts(jobs, 1, policy) == [0, 14, 5]


def test_ends_come_before_starts_of_the_same_moment() -> None:
    assert starts([Job(0, 4, 5), Job(5, 4, 5)], 4, "fifo") == [0, 5]


def test_decimals_add_up() -> None:
    trace = Trace()
    for name, at in (("a", 100_000), ("b", 300_000)):  # 0.1 + 0.2 is more than 0.3 in binary
        trace.add(name, at, 1, 200_000)
    found = simulate(trace.close(), (0,), PLAIN["easy"])
    assert list(found.start) == [0, 200_000]


# --- the host's own policy ------------------------------------------------------------------------


def own(jobs: list[Job], gpus: int, members: list[Member] | None = None, *queues: Queue, **changes: Any) -> list[float]:
    """Starts under the host's settings, its defaults but for the changes."""
    rules = current(replace(Settings(), **changes), {queue.name: queue for queue in queues})
    return [at / SECOND for at in simulate(trace_of(jobs, members=members), (0,) * gpus, rules).start]


@given(jobs=JOBS)
@settings(max_examples=100, deadline=None)
def test_the_hosts_settings_choose_among_the_plain_policies(jobs: list[Job]) -> None:
    for order in (Order.FIFO, Order.FIT_FIRST):
        assert own(jobs, GPUS, order=order, ageing=0.0) == [at / SECOND for at in run(jobs, GPUS, order.value).start]


def test_ageing_is_the_hosts() -> None:
    # one point of priority is worth an hour: who came more than that before goes first
    early, late = Job(0, 1, 10), Job(1, 1, 7200)
    for waited, ahead in ((3500, False), (3700, True)):
        urgent = Job(1 + waited, 1, 10, priority=1)
        found = own([late, Job(1, 1, 10), urgent], 1, ageing=3600.0)
        assert (found[1] < found[2]) is ahead
        assert own([late, Job(1, 1, 10), urgent], 1, ageing=0.0)[1] > 7200
    assert own([early, late], 1) == [0, 10]


def test_limits_of_queues_and_arrays_are_the_hosts() -> None:
    jobs = [Job(0, 1, 10)] * 4
    assert own(jobs, 4) == [0, 0, 0, 0]
    assert own(jobs, 4, [Member("night")] * 4, Queue("night", max_jobs=2)) == [0, 0, 10, 10]
    assert own(jobs, 4, [Member("night")] * 4, Queue("night", max_gpus=1)) == [0, 10, 20, 30]
    assert own(jobs, 4, [Member("night")] * 4, Queue("night", gpus=frozenset({"gpu2"}))) == [0, 10, 20, 30]
    assert own(jobs, 4, [Member(array=(1, 3))] * 4) == [0, 0, 0, 10]
    assert own(jobs, 1, [Member(), Member(), Member("first"), Member()], Queue("first", 5), ageing=0.0) == [
        10,
        20,
        0,
        30,
    ]
    later = [Job(0, 2, 10), Job(5, 1, 10)]  # what runs already counts, too
    assert own(later, 4, [Member("night")] * 2, Queue("night", max_jobs=1)) == [0, 10]
    assert own(later, 4, [Member("night")] * 2, Queue("night", max_gpus=2)) == [0, 10]
    assert own(later, 4, [Member("night")] * 2, Queue("night", max_gpus=3)) == [0, 5]
    assert own(later, 4, [Member(array=(1, 1))] * 2) == [0, 10]
    trace = trace_of(jobs, members=[Member("night", (1, 1))] * 4)
    assert list(simulate(trace, (0,) * 4, PLAIN["easy"]).start) == [0, 0, 0, 0], "and nobody else's"


def test_a_job_that_a_limit_keeps_for_ever_is_told_of() -> None:
    with pytest.raises(CannotFit, match="under current job j1 never starts: queue night has at most 1 GPU"):
        own([Job(0, 1, 5), Job(0, 2, 5)], 4, [Member("night")] * 2, Queue("night", max_gpus=1))


def test_queues_as_the_host_tells_them() -> None:
    view = {"name": "night", "priority": 3, "gpus": ["uuid-b"], "max_jobs": 4, "max_gpus": None, "state": "paused"}
    queue = queues_of([view], ["uuid-a", "uuid-b"])["night"]
    assert (queue.priority, queue.gpus, queue.max_jobs, queue.max_gpus) == (3, frozenset({"gpu1"}), 4, None)
    assert not queue.paused, "what is paused today says nothing of the past"
    assert queues_of([view], None)["night"].gpus is None
    assert queues_of([{**view, "gpus": None}], ["uuid-a"])["night"].gpus is None


# --- what holds for any run -----------------------------------------------------------------------

CARDS = (24 * GiB, 24 * GiB, 80 * GiB)
SHARE = st.sampled_from([WHOLE, 5 * GiB, 12 * GiB, 20 * GiB])


def used_too_much(trace: Trace, found: Run, cards: Cards) -> list[str]:
    """Moments at which a GPU has more than it can hold."""
    wrong = []
    for now in sorted(set(found.start)):
        for index, size in enumerate(cards):
            there = [
                trace.vram[row]
                for row in range(len(trace))
                if found.start[row] <= now < found.end[row] and index in found.gpus(row, trace.gpus[row])
            ]
            if (WHOLE in there and len(there) > 1) or sum(there) > size:
                wrong.append(f"gpu{index} at {now}: {there}")
    return wrong


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs=JOBS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_every_job_runs_once_for_its_time_on_gpus_that_can_hold_it(
    policy: str, jobs: list[Job], data: st.DataObject
) -> None:
    jobs = [job._replace(gpus=min(job.gpus, len(CARDS))) for job in jobs]
    trace = trace_of(jobs, [data.draw(SHARE) for _ in jobs])
    found = simulate(trace, CARDS, PLAIN[policy])
    for row in range(len(trace)):
        assert found.start[row] >= trace.submit[row]
        assert found.end[row] - found.start[row] == trace.runs(row)
        assert len(set(found.gpus(row, trace.gpus[row]))) == trace.gpus[row]
    assert not used_too_much(trace, found, CARDS)
    assert 0 <= found.busy <= max(found.end) * len(CARDS)


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs=JOBS, data=st.data())
@settings(max_examples=100, deadline=None)
def test_groups_that_are_not_looked_at_make_no_difference(policy: str, jobs: list[Job], data: st.DataObject) -> None:
    jobs = [job._replace(gpus=min(job.gpus, len(CARDS))) for job in jobs]
    trace = trace_of(jobs, [data.draw(SHARE) for _ in jobs])
    some, every = simulate(trace, CARDS, PLAIN[policy]), simulate(trace, CARDS, replace(PLAIN[policy], limited=True))
    assert some.start == every.start
    assert all(some.gpus(row, job.gpus) == every.gpus(row, job.gpus) for row, job in enumerate(jobs))


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs=JOBS)
@settings(max_examples=50, deadline=None)
def test_the_same_input_gives_the_same_output(policy: str, jobs: list[Job]) -> None:
    one, other = run(jobs, GPUS, policy), run(jobs, GPUS, policy)
    assert (one.start, one.end) == (other.start, other.end)
    assert all(one.gpus(row, job.gpus) == other.gpus(row, job.gpus) for row, job in enumerate(jobs))


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs=JOBS, data=st.data())
@settings(max_examples=50, deadline=None)
def test_what_jobs_are_called_changes_nothing(policy: str, jobs: list[Job], data: st.DataObject) -> None:
    trace, renamed = trace_of(jobs), trace_of(jobs)
    renamed.ids = data.draw(st.permutations(trace.ids))
    one, other = (simulate(some, (0,) * GPUS, PLAIN[policy]) for some in (trace, renamed))
    assert one.start == other.start


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs=JOBS, data=st.data())
@settings(max_examples=50, deadline=None)
def test_rows_may_come_in_any_order(policy: str, jobs: list[Job], data: st.DataObject) -> None:
    jobs = [job._replace(submit=2 * n) for n, job in enumerate(jobs)]
    rows = data.draw(st.permutations(range(len(jobs))))
    trace, mixed = trace_of(jobs), Trace()
    for row in rows:
        limit = NO_LIMIT if (told := jobs[row].limit) is None else told * SECOND
        at, takes = (2 * row + 100) * SECOND, jobs[row].duration * SECOND
        mixed.add(f"j{row}", at, jobs[row].gpus, takes, limit=limit, priority=jobs[row].priority)
    mixed.close()
    assert mixed.ids == trace.ids and mixed.origin == 100 * SECOND
    assert mixed.sorted == (list(rows) != sorted(rows))
    one, other = (simulate(some, (0,) * GPUS, PLAIN[policy]) for some in (trace, mixed))
    assert one.start == other.start


def test_several_at_once_in_other_processes() -> None:
    dice = random.Random(1)
    jobs = [Job(n // 3, dice.randint(1, 4), dice.randint(1, 9)) for n in range(WORTH_A_PROCESS)]
    trace = trace_of(jobs)
    told: list[int] = []
    tasks = [(PLAIN[policy], (0,) * gpus) for policy, gpus in (("fifo", 8), ("sjf", 4), ("fit-first", 6))]
    for one, (rules, cards) in zip(run_all(trace, tasks, told.append), tasks, strict=True):
        alone = simulate(trace, cards, rules)
        assert (one.policy, one.cards) == (rules.name, cards)
        assert (one.start, one.end, one.busy) == (alone.start, alone.end, alone.busy)
        assert one.gpus(7, jobs[7].gpus) == alone.gpus(7, jobs[7].gpus)
    assert told[-1] == 3 * len(jobs) and told == sorted(told)
