"""Groups that stop: the count against a second reading of the same ends."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import Group, State
from gpuq.policy.groups import KEPT, fared, go_on, why_stopped
from tests.policy.build import make_job

ENDS = st.lists(
    st.sampled_from([State.FAILED, State.FAILED, State.SUCCEEDED, State.CANCELLED, State.SKIPPED]), max_size=40
)


@given(ENDS, st.integers(1, 12))
def test_it_stops_with_the_failure_that_completes_a_row(ends: list[State], most: int) -> None:
    group, told = Group("g"), [end for end in ends if end in (State.FAILED, State.SUCCEEDED)]
    for number, state in enumerate(ends, 1):
        group = fared(group, make_job(number, state, group="g", stop_after=most), float(number))
    rows = "".join("f" if end is State.FAILED else "s" for end in told)
    assert (group.stopped_at is not None) == ("f" * most in rows)
    if group.stopped_at is None:
        assert group.failures == len(rows) - len(rows.rstrip("f"))
    else:
        assert group.failures == most
        last = [n for n, end in enumerate(ends, 1) if end is State.FAILED and n <= group.stopped_at]
        assert group.failed == tuple(last[-min(most, KEPT) :])


@pytest.mark.parametrize("most", [None, 3])
def test_the_number_of_the_job_that_failed_counts(most: int | None) -> None:
    group = Group("g", failures=2, failed=(1, 2))
    after = fared(group, make_job(3, State.FAILED, group="g", stop_after=most), 5.0)
    assert (after.failures, after.failed) == (3, (1, 2, 3))
    assert after.stopped_at == (None if most is None else 5.0)


def test_words() -> None:
    stopped = Group("night", 3, (7, 8, 9), 1.0)
    text = "group night stopped after 3 failures in a row (jobs 7, 8, 9); `gpuq group resume night` lets it go on"
    assert why_stopped(stopped) == text
    assert "after 1 failure (job 7);" in why_stopped(Group("g", 1, (7,), 1.0))
    assert "after 12 failures in a row (jobs …, 3, 4)" in why_stopped(Group("g", 12, (3, 4), 1.0))
    assert shlex.split(go_on("a b; rm -r")) == ["gpuq", "group", "resume", "a b; rm -r"]
