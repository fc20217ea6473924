"""A submission in slices: unseen until one short commit, gone without a trace where that does not come."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from gpuq.errors import StoreDamaged
from gpuq.events import Event, Kind
from gpuq.model import Clause, Condition, State
from gpuq.policy.dependencies import Standing
from gpuq.policy.lifecycle import Cancelled, advance
from gpuq.protocol import MAX_ID, Selection
from gpuq.store import changes, dependents, recovery
from gpuq.store.lists import Order
from gpuq.store.staging import SLICE, SLICE_BYTES, Own, Staged, in_slices
from gpuq.store.store import Store
from tests.policy.build import clauses, make_job, numbered

ALL = Selection(ranges=((0, MAX_ID),))
JOBS = 3 * SLICE


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = opened_in(tmp_path)
    yield opened
    opened.close()


def opened_in(folder: Path) -> Store:
    return recovery.open_store(folder, folder / "jobs", network=False)[0]


def insert(store: Store, job_id: int) -> None:
    job = make_job(job_id)
    with store.transaction():
        store.insert_job(job, Event(1.0, Kind.SUBMITTED, job_id, None, {"name": job.name}))
        store.put_submission(f"key-{job_id:05}", job_id, job_id)


def own_values(one: Staged, count: int) -> list[Own]:
    """The next jobs of a submission."""
    return [(one.first + n, f"name {n}", f'["echo","{n}"]', None) for n in range(one.written, one.written + count)]


def staged(store: Store, count: int = JOBS, *, after: tuple[Clause, ...] = ()) -> Staged:
    """A submission of which every slice is written."""
    found = store.stage(count, "x", b"{}")
    for start in range(0, count, SLICE):
        template = make_job(0, after=after)
        found.write(template, own_values(found, min(SLICE, count - start)), numbered(after))
    return found


def show(one: Staged, key: str = "0123456789") -> None:
    one.show(key, [Event(2.0, Kind.SUBMITTED, one.first, None, {"held": True})])


def waiting_on(store: Store, job_id: int) -> list[tuple[int, Condition]]:
    """Jobs with an open dependency on this one."""
    found = dependents.page(store, job_id, Standing(State.SUCCEEDED, True), 0, 10**6).found
    return [(one.job_id, one.condition) for one in found]


def everything(store: Store) -> object:
    """Whatever the store tells of jobs."""
    jobs, total = store.select_jobs(ALL, State, Order.AGE, None), store.count(ALL, State)
    return (
        [job.id for job in jobs],
        total,
        store.select(ALL),
        store.counts(),
        store.last_job(1000),
        [job.id for job in store.live_jobs(State.QUEUED)],
        [job.id for job in store.every_job()],
        waiting_on(store, 1),
        store.submission("0123456789"),
        store.events(0, None, None),
        store.events(0, ALL, None),
        [(store.job(n), store.state_of(n)) for n in (2, 3, SLICE + 1)],
    )


def statements(store: Store, work: object) -> list[str]:
    """The SQL statements that a piece of work takes."""
    assert callable(work)
    told: list[str] = []
    store.conn.set_trace_callback(told.append)
    work()
    store.conn.set_trace_callback(None)
    return told


def test_nobody_sees_a_job_before_all_are_shown(store: Store) -> None:
    insert(store, 1)
    before = everything(store)
    one = staged(store, after=clauses("ok:1"))
    assert everything(store) == before
    show(one)
    jobs = store.select_jobs(ALL, State, Order.AGE, None)
    assert [job.id for job in jobs] == list(range(1, JOBS + 2))
    assert store.job(SLICE + 7) == make_job(
        SLICE + 7, name=f"name {SLICE + 5}", command=("echo", str(SLICE + 5)), after=clauses("ok:1")
    )
    assert store.submission("0123456789") == (2, JOBS + 1)
    assert waiting_on(store, 1) == [(n, Condition.OK) for n in range(2, JOBS + 2)]
    assert store.counts() == {"queued": JOBS + 1}
    assert store.environment("x") == b"{}"


def test_what_is_given_up_leaves_nothing_and_its_ids_are_given_out_again(store: Store) -> None:
    insert(store, 1)
    before = everything(store)
    one = staged(store, after=clauses("ok:1"))
    rounds = 1
    while one.remove_some(5.0):
        rounds += 1
        assert everything(store) == before
    assert rounds == JOBS // SLICE, "a slice at a time"
    assert everything(store) == before and store.next_id() == 2
    for table, left in (("jobs", 1), ("dependencies", 0), ("submissions", 1)):
        assert store.conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == left
    empty = store.stage(5, "x", b"{}")
    assert not empty.remove_some(5.0) and store.next_id() == 2


def test_ids_of_nobody_are_told_where_later_ones_were_given_out(store: Store) -> None:
    one = staged(store)
    insert(store, store.next_id())
    while one.remove_some(5.0):
        pass
    assert store.next_id() == JOBS + 2
    [event] = [event for event in store.events(0, None, None) if event.kind is Kind.WITHDRAWN]
    assert (event.at, dict(event.data)) == (5.0, {"ids": [[1, JOBS]]})
    assert list(store.pruned()) == [(1, JOBS)], "a recovery does not call them missing"


def test_two_at_once_have_ids_that_follow_each_other(store: Store) -> None:
    one, two = store.stage(SLICE, "x", b"{}"), store.stage(SLICE, "x", b"{}")
    two.write(make_job(0), own_values(two, SLICE), set())
    one.write(make_job(0), own_values(one, SLICE), set())
    show(two, "second key")
    assert store.select(ALL) == list(range(SLICE + 1, 2 * SLICE + 1))
    show(one, "first key")
    assert [store.submission(key) for key in ("first key", "second key")] == [(1, SLICE), (SLICE + 1, 2 * SLICE)]


def test_a_key_that_is_taken_keeps_the_jobs_unseen(store: Store) -> None:
    insert(store, 1)
    one = staged(store)
    with pytest.raises(Exception, match="UNIQUE"):
        show(one, "key-00001")
    assert store.select(ALL) == [1]
    show(one)
    assert len(store.select(ALL)) == JOBS + 1


def test_a_start_removes_what_is_unfinished(tmp_path: Path) -> None:
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        one, two = staged(store), staged(store)
        show(two)
    with closing(opened_in(tmp_path)) as store:
        assert store.select(ALL) == [1, *range(two.first, two.last + 1)]
        assert store.next_id() == two.last + 1
        assert list(store.pruned()) == [(one.first, one.last)]
        left = "SELECT count(*) FROM jobs WHERE id BETWEEN ? AND ?"
        assert store.conn.execute(left, (one.first, one.last)).fetchone()[0] == 0
        assert store.conn.execute("SELECT count(*) FROM submissions WHERE unfinished").fetchone()[0] == 0


def test_a_damaged_database_does_not_bring_back_what_nobody_was_shown(tmp_path: Path) -> None:
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        one, two = staged(store), staged(store)
        show(two)
    recovery.mark(tmp_path, "to see")
    with closing(opened_in(tmp_path)) as store:
        assert store.select(ALL) == [1, *range(two.first, two.last + 1)]
        assert store.next_id() > two.last > one.last


def test_a_lost_database_is_made_of_what_was_shown(tmp_path: Path) -> None:
    """The file of changes alone: rows that were staged count if a later line shows them."""
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        one = staged(store)
        show(one)
        shown = store.job(one.first + SLICE)
        staged(store)
        assert store.changes is not None
        told = changes.read(tmp_path / changes.NAME)
    assert sorted(told.rows) == list(range(1, one.last + 1))
    assert told.submissions["0123456789"] == (one.first, one.last)
    (tmp_path / "queue.db").write_bytes(b"not a database, but long enough to be one" * 100)
    with closing(opened_in(tmp_path)) as store:
        assert store.select(ALL) == list(range(1, one.last + 1))
        assert store.job(one.first + SLICE) == shown


@pytest.mark.parametrize("finished", [True, False])
def test_changes_that_are_written_anew_meanwhile_lose_nothing(tmp_path: Path, finished: bool) -> None:
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        one = store.stage(2 * SLICE, "x", b"{}")
        one.write(make_job(0), own_values(one, SLICE), set())
        assert store.changes is not None
        store.changes.behind = True
        insert(store, store.next_id())
        assert not store.changes.behind
        one.write(make_job(0), own_values(one, SLICE), set())
        if finished:
            show(one)
        told = changes.read(tmp_path / changes.NAME)
    assert told.whole
    assert sorted(told.rows) == (list(range(1, one.last + 2)) if finished else [1, one.last + 1])


def test_what_ended_meanwhile_is_met_or_skips_them_all(store: Store) -> None:
    wanted = clauses("any:1")
    insert(store, 1)
    met, broken = staged(store, after=wanted), staged(store, after=wanted)
    skipped = replace(make_job(0, after=wanted), state=State.SKIPPED, ended_at=3.0, note="too late")
    for low, high in met.slices():
        met.meet(numbered(wanted), low, high)
    for low, high in broken.slices():
        broken.change(skipped, low, high)
    show(met)
    show(broken, "another key")
    assert waiting_on(store, 1) == []
    assert store.counts() == {"queued": 1 + JOBS}
    job = store.job(broken.last)
    assert job is not None and (job.state, job.note, job.command) == (
        State.SKIPPED,
        "too late",
        ("echo", f"{JOBS - 1}"),
    )
    assert store.changes is not None
    told = changes.read(store.path.parent / changes.NAME).rows[broken.last][1]
    assert (told["state"], told["note"], told["command"]) == ("skipped", "too late", f'["echo","{JOBS - 1}"]')


# --- what it costs --------------------------------------------------------------------------------


def test_to_show_many_takes_as_much_as_to_show_few(store: Store) -> None:
    """One commit whose size does not depend on how many jobs there are."""
    few, many = staged(store, 2), staged(store, 10 * SLICE)
    found = [statements(store, lambda one=one, key=key: show(one, key)) for one, key in ((few, "f"), (many, "m"))]
    assert len(found[0]) == len(found[1]) < 10
    assert sum("COMMIT" in text for text in found[1]) == 1
    written = store.conn.execute("SELECT count(*) FROM events WHERE kind = 'submitted'").fetchone()[0]
    assert written == 2, "one row of events for each submission"


def test_a_slice_is_one_statement_of_rows_and_a_commit_that_is_not_synced(store: Store) -> None:
    one = store.stage(2 * SLICE, "x", b"{}")
    told = statements(store, lambda: one.write(make_job(0), own_values(one, SLICE), set()))
    assert sum(text.startswith("INSERT") for text in told) == 1
    assert [text for text in told if "synchronous" in text] == [
        "PRAGMA synchronous = NORMAL",
        "PRAGMA synchronous = FULL",
    ]
    assert len(told) < 8
    one.write(make_job(0), own_values(one, SLICE), set())
    shown = statements(store, lambda: show(one))
    assert not any("synchronous" in text for text in shown)
    assert store.conn.execute("PRAGMA synchronous").fetchone()[0] == 2, "what is acknowledged is synced"


def test_the_log_stays_short_without_a_commit_that_writes_it_back(store: Store) -> None:
    store.conn.execute("PRAGMA wal_autocheckpoint = 0")
    one = store.stage(50 * SLICE, "x", b"{}")
    for _ in range(50):
        own = [(n, name, f'["echo","{n:0400}"]', index) for n, name, _, index in own_values(one, SLICE)]
        one.write(make_job(0), own, set())
        if one.in_log > 1 << 20:
            one.in_log = 0
            thread = threading.Thread(target=store.empty_log)
            thread.start()
            thread.join()
    show(one)
    assert store.path.with_name("queue.db-wal").stat().st_size < 4 << 20 < store.path.stat().st_size
    assert len(store.select(ALL)) == 50 * SLICE


def test_slices_are_small_whatever_the_commands_are() -> None:
    long = "x" * (SLICE_BYTES // 2)
    rows: list[Own] = [(n, "name", long if n < 10 else "x", None) for n in range(2 * SLICE)]
    slices = list(in_slices(rows))
    assert [row for some in slices for row in some] == rows
    assert [len(some) for some in slices] == [*[2] * 5, SLICE, SLICE - 10]
    assert not list(in_slices([]))


def test_bytes_of_a_job_in_a_large_submission(store: Store) -> None:
    count = 20 * SLICE
    show(staged(store, count))
    store.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert store.path.stat().st_size / count < 500
    assert (store.path.parent / changes.NAME).stat().st_size / count < 150


# --- events ---------------------------------------------------------------------------------------


def test_one_row_of_events_is_told_as_one_of_each_job(store: Store) -> None:
    insert(store, 1)
    one = staged(store)
    show(one)
    job = store.job(5)
    assert job is not None
    step = advance(job, Cancelled(), 9.0)
    with store.transaction():
        store.change(job, step.job, step.event)
    everyone = store.events(0, None, None)
    assert [event.job_id for event in everyone] == [*range(1, JOBS + 2), 5]
    assert everyone[3] == Event(2.0, Kind.SUBMITTED, 4, None, {"name": "name 2", "held": True}, everyone[2].id)
    assert store.events(0, ALL, None) == everyone
    for limit in (1, 2, 3, JOBS, JOBS + 1, JOBS + 2, JOBS + 9):
        assert store.events(0, None, limit) == store.events(0, ALL, limit) == everyone[-limit:]
    assert [e.kind for e in store.events(0, Selection(ranges=((5, 5),)), None)] == [Kind.SUBMITTED, Kind.CANCELLED]
    assert [e.job_id for e in store.events(0, Selection(ranges=((one.last, one.last + 9),)), None)] == [one.last]
    assert store.events(everyone[1].id, None, None) == store.events(everyone[1].id, ALL, None) == everyone[-1:]


def test_events_of_a_job_are_found_by_an_index(store: Store) -> None:
    told = statements(store, lambda: store.events(0, Selection(ranges=((5, 5),)), None))
    for text in (text for text in told if "events" in text):
        plan = " | ".join(row["detail"] for row in store.conn.execute(f"EXPLAIN QUERY PLAN {text}"))
        assert not re.search(r"SCAN (events|shared|jobs)\b", plan), plan


def test_pruned_jobs_have_no_events_and_the_last_takes_the_row_along(store: Store) -> None:
    show(staged(store, 4))

    def prune(*ids: int) -> list[int | None]:
        with store.transaction():
            store.prune(ids, 7.0)
        return [event.job_id for event in store.events(0, None, None) if event.kind is Kind.SUBMITTED]

    assert prune(1) == [2, 3, 4], "the first is not the others' event"
    assert prune(3, 4) == [2]
    assert store.submission("0123456789") == (1, 4)
    unfinished = store.stage(3, "x", b"{}")
    insert(store, 8)
    assert prune(2, 8) == []
    assert store.conn.execute("SELECT count(*) FROM events WHERE last_id IS NOT NULL").fetchone()[0] == 0
    assert store.submission("0123456789") is None
    unfinished.write(make_job(0), own_values(unfinished, 3), set())
    show(unfinished, "still there")
    assert store.submission("still there") == (5, 7)


def test_a_copy_of_a_database_that_has_something_unfinished_shows_none_of_it(tmp_path: Path) -> None:
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        staged(store)
        with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
            store.conn.backup(copy)
    with closing(Store(tmp_path / "copy.db", network=True)) as copied:
        assert copied.select(ALL) == [1]


# --- damage to the one row that hides them -------------------------------------------------------


def damaged(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "queue.db")) as base, base:
        for statement in statements:
            assert base.execute(statement).rowcount > 0, statement


def recovered(folder: Path) -> Store:
    """As a daemon's start: what it meets in memory's first look is damage, and the next one has recovered."""
    with closing(opened_in(folder)) as store, pytest.raises(StoreDamaged, match="nothing that tells of it") as met:
        store.waiting(10.0)
    recovery.mark(folder, met.value.message)
    return opened_in(folder)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM submissions WHERE unfinished",
        "UPDATE submissions SET unfinished = 0 WHERE unfinished",
        "UPDATE submissions SET last_id = first_id WHERE unfinished",
        "UPDATE submissions SET first_id = last_id WHERE unfinished",
        "UPDATE submissions SET first_id = 1, last_id = 1 WHERE unfinished",
    ],
)
@pytest.mark.parametrize("state", [State.QUEUED, State.HELD])
def test_jobs_that_nobody_was_shown_do_not_count_when_their_row_is_lost(
    tmp_path: Path, damage: str, state: State
) -> None:
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        one, two = staged(store), staged(store)
        show(two)
        left = store.stage(SLICE, "x", b"{}")
        left.write(make_job(0, state), own_values(left, SLICE), set())
        while one.remove_some(5.0):
            pass
    damaged(tmp_path, damage)
    with closing(recovered(tmp_path)) as store:
        seen = store.select(ALL)
        assert set(seen) & set(range(left.first, left.last + 1)) == set()
        assert set(seen) == {1, *range(two.first, two.last + 1)}
        assert sum(len(free.ids) for free in store.waiting(10.0)[0].values()) == len(seen)
        told = {n for low, high in store.pruned() for n in range(low, high + 1)}
        assert told >= set(range(left.first, left.last + 1)), "they are not called missing"
        assert store.next_id() > left.last
    report = recovery.last_report(tmp_path)
    assert report is not None and str(left.last) in (report.parent / "rows.jsonl").read_text(), "a person can see them"


@pytest.mark.parametrize("gone", [("events",), ("events", "submissions")])
def test_jobs_that_were_shown_count_though_what_tells_of_it_is_lost(tmp_path: Path, gone: tuple[str, ...]) -> None:
    """The submission's row tells it, or the file of changes alone."""
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        one = staged(store)
        show(one)
        expected = store.select(ALL)
        insert(store, store.next_id())
    damaged(
        tmp_path, *(f"DELETE FROM {table} WHERE {'job_id' if table == 'events' else 'first_id'} = 2" for table in gone)
    )
    with closing(recovered(tmp_path)) as store:
        assert store.select(ALL) == [*expected, one.last + 1]
        assert sum(len(free.ids) for free in store.waiting(10.0)[0].values()) == len(expected) + 1, (
            "and the next start asks no more"
        )


def test_that_jobs_were_shown_is_asked_of_each_submission_once(store: Store) -> None:
    costs = []
    for _ in range(2):
        show(staged(store), f"key {store.next_id()}")
        costs.append(len(statements(store, lambda: store.waiting(10.0))))
    assert costs[0] == costs[1] <= 3


def test_what_an_older_gpuq_left_unfinished_is_removed_by_the_one_that_follows(tmp_path: Path) -> None:
    with closing(opened_in(tmp_path)) as store:
        insert(store, 1)
        shown, _ = staged(store), staged(store)
        show(shown)
    with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as base:
        base.execute("ALTER TABLE jobs DROP COLUMN submission")
        base.execute("PRAGMA user_version = 8")
    with closing(opened_in(tmp_path)) as store:
        assert store.select(ALL) == list(range(1, shown.last + 1))
        assert store.conn.execute("SELECT count(*) FROM jobs").fetchone()[0] == shown.last
        assert sum(len(free.ids) for free in store.waiting(10.0)[0].values()) == shown.last
