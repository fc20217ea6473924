"""The numbers of a run, the GPUs that are simulated, history as a trace, and the picture."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.errors import UsageError
from gpuq.model import GiB, Queue
from gpuq.simulate.cards import describe, parse_cards, parse_what_if
from gpuq.simulate.engine import simulate
from gpuq.simulate.gantt import SHADES, Picture, draw
from gpuq.simulate.history import from_jobs
from gpuq.simulate.results import quantile, spread, summary
from gpuq.simulate.rules import PLAIN
from gpuq.simulate.trace import NO_LIMIT, SECOND, WHOLE, Member, Trace, refusal_by
from tests.simulate.oracle import Job
from tests.simulate.test_engine import run, sixty, trace_of


@given(values=st.lists(st.integers(0, 1000), min_size=2, max_size=60))
def test_quantiles_are_the_usual_ones(values: list[int]) -> None:
    # type 7 of Hyndman & Fan is the standard library's "inclusive"
    assert quantile(sorted(values), 95) == pytest.approx(statistics.quantiles(values, n=100, method="inclusive")[94])
    assert quantile(sorted(values), 50) == statistics.median(values)


def test_a_summary_by_hand() -> None:
    found = spread(iter([4 * SECOND, SECOND, 2 * SECOND, 3 * SECOND]))
    assert (found.mean, found.median, found.max) == (2.5, 2.5, 4)
    assert found.p95 == pytest.approx(3.85)
    one = spread(iter([7 * SECOND]))
    assert (one.mean, one.median, one.p95, one.max) == (7, 7, 7, 7)


def test_utilisation_counts_a_shared_gpu_once() -> None:
    trace = trace_of([Job(0, 1, 10), Job(0, 1, 5), Job(20, 2, 10)], [10 * GiB, 10 * GiB, 10 * GiB])
    found = summary(trace, simulate(trace, (24 * GiB, 24 * GiB), PLAIN["easy"]))
    assert found.makespan == 30
    assert found.utilisation == (10 + 2 * 10) / 60  # two shared the first GPU


def test_a_run_of_no_time() -> None:
    found = summary(trace_of([Job(0, 1, 0)] * 3), run([Job(0, 1, 0)] * 3, 1, "fifo"))
    assert found.utilisation is None and found.makespan == 0 and found.wait.max == 0


# --- GPUs -----------------------------------------------------------------------------------------


def test_sets_of_gpus() -> None:
    assert parse_cards("8") == (0,) * 8
    assert parse_cards("2x24GiB, 1x80G") == (24 * GiB, 24 * GiB, 80 * GiB)
    for text in ("8", "8x80GiB", "2x24GiB,4x80GiB"):
        assert describe(parse_cards(text)) == text


@pytest.mark.parametrize(
    "text", ["", "0", "x", "-1", "8x", "8x0GiB", "8x80", "1.5", "8,", "9999", "1025", "1024,1", "٨"]
)
def test_no_sets_of_gpus(text: str) -> None:
    with pytest.raises(UsageError, match="--gpus"):
        parse_cards(text)


A, B = 24 * GiB, 80 * GiB


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("gpus=+2", (0, 0), (0, 0, 0, 0)),
        ("gpus=4", (A, A), (A, A, A, A)),
        ("gpus=-1", (A, A), (A,)),
        ("gpus=+2x80GiB", (A, A), (A, A, B, B)),
        ("gpus=-1x24GiB", (A, A, B), (A, B)),
        ("gpus=4x80GiB", (A, A), (B, B, B, B)),
        ("gpus=1x24GiB,1x80GiB", (A, A), (A, B)),
        (" gpus = +1 ", (A,), (A, A)),
    ],
)
def test_what_if(text: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    assert parse_what_if(text, before) == after


@pytest.mark.parametrize(
    ("text", "before", "says"),
    [
        ("gpus", (A,), "write gpus"),
        ("gpus=", (A,), "write gpus"),
        ("cpus=+2", (A,), "is no change that can be tried"),
        ("gpus=+", (A,), "is no count"),
        ("gpus=+two", (A,), "is no count"),
        ("gpus=-1", (A,), "makes 0 GPUs"),
        ("gpus=-2", (A,), "not so many GPUs to take away"),
        ("gpus=-1x80GiB", (A,), "not so many GPUs to take away"),
        ("gpus=+2", (A, B), "the GPUs differ .1x24GiB,1x80GiB.; say which"),
        ("gpus=+2x80GiB", (0, 0), "the other GPUs have no size"),
        ("gpus=+1024", (A,), "makes 1,025 GPUs"),
    ],
)
def test_no_what_if(text: str, before: tuple[int, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_what_if(text, before)


# --- history --------------------------------------------------------------------------------------


def job(number: int, submitted: int, started: int | None, ended: int | None, **changes: Any) -> dict[str, Any]:
    """As `list` tells it; times in seconds after a certain one."""

    def moment(seconds: int | None) -> str | None:
        return None if seconds is None else f"2026-11-23T08:{seconds // 60:02}:{seconds % 60:02}.000Z"

    fields: dict[str, Any] = {
        "id": number,
        "submitted_at": moment(submitted),
        "started_at": moment(started),
        "ended_at": moment(ended),
        "begin_at": moment(changes.pop("begin", None)),
        "suspended_seconds": 0.0,
        "gpus": [],
        "gpu_count": 1,
        "vram_bytes": None,
        "time_limit_seconds": None,
        "priority": 0,
        "owner": "ada",
        "after": [],
    }
    return fields | changes


def columns(trace: Trace) -> list[tuple[str, float, float]]:
    return [(trace.ids[n], trace.submit[n] / SECOND, trace.duration[n] / SECOND) for n in range(len(trace))]


def test_history_is_what_ran_and_ended() -> None:
    jobs = [
        job(5, 40, None, None),
        job(4, 30, 35, None),
        job(3, 25, None, 30),
        job(2, 20, 50, 80, gpu_count=2, vram_bytes=GiB, priority=7, time_limit_seconds=100.0),
        job(1, 10, 10, 20),
        job(6, 10, 10, 20, gpu_count=0),
        job(7, 10, 10, 20, gpu_count=9),
    ]
    found = from_jobs(jobs, refusal_by([(A, A)]))
    assert columns(found.trace) == [("1", 0, 10), ("2", 10, 30)]
    assert (found.trace.gpus[1], found.trace.vram[1], found.trace.priority[1]) == (2, GiB, 7)
    assert list(found.trace.limit) == [NO_LIMIT, 100 * SECOND] and found.trace.vram[0] == WHOLE
    assert found.left_out == {
        "not ended yet": 2,
        "never ran": 1,
        "without GPUs": 1,
        "larger than the simulated GPUs, or than its queue allows": 1,
    }


def test_a_job_waits_for_room_once_nothing_else_keeps_it() -> None:
    jobs = [
        job(1, 0, 0, 60),
        job(2, 1, 70, 80, after=["ok:1"]),
        job(3, 2, 90, 95, begin=85),
        job(4, 3, 99, 100, after=["any:1", "ok:3"]),
        job(5, 4, 101, 102, after=["ok:77"]),
        job(6, 5, 103, 104, after=["failed:3|any:1", "started:2"]),
    ]
    trace = from_jobs(jobs, refusal_by([(A,)])).trace
    assert columns(trace) == [("1", 0, 60), ("5", 4, 1), ("2", 60, 10), ("6", 70, 1), ("3", 85, 5), ("4", 95, 1)]


def test_what_a_job_took_of_its_gpus() -> None:
    jobs = [
        job(1, 0, 0, 60, suspended_seconds=20.0),
        job(2, 0, 0, 65, time_limit_seconds=60.0),  # killed at the end of its grace period
        job(3, 30, 10, 5),  # the clock was set
    ]
    trace = from_jobs(jobs, refusal_by([(A,)])).trace
    assert sorted(columns(trace)) == [("1", 0, 40), ("2", 0, 60), ("3", 10, 0)]
    assert not trace.cut()


def test_a_job_that_took_more_gpus_than_it_needs_counts_with_those_it_had() -> None:
    trace = from_jobs([job(1, 0, 0, 5, gpus=["a", "b", "c"]), job(2, 0, 0, 5)], refusal_by([(A, A, A)])).trace
    assert list(trace.gpus) == [3, 1]


def test_what_limits_a_job_with_others() -> None:
    array = {"id": 1, "index": 0, "limit": 2}
    jobs = [
        job(1, 0, 0, 5, queue="night"),
        job(2, 0, 0, 5, array=array),
        job(3, 0, 0, 5, array={**array, "limit": None}),
    ]
    members = from_jobs(jobs, refusal_by([(A,)])).trace.members()
    assert members == [Member("night"), Member(array=(1, 2)), Member()]


@pytest.mark.parametrize(
    ("queue", "left"),
    [
        (Queue("night"), 2),
        (Queue("night", max_gpus=2), 2),
        (Queue("night", max_gpus=1), 1),
        (Queue("night", gpus=frozenset({"gpu1"})), 1),
        (Queue("night", gpus=frozenset({"gpu0"})), 0),
        (Queue("day", max_gpus=1), 2),
    ],
)
def test_what_a_queue_would_never_let_run_is_left_out(queue: Queue, left: int) -> None:
    jobs = [job(1, 0, 0, 5, gpus=["a", "b"], queue="night"), job(2, 0, 0, 5, queue="night", vram_bytes=30 * GiB)]
    found = from_jobs(jobs, refusal_by([(A, B, B)], {queue.name: queue}))
    assert len(found.trace) == left


def test_history_between_two_times() -> None:
    jobs = [job(n, n, n, n + 1) for n in range(10)]
    first = 1795420800.0  # 2026-11-23T08:00Z
    found = from_jobs(jobs, refusal_by([(A,)]), first + 3, first + 6)
    assert found.trace.ids == ["3", "4", "5"] and not found.left_out


# --- the picture ----------------------------------------------------------------------------------


def picture_of(jobs: list[Job], gpus: int, width: int = 80, policy: str = "fifo") -> tuple[Picture, list[str]]:
    picture = draw(trace_of(jobs), run(jobs, gpus, policy), width)
    return picture, [label + "".join(span.text for span in spans) for label, spans in picture.lines]


def test_a_small_picture() -> None:
    picture, lines = picture_of([Job(0, 1, 10), Job(0, 2, 10), Job(5, 1, 20)], 3, 35)
    assert picture.axis == "     |0s         |12s        |24s"
    assert lines == [
        "gpu0 |j0-------|j2-----------------",
        "gpu1 |j1-------....................",
        "gpu2 |j1-------....................",
    ]


@pytest.mark.parametrize("policy", list(PLAIN))
def test_sixty_jobs_can_be_read(policy: str) -> None:
    jobs = sixty(3)
    picture, lines = picture_of(jobs, 8, 79, policy)
    assert not picture.shaded and len(lines) == 8
    assert {len(line) for line in lines} == {79} and len(picture.axis) <= 79 and len(picture.legend) <= 79
    shown = {span.job for _, spans in picture.lines for span in spans} - {None}
    assert len(shown) >= 55, "most jobs are to be seen"


def test_columns_are_where_jobs_were() -> None:
    jobs = sixty(4)
    trace, found = trace_of(jobs), run(jobs, 8, "easy")
    picture = draw(trace, found, 200)
    until, columns_ = max(found.end), 200 - len("gpu0 ")
    for index, (_, spans) in enumerate(picture.lines):
        at = 0
        for span in spans:
            middle = (2 * at + len(span.text)) * until // (2 * columns_)
            there = [
                row
                for row in range(len(trace))
                if found.start[row] <= middle < found.end[row] and index in found.gpus(row, trace.gpus[row])
            ]
            if len(span.text) > 2:
                assert there == ([] if span.job is None else [span.job])
            at += len(span.text)


def test_many_jobs_are_shades_of_load() -> None:
    jobs = [Job(n, 1, 1) for n in range(2000)] + [Job(2000, 2, 1)] + [Job(2001 + 2 * n, 1, 1) for n in range(1000)]
    picture, lines = picture_of(jobs, 2, 65)
    assert picture.shaded
    assert set(lines[0][5:34]) == {SHADES[-1]} and set(lines[0][36:]) == {SHADES[2]}
    assert set(lines[1][5:34]) == {SHADES[0]}


def test_jobs_that_share_a_gpu_are_below_each_other() -> None:
    trace = trace_of([Job(0, 1, 10), Job(0, 1, 20), Job(10, 1, 10)], [10 * GiB] * 3)
    picture = draw(trace, simulate(trace, (A,), PLAIN["fifo"]), 45)
    assert [label.strip() for label, _ in picture.lines] == ["gpu0", ""]
    assert [[span.job for span in spans] for _, spans in picture.lines] == [[0, 2], [1]]


def test_more_gpus_than_there_is_room_for() -> None:
    picture, lines = picture_of([Job(0, 100, 5)], 100)
    assert len(lines) == 64 and picture.more == 36


def test_names_that_no_terminal_should_see() -> None:
    trace = Trace()
    for name in ("\x1b[31m", "日本", "a" * 500):
        trace.add(name, 0, 1, 10 * SECOND)
    picture = draw(trace.close(), simulate(trace, (0,), PLAIN["fifo"]), 80)
    text = "".join(span.text for _, spans in picture.lines for span in spans)
    assert set(text) == {"|", "-"}


def test_a_narrow_terminal() -> None:
    picture, lines = picture_of(sixty(1), 8, 5)
    assert max(map(len, [*lines, picture.axis])) <= 20
