"""What ran on this host as a trace, out of the jobs that `list` tells (`gpuq.jobs/1`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from gpuq.model import DEFAULT_QUEUE
from gpuq.simulate.trace import NO_LIMIT, SECOND, WHOLE, Member, Refusal, Trace

Job = Mapping[str, Any]

#: `ok:12` or `started:12`.
_DEPENDENCY = re.compile(r"(\w+):(\d+)", re.ASCII)


@dataclass(slots=True)
class History:
    trace: Trace = field(default_factory=Trace)
    #: jobs that are left out, by why
    left_out: dict[str, int] = field(default_factory=dict)


class _Ran(NamedTuple):
    """What is kept of a job until all are known. Times in seconds since the epoch."""

    id: int
    #: when it was submitted, or its begin time came
    submitted: float
    start: float
    #: what it waited for: of each clause the alternatives
    after: tuple[str, ...]
    seconds: float
    limit: float | None
    gpus: int
    vram: int
    priority: int
    user: str
    member: Member


class _Times:
    """When jobs started and ended, as far as they did."""

    def __init__(self) -> None:
        self._starts: dict[int, float] = {}
        self._ends: dict[int, float] = {}

    def note(self, job: Job) -> None:
        for known, moment in ((self._starts, job["started_at"]), (self._ends, job["ended_at"])):
            if moment is not None:
                known[job["id"]] = _seconds(moment)

    def holds(self, clause: str) -> float:
        """Since when the first of the alternatives in `ok:12|started:13` was so; 0 where that is not known."""
        known = (
            (self._starts if condition == "started" else self._ends).get(int(number))
            for condition, number in _DEPENDENCY.findall(clause)
        )
        return min((at for at in known if at is not None), default=0.0)


def from_jobs(jobs: Iterable[Job], refuse: Refusal, since: float | None = None, until: float | None = None) -> History:
    """Jobs that ran on GPUs and have ended, as their newest attempt went; `since` and `until` are of their submission.

    A job is taken as submitted when nothing but room was missing: after its begin time, and after what it waited for.
    """
    found = History()
    ran: list[_Ran] = []
    times = _Times()
    for job in jobs:
        times.note(job)
        why = _unusable(job, refuse, since, until)
        if why is None:
            ran.append(_ran(job))
        elif why:
            found.left_out[why] = found.left_out.get(why, 0) + 1
    for one in sorted(ran):
        ready = min(one.start, max([one.submitted, *map(times.holds, one.after)]))
        found.trace.add(
            str(one.id),
            round(ready * SECOND),
            one.gpus,
            round(one.seconds * SECOND),
            limit=NO_LIMIT if one.limit is None else round(one.limit * SECOND),
            vram=one.vram,
            priority=one.priority,
            user=one.user,
            member=one.member,
        )
    found.trace.close()
    return found


def _unusable(job: Job, refuse: Refusal, since: float | None, until: float | None) -> str | None:
    """Why it is left out; empty where nobody needs to be told."""
    submitted = _seconds(job["submitted_at"])
    if (since is not None and submitted < since) or (until is not None and submitted >= until):
        return ""
    if job["ended_at"] is None:
        return "not ended yet"
    if job["started_at"] is None:
        return "never ran"
    if not _gpus(job):
        return "without GPUs"
    refused = refuse(_gpus(job), job["vram_bytes"] or WHOLE, job.get("queue") or DEFAULT_QUEUE)
    return None if refused is None else "larger than the simulated GPUs, or than its queue allows"


def _ran(job: Job) -> _Ran:
    start, limit = _seconds(job["started_at"]), job["time_limit_seconds"]
    seconds = max(0.0, _seconds(job["ended_at"]) - start - (job.get("suspended_seconds") or 0.0))
    begin = job.get("begin_at")
    array = job.get("array") or {}
    return _Ran(
        id=job["id"],
        submitted=max(_seconds(job["submitted_at"]), _seconds(begin) if begin is not None else 0.0),
        start=start,
        after=tuple(job.get("after") or ()),
        # what it took beyond its limit was given to end itself
        seconds=seconds if limit is None else min(seconds, limit),
        limit=limit,
        gpus=_gpus(job),
        vram=job["vram_bytes"] or WHOLE,
        priority=job["priority"],
        user=job["owner"] or "",
        member=Member(job.get("queue") or DEFAULT_QUEUE, (array["id"], array["limit"]) if array.get("limit") else None),
    )


def _gpus(job: Job) -> int:
    """How many it had, or would have had."""
    return len(job["gpus"]) or job["gpu_count"]


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
