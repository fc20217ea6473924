"""What the end of a job means for those that wait on it: the same in one transaction or in many, and across deaths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.client import Client
from gpuq.daemon import cascade
from gpuq.daemon.core import Core
from gpuq.errors import ConnectionLost
from gpuq.events import Kind
from gpuq.model import ENDED, WAITING, Clause, Condition, Settings, State
from tests.daemon.test_many import QUEUES, Queue, after_of, filled
from tests.harness import Box, gone, wait_until

MANY = 3 * cascade.MOST + 7


@contextmanager
def parts_of(size: int) -> Iterator[None]:
    """So many dependents, and of so many jobs, are seen to in one transaction."""
    before = cascade.MOST, cascade.GROUP
    cascade.MOST, cascade.GROUP = size, 1
    try:
        yield
    finally:
        cascade.MOST, cascade.GROUP = before


def expected(queue: Queue, chosen: set[int]) -> tuple[dict[int, State], set[int]]:
    """The states after these were cancelled, and who became ready meanwhile: told from the definition alone."""
    after = {n: after_of(n, wanted) for n, (_, _, _, wanted, _) in enumerate(queue, 1)}
    states = {n: State.HELD if held else State.QUEUED for n, (held, *_) in enumerate(queue, 1)}
    states |= dict.fromkeys(chosen, State.CANCELLED)

    def holds(clause: Clause) -> bool:
        return any(d.condition is Condition.ANY and states[d.job_id] in ENDED for d in clause.alternatives)

    def never(clause: Clause) -> bool:
        return not holds(clause) and all(states[d.job_id] in ENDED for d in clause.alternatives)

    while broken := {n for n, state in states.items() if state in WAITING and any(map(never, after[n]))}:
        states |= dict.fromkeys(broken, State.SKIPPED)
    waiting = [n for n, state in states.items() if state in WAITING]
    return states, {n for n in waiting if after[n] and all(map(holds, after[n]))}


def found(core: Core) -> tuple[dict[int, State], set[int]]:
    events = core.store.events(0, None, None)
    told = [event.job_id for event in events if event.kind is Kind.READY]
    skipped = [event.job_id for event in events if event.kind is Kind.SKIPPED]
    assert len(set(told)) == len(told) and len(set(skipped)) == len(skipped), "each is told once"
    return {job.id: job.state for job in core.store.every_job()}, {n for n in told if n is not None}


@settings(max_examples=150, deadline=None)
@given(queue=QUEUES, chosen=st.sets(st.integers(1, 9), min_size=1), size=st.integers(1, 4), deaths=st.booleans())
def test_parts_come_to_what_the_whole_means(queue: Queue, chosen: set[int], size: int, deaths: bool) -> None:
    chosen = {n for n in chosen if n <= len(queue)}
    if not chosen:
        return
    with filled(queue) as core, parts_of(size):
        core.store.counts()
        core.cancel_waiting(sorted(chosen))
        rounds = 0
        while core.cascade.left:
            if deaths:  # the next daemon knows what the database says, and nothing else
                core = Core(Settings(), core.store, core.host, core.state_dir, core.run_root)
                core.load()
                core.reserve.keep()
            core.go_on()
            rounds += 1
            assert rounds < 100
        assert found(core) == expected(queue, chosen)
        fresh = Core(Settings(), core.store, core.host, core.state_dir, core.run_root)
        fresh.load()
        assert not fresh.cascade.left
        assert fresh.waiting.groups == core.waiting.groups
        assert [fresh.waiting.blocked(n) for n in range(10)] == [core.waiting.blocked(n) for n in range(10)]


def test_a_transaction_that_fails_has_told_nobody() -> None:
    after: list[list[list[tuple[int, Condition]]]] = [[], *([[(1, how)]] for how in [*Condition] * 2)]
    queue: Queue = [(False, 1, None, wanted, None) for wanted in after]
    with filled(queue) as core, parts_of(2):
        core.cancel_waiting([1])
        left, states = dict(core.cascade.left), found(core)
        core.store.conn.execute("CREATE TRIGGER no AFTER UPDATE ON dependencies BEGIN SELECT raise(ABORT, 'no'); END")
        with pytest.raises(Exception, match="no"):
            core.go_on()
        assert (core.cascade.left, found(core)) == (left, states)
        core.store.conn.execute("DROP TRIGGER no")
        while core.cascade.left:
            core.go_on()
        assert found(core) == expected(queue, {1})


def test_a_cancel_is_answered_when_all_who_wait_are_told(box: Box) -> None:
    root = box.submit("true", hold=True)
    broken = box.submit_many([["true"]] * MANY, after=[f"ok:{root}"])
    freed = box.submit_many([["true"]] * MANY, after=[f"any:{root}"], hold=True)
    last = box.submit("true", after=[f"any:{broken[0]}", f"any:{broken[-1]}"])
    box.request("cancel", sel={"ranges": [[root, root]]})
    counts = box.request("status")["jobs"]
    assert counts["held"] == MANY and set(counts) <= {"held", "queued", "running"}, "no other of them waits"
    assert box.job(broken[-1])["note"] == f"depends on ok:{root}, which was cancelled"
    assert box.job(freed[-1])["reason"] == "Held"
    assert [event["kind"] for event in box.job(freed[-1])["events"]] == ["submitted", "ready"]
    assert box.wait(last)["state"] == "succeeded"


def test_those_who_wait_on_a_job_that_ran_go_on_by_themselves(box: Box) -> None:
    root = box.submit("true", hold=True)
    ids = box.submit_many([["true"]] * MANY, after=[f"failed:{root}"])
    last = box.submit("true", after=[f"any:{ids[-1]}"])
    box.request("release", sel={"ranges": [[root, root]]})
    assert box.wait(last)["state"] == "succeeded"
    wait_until(lambda: not box.request("status")["jobs"], "the end of all")


def test_a_retry_does_not_keep_those_who_waited_on_the_attempt_before(box: Box) -> None:
    gate = box.folder / "gate"
    root = box.submit("sh", "-c", f'[ -e "{gate}" ]', hold=True)
    ids = box.submit_many([["true"]] * MANY, after=[f"ok:{root}"])
    box.request("release", sel={"ranges": [[root, root]]})
    box.wait(root)
    gate.touch()
    box.request("retry", sel={"ranges": [[root, root]]})
    states = {job["state"] for job in box.request("list", sel={"ranges": [[ids[0], ids[-1]]]})["jobs"]}
    assert states == {"skipped"}
    assert box.wait(root)["state"] == "succeeded"


def test_a_daemon_goes_on_where_another_died(box: Box) -> None:
    root = box.submit("true", hold=True)
    ids = box.submit_many([["true"]] * MANY, after=[f"ok:{root}"])
    freed = box.submit_many([["true"]] * MANY, after=[f"any:{root}"], hold=True)
    box.kill_daemon()
    box.setenv(GPUQ_CRASH_AT="transition-after:2")
    with Client.connect() as client, pytest.raises(ConnectionLost):
        box.setenv(GPUQ_CRASH_AT=None)
        pid = box.daemon_pid()
        client.request("cancel", sel={"ranges": [[root, root]]})
    wait_until(lambda: gone(pid), "the death")
    wait_until(lambda: box.request("status")["jobs"] == {"held": MANY}, "the rest")
    every = box.request("list", sel={"ranges": [[ids[0], freed[-1]]]})["jobs"]
    assert {job["id"]: job["state"] for job in every} == dict.fromkeys(ids, "skipped") | dict.fromkeys(freed, "held")
    assert {job["reason"] for job in every if job["state"] == "held"} == {"Held"}
    kinds = [event["kind"] for event in box.request("events")["events"]]
    assert kinds.count("skipped") == kinds.count("ready") == MANY
