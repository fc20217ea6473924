"""Lists read part by part are the lists that were asked for, whatever their jobs have in common."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import ACTIVE, ENDED, WAITING, Job, State
from gpuq.protocol import Selection
from gpuq.store.lists import LOOK, Key, Order, inside
from gpuq.store.store import Store
from tests.bench.crowd import make

KEYS: dict[Order, Callable[[Job], Key]] = {
    Order.AGE: lambda job: (job.id, 0),
    Order.URGENCY: lambda job: (-job.priority, job.id),
    Order.NEWEST: lambda job: (-(job.ended_at or 0), -job.id),
}


class Mixed:
    """A store, and all of its jobs."""

    def __init__(self, store: Store) -> None:
        self.store, self.jobs = store, list(store.every_job())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """Jobs of every state, of which many have the same priority, and many have ended at the same time."""
    folder = tmp_path_factory.mktemp("lists")
    make(folder, waiting=300, ended=300)
    rng = random.Random(4)
    with closing(Store(folder / "queue.db")) as store:
        for job in list(store.every_job()):
            states = sorted(ENDED) if job.ended else sorted(ACTIVE | WAITING)
            store.conn.execute(
                "UPDATE jobs SET state = ?, priority = ?, tags = ?, ended_at = ended_at - ended_at + ? WHERE id = ?",
                (
                    rng.choice(states),
                    rng.choice((-3, 0, 0, 5)),
                    json.dumps(rng.sample(["a", "b"], rng.randint(0, 2))),
                    rng.choice((1e9, 1e9 + 1 / 3, 2e9)),
                    job.id,
                ),
            )
        yield Mixed(store)


RANGES = st.lists(st.tuples(st.integers(1, 700), st.sampled_from((0, 5, 300, 10**9))), max_size=3)


@given(
    ranges=RANGES,
    states=st.sets(st.sampled_from(sorted(State))),
    tags=st.sets(st.sampled_from(["a", "b"])),
    section=st.sampled_from([(ACTIVE, Order.AGE), (WAITING, Order.URGENCY), (ENDED, Order.NEWEST)]),
    most=st.sampled_from([1, 7, 100, 1000]),
    upto=st.integers(0, 650),
)
def test_parts_are_the_list(
    mixed: Mixed,
    ranges: list[tuple[int, int]],
    states: set[State],
    tags: set[str],
    section: tuple[frozenset[State], Order],
    most: int,
    upto: int,
) -> None:
    spans = tuple((low, low + more) for low, more in ranges)
    selection = Selection(spans, states=tuple(sorted(states)), tags=tuple(sorted(tags)))
    within, order = section
    wanted = [
        job.id
        for job in sorted(mixed.jobs, key=KEYS[order])
        if job.state in within
        and (not states or job.state in states)
        and tags <= set(job.tags)
        and (not spans or any(low <= job.id <= high for low, high in spans))
        and job.id <= upto
    ]
    found: list[int] = []
    after: Key | None = None
    while True:
        part = mixed.store.walk(selection, within, order, most, after, upto)
        assert len(part.ids) <= most
        found += part.ids
        if part.last is None:
            break
        after = (json.loads(json.dumps(part.last[0])), json.loads(json.dumps(part.last[1])))  # as it travels
    assert found == wanted


@given(RANGES, st.integers(0, 1100))
def test_inside_is_any_of_the_ranges(ranges: list[tuple[int, int]], job: int) -> None:
    spans = [(low, low + more) for low, more in ranges]
    assert inside(spans)(job) == (not spans or any(low <= job <= high for low, high in spans))


def test_few_among_many_are_found_in_parts_of_bounded_work(tmp_path: Path) -> None:
    make(tmp_path, waiting=10, ended=2 * LOOK + 100)
    with closing(Store(tmp_path / "queue.db")) as store:
        store.conn.execute("""UPDATE jobs SET tags = '["rare"]' WHERE id IN (3, 5050)""")
        for selection in (Selection(tags=("rare",)), Selection(ranges=((3, 3), (5050, 5050), (10**6, 10**9)))):
            parts: list[list[int]] = []
            after: Key | None = None
            while not parts or after is not None:
                part = store.walk(selection, ENDED, Order.NEWEST, 20, after)
                parts.append(part.ids)
                after = part.last
            assert parts == [[], [5050], [3]]


def test_what_moved_is_told_in_parts(tmp_path: Path) -> None:
    make(tmp_path, waiting=0, ended=50)  # three events of each
    with closing(Store(tmp_path / "queue.db")) as store:
        until = store.last_event()
        seen: dict[int, int] = {}
        done = 100
        while done < until:
            moved, done = store.moved(done, until, 40, 7)
            assert len(moved) <= 7 and list(moved.values()) == sorted(moved.values())
            seen |= moved
        assert sorted(seen) == list(range(1, 41))
