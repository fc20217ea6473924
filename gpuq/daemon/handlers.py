"""Requests that change something, one function each, and the table of all requests.

Each checks what it was sent and the right to ask, and answers with an object. The long ones are generators of objects;
the server ends them when their client goes away.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable

from gpuq import protocol
from gpuq.daemon import decisions, looking, views
from gpuq.daemon import submit as submission
from gpuq.daemon.asking import Answer, Daemon, Session, Stream, check_selection, selected
from gpuq.daemon.core import Core
from gpuq.daemon.owners import owner_name
from gpuq.errors import BadRequest, CannotFit, NoSuchJob
from gpuq.events import Event, Kind
from gpuq.model import ACTIVE, Dependency, Driver, Ending, Job, State
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
from gpuq.protocol import Message
from gpuq.store import runrecord

#: A submit waits at most this long for the first word on the GPUs, in seconds.
FIRST_READING = 3.0


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
    wants_gpus = template.get("gpus") != 0
    if wants_gpus:
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
        about_gpus = job.request.gpus and "--cpus" not in problem and "--ram" not in problem
        raise CannotFit(f"{problem}; see `gpuq gpus`" if about_gpus else problem)
    first_job = core.store.next_id() == 1
    ids = _queue(daemon, key, checked)
    # a job without GPUs did not wait for the first reading, and need not hear that there was none yet
    note = views.gpus_note(core) if first_job and (wants_gpus or core.readings) else None
    queued = core.store.job(ids[0])
    if queued is not None and queued.state is State.SKIPPED:
        note = f"job {queued.id} is skipped: it {queued.note}"
    notes = [note, submission.missing_folder(queued) if queued is not None else None]
    return {"ids": list(ids), "notes": [text for text in notes if text]}


def _template(core: Core, session: Session, template: Message) -> Job:
    driver = core.readings.driver if core.readings else None
    return submission.check_template(template, session.uid, driver, len(core.host.capacities), time.time())


def _impossible(core: Core, job: Job) -> str | None:
    # what is known of the GPUs of a driver that does not work now is what it told before
    known = core.readings is not None and core.readings.driver is not Driver.BROKEN
    return impossible(job.request, core.host, core.settings, gpus_known=known or bool(core.host.capacities))


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
        if jobs[-1].id > core.ids_upto:
            core.ids_upto = runrecord.reserve(core.run_root, jobs[-1].id)
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
    for job in selected(core, session, message):
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
    if isinstance(fact, Suspended) and job.ending is not None:
        return f"job {job.id} is being ended, and cannot {verb}"
    if isinstance(fact, Retried) and core.store.environment(job.env_hash) is None:
        return f"job {job.id} ended so long ago that its environment was erased: submit it anew"
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
    "submit": submit,
    "status": looking.status,
    "list": looking.list_,
    "show": looking.show,
    "why": looking.why,
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
    "wait": looking.wait,
    "follow": looking.follow,
    "top": looking.top,
    "events": looking.events,
}
