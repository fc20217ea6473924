"""Requests that look at jobs, GPUs and events, and change nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from gpuq import __version__, protocol
from gpuq.config import SETTINGS, Setting
from gpuq.daemon import explaining, views
from gpuq.daemon.asking import Daemon, Session, check_owner, check_selection, chosen, count, selected
from gpuq.daemon.core import Core
from gpuq.errors import BadRequest, NoSuchJob, UsageError
from gpuq.model import WAITING
from gpuq.protocol import Message, Selection
from gpuq.store.history import Place
from gpuq.store.lists import Order

#: Shortest time between two frames of `top`, in seconds.
FRAME = 0.25
#: Events that are read and sent in one go.
PAGE = 200
#: Rows of the queue's head in a frame.
HEAD = 20


async def status(daemon: Daemon, _session: Session, _message: Message) -> Message:
    core = daemon.core
    return {
        "pid": os.getpid(),
        "version": __version__,
        "protocol": protocol.PROTOCOL,
        "state_dir": str(core.state_dir),
        "socket": str(core.state_dir / "sock"),
        "started_at": views.moment(daemon.started_at),
        "supervision": daemon.runner.supervision.describe(),
        "unit": daemon.unit,
        "jobs": core.store.counts(),
        "database": None if daemon.upkeep is None else daemon.upkeep.words(),
        "settings": {name: _shown(setting, getattr(core.settings, name)) for name, setting in SETTINGS.items()},
        "gpus_note": views.gpus_note(core) if core.readings or core.silent else None,
    }


def _shown(setting: Setting, value: object) -> str | None:
    return None if value is None else setting.show(value)


async def show(daemon: Daemon, session: Session, message: Message) -> Message:
    core = daemon.core
    found = []
    for job in selected(core, session, message):
        one = Selection(ranges=((job.id, job.id),))
        found.append(
            {
                **views.current_view(core, job),
                "waits_for": explaining.awaited(core, job) if job.state in WAITING else [],
                "attempts": [
                    views.attempt_view(core, attempt, core.running.get(job.id))
                    for attempt in core.store.attempts(job.id)
                ],
                "events": [views.event_view(event) for event in core.store.events(0, one, None)],
            }
        )
    return {"jobs": found}


async def why(daemon: Daemon, session: Session, message: Message) -> Message:
    ids = daemon.core.store.select(chosen(daemon.core, session, message))
    if len(ids) > explaining.MOST:
        raise UsageError(f"{len(ids):,} jobs are named, and at most {explaining.MOST:,} are explained at a time")
    jobs = daemon.core.store.jobs(ids)
    if any(job.state in WAITING and job.request.gpus for job in jobs):
        await daemon.runner.gpus.fresh()
        jobs = daemon.core.store.jobs(ids)
    return {"explanations": await explaining.explanations(daemon.core, jobs)}


async def estimates(daemon: Daemon, _session: Session, _message: Message) -> Message:
    """When waiting jobs will start, as far as can be found out in a moment."""
    return {"estimates": await explaining.estimates(daemon.core)}


async def gpus(daemon: Daemon, _session: Session, _message: Message) -> Message:
    await daemon.runner.gpus.fresh()
    return views.gpus_view(daemon.core)


# --- until there is news -------------------------------------------------------------------------


async def follow(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """One job now and at each change, until it has ended."""
    core = daemon.core
    job_id = message.get("id")
    if not isinstance(job_id, int) or isinstance(job_id, bool) or not 0 < job_id <= protocol.MAX_ID:
        raise BadRequest(f"follow needs the id of a job, not {job_id!r:.60}")
    sent: Message | None = None
    with core.hub.listen([job_id]) as news:
        while True:
            job = core.store.job(job_id)
            if job is None:
                raise NoSuchJob(f"there is no job {job_id}")
            check_owner(session, job)
            view = views.current_view(core, job)
            if view != sent:
                sent = view
                yield {"job": view, **({"end": True} if job.ended else {})}
            if job.ended:
                return
            await news.wait()


async def top(daemon: Daemon, _session: Session, _message: Message) -> AsyncIterator[Message]:
    """A frame now and whenever something changed, a few per second at most."""
    core = daemon.core
    daemon.runner.gpus.onlookers += 1
    try:
        await daemon.runner.gpus.fresh()
        with core.hub.listen() as news:
            while True:
                head = core.store.select_jobs(Selection(), WAITING, Order.URGENCY, HEAD)
                yield views.frame(core, head, core.store.count(Selection(), WAITING))
                await news.wait()
                await asyncio.sleep(FRAME)  # several changes make one frame
    finally:
        daemon.runner.gpus.onlookers -= 1


async def events(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """Events so far, then with `follow` each new one. Read from the store by id, so that a slow reader misses none.

    With `pages` many come in several answers, each a list, new ones as well; between two pages others are served.
    """
    core = daemon.core
    selection = check_selection(core, session, message)
    where = None if selection.empty else selection
    if where is not None:
        chosen(core, session, message)
    limit, follows = count(message, "limit"), message.get("follow") is True
    at: Place = (count(message, "since") or 0, count(message, "since_job") or protocol.MAX_ID)
    with core.hub.listen() as news:
        upto = core.store.last_event()
        past: list[Message] = []
        if limit is not None:
            past = [views.event_view(event) for event in core.store.events(at[0], where, limit)]
        else:
            async for some in _event_pages(core, where, at, upto):
                past += some
                if message.get("pages") is True:
                    yield {"events": past}
                    past = []
        yield {"events": past, **({} if follows else {"end": True})}
        while follows:
            await news.wait()
            # the horizon before the events: what is committed while these are sent comes with the next
            horizon = core.store.last_event()
            async for some in _event_pages(core, where, (upto, protocol.MAX_ID), horizon):
                if message.get("pages") is True:
                    yield {"events": some}
                else:
                    for event in some:
                        yield {"event": event}
            upto = horizon


async def _event_pages(core: Core, where: Selection | None, at: Place, upto: int) -> AsyncIterator[list[Message]]:
    """Events after that place up to one, as they are sent."""
    end = (upto, protocol.MAX_ID)
    while at < end:
        found, at = core.store.events_page(at, upto, where, PAGE)
        if found:
            yield [views.event_view(event) for event in found]
        if at < end:
            await core.hub.rest()
