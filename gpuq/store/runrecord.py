"""What a run folder says of its job, so that a job whose row is lost is known again.

The file `job` is written before the attempt is claimed, thus before anything runs in the folder. The job can write
there too: what is read back is checked like a row of a damaged database. No environment is in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuq.errors import StoreError
from gpuq.launch import identity, outcome, runfolder
from gpuq.model import Attempt, Claim, Job, State
from gpuq.protocol import MAX_ID
from gpuq.store.rows import dump, job_from_row

log = logging.getLogger("gpuq.runrecord")

NAME = runfolder.RECORD
#: In the folder of all runs: the largest id given out, for when the database is lost and folders were pruned.
LAST = "last"
#: Beside it: no larger id than this was given out, written before one is that would be; RESERVED at a time.
UPTO = "upto"
RESERVED = 100
#: Longest file that is read, in bytes: a command and as much again.
_LONGEST = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """An attempt as it was claimed: the job is `running`."""

    job: Job
    attempt: Attempt


def write(run_dir: Path, row: Mapping[str, Any], attempt: Attempt) -> None:
    """Write down a job's row as it is with the attempt that is about to be claimed.

    Raises OSError, FileExistsError where something else has the file's name: an earlier attempt may have put it there.
    """
    fields = {**row, "claims": [[c.uuid, c.bytes] for c in attempt.claims]}
    # not blocking: opening a FIFO would wait for a reader
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(f"{run_dir}/{NAME}", flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _in_the_way() from None
        raise
    with open(opened, "wb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise _in_the_way()
        file.truncate()
        file.write(dump(fields).encode("ascii"))


def _in_the_way() -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"something that is no file has the name `{NAME}` there")


def read(run_dir: Path, owner: int, defaults: Mapping[str, Any]) -> Record | None:
    """The record in `run_dir`, which is `.../ID/ATTEMPT`; None where there is none that makes sense of that attempt.

    `defaults` are the columns of a job as the schema fills them in, for records that an older gpuq wrote.
    """
    try:
        data = runfolder.read_file(run_dir / NAME, _LONGEST)
        if data is None:
            return None
        fields = json.loads(data)
        job = job_from_row({**defaults, **fields})
        claims = tuple(_claim(job, *pair) for pair in fields["claims"])
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if (str(job.id), str(job.attempt)) != (run_dir.parent.name, run_dir.name) or job.owner != owner:
        return None
    if job.state is not State.RUNNING or job.started_at is None or job.log_path is None:
        return None
    return Record(job, Attempt(job.id, job.attempt, job.started_at, str(run_dir), job.log_path, claims))


def _claim(job: Job, uuid: object, size: object) -> Claim:
    if not isinstance(uuid, str) or not (size is None or isinstance(size, int)):
        raise ValueError("a claim is a GPU and a size")
    return Claim(job.id, job.attempt, uuid, size)


def begun(run_dir: Path) -> bool:
    """Whether an attempt was started in the folder: then it must not be run again. Raises StoreError, OSError.

    A folder that was made, and in which nothing was started, holds `job` and `work` only. A job may have removed
    everything else; then its supervisor, or what it left behind, is looked for.
    """
    if any(os.path.lexists(run_dir / name) for name in (runfolder.LOCK, runfolder.IDENTITY, runfolder.RESULT, "log")):
        return True
    return identity.find_supervisor(run_dir) is not None or identity.leftover(run_dir) is not None


def ended(attempt: Attempt) -> Attempt | None:
    """The attempt with the outcome that its run folder tells; None where it tells none."""
    try:
        result = outcome.read_result(Path(attempt.run_dir))
    except StoreError:
        return None
    if result is None:
        return None
    failed = result.wait_status != 0 or result.start_failure is not None
    judged = outcome.judge(result, outcome.log_tail(attempt.log_path, result.log_start) if failed else b"")
    return Attempt(
        attempt.job_id,
        attempt.number,
        attempt.started_at,
        attempt.run_dir,
        attempt.log_path,
        attempt.claims,
        ended_at=result.ended_at,
        exit_code=judged.exit_code,
        signal=judged.signal,
        failure=judged.failure,
        note=judged.note,
        peak_ram=result.max_rss_bytes,
        user_seconds=result.user_seconds,
        system_seconds=result.system_seconds,
    )


def remember(run_root: Path, job_id: int) -> None:
    """Write down beside the run folders that this id was given out, where nothing says so of a larger one."""
    if job_id > remembered(run_root):
        _write_number(run_root, LAST, job_id)


def reserve(run_root: Path, job_id: int) -> int:
    """Write down that ids up to this one, and some beyond it, may have been given out; up to which."""
    upto = job_id + RESERVED
    _write_number(run_root, UPTO, upto)
    return upto


def _write_number(run_root: Path, name: str, number: int) -> None:
    unfinished = run_root / f"{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        run_root.mkdir(mode=0o700, exist_ok=True)
        with open(os.open(unfinished, flags, 0o600), "w", encoding="ascii") as file:
            file.write(f"{number}\n")
        unfinished.replace(run_root / name)
    except OSError as error:
        log.warning("the last id could not be written down: %s", error)


def remembered(run_root: Path) -> int:
    """The largest id that was written down as given out; 0 where there is none."""
    return _read_number(run_root / LAST)


def reserved(run_root: Path) -> int:
    """The id beyond which none was given out; 0 where that is not known."""
    return _read_number(run_root / UPTO)


def _read_number(path: Path) -> int:
    with contextlib.suppress(OSError, StoreError, ValueError):
        return min(MAX_ID, int(runfolder.read_file(path, 32) or b"0"))
    return 0


def numbers(folder: Path) -> list[int]:
    """Ids in the folder of all runs, or attempts in that of a job, ascending."""
    try:
        return sorted(
            int(name) for name in os.listdir(folder) if name.isascii() and name.isdecimal() and len(name) < 19
        )
    except OSError:
        return []
