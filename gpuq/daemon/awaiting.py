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
#: Ids of which the jobs are counted in one go.
COUNT = 100_000
#: In a brief answer so many jobs are told of: all, or the first that did not succeed.
FEW = 20


async def wait(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """How the jobs ended, once all of them (with `any`, one of them) have.

    They come in one answer, with `pages` in several; with `brief` as ids and numbers, with the first that failed, and
    the one that ended first. `gone` are how many were removed meanwhile: nobody knows any more how these ended.
    """
    core = daemon.core
    ranges = _meant(core, session, message)
    any_ = message.get("any") is True
    left = 0 if any_ else await _count(core, ranges)
    await (_one_ended if any_ else _all_ended)(core, ranges)
    if message.get("brief") is True:
        answer = await _brief(core, ranges, any_=any_)
        yield {**answer, "gone": max(0, left - sum(answer["counts"].values()))}
        return
    jobs: list[Message] = []
    async for some in _ends(core, ranges, any_=any_):
        left -= len(some)
        for start in range(0, len(some), PAGE):
            ids = [end.job_id for end in some[start : start + PAGE]]
            jobs += [views.current_view(core, job) for job in core.store.jobs(ids)]
            if message.get("pages") is True and len(jobs) >= PAGE:
                yield {"jobs": jobs}
                jobs = []
            if len(some) > PAGE:
                await core.hub.rest()
    yield {"jobs": jobs, "gone": max(0, left), "end": True}


def _meant(core: Core, session: Session, message: Message) -> Ranges:
    """The jobs that are there now, as ranges of ids."""
    selection = chosen(core, session, message)
    if selection.states or selection.tags or selection.groups:
        return Ranges(spans(core.store.select(selection)))
    last = core.store.next_id() - 1
    return Ranges((low, min(high, last)) for low, high in selection.ranges)


async def _count(core: Core, ranges: Ranges) -> int:
    """How many jobs these are."""
    total = 0
    for low, high in ranges.spans:
        if low == high:  # one that is named alone was found to be there
            total += 1
            continue
        for start in range(low, high + 1, COUNT):
            total += ends.count(core.store, (start, min(high, start + COUNT - 1)))
            if high - low >= COUNT:
                await core.hub.rest()
    return total


async def _all_ended(core: Core, ranges: Ranges) -> None:
    """Until none of them lives: one that had ended may be tried again while others are waited for."""
    while await _living_awaited(core, ranges):
        pass


async def _living_awaited(core: Core, ranges: Ranges) -> bool:
    """Wait for those that live, one after the other; whether there were any."""
    found = False
    for low, high in ranges.spans:
        while low <= high:
            living, upto = ends.first_living(core.store, (low, high), LOOK)
            if living is None:
                low = upto + 1
                if low <= high:
                    await core.hub.rest()
                continue
            low, found = living, True
            with core.hub.listen([living]) as news:
                await news.wait()
    return found


async def _one_ended(core: Core, ranges: Ranges) -> None:
    with core.hub.listen_within(ranges) as news:
        async for some in _ends(core, ranges, any_=True):
            if some:
                return
        while True:
            changed = sorted(await news.wait())
            if any(ends.have_ended(core.store, changed[n : n + LOOK]) for n in range(0, len(changed), LOOK)):
                return


async def _ends(core: Core, ranges: Ranges, *, any_: bool) -> AsyncIterator[list[ends.End]]:
    """How those that have ended did, ascending; without `any_`, those that were tried again meanwhile come last."""
    again: list[int] = []
    for low, high in ranges.spans:
        while low <= high:
            found, living, upto = ends.ended(core.store, (low, high), LOOK)
            again += living
            yield found
            low = upto + 1
            if low <= high:
                await core.hub.rest()
    if again and not any_:
        left = Ranges(spans(again))
        await _all_ended(core, left)
        async for found in _ends(core, left, any_=any_):
            yield found


async def _brief(core: Core, ranges: Ranges, *, any_: bool) -> Message:
    counts: Counter[str] = Counter()
    told: list[list[int]] = []
    some: list[int] = []
    failed: list[int] = []
    first: ends.End | None = None
    async for found in _ends(core, ranges, any_=any_):
        counts.update(end.state for end in found)
        told += spans(end.job_id for end in found)
        first = min((end for end in (first, *found) if end is not None), key=lambda end: end.at, default=None)
        some += [end.job_id for end in found[: max(0, FEW - len(some))]]
        failed += [end.job_id for end in found if end.state != State.SUCCEEDED][: FEW - len(failed)]
    ids = some if sum(counts.values()) <= FEW else failed
    jobs = [views.current_view(core, job) for job in core.store.jobs(ids)]
    answer: Message = {"ended": Ranges(told).spans, "counts": dict(counts), "jobs": jobs, "end": True}
    for job in core.store.jobs([] if first is None else [first.job_id]):
        answer["first"] = views.current_view(core, job)
    return answer
