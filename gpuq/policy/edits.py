"""What an edit makes of a job, in the words of the options: what it was, and what it is now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuq.model import Job, Request

#: Fields of a job that its owner may change while it waits, by the option that does it.
FIELDS = {
    "name": "name",
    "priority": "priority",
    "queue": "queue",
    "group": "group",
    "stop-after": "stop_after",
    "time": "time_limit",
    "begin": "begin_at",
    "tag": "tags",
    "after": "after",
}


def differing(job: Job, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the changes, fields of the job, that would change it."""
    return {field: value for field, value in changes.items() if getattr(job, field) != value}


def told(before: Job, after: Job) -> dict[str, Any]:
    """The event's data: `was` and `now`, of each what differs."""
    was, now = _words(before), _words(after)
    different = [name for name in was if was[name] != now[name]]
    return {"was": {name: was[name] for name in different}, "now": {name: now[name] for name in different}}


def _words(job: Job) -> dict[str, Any]:
    plain = {option: getattr(job, field) for option, field in FIELDS.items()}
    return {**plain, "tag": list(job.tags), "after": [str(clause) for clause in job.after], **_asked(job.request)}


def _asked(request: Request) -> dict[str, Any]:
    which = request.which
    return {
        "gpus": request.gpus if request.gpus_at_most == request.gpus else f"{request.gpus}:{request.most}",
        "vram": request.vram,
        "cpus": request.cpus,
        "ram": request.ram or None,
        "gpu-type": list(which.types),
        "gpu-min-memory": which.min_memory or None,
        "gpu-id": list(which.only),
        "exclude-gpu": list(which.exclude),
        "spread": which.spread,
    }
