"""What ran on this host as a trace, out of the jobs that `list` tells (`gpuq.jobs/1`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from gpuq.simulate.trace import NO_LIMIT, SECOND, WHOLE, Refusal, Trace

Job = Mapping[str, Any]


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
    #: ids of the jobs that it waited for
    after: tuple[int, ...]
    seconds: float
    limit: float | None
    gpus: int
    vram: int
    priority: int
    user: str


def from_jobs(jobs: Iterable[Job], refuse: Refusal, since: float | None = None, until: float | None = None) -> History:
    """Jobs that ran on GPUs and have ended, as their newest attempt went; `since` and `until` are of their submission.

    A job is taken as submitted when nothing but room was missing: after its begin time, and after what it waited for.
    """
    found = History()
    ran: list[_Ran] = []
    ends: dict[int, float] = {}
    for job in jobs:
        if job["ended_at"] is not None:
            ends[job["id"]] = _seconds(job["ended_at"])
        why = _unusable(job, refuse, since, until)
        if why is None:
            ran.append(_ran(job))
        elif why:
            found.left_out[why] = found.left_out.get(why, 0) + 1
    for one in sorted(ran):
        ready = min(one.start, max(one.submitted, *(ends.get(other, 0.0) for other in one.after), 0.0))
        found.trace.add(
            str(one.id),
            round(ready * SECOND),
            one.gpus,
            round(one.seconds * SECOND),
            limit=NO_LIMIT if one.limit is None else round(one.limit * SECOND),
            vram=one.vram,
            priority=one.priority,
            user=one.user,
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
    if not job["gpu_count"]:
        return "without GPUs"
    return refuse(job["gpu_count"], job["vram_bytes"] or WHOLE) and "too large for the simulated GPUs"


def _ran(job: Job) -> _Ran:
    start, limit = _seconds(job["started_at"]), job["time_limit_seconds"]
    seconds = max(0.0, _seconds(job["ended_at"]) - start - (job.get("suspended_seconds") or 0.0))
    begin = job.get("begin_at")
    numbers = [str(name).rpartition(":")[2] for name in job.get("after") or ()]
    return _Ran(
        id=job["id"],
        submitted=max(_seconds(job["submitted_at"]), _seconds(begin) if begin is not None else 0.0),
        start=start,
        after=tuple(int(number) for number in numbers if number.isascii() and number.isdigit()),
        # what it took beyond its limit was given to end itself
        seconds=seconds if limit is None else min(seconds, limit),
        limit=limit,
        gpus=job["gpu_count"],
        vram=job["vram_bytes"] or WHOLE,
        priority=job["priority"],
        user=job["owner"] or "",
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
