"""A job's life: `advance(job, fact)` is the only way from one state to the next. Pure.

A fact is what happened; the answer is the job as it is then, with the events to be written in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpuq.errors import IllegalTransition
from gpuq.events import Event, Kind
from gpuq.model import ACTIVE, ENDED, Ending, Failure, Job, Request, State
from gpuq.policy.dependencies import DependencyBroken, Numbered
from gpuq.policy.edits import told


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt was given its GPUs; its supervisor is about to be launched."""

    gpus: tuple[str, ...]
    log_path: str
    #: of these GPUs, as they are now; None where that is not known
    indexes: tuple[int | None, ...] = ()
    #: why there and then, a line each
    why: tuple[str, ...] = ()
    #: when it was to start at the latest, in seconds since the epoch, where it had a reservation
    reserved_at: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt's supervisor reported: how the main process ended, and what it used."""

    #: the supervisor was told to end the job before the main process ended
    asked: bool = False
    failure: Failure | None = None
    exit_code: int | None = None
    signal: int | None = None
    note: str | None = None
    peak_ram: int | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None
    #: seconds since the epoch, as the supervisor saw it
    ended_at: float | None = None
    #: which signal it was sent before its time limit, and to how many processes, in words
    warned: str | None = None


@dataclass(frozen=True, slots=True)
class NeverStarted:
    """The daemon died between claim and launch: the attempt does not count."""


@dataclass(frozen=True, slots=True)
class EndAsked:
    """A running attempt is being ended."""

    ending: Ending
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A waiting job's owner does not want it any more."""


@dataclass(frozen=True, slots=True)
class Held:
    pass


@dataclass(frozen=True, slots=True)
class Released:
    pass


@dataclass(frozen=True, slots=True)
class Suspended:
    pass


@dataclass(frozen=True, slots=True)
class Resumed:
    pass


@dataclass(frozen=True, slots=True)
class Retried:
    """Its owner wants another attempt."""


@dataclass(frozen=True, slots=True)
class TriedAgain:
    """The job's own rules want another attempt; `policy.retry` decides."""

    #: seconds since the epoch before which it does not start
    not_before: float
    request: Request
    spent: tuple[int, ...]
    #: what failed, and which retry this is
    note: str


@dataclass(frozen=True, slots=True)
class Edited:
    """Its owner wants it otherwise."""

    #: fields of the job
    changes: Mapping[str, Any]
    #: of what it waits for from now on, what is open; None where that stays as it is
    unmet: frozenset[Numbered] | None = None


Fact = (
    Started
    | Ended
    | NeverStarted
    | EndAsked
    | Cancelled
    | Held
    | Released
    | Suspended
    | Resumed
    | Retried
    | TriedAgain
    | DependencyBroken
    | Edited
)


#: The one transition table: from which states each fact is possible, and what it is called in messages. Where a
#: fact leads is told by `advance` (an end leads to one of three states, the others to one).
POSSIBLE: Mapping[type[Fact], tuple[frozenset[State], str]] = {
    Started: (frozenset({State.QUEUED}), "start"),
    Ended: (ACTIVE, "end"),
    NeverStarted: (ACTIVE, "be queued again"),
    EndAsked: (ACTIVE, "be ended"),
    Cancelled: (frozenset({State.QUEUED, State.HELD}), "be cancelled without being ended"),
    Held: (frozenset({State.QUEUED}), "be held"),
    Released: (frozenset({State.HELD}), "be released"),
    Suspended: (frozenset({State.RUNNING}), "be suspended"),
    Resumed: (frozenset({State.SUSPENDED}), "be resumed"),
    Retried: (ENDED, "be retried"),
    TriedAgain: (frozenset({State.FAILED}), "be tried again"),
    DependencyBroken: (frozenset({State.QUEUED, State.HELD}), "be skipped"),
    Edited: (frozenset({State.QUEUED, State.HELD}), "be edited"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A job after a fact, and the event that tells of it."""

    job: Job
    event: Event


def noted(step: Step, note: str) -> Step:
    """The step with one more word of evidence, in the job and in the event."""
    text = f"{step.job.note}; {note}" if step.job.note else note
    return Step(replace(step.job, note=text), replace(step.event, data={**step.event.data, "note": text}))


def advance(job: Job, fact: Fact, now: float) -> Step:
    """The job after the fact. Raises IllegalTransition where its state does not allow it."""
    states, verb = POSSIBLE[type(fact)]
    if job.state not in states:
        raise IllegalTransition(f"job {job.id} is {job.state}, and cannot {verb}")
    match fact:
        case Started(gpus, log_path, indexes, why, reserved_at):
            data: dict[str, object] = {"gpus": list(gpus), **({"indexes": list(indexes)} if indexes else {})}
            if why:
                data["why"] = list(why)
            if reserved_at is not None:
                data["reserved_at"] = reserved_at
            changes = {"attempt": job.attempt + 1, "gpus": gpus, "log_path": log_path, "started_at": now}
            return _step(job, State.RUNNING, Kind.STARTED, now, data, **changes, **NOT_ENDED)
        case Ended():
            return _ended(job, fact, now)
        case NeverStarted():
            if job.ending is Ending.CANCEL:
                return _step(job, State.CANCELLED, Kind.CANCELLED, now, {}, ended_at=now, ending=None)
            changes = {"started_at": None, "gpus": (), "ending": None, **_NOT_SUSPENDED}
            return _step(job, State.QUEUED, Kind.REQUEUED, now, {}, **changes)
        case EndAsked(ending, note):
            data = {"why": str(ending), **({"note": note} if note else {})}
            return Step(replace(job, ending=ending, note=note), _event(job, Kind.ENDING, now, data))
        case Cancelled():
            return _step(job, State.CANCELLED, Kind.CANCELLED, now, {}, ended_at=now)
        case Held():
            return _step(job, State.HELD, Kind.HELD, now, {})
        case Released():
            return _step(job, State.QUEUED, Kind.RELEASED, now, {})
        case Suspended():
            return _step(job, State.SUSPENDED, Kind.SUSPENDED, now, {}, suspended_at=now)
        case Resumed():
            return _step(job, State.RUNNING, Kind.RESUMED, now, {}, **_not_suspended_any_more(job, now))
        case Retried():
            changes = {"begin_at": None, "spent": (), **_NOT_STARTED}
            return _step(job, State.QUEUED, Kind.RETRIED, now, {}, **changes, **NOT_ENDED)
        case TriedAgain():
            return _tried_again(job, fact, now)
        case DependencyBroken():
            note = fact.note
            return _step(job, State.SKIPPED, Kind.SKIPPED, now, {"note": note}, ended_at=now, note=note)
        case Edited():
            after = replace(job, **fact.changes)
            return Step(after, _event(job, Kind.EDITED, now, told(job, after)))


#: What is known of a job whose newest attempt has not ended.
NOT_ENDED: dict[str, Any] = {
    "ended_at": None,
    "exit_code": None,
    "signal": None,
    "failure": None,
    "note": None,
    "ending": None,
    "peak_vram": None,
    "peak_ram": None,
    "suspended_at": None,
    "suspended_seconds": 0.0,
}
_NOT_SUSPENDED: dict[str, object] = {"suspended_at": None, "suspended_seconds": 0.0}
_NOT_STARTED: dict[str, object] = {"gpus": (), "started_at": None, "log_path": None}


def _not_suspended_any_more(job: Job, now: float) -> dict[str, object]:
    since = job.suspended_at if job.suspended_at is not None else now
    return {"suspended_at": None, "suspended_seconds": job.suspended_seconds + max(0.0, now - since)}


def _tried_again(job: Job, fact: TriedAgain, now: float) -> Step:
    data: dict[str, object] = {"failure": str(job.failure), "note": fact.note, "in": round(fact.not_before - now, 3)}
    if fact.request.vram != job.request.vram:
        data["vram"] = fact.request.vram
    if fact.request.ram != job.request.ram:
        data["ram"] = fact.request.ram
    changes = {"begin_at": fact.not_before, "request": fact.request, "spent": fact.spent, **_NOT_STARTED}
    kind = Kind.PREEMPTED if job.failure is Failure.PREEMPTED else Kind.RETRYING
    return _step(job, State.QUEUED, kind, now, data, **changes, **{**NOT_ENDED, "note": fact.note})


def _ended(job: Job, fact: Ended, now: float) -> Step:
    state, failure, note = State.FAILED, fact.failure, fact.note
    if job.ending is Ending.CANCEL and (fact.asked or fact.failure is Failure.LOST):
        # its owner had asked, and whatever took the supervisor, the job did not come to its end
        state, failure, note = State.CANCELLED, None, None if fact.asked else fact.note
    elif (
        job.ending is Ending.PREEMPT
        and fact.failure is not Failure.TIMEOUT
        and (fact.asked or fact.failure is Failure.LOST)
    ):
        failure, note = Failure.PREEMPTED, job.note
    elif fact.asked and job.ending is Ending.OVER_MEMORY:
        failure, note = Failure.OVER_MEMORY, job.note
    elif fact.asked and fact.failure is not Failure.TIMEOUT:
        # whatever the job made of it: it did not come to its end, as when its supervisor is killed
        failure = Failure.LOST
        note = "its supervisor was told to end it by a signal from outside gpuq, as at a logout or shutdown"
    elif failure is None:
        state = State.SUCCEEDED
    kind = Kind(state.value)
    data = {
        key: value
        for key, value in {
            "failure": str(failure) if failure else None,
            "exit_code": fact.exit_code,
            "signal": fact.signal,
            "note": note,
            "warned": fact.warned,
        }.items()
        if value is not None
    }
    return _step(
        job,
        state,
        kind,
        now,
        data,
        ended_at=fact.ended_at if fact.ended_at is not None else now,
        exit_code=fact.exit_code,
        signal=fact.signal,
        failure=failure,
        note=note,
        peak_ram=fact.peak_ram,
        ending=None,
        **_not_suspended_any_more(job, now),
    )


def _event(job: Job, kind: Kind, now: float, data: Mapping[str, object]) -> Event:
    return Event(now, kind, job.id, job.attempt or None, data)


def _step(job: Job, state: State, kind: Kind, now: float, data: Mapping[str, object], **changes: object) -> Step:
    after = replace(job, state=state, **changes)  # type: ignore[arg-type]
    return Step(after, _event(after, kind, now, data))
