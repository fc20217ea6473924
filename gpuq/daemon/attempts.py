"""From a start that was planned to an attempt that is claimed, and the orders for its supervisor."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from gpuq.daemon import threads
from gpuq.daemon.core import Core
from gpuq.daemon.running import NewAttempt, Running
from gpuq.errors import HostBusy, LaunchError
from gpuq.launch.cgroup import Supervision
from gpuq.launch.environment import job_environment, log_path
from gpuq.launch.launcher import Launch
from gpuq.model import Attempt, Claim, Job, State
from gpuq.policy.explain import why_there
from gpuq.policy.lifecycle import Started, advance
from gpuq.policy.scheduler import Start
from gpuq.store import runrecord
from gpuq.store.rows import live_values

#: Most environments that are kept ready for jobs to come.
ENVIRONMENTS = 16
#: So many folders of waiting jobs are made ahead.
AHEAD = 16


class Attempts:
    def __init__(self, core: Core, supervision: Supervision) -> None:
        self._core = core
        self._supervision = supervision
        #: jobs whose next folders were made, or are being made
        self._ahead: set[int] = set()
        #: the newest that were used, by their hashes
        self._environments: dict[str, Mapping[str, str]] = {}

    def prepare(self, start: Start) -> tuple[NewAttempt, str | None]:
        """The attempt that is to be claimed for a planned start, with its folder; and what is wrong with that alone.

        Raises StoreError where the job cannot be read, OSError where no folder can be made.
        """
        core = self._core
        row = core.store.row(start.job_id)
        assert row is not None, f"job {start.job_id} was planned and is gone"
        job = core.store.job_of(row)
        assert job.state is State.QUEUED, f"job {job.id} was planned and does not wait"
        number = job.attempt + 1
        run_dir = core.next_run_dir(job)
        indexes = tuple(map(core.gpu_index, start.gpus))
        reserved_at = next((r.at for r in core.reserved if r.job_id == job.id and r.at < inf), None)
        started = Started(start.gpus, log_path(job, str(run_dir)), indexes, self._why(start), reserved_at)
        step = advance(job, started, time.time())
        assert step.job.log_path is not None and step.job.started_at is not None
        broken = _make_work_folder(run_dir)
        claims = tuple(Claim(job.id, number, uuid, job.request.vram) for uuid in start.gpus)
        attempt = Attempt(job.id, number, step.job.started_at, str(run_dir), step.job.log_path, claims)
        if broken is None:  # should the database be lost, it is known what runs there
            broken = _write_record(run_dir, {**row, **live_values(step.job)}, attempt)
        return NewAttempt(job, step, attempt), broken

    def _why(self, start: Start) -> tuple[str, ...]:
        """Why there and then, for those who ask later."""
        core, lines = self._core, []
        waited = core.verdicts.get(start.key)
        if waited is not None:
            lines.append(f"its kind waited before: {waited.text}")
        if start.gpus:
            places = [core.gpu_place(uuid) for uuid in start.gpus]
            lines.append(why_there(start.request, places, start.fitting, core.rules.queue(start.key.queue)))
        if start.passes:
            lines.append(f"it passed job {', '.join(map(str, start.passes))}, whose reservation it does not delay")
        return tuple(lines)

    def look_ahead(self, first: Sequence[int]) -> None:
        """Have folders made for the next attempts of these, which are first: that takes longer than a claim."""
        missing = [job_id for job_id in first if job_id not in self._ahead]
        if first[:1] != missing[:1] and len(missing) <= AHEAD // 2:
            return  # a thread for each would cost what it saves
        self._ahead = set(first)
        jobs = self._core.store.jobs(missing)
        folders = [self._core.next_run_dir(job) for job in jobs if job.state is State.QUEUED]
        with contextlib.suppress(HostBusy):  # `prepare` makes what is not there
            threads.begin(lambda: _make_folders(folders), "folders")

    def orders(self, running: Running) -> Launch:
        """What its supervisor needs to know. Raises LaunchError, StoreError."""
        core, job, attempt = self._core, running.job, running.attempt
        run_dir = Path(attempt.run_dir)
        return Launch(
            job_id=job.id,
            attempt=attempt.number,
            run_dir=run_dir,
            argv=job.command,
            cwd=job.cwd,
            env=job_environment(self._environment(job), job, attempt.run_dir, str(core.state_dir)),
            log_path=attempt.log_path,
            private_log=job.output is None,
            umask=job.umask,
            limits=job.limits,
            time_limit=job.time_limit,
            grace=core.grace(job),
            warn=None if job.early_signal is None else (job.early_signal.signal, job.early_signal.before),
            log_limit=job.log_limit,
            ram=job.request.ram or None,
            cgroup=self._supervision.leaf(run_dir, job.id, attempt.number),
        )

    def _environment(self, job: Job) -> Mapping[str, str]:
        """The submitter's, as it was kept. Raises LaunchError where it was erased, StoreDamaged for another one."""
        found = self._environments.get(job.env_hash)
        if found is None:
            body = self._core.store.environment(job.env_hash)
            if body is None:
                raise LaunchError("its environment was erased; submit it anew")
            if hashlib.sha256(body).hexdigest() != job.env_hash:
                raise self._core.store.conn.senseless(f"the environment of job {job.id} is not what it was")
            if len(self._environments) >= ENVIRONMENTS:
                self._environments.clear()
            found = self._environments[job.env_hash] = json.loads(body)
        return found


def _make_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # `prepare` tries again, and tells
            _make_work_folder(folder)


def _make_work_folder(run_dir: Path) -> str | None:
    """Before the claim: a claimed attempt without a folder is one whose folder is gone.

    What is wrong with this folder alone is returned. Raises OSError where no folder could be made.
    """
    job_dir = os.path.dirname(run_dir)
    try:
        for folder in (job_dir, str(run_dir), f"{run_dir}/work"):
            _make_folder(folder)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        if not os.path.lexists(job_dir):
            raise
        return f"the run folder {run_dir} cannot be made: {error.strerror}"
    return None


def _make_folder(path: str) -> None:
    """Unless it is there: a folder, not a link to one. Raises OSError."""
    for _ in range(2):  # another thread may make it at the same time
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                Path(path).mkdir(mode=0o700, parents=True)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _write_record(run_dir: Path, row: Mapping[str, Any], attempt: Attempt) -> str | None:
    """What is wrong with this folder alone is returned. Raises OSError."""
    try:
        runrecord.write(run_dir, row, attempt)
    except (FileExistsError, PermissionError) as error:
        return f"the run folder {run_dir} cannot be written: {error.strerror}"
    return None
