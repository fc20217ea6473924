"""Queues, disabled GPUs and groups as rows: what is written is read again, from the database and from the changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuq.errors import StoreDamaged
from gpuq.events import Event, Kind
from gpuq.model import DisabledGpu, Group, Queue
from gpuq.store import changes, rules
from gpuq.store.replay import replay
from gpuq.store.rules import Rule
from gpuq.store.store import Store

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
TIMES = st.one_of(st.none(), st.floats(0.5, 1e8))
COUNTS = st.one_of(st.none(), st.integers(0, 2**40))
RULES = st.one_of(
    st.builds(
        Queue,
        TEXT,
        st.integers(-1000, 1000),
        st.one_of(st.none(), st.frozensets(TEXT, max_size=4)),
        TIMES,
        TIMES,
        COUNTS,
        COUNTS,
        st.booleans(),
        st.booleans(),
        st.one_of(st.none(), TEXT),
    ),
    st.builds(DisabledGpu, TEXT, TEXT, st.floats(0, 1e9)),
    st.builds(Group, TEXT, st.integers(0, 99), st.lists(st.integers(1, 2**60)).map(tuple), TIMES),
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def opened(folder: Path) -> Store:
    store = Store(folder / "queue.db")
    store.keep_changes(folder / "changes")
    return store


def write(store: Store, *put: Rule, gone: tuple[Rule, ...] = ()) -> None:
    with store.transaction():
        for rule in put:
            rules.put(store, rule)
        for rule in gone:
            rules.remove(store, rule)
        store.add_events([Event(1.0, Kind.QUEUE_SET)])


@given(st.lists(RULES, max_size=6), st.integers(0, 6), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_again(folder: Path, found: list[Rule], taken: int, shortened: bool) -> None:
    """Also after the file of changes was written anew, and into a database that has lost all of it."""
    for path in folder.iterdir():
        path.unlink()
    with closing(opened(folder)) as store:
        for rule in found:
            write(store, rule)
        write(store, gone=tuple(found[:taken]))
        if shortened:
            store.shorten_changes()
        kept = {(type(rule), getattr(rule, "name", None) or getattr(rule, "uuid", "")): rule for rule in found}
        for rule in found[:taken]:
            kept.pop((type(rule), getattr(rule, "name", None) or getattr(rule, "uuid", "")), None)
        assert set(rules.read(store)) == set(kept.values())
        told = changes.read(folder / "changes")
        with store.transaction():
            for table in rules.KEYS:
                store.conn.execute(f"DELETE FROM {table}")
        replay(store, told, mixed=False)
        assert set(rules.read(store)) == set(kept.values())


def test_what_the_database_knows_better_is_left_and_what_it_does_not_reach_is_brought_back(folder: Path) -> None:
    with closing(opened(folder)) as store:
        write(store, Queue("a", 1), Queue("b", 1))
        told = changes.read(folder / "changes")
        write(store, Queue("a", 2))
        replay(store, told, mixed=False)
        assert Queue("a", 2) in rules.read(store), "the file ends before it"
        later = changes.read(folder / "changes")
        store.conn.execute("DELETE FROM events WHERE id = (SELECT max(id) FROM events)")
        store.conn.execute("UPDATE queues SET priority = 1")
        replay(store, later, mixed=False)
        assert set(rules.read(store)) == {Queue("a", 2), Queue("b", 1)}, "the database ends before it"


@pytest.mark.parametrize(
    "row",
    [
        {"name": "x"},
        {"name": "y", "failures": 1, "failed": "[1]", "stopped_at": None},
        {"name": "x", "failures": 1, "failed": '["a"]', "stopped_at": None},
        {"name": "x", "failures": 1, "failed": "{", "stopped_at": None},
    ],
)
def test_a_line_that_makes_no_sense_brings_nothing(folder: Path, row: dict[str, object]) -> None:
    with closing(opened(folder)) as store:
        told = changes.Told(last_event=9, rules={("job_groups", "x"): (9, row), ("nothing", "x"): (9, row)})
        replay(store, told, mixed=False)
        assert rules.read(store) == []


@pytest.mark.parametrize("column", ["gpus = '[1]'", "gpus = 'x'", "gpus = '{}'"])
def test_a_row_that_makes_no_sense_is_damage(folder: Path, column: str) -> None:
    with closing(opened(folder)) as store:
        write(store, Queue("a"))
        store.conn.execute(f"UPDATE queues SET {column}")
        with pytest.raises(StoreDamaged, match="row 'a' of queues makes no sense"):
            rules.read(store)
