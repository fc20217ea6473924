"""Many jobs that are alike, put into the queue at once: as if each had been put by itself."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import ArrayPlace, Job, Reason, State
from gpuq.policy.waiting import Waiting
from tests.policy.build import make_job

ALIKE = st.builds(
    make_job,
    state=st.sampled_from((State.QUEUED, State.HELD, State.SKIPPED)),
    begin_at=st.none() | st.floats(0, 200),
    priority=st.integers(0, 1),
    array=st.none() | st.builds(ArrayPlace, st.just(1), st.just(0), st.integers(0, 2)),
)
#: Submissions in the order in which they are shown, which need not be that of their ids.
SHOWN = st.lists(st.tuples(ALIKE, st.integers(1, 5), st.integers(0, 1)), max_size=5).flatmap(
    lambda found: st.tuples(st.just(found), st.permutations(range(len(found))))
)


@given(SHOWN)
def test_as_if_each_were_put(shown: tuple[list[tuple[Job, int, int]], list[int]]) -> None:
    submissions, order = shown
    starts = [1 + sum(count for _, count, _ in submissions[:n]) for n in range(len(submissions))]
    one, each = Waiting(), Waiting()
    for n in order:
        job, count, unmet = submissions[n]
        ids = range(starts[n], starts[n] + count)
        one.put_all(job, ids, unmet, 100.0)
        for job_id in ids:
            each.put(replace(job, id=job_id), unmet, 100.0)
    assert one.groups == each.groups
    everyone = range(1, 1 + sum(count for _, count, _ in submissions))
    assert [(one.key(n), one.blocked(n)) for n in everyone] == [(each.key(n), each.blocked(n)) for n in everyone]
    assert one.next_begin() == each.next_begin()
    assert one.clock_set() == each.clock_set()
    for n in everyone:
        one.remove(n)
    assert not one.groups and one.next_begin() is None


def test_begin_times_come_in_order() -> None:
    waiting = Waiting()
    waiting.put_all(make_job(begin_at=30.0), range(1, 4), 0, 0.0)
    waiting.put_all(make_job(begin_at=20.0), range(4, 7), 0, 0.0)
    assert waiting.blocked(5) is Reason.BEGIN_TIME
    assert waiting.next_begin() == 20.0
    assert waiting.due(25.0) == [4, 5, 6]
    assert waiting.due(35.0) == [1, 2, 3]
