"""What became of an attempt: the supervisor's result file, and what killed the job."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuq.errors import StoreError
from gpuq.launch.runfolder import RESULT, read_file, read_tail, valid_text
from gpuq.model import Failure

#: How much of the end of a log is searched, in bytes.
TAIL = 64 * 1024
#: Longest evidence that is kept, in characters.
MAX_NOTE = 300


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
    #: largest resident set of any one process, in bytes; the supervisor's own fork makes some 5 MB the least
    max_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the result means. `exit_code` and `signal` are the main process's own, whatever the failure."""

    failure: Failure | None
    exit_code: int | None
    signal: int | None
    #: one line of evidence
    note: str | None


def read_result(run_dir: Path) -> Result | None:
    """The result in `run_dir`, None if there is none yet.

    The file is renamed into place after fsync, so one that makes no sense is damage, not a moment: StoreError. The
    attempt then counts as lost, with the error's message as its note, because its true outcome cannot be known.
    """
    path = run_dir / RESULT
    data = read_file(path)
    if data is None:
        return None
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(valid_text(f"the result {path} is damaged: {type(error).__name__}: {error}")) from None


def _parse(fields: Any) -> Result:
    status, failure = fields["wait_status"], fields["start_failure"]
    if (status is None) == (failure is None):
        raise ValueError("an attempt has a wait status or a reason why it did not start")
    return Result(
        wait_status=None if status is None else _wait_status(status),
        start_failure=None
        if failure is None
        else StartFailure(valid_text(str(failure["step"])), _count(failure["errno"]), valid_text(str(failure["text"]))),
        timed_out=bool(fields["timed_out"]),
        ended=bool(fields["ended"]),
        leftovers=_count(fields["leftovers"]),
        log_start=_count(fields["log_start"]),
        log_end=_count(fields["log_end"]),
        started_at=_seconds(fields["started_at"]),
        ended_at=_seconds(fields["ended_at"]),
        user_seconds=_seconds(fields["user_seconds"]),
        system_seconds=_seconds(fields["system_seconds"]),
        max_rss_bytes=_count(fields["max_rss_bytes"]),
    )


def _count(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 2**63:  # what a database can hold
        raise ValueError("a count is out of range")
    return number


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < 253402300800:  # the year 10000, with which calendars end
        raise ValueError("a time is out of range")
    return seconds


def _wait_status(value: Any) -> int:
    status = int(value)
    if not 0 <= status < 2**16 or not (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
        raise ValueError("the wait status is not that of a process that ended")
    return status


def judge(result: Result, tail: bytes) -> Outcome:
    """What the result means, given the end of what the attempt logged. Pure.

    Exit code 0 is success whatever was printed: a program that caught an out-of-memory error and went on did its work.
    """
    if result.start_failure is not None:
        return Outcome(Failure.LAUNCH, None, None, _one_line(result.start_failure.text))
    status = result.wait_status
    assert status is not None  # `read_result` sees to it
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    if result.timed_out:
        return Outcome(Failure.TIMEOUT, code, number, None)
    if code == 0:
        return Outcome(None, 0, None, None)
    # abort() is how C++ programs end on an exception that nobody catches.
    if number in (None, signal.SIGABRT) and (line := find_vram_oom(tail)) is not None:
        return Outcome(Failure.VRAM_OOM, code, number, line)
    if number is None:
        return Outcome(Failure.EXIT, code, None, None)
    return Outcome(Failure.SIGNAL, None, number, _describe(number, os.WCOREDUMP(status), result.ended))


def _describe(number: int, dumped: bool, asked: bool) -> str:
    try:
        text = signal.Signals(number).name
    except ValueError:
        text = f"signal {number}"
    if dumped:
        text += ", core dumped"
    if number == signal.SIGKILL and not asked:
        text += ", which gpuq did not send; the kernel does when host memory runs out"
    return text


def log_tail(path: str | os.PathLike[str], start: int, size: int = TAIL) -> bytes:
    """The last `size` bytes of what a log holds from the offset `start`; nothing for what is not a regular file."""
    try:
        return read_tail(path, start, size)
    except (OSError, ValueError):
        return b""  # gone, renamed or unreadable: then there is no evidence, which is no error


# --- GPU memory ran out -------------------------------------------------------------------------

#: What programs print when GPU memory ran out, by program; `tests/launch/oom_messages.json` has the messages.
_VRAM_OOM = re.compile(
    "|".join(
        (
            # PyTorch: a RuntimeError before 1.13, then torch.cuda.OutOfMemoryError, then torch.OutOfMemoryError
            r"\b(?:CUDA|HIP) out of memory\. Tried to allocate",
            r"\btorch(?:\.cuda)?\.OutOfMemoryError: \S",
            # JAX, old spelling and new. What follows is `allocating` where a CPU's memory ran out.
            r"(?:RESOURCE_EXHAUSTED|Resource exhausted): Out of memory while trying to allocate",
            r"(?:RESOURCE_EXHAUSTED|Resource exhausted): Failed to allocate request for .* on device ordinal",
            # TensorFlow says the same of host memory, and then names a CPU
            r"OOM when allocating tensor with shape(?!.*(?:device:CPU|allocator \w*cpu))",
            # CuPy, as a class and as the message alone
            r"\bcupy\.cuda\.memory\.OutOfMemoryError\b",
            r"\bOut of memory allocating [\d,]+ bytes \(allocated so far",
            # llama.cpp and others built on ggml
            r"\bcudaMalloc failed: out of memory",
            # vLLM
            r"\bNo available memory for the cache blocks",
            r"\bFree memory on device .* is less than desired GPU memory utilization",
            r"\bCUDA out of memory occurred when warming up",
            # CUDA's own names for it: runtime and driver, as many programs print them
            r"\bCUDA error: out of memory",
            r"(?i:\bcuda runtime error \(2\) : out of memory)",
            r"\bCUDA_ERROR_OUT_OF_MEMORY\b",
            r"\bcudaErrorMemoryAllocation\b",
        )
    )
)


def find_vram_oom(tail: bytes) -> str | None:
    """The last line in `tail` by which a program says that GPU memory ran out, fit to be shown."""
    for line in reversed(tail.decode("utf-8", "replace").replace("\r", "\n").split("\n")):
        if _VRAM_OOM.search(line):
            return _one_line(line)
    return None


def _one_line(text: str) -> str:
    line = " ".join(valid_text(text).split())
    return line if len(line) <= MAX_NOTE else line[: MAX_NOTE - 1] + "…"
