"""Requests about the database itself: check it, copy it, go on with a copy, remove ended jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from gpuq.daemon import views
from gpuq.daemon.asking import Answer, Daemon, Session, check_selection, chosen
from gpuq.daemon.core import Core
from gpuq.errors import BadRequest, StoreError, UsageError
from gpuq.model import ENDED, Job
from gpuq.protocol import MAX_ID, Message
from gpuq.store import backup, dependents, recovery, restore, rules, runrecord

#: Jobs that are removed in one go; others are served between two.
SLICE = 200


async def db_check(daemon: Daemon, _session: Session, _message: Message) -> Message:
    """A thorough check; the daemon begins anew, and recovers, where it finds damage."""
    assert daemon.upkeep is not None
    checked = await daemon.upkeep.check()
    path = daemon.core.state_dir / recovery.DATABASE
    return {
        "path": str(path),
        "bytes": sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}-wal")) if part.exists()),
        "whole": not checked.problems,
        "problems": list(checked.problems),
        "checked_at": views.moment(checked.at),
        "report": str(report) if (report := recovery.last_report(daemon.core.state_dir)) else None,
    }


async def db_backup(daemon: Daemon, _session: Session, message: Message) -> Message:
    """A complete copy, made in a thread: the queue goes on meanwhile."""
    folder = daemon.core.state_dir
    target = _path(message.get("path")) or folder / backup.FOLDER / f"queue.{backup.stamp()}.db"
    replace = message.get("force") is True
    backup.refuse_target(target, folder)
    if target.parent == folder / backup.FOLDER:
        backup.make_folder(target.parent)
    await asyncio.to_thread(backup.copy_file, folder / recovery.DATABASE, target, replace=replace)
    return {"path": str(target), "bytes": target.stat().st_size}


async def db_restore(daemon: Daemon, session: Session, message: Message) -> Message:
    """Check a copy, and begin anew with it. The present database is set aside; what runs is known by its run folder."""
    path = _path(message.get("path"))
    if path is None:
        raise BadRequest("which file?")
    dry_run = message.get("dry_run") is True
    answer = await asyncio.to_thread(restore_reply, daemon.core.state_dir, path, session.uid, dry_run=dry_run)
    if not dry_run:
        daemon.begin_anew()
    return answer


def restore_reply(folder: Path, path: Path, owner: int, *, dry_run: bool) -> Message:
    """What a restore does, or would do; the next start of the daemon goes on with the copy. Raises StoreError."""
    try:
        weighed = (restore.weigh if dry_run else restore.take)(folder, path, owner)
    except OSError as error:
        raise StoreError(f"the restore could not be written down: {error.strerror or error}") from None
    return {"path": str(path), **asdict(weighed)}


def _path(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise BadRequest(f"a file is named by its absolute path, not {value!r:.60}")
    return Path(value)


# --- prune ----------------------------------------------------------------------------------------


async def prune(daemon: Daemon, session: Session, message: Message) -> Message:
    """Remove ended jobs with their run folders, or only their logs. A job that a waiting one depends on is kept."""
    core = daemon.core
    selection = check_selection(core, session, message)
    older, larger = _number(message, "older"), _number(message, "larger")
    logs_only = message.get("logs_only") is True
    if selection.empty and older is None and larger is None and message.get("all") is not True:
        raise UsageError("which jobs? choose with --older, --larger, --state, --tag or ids, or say --all")
    if selection.ranges:
        chosen(core, session, message)  # an id that does not exist is refused, as everywhere
    before = time.time() - (older or 0.0)
    done: list[int] = []
    kept: list[int] = []
    size = 0
    for found in core.store.ended(selection, before, SLICE):
        some = [job for job in core.store.jobs(found) if job.owner == session.uid]
        sizes = await asyncio.to_thread(_sizes, core.run_root, some)
        ids = [job_id for job_id, held in sizes.items() if held >= (larger or 0)]
        needed = [] if logs_only else [job_id for job_id in ids if dependents.is_needed(core.store, job_id)]
        kept += needed
        ids = [job_id for job_id in ids if job_id not in needed]
        size += sum(sizes[job_id] for job_id in ids)
        done += ids
        if message.get("dry_run") is not True:
            await _remove(daemon, ids, logs_only=logs_only)
    return {"done": sorted(done), "kept": sorted(kept), "bytes": size}


async def _remove(daemon: Daemon, ids: list[int], *, logs_only: bool) -> None:
    """The folders first: rows without folders are removed the next time, folders without rows never."""
    core = daemon.core
    ended = [n for n in ids if core.store.state_of(n) in ENDED]  # one may have been retried meanwhile
    await asyncio.to_thread(runrecord.remember, core.run_root, core.store.next_id() - 1)
    await asyncio.to_thread(_remove_folders, core.run_root, ended, logs_only)
    if not logs_only:
        with core.store.transaction():
            core.store.prune([n for n in ended if _may_go(core, n)], time.time())
            gone = [group for group in core.rules.groups.values() if not rules.has_jobs(core.store, group.name)]
            core.rules.write(gone=gone)
        core.rules.keep(gone=gone)
        core.hub.tell(ended)


def _may_go(core: Core, job_id: int) -> bool:
    """Whether it has still ended, and nobody has come meanwhile that waits for it."""
    return core.store.state_of(job_id) in ENDED and not dependents.is_needed(core.store, job_id)


def _sizes(run_root: Path, jobs: Iterable[Job]) -> dict[int, int]:
    return {job.id: _size(run_root / str(job.id)) for job in jobs}


def _size(folder: Path) -> int:
    """Bytes on disk below a folder; no symlink is followed (os.walk)."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return total


def _remove_folders(run_root: Path, ids: Iterable[int], logs_only: bool) -> None:
    for job_id in ids:
        folder = run_root / str(job_id)
        if not logs_only:
            shutil.rmtree(folder, ignore_errors=True)  # by descriptors: a symlink in it is removed, not followed
            with contextlib.suppress(OSError):
                folder.unlink()  # a job of ours may have put something else in its place
            continue
        for log in folder.glob("*/log"):
            if not log.parent.is_symlink():
                log.unlink(missing_ok=True)


def _number(message: Message, name: str) -> float | None:
    value = message.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_ID:
        raise BadRequest(f"{name} is a number, not {value!r:.60}")
    return float(value)


ANSWERS: dict[str, Answer] = {
    "db-check": db_check,
    "db-backup": db_backup,
    "db-restore": db_restore,
    "prune": prune,
}
