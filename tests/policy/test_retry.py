"""Retries by the class of failure: what a rule is, which one counts, how claims grow, and when it is enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.errors import UsageError
from gpuq.model import Failure, GiB, Job, MiB, Request, RetryRule, State
from gpuq.policy.lifecycle import TriedAgain, advance
from gpuq.policy.retry import LONGEST_PAUSE, MAX_GROWTH, MAX_TIMES, GivenUp, parse_rule, parse_rules, try_again
from tests.policy.build import make_job

RULES = {
    "2": RetryRule((), 2),
    "vram-oom:2*1.5": RetryRule((Failure.VRAM_OOM,), 2, 1.5),
    "lost,gpu-lost:3": RetryRule((Failure.LOST, Failure.GPU_LOST), 3),
    " exit , timeout:1 ": RetryRule((Failure.EXIT, Failure.TIMEOUT), 1),
    "host-oom,host-oom:1*2": RetryRule((Failure.HOST_OOM,), 1, 2.0),
}


@pytest.mark.parametrize("text", RULES)
def test_a_rule_is_read_and_written(text: str) -> None:
    assert parse_rule(text) == RULES[text]
    assert parse_rule(str(RULES[text])) == RULES[text]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a rule"),
        ("two", "is not a rule"),
        (":2", "is not a rule"),
        ("-1", "is not a rule"),
        ("²", "is not a rule"),
        ("0", "from 1 to"),
        ("9" * 5000, "from 1 to"),
        ("vram_oom:2", "did you mean vram-oom?"),
        ("exit,,lost:2", "there is no failure ''"),
        ("succeeded:1", "there is no failure"),
        ("2*2", "only a claim that ran out can grow"),
        ("exit:2*2", "only a claim that ran out can grow"),
        ("vram-oom:2*1", "more than 1"),
        ("vram-oom:2*0.5", "more than 1"),
        ("vram-oom:2*nan", "more than 1"),
        ("vram-oom:2*inf", "more than 1"),
        ("vram-oom:2*1e9", "more than 1"),
        ("vram-oom:2*", "more than 1"),
        ("vram-oom:2*١.٥", "more than 1"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_was_written(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_rule(text)
    assert said in str(error.value)
    assert repr(text)[:20] in str(error.value)


def failed(failure: Failure, *rules: str, **changes: Any) -> Job:
    return make_job(state=State.FAILED, attempt=1, failure=failure, retry=tuple(map(parse_rule, rules)), **changes)


def again(job: Job, *capacities: int, backoff: float = 1.0) -> TriedAgain | None:
    step = try_again(job, backoff, capacities or (24 * GiB,), 64 * GiB, 100.0)
    return None if isinstance(step, GivenUp) else step


def given_up(job: Job, *capacities: int) -> str:
    step = try_again(job, 1.0, capacities or (24 * GiB,), 64 * GiB, 100.0)
    assert isinstance(step, GivenUp)
    return step.note


def test_a_rule_that_names_the_failure_counts_before_one_for_any() -> None:
    job = failed(Failure.EXIT, "5", "exit:1")
    first = again(job)
    assert first is not None and first.spent == (0, 1)
    assert again(replace(job, spent=first.spent)) is None, "the named rule is spent, and the other one is not for it"
    assert again(failed(Failure.SIGNAL, "5", "exit:1")) is not None


def test_work_that_may_have_been_done_is_repeated_only_when_that_was_asked_for() -> None:
    assert again(failed(Failure.LOST, "5")) is None
    assert again(failed(Failure.LOST, "lost:1")) is not None
    assert again(failed(Failure.EXIT)) is None
    assert again(failed(Failure.EXIT, "lost:1")) is None


def test_pauses_double_up_to_a_limit() -> None:
    job = failed(Failure.EXIT, "1000")
    pauses = []
    for _ in range(40):
        step = again(job, backoff=2.0)
        assert step is not None
        pauses.append(step.not_before - 100.0)
        job = replace(job, spent=step.spent)
    assert pauses[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE
    step = again(failed(Failure.EXIT, "1"), backoff=LONGEST_PAUSE * 2)
    assert step is not None and step.not_before == 100.0 + LONGEST_PAUSE * 2, "a longer one that was set is kept"


def grown(job: Job, *capacities: int) -> int | None:
    step = again(job, *capacities)
    return None if step is None else step.request.vram


def test_where_the_gpus_are_not_known_yet_a_claim_stays_as_it_is() -> None:
    """As just after a restart: to give up for want of a number would be wrong, and so would a claim past the card."""
    job = replace(failed(Failure.VRAM_OOM, "vram-oom:2*1.5"), request=Request(2, 4 * GiB, 0, 0))
    for capacities in ([], [24 * GiB]):
        step = try_again(job, 1.0, capacities, 64 * GiB, 100.0)
        assert isinstance(step, TriedAgain)
        assert step.request == job.request


def test_a_claim_grows_to_the_card_and_not_past_it() -> None:
    request = Request(1, 10 * GiB, 0, 0)
    assert grown(failed(Failure.VRAM_OOM, "vram-oom:5*1.5", request=request)) == 15 * GiB
    assert grown(failed(Failure.VRAM_OOM, "vram-oom:5*1.5", request=request), 12 * GiB, 11 * GiB) == 12 * GiB
    assert grown(failed(Failure.VRAM_OOM, "vram-oom:5*1.5", request=request), 10 * GiB) is None, "it is all there is"
    two = Request(2, 10 * GiB, 0, 0)
    assert grown(failed(Failure.VRAM_OOM, "vram-oom:5*1.5", request=two), 24 * GiB, 12 * GiB) == 12 * GiB
    assert grown(failed(Failure.VRAM_OOM, "vram-oom:5*1.5", request=two), 24 * GiB, 10 * GiB) is None
    assert grown(failed(Failure.VRAM_OOM, "vram-oom:5", request=request)) == 10 * GiB
    assert grown(failed(Failure.EXIT, "exit,vram-oom:5*2", request=request)) == 10 * GiB, "nothing ran out"
    over = failed(Failure.OVER_MEMORY, "over-memory:1*1.5", request=request, peak_vram=14 * GiB)
    assert grown(over) == 21 * GiB, "it grows from what was used"
    assert given_up(failed(Failure.VRAM_OOM, "vram-oom:1*2", request=Request(1, None, 0, 0))) == (
        "not tried again: it had the whole card, so that its claim cannot grow"
    )
    full = failed(Failure.VRAM_OOM, "vram-oom:5*1.5", request=request)
    assert given_up(full, 10 * GiB) == "not tried again: its claim cannot grow past the card"
    plain = again(failed(Failure.VRAM_OOM, "vram-oom:1", request=Request(1, None, 0, 0)))
    assert plain is not None and plain.request.vram is None


def test_host_memory_grows_likewise() -> None:
    step = again(failed(Failure.HOST_OOM, "host-oom:2*2", request=Request(0, None, 1, 40 * GiB)))
    assert step is not None and step.request == Request(0, None, 1, 64 * GiB)
    full = failed(Failure.HOST_OOM, "host-oom:2*2", request=Request(0, None, 1, 64 * GiB))
    assert given_up(full) == "not tried again: its claim cannot grow past the host's memory"
    unclaimed = failed(Failure.HOST_OOM, "host-oom:2*2", request=Request(0, None, 1, 0))
    assert given_up(unclaimed) == "not tried again: it claimed no host memory (--ram) that could grow"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["1", "2"], "--retry 1 and 2 both cover any failure"),
        (["vram-oom:2", "3", "exit,vram-oom:1*2"], "--retry vram-oom:2 and exit,vram-oom:1*2 both name vram-oom"),
        (["lost:1", "lost:1"], "both name lost"),
    ],
)
def test_two_rules_do_not_speak_of_one_failure(rules: list[str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_rules(rules)
    assert said in refused.value.message


def test_a_plain_number_stands_beside_named_rules_each_with_its_own_count() -> None:
    assert [str(rule) for rule in parse_rules(["2", "vram-oom:1", "exit,signal:3"])] == [
        "2",
        "vram-oom:1",
        "exit,signal:3",
    ]


#: One that gave way is queued again whatever its rules say.
FAILURES = sorted(set(Failure) - {Failure.PREEMPTED})


def test_who_gave_way_spends_no_retry() -> None:
    job = make_job(state=State.FAILED, failure=Failure.PREEMPTED, retry=(RetryRule((), 1),), spent=(1,), note="why")
    assert try_again(job, 1.0, [], 0, 5.0) == TriedAgain(5.0, job.request, (1,), "why")


@given(
    failures=st.lists(st.sampled_from(FAILURES), max_size=60),
    rules=st.lists(
        st.builds(
            RetryRule,
            st.lists(st.sampled_from(FAILURES), max_size=3, unique=True).map(tuple),
            st.integers(1, 4),
            st.sampled_from([1.0, 1.1, 2.0, MAX_GROWTH]),
        ),
        max_size=4,
    ),
    capacities=st.lists(st.integers(1, 100).map(lambda n: n * GiB), max_size=3),
    vram=st.none() | st.integers(1, 100 * 1024).map(lambda n: n * MiB),
)
def test_no_job_is_tried_again_more_often_than_its_rules_say(
    failures: list[Failure], rules: list[RetryRule], capacities: list[int], vram: int | None
) -> None:
    """Whatever fails, in whatever order: the oracle is the sum of all rules, and the largest card."""
    job = make_job(state=State.RUNNING, attempt=1, retry=tuple(rules), request=Request(1, vram, 0, GiB))
    retries = 0
    for failure in failures:
        step = try_again(replace(job, state=State.FAILED, failure=failure), 1.0, capacities, 2 * GiB, 0.0)
        if not isinstance(step, TriedAgain):
            continue
        retries += 1
        assert all(spent <= rule.times for spent, rule in zip(step.spent, rules, strict=True))
        claim = step.request.vram
        assert (claim is None) == (vram is None)
        if claim is not None and vram is not None:
            assert claim >= vram and claim <= max([vram, *capacities])
        assert step.request.ram <= 2 * GiB
        job = advance(replace(job, state=State.FAILED, failure=failure), step, 1.0).job
        assert (job.state, job.failure, job.begin_at) == (State.QUEUED, None, step.not_before)
        job = replace(job, state=State.RUNNING)
    assert retries <= sum(rule.times for rule in rules) <= 4 * MAX_TIMES
