"""A database whose rows come from damage: what makes no sense goes, what can be told from the rest is put right."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuq.events import Event, Kind
from gpuq.model import ACTIVE, WAITING, Attempt, Failure, Job, Queue, State
from gpuq.policy.dependencies import holds, weigh
from gpuq.policy.lifecycle import advance
from gpuq.store import rules, runrecord, staging
from gpuq.store.columns import misfit
from gpuq.store.migrations import TABLES
from gpuq.store.replay import drop_false_environments
from gpuq.store.rows import attempt_from_row, claim_from_row, event_from_row, job_from_row
from gpuq.store.store import Store, with_outcome

#: Events that tell a waiting job's state, where its row is older than they are.
_TOLD = {
    Kind.HELD: State.HELD,
    Kind.RELEASED: State.QUEUED,
    Kind.CANCELLED: State.CANCELLED,
    Kind.SKIPPED: State.SKIPPED,
    Kind.SUCCEEDED: State.SUCCEEDED,
    Kind.FAILED: State.FAILED,
    Kind.RETRIED: State.QUEUED,
    Kind.REQUEUED: State.QUEUED,
}


#: What each row must make sense to; jobs first, for what is of a job goes with it.
_READERS: dict[str, Callable[[Any], object]] = {
    "jobs": job_from_row,
    "attempts": lambda row: attempt_from_row(row, ()),
    "claims": claim_from_row,
    "events": event_from_row,
    **rules.READERS,
}


@dataclass(slots=True)
class Mended:
    #: rows that made no sense, as they were
    left_out: list[dict[str, Any]] = field(default_factory=list)
    #: jobs that are held now, with why
    held: dict[int, str] = field(default_factory=dict)
    #: attempts that had to be made up
    attempts: int = 0


def leave_out(store: Store) -> Mended:
    """Take away, in one transaction, the rows that make no sense."""
    mended = Mended()
    with store.transaction():
        for table in sorted(TABLES):
            wrong = misfit(store.conn, table)
            for row in store.conn.execute(f"SELECT rowid AS rowid_, * FROM {table} WHERE {wrong}").fetchall():
                _drop(store, table, row, mended)
        for table, read in _READERS.items():
            for row in store.conn.execute(f"SELECT rowid AS rowid_, * FROM {table}").fetchall():
                try:
                    read(row)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    _drop(store, table, row, mended)
        drop_false_environments(store)
    return mended


def mend(
    store: Store, run_root: Path, now: float, mended: Mended, *, mixed: bool, acknowledged: Container[int] = ()
) -> None:
    """Put right, in one transaction, what can be told from the rest. `mixed` says that pages of different times may
    have come together: then events, too, tell how a waiting job stands. `acknowledged` are ids that others vouch for.
    """
    with store.transaction():
        mended.left_out += staging.disown(store, acknowledged, now)
        _submissions(store)
        for job in list(store.every_job()):
            _mend(store, _by_events(store, job) if mixed else job, job, run_root, now, mended)
        for name in rules.lost_queues(store):  # a person decides, who knows what it was
            why = "what was set for it is lost"
            rules.put(store, Queue(name, paused=True, why=why))
            store.add_events([Event(now, Kind.QUEUE_SET, data={"queue": name, "paused": True, "why": why})])
        _close_attempts(store, now)


def _drop(store: Store, table: str, row: Any, mended: Mended) -> None:
    """Leave out a row, and with a job's whatever is of that job but its events."""
    values = dict(row)
    rowid = values.pop("rowid_")
    mended.left_out.append(values)
    store.conn.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
    if table == "jobs":
        for other in ("attempts", "claims", "dependencies"):
            store.conn.execute(f"DELETE FROM {other} WHERE job_id = ?", (rowid,))


def _submissions(store: Store) -> None:
    """A submission all of whose jobs are lost must be made again when its client asks again."""
    store.conn.execute(
        "DELETE FROM submissions WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id BETWEEN first_id AND last_id)"
    )


def _mend(store: Store, job: Job, as_read: Job, run_root: Path, now: float, mended: Mended) -> None:
    fixed = job
    if job.ended and job.ended_at is None:
        fixed = replace(job, ended_at=job.started_at or job.submitted_at)
    elif not job.ended and job.ended_at is not None:
        fixed = replace(job, ended_at=None)
    if fixed.attempt and fixed.attempt not in {attempt.number for attempt in store.attempts(fixed.id)}:
        _make_attempt(store, fixed, run_root, now)
        mended.attempts += 1
    if fixed != as_read:
        store.overwrite(fixed)
    if fixed.state in WAITING:
        _waiting(store, fixed, now, mended)


def _by_events(store: Store, job: Job) -> Job:
    """What the newest event about the state of a waiting job says, where its row may be from before it."""
    if job.state not in WAITING:
        return job
    row = store.conn.execute(
        "SELECT kind, at, data FROM events WHERE job_id = ? AND kind != ? ORDER BY id DESC LIMIT 1",
        (job.id, Kind.EDITED.value),
    ).fetchone()
    state = _TOLD.get(Kind(row["kind"])) if row else None
    if state is None or state is job.state:
        return job
    data = json.loads(row["data"])
    return replace(
        job,
        state=state,
        ended_at=None if state in WAITING else row["at"],
        exit_code=data.get("exit_code"),
        signal=data.get("signal"),
        failure=Failure(data["failure"]) if "failure" in data else None,
        note=data.get("note", job.note),
    )


def _make_attempt(store: Store, job: Job, run_root: Path, now: float) -> None:
    run_dir = run_root / str(job.id) / str(job.attempt)
    record = runrecord.read(run_dir, job.owner, store.job_defaults())
    if record is not None:
        store.add_attempt(record.attempt)
        return
    log_path = job.log_path or str(run_dir / "log")
    store.add_attempt(Attempt(job.id, job.attempt, job.started_at or now, str(run_dir), log_path))


def _waiting(store: Store, job: Job, now: float, mended: Mended) -> None:
    """A job that waits: its dependencies as the other jobs stand, and what it needs to run."""
    store.conn.execute("DELETE FROM dependencies WHERE job_id = ?", (job.id,))
    known = {one.job_id: store.standing(one.job_id) for clause in job.after for one in clause.alternatives}
    open_, never = weigh(job.after, known.__getitem__)
    if never is not None:
        step = advance(job, never, now)
        store.change(job, step.job, step.event)
        return
    store.add_dependencies([job.id], job.after, open_)
    # a clause that holds by another alternative does not need the job that was lost
    lost = [
        one.job_id
        for clause in job.after
        if not any((how := known[one.job_id]) and holds(one.condition, how) for one in clause.alternatives)
        for one in clause.alternatives
        if known[one.job_id] is None
    ]
    if lost:
        _hold(
            store,
            job,
            f"depends on job {', '.join(map(str, lost))}, which was lost with the damaged database",
            now,
            mended,
        )
    elif store.environment(job.env_hash) is None:
        _hold(store, job, "its environment was lost with the damaged database: submit it anew", now, mended)


def _hold(store: Store, job: Job, note: str, now: float, mended: Mended) -> None:
    """A person decides: `gpuq release`, or `gpuq cancel`."""
    store.overwrite(replace(job, state=State.HELD, note=note))
    store.add_events([Event(now, Kind.HELD, job.id, job.attempt or None, {"note": note})])
    mended.held[job.id] = note


def _close_attempts(store: Store, now: float) -> None:
    """Attempts that have ended though their rows do not say so."""
    for row in store.conn.execute("SELECT job_id, number FROM attempts WHERE ended_at IS NULL").fetchall():
        job = store.job(row["job_id"])
        attempt = store.attempt(row["job_id"], row["number"])
        if attempt is None or (job is not None and job.state in ACTIVE and job.attempt == attempt.number):
            continue
        told = runrecord.ended(attempt)
        if told is None and job is not None and job.ended and job.attempt == attempt.number:
            told = with_outcome(attempt, job, None, None)
        store.end_attempt(told or replace(attempt, ended_at=now, note="its end was not recorded"))
