"""What a job waits for, against its definition; cycles, against an oracle that closes the whole relation."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import ENDED, Clause, Condition, Dependency, State
from gpuq.policy.dependencies import DependencyBroken, Standing, TooMany, find_cycle, holds, listed, weigh
from tests.policy.build import clauses

STANDINGS = st.builds(Standing, st.sampled_from(State), st.booleans())
AFTER = st.lists(
    st.lists(st.builds(Dependency, st.sampled_from(Condition), st.integers(1, 5)), min_size=1, max_size=3, unique=True),
    max_size=4,
).map(lambda found: tuple(Clause(tuple(alternatives)) for alternatives in found))


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("condition", Condition)
@pytest.mark.parametrize("state", State)
def test_what_each_condition_is_content_with(condition: Condition, state: State, started: bool) -> None:
    content = {
        Condition.OK: {State.SUCCEEDED},
        Condition.ANY: set(ENDED),
        Condition.FAILED: {State.FAILED},
        Condition.STARTED: set(State) if started else {State.SUCCEEDED, State.FAILED},
    }[condition]
    expected = True if state in content else False if state in ENDED else None
    assert holds(condition, Standing(state, started)) is expected


@given(AFTER, st.lists(st.none() | STANDINGS, min_size=6, max_size=6))
def test_all_clauses_and_one_alternative_of_each(after: tuple[Clause, ...], known: list[Standing | None]) -> None:
    def came(wanted: Dependency) -> bool | None:
        standing = known[wanted.job_id]
        return None if standing is None else holds(wanted.condition, standing)

    open_, broken = weigh(after, known.__getitem__)
    lost = [clause for clause in after if all(came(wanted) is False for wanted in clause.alternatives)]
    if lost:
        assert broken is not None and (broken.clause, open_) == (lost[0], frozenset())
        return
    assert broken is None
    assert open_ == {
        (number, wanted)
        for number, clause in enumerate(after)
        if True not in map(came, clause.alternatives)
        for wanted in clause.alternatives
        if came(wanted) is None and known[wanted.job_id] is not None
    }


OK, FAILED = Standing(State.SUCCEEDED, True), Standing(State.FAILED, True)
CANCELLED = Standing(State.CANCELLED, False)


@pytest.mark.parametrize(
    ("clause", "standings", "note"),
    [
        ("ok:12", [FAILED], "depends on ok:12, which failed"),
        ("failed:12", [OK], "depends on failed:12, which succeeded"),
        ("started:12", [CANCELLED], "depends on started:12, which was cancelled and never started"),
        ("ok:12|failed:13", [FAILED, OK], "depends on ok:12|failed:13: job 12 failed, job 13 succeeded"),
        (
            "ok:1|ok:2",
            [None, Standing(State.QUEUED, True)],
            "depends on ok:1|ok:2: job 1 is gone, job 2 is queued again",
        ),
        (
            "|".join(f"ok:{n}" for n in range(1, 8)),
            [CANCELLED] * 7,
            "depends on ok:1|ok:2|ok:3|ok:4|ok:5, and 2 more: job 1 was cancelled, job 2 was cancelled, "
            "job 3 was cancelled, job 4 was cancelled, job 5 was cancelled",
        ),
    ],
)
def test_the_note_names_every_alternative(clause: str, standings: list[Standing | None], note: str) -> None:
    assert DependencyBroken(clauses(clause)[0], tuple(standings)).note == note


def test_of_many_clauses_the_first_few_are_named() -> None:
    after = dict(enumerate(clauses(*(f"ok:{n}" for n in range(1, 10_001)))))
    assert listed(after) == "ok:1, ok:2, ok:3, ok:4, ok:5, and 9,995 more"
    assert listed({3: after[3], 7: after[7]}) == "ok:4, ok:8"


# --- cycles ---------------------------------------------------------------------------------------

EDGES = st.sets(st.tuples(st.integers(1, 8), st.integers(1, 8)), max_size=20)


def closure(edges: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Who waits for whom at last (Warshall 1962)."""
    found = set(edges)
    for middle in range(1, 9):
        found |= {(a, c) for a, b in found if b == middle for b2, c in found if b2 == middle}
    return found


@given(EDGES, st.integers(1, 8), st.lists(st.integers(1, 8), max_size=4))
def test_a_cycle_is_found_exactly_where_there_would_be_one(
    edges: set[tuple[int, int]], job_id: int, wanted: list[int]
) -> None:
    edges = {(a, b) for a, b in edges if a != job_id}  # what it waits for now is not waited for any more
    found = find_cycle(
        job_id, wanted, lambda n: [b for a, b in edges if a == n], lambda n: [a for a, b in edges if b == n], 10**6
    )
    there = job_id in wanted or any((one, job_id) in closure(edges) for one in wanted)
    assert (found is not None) == there
    if found is not None:
        assert found[0] == found[-1] == job_id and found[1] in wanted
        assert set(pairwise(found[1:])) <= edges
        assert len(set(found[1:])) == len(found) - 1, "each is named once"


def test_the_cheaper_way_decides() -> None:
    def nobody(_: int) -> list[int]:
        return []

    def newer(job_id: int) -> list[int]:
        return [job_id + 1]

    def older(job_id: int) -> list[int]:
        return [job_id - 1]

    assert find_cycle(1, [10], newer, nobody, 100) is None, "nobody waits on it"
    assert find_cycle(-1, [10], nobody, older, 100) is None, "they wait for nobody"
    with pytest.raises(TooMany):
        find_cycle(-1, [10], newer, older, 100)
