"""A line of waiting jobs against the plainest thing that could be in its place: a list of rows, sorted."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuq.policy import line as module
from gpuq.policy.line import Line

Row = tuple[int, float, float]
IDS = st.integers(1, 40)
LENGTHS = st.sampled_from([1.0, 5.0, 10.0, inf])


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """So that a few jobs make several chunks, which split, fill up and vanish."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 4)
        yield


def line_of(rows: list[Row]) -> Line:
    line = Line()
    for row in rows:
        line.add(*row)
    return line


class Lines(RuleBasedStateMachine):
    """The line, and the list of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line()
        self.rows: list[Row] = []

    def _new(self, ids: set[int]) -> list[int]:
        return sorted(ids - {row[0] for row in self.rows})

    @rule(job_id=IDS, length=LENGTHS)
    def add(self, job_id: int, length: float) -> None:
        if self._new({job_id}):
            self.line.add(job_id, job_id / 2, length)
            self.rows = sorted([*self.rows, (job_id, job_id / 2, length)])

    @rule(ids=st.sets(IDS, max_size=12), length=LENGTHS)
    def extend(self, ids: set[int], length: float) -> None:
        """Also with jobs that are older than some that are here."""
        new = self._new(ids)
        self.line.extend(new, (n / 2 for n in new), [length] * len(new))
        self.rows = sorted([*self.rows, *((n, n / 2, length) for n in new)])

    @rule(count=st.integers(1, 12), length=LENGTHS)
    def extend_at_the_end(self, count: int, length: float) -> None:
        start = max((row[0] for row in self.rows), default=0) + 1
        new = range(start, start + count)
        self.line.extend(new, (n / 2 for n in new), [length] * count)
        self.rows += [(n, n / 2, length) for n in new]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows))
        self.line.remove(row[0])
        self.rows.remove(row)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove_several(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from([row[0] for row in self.rows])))
        self.line.remove_all(sorted(gone))
        self.rows = [row for row in self.rows if row[0] not in gone]

    @rule(job_id=IDS)
    def one_that_is_not_here(self, job_id: int) -> None:
        if self._new({job_id}):
            for ask in (self.line.since, self.line.length, self.line.remove):
                with pytest.raises(KeyError):
                    ask(job_id)

    @rule(job_id=st.integers(0, 60), longest=st.sampled_from([0.5, 1.0, 4.0, 5.0, 10.0, inf]), endless=st.booleans())
    def after(self, job_id: int, longest: float, endless: bool) -> None:
        able = [n for n, _, length in self.rows if length <= longest or (endless and length == inf)]
        assert self.line.after(job_id, longest, endless=endless) == next((n for n in able if n > job_id), None)

    @rule(job_id=st.integers(0, 60), since=st.integers(0, 60))
    def before_and_older(self, job_id: int, since: int) -> None:
        assert self.line.before(job_id) == sum(n < job_id for n, _, _ in self.rows)
        assert self.line.older(since / 2, job_id) == sum((when, n) < (since / 2, job_id) for n, when, _ in self.rows)

    @rule(job_id=IDS)
    def copy(self, job_id: int) -> None:
        """What is done to a copy is done to it alone."""
        other = self.line.copy()
        assert other == self.line
        if self._new({job_id}):
            other.add(job_id, 0.0, 1.0)
        else:
            other.remove(job_id)
        assert other != self.line
        assert self.line == line_of(self.rows)

    @rule(most=st.integers(0, 10))
    def head(self, most: int) -> None:
        assert self.line.head(most) == [row[0] for row in self.rows[:most]]

    @invariant()
    def as_the_list(self) -> None:
        assert list(self.line) == [row[0] for row in self.rows]
        assert len(self.line) == len(self.rows)
        assert bool(self.line) == bool(self.rows)
        assert self.line == line_of(self.rows)
        for job_id, since, length in self.rows:
            assert job_id in self.line
            assert (self.line.since(job_id), self.line.length(job_id)) == (since, length)
        assert 0 not in self.line and 1000 not in self.line
        if self.rows:
            assert self.line.first == self.rows[0][0]
        else:
            with pytest.raises(IndexError):
                _ = self.line.first


Lines.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLines = Lines.TestCase


@given(st.lists(IDS, unique=True, max_size=14), st.lists(IDS, unique=True, max_size=14))
def test_equal_are_those_with_the_same_jobs_however_they_came(some: list[int], others: list[int]) -> None:
    one, other = line_of([(n, 1.0, 2.0) for n in some]), line_of([(n, 1.0, 2.0) for n in others])
    assert (one == other) == (sorted(some) == sorted(others))
    assert one == Line.of(sorted(some), 1.0, 2.0)


def test_equal_are_only_those_with_the_same_times() -> None:
    assert Line.of([1, 2]) == Line.of([1, 2], 0.0, inf)
    assert Line.of([1, 2]) != Line.of([1, 2], since=1.0)
    assert Line.of([1, 2]) != Line.of([1, 2], length=1.0)
    assert Line.of([1]) != [1]


@given(st.lists(st.tuples(st.integers(0, 3), LENGTHS), max_size=20), st.integers(0, 9), st.integers(0, 25))
def test_of_many_that_came_at_once_the_smaller_ids_are_older(
    steps: list[tuple[int, float]], since: int, job_id: int
) -> None:
    """Times that ascend with ids, and often stand still: a submission has one for all its jobs."""
    rows, when = [], 0.0
    for n, (step, length) in enumerate(steps, 1):
        when += step
        rows.append((n, when, length))
    assert line_of(rows).older(since, job_id) == sum((when, n) < (since, job_id) for n, when, _ in rows)


@given(st.lists(IDS, unique=True, min_size=1, max_size=30))
def test_chunks_stay_small_and_are_never_empty(ids: list[int]) -> None:
    """What makes a long line quick: no chunk is larger than it may be, in whatever order jobs come."""
    line = line_of([(n, 0.0, 1.0) for n in ids])
    sizes = [len(chunk.ids) for chunk in line._chunks]
    assert all(0 < size <= module.CHUNK for size in sizes)
    for n in ids[1:]:
        line.remove(n)
    assert [len(chunk.ids) for chunk in line._chunks] == [1]


def test_jobs_that_come_one_after_the_other_fill_their_chunks() -> None:
    line = line_of([(n, 0.0, 1.0) for n in range(1, 13)])
    assert [len(chunk.ids) for chunk in line._chunks] == [4, 4, 4]
