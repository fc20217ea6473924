"""What became of an attempt: the supervisor's result file, and what killed the job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuq.model import Failure


@dataclass(frozen=True, slots=True)
class StartFailure:
    """Why the job's first program did not run."""

    #: `identity`, `log`, `fork`, `chdir` or `exec`
    step: str
    errno: int
    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a supervisor wrote when nothing of its job was left. Times are seconds since the epoch."""

    #: as wait(2) gave it for the main process; None if it did not start
    wait_status: int | None
    start_failure: StartFailure | None
    #: ran into its time limit
    timed_out: bool
    #: the supervisor was asked to end the job while it ran
    ended: bool
    #: processes that outlived the main process and were ended
    leftovers: int
    #: the log's size in bytes when the attempt began, and when it ended
    log_start: int
    log_end: int
    started_at: float
    ended_at: float
    user_seconds: float
    system_seconds: float
    #: largest resident set of any one process, in bytes; the supervisor's own fork makes some 10 MB the least
    max_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the result means. `exit_code` and `signal` are the main process's own, whatever the failure."""

    failure: Failure | None
    exit_code: int | None
    signal: int | None
    #: one line of evidence
    note: str | None
