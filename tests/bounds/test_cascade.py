"""Who waits on a job that ends is seen to in parts: what a part costs does not grow with them, nor does a start."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from gpuq.daemon import cascade
from gpuq.daemon.core import Core
from gpuq.events import Event, Kind
from gpuq.model import Condition, Settings, State
from gpuq.policy.dependencies import Standing
from gpuq.store import dependents
from gpuq.store.store import Store
from tests.bounds.test_flat import instructions
from tests.policy.build import HOST, clauses, make_job, numbered

FEW, MANY = 4 * cascade.MOST, 40 * cascade.MOST


def awaited(folder: Path, count: int, condition: Condition) -> Core:
    """A job on which so many wait."""
    folder.mkdir()
    store = Store(folder / "queue.db")
    wanted = clauses(f"{condition}:1")
    with store.transaction():
        store.insert_job(make_job(1, State.HELD), Event(0.0, Kind.SUBMITTED, 1))
        store.insert_alike(
            make_job(0, after=wanted), [(n, "name", '["true"]', None) for n in range(2, count + 2)], numbered(wanted)
        )
    core = Core(Settings(), store, HOST, folder, folder / "jobs")
    core.load()
    return core


def test_a_part_costs_as_much_of_few_as_of_many(tmp_path: Path) -> None:
    for condition in (Condition.OK, Condition.ANY):
        costs: list[list[int]] = []
        for count in (FEW, MANY):
            core = awaited(tmp_path / f"{condition}-{count}", count, condition)
            asked: list[str] = []
            with closing(core.store) as store:
                found = instructions(store, lambda core=core: core.cancel_waiting([1]))  # type: ignore[misc]
                store.conn.set_trace_callback(asked.append)
                core.go_on()
                store.conn.set_trace_callback(None)
                costs.append([found, instructions(store, core.go_on)])
                assert core.cascade.left
                changed = store.conn.execute("SELECT count(*) FROM dependencies WHERE met").fetchone()[0]
            assert changed == 3 * cascade.MOST
            assert len(asked) <= 14, asked
        assert all(many <= 1.2 * few + 100 for few, many in zip(*costs, strict=True)), costs


def test_a_start_looks_at_the_jobs_that_others_wait_on(tmp_path: Path) -> None:
    costs = []
    for count in (FEW, MANY):
        core = awaited(tmp_path / str(count), count, Condition.OK)
        with closing(core.store) as store:
            costs.append(instructions(store, lambda store=store: dependents.left(store)))  # type: ignore[misc]
            assert dependents.left(store) == {}
            core.cancel_waiting([1])
            assert dependents.left(store) == {1: Standing(State.CANCELLED, False)}
    assert costs[1] <= costs[0] + 20, costs
