"""`show`: everything about a job."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gpuq.cli import event_text, fields, plain
from gpuq.cli.common import Groups, Ids, Json, States, Tags, examples, new_app, print_json, screen_width, select_some
from gpuq.units import format_duration, format_short_duration, format_size, printable

app = new_app()


@app.command(
    "show",
    epilog=examples("gpuq show 12", "gpuq show @last --json | jq '.jobs[0].exit_code'"),
)
def show(ids: Ids = None, state: States = None, tag: Tags = None, group: Groups = None, as_json: Json = False) -> None:
    """Show everything about jobs: outcome, times, GPUs with declared and used memory, attempts, events."""
    from gpuq.client import request

    jobs = request("show", sel=select_some(ids, state, tag, group).to_json())["jobs"]
    if as_json:
        print_json("gpuq.jobs/1", jobs=jobs)
        return
    sys.stdout.write("\n".join(describe(job, screen_width()) for job in jobs))


def describe(job: Mapping[str, Any], screen: int | None = None) -> str:
    """A job as text of several lines, on a terminal of `screen` columns wrapped to them."""
    attempts = [dict(attempt) for attempt in job.get("attempts") or []]
    if attempts and job["state"] != "queued" and attempts[-1].get("note") == job.get("note"):
        attempts[-1]["note"] = None  # it stands above already
    text = plain.pairs([("job", str(job["id"])), *_about(job, time.time())], screen=screen)
    for attempt in attempts:
        rows = _attempt({**attempt, "time_limit_seconds": job.get("time_limit_seconds")})
        text += f"attempt {attempt['attempt']}\n" + plain.pairs(rows, indent="  ", screen=screen)
    events = job.get("events") or []
    indexes = event_text.indexes_of(job)
    return (
        text
        + ("events\n" if events else "")
        + "".join(
            plain.cut(f"  {event_text.head(event)}{event_text.details(event, indexes)}".rstrip(), screen) + "\n"
            for event in events
        )
    )


def _about(job: Mapping[str, Any], now: float) -> Iterator[tuple[str, str]]:
    failure, note = fields.failure_and_note(job)
    yield "name", fields.name_cell(job)
    yield "state", fields.state_text(job)
    yield "reason", fields.because(job.get("reason"), job.get("reason_text"))
    yield "failure", failure
    yield "note", note
    yield "exit code", "" if job["exit_code"] is None else str(job["exit_code"])
    yield "signal", _signal(job)
    yield "command", printable(shlex.join(job["command"]))
    yield "folder", printable(job["cwd"])
    yield "owner", printable(str(job["owner"]))
    yield "GPUs", _gpus(job)
    yield from _which(job)
    yield "CPUs", str(job["cpus"]) if job.get("cpus") else ""
    yield "host memory", _size(job.get("ram_bytes") or None)
    yield "peak GPU memory", _peak(job)
    yield "peak host memory", _size(job.get("peak_ram_bytes"))
    yield "priority", str(job["priority"]) if job["priority"] else ""
    yield "preemptible", "yes" if job.get("preemptible") else ""
    yield "queue", "" if (queue := job.get("queue") or "default") == "default" else queue
    yield "group", _group(job)
    yield "tags", printable(", ".join(job["tags"]))
    yield "after", fields.after_text(job["after"])
    yield from (("waits for" if n == 0 else "", line) for n, line in enumerate(job.get("waits_for") or []))
    yield "array", _array(job.get("array"))
    yield "time limit", format_duration(limit) if (limit := job.get("time_limit_seconds")) else ""
    yield "early signal", _early_signal(job.get("signal_before_limit"))
    yield "grace", format_short_duration(grace) if (grace := job.get("grace_seconds")) else ""
    yield "log limit", _size(job.get("log_limit_bytes"))
    yield "retry", _retry(job)
    yield "not before", fields.local_time(job.get("begin_at")) if job["state"] in ("queued", "held") else ""
    yield "submitted", fields.local_time(job["submitted_at"])
    yield "started", fields.local_time(job["started_at"])
    yield "ended", fields.local_time(job["ended_at"])
    suspended = job.get("suspended_seconds") or 0.0
    yield "was suspended", format_short_duration(suspended) if suspended else ""
    if job["state"] in ("running", "suspended"):
        elapsed = fields.ran_for(job, now)
        yield "suspended", fields.local_time(job.get("suspended_at"))
        yield "elapsed", format_duration(elapsed)
        yield "time left", format_duration(limit - elapsed) if limit else ""
    yield "log", printable(job.get("log_path") or job.get("output") or "")


def _signal(job: Mapping[str, Any]) -> str:
    """The signal that ended it, where that is not what its failure says."""
    return "" if job.get("signal") is None or job["failure"] == "signal" else fields.signal_name(job["signal"])


def _gpus(job: Mapping[str, Any]) -> str:
    count = job["gpu_count"]
    if not count:
        return "none"
    claim = "whole" if job["vram_bytes"] is None else f"with {format_size(job['vram_bytes'])} claimed on each"
    return f"{fields.gpu_count(job)} {claim}"


def _which(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is asked of them."""
    yield "GPU type", printable(" or ".join(job.get("gpu_types") or []))
    yield "GPU memory", f"at least {_size(least)}" if (least := job.get("gpu_min_memory_bytes")) else ""
    yield "only GPUs", printable(", ".join(job.get("gpu_ids") or []))
    yield "other GPUs than", printable(", ".join(job.get("gpus_excluded") or []))
    yield "spread", "yes" if job.get("spread") else ""


def _peak(job: Mapping[str, Any]) -> str:
    peak = _size(job.get("peak_vram_bytes"))
    return f"{peak}, more than was claimed" if peak and job.get("over_claim") else peak


def _group(job: Mapping[str, Any]) -> str:
    name, most = job.get("group"), job.get("stop_after")
    stops = f", stops after {most} failure{'' if most == 1 else 's in a row'}" if most else ""
    return printable(name) + stops if name else ""


def _array(array: Mapping[str, Any] | None) -> str:
    if array is None:
        return ""
    most = f", at most {array['limit']} at a time" if array["limit"] else ""
    return f"index {array['index']} of array {array['id']}{most}"


def _early_signal(early: Mapping[str, Any] | None) -> str:
    if early is None:
        return ""
    return f"{fields.signal_name(early['signal'])}, {format_short_duration(early['seconds'])} before the time limit"


def _retry(job: Mapping[str, Any]) -> str:
    spent = f"; retries spent: {job['retries']}" if job.get("retries") else ""
    return " ".join(job.get("retry") or []) + spent


def _attempt(attempt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    started, ended = attempt.get("started_at"), attempt.get("ended_at")
    yield "started", fields.local_time(started)
    yield "ended", fields.local_time(ended)
    if started and ended:
        yield "took", format_short_duration(fields.epoch(ended) - fields.epoch(started))
    for claim in attempt["claims"]:
        index = claim["index"]
        label = f"GPU {index}" if index is not None else "lost GPU"
        declared = "the whole GPU" if claim["declared_bytes"] is None else format_size(claim["declared_bytes"])
        peak = _size(claim["peak_bytes"])
        over = ", more than was claimed" if claim["over"] else ""
        yield label, f"claimed {declared}, " + (f"used at most {peak}{over}" if peak else "no use was seen")
        yield "", printable(claim["gpu"])
    yield "exit code", "" if attempt.get("exit_code") is None else str(attempt["exit_code"])
    failure, note = fields.failure_and_note(attempt)
    yield "signal", _signal(attempt)
    yield "failure", failure
    yield "note", note
    user, system = attempt.get("user_seconds"), attempt.get("system_seconds")
    if user is not None and system is not None:
        yield "CPU time", f"{user:.1f}s user, {system:.1f}s system"
    yield "peak host memory", _size(attempt.get("peak_ram_bytes"))
    yield "log", printable(attempt.get("log_path") or "")


def _size(size: int | None) -> str:
    return format_size(size) if size is not None else ""
