"""Groups of jobs that stop together: after so many failures in a row nothing more of them starts. Pure."""

from __future__ import annotations

import shlex
from dataclasses import replace

from gpuq.model import Group, Job, State

#: Of a row of failures, this many ids are kept, the last.
KEPT = 10
#: The name of the group that the members of an array are begins with this.
ARRAY = "array:"


def array_group(array_id: int) -> str:
    """What the group is called that an array is by itself."""
    return f"{ARRAY}{array_id}"


def fared(group: Group, job: Job, now: float) -> Group:
    """The group after the end of one of its jobs; `job` says how it ended, for good.

    A success sets the count back; what was cancelled or skipped says nothing. The job's own number of failures counts.
    Once the group has stopped it stays as it is until somebody lets it go on.
    """
    if group.stopped_at is not None:
        return group
    if job.state is State.SUCCEEDED:
        return Group(group.name)
    if job.state is not State.FAILED:
        return group
    failed = (*(n for n in group.failed if n != job.id), job.id)[-KEPT:]
    failures = group.failures + 1
    stops = job.stop_after is not None and failures >= job.stop_after
    return replace(group, failures=failures, failed=failed, stopped_at=now if stops else None)


def why_stopped(group: Group) -> str:
    """Why nothing more of the group starts, and what to do."""
    many = "1 failure" if group.failures == 1 else f"{group.failures} failures in a row"
    ids = ", ".join(map(str, group.failed))
    jobs = f"job{'' if len(group.failed) == 1 else 's'} {'…, ' if group.failures > len(group.failed) else ''}{ids}"
    return f"group {group.name} stopped after {many} ({jobs}); `{go_on(group.name)}` lets it go on"


def go_on(name: str) -> str:
    """The command that lets the group go on."""
    return f"gpuq group resume {shlex.quote(name)}"
