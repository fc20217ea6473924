"""A job's life: every state with every fact, and what ends mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.errors import IllegalTransition
from gpuq.events import Kind
from gpuq.model import Ending, Failure, GiB, Job, Request, State
from gpuq.policy.dependencies import DependencyBroken, Standing
from gpuq.policy.lifecycle import (
    Cancelled,
    EndAsked,
    Ended,
    Fact,
    Held,
    NeverStarted,
    Released,
    Resumed,
    Retried,
    Started,
    Suspended,
    TriedAgain,
    advance,
)
from tests.policy.build import clauses, make_job

FACTS: list[Fact] = [
    Started(("GPU-0",), "/log"),
    Ended(exit_code=0),
    Ended(failure=Failure.EXIT, exit_code=3),
    NeverStarted(),
    EndAsked(Ending.CANCEL),
    Cancelled(),
    Held(),
    Released(),
    Suspended(),
    Resumed(),
    Retried(),
    TriedAgain(9.0, Request(0, None, 1, 0), (1,), "retry 1 of 2 after exit"),
    DependencyBroken(clauses("ok:7")[0], (Standing(State.FAILED, True),)),
]
#: From where each fact is possible, written out: the table in lifecycle.py is not its own oracle
EXPECTED: dict[type[Fact], set[State]] = {
    Started: {State.QUEUED},
    Ended: {State.RUNNING, State.SUSPENDED},
    NeverStarted: {State.RUNNING, State.SUSPENDED},
    EndAsked: {State.RUNNING, State.SUSPENDED},
    Cancelled: {State.QUEUED, State.HELD},
    Held: {State.QUEUED},
    Released: {State.HELD},
    Suspended: {State.RUNNING},
    Resumed: {State.SUSPENDED},
    TriedAgain: {State.FAILED},
    Retried: {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SKIPPED},
    DependencyBroken: {State.QUEUED, State.HELD},
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_a_fact_is_possible_exactly_where_it_should_be(state: State, fact: Fact) -> None:
    job = make_job(state=state)
    if state in EXPECTED[type(fact)]:
        step = advance(job, fact, 5.0)
        assert step.event.at == 5.0
        assert step.event.job_id == job.id
    else:
        with pytest.raises(IllegalTransition) as error:
            advance(job, fact, 5.0)
        assert f"job {job.id}" in str(error.value)
        assert str(state) in str(error.value)


def end(job: Job, fact: Ended) -> Job:
    return advance(job, fact, 9.0).job


def running(ending: Ending | None = None, note: str | None = None) -> Job:
    return make_job(state=State.RUNNING, attempt=1, ending=ending, note=note)


def test_exit_codes_and_failures_are_kept_apart() -> None:
    done = end(running(), Ended(exit_code=0, ended_at=8.5))
    assert (done.state, done.failure, done.exit_code, done.ended_at) == (State.SUCCEEDED, None, 0, 8.5)
    failed = end(running(), Ended(failure=Failure.EXIT, exit_code=3))
    assert (failed.state, failed.failure, failed.exit_code, failed.ended_at) == (State.FAILED, Failure.EXIT, 3, 9.0)


def test_cancelled_only_if_the_supervisor_ended_it() -> None:
    cancelled = end(running(Ending.CANCEL), Ended(asked=True, failure=Failure.SIGNAL, signal=15))
    assert (cancelled.state, cancelled.failure, cancelled.signal) == (State.CANCELLED, None, 15)
    finished_first = end(running(Ending.CANCEL), Ended(asked=False, exit_code=0))
    assert finished_first.state is State.SUCCEEDED
    lost = end(running(Ending.CANCEL), Ended(failure=Failure.LOST, note="its supervisor vanished"))
    assert (lost.state, lost.failure, lost.note) == (State.CANCELLED, None, "its supervisor vanished")
    trapped = end(running(Ending.CANCEL), Ended(asked=True, exit_code=0))
    assert trapped.state is State.CANCELLED


def test_over_memory_and_outside_signals_are_named() -> None:
    over = end(running(Ending.OVER_MEMORY, "used 12GiB"), Ended(asked=True, failure=Failure.SIGNAL, signal=15))
    assert (over.state, over.failure, over.note) == (State.FAILED, Failure.OVER_MEMORY, "used 12GiB")
    for outside in (Ended(asked=True, exit_code=0), Ended(asked=True, failure=Failure.SIGNAL, signal=15)):
        ended = end(running(), outside)
        assert (ended.state, ended.failure, ended.signal) == (State.FAILED, Failure.LOST, outside.signal)
        assert ended.note is not None and "outside gpuq" in ended.note
    late = end(running(), Ended(asked=True, failure=Failure.TIMEOUT, signal=15))
    assert late.failure is Failure.TIMEOUT


def test_retry_forgets_the_outcome_and_keeps_the_attempt_number() -> None:
    failed = make_job(
        state=State.FAILED, attempt=2, exit_code=3, failure=Failure.EXIT, note="x", gpus=("GPU-0",), peak_vram=5
    )
    again = advance(failed, Retried(), 9.0).job
    assert again.state is State.QUEUED
    assert again.attempt == 2
    assert (again.exit_code, again.failure, again.note, again.gpus, again.peak_vram) == (None, None, None, (), None)
    assert advance(again, Started((), "/log"), 10.0).job.attempt == 3


def test_an_attempt_that_never_started_goes_back_to_the_queue() -> None:
    step = advance(running(), NeverStarted(), 9.0)
    assert step.job.state is State.QUEUED
    assert step.event.kind is Kind.REQUEUED
    cancelled = advance(running(Ending.CANCEL), NeverStarted(), 9.0)
    assert (cancelled.job.state, cancelled.event.kind) == (State.CANCELLED, Kind.CANCELLED)


@given(st.lists(st.sampled_from(FACTS), max_size=30))
def test_any_story_keeps_the_invariants(facts: list[Fact]) -> None:
    job = make_job()
    for fact in facts:
        try:
            step = advance(job, fact, 1.0)
        except IllegalTransition:
            continue
        assert step.job.attempt in (job.attempt, job.attempt + 1)
        assert step.job.ended == (step.job.ended_at is not None)
        if step.job.failure is not None:
            assert step.job.state is State.FAILED
        job = step.job


def test_time_that_a_job_is_suspended_is_counted_and_never_negative() -> None:
    job = make_job(state=State.RUNNING, attempt=1, started_at=0.0)
    stopped = advance(job, Suspended(), 10.0).job
    assert (stopped.state, stopped.suspended_at) == (State.SUSPENDED, 10.0)
    on = advance(stopped, Resumed(), 25.0).job
    assert (on.state, on.suspended_at, on.suspended_seconds) == (State.RUNNING, None, 15.0)
    again = advance(advance(on, Suspended(), 30.0).job, Ended(exit_code=0), 20.0).job  # the clock was set back
    assert (again.state, again.suspended_at, again.suspended_seconds) == (State.SUCCEEDED, None, 15.0)
    fresh = advance(replace(again, state=State.QUEUED), Started((), "/log"), 40.0).job
    assert fresh.suspended_seconds == 0.0


def test_a_suspended_job_can_be_ended() -> None:
    stopped = make_job(state=State.SUSPENDED, attempt=1, started_at=0.0, suspended_at=1.0)
    ending = advance(stopped, EndAsked(Ending.CANCEL), 2.0).job
    done = advance(ending, Ended(asked=True, failure=Failure.SIGNAL, signal=15), 3.0).job
    assert (done.state, done.suspended_at) == (State.CANCELLED, None)


def test_the_event_of_a_retry_tells_what_is_asked_for_otherwise_and_only_that() -> None:
    failed = make_job(1, State.FAILED, request=Request(1, GiB, 0, GiB), attempt=1, failure=Failure.EXIT)
    for request, told in (
        (Request(1, GiB, 0, GiB), {}),
        (Request(1, 2 * GiB, 0, GiB), {"vram": 2 * GiB}),
        (Request(1, GiB, 0, 2 * GiB), {"ram": 2 * GiB}),
    ):
        step = advance(failed, TriedAgain(9.0, request, (1,), "retry 1 of 2 after exit"), 5.0)
        data = step.event.data
        assert {name: data[name] for name in ("vram", "ram") if name in data} == told
        assert data["in"] == 4.0
