"""The store against SQLite itself: what goes in comes out, and a guarded change happens once."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuq.errors import IllegalTransition, StoreError
from gpuq.events import Event, Kind
from gpuq.model import (
    ACTIVE,
    ENDED,
    WAITING,
    ArrayPlace,
    Attempt,
    Claim,
    Clause,
    Condition,
    Dependency,
    Ending,
    Failure,
    GiB,
    Job,
    Request,
    State,
)
from gpuq.policy.dependencies import Standing
from gpuq.policy.lifecycle import Cancelled, Held, Started, advance
from gpuq.protocol import Selection
from gpuq.store import changes, dependents
from gpuq.store.lists import Order
from gpuq.store.migrations import MIGRATIONS
from gpuq.store.store import Store
from tests.policy.build import clauses, make_job, numbered


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "queue.db")
    yield opened
    opened.close()


def insert(store: Store, *jobs: Job, key: str = "key") -> list[Job]:
    with store.transaction():
        first = store.next_id()
        placed = [replace(job, id=first + n) for n, job in enumerate(jobs)]
        for job in placed:
            store.insert_job(job, Event(1.0, Kind.SUBMITTED, job.id))
        store.put_submission(key, first, placed[-1].id)
    return placed


#: Any text that can reach us: lone surrogates stand for undecodable bytes.
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=20)
CLEAN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
JOBS = st.builds(
    Job,
    id=st.just(1),
    name=CLEAN,
    owner=st.integers(0, 2**31),
    state=st.sampled_from(State),
    command=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    cwd=TEXT,
    request=st.builds(
        Request, st.integers(0, 8), st.none() | st.integers(1, 80 * GiB), st.integers(0, 8), st.integers(0, GiB)
    ),
    env_hash=st.just("e"),
    submitted_at=st.floats(0, 1e10),
    priority=st.integers(-9, 9),
    time_limit=st.none() | st.floats(0.1, 1e6),
    begin_at=st.none() | st.floats(0, 1e10),
    after=st.lists(
        st.builds(
            Clause,
            st.lists(st.builds(Dependency, st.sampled_from(Condition), st.integers(1, 99)), min_size=1, max_size=2).map(
                tuple
            ),
        ),
        max_size=2,
    ).map(tuple),
    tags=st.lists(CLEAN, max_size=2).map(tuple),
    array=st.none() | st.builds(ArrayPlace, st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    umask=st.integers(0, 0o777),
    limits=st.lists(st.tuples(st.integers(0, 15), st.integers(-1, 2**40)), max_size=2).map(tuple),
    output=st.none() | TEXT,
    attempt=st.integers(0, 5),
    gpus=st.lists(CLEAN, max_size=2).map(tuple),
    started_at=st.none() | st.floats(0, 1e10),
    ended_at=st.none() | st.floats(0, 1e10),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    failure=st.none() | st.sampled_from(Failure),
    note=st.none() | CLEAN,
    ending=st.none() | st.sampled_from(Ending),
    peak_vram=st.none() | st.integers(0, 80 * GiB),
    peak_ram=st.none() | st.integers(0, 80 * GiB),
    log_path=st.none() | TEXT,
)


@settings(max_examples=100, deadline=None)
@given(job=JOBS)
def test_a_job_comes_out_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, job: Job) -> None:
    store = Store(tmp_path_factory.mktemp("db") / "queue.db")
    try:
        [placed] = insert(store, job)
        assert store.job(placed.id) == placed
    finally:
        store.close()


def test_the_file_is_private_and_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    store = Store(path)
    insert(store, make_job())
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Store(path)
    assert again.job(1) is not None
    assert again.conn.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    assert again.conn.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert again.conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    again.close()


def test_a_network_file_system_gets_a_rollback_journal(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    Store(path).close()
    store = Store(path, network=True)
    assert store.conn.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    store.close()


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "queue.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError, match="is a symbolic link"):
        Store(tmp_path / "queue.db")
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_change_is_guarded_by_the_state_it_was_made_from(store: Store) -> None:
    [job] = insert(store, make_job())
    cancelled = advance(job, Cancelled(), 2.0)
    held = advance(job, Held(), 2.0)
    with store.transaction():
        store.change(job, cancelled.job, cancelled.event)
    with pytest.raises(IllegalTransition), store.transaction():
        store.change(job, held.job, held.event)
    assert store.state_of(job.id) is State.CANCELLED
    assert [e.kind for e in store.events(0, None, None)] == [Kind.SUBMITTED, Kind.CANCELLED]


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    [first, second] = insert(store, make_job(), make_job())
    with pytest.raises(IllegalTransition), store.transaction():
        for job in (first, replace(second, state=State.HELD)):
            step = advance(replace(job, state=State.QUEUED), Cancelled(), 2.0)
            store.change(job, step.job, step.event)
    assert store.state_of(first.id) is State.QUEUED
    assert len(store.events(0, None, None)) == 2


def test_a_locked_database_is_a_store_error(store: Store, tmp_path: Path) -> None:
    store.conn.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"), store.transaction():
        pytest.fail("the transaction began beside another")
    other.close()


def test_ids_are_never_used_again(store: Store) -> None:
    insert(store, make_job(), make_job())
    store.conn.execute("DELETE FROM jobs")
    assert store.next_id() == 3


def test_selecting(store: Store) -> None:
    jobs = insert(store, *(make_job(tags=("even",) if n % 2 else ("odd", "x")) for n in range(10)))
    step = advance(jobs[3], Cancelled(), 2.0)
    with store.transaction():
        store.change(jobs[3], step.job, step.event)
    assert store.select(Selection(ranges=((2, 3), (7, 99)))) == [2, 3, 7, 8, 9, 10]
    assert store.select(Selection(ranges=((5, 5), (5, 5)))) == [5]
    assert store.select(Selection(states=("cancelled",))) == [4]
    assert store.select(Selection(tags=("x",), ranges=((1, 4),))) == [1, 3]
    assert store.select(Selection(tags=("x", "even"))) == []
    assert store.select(Selection(tags=("'; DROP TABLE jobs; --",))) == []
    assert store.select(Selection(ranges=((1, 2**63 - 1),)), [State.CANCELLED]) == [4]
    assert len(store.select(Selection(ranges=tuple((n, n) for n in range(1, 20_001))))) == 10


def test_dependencies_are_open_until_met(store: Store) -> None:
    [first, second] = insert(store, make_job(), make_job())
    wanted = clauses(f"ok:{first.id}", "any:9")
    ended = Standing(State.SUCCEEDED, True)
    with store.transaction():
        store.add_dependencies([second.id], wanted, {(0, wanted[0].alternatives[0])})
    assert store.open_dependencies(second.id) == list(wanted[0].alternatives)
    assert store.unmet_counts() == {second.id: 1}
    with store.transaction():
        page = dependents.page(store, first.id, ended, 0, 10)
        assert [(one.job_id, one.condition, one.waits) for one in page.found] == [(second.id, Condition.OK, True)]
        assert page.after is None
        dependents.close(store, [one.row for one in page.found])
    assert not dependents.page(store, first.id, ended, 0, 10).found
    assert store.unmet_counts() == {}


def test_attempts_keep_their_claims_and_peaks(store: Store) -> None:
    [job] = insert(store, make_job())
    step = advance(job, Started(("A", "B"), "/log"), 2.0)
    claims = (Claim(job.id, 1, "B", 5), Claim(job.id, 1, "A", None))
    attempt = Attempt(job.id, 1, 2.0, "/run/\udcff", "/log", claims)
    with store.transaction():
        store.change(job, step.job, step.event)
        store.add_attempt(attempt)
        store.set_peaks([replace(claims[0], peak=7)])
    assert store.attempts(job.id) == [replace(attempt, claims=(replace(claims[0], peak=7), claims[1]))]
    found = store.job(job.id)
    assert found is not None
    assert found.peak_vram == 7


def test_environments_are_kept_once_and_erased_when_nothing_needs_them(store: Store) -> None:
    with store.transaction():
        for digest in ("live", "old", "recent"):
            store.put_environment(digest, digest.encode())
            store.put_environment(digest, b"the same hash is the same environment")
    insert(
        store,
        make_job(env_hash="live"),
        make_job(env_hash="old", state=State.FAILED, ended_at=10.0),
        make_job(env_hash="recent", state=State.FAILED, ended_at=30.0),
        make_job(env_hash="live", state=State.FAILED, ended_at=1.0),
    )
    assert store.environment("old") == b"old"
    with store.transaction():
        assert store.erase_environments(20.0) == 1
    assert [store.environment(d) for d in ("live", "old", "recent")] == [b"live", None, b"recent"]


def test_submissions_are_known_by_their_key(store: Store) -> None:
    insert(store, make_job(), make_job(), key="a")
    insert(store, make_job(), key="b")
    assert (store.submission("a"), store.submission("b"), store.submission("c")) == ((1, 2), (3, 3), None)
    with pytest.raises(StoreError):
        insert(store, make_job(), key="a")
    assert store.next_id() == 4


#: Indexes of other tables than the one of jobs.
OTHERS = {"dependencies": "dependencies_open", "events": "events_ranges"}


def test_look_ups_are_made_in_the_order_of_an_index(store: Store) -> None:
    seen: list[str] = []
    store.conn.set_trace_callback(seen.append)
    list(store.live_jobs(State.QUEUED))
    list(store.waiting(10.0))
    store.counts()
    store.walk(Selection(), ACTIVE, Order.AGE, 5)
    store.walk(Selection(), WAITING, Order.URGENCY, 5)
    store.walk(Selection(states=("queued",)), State, Order.URGENCY, 5)
    store.count(Selection(states=("queued",)), State)
    store.select(Selection(states=("queued",)))
    ended = len(seen)
    store.walk(Selection(), ENDED, Order.NEWEST, 5)
    store.count(Selection(states=("failed",)), ENDED)
    list(store.ended(Selection(), 1e9, 5))
    by_id = len(seen)
    some = Selection(ranges=((1, 2), (4, 4)))
    store.walk(some, ENDED, Order.NEWEST, 5)
    store.count(some, ENDED)
    store.select(some)
    store.jobs([1, 2])
    store.conn.set_trace_callback(None)
    for number, sql in enumerate(seen):
        plan = " ".join(row["detail"] for row in store.conn.execute(f"EXPLAIN QUERY PLAN {sql}"))
        index = "jobs_live" if number < ended else "jobs_ended" if number < by_id else "INTEGER PRIMARY KEY"
        others = (name for table, name in OTHERS.items() if f"FROM {table}" in sql)
        assert next(others, index) in plan, (sql, plan)
        assert "SCAN jobs" not in plan, (sql, plan)
        paged = number < by_id and "LIMIT" in sql and "ORDER BY id" not in sql  # few jobs run, and they are sorted
        assert not paged or "TEMP B-TREE" not in plan, (sql, plan)


def test_changes_beside_many_long_jobs_are_not_written_anew_with_each_commit(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "queue.db")) as store:
        store.keep_changes(tmp_path / changes.NAME)
        insert(store, *(make_job(command=("true", str(n), "x" * 10_000)) for n in range(1000)))
        file = tmp_path / changes.NAME
        seen = set()
        for number in range(30):
            insert(store, make_job(), key=f"key {number}")
            seen.add(file.stat().st_ino)
        assert len(seen) == 1
        assert store.changes is not None and not store.changes.behind


# --- what jobs wait for ----------------------------------------------------------------------------

GRAPHS = st.lists(
    st.tuples(
        st.sampled_from((State.QUEUED, State.QUEUED, State.HELD, State.FAILED)),
        st.lists(st.tuples(st.integers(1, 7), st.booleans()), max_size=3),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=GRAPHS, wanted=st.lists(st.integers(1, 7), max_size=2), data=st.data())
def test_a_cycle_goes_through_what_waits_only(
    store: Store, graph: list[tuple[State, list[tuple[int, bool]]]], wanted: list[int], data: st.DataObject
) -> None:
    """Whatever edits have made of the jobs: an edge upward, and one that is met."""
    edges: set[tuple[int, int]] = set()
    with store.transaction():
        for table in ("jobs", "dependencies"):
            store.conn.execute(f"DELETE FROM {table}")
        for n, (state, needs) in enumerate(graph, 1):
            after = clauses(*(f"any:{on}" for on, _ in needs))
            store.insert_job(make_job(n, state, after=after), Event(0.0, Kind.SUBMITTED, n))
            open_ = {(number, after[number].alternatives[0]) for number, (_, still) in enumerate(needs) if still}
            store.add_dependencies([n], after, open_)
            edges |= {(n, on) for on, still in needs if still and state in WAITING}
    job_id = data.draw(st.integers(1, len(graph)))
    edges = {(a, b) for a, b in edges if a != job_id}  # it will wait for those that are wanted instead
    reached, more = set(wanted), set(wanted)
    while more:
        more = {b for a, b in edges if a in more} - reached
        reached |= more
    found = dependents.cycle(store, job_id, wanted)
    waits_itself = job_id in reached
    assert (found is not None) == waits_itself
    if found is not None:
        assert found[0] == found[-1] == job_id and set(pairwise(found[1:])) <= edges


def test_a_tag_finds_its_jobs_by_an_index(store: Store) -> None:
    tags: list[tuple[str, ...]] = [("prep",), ("a", "prep"), (), ("preparation",), ('pr"ep',), ("\u2028größe",)]
    for n in range(60):
        insert(
            store,
            make_job(tags=tags[n % 6], owner=1000 + (n == 6), group="night" if n % 7 == 0 else None),
            key=f"key {n}",
        )
    seen: list[str] = []
    store.conn.set_trace_callback(seen.append)
    assert sorted(store.tagged_jobs("prep", 1000, "", 100, 1000)[0]) == sorted(
        {*range(1, 61, 6), *range(2, 61, 6)} - {7}
    )
    assert store.tagged_jobs("nobody", 1000, "", 100, 1000) == ([], None)
    assert store.tagged_jobs('pr"ep', 1000, "", 100, 1000)[0] == list(range(5, 61, 6))
    assert store.tagged_jobs("\u2028größe", 1000, "", 100, 1000)[0] == list(range(6, 61, 6))
    assert len(store.tagged_jobs("prep", 1000, "", 100, 3)[0]) == 3
    assert store.group_jobs("night", 1000, 1000) == list(range(1, 61, 7))
    store.conn.set_trace_callback(None)
    place: str | None = ""
    ids: list[int] = []
    while place is not None:
        some, place = store.tagged_jobs("prep", 1000, place, 2, 1000)
        ids += some
    assert sorted(ids) == sorted({*range(1, 61, 6), *range(2, 61, 6)} - {7}), "in parts, too"
    for sql in seen:
        plan = " ".join(row["detail"] for row in store.conn.execute(f"EXPLAIN QUERY PLAN {sql}"))
        assert ("jobs_tags" in plan or "jobs_group" in plan) and "SCAN jobs" not in plan, (sql, plan)


def test_a_start_that_nobody_waits_for_costs_no_statement(store: Store) -> None:
    insert(store, *(make_job() for _ in range(4)))
    with store.transaction():
        for n, text in ((2, "ok:1"), (3, "started:1"), (4, "any:3|started:2")):
            after = clauses(text)
            store.add_dependencies([n], after, numbered(after))
    assert dependents.starts_awaited(store, [1, 2, 3, 4]) == [1, 2], "asked once"
    seen: list[str] = []
    store.conn.set_trace_callback(seen.append)
    assert dependents.starts_awaited(store, [3, 4]) == []
    assert not seen
    after = clauses("started:3")
    store.add_dependencies([4], after, numbered(after))
    assert dependents.starts_awaited(store, [3]) == [3], "those that come later are known, too"
    plans = {
        "dependencies_started": "SELECT 1 FROM dependencies WHERE on_id = 1 AND met = 0 AND condition = 'started'",
        "dependencies_open": "SELECT 1 FROM dependencies WHERE on_id = 1 AND met = 0 AND rowid > 5 ORDER BY rowid",
    }
    for index, sql in plans.items():
        plan = " ".join(row["detail"] for row in store.conn.execute(f"EXPLAIN QUERY PLAN {sql}"))
        assert index in plan and "TEMP B-TREE" not in plan
