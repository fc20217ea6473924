"""The database against the run folders: what was started there has run, whatever the database believes.

A database may be older than the folders beside it: recovered, restored, or put there by hand. An attempt that it does
not know of is given to it as running; then its supervisor or its result tells the rest, as after any restart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuq.errors import StoreError
from gpuq.events import Event, Kind
from gpuq.launch import outcome
from gpuq.model import ACTIVE, Attempt, Ending, Job, State
from gpuq.policy.lifecycle import NOT_ENDED
from gpuq.store import runrecord
from gpuq.store.store import Store

#: So many ids beyond the last are looked for one by one; beyond more, the folder of all runs is listed.
MOST_PROBED = 10 * runrecord.RESERVED
#: With so many folders in that of all runs it is quicker to list them than to look for that of each job.
FEW_FOLDERS = 10_000


@dataclass(slots=True)
class Reconciled:
    """What the run folders told, by job id."""

    #: the database believed that they had not run so often
    given: list[int] = field(default_factory=list)
    #: the database did not know them
    rebuilt: list[int] = field(default_factory=list)
    #: there are folders, and nothing that tells what the job was
    unknown: list[int] = field(default_factory=list)


def reconcile(store: Store, run_root: Path, owner: int, now: float, *, deep: bool) -> Reconciled:
    """Give the database the attempts that were started without its knowledge, in one transaction. Raises StoreError.

    `deep` also looks at jobs that have ended, and for ids in the middle that the database has lost; otherwise only at
    those that live, and at ids beyond the last.
    """
    done = Reconciled()
    highest, last = runrecord.remembered(run_root), store.next_id() - 1
    ids = runrecord.numbers(run_root) if deep else _worth_a_look(store, run_root, last)
    if not ids and not highest:
        return done
    known = {job.id: job for job in (store.every_job() if deep else store.jobs([n for n in ids if n <= last]))}
    defaults = store.job_defaults()
    with store.transaction():
        for job_id in ids:
            folder = run_root / str(job_id)
            job = known.get(job_id)
            if job is not None:
                _give(store, job, folder, owner, defaults, now, done)
                if deep and job.state in ACTIVE and job.ending is None and _was_cancelled(folder / str(job.attempt)):
                    store.overwrite(replace(job, ending=Ending.CANCEL))
            elif deep or job_id > last:
                _rebuild(store, job_id, folder, owner, defaults, now, done)
        store.start_ids_after(max([highest, *ids]))
    return done


def _worth_a_look(store: Store, run_root: Path, last: int) -> list[int]:
    """Ids of jobs that live and have a folder beside those of their attempts, and of folders beyond the last id.

    What has ended is not looked at: there may be a million of it.
    """
    ids = []
    there = set(runrecord.numbers(run_root)) if _has_few(run_root) else None
    for job_id, attempt in store.live_attempts():
        folder = f"{run_root}/{job_id}"
        found = os.access(folder, os.F_OK) if there is None else job_id in there
        if found and any(n > attempt for n in runrecord.numbers(Path(folder))):
            ids.append(job_id)
    upto = runrecord.reserved(run_root)
    if last <= upto <= last + MOST_PROBED:
        return sorted(ids) + [n for n in range(last + 1, upto + 1) if os.path.lexists(f"{run_root}/{n}")]
    return sorted(ids) + [n for n in runrecord.numbers(run_root) if n > last]


def _has_few(folder: Path) -> bool:
    """Whether it has few folders. Each is a link to it, where its file system counts them (inode(7))."""
    try:
        return 2 <= os.stat(folder).st_nlink <= FEW_FOLDERS
    except OSError:
        return False


def _begun(folder: Path, after: int) -> list[int]:
    """Attempts beyond `after` that were started."""
    return [n for n in runrecord.numbers(folder) if n > after and _was_begun(folder / str(n))]


def _was_begun(run_dir: Path) -> bool:
    """What cannot be looked at may have run, and is not run again."""
    try:
        return runrecord.begun(run_dir)
    except (OSError, StoreError):
        return True


def _give(
    store: Store, job: Job, folder: Path, owner: int, defaults: Mapping[str, Any], now: float, done: Reconciled
) -> None:
    numbers = _begun(folder, job.attempt)
    if not numbers:
        return
    current = store.attempt(job.id, job.attempt)
    if current is not None and current.ended_at is None:
        store.end_attempt(_closed(current, now))
    record = runrecord.read(folder / str(numbers[-1]), owner, defaults)
    found = _attempt(job, folder / str(numbers[-1]), record)
    told = job if record is None else record.job
    after = replace(_running(job, found), spent=told.spent, request=told.request)
    store.overwrite(after)
    _add_attempts(store, after, found, folder, numbers[:-1], now)
    done.given.append(job.id)


def _rebuild(
    store: Store, job_id: int, folder: Path, owner: int, defaults: Mapping[str, Any], now: float, done: Reconciled
) -> None:
    numbers = runrecord.numbers(folder)
    records = [r for n in reversed(numbers) if (r := runrecord.read(folder / str(n), owner, defaults)) is not None]
    if not records:
        if numbers:
            done.unknown.append(job_id)
        return
    begun = _begun(folder, 0)
    job = records[0].job
    if not begun:  # about to be claimed for the first time; whether its owner still wants it is not known
        note = "recovered from its run folder, before it ran: `gpuq release` lets it go"
        waiting = replace(job, **NOT_ENDED, state=State.HELD, attempt=0, gpus=(), started_at=None, log_path=None)
        store.insert_job(replace(waiting, note=note), _event(waiting, now))
    else:
        record = next((r for r in records if r.attempt.number == begun[-1]), None)
        found = _attempt(job, folder / str(begun[-1]), record)
        job = _running(job, found)
        store.insert_job(job, _event(job, now))
        _add_attempts(store, job, found, folder, begun[:-1], now)
    done.rebuilt.append(job_id)


def _running(job: Job, attempt: Attempt) -> Job:
    after = replace(
        job,
        **NOT_ENDED,
        state=State.RUNNING,
        attempt=attempt.number,
        gpus=tuple(claim.uuid for claim in attempt.claims),
        started_at=attempt.started_at,
        log_path=attempt.log_path,
    )
    return replace(after, ending=Ending.CANCEL) if _was_cancelled(Path(attempt.run_dir)) else after


def _was_cancelled(run_dir: Path) -> bool:
    """Whether the supervisor was told to end it: its owner did that, and this database has not heard of it."""
    try:
        result = outcome.read_result(run_dir)
    except (OSError, StoreError):
        return False
    return result is not None and result.ended


def _event(job: Job, now: float) -> Event:
    return Event(now, Kind.RECOVERED, job.id, job.attempt or None, {"note": "known from its run folder"})


def _attempt(job: Job, run_dir: Path, record: runrecord.Record | None) -> Attempt:
    """The attempt in this folder, as far as it is told."""
    if record is not None:
        return record.attempt
    try:
        started = os.stat(run_dir).st_mtime
    except OSError:
        started = job.submitted_at
    return Attempt(job.id, int(run_dir.name), started, str(run_dir), str(run_dir / "log"))


def _add_attempts(store: Store, job: Job, newest: Attempt, folder: Path, earlier: list[int], now: float) -> None:
    present = {attempt.number for attempt in store.attempts(job.id)}
    for number in earlier:
        if number not in present:
            attempt = _attempt(job, folder / str(number), None)
            store.add_attempt(attempt)
            store.end_attempt(_closed(attempt, now))
    if newest.number not in present:
        store.add_attempt(newest)
    store.add_events([] if not earlier and not present else [_event(job, now)])


def _closed(attempt: Attempt, now: float) -> Attempt:
    """An attempt that a later one has followed."""
    return runrecord.ended(attempt) or replace(attempt, ended_at=now, note="its end was not recorded")
