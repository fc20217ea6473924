"""What became of an attempt that an earlier daemon started, or whose supervisor has just ended."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpuq.errors import StoreBusy, StoreError
from gpuq.launch import runfolder
from gpuq.launch.identity import find_supervisor, is_supervisor, leftover, pidfd_of
from gpuq.launch.outcome import Result, read_result
from gpuq.launch.runfolder import LOCK, RESULT, read_identity, unreadable
from gpuq.launch.supervisors import Supervisor
from gpuq.model import Identity


@dataclass(frozen=True, slots=True)
class Running:
    supervisor: Supervisor


@dataclass(frozen=True, slots=True)
class Starting:
    """The supervisor lives and has not said yet who it is; see `wait_unlocked`."""

    lock: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """There is a result."""

    result: Result


@dataclass(frozen=True, slots=True)
class NeverStarted:
    """The job did not begin. `complaint` is what a broken supervisor said last, if it did."""

    complaint: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The supervisor vanished after the job may have begun; see `end_leftovers`.

    `identity` is the supervisor's, or, where the job removed what told it, that of a process that it left behind.
    """

    identity: Identity
    complaint: str | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The run folder, or what stood in it before the claim, is missing, and no supervisor of it lives.

    So nothing tells whether the job began: one that removes its files and then its supervisor must not run again.
    """


Found = Running | Starting | Ended | NeverStarted | Lost | Gone


def adopt(run_dir: Path) -> Found:
    """What became of the attempt in `run_dir`.

    Raises StoreError for files that cannot be read or make no sense, once no supervisor of the attempt lives, and
    StoreBusy where the host is so short of files or memory that nothing could be looked at: ask again.
    """
    try:
        return _running(run_dir) or _after(run_dir)
    except OSError as error:
        raise unreadable(str(run_dir), error) from None


def _running(run_dir: Path) -> Running | Starting | Ended | None:
    """What the lock says; where it says anything else than that the attempt ended well, /proc is asked too.

    The job may have removed or replaced every file, and must neither be run beside itself nor be called lost.
    """
    held = _held(run_dir)
    if held:
        supervisor = _named_supervisor(run_dir)
        if supervisor is not None:
            return Running(supervisor)
    elif held is False and (result := _true_result(run_dir)) is not None:
        return Ended(result)
    identity = find_supervisor(run_dir)
    supervisor = None if identity is None else _supervisor(identity, run_dir)
    if supervisor is not None:
        return Running(supervisor)
    return Starting(run_dir / LOCK) if held and _held(run_dir) else None


def _true_result(run_dir: Path) -> Result | None:
    """None also for one that is damaged, which `_after` looks into."""
    try:
        return read_result(run_dir)
    except StoreBusy:
        raise
    except StoreError:
        return None


def _held(run_dir: Path) -> bool | None:
    """As `locked`; None also for a lock that is none, which `_after` complains about."""
    try:
        return runfolder.locked(run_dir)
    except StoreBusy:
        raise
    except StoreError:
        return None


def _after(run_dir: Path) -> Ended | Lost | NeverStarted | Gone:
    """What is there to be read when no supervisor lives. Where it is damaged, what was left is still to be ended."""
    try:
        return _read(run_dir)
    except StoreBusy:
        raise
    except StoreError as error:
        identity = _named(run_dir) or leftover(run_dir)
        if identity is None:
            raise
        return Lost(identity, error.message)


def _read(run_dir: Path) -> Ended | Lost | NeverStarted | Gone:
    """The same. Raises StoreError for what makes no sense."""
    if runfolder.has_result(run_dir) and (result := read_result(run_dir)) is not None:
        return Ended(result)
    if (identity := read_identity(run_dir)) is not None:
        return Lost(identity, runfolder.complaint(run_dir))
    there = runfolder.is_there(run_dir)
    if (identity := leftover(run_dir)) is not None:
        return Lost(identity, "its supervisor and its files are gone" if there else "its run folder is gone")
    # Whatever stands in place of these: a job made it, so one did begin. Reading it raises.
    runfolder.read_file(run_dir / RESULT)
    runfolder.locked(run_dir)
    if not there or not runfolder.has_record(run_dir):
        return Gone()
    return NeverStarted(runfolder.complaint(run_dir))


def wait_unlocked(run_dir: Path) -> None:
    """Block until the supervisor has ended. For `Starting`, which is rare and seldom lasts; then `adopt` again."""
    runfolder.wait_unlocked(run_dir)


def _named_supervisor(run_dir: Path) -> Supervisor | None:
    """The supervisor that the identity file names, if it lives and is one: the job may have written that file."""
    identity = _named(run_dir)
    return None if identity is None else _supervisor(identity, run_dir)


def _named(run_dir: Path) -> Identity | None:
    """Whom the identity file names, None also where it is damaged."""
    try:
        return read_identity(run_dir)
    except StoreBusy:
        raise
    except StoreError:
        return None


def _supervisor(identity: Identity, run_dir: Path) -> Supervisor | None:
    pidfd = pidfd_of(identity)
    if pidfd is None:
        return None
    try:
        ours = is_supervisor(identity.pid, run_dir)
    except OSError:
        os.close(pidfd)
        raise
    if not ours:
        os.close(pidfd)
        return None
    return Supervisor(identity.pid, pidfd, identity.start_time)
