"""A cancel of many, in slices, does what a cancel of each would have done, and others are served meanwhile."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.client import Client
from gpuq.daemon import handlers
from gpuq.daemon.core import Core
from gpuq.daemon.running import NewAttempt
from gpuq.events import Event, Kind
from gpuq.launch.supervisors import Supervisor
from gpuq.model import ArrayPlace, Attempt, Clause, Condition, Dependency, Request, Settings, State
from gpuq.policy.lifecycle import Cancelled, Ended, Started, advance
from gpuq.store import changes
from gpuq.store.store import Store
from tests.harness import Box
from tests.policy.build import HOST, make_job, numbered

#: Of each job: held or not, CPUs, begin time, in clauses on which earlier ones it depends and how, and its array with
#: the limit.
QUEUES = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(1, 2),
        st.none() | st.just(2e9),
        st.lists(st.lists(st.tuples(st.integers(1, 8), st.sampled_from(Condition)), max_size=3), max_size=2),
        st.none() | st.tuples(st.sampled_from((1, 2)), st.sampled_from((0, 2))),
    ),
    min_size=1,
    max_size=9,
)
Queue = list[tuple[bool, int, float | None, list[list[tuple[int, Condition]]], tuple[int, int] | None]]


def after_of(job_id: int, wanted: list[list[tuple[int, Condition]]]) -> tuple[Clause, ...]:
    """What a job of the queue waits for: only jobs before it are there to depend on."""
    clauses = (tuple(dict.fromkeys(Dependency(how, on) for on, how in some if on < job_id)) for some in wanted)
    return tuple(dict.fromkeys(Clause(alternatives) for alternatives in clauses if alternatives))


@contextmanager
def filled(queue: Queue) -> Iterator[Core]:
    """A daemon's state with these jobs, numbered from 1."""
    with tempfile.TemporaryDirectory() as name, closing(Store(Path(name) / "queue.db")) as store:
        store.conn.execute("PRAGMA synchronous = OFF")
        store.keep_changes(Path(name) / changes.NAME)
        core = Core(Settings(), store, HOST, Path(name), Path(name) / "jobs")
        for job_id, (held, cpus, begin_at, wanted, array) in enumerate(queue, 1):
            after = after_of(job_id, wanted)
            job = make_job(
                job_id,
                State.HELD if held else State.QUEUED,
                request=Request(0, None, cpus, 0),
                begin_at=begin_at,
                after=after,
                array=ArrayPlace(array[0], job_id, array[1]) if array else None,
            )
            with store.transaction():
                store.insert_job(job, Event(0.0, Kind.SUBMITTED, job_id))
                store.add_dependencies([job_id], after, numbered(after))
            core.waiting.put(job, len(after), 0.0)
        core.reserve.keep()
        yield core


def outcome(core: Core) -> object:
    """What is to be the same, however it came about."""
    jobs = {job.id: job for job in core.store.every_job()}
    told = [event for event in core.store.events(0, None, None) if event.job_id is not None]
    # a job that is cancelled next may have been ready in between
    events = Counter((e.kind, e.job_id) for e in told if e.kind is not Kind.READY or not jobs[e.job_id or 0].ended)
    waiting = {job_id: (core.waiting.blocked(job_id), core.waiting.key(job_id)) for job_id in jobs}
    return {n: job.state for n, job in jobs.items()}, events, core.waiting.groups, waiting


@settings(max_examples=100, deadline=None)
@given(queue=QUEUES, chosen=st.sets(st.integers(1, 9), min_size=1), slice_=st.integers(1, 4))
def test_a_cancel_of_many_is_a_cancel_of_each(queue: Queue, chosen: set[int], slice_: int) -> None:
    ids = sorted(job_id for job_id in chosen if job_id <= len(queue))
    with filled(queue) as one_by_one, filled(queue) as many:
        one_by_one.apply([(job, Cancelled()) for job in one_by_one.store.jobs(ids)])
        many.store.counts()
        for end in range(len(ids), 0, -slice_):
            many.cancel_waiting(ids[max(0, end - slice_) : end])
        assert outcome(many) == outcome(one_by_one)
        counted = many.store.counts()
        many.store._counted.clear()
        assert counted == many.store.counts(), "what is counted once is kept right"
        told = changes.read(many.state_dir / changes.NAME)
        states = {job_id: values["state"] for job_id, (_, values) in told.rows.items()}
        assert states == {job.id: job.state for job in many.store.every_job()}


@settings(max_examples=100, deadline=None)
@given(queue=QUEUES)
def test_a_start_finds_in_the_store_what_was_in_memory(queue: Queue) -> None:
    with filled(queue) as before:
        after = Core(Settings(), before.store, HOST, before.state_dir, before.run_root)
        after.load()
        assert after.waiting.groups == before.waiting.groups
        for job_id in range(1, len(queue) + 1):
            assert after.waiting.key(job_id) == before.waiting.key(job_id)
            assert after.waiting.blocked(job_id) == before.waiting.blocked(job_id)


def test_thousands_are_cancelled_while_others_are_served(box: Box) -> None:
    count = 3 * handlers.SLICE + 7
    first = box.submit("true", hold=True)
    box.submit_many([["true"]] * (count - 1), hold=True)
    last = box.submit("true", after=[f"ok:{first + 1}"])  # chosen as well, thus cancelled, not skipped
    skipped, freed = box.submit("true", after=[f"ok:{last}"]), box.submit("true", after=[f"any:{last}"])
    with Client.connect() as cancelling, Client.connect() as waiting:
        waiting.send("wait", sel={"ranges": [[first + 1, first + 1]]})
        cancelling.send("cancel", sel={"ranges": [[first + 1, last]]})
        assert cancelling.receive() == {"ok": True, "done": list(range(first + 1, last + 1)), "refused": []}
        assert waiting.receive()["jobs"][0]["state"] == "cancelled"
    assert box.job(skipped)["note"] == f"depends on ok:{last}, which was cancelled"
    assert box.wait(freed)["state"] == "succeeded"
    box.kill_daemon()
    counts = box.request("status")["jobs"]
    assert counts == {"held": 1}, "the next daemon knows of every one"
    assert box.request("list", sel={"states": ["cancelled"]}, all=True, limit=1)["total"] == count


def test_one_that_was_named_and_cannot_be_cancelled_is_told_of_beside_many(box: Box) -> None:
    ended = box.submit("true")
    box.wait(ended)
    ids = box.submit_many([["true"]] * 5, hold=True)
    reply = box.request("cancel", sel={"ranges": [[ended, ended], *([n, n] for n in ids)]})
    assert reply["done"] == ids
    assert [item["id"] for item in reply["refused"]] == [ended]


def test_a_supervisor_that_sees_to_another_job_is_that_ones(tmp_path: Path) -> None:
    """The end of the first may be recorded later than the second begins: a write of it failed."""
    with filled([(False, 1, None, [], None)] * 2) as core:
        supervisor = Supervisor(pid=7, pidfd=-1, start_time=1)
        for job_id in (1, 2):
            job = core.store.job(job_id)
            assert job is not None
            started = advance(job, Started((), "log"), 0.0)
            core.apply([], [NewAttempt(job, started, Attempt(job_id, 1, 0.0, str(tmp_path), "log"))])
            core.supervised(core.running[job_id], supervisor)
        core.apply([(core.running[1].job, Ended(exit_code=0))])
        assert core.shims == {7: 2}
        core.apply([(core.running[2].job, Ended(exit_code=0))])
        assert core.shims == {}
