"""Figures of ended jobs, against what can be counted by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.policy.figures import Figures, Past, spread


def past(started: float | None, ended: float, **changes: object) -> Past:
    fields: dict[str, object] = {
        "state": "succeeded",
        "failure": None,
        "name": "train",
        "submitted_at": 0.0,
        "started_at": started,
        "ended_at": ended,
        "suspended": 0.0,
    }
    return Past(**(fields | changes))  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_spread(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    ordered = sorted(values)
    place = 0.95 * (len(values) - 1)
    low, high = ordered[int(place)], ordered[min(int(place) + 1, len(values) - 1)]
    assert found.p95 == pytest.approx(low + (high - low) * (place % 1))
    assert (found.count, found.max, found.median) == (len(values), ordered[-1], statistics.median(values))
    assert spread([]) is None


def test_waits_runs_and_failures() -> None:
    figures = Figures()
    figures.add(past(10.0, 110.0))
    figures.add(past(30.0, 60.0, state="failed", failure="vram-oom", suspended=5.0))
    figures.add(past(None, 70.0, state="cancelled"))
    figures.add(
        past(90.0, 80.0, submitted_at=100.0),
    )
    assert dict(figures.states) == {"succeeded": 2, "failed": 1, "cancelled": 1}
    assert dict(figures.failures) == {"vram-oom": 1}
    assert list(figures.waits) == [10.0, 30.0, 0.0], "a clock that was set back makes no time of less than none"
    assert list(figures.runs) == [100.0, 25.0, 0.0]


def test_estimates_are_those_that_planning_would_have_had() -> None:
    figures = Figures()
    for number, ran in enumerate([100, 100, 100, 100, 49, 201, 150]):
        figures.add(past(0.0, float(ran), name=f"train-{number}"))
    # the first three were needed; of the others 49 is less than half of what was likely, 201 more than twice
    assert (len(figures.ratios), figures.good, figures.within_longest) == (4, 2, 3)


def test_reservations_that_were_kept_and_that_were_not() -> None:
    figures = Figures()
    figures.add(past(50.0, 60.0, reserved_at=80.0))
    figures.add(past(50.0, 60.0, reserved_at=45.0))
    figures.add(past(50.0, 60.0, reserved_at=49.5))
    assert (list(figures.early), list(figures.late)) == ([30.0, 0.5], [5.0])


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 50), st.integers(0, 20)), max_size=12),
    st.integers(0, 40),
)
def test_a_gpu_that_jobs_share_is_used_once(rows: list[tuple[str, int, int]], since: int) -> None:
    figures = Figures()
    for uuid, begin, length in rows:
        figures.add(past(float(begin), 100.0, used=((uuid, float(begin), float(begin + length)),)))
    seconds = {(uuid, t) for uuid, begin, length in rows for t in range(begin, begin + length) if t >= since}
    assert figures.gpu_seconds(float(since)) == len(seconds)
