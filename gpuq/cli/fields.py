"""A job or GPU of the daemon as the cells of a table: short, escaped, the same on a terminal and off it."""

import shlex
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from gpuq.units import format_duration, format_short_duration, format_size, printable

Object = Mapping[str, Any]
#: When waiting jobs will start, by id: what `why` tells as `estimate`.
Estimates = Mapping[int, Object]

JOB_HEADER = ("id", "name", "state", "gpus", "vram", "time", "reason", "command")
#: The same with when jobs start, or did.
START_HEADER = ("id", "name", "state", "gpus", "vram", "start", "reason", "command")
GPU_HEADER = ("gpu", "name", "total", "used", "foreign", "claimed", "headroom", "jobs", "status")


def job_row(job: Object, now: float | None = None, estimates: Estimates | None = None) -> tuple[str, ...]:
    """The cells of JOB_HEADER, or with `estimates` of START_HEADER."""
    now = now if now is not None else time.time()
    return (
        str(job["id"]),
        name_cell(job),
        job["state"],
        gpus_cell(job),
        vram_cell(job),
        time_cell(job, now) if estimates is None else start_cell(job, now, estimates),
        reason_cell(job),
        command_cell(job["command"]),
    )


def name_cell(job: Object) -> str:
    """Its name; a member of an array with its index, `sweep[3]`."""
    array = job.get("array")
    return printable(job["name"] or "") + (f"[{array['index']}]" if array else "")


def gpus_cell(job: Object) -> str:
    """How many are asked for, `2x` or `1:4`, and once placed, which: `gpu0,2`."""
    indexes = job.get("gpu_indexes") or []
    if indexes:
        return "gpu" + ",".join("?" if index is None else str(index) for index in indexes)  # ? is lost by now
    if most := _most_gpus(job):
        return f"{job['gpu_count']}:{most}"
    return f"{job['gpu_count']}x" if job["gpu_count"] else ""


def gpu_count(job: Object) -> str:
    """How many are asked for: `2`, `1 to 4`."""
    most = _most_gpus(job)
    return f"{job['gpu_count']} to {most}" if most else str(job["gpu_count"])


def _most_gpus(job: Object) -> int:
    """The upper end of a range, 0 where it is none."""
    most = job.get("gpu_count_most") or 0
    return most if most > job["gpu_count"] else 0


def vram_cell(job: Object) -> str:
    """Use and claim per GPU: `8.1GiB/10GiB`, `!` when the claim was exceeded, `whole` for whole GPUs."""
    if not job["gpu_count"]:
        return ""
    claim = format_size(job["vram_bytes"]) if job["vram_bytes"] is not None else "whole"
    running = job["state"] in ("running", "suspended")
    used = job.get("used_vram_bytes") if running else job.get("peak_vram_bytes")
    if used is None or job["started_at"] is None:
        return claim
    return f"{format_size(used)}/{claim}{'!' if job.get('over_claim') else ''}"


def time_cell(job: Object, now: float) -> str:
    """Running or ran for; a waiting job's time since it was submitted."""
    started, ended = job["started_at"], job["ended_at"]
    if job["state"] in ("held", "queued"):
        return format_duration(now - epoch(job["submitted_at"]))
    if started is None:
        return ""
    if ended is None:
        return format_duration(ran_for(job, now))
    return format_short_duration(ran_for(job, epoch(ended)))


def ran_for(job: Object, until: float) -> float:
    """Seconds from its start, without the time that it was suspended; what its time limit counts."""
    since = job.get("suspended_at")
    if since is not None:
        until = min(until, epoch(since))
    return max(0.0, until - epoch(job["started_at"]) - (job.get("suspended_seconds") or 0.0))


def reason_cell(job: Object) -> str:
    """Why it waits, that it is being ended, or how it failed."""
    if job.get("ending"):
        return ending_cell(job)
    if job["state"] in ("running", "suspended"):
        return "over claim" if job.get("over_claim") else ""
    if job["state"] == "failed":
        return failure_cell(job)
    return str(job.get("reason") or "")


def ending_cell(job: Object) -> str:
    """`cancelling`, `ending: over-memory`: what is being done to a job that still runs."""
    return "cancelling" if job["ending"] == "cancel" else f"ending: {job['ending']}"


def state_text(job: Object) -> str:
    """Its state; of one that is being ended also since when, and when it is killed."""
    if not job.get("ending"):
        return str(job["state"])
    since, kill_at = local_time(job.get("ending_at")), local_time(job.get("kill_at"))
    return f"{job['state']}, {ending_cell(job)}" + (f" since {since}; KILL follows at {kill_at}" if since else "")


def start_cell(job: Object, now: float, estimates: Estimates) -> str:
    """When it started; of a waiting job when it will: `16:20`, `16:20-16:40`, `>17:00`, `?` where nobody can say."""
    if job["state"] not in ("held", "queued"):
        return short_time(job["started_at"], now)
    estimate = estimates.get(job["id"])
    if estimate is None:
        return "?"
    earliest, latest, later = (short_time(estimate[key], now) for key in ("earliest", "latest", "later_than"))
    if latest:
        return latest if earliest in ("", latest) else f"{earliest}-{latest}"
    return f">{later}" if later else f"{earliest}-?" if earliest else "?"


def short_time(text: str | None, now: float) -> str:
    """Local time to the minute, with the day where that is another than today; empty for None."""
    if text is None:
        return ""
    at = datetime.fromisoformat(text).astimezone()
    same = at.date() == datetime.fromtimestamp(now).astimezone().date()
    return at.strftime("%H:%M" if same else "%m-%d %H:%M")


def because(reason: str | None, text: str | None) -> str:
    """`Resources: asks for …`: the typed reason and its sentence, escaped, without saying a word twice."""
    said = printable(text or "")
    if not reason or said.lower().startswith(reason.lower()):
        return said
    return f"{reason}: {said}" if said else reason


def failure_cell(job: Object) -> str:
    """`exit 3`, `signal 9 (KILL)`, `vram-oom`."""
    failure = job.get("failure")
    if failure == "exit":
        return f"exit {job['exit_code']}"
    if failure == "signal":
        return f"signal {signal_name(job['signal'])}"
    return str(failure or "")


def failure_and_note(job: Object) -> tuple[str, str]:
    """How it failed, with the time limit that it ran into, and the evidence, without saying a signal twice."""
    failure, note = failure_cell(job), printable(job.get("note") or "")
    limit = job.get("time_limit_seconds")
    if failure == "timeout" and limit:
        return f"timeout after {format_short_duration(limit)}", note
    name, comma, more = note.partition(",")
    if job.get("failure") == "signal" and failure.endswith(f" ({name.removeprefix('SIG')})"):
        return f"{failure}{comma}{more}", ""
    return failure, note


def signal_name(number: int) -> str:
    import signal

    try:
        return f"{number} ({signal.Signals(number).name.removeprefix('SIG')})"
    except ValueError:  # a real-time signal
        return str(number)


def command_cell(command: Iterable[str]) -> str:
    """As one would type it; a line of `submit --from` without its shell."""
    words = list(command)
    if len(words) == 3 and words[:2] == ["/bin/sh", "-c"]:
        return printable(words[2])
    return printable(shlex.join(words))


def index_cell(gpu: Object) -> str:
    """Its index; `-` for one that the driver lists no longer."""
    return "-" if gpu["index"] is None else str(gpu["index"])


def gpu_row(gpu: Object) -> tuple[str, ...]:
    """The cells of GPU_HEADER."""
    return (
        index_cell(gpu),
        printable(gpu["name"]),
        size_cell(gpu.get("total_bytes")),
        size_cell(gpu.get("used_bytes")),
        size_cell(foreign_bytes(gpu)),
        size_cell(gpu.get("claimed_bytes")),
        size_cell(gpu.get("headroom_bytes")),
        ",".join(map(str, gpu["jobs"])),
        "ok" if gpu["available"] else printable(gpu.get("fault") or "unavailable"),
    )


def foreign_bytes(gpu: Object) -> int | None:
    """What others use of a GPU, and what their gpuq claims beside that."""
    used = gpu.get("foreign_bytes")
    return None if used is None else used + (gpu.get("neighbours_bytes") or 0)


def size_cell(size: int | None) -> str:
    return format_size(size) if size is not None else ""


def epoch(text: str) -> float:
    """Seconds since the epoch from the ISO 8601 text of a job."""
    return datetime.fromisoformat(text).timestamp()


def local_time(text: str | None) -> str:
    """ISO 8601 UTC as local time to the second; empty for None."""
    if text is None:
        return ""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def after_text(clauses: Iterable[str]) -> str:
    """What a job waits for, as it would be written: of conditions on jobs that follow each other a range."""
    found: list[tuple[str, int, int]] = []
    for clause in clauses:
        condition, _, jobs = clause.partition(":")
        if not jobs.isdecimal():
            found.append((clause, 0, 0))
        elif found and found[-1][0] == condition and found[-1][2] + 1 == int(jobs):
            found[-1] = (condition, found[-1][1], int(jobs))
        else:
            found.append((condition, int(jobs), int(jobs)))
    return ", ".join(
        text if not last else f"{text}:{first}" if first == last else f"{text}:{first}-{last}"
        for text, first, last in found
    )
