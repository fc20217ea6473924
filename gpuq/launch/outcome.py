"""What became of an attempt: the supervisor's result file, and what killed the job."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuq.errors import StoreError
from gpuq.launch import symptoms
from gpuq.launch.runfolder import RESULT, read_file, read_tail, valid_text
from gpuq.launch.symptoms import Line, Symptom
from gpuq.model import Failure
from gpuq.units import format_size

#: How much of the end of a log is searched, in bytes: several processes of one job may each print a long traceback
#: after the line that matters, and what was printed megabytes earlier did not end the job.
TAIL = 256 * 1024
#: Longest line of evidence that is kept, in characters.
MAX_NOTE = 300

#: A shell's exit code for a program that KILL ended: 128 + 9.
KILLED_BY_SHELL = 137
#: Ends with which a line of the log may be the cause. abort() is how C++ programs end on an exception that nobody
#: catches, and a program that does not look whether it was given memory crashes.
WITH_A_LINE = (None, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
#: What a line of the log proves by itself.
_PROVES = {Symptom.VRAM_OOM: Failure.VRAM_OOM, Symptom.GPU_LOST: Failure.GPU_LOST}
#: What is worth telling and proves nothing: an allocation may be refused because its size was nonsense, or because of
#: `ulimit -v`; and anybody may have killed a process of the job's.
_HINTS = {
    Symptom.HOST_MEMORY: "an allocation of host memory was refused, its log says",
    Symptom.KILLED: "a process of its own was killed, its log says",
}
#: Of an attempt without GPUs: it tells of another program's, or saw GPUs in spite of gpuq.
_HINTS_WITHOUT_GPUS = {
    Symptom.VRAM_OOM: "it was given no GPU, and its log says",
    Symptom.GPU_LOST: "it was given no GPU, and its log says",
}


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
    #: how long the job was stopped by `suspend`; its time limit stood still meanwhile
    suspended_seconds: float = 0.0
    #: `oom_kill` of the attempt's own cgroup: not 0 if the kernel killed of its processes for want of memory
    oom_kills: int = 0
    #: such kills on the whole host while it ran, whoever they hit
    host_oom_kills: int = 0
    #: most memory that the attempt's cgroup used at once, cached files included; 0 where that is not known
    memory_peak_bytes: int = 0
    #: the signal that was due before the time limit, 0 if none was, and how many processes handled it and got it
    warned: int = 0
    warned_processes: int = 0


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
    return parse(data, str(path))


def parse(data: bytes, origin: str) -> Result:
    """What a supervisor wrote there. Raises StoreError for what makes no sense."""
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(valid_text(f"the result {origin} is damaged: {type(error).__name__}: {error}")) from None


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
        # a supervisor that an older version started, and that outlived the upgrade, does not write these
        suspended_seconds=_seconds(fields.get("suspended_seconds", 0.0)),
        oom_kills=_count(fields.get("oom_kills", 0)),
        host_oom_kills=_count(fields.get("host_oom_kills", 0)),
        memory_peak_bytes=_count(fields.get("memory_peak_bytes", 0)),
        warned=_signal_number(fields.get("warned", 0)),
        warned_processes=_count(fields.get("warned_processes", 0)),
    )


def _count(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 2**63:  # what a database can hold
        raise ValueError("a count is out of range")
    return number


def _signal_number(value: Any) -> int:
    number = _count(value)
    if number and number not in signal.valid_signals():
        raise ValueError("there is no such signal")
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


def judge(result: Result, tail: bytes, *, gpus: bool = True) -> Outcome:
    """What the result means, given the end of what the attempt logged. Pure.

    No line proves that a GPU failed an attempt which had none of the `gpus`; there it is told as a hint.
    Exit code 0 is success whatever was printed: a program that caught an out-of-memory error and went on did its work.
    One that caught it and failed later for another reason, with the line still in the tail, counts as out of memory:
    the later error is more often a consequence than a cause of its own.
    """
    if result.start_failure is not None:
        return Outcome(Failure.LAUNCH, None, None, one_line(result.start_failure.text))
    status = result.wait_status
    assert status is not None  # `read_result` sees to it
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    if result.timed_out:
        unheard = result.warned and not result.warned_processes
        note = f"no process handled the {_name(result.warned)} before it" if unheard else None
        return Outcome(Failure.TIMEOUT, code, number, note)
    if code == 0:
        return Outcome(None, 0, None, None)
    failure, note = _named(result, code, number, symptoms.find(tail), gpus)
    if failure is not None:
        return Outcome(failure, code, number, note)
    if number is None:
        return Outcome(Failure.EXIT, code, None, note)
    return Outcome(Failure.SIGNAL, None, number, note or _describe(result, number, os.WCOREDUMP(status)))


def _named(
    result: Result, code: int | None, number: int | None, said: Mapping[Symptom, Line], gpus: bool
) -> tuple[Failure | None, str | None]:
    """A failure that has a proof beyond code and signal, with it; else None, and a line that may help."""
    counted = _oom_kills(result)
    # what was asked to end may be killed by us
    killed = not result.ended and (number == signal.SIGKILL or code == KILLED_BY_SHELL)
    if killed and counted:
        return Failure.HOST_OOM, f"{_name(signal.SIGKILL)}, and {counted}"
    lines = [(said[symptom], failure) for symptom, failure in _PROVES.items() if symptom in said]
    if gpus and lines and number in WITH_A_LINE:
        line, failure = max(lines, key=lambda found: found[0].place)
        return failure, one_line(line.text)
    if Symptom.KILLED in said and counted and number in WITH_A_LINE:
        return Failure.HOST_OOM, f"{one_line(said[Symptom.KILLED].text)} ({counted})"
    for symptom, what in (_HINTS if gpus else {**_HINTS, **_HINTS_WITHOUT_GPUS}).items():
        if symptom in said and number in WITH_A_LINE:
            return None, f"{what}: {one_line(said[symptom].text)}"
    return None, None


def _oom_kills(result: Result) -> str | None:
    """What the kernel's counters say of kills for want of host memory; None if they did not rise.

    The counter of the attempt's own cgroup proves it. The host's, of all processes, rose while the attempt ran: with
    a KILL that nobody else is known to have sent that is as good as proof, and is told as what it is.
    """
    if result.oom_kills:
        # how many processes that were is not told: where all of a group are killed, the first is counted twice
        counted = f"memory.events of its cgroup: oom_kill {result.oom_kills}"
        if result.memory_peak_bytes:
            counted += f"; memory.peak {format_size(result.memory_peak_bytes)}"
        return f"the kernel's out-of-memory killer struck it ({counted})"
    if result.host_oom_kills:
        times = "once" if result.host_oom_kills == 1 else f"{result.host_oom_kills} times"
        return f"the kernel ended a process for want of host memory {times} meanwhile (oom_kill in /proc/vmstat)"
    return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _describe(result: Result, number: int, dumped: bool) -> str:
    text = _name(number) + (", core dumped" if dumped else "")
    if number == signal.SIGKILL and not result.ended:
        text += ", which gpuq did not send, and the kernel counted no kill for want of memory meanwhile"
    elif number == result.warned and result.warned_processes:
        text += ", which --signal sent"
    return text


def warning(result: Result) -> str | None:
    """What the attempt was told before its time limit: `SIGUSR1 to 2 processes`; None where nothing was due."""
    if not result.warned:
        return None
    count = result.warned_processes
    whom = "no process, as none handled it" if not count else "1 process" if count == 1 else f"{count} processes"
    return f"{_name(result.warned)} to {whom}"


def log_tail(path: str | os.PathLike[str], start: int, size: int = TAIL) -> bytes:
    """The last `size` bytes of what a log holds from the offset `start`; nothing for what is not a regular file."""
    try:
        return read_tail(path, start, size)
    except (OSError, ValueError):
        return b""  # gone, renamed or unreadable: then there is no evidence, which is no error


def one_line(text: str) -> str:
    """Text of a program as one line that can be shown, cut at MAX_NOTE characters."""
    line = " ".join(valid_text(text).split())
    return line if len(line) <= MAX_NOTE else line[: MAX_NOTE - 1] + "…"
