"""Queues: what each gate says, and that no start ever exceeds what a queue allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.errors import UsageError
from gpuq.model import GiB, Host, Queue, Reason, Request, Settings, Wishes
from gpuq.policy.explain import impossible
from gpuq.policy.queues import gate, time_limit
from gpuq.policy.reserve import Ongoing
from gpuq.policy.scheduler import Snapshot, plan
from gpuq.policy.waiting import Waiting
from tests.policy.build import HOST, make_gpu, make_job

CPU = Request(0, None, 1, 0)
ONE, TWO, FOUR = (Request(n, None, 0, 0) for n in (1, 2, 4))
BOTH = frozenset({"GPU-0", "GPU-1"})


@pytest.mark.parametrize(
    ("queue", "request_", "jobs", "gpus", "reason", "text"),
    [
        (Queue(), FOUR, 9, 9, None, ""),
        (Queue("q", paused=True), CPU, 0, 0, Reason.QUEUE_PAUSED, "queue q is paused"),
        (Queue("q", paused=True, why="a b"), CPU, 0, 0, Reason.QUEUE_PAUSED, "queue q is paused: a b"),
        (Queue("q", draining=True), CPU, 0, 0, None, ""),
        (Queue("q", max_jobs=2), CPU, 1, 0, None, ""),
        (Queue("q", max_jobs=2), CPU, 2, 0, Reason.LIMIT, "2 of at most 2 jobs of queue q run"),
        (Queue("q", max_jobs=2), CPU, 5, 0, Reason.LIMIT, "5 of at most 2 jobs of queue q run"),
        (Queue("q", max_gpus=2), TWO, 0, 0, None, ""),
        (Queue("q", max_gpus=2), TWO, 1, 1, Reason.LIMIT, "queue q has 1 of at most 2 GPUs, and 2 are asked for"),
        (Queue("q", max_gpus=2), ONE, 1, 2, Reason.LIMIT, "queue q has 2 of at most 2 GPUs, and 1 is asked for"),
        (Queue("q", max_gpus=2), CPU, 1, 4, None, ""),
        (Queue("q", max_gpus=2), FOUR, 0, 0, Reason.LIMIT, "queue q has at most 2 GPUs at a time, and 4 GPUs are"),
        (Queue("q", gpus=BOTH), TWO, 0, 0, None, ""),
        (Queue("q", gpus=BOTH), FOUR, 0, 0, Reason.LIMIT, "queue q may have 2 GPUs, and 4 GPUs are asked for"),
        (Queue("q", max_gpus=0), CPU, 0, 0, None, ""),
    ],
)  # fmt: skip
def test_gates(queue: Queue, request_: Request, jobs: int, gpus: int, reason: Reason | None, text: str) -> None:
    found = gate(queue, request_, jobs, gpus)
    assert found is None if reason is None else found is not None
    if found is not None:
        assert found.reason is reason and found.text.startswith(text)


@pytest.mark.parametrize(
    ("default", "most", "given", "own", "limit"),
    [
        (None, None, None, None, None),
        (None, None, 5.0, 7.0, 5.0),
        (None, None, None, 7.0, 7.0),
        (3.0, None, None, 7.0, 3.0),
        (3.0, 4.0, None, None, 3.0),
        (3.0, 4.0, 4.0, None, 4.0),
        (None, 4.0, None, None, 4.0),
        (None, 4.0, None, 7.0, 4.0),
        (None, 4.0, None, 2.0, 2.0),
    ],
)
def test_time_limits(
    default: float | None, most: float | None, given: float | None, own: float | None, limit: float | None
) -> None:
    assert time_limit(Queue("q", default_time=default, max_time=most), given, own) == limit


def test_a_limit_above_the_queues_is_refused() -> None:
    with pytest.raises(UsageError, match="--time 1h00m is more than queue q allows: 30m00s at most"):
        time_limit(Queue("q", max_time=1800.0), 3600.0, None)


CARDS = Host(8, 64 * GiB, capacities={"GPU-0": 24 * GiB, "GPU-1": 80 * GiB, "GPU-2": 24 * GiB})


@pytest.mark.parametrize(
    ("queue", "asked", "text"),
    [
        (Queue("q"), Request(3, GiB, 0, 0), None),
        (Queue("q", gpus=BOTH), Request(2, GiB, 0, 0), None),
        (Queue("q", gpus=BOTH), Request(3, GiB, 0, 0), "2 of 3 GPUs are for queue q: 3 are asked for"),
        (Queue("q", gpus=BOTH), Request(2, 40 * GiB, 0, 0), "2 of 3 GPUs are for queue q, 1 of them can hold"),
        (
            Queue("q", gpus=BOTH),
            Request(1, None, 0, 0, which=Wishes(only=("GPU-2",))),
            "2 of 3 GPUs are for queue q, 0 of them are named by --gpu-id: 1 is asked for",
        ),
        (Queue("q", max_gpus=1), TWO, "queue q has at most 1 GPU at a time, and 2 GPUs are asked for"),
        (Queue("q", gpus=frozenset(), max_gpus=0), CPU, None),
    ],
)  # fmt: skip
def test_what_a_queue_can_never_serve(queue: Queue, asked: Request, text: str | None) -> None:
    found = impossible(asked, CARDS, Settings(), queue, gpus_known=True)
    assert found == text or (text is not None and found is not None and found.startswith(text))


QUEUES = st.builds(
    Queue,
    name=st.just("q"),
    priority=st.integers(-1, 1),
    gpus=st.one_of(st.none(), st.sets(st.sampled_from([f"GPU-{n}" for n in range(4)])).map(frozenset)),
    max_jobs=st.one_of(st.none(), st.integers(1, 3)),
    max_gpus=st.one_of(st.none(), st.integers(0, 4)),
    paused=st.sampled_from([False, False, False, True]),
)
ASKED = st.builds(
    lambda gpus, more, vram, cpus: Request(gpus, vram if gpus else None, cpus, 0, gpus + more if gpus else 0),
    st.integers(0, 3),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(1, 12).map(lambda n: n * GiB)),
    st.integers(0, 2),
)
JOBS = st.lists(st.tuples(ASKED, st.sampled_from(["q", "r", "default"]), st.integers(-2, 2)), max_size=12)


@given(QUEUES, QUEUES, JOBS, st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_no_limit_of_a_queue_is_ever_exceeded_by_a_start(
    q: Queue, r: Queue, jobs: list[tuple[Request, str, int]], running: int, busy: int, cards: int
) -> None:
    queues = {"q": q, "r": replace(r, name="r")}
    waiting = Waiting()
    for number, (request, name, priority) in enumerate(jobs, 1):
        waiting.put(make_job(number, request=request, queue=name, priority=priority), 0, 0.0)
    held = {"q": (running, busy if running else 0)}
    ongoing = [Ongoing(900 + n, queue="q", gpus=0 if n else busy) for n in range(running)]
    snapshot = Snapshot(waiting.groups, HOST, queues=queues, ongoing=ongoing)
    result = plan(snapshot, [make_gpu(n) for n in range(cards)])
    by_queue: dict[str, list[Any]] = {}
    for start in result.starts:
        by_queue.setdefault(jobs[start.job_id - 1][1], []).append(start)
    for name, starts in by_queue.items():
        queue, (jobs_then, gpus_then) = queues.get(name, Queue()), held.get(name, (0, 0))
        given_gpus = sum(len(start.gpus) for start in starts)
        assert not queue.paused
        assert queue.max_jobs is None or jobs_then + len(starts) <= queue.max_jobs
        assert queue.max_gpus is None or not given_gpus or gpus_then + given_gpus <= queue.max_gpus
        assert queue.gpus is None or all(queue.gpus.issuperset(start.gpus) for start in starts)


def test_a_range_takes_no_more_than_its_queue_has_left() -> None:
    queue = Queue("q", max_gpus=3)
    waiting = Waiting()
    waiting.put(make_job(1, request=Request(1, None, 0, 0, most=4), queue="q"), 0, 0.0)
    [start] = plan(Snapshot(waiting.groups, HOST, queues={"q": queue}), [make_gpu(n) for n in range(4)]).starts
    assert len(start.gpus) == 3


def test_the_priority_of_a_queue_is_added_to_that_of_its_jobs() -> None:
    waiting = Waiting()
    for number, (name, priority) in enumerate([("default", 5), ("q", 0), ("q", -20)], 1):
        waiting.put(make_job(number, request=CPU, queue=name, priority=priority), 0, 0.0)
    snapshot = Snapshot(waiting.groups, Host(8, GiB), queues={"q": Queue("q", priority=10)})
    assert [start.job_id for start in plan(snapshot, []).starts] == [2, 1, 3]
