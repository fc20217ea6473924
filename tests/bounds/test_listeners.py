"""What changes to many cost while somebody listens: statements, rows of a turn, and bytes, not a look at each job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gpuq.daemon import awaiting, looking
from gpuq.daemon.asking import Daemon, Session
from gpuq.daemon.core import Core
from gpuq.daemon.handlers import SLICE
from gpuq.daemon.hub import Hub, Ranges
from gpuq.events import Event, Kind
from gpuq.protocol import MAX_ID, Message
from tests.bounds.test_flat import instructions, queue

JOBS = 8000
ALL: Message = {"sel": {"ranges": [[1, 10**6]]}}


class Asked:
    """The one thing that a request which only looks wants of a daemon."""

    def __init__(self, core: Core) -> None:
        self.core = core


def stream(
    what: Callable[[Daemon, Session, Message], AsyncIterator[Message]], core: Core, **fields: Any
) -> AsyncIterator[Message]:
    return what(cast(Daemon, Asked(core)), Session(1000, lambda: False), fields)


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuq.daemon.hub.REST", 0)


async def cancel_all(core: Core) -> int:
    """In slices, the newest first, as the request does it; how many slices."""
    ids = core.store.conn.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY id").fetchall()
    slices = 0
    for end in range(len(ids), 0, -SLICE):
        core.cancel_waiting([row["id"] for row in ids[max(0, end - SLICE) : end]])
        slices += 1
        for _ in range(5):
            await asyncio.sleep(0)
    return slices


async def one(messages: AsyncIterator[Message]) -> Message:
    return await anext(messages)


def test_who_waits_for_many_looks_at_few(tmp_path: Path) -> None:
    with queue(tmp_path, JOBS) as core:

        async def listened(listeners: int) -> tuple[list[str], int, list[Message]]:
            asked: list[str] = []
            waits = [
                asyncio.ensure_future(one(stream(awaiting.wait, core, **ALL, brief=True))) for _ in range(listeners)
            ]
            await asyncio.sleep(0.05)
            core.store.conn.set_trace_callback(asked.append)
            slices = await cancel_all(core)
            told = await asyncio.gather(*waits)
            core.store.conn.set_trace_callback(None)
            return asked, slices, told

        asked, slices, told = asyncio.run(listened(2))
    rows = 11 * JOBS + 2
    per_listener = (len(asked) - 11 * slices) / 2
    assert per_listener < 3 * rows / awaiting.LOOK + 10, "pages of what it waits for, none per job or slice"
    for message in told:
        assert sum(message["counts"].values()) == sum(high - low + 1 for low, high in message["ended"])
        assert message["counts"]["cancelled"] > JOBS
        assert len(message["jobs"]) == awaiting.FEW
        assert len(json.dumps(message)) < 60_000


def test_a_page_of_events_costs_what_is_in_it(tmp_path: Path) -> None:
    costs = []
    for size in (1000, 8000):
        with queue(tmp_path / str(size), size) as core:
            with core.store.transaction():
                core.store.add_events([Event(0.0, Kind.HELD, n) for n in range(1, size)])
                core.store.add_events([Event(0.0, Kind.SUBMITTED, 1)], last_id=size)
            last = core.store.last_event()
            for place in ((last - size, MAX_ID), (last, size // 2)):

                def take(place: tuple[int, int] = place, last: int = last) -> None:
                    found, _ = core.store.events_page(place, last, None, 100)
                    assert len(found) == 100

                costs.append(instructions(core.store, take))
    assert costs[2] <= 1.3 * costs[0] and costs[3] <= 1.3 * costs[1], costs


def test_a_follower_reads_pages_and_gives_way_between_them(tmp_path: Path) -> None:
    with queue(tmp_path, 2000) as core:

        async def follow() -> tuple[list[Message], int, int]:
            events = stream(looking.events, core, follow=True, limit=1, pages=True)
            await anext(events)
            slices = await cancel_all(core)
            pages: list[Message] = []
            rests = 0
            rest = core.hub.rest

            async def counted() -> None:
                nonlocal rests
                rests += 1
                await rest()

            core.hub.rest = counted  # type: ignore[method-assign]
            while sum(len(page["events"]) for page in pages) < 2000:
                pages.append(await anext(events))
            return pages, rests, slices

        pages, rests, _ = asyncio.run(follow())
    assert all(len(page["events"]) <= looking.PAGE for page in pages)
    assert rests >= 2000 // looking.PAGE - 1
    ids = [event["id"] for page in pages for event in page["events"]]
    assert len(set(ids)) == len(ids) and ids == sorted(ids)


def test_a_hub_keeps_ranges_and_not_each_job() -> None:
    hub = Hub()
    with hub.listen_within(Ranges([(1, 10**9), (5, 7)])), hub.listen([3]):
        assert hub.awaited() == [3]
        assert [ranges.spans for ranges in hub._wide.values()] == [[(1, 10**9)]]
    assert not hub.awaited() and not hub._wide
