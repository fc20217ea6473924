"""Requests that change something, one function each, and the table of all requests.

Each checks what it was sent and the right to ask, and answers with an object. The long ones are generators of objects;
the server ends them when their client goes away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from gpuq.daemon import awaiting, counting, decisions, listing, looking, submitting
from gpuq.daemon.asking import Answer, Daemon, Session, Stream, chosen
from gpuq.daemon.core import Core
from gpuq.daemon.hub import let_others
from gpuq.daemon.owners import owner_name
from gpuq.daemon.queues import refuse_closed
from gpuq.errors import GpuqError, StoreError
from gpuq.model import ACTIVE, WAITING, Ending, Job
from gpuq.policy.dependencies import ended_words
from gpuq.policy.lifecycle import (
    POSSIBLE,
    Cancelled,
    EndAsked,
    Fact,
    Held,
    Released,
    Resumed,
    Retried,
    Suspended,
)
from gpuq.protocol import Message

#: Jobs that are changed in one transaction when many are.
SLICE = 500
#: A submit waits at most this long for the first word on the GPUs, in seconds.
FIRST_READING = 3.0


# --- changing -------------------------------------------------------------------------------------


async def cancel(daemon: Daemon, session: Session, message: Message) -> Message:
    return await _change(daemon, session, message, Cancelled())


async def hold(daemon: Daemon, session: Session, message: Message) -> Message:
    return await _change(daemon, session, message, Held())


async def release(daemon: Daemon, session: Session, message: Message) -> Message:
    return await _change(daemon, session, message, Released())


async def suspend(daemon: Daemon, session: Session, message: Message) -> Message:
    return await _change(daemon, session, message, Suspended())


async def resume(daemon: Daemon, session: Session, message: Message) -> Message:
    return await _change(daemon, session, message, Resumed())


async def retry(daemon: Daemon, session: Session, message: Message) -> Message:
    return await _change(daemon, session, message, Retried())


async def _change(daemon: Daemon, session: Session, message: Message, fact: Fact) -> Message:
    """Apply a fact to each selected job that allows it. Jobs named one by one that do not are told of; others are
    left out in silence, because a range or a tag means `those that it can be done to`.

    Many are changed in slices, each committed, and others are served in between; the answer comes after the last. The
    newest first: nothing that is chosen is skipped for what it depends on. Those that may start now the oldest first:
    they start in that order, and one that is tried again waits for those before it. Before the answer those are told
    who wait on the jobs, too.
    """
    core = daemon.core
    if isinstance(fact, Retried):
        await daemon.runner.afterwards.done()  # who waited on the attempt before is told how that ended
    selection = chosen(core, session, message)
    named = {low for low, high in selection.ranges if low == high}
    ids = core.store.select(selection)
    done: list[int] = []
    refused: list[Message] = []
    slices = [ids[max(0, end - SLICE) : end] for end in range(len(ids), 0, -SLICE)]
    for some in reversed(slices) if isinstance(fact, Retried | Released) else slices:
        _change_some(daemon, session, fact, some, named, done, refused)
        await let_others()
    with suppress(StoreError):  # it goes on when that can be written
        await daemon.runner.afterwards.done()
    done.sort()
    refused.sort(key=lambda item: int(item["id"]))
    decisions.asked(session.uid, str(message["op"]), done, len(refused))
    daemon.runner.wake()
    return {"done": done, "refused": refused}


def _change_some(
    daemon: Daemon,
    session: Session,
    fact: Fact,
    ids: list[int],
    named: set[int],
    done: list[int],
    refused: list[Message],
) -> None:
    core = daemon.core
    states = POSSIBLE[type(fact)][0] | (ACTIVE if isinstance(fact, Cancelled) else frozenset())
    alike: list[int] = []
    others: list[int] = []
    for job_id, state, owner in core.store.outlines(ids):
        if isinstance(fact, Cancelled) and state in WAITING and owner == session.uid:
            alike.append(job_id)  # a hundred thousand of these are changed without a look at each
        elif job_id in named or state in states:
            others.append(job_id)
    facts: list[tuple[Job, Fact]] = []
    active: list[Job] = []
    for job in core.store.jobs(others):
        problem = _problem(core, session, job, fact)
        if problem is not None:
            if job.id in named:
                refused.append({"id": job.id, "message": problem})
        elif job.state in ACTIVE:
            active.append(core.running[job.id].job)
        else:
            facts.append((job, fact))
    if alike:
        core.cancel_waiting(alike)
    if facts:
        core.apply(facts)
    for job in active:
        told = fact if isinstance(fact, Suspended | Resumed) else EndAsked(Ending.CANCEL)
        daemon.runner.direct(job, told)
    done += alike + [job.id for job, _ in facts] + [job.id for job in active]


def _problem(core: Core, session: Session, job: Job, fact: Fact) -> str | None:
    """Why the fact cannot happen to the job."""
    if job.owner != session.uid:
        return f"job {job.id} belongs to {owner_name(job.owner)}"
    states, verb = POSSIBLE[type(fact)]
    to_be_ended = isinstance(fact, Cancelled) and job.state in ACTIVE
    if job.state not in states and not to_be_ended:
        if job.ended:
            return f"job {job.id} already ended: it {ended_words(job.state)}"
        return f"job {job.id} is {job.state}, and cannot {verb}"
    if isinstance(fact, Suspended) and job.ending is not None:
        return f"job {job.id} is being ended, and cannot {verb}"
    if isinstance(fact, Retried) and (closed := _closed(core, job)) is not None:
        return closed
    if isinstance(fact, Retried) and core.store.environment(job.env_hash) is None:
        return f"job {job.id} ended so long ago that its environment was erased: submit it anew"
    return None


def _closed(core: Core, job: Job) -> str | None:
    """Why its queue does not take the job again."""
    try:
        refuse_closed(core.rules.queue(job.queue))
    except GpuqError as error:
        return f"job {job.id} cannot be queued again: {error.message}"
    return None


# --- the daemon itself -----------------------------------------------------------------------------


async def stop(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """End the daemon; running jobs run on, unless `jobs` asks to end them first. Who asked may give up on that."""
    core = daemon.core
    mine = list(core.running) if message.get("jobs") is True else []
    asked = "restart" if message.get("restart") is True else "stop"
    decisions.asked(session.uid, f"{asked} of the daemon", mine, 0)
    core.draining += 1
    try:
        with core.hub.listen(mine) as news:
            for job_id in mine:
                if core.running[job_id].job.ending is None:
                    daemon.runner.direct(core.running[job_id].job, EndAsked(Ending.CANCEL))
            while core.running.keys() & set(mine):
                await news.wait()
        yield {"running": len(core.running), "cancelled": len(mine), "end": True}
        daemon.end(message.get("restart") is True)
    finally:
        if not daemon.stop.done():
            core.draining -= 1
            daemon.runner.wake()


ANSWERS: dict[str, Answer] = {
    "submit": submitting.submit,
    "status": looking.status,
    "list": listing.list_,
    "show": looking.show,
    "why": looking.why,
    "estimates": looking.estimates,
    "stats": counting.stats,
    "gpus": looking.gpus,
    "cancel": cancel,
    "hold": hold,
    "release": release,
    "suspend": suspend,
    "resume": resume,
    "retry": retry,
}
STREAMS: dict[str, Stream] = {
    "stop": stop,
    "wait": awaiting.wait,
    "follow": looking.follow,
    "top": looking.top,
    "events": looking.events,
}
