"""Who waits on a job that ends is seen to in parts: what a part costs does not grow with them, nor does a start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gpuq.daemon import cascade
from gpuq.daemon.core import Core
from gpuq.daemon.running import NewAttempt
from gpuq.events import Event, Kind
from gpuq.model import Attempt, Settings, State
from gpuq.policy.dependencies import Standing
from gpuq.policy.lifecycle import Started, advance
from gpuq.store import dependents
from gpuq.store.store import Store
from tests.bounds.test_flat import instructions
from tests.policy.build import HOST, clauses, make_job, numbered

FEW, MANY = 4 * cascade.MOST, 40 * cascade.MOST


def awaited(folder: Path, count: int, *words: str) -> Core:
    """A job on which so many wait, and two more that they may wait on."""
    folder.mkdir()
    store = Store(folder / "queue.db")
    wanted = clauses(*words)
    with store.transaction():
        for n in (1, 2, 3):
            store.insert_job(make_job(n), Event(0.0, Kind.SUBMITTED, n))
        own = [(n, "name", '["true"]', None) for n in range(4, count + 4)]
        store.insert_alike(make_job(0, after=wanted), own, numbered(wanted))
    core = Core(Settings(), store, HOST, folder, folder / "jobs")
    core.load()
    return core


def start(core: Core) -> None:
    """The job on which they wait starts."""
    job = core.store.job(1)
    assert job is not None
    core.apply([], [NewAttempt(job, advance(job, Started((), "log"), 1.0), Attempt(1, 1, 1.0, "/", "log"))])


def cancel(core: Core) -> None:
    core.cancel_waiting([1])


@pytest.mark.parametrize(
    ("words", "what", "most"),
    [
        (["ok:1"], cancel, 14),
        (["any:1"], cancel, 14),
        (["started:1"], start, 14),
        (["any:1|ok:2|ok:3", "ok:2"], cancel, 14),
        (["ok:1|ok:2"], cancel, 14),
    ],
    ids=["ok", "any", "started", "met", "lost"],
)
def test_a_part_costs_as_much_of_few_as_of_many(
    words: list[str], what: Callable[[Core], None], most: int, tmp_path: Path
) -> None:
    costs: list[list[int]] = []
    for count in (FEW, MANY):
        core = awaited(tmp_path / str(count), count, *words)
        asked: list[str] = []
        with closing(core.store) as store:
            found = instructions(store, lambda core=core: what(core))  # type: ignore[misc]
            store.conn.set_trace_callback(asked.append)
            core.go_on()
            store.conn.set_trace_callback(None)
            costs.append([found, instructions(store, core.go_on)])
            assert core.cascade.left
            changed = store.conn.execute(
                "SELECT count(DISTINCT job_id) FROM dependencies WHERE met AND clause = 0"
            ).fetchone()[0]
        assert changed == 3 * cascade.MOST
        assert len(asked) <= most, asked
    assert all(many <= 1.2 * few + 100 for few, many in zip(*costs, strict=True)), costs


def test_the_start_of_a_job_that_others_only_want_to_end_looks_at_none_of_them(tmp_path: Path) -> None:
    costs = []
    for count in (FEW, MANY):
        core = awaited(tmp_path / str(count), count, "ok:1", "started:2")
        with closing(core.store) as store:
            costs.append(instructions(store, lambda core=core: start(core)))  # type: ignore[misc]
            assert not core.cascade.left
    assert costs[1] <= costs[0] + 20, costs


def test_a_start_looks_at_the_jobs_that_others_wait_on(tmp_path: Path) -> None:
    costs = []
    for count in (FEW, MANY):
        core = awaited(tmp_path / str(count), count, "ok:1", "started:2")
        with closing(core.store) as store:
            costs.append(instructions(store, lambda store=store: dependents.left(store)))  # type: ignore[misc]
            assert dependents.left(store) == {}
            core.cancel_waiting([1])
            assert dependents.left(store) == {1: Standing(State.CANCELLED, False)}
    assert costs[1] <= costs[0] + 20, costs
