"""One function per request. Each checks what it was sent and the right to ask, and answers with an object.

The long ones (`wait`, `follow`, `top`, `events` with `follow`) are written as generators of objects; the server
ends them when their client goes away.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from gpuq import __version__, protocol
from gpuq.config import SETTINGS, Setting
from gpuq.daemon import decisions, views
from gpuq.daemon import submit as submission
from gpuq.daemon.core import Core
from gpuq.daemon.owners import owner_name
from gpuq.daemon.runner import Runner
from gpuq.daemon.upkeep import Upkeep
from gpuq.errors import BadRequest, CannotFit, NoSuchJob, NotAllowed, UsageError
from gpuq.events import Event, Kind
from gpuq.model import ACTIVE, ENDED, WAITING, Dependency, Driver, Ending, Job, State
from gpuq.policy.explain import impossible
from gpuq.policy.lifecycle import (
    POSSIBLE,
    Cancelled,
    DependencyBroken,
    EndAsked,
    Fact,
    Held,
    Released,
    Resumed,
    Retried,
    Suspended,
    advance,
    dependency,
    ended_words,
)
from gpuq.protocol import Message, Selection

#: A submit waits at most this long for the first word on the GPUs, in seconds.
FIRST_READING = 3.0
#: Shortest time between two frames of `top`, in seconds.
FRAME = 0.25
#: Jobs of a long list that are made ready in one go.
SLICE = 500
#: Rows of the queue's head in a frame.
HEAD = 20


@dataclass(slots=True)
class Session:
    """One connection: who is there, and what it has sent of a submission so far."""

    uid: int
    parts: list[tuple[str, ...]] = field(default_factory=list)
    first: Message | None = None


@dataclass(slots=True)
class Daemon:
    """What handlers work with."""

    core: Core
    runner: Runner
    started_at: float
    #: ends the daemon; True for a restart
    stop: asyncio.Future[bool]
    #: the systemd unit that it runs as
    unit: str | None = None
    #: looks after the database
    upkeep: Upkeep | None = None
    #: it begins anew in its own place when it has ended
    anew: bool = False

    def begin_anew(self) -> None:
        """End the daemon, which begins anew: who waits comes again."""
        self.anew = not self.stop.done() or self.anew
        self.end(True)

    def end(self, restart: bool) -> None:
        """End the daemon, once."""
        if not self.stop.done():
            self.stop.set_result(restart)


Answer = Callable[[Daemon, Session, Message], Awaitable[Message]]
Stream = Callable[[Daemon, Session, Message], AsyncIterator[Message]]


# --- submitting -----------------------------------------------------------------------------------


async def submit(daemon: Daemon, session: Session, message: Message) -> Message:
    """Collect the parts of a submission; with the last one, queue all of its jobs or none."""
    commands = submission.check_commands(message.get("commands"))
    if session.first is None:
        session.first, session.parts = message, []
    session.parts += commands
    if len(session.parts) > protocol.MAX_JOBS:
        raise CannotFit(f"a submission holds at most {protocol.MAX_JOBS:,} jobs")
    if message.get("last") is not True:
        return {}
    first, parts = session.first, session.parts
    session.first, session.parts = None, []
    key = submission.check_key(first.get("key"))
    template = first.get("template")
    if not isinstance(template, dict):
        raise BadRequest("a submission has a template")
    if template.get("gpus") != 0:
        await daemon.runner.known_gpus(FIRST_READING)
    core = daemon.core
    done = core.store.submission(key)
    if done is not None:
        return {"ids": list(done), "notes": []}
    job = _template(core, session, template)
    checked = submission.read_submission(first, parts, job)
    problem = _impossible(core, job)
    if problem is not None and job.request.gpus:
        await daemon.runner.fresh_gpus()  # a GPU may have come, or come back, since the last reading
        problem = _impossible(core, job)
    if problem is not None:
        raise CannotFit(f"{problem}; see `gpuq gpus`" if job.request.gpus else problem)
    first_job = core.store.next_id() == 1
    ids = _queue(daemon, key, checked)
    note = views.gpus_note(core) if first_job else None
    skipped = core.store.job(ids[0])
    if skipped is not None and skipped.state is State.SKIPPED:
        note = f"job {skipped.id} is skipped: it {skipped.note}"
    return {"ids": list(ids), "notes": [note] if note else []}


def _template(core: Core, session: Session, template: Message) -> Job:
    driver = core.readings.driver if core.readings else None
    return submission.check_template(template, session.uid, driver, len(core.host.capacities), time.time())


def _impossible(core: Core, job: Job) -> str | None:
    known = core.readings is not None and core.readings.driver is not Driver.BROKEN
    return impossible(job.request, core.host, core.settings, gpus_known=known)


def _queue(daemon: Daemon, key: str, checked: submission.Submission) -> tuple[int, int]:
    """Write the jobs and what they wait for in one transaction, and let the planner know."""
    core = daemon.core
    now = checked.template.submitted_at
    core.reserve.require()
    done = core.store.submission(key)
    if done is not None:
        return done  # sent again while this one waited for the GPUs
    with core.store.transaction():
        unmet, broken = _dependencies(core, checked.template.after)
        jobs = submission.make_jobs(checked, core.store.next_id())
        events = [Event(now, Kind.SUBMITTED, job.id, None, _brief(job)) for job in jobs]
        if broken is not None:
            # what can no longer hold is skipped at once: whether it ended before or after this is a matter of luck
            steps = [advance(job, broken, now) for job in jobs]
            jobs, events = [step.job for step in steps], events + [step.event for step in steps]
        core.store.put_environment(checked.template.env_hash, checked.environment)
        core.store.insert_jobs(key, jobs, events)
        core.store.add_dependencies((job.id, d, d not in unmet) for job in jobs for d in job.after)
    decisions.submitted(jobs)
    for job in jobs:
        core.waiting.put(job, len(unmet), time.time())
    core.hub.tell([job.id for job in jobs])
    daemon.runner.wake()
    return jobs[0].id, jobs[-1].id


def _brief(job: Job) -> dict[str, object]:
    return {"name": job.name, **({"held": True} if job.state is State.HELD else {})}


def _dependencies(core: Core, after: Iterable[Dependency]) -> tuple[set[Dependency], DependencyBroken | None]:
    """Those that are open, and one that can never hold, if there is one. Raises NoSuchJob."""
    unmet: set[Dependency] = set()
    broken: DependencyBroken | None = None
    for wanted in after:
        state = core.store.state_of(wanted.job_id)
        if state is None:
            raise NoSuchJob(f"--after {wanted}: there is no job {wanted.job_id}")
        holds = dependency(wanted.condition, state)
        if holds is False:
            broken = DependencyBroken(wanted.job_id, wanted.condition, state)
        elif holds is None:
            unmet.add(wanted)
    return (set(), broken) if broken is not None else (unmet, None)


# --- looking --------------------------------------------------------------------------------------


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


async def list_(daemon: Daemon, session: Session, message: Message) -> Message:
    """Running jobs first, then waiting ones in the order they are looked at, then ended ones, newest first."""
    core = daemon.core
    selection = check_selection(core, session, message)
    everything = message.get("all") is True or bool(selection.ranges or selection.states)
    limit = _count(message, "limit")
    parts = [(tuple(sorted(ACTIVE)), "id"), (tuple(sorted(WAITING)), "priority DESC, id")]
    if everything:
        parts.append((tuple(sorted(ENDED)), "ended_at DESC, id DESC"))
    jobs: list[Job] = []
    total = 0
    for states, order in parts:
        left = None if limit is None else limit - len(jobs)
        some, count = core.store.select_jobs(selection, states, order, left)
        jobs += some
        total += count
    counts = core.store.counts()
    found: list[Message] = []
    for start in range(0, len(jobs), SLICE):
        found += [_view(core, job) for job in jobs[start : start + SLICE]]
        await asyncio.sleep(0)  # others are served between two slices of a long list
    return {"jobs": found, "total": total, "counts": counts}


def _view(core: Core, job: Job) -> Message:
    running = core.running.get(job.id)
    return views.job_view(core, running.job if running is not None else job)


async def show(daemon: Daemon, session: Session, message: Message) -> Message:
    core = daemon.core
    found = []
    for job in _selected(core, session, message):
        one = Selection(ranges=((job.id, job.id),))
        found.append(
            {
                **_view(core, job),
                "attempts": [
                    views.attempt_view(core, attempt, core.running.get(job.id))
                    for attempt in core.store.attempts(job.id)
                ],
                "events": [views.event_view(event) for event in core.store.events(0, one, None)],
            }
        )
    return {"jobs": found}


async def why(daemon: Daemon, session: Session, message: Message) -> Message:
    jobs = _selected(daemon.core, session, message)
    if any(job.state in WAITING and job.request.gpus for job in jobs):
        await daemon.runner.fresh_gpus()
        jobs = _selected(daemon.core, session, message)
    return {"explanations": [views.explanation(daemon.core, job) for job in jobs]}


async def gpus(daemon: Daemon, _session: Session, _message: Message) -> Message:
    await daemon.runner.fresh_gpus()
    return views.gpus_view(daemon.core)


# --- changing -------------------------------------------------------------------------------------


async def cancel(daemon: Daemon, session: Session, message: Message) -> Message:
    return _change(daemon, session, message, Cancelled())


async def hold(daemon: Daemon, session: Session, message: Message) -> Message:
    return _change(daemon, session, message, Held())


async def release(daemon: Daemon, session: Session, message: Message) -> Message:
    return _change(daemon, session, message, Released())


async def suspend(daemon: Daemon, session: Session, message: Message) -> Message:
    return _change(daemon, session, message, Suspended())


async def resume(daemon: Daemon, session: Session, message: Message) -> Message:
    return _change(daemon, session, message, Resumed())


async def retry(daemon: Daemon, session: Session, message: Message) -> Message:
    return _change(daemon, session, message, Retried())


def _change(daemon: Daemon, session: Session, message: Message, fact: Fact) -> Message:
    """Apply a fact to each selected job that allows it. Jobs named one by one that do not are told of; others are
    left out in silence, because a range or a tag means `those that it can be done to`.
    """
    core = daemon.core
    selection = check_selection(core, session, message)
    named = {low for low, high in selection.ranges if low == high}
    facts: list[tuple[Job, Fact]] = []
    active: list[Job] = []
    refused: list[Message] = []
    for job in _selected(core, session, message):
        problem = _problem(core, session, job, fact)
        if problem is not None:
            if job.id in named:
                refused.append({"id": job.id, "message": problem})
        elif job.state in ACTIVE:
            active.append(core.running[job.id].job)
        else:
            facts.append((job, fact))
    done = [job.id for job, _ in facts] + [job.id for job in active]
    if facts:
        core.apply(facts)
    for job in active:
        told = fact if isinstance(fact, Suspended | Resumed) else EndAsked(Ending.CANCEL)
        daemon.runner.direct(job, told)
    decisions.asked(session.uid, str(message["op"]), done, len(refused))
    daemon.runner.wake()
    return {"done": sorted(done), "refused": refused}


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
    if isinstance(fact, Retried) and core.store.environment(job.env_hash) is None:
        return f"job {job.id} ended so long ago that its environment was erased: submit it anew"
    return None


# --- waiting for news -----------------------------------------------------------------------------


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


async def wait(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """The jobs, once all of them (with `any`, one of them) have ended."""
    core = daemon.core
    ids = [job.id for job in _selected(core, session, message)]
    with core.hub.listen(ids) as news:
        pending = changed = set(ids)
        while True:
            pending = pending - {job_id for job_id in changed if core.store.state_of(job_id) in ENDED}
            if not pending or (message.get("any") is True and len(pending) < len(ids)):
                break
            changed = pending & await news.wait()
    ended = [job for job_id in ids if job_id not in pending and (job := core.store.job(job_id)) is not None]
    yield {"jobs": [_view(core, job) for job in ended], "end": True}


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
            _check_owner(session, job)
            view = _view(core, job)
            if view != sent:
                sent = view
                yield {"job": view, **({"end": True} if job.ended else {})}
            if job.ended:
                return
            await news.wait()


async def top(daemon: Daemon, _session: Session, _message: Message) -> AsyncIterator[Message]:
    """A frame now and whenever something changed, a few per second at most."""
    core = daemon.core
    daemon.runner.onlookers += 1
    try:
        await daemon.runner.fresh_gpus()
        with core.hub.listen() as news:
            while True:
                head, total = core.store.select_jobs(Selection(), sorted(WAITING), "priority DESC, id", HEAD)
                yield views.frame(core, head, total)
                await news.wait()
                await asyncio.sleep(FRAME)  # several changes make one frame
    finally:
        daemon.runner.onlookers -= 1


async def events(daemon: Daemon, session: Session, message: Message) -> AsyncIterator[Message]:
    """Events so far, then with `follow` each new one. Read from the store by id, so that a slow reader misses none."""
    core = daemon.core
    selection = check_selection(core, session, message)
    where = None if selection.empty else selection
    if where is not None:
        _selected(core, session, message)
    since, limit = _count(message, "since") or 0, _count(message, "limit")
    follows = message.get("follow") is True
    with core.hub.listen() as news:
        last, past = core.store.last_event(), core.store.events(since, where, limit)
        yield {"events": [views.event_view(event) for event in past], **({} if follows else {"end": True})}
        while follows:
            await news.wait()
            # the horizon before the events: what is committed while these are sent comes with the next
            horizon, fresh = core.store.last_event(), core.store.events(last, where, None)
            for event in fresh:
                yield {"event": views.event_view(event)}
            last = horizon


def _count(message: Message, name: str) -> int | None:
    """A field that counts something, None where it is not given."""
    value = message.get(name)
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= protocol.MAX_ID
    ):
        raise BadRequest(f"{name} is a count, not {value!r:.60}")
    return value


# --- selecting ------------------------------------------------------------------------------------


def check_selection(core: Core, session: Session, message: Message) -> Selection:
    """The selection of a message, with `@last` made an id."""
    selection = Selection.from_json(message.get("sel", {}))
    for state in selection.states:
        if state not in State.__members__.values():
            raise UsageError(f"there is no state {state!r}: known are {', '.join(State)}")
    if not selection.last:
        return selection
    last = core.store.last_job(session.uid)
    if last is None:
        raise NoSuchJob("@last: you have submitted no job yet")
    return replace(selection, ranges=(*selection.ranges, (last, last)), last=False)


def _selected(core: Core, session: Session, message: Message) -> list[Job]:
    """The selected jobs. Raises NoSuchJob if an id that was named, or all of a range, does not exist."""
    selection = check_selection(core, session, message)
    if selection.empty:
        raise UsageError("which jobs? write ids (12, 12-20, @last), --state or --tag")
    jobs, _ = core.store.select_jobs(selection, (), "id", None)
    found = {job.id for job in jobs}
    unfiltered = replace(selection, states=(), tags=())
    known = found if unfiltered == selection else set(core.store.select(unfiltered))
    missing = [low for low, high in selection.ranges if low == high and low not in known]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise NoSuchJob(f"there is no job {missing[0]}{more}")
    for low, high in selection.ranges:
        if low != high and not any(low <= job_id <= high for job_id in known):
            raise NoSuchJob(f"there is no job from {low} to {high}")
    return jobs


def _check_owner(session: Session, job: Job) -> None:
    if job.owner != session.uid:
        raise NotAllowed(f"job {job.id} belongs to {owner_name(job.owner)}")


ANSWERS: dict[str, Answer] = {
    "submit": submit,
    "status": status,
    "list": list_,
    "show": show,
    "why": why,
    "gpus": gpus,
    "cancel": cancel,
    "hold": hold,
    "release": release,
    "suspend": suspend,
    "resume": resume,
    "retry": retry,
}
STREAMS: dict[str, Stream] = {"stop": stop, "wait": wait, "follow": follow, "top": top, "events": events}
