"""A state folder as it is after a long time: many jobs that have ended, many that wait. Made by SQL, in seconds.

    python -m tests.bench.crowd FOLDER [--waiting N] [--ended N] [--folders N]

The first job that waits takes all CPUs for a day as soon as a daemon lives there, so that the others go on waiting.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from contextlib import closing
from pathlib import Path

from gpuq.events import Event, Kind
from gpuq.model import Job, MiB, Request, State
from gpuq.policy.lifecycle import Ended, Started, advance
from gpuq.store import changes
from gpuq.store.recovery import DATABASE
from gpuq.store.rows import job_values
from gpuq.store.store import Store

#: Requests that differ, among those that wait.
REQUESTS = 200
#: Jobs of a submission.
_TOGETHER = 1000
_SERIES = "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})"


def make(state: Path, *, waiting: int, ended: int, folders: int = 0) -> None:
    """Fill a folder in which no daemon lives. Of the jobs that ended the first `folders` have a run folder."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(Store(state / DATABASE)) as store:
        environment = json.dumps({"PATH": os.environ["PATH"]}).encode()
        digest = hashlib.sha256(environment).hexdigest()
        first = store.next_id()
        with store.transaction():
            store.put_environment(digest, environment)
            if ended:
                _add_ended(store, digest, first, first + ended - 1, state / "jobs")
            _add_waiting(store, digest, first + ended, first + ended + waiting)
            store.start_ids_after(first + ended + waiting)
        store.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.keep_changes(state / changes.NAME)
    for job_id in range(first, first + folders):
        (state / "jobs" / str(job_id) / "1").mkdir(parents=True)


def _job(digest: str, job_id: int, **more: object) -> Job:
    fields: dict[str, object] = {
        "id": job_id,
        "name": "crowd",
        "owner": os.geteuid(),
        "state": State.QUEUED,
        "command": ("/bin/true",),
        "cwd": "/tmp",
        "request": Request(0, None, 1, 0),
        "env_hash": digest,
        "submitted_at": time.time() - 86400.0,
    }
    return Job(**(fields | more))  # type: ignore[arg-type]


def _add_ended(store: Store, digest: str, first: int, last: int, run_root: Path) -> None:
    log = str(run_root / str(first) / "1" / "log")
    begun = advance(_job(digest, first), Started((), log), time.time() - 7200.0).job
    job = advance(begun, Ended(exit_code=0, peak_ram=3 * MiB), time.time() - 3600.0).job
    _copies(store, job, first, last, {"ended_at": f":ended_at + (i - {last}) * 1e-3"})
    store.conn.execute(
        f"""{_SERIES.format(first=first, last=last)}
        INSERT INTO attempts (job_id, number, started_at, run_dir, log_path, ended_at, exit_code, user_seconds)
        SELECT i, 1, ?, '"' || ? || '/' || i || '/1"', '"' || ? || '/' || i || '/1/log"', ?, 0, 0.001 FROM n""",
        (job.started_at, str(run_root), str(run_root), job.ended_at),
    )
    for kind in (Kind.SUBMITTED, Kind.STARTED, Kind.SUCCEEDED):
        _events(store, kind, first, last)


def _add_waiting(store: Store, digest: str, first: int, last: int) -> None:
    cpus = len(os.sched_getaffinity(0))
    blocker = _job(digest, first, command=("/bin/sleep", "86400"), request=Request(0, None, cpus, 0), priority=1000)
    _copies(store, blocker, first, first, {})
    if last > first:
        _copies(store, _job(digest, first + 1), first + 1, last, {"ram": f"(i % {REQUESTS} + 1) * {MiB}"})
    _events(store, Kind.SUBMITTED, first, last)


def _copies(store: Store, job: Job, first: int, last: int, own: dict[str, str]) -> None:
    """The job under each id of the range; `own` are SQL expressions for columns of which `i` is the id."""
    values = job_values(job)
    given = ", ".join(own.get(name, f":{name}") for name in values)
    store.conn.execute(
        f"{_SERIES.format(first=first, last=last)} INSERT INTO jobs (id, {', '.join(values)}) SELECT i, {given} FROM n",
        values,
    )
    store.conn.execute(
        f"{_SERIES.format(first=first, last=last)} "
        "INSERT INTO submissions (key, first_id, last_id) "
        f"SELECT 'crowd-' || i, i, min(i + {_TOGETHER} - 1, {last}) FROM n "
        f"WHERE (i - {first}) % {_TOGETHER} = 0"
    )


def _events(store: Store, kind: Kind, first: int, last: int) -> None:
    event = Event(time.time() - 7200.0, kind)
    data = '{"name":"crowd"}' if kind is Kind.SUBMITTED else "{}"
    store.conn.execute(
        f"{_SERIES.format(first=first, last=last)} "
        "INSERT INTO events (at, kind, job_id, attempt, data) SELECT ?, ?, i, ?, ? FROM n",
        (event.at, kind.value, None if kind is Kind.SUBMITTED else 1, data),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.crowd", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=0, help="run folders of jobs that ended (default 0)")
    options = parser.parse_args()
    make(options.folder, waiting=options.waiting, ended=options.ended, folders=options.folders)


if __name__ == "__main__":
    main()
