"""The request `edit`: what a waiting job asks for is changed, of all that are named or of none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpuq.daemon import decisions, depending
from gpuq.daemon import submit as checks
from gpuq.daemon.asking import Answer, Daemon, Session, chosen
from gpuq.daemon.checking import check_seconds
from gpuq.daemon.core import Core
from gpuq.daemon.depending import Depending
from gpuq.daemon.owners import owner_name
from gpuq.daemon.queues import FIRST_READING, refuse_closed
from gpuq.errors import BadRequest, CannotFit, GpuqError, IllegalTransition, NotAllowed, UsageError
from gpuq.model import Job, Queue, Request
from gpuq.policy import queues
from gpuq.policy.dependencies import ended_words
from gpuq.policy.edits import differing
from gpuq.policy.lifecycle import POSSIBLE, Edited
from gpuq.protocol import Message
from gpuq.units import format_duration

#: Most jobs that are edited at a time, for it is one transaction.
MOST = 1000
#: Jobs that a refusal names.
NAMED = 5
#: What is part of a request, as a submission has it.
REQUEST = (
    *("gpus", "gpus_most", "vram", "cpus", "ram"),
    *("gpu_types", "gpu_min_memory", "gpu_ids", "gpus_excluded", "spread"),
)
OTHERS = ("name", "priority", "queue", "group", "stop_after", "time_limit", "begin_at", "tags", "after")


async def edit(daemon: Daemon, session: Session, message: Message) -> Message:
    """Change waiting jobs, all of them or none. Answered once it is durable. Raises what is wrong with any of it."""
    core = daemon.core
    changes = message.get("changes")
    if not isinstance(changes, dict) or not changes:
        raise UsageError("nothing to change: name an option, as in `gpuq edit 12 --priority 5`")
    if unknown := changes.keys() - {*REQUEST, *OTHERS}:
        raise BadRequest(f"{min(unknown)!r:.60} cannot be edited; `gpuq daemon restart` brings a newer gpuq to work")
    clauses = depending.check(changes.get("after") or [])
    if changes.keys() & set(REQUEST) or "queue" in changes:
        await daemon.runner.gpus.known(FIRST_READING)
    selection = chosen(core, session, message)
    named = {low for low, high in selection.ranges if low == high}
    ids = core.store.select(selection)
    members = [job.array.index if job.array else None for job in core.store.jobs(ids[: MOST + 1])]
    indexes = [index for index in members if index is not None]
    after = await depending.resolve(core.store, session.uid, clauses, indexes if len(indexes) == len(ids) else ())
    try:
        facts = _facts(core, session, ids, named, changes, after)
    except CannotFit:
        await daemon.runner.gpus.fresh()  # a GPU may have come, or come back, since the last reading
        facts = _facts(core, session, ids, named, changes, after)
    changed = [(job, fact) for job, fact in facts if fact.changes]
    if changed:
        core.apply(changed)
        daemon.runner.wake()
    decisions.asked(session.uid, "edit", [job.id for job, _ in changed], 0)
    return {"done": [job.id for job, _ in facts], "changed": [job.id for job, _ in changed]}


def _facts(
    core: Core, session: Session, ids: Sequence[int], named: set[int], changes: Mapping[str, Any], after: Depending
) -> list[tuple[Job, Edited]]:
    """What is to happen to each. Raises what is wrong with the first, and nothing has changed."""
    possible, verb = POSSIBLE[Edited]
    jobs = [job for job in core.store.jobs(ids) if job.id in named or job.state in possible]
    stranger = next((job for job in jobs if job.owner != session.uid), None)
    if stranger is not None:
        raise NotAllowed(f"job {stranger.id} belongs to {owner_name(stranger.owner)}")
    wrong = [job for job in jobs if job.state not in possible]
    if wrong:
        told = "; ".join(
            f"job {job.id} already ended: it {ended_words(job.state)}"
            if job.ended
            else f"job {job.id} is {job.state}, and cannot {verb}"
            for job in wrong[:NAMED]
        )
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise IllegalTransition(f"{told}{more}{_nothing(len(jobs))}")
    if len(jobs) > MOST:
        raise GpuqError(f"{len(jobs):,} jobs are named, and at most {MOST:,} are edited at a time")
    found = []
    for job in jobs:
        try:
            found.append((job, _fact(core, job, changes, after)))
        except GpuqError as error:
            raise type(error)(f"{error.message} (job {job.id}){_nothing(len(jobs))}") from None
    return found


def _nothing(count: int) -> str:
    return "" if count == 1 else "; no job was changed"


def _fact(core: Core, job: Job, changes: Mapping[str, Any], after: Depending) -> Edited:
    """Raises UsageError, CannotFit and so on, in the words of a submit."""
    found = dict(_fields(core, job, changes))
    unmet = None
    if "after" in changes:
        clauses = (*after.common, *after.of(job.array.index if job.array else 0))
        depending.refuse_cycle(core.store, job.id, clauses)
        unmet, broken = depending.weighed(core.store, clauses)
        if broken is not None:
            raise CannotFit(f"--after can never hold: it {broken.note}")
        found["after"] = clauses
    found = differing(job, found)
    request: Request = found.get("request", job.request)
    queue = core.rules.queue(found.get("queue", job.queue))
    if "queue" in found:
        refuse_closed(queue)
    if {"request", "queue"} & found.keys() and (problem := core.impossible(request, queue)) is not None:
        raise CannotFit(problem)
    return Edited(found, unmet if "after" in found else None)


def _fields(core: Core, job: Job, changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of the job as they are asked for, but for what it waits for."""
    if changes.keys() & set(REQUEST):
        yield "request", checks.check_request(_request(job.request, changes), core.listed())
    if "name" in changes:
        name = checks.check_name(changes["name"])
        if not name:
            raise UsageError("--name is empty")
        yield "name", name
    if "priority" in changes:
        yield "priority", checks.check_priority(changes["priority"])
    if "begin_at" in changes:
        yield "begin_at", checks.check_moment(changes["begin_at"])
    if "tags" in changes:
        yield "tags", checks.check_tags(changes["tags"] or [])
    yield from _group(job, changes)
    queue = core.rules.queue(checks.check_queue(changes)) if "queue" in changes else core.rules.queue(job.queue)
    yield "queue", queue.name
    if "time_limit" in changes or "queue" in changes:
        yield "time_limit", _time_limit(job, queue, changes)


def _request(request: Request, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for then, as a submission has it."""
    which = request.which
    wanted: dict[str, Any] = {
        "gpus": request.gpus,
        "gpus_most": request.most or None,
        "vram": request.vram,
        "cpus": request.cpus,
        "ram": request.ram or None,
        "gpu_types": list(which.types),
        "gpu_min_memory": which.min_memory or None,
        "gpu_ids": list(which.only),
        "gpus_excluded": list(which.exclude),
        "spread": which.spread,
    }
    if "gpus" in changes:
        wanted["gpus_most"] = None
    if changes.get("gpus") == 0:
        wanted["vram"] = None  # it goes with the GPUs
        wanted["cpus"] = request.cpus or None  # those of a GPU job need not be counted, those of a CPU job are
    return wanted | {name: value for name, value in changes.items() if name in REQUEST}


def _group(job: Job, changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    group = checks.check_group(changes["group"]) if "group" in changes else job.group
    stop_after = checks.check_stop_after(changes["stop_after"]) if "stop_after" in changes else job.stop_after
    if group is None and stop_after is not None and "stop_after" in changes:
        raise UsageError("--stop-after is for several jobs: name their --group")
    yield "group", group
    yield "stop_after", None if group is None else stop_after


def _time_limit(job: Job, queue: Queue, changes: Mapping[str, Any]) -> float | None:
    given = check_seconds(changes["time_limit"], "--time") if "time_limit" in changes else job.time_limit
    limit = queues.time_limit(queue, given, None)
    early = job.early_signal
    if early is not None and (limit is None or early.before >= limit):
        before = format_duration(early.before)
        has = "none" if limit is None else format_duration(limit)
        raise UsageError(f"its signal comes {before} before the time limit, which would be {has}: submit it anew")
    return limit


ANSWERS: dict[str, Answer] = {"edit": edit}
