"""The request `wait`: the answer comes when the jobs have ended, and costs what is told, not a look at each job.

Who waits for all of a hundred thousand listens to the first of them that lives, and goes on to the next when that one
has ended. What is read of so many is read by pages, between which others are served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from gpuq.daemon import views
from gpuq.daemon.asking import Daemon, Session, chosen
from gpuq.daemon.core import Core
from gpuq.daemon.hub import Ranges
from gpuq.model import State
from gpuq.protocol import Message, spans
from gpuq.store import ends

#: Rows that are looked at in one go, and jobs that are made ready to be sent.
LOOK, PAGE = 2000, 200
#: In a brief answer so many jobs are told of: all, or the first that did not succeed.
FEW = 20


async def wait(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """How the jobs ended, once all of them (with `any`, one of them) have.

    They come in one answer, with `pages` in several; with `brief` as ids and numbers, with the first that failed.
    """
    core = daemon.core
    ranges = _meant(core, session, message)
    if message.get("any") is True:
        await _one_ended(core, ranges)
    else:
        await _all_ended(core, ranges)
    if message.get("brief") is True:
        yield await _brief(core, ranges)
        return
    jobs: list[Message] = []
    async for some in _pages(core, ranges):
        for start in range(0, len(some), PAGE):
            jobs += [
                views.current_view(core, job) for job in core.store.jobs([n for n, _ in some[start : start + PAGE]])
            ]
            if message.get("pages") is True and len(jobs) >= PAGE:
                yield {"jobs": jobs}
                jobs = []
            if len(some) > PAGE:
                await core.hub.rest()
    yield {"jobs": jobs, "end": True}


def _meant(core: Core, session: Session, message: Message) -> Ranges:
    """The jobs that are there now, as ranges of ids."""
    selection = chosen(core, session, message)
    if selection.states or selection.tags:
        return Ranges(spans(core.store.select(selection)))
    last = core.store.next_id() - 1
    return Ranges((low, min(high, last)) for low, high in selection.ranges)


async def _all_ended(core: Core, ranges: Ranges) -> None:
    for low, high in ranges.spans:
        while low <= high:
            living, upto = ends.first_living(core.store, (low, high), LOOK)
            if living is None:
                low = upto + 1
                if low <= high:
                    await core.hub.rest()
                continue
            low = living
            with core.hub.listen([living]) as news:
                await news.wait()


async def _one_ended(core: Core, ranges: Ranges) -> None:
    with core.hub.listen_within(ranges) as news:
        async for some in _pages(core, ranges):
            if some:
                return
        while True:
            changed = sorted(await news.wait())
            if any(ends.have_ended(core.store, changed[n : n + LOOK]) for n in range(0, len(changed), LOOK)):
                return


async def _pages(core: Core, ranges: Ranges) -> AsyncIterator[list[tuple[int, str]]]:
    """Ids and states of those that have ended, ascending."""
    for low, high in ranges.spans:
        while low <= high:
            found, upto = ends.ended(core.store, (low, high), LOOK)
            yield found
            low = upto + 1
            if low <= high:
                await core.hub.rest()


async def _brief(core: Core, ranges: Ranges) -> Message:
    counts: Counter[str] = Counter()
    told: list[list[int]] = []
    first: list[int] = []
    failed: list[int] = []
    async for some in _pages(core, ranges):
        counts.update(state for _, state in some)
        for low, high in spans(job_id for job_id, _ in some):
            if told and low == told[-1][1] + 1:
                told[-1][1] = high
            else:
                told.append([low, high])
        first += [job_id for job_id, _ in some[: FEW - len(first)]] if len(first) < FEW else []
        failed += [job_id for job_id, state in some if state != State.SUCCEEDED][: FEW - len(failed)]
    ids = first if sum(counts.values()) <= FEW else failed
    jobs = [views.current_view(core, job) for job in core.store.jobs(ids)]
    return {"ended": told, "counts": dict(counts), "jobs": jobs, "end": True}
