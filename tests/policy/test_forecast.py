"""Forecasts against what then happens on a virtual clock, where jobs take what they were taken to take."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.model import Order
from gpuq.policy.forecast import forecast
from gpuq.policy.predict import Predictions
from gpuq.policy.scheduler import RESERVATIONS, Policy
from tests.policy.stream import Stream, Work, whole
from tests.policy.test_streams import CARDS, QUEUES, streams

#: Of two kinds: half of the runs took 5 s, and 15 s, one of each took longer.
KNOWN = Predictions([(name, length) for name, mid in (("a", 5.0), ("b", 15.0)) for length in (mid, mid, mid * 2)])


def told(stream: Stream, *, likely: bool) -> dict[int, float]:
    """When each job starts, by the forecast."""
    moments = list(forecast(stream.snapshot(), stream.gpus(), likely=likely))
    assert [moment.last for moment in moments] == [False] * (len(moments) - 1) + [True]
    return {job_id: moment.at for moment in moments for job_id in moment.started}


@settings(max_examples=60)
@given(CARDS, streams(priorities=1, bounded=True), st.sampled_from([1, RESERVATIONS]))
def test_jobs_that_run_for_as_long_as_they_may(cards: dict[str, int], works: list[Work], most: int) -> None:
    stream = Stream(cards, Policy(reservations=most), QUEUES, {"broken": "x"})
    works = [replace(work, comes=0.0, lasts=work.limit) for work in works]
    stream.waiting = {work.job_id: work for work in works}
    before = stream.snapshot()
    expected = told(stream, likely=False)
    assert stream.snapshot() == before, "the queue itself is as it was"
    stream.run(works)
    assert stream.started == expected


@settings(max_examples=60)
@given(CARDS, streams(st.sampled_from([10.0, 50.0, inf])), st.data())
def test_jobs_that_run_for_as_long_as_those_of_their_kind_did(
    cards: dict[str, int], works: list[Work], data: st.DataObject
) -> None:
    """Where starts do not depend on ends that are only expected, which differ: whatever fits first starts."""
    stream = Stream(cards, Policy(Order.FIT_FIRST), predictions=KNOWN)
    kinds = {work.job_id: data.draw(st.sampled_from(["a", "b"])) for work in works}
    lengths = {"a": 5.0, "b": 15.0}
    works = [
        replace(work, comes=0.0, kind=kinds[work.job_id], lasts=min(work.limit, lengths[kinds[work.job_id]]))
        for work in works
    ]
    stream.waiting = {work.job_id: work for work in works}
    expected = told(stream, likely=True)
    stream.run(works)
    assert stream.started == expected


def test_what_runs_ends_by_what_is_likely_of_it() -> None:
    stream = Stream({"GPU-0": 8})
    stream.waiting = {1: Work(1, whole(), limit=50.0), 2: Work(2, whole(), limit=10.0)}
    stream.plan()
    snapshot = stream.snapshot()
    snapshot = replace(snapshot, ongoing=[replace(one, likely=20.0) for one in snapshot.ongoing])
    for likely, at in ((True, 20.0), (False, 50.0)):
        first, second, *_ = forecast(snapshot, stream.gpus(), likely=likely)
        assert not first.started
        assert (second.at, second.started) == (at, frozenset({2}))


def test_behind_one_that_never_ends_nothing_is_known() -> None:
    stream = Stream({"GPU-0": 8})
    stream.waiting = {1: Work(1, whole()), 2: Work(2, whole(), limit=10.0)}
    assert told(stream, likely=False) == {1: 0.0}
