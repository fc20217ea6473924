"""Requests about queues: what holds for the jobs of each, and the words in which it is told."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gpuq.daemon import decisions
from gpuq.daemon.asking import Answer, Daemon, Session
from gpuq.daemon.checking import check_integer, check_seconds
from gpuq.daemon.core import Core
from gpuq.daemon.wishes import resolve
from gpuq.errors import BadRequest, GpuqError, UsageError
from gpuq.events import Event, Kind
from gpuq.model import DEFAULT_QUEUE, Queue
from gpuq.policy.queues import because
from gpuq.protocol import MAX_ID, MAX_PRIORITY, Message
from gpuq.store import rules
from gpuq.store.rules import Rule
from gpuq.units import format_duration

#: What a queue may be called: it stands in commands and tables.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
#: Characters of a reason that somebody gives.
MAX_WHY = 200
#: Jobs that an answer names, of those that can never start any more.
NAMED = 5
#: `queue set --gpus` waits at most this long for the first word on the GPUs, in seconds.
FIRST_READING = 3.0


async def queues(daemon: Daemon, _session: Session, _message: Message) -> Message:
    """Every queue, with what runs and waits in it."""
    if any(queue.gpus for queue in daemon.core.rules.queues.values()):
        await daemon.runner.gpus.known(FIRST_READING)  # by which they have indexes
    return {"queues": list(_views(daemon.core))}


async def queue(daemon: Daemon, session: Session, message: Message) -> Message:
    """Change a queue: `set`, `pause`, `resume`, `drain` or `remove`. Answered once it is durable."""
    core = daemon.core
    name, do = _name(message.get("name")), message.get("do")
    changes: dict[str, Any] = {}
    if do == "set":
        wanted = message.get("changes")
        if not isinstance(wanted, dict):
            raise BadRequest("changes is an object")
        if wanted.get("gpus") is not None:
            await daemon.runner.gpus.known(FIRST_READING)
        changes = dict(_settings(core, wanted))
    elif do in ("pause", "drain", "resume"):
        changes = _switched(do, message.get("why"))
    elif do != "remove":
        raise BadRequest(f"a queue is set, paused, resumed, drained or removed, and not {do!r:.60}")
    # from here on nothing else happens meanwhile
    was = core.rules.queues.get(name) if do == "set" else core.rules.queue(name)
    decisions.asked(session.uid, f"queue {do} {name}", [], 0)
    if was is not None and do == "remove":
        _remove(core, was)
        return {"queue": None, "notes": []}
    now = replace(was or Queue(name), **changes)
    if now.default_time is not None and now.max_time is not None and now.default_time > now.max_time:
        default, most = format_duration(now.default_time), format_duration(now.max_time)
        raise UsageError(f"the default time of queue {name} would be {default}, and its maximum {most}")
    notes = []
    if was is None or now != was:
        decide(core, [now], events=[Event(time.time(), Kind.QUEUE_SET, data=_difference(was, now))])
        daemon.runner.wake()
        notes = list(_consequences(core, was, now)) if do == "set" else []
    view = next(view for view in _views(core) if view["name"] == name)
    return {"queue": view, "notes": notes, "new": was is None, "changed": now != was}


def decide(core: Core, put: list[Rule] | None = None, gone: list[Rule] | None = None, *, events: list[Event]) -> None:
    """Change what holds for many jobs, in one transaction. Raises StoreError, and then nothing has changed."""

    def write() -> None:
        with core.store.transaction():
            core.rules.write(put or (), gone or ())
            core.store.add_events(events)

    core.with_room(write)
    core.rules.keep(put or (), gone or ())
    decisions.happened(events)
    core.hub.tell()


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"a queue has a name, not {value!r:.60}")
    if not NAME.fullmatch(value):
        raise UsageError(f"a queue cannot be called {value!r:.60}: write up to 32 letters, digits and . _ -")
    return value


def _settings(core: Core, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a queue that are to be otherwise; None takes a limit away. Raises UsageError."""
    for field, value in wanted.items():
        match field:
            case "priority":
                yield field, check_integer(value, "--priority", -MAX_PRIORITY, MAX_PRIORITY)
            case "gpus":
                yield field, None if value is None else frozenset(named_gpus(core, value, "--gpus"))
            case "default_time" | "max_time":
                yield field, check_seconds(value, f"--{field.replace('_', '-')}")
            case "max_jobs":
                yield field, None if value is None else check_integer(value, "--max-jobs", 1, MAX_ID)
            case "max_gpus":
                yield field, None if value is None else check_integer(value, "--max-gpus", 0, MAX_ID)
            case _:
                raise BadRequest(f"a queue has no {field!r:.60}; `gpuq daemon restart` brings a newer gpuq to work")


def named_gpus(core: Core, words: object, what: str) -> tuple[str, ...]:
    """The UUIDs of GPUs that are named by index or UUID. Raises CannotFit for one that there is not."""
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise BadRequest(f"{what} is a list of GPUs, by index or UUID")
    return resolve(words, what, core.listed())


def check_why(value: object) -> str | None:
    """What is told of a queue or GPU that is taken out of use."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_WHY or not value.isprintable():
        raise UsageError(f"--why is one line of 1 to {MAX_WHY} characters")
    return value


def _switched(do: str, why: object) -> dict[str, Any]:
    why = check_why(why)
    if do == "resume":
        return {"paused": False, "draining": False, "why": None}
    return {"paused" if do == "pause" else "draining": True, **({} if why is None else {"why": why})}


def _remove(core: Core, queue: Queue) -> None:
    if queue.name == DEFAULT_QUEUE:
        raise UsageError(f"the queue {DEFAULT_QUEUE} is always there; `gpuq queue set {DEFAULT_QUEUE}` changes it")
    live = rules.live_in(core.store, queue.name)
    count = sum(live.values()) + rules.unseen_in(core.store, queue.name)
    if count:
        many = "1 job is" if count == 1 else f"{count:,} jobs are"
        raise GpuqError(
            f"{many} in queue {queue.name}: cancel or move them first, "
            f"or let them end after `gpuq queue drain {queue.name}`"
        )
    decide(core, gone=[queue], events=[Event(time.time(), Kind.QUEUE_REMOVED, data={"queue": queue.name})])


# --- what it means --------------------------------------------------------------------------------


def _consequences(core: Core, was: Queue | None, now: Queue) -> Iterator[str]:
    """What a change does to jobs that run or wait, where that may not be what was meant."""
    running = [one.job for one in core.running.values() if one.job.queue == now.name]
    gpus = sum(len(job.gpus) for job in running)
    until = "nothing more starts until that has ended"
    if now.max_jobs is not None and len(running) > now.max_jobs:
        over = len(running) - now.max_jobs
        yield f"{len(running)} jobs of queue {now.name} run, {over} above its limit: {until}"
    if now.max_gpus is not None and gpus > now.max_gpus:
        yield f"GPUs in use by queue {now.name}: {gpus}, {gpus - now.max_gpus} above its limit: {until}"
    if now.gpus is not None:
        outside = [job for job in running if not now.gpus.issuperset(job.gpus)]
        if outside:
            yield f"{_jobs([job.id for job in outside], len(outside))} of queue {now.name} on other GPUs, and go on"
    if was is not None and (was.gpus, was.max_gpus) != (now.gpus, now.max_gpus):
        yield from _impossible(core, now)


def _impossible(core: Core, queue: Queue) -> Iterator[str]:
    """Jobs that wait and that the queue can serve no more."""
    ids: list[int] = []
    count, why = 0, ""
    for request, many in rules.requests_in(core.store, queue.name).items():
        problem = core.impossible(request, queue)
        if problem is not None:
            count, why = count + many, why or problem
            ids += rules.asking(core.store, queue.name, request, NAMED)
    if count:
        chosen = sorted(ids)[:NAMED]
        named = ", ".join(map(str, chosen)) + (", …" if count > len(chosen) else "")
        said = f"job {named} waits" if count == 1 else f"{count:,} jobs wait ({named})"
        yield f"{said} for what the queue can give no more: {why}"


def _jobs(ids: list[int], count: int) -> str:
    named = ", ".join(map(str, ids[:NAMED])) + (", …" if count > NAMED else "")
    return f"job {named} runs" if count == 1 else f"{count:,} jobs ({named}) run"


def refuse_closed(queue: Queue) -> None:
    """Raises GpuqError where the queue takes no new jobs."""
    if queue.draining:
        text = f"queue {queue.name} is draining, and takes no new jobs{because(queue)}"
        raise GpuqError(f"{text}; `gpuq queue resume {queue.name}` opens it")


def _difference(was: Queue | None, now: Queue) -> dict[str, Any]:
    """The event of a change: what was otherwise, and what it is now."""
    before, after = _fields(was or Queue(now.name)), _fields(now)
    changed = [name for name in after if was is None or before[name] != after[name]]
    new = {name: after[name] for name in changed if was is not None or after[name] != before[name]}
    old = {name: before[name] for name in changed} if was is not None else {}
    return {"queue": now.name, **({"was": old} if old else {}), "now": new}


def _fields(queue: Queue) -> dict[str, Any]:
    names = ("priority", "default_time", "max_time", "max_jobs", "max_gpus", "paused", "draining", "why")
    gpus = None if queue.gpus is None else sorted(queue.gpus)
    return {"gpus": gpus, **{name: getattr(queue, name) for name in names}}


def _views(core: Core) -> Iterator[Message]:
    """Queues as `gpuq.queues/1` has them."""
    live = rules.live_in(core.store)
    running: dict[str, tuple[int, int]] = {}
    for job in (one.job for one in core.running.values()):
        jobs, gpus = running.get(job.queue, (0, 0))
        running[job.queue] = jobs + 1, gpus + len(job.gpus)
    for name, one in sorted(core.rules.queues.items(), key=lambda item: (item[0] != DEFAULT_QUEUE, item[0])):
        jobs, gpus = running.get(name, (0, 0))
        chosen = None if one.gpus is None else sorted(one.gpus, key=lambda uuid: (core.gpu_index(uuid) or 0, uuid))
        yield {
            "name": name,
            "state": "paused" if one.paused else "draining" if one.draining else "open",
            "draining": one.draining,
            "why": one.why,
            "priority": one.priority,
            "waiting": live.get((name, "queued"), 0) + live.get((name, "held"), 0),
            "running": jobs,
            "gpus_used": gpus,
            "max_jobs": one.max_jobs,
            "max_gpus": one.max_gpus,
            "gpus": chosen,
            "gpu_indexes": None if chosen is None else [core.gpu_index(uuid) for uuid in chosen],
            "default_time_seconds": one.default_time,
            "max_time_seconds": one.max_time,
        }


ANSWERS: dict[str, Answer] = {"queues": queues, "queue": queue}
