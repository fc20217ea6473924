"""Rows and records: one place that knows how a job stands in the database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar

from gpuq.events import Event, Kind
from gpuq.model import (
    ANY_GPU,
    ArrayPlace,
    Attempt,
    Claim,
    Clause,
    Condition,
    Dependency,
    EarlySignal,
    Ending,
    Failure,
    Job,
    Request,
    RetryRule,
    State,
    Wishes,
)

Row = Mapping[str, Any]
T = TypeVar("T")


#: Made once: `json.dumps` would make an encoder for each of the thirty values that a job's life writes.
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def dump(value: object) -> str:
    """ASCII JSON: lone surrogates, which stand for undecodable bytes (PEP 383), survive SQLite's UTF-8."""
    if not value and isinstance(value, tuple | list):  # most of what may be several is nothing
        return "[]"
    return _ENCODE(value)


def job_values(job: Job) -> dict[str, Any]:
    """Every column of a job but its id."""
    return {
        "name": job.name,
        "owner": job.owner,
        "command": dump(job.command),
        "cwd": dump(job.cwd),
        "gpus_asked": job.request.gpus,
        "most_gpus": job.request.most,
        "which_gpus": _which(job.request.which),
        "cpus": job.request.cpus,
        "env_hash": job.env_hash,
        "submitted_at": job.submitted_at,
        "priority": job.priority,
        "queue": job.queue,
        "job_group": job.group,
        "stop_after": job.stop_after,
        "preemptible": int(job.preemptible),
        "time_limit": job.time_limit,
        "after": after_value(job.after),
        "tags": dump(job.tags),
        "array_id": job.array.array_id if job.array else None,
        "array_index": job.array.index if job.array else None,
        "array_limit": job.array.limit if job.array else None,
        "umask": job.umask,
        "limits": dump(job.limits),
        "output": None if job.output is None else dump(job.output),
        "grace": job.grace,
        "early_signal": job.early_signal.signal if job.early_signal else None,
        "early_seconds": job.early_signal.before if job.early_signal else None,
        "log_limit": job.log_limit,
        "retry": dump([[rule.failures, rule.times, rule.growth] for rule in job.retry]),
        **live_values(job),
    }


def live_values(job: Job) -> dict[str, Any]:
    """The columns that a transition may change."""
    return {
        "state": job.state.value,
        "vram": job.request.vram,
        "ram": job.request.ram,
        "spent": dump(job.spent),
        "suspended_at": job.suspended_at,
        "suspended_seconds": job.suspended_seconds,
        "begin_at": job.begin_at,
        "attempt": job.attempt,
        "gpus": dump(job.gpus),
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "failure": job.failure,
        "note": clean(job.note),
        "ending": job.ending,
        "peak_vram": job.peak_vram,
        "peak_ram": job.peak_ram,
        "log_path": None if job.log_path is None else dump(job.log_path),
    }


#: The names of `live_values`.
LIVE_COLUMNS = (
    *("state", "vram", "ram", "spent", "suspended_at", "suspended_seconds", "begin_at", "attempt", "gpus"),
    *(
        "started_at",
        "ended_at",
        "exit_code",
        "signal",
        "failure",
        "note",
        "ending",
        "peak_vram",
        "peak_ram",
        "log_path",
    ),
)


def clean(text: str | None) -> str | None:
    """Text for a UTF-8 column; what no UTF-8 can say becomes an escape."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


#: To call the enumeration takes as long as ten of these.
_STATES = {state.value: state for state in State}


def job_from_row(row: Row) -> Job:
    array = early_signal = None
    if row["array_id"] is not None:
        array = ArrayPlace(row["array_id"], row["array_index"], row["array_limit"])
    if row["early_signal"] is not None:
        early_signal = EarlySignal(row["early_signal"], row["early_seconds"])
    return Job(
        id=row["id"],
        name=row["name"],
        owner=row["owner"],
        state=_STATES[row["state"]],
        command=_strings(row["command"]),
        cwd=_load(row["cwd"]),
        request=request_of(
            row["gpus_asked"], row["vram"], row["cpus"], row["ram"], row["most_gpus"], row["which_gpus"]
        ),
        env_hash=row["env_hash"],
        submitted_at=row["submitted_at"],
        priority=row["priority"],
        queue=row["queue"],
        group=row["job_group"],
        stop_after=row["stop_after"],
        preemptible=bool(row["preemptible"]),
        time_limit=row["time_limit"],
        begin_at=row["begin_at"],
        after=_clauses(row["after"]),
        tags=_strings(row["tags"]),
        array=array,
        umask=row["umask"],
        limits=_limits(row["limits"]),
        output=_load(row["output"]),
        grace=row["grace"],
        early_signal=early_signal,
        log_limit=row["log_limit"],
        retry=_rules(row["retry"]),
        spent=_numbers(row["spent"]),
        suspended_at=row["suspended_at"],
        suspended_seconds=row["suspended_seconds"],
        attempt=row["attempt"],
        gpus=_strings(row["gpus"]),
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        exit_code=row["exit_code"],
        signal=row["signal"],
        failure=None if row["failure"] is None else Failure(row["failure"]),
        note=row["note"],
        ending=None if row["ending"] is None else Ending(row["ending"]),
        peak_vram=row["peak_vram"],
        peak_ram=row["peak_ram"],
        log_path=_load(row["log_path"]),
    )


def _which(wishes: Wishes) -> str | None:
    return None if wishes == ANY_GPU else dump(asdict(wishes))


@lru_cache(maxsize=1024)
def request_of(gpus: int, vram: int | None, cpus: int, ram: int, most: int, which: str | None) -> Request:
    """A request from its columns. Raises ValueError, TypeError."""
    if which is None:
        return Request(gpus, vram, cpus, ram, most, ANY_GPU)
    found = json.loads(which)
    lists = {name: tuple(_one(item, str) for item in found[name]) for name in ("types", "only", "exclude")}
    wishes = Wishes(**lists, min_memory=_one(found["min_memory"], int), spread=_one(found["spread"], bool))
    return Request(gpus, vram, cpus, ram, most, wishes)


# What jobs have in common, folder, tags, limits and so on, is parsed once for a list of thousands.


@lru_cache(maxsize=1024)
def _load(text: str | None) -> Any:
    return None if text is None else _one(json.loads(text), str)


@lru_cache(maxsize=1024)
def _strings(text: str) -> tuple[str, ...]:
    return tuple(_one(item, str) for item in json.loads(text))


@lru_cache(maxsize=64)
def _limits(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((_one(number, int), _one(soft, int)) for number, soft in json.loads(text))


@lru_cache(maxsize=64)
def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_one(item, int) for item in json.loads(text))


@lru_cache(maxsize=64)
def _rules(text: str) -> tuple[RetryRule, ...]:
    return tuple(
        RetryRule(tuple(map(Failure, names)), _one(times, int), float(growth))
        for names, times, growth in json.loads(text)
    )


def after_value(after: Iterable[Clause]) -> str:
    """What a job waits for, as its column has it."""
    return dump([str(clause) for clause in after])


@lru_cache(maxsize=1024)
def _clauses(text: str) -> tuple[Clause, ...]:
    return tuple(Clause(tuple(map(_dependency, item.split("|")))) for item in json.loads(text))


def _dependency(text: str) -> Dependency:
    condition, _, job_id = text.partition(":")
    return Dependency(Condition(condition), int(job_id))


def _one(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r:.40} is not of the type {kind.__name__}")
    return value


def attempt_from_row(row: Row, claims: tuple[Claim, ...]) -> Attempt:
    return Attempt(
        job_id=row["job_id"],
        number=row["number"],
        started_at=row["started_at"],
        run_dir=_one(json.loads(row["run_dir"]), str),
        log_path=_one(json.loads(row["log_path"]), str),
        claims=claims,
        ended_at=row["ended_at"],
        exit_code=row["exit_code"],
        signal=row["signal"],
        failure=None if row["failure"] is None else Failure(row["failure"]),
        note=row["note"],
        peak_ram=row["peak_ram"],
        user_seconds=row["user_seconds"],
        system_seconds=row["system_seconds"],
    )


def claim_from_row(row: Row) -> Claim:
    return Claim(row["job_id"], row["attempt"], row["uuid"], row["bytes"], row["peak"])


def event_from_row(row: Row) -> Event:
    return Event(row["at"], Kind(row["kind"]), row["job_id"], row["attempt"], json.loads(row["data"]), row["id"])
