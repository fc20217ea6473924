"""What is left of a database after damage of every kind: all that the file holds, and nothing that it did not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuq.errors import StoreDamaged, StoreError
from gpuq.events import Event, Kind
from gpuq.model import Attempt, Claim, Job, State
from gpuq.policy.lifecycle import Ended, Started, advance
from gpuq.store import check, recovery, runrecord, salvage
from gpuq.store.rows import job_values
from gpuq.store.store import Store, with_outcome
from tests.policy.build import clauses, make_job, numbered

JOBS = 240
#: Jobs that have begun.
RAN = JOBS // 2 + JOBS // 40
Damage = Callable[[Path], None]


class Queue:
    """A state folder with a queue of `JOBS` jobs: the first half ended, then some that run, the rest waits."""

    def __init__(self, folder: Path, *, jobs: int = JOBS) -> None:
        self.folder, self.runs, self.path = folder, folder / "jobs", folder / "queue.db"
        folder.mkdir(exist_ok=True)
        self.store = Store(self.path)
        self.store.keep_changes(folder / "changes")
        self.store.conn.execute("PRAGMA wal_autocheckpoint = 100")
        self.store.conn.execute("PRAGMA synchronous = OFF")
        env = b"{}"
        self.env = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        with self.store.transaction():
            self.store.put_environment(self.env, env)
        for n in range(1, jobs + 1):
            if n == jobs - 10:  # the newest stay in the log
                self.store.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self.store.conn.execute("PRAGMA wal_autocheckpoint = 0")
            self.submit(n)
            if n <= jobs // 2:
                self.end(n, self.start(n), n % 3)
            elif n <= jobs // 2 + jobs // 40:
                self.start(n)

    def submit(self, n: int, **changes: Any) -> None:
        command = ("python", "train.py", f"--seed={n}", "x" * (n % 7 * 40))
        after = clauses(f"any:{n - 1}") if n % 10 == 0 else ()
        fields: dict[str, Any] = {"owner": os.geteuid(), "command": command, "env_hash": self.env, "after": after}
        job = make_job(n, **(fields | changes))
        with self.store.transaction():
            self.store.insert_job(job, Event(float(n), Kind.SUBMITTED, n))
            self.store.put_submission(f"key-{n:05}", n, n)
            self.store.add_dependencies([n], after, numbered(after))

    def start(self, n: int) -> Attempt:
        job = self.job(n)
        run_dir = self.runs / str(n) / str(job.attempt + 1)
        run_dir.mkdir(parents=True)
        step = advance(job, Started((), str(run_dir / "log")), 5.0)
        claims = (Claim(n, step.job.attempt, "GPU-a", n * 2**20), Claim(n, step.job.attempt, "GPU-b", None, peak=n))
        attempt = Attempt(n, step.job.attempt, 5.0, str(run_dir), str(run_dir / "log"), claims if n % 2 else ())
        runrecord.write(run_dir, {"id": n, **job_values(step.job)}, attempt)
        (run_dir / "lock").touch()
        with self.store.transaction():
            self.store.change(job, step.job, step.event)
            self.store.add_attempt(attempt)
        return attempt

    def end(self, n: int, attempt: Attempt, code: int) -> None:
        job = self.job(n)
        step = advance(job, Ended(exit_code=code), 9.0)
        with self.store.transaction():
            self.store.change(job, step.job, step.event)
            self.store.end_attempt(with_outcome(attempt, step.job, 0.1, 0.1))

    def job(self, n: int) -> Job:
        found = self.store.job(n)
        assert found is not None
        return found

    def jobs(self) -> dict[int, Job]:
        return {job.id: job for job in self.store.every_job()}

    def crash(self, folder: Path) -> Path:
        """The files as a KILL of the daemon would leave them, in another folder; the database's path there."""
        shutil.copytree(self.folder, folder)
        return folder / "queue.db"


def reopened(folder: Path) -> tuple[dict[int, Job], Store, str]:
    """All jobs, the store, and the report of the recovery, empty if there was none."""
    store, recovered = recovery.open_store(folder, folder / "jobs", network=False)
    jobs = {job.id: job for job in store.every_job()}
    assert store.conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    return jobs, store, recovered.report.read_text() if recovered else ""


def checkpoint(path: Path) -> None:
    """Everything into the main file, as a daemon that stops does."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queue]:
    made = Queue(tmp_path_factory.mktemp("queue"))
    yield made
    made.store.close()


def cut(path: Path, fraction: float) -> None:
    os.truncate(path, int(path.stat().st_size * fraction))


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def log_of(path: Path) -> Path:
    return path.with_name("queue.db-wal")


def random_pages(path: Path) -> None:
    """A fifth of the pages becomes noise; only the daemon that reads one of them would see it."""
    dice = random.Random(3)
    for page in range(path.stat().st_size // 4096):
        if dice.random() < 0.2:
            overwrite(path, page * 4096, dice.randbytes(4096))
    recovery.mark(path.parent, "noise was met")


def sql(*statements: str) -> Damage:
    """What a bit that fell over in the schema or the header comes to."""

    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    return damage


def no_text_in_the_schema(path: Path) -> None:
    checkpoint(path)
    overwrite(path, path.read_bytes().index(b"CREATE TABLE jobs") + 10, b"\xcc")


DAMAGES: dict[str, Damage] = {
    "cut at a quarter": lambda path: cut(path, 0.25),
    "cut in the middle": lambda path: cut(path, 0.5),
    "cut at the end": lambda path: cut(path, 0.9),
    "only the first page": lambda path: os.truncate(path, 4096),
    "less than a header": lambda path: os.truncate(path, 50),
    "empty": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
    "no header": lambda path: overwrite(path, 0, b"\xff" * 100),
    "zeros for a first page": lambda path: overwrite(path, 0, bytes(4096)),
    "not a database": lambda path: overwrite(path, 0, b"not a database" * (path.stat().st_size // 14)),
    "random pages": random_pages,
    "a column's name": sql("ALTER TABLE jobs RENAME COLUMN log_path TO gog_path"),
    "another column's name": sql("ALTER TABLE attempts RENAME COLUMN exit_code TO exit_codd"),
    "an older version": sql("PRAGMA user_version = 4"),
    "the first version": sql("PRAGMA user_version = 1"),
    "no version": sql("PRAGMA user_version = 0"),
    "less than no version": sql("PRAGMA user_version = -5"),
    "a senseless version": sql("PRAGMA user_version = 2147483647"),
    "an index": sql("DROP INDEX jobs_live"),
    "no last id": sql("DELETE FROM sqlite_sequence"),
    "the version for writing": lambda path: overwrite(path, 18, b"\x03"),
    "a schema that is no text": no_text_in_the_schema,
    "the format of the schema": lambda path: overwrite(path, 47, b"\x05"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("wal", [True, False], ids=["with wal", "without wal"])
def test_every_job_is_there_after_the_database_was_damaged(
    queue: Queue, tmp_path: Path, damage: Damage, wal: bool
) -> None:
    path = queue.crash(tmp_path / "state")
    if not wal:
        checkpoint(path)
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent) if name.startswith("queue")}
    damage(path)
    damaged = {name: (path.parent / name).read_bytes() for name in before if (path.parent / name).exists()}
    jobs, store, report = reopened(path.parent)
    with closing(store):
        assert jobs == queue.jobs()
        assert f"jobs now:               {JOBS}" in report
        assert "ids without a job:      none" in report
        assert store.next_id() == JOBS + 1
        for state in (State.QUEUED, State.RUNNING):
            assert [job.id for job in store.live_jobs(state)] == [job.id for job in queue.store.live_jobs(state)]
        assert {n: store.unmet_counts().get(n, 0) for n in (140, 150, 240)} == {140: 1, 150: 1, 240: 1}
        assert all(store.attempt(n, 1) is not None for n in range(1, RAN + 1))
        assert store.environment(queue.env) == b"{}"
        assert [store.submission(f"key-{n:05}") for n in (1, JOBS)] == [(1, 1), (JOBS, JOBS)], "who asks again is told"
    [aside] = (path.parent / "damaged").iterdir()
    assert {name: (aside / name).read_bytes() for name in damaged} == damaged, "the damaged files are kept as they were"
    assert stat.S_IMODE(aside.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("queue*")} == {0o600}
    again, store, report = reopened(path.parent)
    store.close()
    assert (again, report) == (jobs, ""), "what was recovered is whole"


def test_every_row_on_a_page_that_is_left_is_read(queue: Queue, tmp_path: Path) -> None:
    """Without the file of changes: what the main file holds, and what the run folders know. The rest is named."""
    path = queue.crash(tmp_path / "state")
    checkpoint(path)
    (path.parent / "changes").unlink()
    with closing(sqlite3.connect(path)) as db:
        whole = {row[0] for row in db.execute("SELECT id FROM jobs")}
        [root] = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").fetchone()
    overwrite(path, (root - 1) * 4096, b"\xaa" * 4096)  # no path leads to any job any more
    assert salvage.read(path).rows["jobs"].keys() == whole
    cut(path, 0.6)
    left = salvage.read(path).rows["jobs"].keys()
    assert 40 < len(left) < JOBS
    jobs, store, report = reopened(path.parent)
    with closing(store):
        assert jobs.keys() == left | set(range(1, RAN + 1))
        assert all(job == queue.job(n) for n, job in jobs.items() if n in left and job.state is not State.HELD)
        rebuilt = jobs.keys() - left
        assert {jobs[n].command for n in rebuilt} == {queue.job(n).command for n in rebuilt}
        assert {jobs[n].state for n in rebuilt} == {State.RUNNING}, "their result files will tell the rest"
        assert store.next_id() > max(jobs)
    missing = sorted(set(range(1, JOBS + 1)) - jobs.keys())
    assert f"-{JOBS}" in report or str(JOBS) in report
    assert str(missing[0]) in report


def boasting(log: Path) -> None:
    """No header, and a first frame, for which only the second vouches, that tells of 4,294,967,280 pages."""
    overwrite(log, 0, b"\x5a" * 8)
    overwrite(log, 32 + 4, b"\xff\xff\xff\xf0")
    os.truncate(log, 32 + 4120 * 2)


LOG_DAMAGES: dict[str, Damage] = {
    "boasting": boasting,
    "garbage": lambda log: overwrite(log, 0, b"\x5a" * log.stat().st_size),
    "header": lambda log: overwrite(log, 0, b"\x5a" * 32),
    "a frame in the middle": lambda log: overwrite(log, 32 + 4120 * 3 + 24, b"\x5a" * 4096),
    "cut": lambda log: os.truncate(log, 32 + 4120 * 2),
    "cut within its header": lambda log: os.truncate(log, 20),
    "gone": lambda log: log.unlink(),
}


@pytest.mark.parametrize("damage", LOG_DAMAGES.values(), ids=LOG_DAMAGES)
@pytest.mark.parametrize("changes", [True, False], ids=["with changes", "without changes"])
def test_a_damaged_log_loses_nothing(queue: Queue, tmp_path: Path, damage: Damage, changes: bool) -> None:
    """SQLite itself forgets it without a word, and with it the newest commits."""
    path = queue.crash(tmp_path / "state")
    if not changes:
        (path.parent / "changes").unlink()
    damage(log_of(path))
    jobs, store, report = reopened(path.parent)
    store.close()
    if changes:
        assert jobs == queue.jobs()
        assert report
    else:
        assert jobs.keys() >= set(range(1, RAN + 1)), "what ran has a run folder"


@pytest.mark.parametrize("what", ["symlink", "fifo", "device", "folder"])
def test_changes_that_are_no_file_are_not_read(queue: Queue, tmp_path: Path, what: str) -> None:
    path = queue.crash(tmp_path / "state")
    beside = path.parent / "changes"
    beside.unlink()
    if what == "symlink":
        beside.symlink_to("/dev/zero")
    elif what == "fifo":
        os.mkfifo(beside)
    elif what == "folder":
        beside.mkdir()
    else:
        try:
            os.mknod(beside, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it has no end
        except PermissionError:
            pytest.skip("only root makes devices")
    checkpoint(path)
    cut(path, 0.5)
    jobs, store, _ = reopened(path.parent)
    store.close()
    assert jobs.keys() >= set(range(1, RAN + 1)), "what ran has a run folder"


def test_who_asks_again_for_jobs_that_are_lost_gets_them_anew(queue: Queue, tmp_path: Path) -> None:
    path = queue.crash(tmp_path / "state")
    (path.parent / "changes").unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM jobs WHERE id = ?", (JOBS,))
    recovery.mark(path.parent, "a page was lost")
    _, store, _ = reopened(path.parent)
    with closing(store):
        assert store.submission(f"key-{JOBS:05}") is None
        assert store.submission(f"key-{JOBS - 1:05}") == (JOBS - 1, JOBS - 1)
        assert store.next_id() == JOBS + 1, "under another id"


def test_a_log_that_a_crash_left_is_no_damage(queue: Queue, tmp_path: Path) -> None:
    path = queue.crash(tmp_path / "state")
    log = log_of(path)
    with open(log, "ab") as file:
        file.write(os.urandom(5000))  # a frame that was being written
    assert check.before_opening(path) is None
    jobs, store, report = reopened(path.parent)
    store.close()
    assert (jobs, report) == (queue.jobs(), "")


KILLED = """
import os, signal, sys
from pathlib import Path
from gpuq.store import recovery
left = int(sys.argv[2])
real = os.fsync
def fsync(fd):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)
os.fsync = fsync
folder = Path(sys.argv[1])
recovery.open_store(folder, folder / "jobs", network=False)
"""


@pytest.mark.parametrize("steps", range(6))
def test_a_recovery_that_is_killed_goes_on_at_the_next_start(queue: Queue, tmp_path: Path, steps: int) -> None:
    path = queue.crash(tmp_path / "state")
    cut(path, 0.5)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path.parent), str(steps)])
    assert done.returncode == -signal.SIGKILL
    jobs, store, _ = reopened(path.parent)
    store.close()
    assert jobs == queue.jobs()
    assert not (path.parent / "recover").exists()


def test_an_older_database_beside_newer_run_folders_runs_nothing_twice(tmp_path: Path) -> None:
    made = Queue(tmp_path / "state", jobs=20)
    checkpoint(made.path)
    old = made.path.read_bytes()
    made.start(15)
    made.submit(21)
    made.start(21)
    made.submit(22)
    made.store.close()
    for name in ("queue.db-wal", "queue.db-shm", "changes"):
        (made.folder / name).unlink(missing_ok=True)
    made.path.write_bytes(old)
    (made.runs / "16" / "1" / "work").mkdir(parents=True)  # made for an attempt that was never claimed
    jobs, store, report = reopened(made.folder)
    with closing(store):
        assert "`changes` beside it is gone" in report
        assert "rows that made no sense: 0" in report and "known from run folders: 21" in report
        assert (jobs[15].state, jobs[15].attempt) == (State.RUNNING, 1)
        assert (jobs[21].state, jobs[21].command[2]) == (State.RUNNING, "--seed=21")
        assert (jobs[16].state, jobs[16].attempt) == (State.QUEUED, 0)
        assert [attempt.number for attempt in store.attempts(15)] == [1]
        assert store.next_id() == 22


def test_what_jobs_wait_for_is_told_anew_from_how_the_others_stand(tmp_path: Path) -> None:
    made = Queue(tmp_path / "state", jobs=12)  # 1 to 6 have succeeded, the others wait
    made.start(7)
    texts = {
        8: (["failed:1|ok:3", "started:7"], None, []),
        9: (["failed:1|ok:11", "any:12"], None, ["ok:11", "any:12"]),
        10: (["any:3", "failed:1|failed:3"], "depends on failed:1|failed:3: job 1 succeeded, job 3 succeeded", []),
        11: (
            ["failed:3|ok:99", "started:12"],
            "depends on job 99, which was lost with the damaged database",
            ["started:12"],
        ),
        12: (
            ["ok:3|ok:99", "any:7|failed:99"],
            "depends on job 99, which was lost with the damaged database",
            ["any:7"],
        ),
    }
    for n, (words, _, _) in texts.items():
        made.store.conn.execute("UPDATE jobs SET after = ? WHERE id = ?", (json.dumps(words), n))
        made.store.conn.execute("DELETE FROM dependencies WHERE job_id = ?", (n,))
    made.store.close()
    (made.folder / "changes").unlink()
    _, store, _ = reopened(made.folder)
    with closing(store):
        for n, (words, note, open_) in texts.items():
            job = store.job(n)
            assert job is not None and [str(clause) for clause in job.after] == words
            assert (job.note, [str(one) for one in store.open_dependencies(n)]) == (note, open_), n
        states = [store.state_of(n) for n in texts]
        assert states == [State.QUEUED, State.QUEUED, State.SKIPPED, State.HELD, State.HELD]


def test_rows_that_make_no_sense_are_left_out_and_told(tmp_path: Path) -> None:
    made = Queue(tmp_path / "state", jobs=20)
    made.start(12)
    made.store.close()
    (made.folder / "changes").unlink()
    with closing(sqlite3.connect(made.path)) as db:
        db.execute("UPDATE jobs SET state = 'asleep' WHERE id = 19")
        db.execute("UPDATE jobs SET command = '{' WHERE id = 18")
        db.execute("UPDATE events SET kind = 'odd' WHERE job_id = 3")
        db.execute("DELETE FROM attempts WHERE job_id = 12")
        db.commit()
    jobs, store, report = reopened(made.folder)
    with closing(store):
        assert "asleep" in report
        assert "rows that made no sense: " in report and "rows.jsonl" in report
        assert jobs.keys() == set(range(1, 21)) - {18, 19}
        assert store.attempt(12, 1) is not None
        assert (jobs[20].state, jobs[20].note) == (
            State.HELD,
            "depends on job 19, which was lost with the damaged database",
        )
        assert store.next_id() == 21
    assert '"asleep"' in next((made.folder / "damaged").glob("*/rows.jsonl")).read_text()


MISFITS = {
    "waiting": "UPDATE jobs SET priority = 'high' WHERE id = 19",
    "a blob": "UPDATE jobs SET vram = x'00ff' WHERE id = 18",
    "ended": "UPDATE jobs SET ended_at = 'then' WHERE id = 2",
    "an attempt": "UPDATE attempts SET started_at = x'00' WHERE job_id = 3",
    "a claim": "UPDATE claims SET bytes = 'all' WHERE job_id = 9",
    "an event": "UPDATE events SET at = 'now' WHERE job_id = 3",
    "a dependency": "UPDATE dependencies SET met = 'yes'",
    "an environment": "UPDATE environments SET body = 'none'",
    "a time": "UPDATE jobs SET submitted_at = 1e15 WHERE id = 2",
    "a claim below zero": "UPDATE claims SET bytes = -5 WHERE job_id = 9",
    "no request": "UPDATE jobs SET gpus_asked = -1 WHERE id = 18",
    "a submission": "UPDATE submissions SET last_id = 'x'",
}


@pytest.mark.parametrize("what", MISFITS)
def test_values_of_the_wrong_type_are_found_and_left_out(tmp_path: Path, what: str) -> None:
    made = Queue(tmp_path / "state", jobs=20)
    made.start(12)
    made.store.close()
    assert check.thorough(made.path, lambda: False) == []
    with closing(sqlite3.connect(made.path)) as db:
        assert db.execute(MISFITS[what]).rowcount
        db.commit()
    found = check.thorough(made.path, lambda: False)
    assert found is not None and "makes no sense" in found[0]
    recovery.mark(made.folder, found[0])
    jobs, store, report = reopened(made.folder)
    with closing(store):
        assert "makes no sense" in report
        assert check.thorough(made.path, lambda: False) == []
        assert jobs.keys() == set(range(1, 21)), "the changes tell what lives, run folders what ran"
        assert isinstance(jobs[18].request.vram, int | None) and isinstance(jobs[19].priority, int)


def test_a_start_finds_a_living_job_with_a_value_of_the_wrong_type(tmp_path: Path) -> None:
    made = Queue(tmp_path / "state", jobs=20)
    made.store.close()
    with closing(sqlite3.connect(made.path)) as db:
        db.execute(MISFITS["waiting"])
        db.commit()
    jobs, store, report = reopened(made.folder)
    store.close()
    assert "row 19 of the table jobs has a value that makes no sense" in report
    assert isinstance(jobs[19].priority, int)


def test_an_environment_that_is_not_what_it_was_is_not_used(tmp_path: Path) -> None:
    made = Queue(tmp_path / "state", jobs=20)
    made.store.close()
    (made.folder / "changes").unlink()
    with closing(sqlite3.connect(made.path)) as db:
        db.execute("UPDATE environments SET body = x'00'")
        db.commit()
    recovery.mark(made.folder, "it was said so")
    jobs, store, _ = reopened(made.folder)
    with closing(store):
        assert store.environment(made.env) is None
        assert jobs[16].state is State.HELD
        assert "environment" in (jobs[16].note or "")


def test_a_newer_database_is_refused_even_where_it_is_damaged(queue: Queue, tmp_path: Path) -> None:
    path = queue.crash(tmp_path / "state")
    checkpoint(path)
    overwrite(path, 60, (999).to_bytes(4))
    cut(path, 0.5)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer gpuq"):
        reopened(path.parent)
    assert path.read_bytes() == before


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.binary(min_size=1, max_size=300)), max_size=12), st.integers(0, 99)
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_breaks_the_reader(
    queue: Queue, tmp_path: Path, spots: list[tuple[int, bytes]], percent: int
) -> None:
    """Whatever bytes stand there: no error but our own, and no row that does not fit its table."""
    path = tmp_path / "noise" / "queue.db"
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    shutil.copy(queue.path, path)
    shutil.copy(log_of(queue.path), path.parent)
    for at, data in spots:
        overwrite(path, at, data)
        overwrite(log_of(path), at % log_of(path).stat().st_size, data)
    cut(path, 1 - percent / 100)
    with suppress(StoreError):  # the version may be the one that is hit
        found = salvage.read(path)
        known = salvage.shapes()
        assert all(known[table].fits(row) for table, rows in found.rows.items() for row in rows.values())


@pytest.mark.parametrize("seed", range(12))
def test_pages_that_no_check_before_the_start_reads_do_not_stop_it(queue: Queue, tmp_path: Path, seed: int) -> None:
    """The file has its size and its header: only who reads the rows meets what became of them."""
    path = queue.crash(tmp_path / "copy")
    checkpoint(path)
    dice = random.Random(seed)
    for page in dice.sample(range(1, path.stat().st_size // 4096), 3):
        overwrite(path, page * 4096, bytes(4096) if seed % 2 else dice.randbytes(4096))
    try:
        found = check.thorough(path, lambda: False)
    except StoreError:  # its schema is what cannot be read
        found = ["the schema"]
    assert found
    store, recovered = recovery.open_store(path.parent, path.parent / "jobs", network=False)
    with closing(store):
        for job in store.every_job() if recovered else ():
            assert store.attempts(job.id) or job.attempt == 0
    if recovered is not None:
        assert len(list((path.parent / "damaged").iterdir())) == 1, "it is recovered once"


def test_text_that_is_none_is_damage(queue: Queue, tmp_path: Path) -> None:
    path = queue.crash(tmp_path / "copy")
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE jobs SET command = CAST(x'5bff' AS TEXT) WHERE id = ?", (JOBS,))
        db.commit()
    jobs, store, report = reopened(path.parent)
    store.close()
    assert "Could not decode" in report
    assert jobs[JOBS] == queue.job(JOBS), "the changes beside it tell what the row was"


def test_damage_is_told_as_such_also_behind_the_first_row(queue: Queue, tmp_path: Path) -> None:
    path = queue.crash(tmp_path / "copy")
    checkpoint(path)
    with closing(sqlite3.connect(path)) as db:
        pages = [n for (n,) in db.execute("SELECT pageno FROM dbstat WHERE name = 'jobs' AND pagetype = 'leaf'")]
    for page in pages[2:]:
        overwrite(path, (page - 1) * 4096, bytes(4096))
    met: list[str] = []
    with closing(Store(path)) as store:
        store.on_damage = met.append
        with pytest.raises(StoreDamaged, match="SQLite cannot read the database"):
            list(store.every_job())
    assert met
