"""The exit code that a job's end means for `run` and `wait`."""

import signal
from collections.abc import Mapping
from typing import Any

from gpuq.cli import fields


def exit_code(job: Mapping[str, Any]) -> int:
    """The job's own code; 128+n for a signal or its time limit; 1 where there is no code."""
    if job["state"] == "succeeded":
        return 0
    if job["failure"] == "timeout":
        return 128 + int(job["signal"] or signal.SIGTERM)
    if job["exit_code"]:
        return int(job["exit_code"])
    if job["signal"]:
        return 128 + int(job["signal"])
    return 1


def sentence(job: Mapping[str, Any]) -> str:
    """`job 12 failed: exit 3: …`."""
    return f"job {job['id']} {job['state']}" + "".join(f": {part}" for part in fields.failure_and_note(job) if part)
