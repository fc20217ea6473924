"""The database of a real daemon: damaged, removed, copied, restored, pruned."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpuq.client import Client
from tests.harness import Box, gone, wait_until


def gated(box: Box, name: str, code: int) -> tuple[int, Path, Path]:
    """A job that counts its runs in a file, and ends with the code once the gate is there."""
    runs, gate = box.folder / f"{name}.runs", box.folder / f"{name}.gate"
    script = f'echo run >> "{runs}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit {code}'
    job = box.submit("sh", "-c", script, cpus=0)
    wait_until(runs.exists)
    return job, runs, gate


def everything(box: Box) -> dict[int, dict[str, Any]]:
    return {job["id"]: job for job in box.request("list", sel={}, all=True)["jobs"]}


@pytest.mark.parametrize("fraction", [0.3, 0.6])
@pytest.mark.parametrize("how", ["killed", "killed and no wal", "stopped"])
def test_a_database_cut_in_the_middle_loses_no_job_and_no_result(box: Box, fraction: float, how: str) -> None:
    ended = box.submit_many([["sh", "-c", f"exit {n % 3}"] for n in range(8)], cpus=0)
    box.wait(*ended)
    waiting = box.submit_many([["echo", str(n), "x" * 200] for n in range(150)], hold=True)
    running, runs, gate = gated(box, "a", 5)
    before = everything(box)
    if how == "stopped":
        box.ok("daemon", "stop")
    else:
        box.kill_daemon()
    if how == "killed and no wal":
        (box.state / "queue.db-wal").unlink()
    os.truncate(box.state / "queue.db", int((box.state / "queue.db").stat().st_size * fraction))
    gate.touch()
    said = box.run("list")
    # with its log, which holds every page here, a cut file is whole
    assert how == "killed" or ("recovered" in said.stderr and "report.txt" in said.stderr)
    assert box.wait(running)["exit_code"] == 5
    assert runs.read_text() == "run\n"
    after = everything(box)
    for job_id in (*ended, *waiting):
        same = ("command", "state", "exit_code", "attempt", "submitted_at")
        assert [after[job_id][key] for key in same] == [before[job_id][key] for key in same]
    assert box.submit("true") == max(after) + 1
    assert "recovered" not in box.run("list").stderr
    box.ok("release", str(waiting[0]))
    assert box.wait(waiting[0])["exit_code"] == 0, "its environment is there as well"


def test_damage_that_is_met_later_is_recovered_without_anybody_asking(box: Box) -> None:
    held = box.submit_many([["true"]] * 50, hold=True)
    box.ok("daemon", "stop")
    with closing(sqlite3.connect(box.state / "queue.db")) as db:
        db.execute("UPDATE jobs SET limits = 'nonsense' WHERE id = 7")
        db.commit()
    assert "recovered" in box.run("list").stderr
    assert everything(box).keys() == set(held), "the changes beside it tell what the row was"


@contextmanager
def refused(box: Box, what: str) -> Iterator[None]:
    """The database refuses what the trigger is for."""
    with closing(sqlite3.connect(box.state / "queue.db", timeout=60)) as db:
        db.execute(f"CREATE TRIGGER refused BEFORE {what} BEGIN SELECT RAISE(ABORT, 'refused'); END")
        yield
        db.execute("DROP TRIGGER refused")


def test_an_end_that_cannot_be_recorded_holds_up_none_that_comes_with_it(box: Box) -> None:
    jobs = box.submit_many(
        [["sh", "-c", f"until [ -e {box.folder}/go ]; do :; done; exit {n}"] for n in range(3)], cpus=0
    )
    for job in jobs:
        box.wait_begun(job)
    results = [Path(box.job(job)["attempts"][-1]["run_dir"]) / "result" for job in jobs]
    with refused(box, f"UPDATE ON jobs WHEN NEW.id = {jobs[1]}"):
        daemon = box.daemon_pid()
        os.kill(daemon, signal.SIGSTOP)  # so that it hears of all at once
        (box.folder / "go").touch()
        wait_until(lambda: all(result.exists() for result in results), "the results")
        os.kill(daemon, signal.SIGCONT)
        assert [box.wait(jobs[n])["exit_code"] for n in (0, 2)] == [0, 2]
        assert box.job(jobs[1])["state"] == "running"
    assert box.wait(jobs[1])["exit_code"] == 1
    assert [len(box.job(job)["attempts"]) for job in jobs] == [1, 1, 1]


def test_a_start_that_cannot_be_claimed_holds_up_none_that_comes_with_it(box: Box) -> None:
    jobs = box.submit_many([["true"]] * 3, cpus=0, hold=True)
    with refused(box, f"INSERT ON attempts WHEN NEW.job_id = {jobs[1]}"):
        box.ok("release", *map(str, jobs))
        assert [box.wait(jobs[n])["exit_code"] for n in (0, 2)] == [0, 0]
        assert "could not be recorded: " in box.reason(jobs[1])[1]
    assert box.wait(jobs[1])["exit_code"] == 0


def test_a_check_that_meets_damage_says_so_and_nothing_is_lost(box: Box) -> None:
    held = box.submit_many([["true", "x" * 500]] * 60, hold=True)
    box.ok("daemon", "restart")
    path = box.state / "queue.db"
    with closing(sqlite3.connect(path)) as db:
        pages = [n for (n,) in db.execute("SELECT pageno FROM dbstat WHERE name = 'jobs'")]
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        for page in pages:
            file.seek((page - 1) * 4096)
            file.write(bytes(4096))
    assert "is damaged" in box.fails(1, "db", "check")
    assert list((box.state / "damaged").glob("*/report.txt")), "it answers when all is well again"
    assert everything(box).keys() == set(held)
    assert "whole" in box.ok("db", "check")


def test_who_comes_while_the_daemon_begins_anew_waits_for_it(box: Box) -> None:
    """Nobody starts another daemon meanwhile, and nobody is told that the first does not listen."""
    held = box.submit("true", hold=True)
    target = box.folder / "copy.db"
    box.ok("db", "backup", str(target))
    pid = box.daemon_pid()
    for _ in range(3):
        with Client.connect() as client:
            client.request("db-restore", path=str(target))
            client.until_closed()
        with open(box.state / "start.lock", "rb") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)  # clients that find nobody wait for this
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(box.state / "sock"))
        with ExitStack() as stack:
            lists = [stack.enter_context(box.started("list", "-q")) for _ in range(4)]
            box.request("db-restore", path=str(target))
            for one in lists:
                said, told = one.communicate()
                assert (said, told, one.returncode) == (f"{held}\n", "", 0)
        assert box.ok("list", "-q") == f"{held}\n"
        assert box.daemon_pid() == pid


def test_who_looks_into_the_database_takes_nothing_from_the_daemon(box: Box) -> None:
    """Whoever closes a database last puts its log into it and removes it: the daemon's locks say that it is open."""
    box.submit("true", hold=True)
    box.ok("db", "check")
    box.ok("db", "backup")
    look = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM jobs').fetchone()"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", look, box.state / "queue.db"], check=True)
        assert (box.state / "queue.db-wal").exists()
        box.submit("true", hold=True)
    box.kill_daemon()
    with closing(sqlite3.connect(box.state / "queue.db")) as db:
        assert db.execute("SELECT count(*) FROM jobs").fetchone() == (3,)
    assert "is of the present database" in box.fails(1, "db", "restore", str(box.state / "queue.db"))


@pytest.mark.parametrize("what", ["queue.db", "queue.db-wal", "its log alone", "replaced"])
def test_a_database_that_is_removed_under_the_daemon_is_written_anew(box: Box, what: str) -> None:
    running, runs, gate = gated(box, "a", 3)
    held = box.submit("true", hold=True)
    pid = box.daemon_pid()
    if what == "replaced":
        (box.folder / "other").write_bytes(b"something else")
        (box.folder / "other").rename(box.state / "queue.db")
    elif what == "its log alone":
        (box.state / "queue.db-wal").unlink()
        wait_until((box.state / "queue.db-wal").exists)
    else:
        (box.state / what).unlink()
        if what != "queue.db":
            (box.state / "queue.db").unlink()
    gate.touch()
    assert box.wait(running)["exit_code"] == 3
    assert box.daemon_pid() == pid
    late = box.submit("true", hold=True)
    box.kill_daemon()
    assert {n: job["state"] for n, job in everything(box).items()} == {running: "failed", held: "held", late: "held"}
    kinds = [event["kind"] for event in box.request("events")["events"]]
    assert "damaged" in kinds
    assert runs.read_text() == "run\n"


def test_a_backup_is_complete_and_overwrites_nothing(box: Box) -> None:
    held = box.submit("true", hold=True)
    target = box.folder / "copy.db"
    assert box.ok("db", "backup", str(target)).strip() == str(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with closing(sqlite3.connect(target)) as db:
        assert db.execute("SELECT id, state FROM jobs").fetchall() == [(held, "held")]
    assert "exists already" in box.fails(2, "db", "backup", str(target))
    assert "No such file or directory" in box.fails(1, "db", "backup", str(box.folder / "typo" / "copy.db"))
    precious = box.folder / "precious"
    precious.write_text("mine")
    link = box.folder / "link.db"
    link.symlink_to(precious)
    os.mkfifo(box.folder / "fifo")
    (box.folder / "folder").mkdir()
    for no_file in (link, box.folder / "fifo", box.folder / "folder"):
        kind = no_file.lstat().st_mode
        assert "not a regular file" in box.fails(2, "db", "backup", "--force", str(no_file))
        assert no_file.lstat().st_mode == kind
    assert precious.read_text() == "mine"
    for ours in ("queue.db", "queue.db-wal", "daemon.lock", "new.db", "jobs/new.db"):
        assert "in the state folder" in box.fails(2, "db", "backup", "--force", str(box.state / ours))
    (box.folder / "way").symlink_to(box.state)
    assert "in the state folder" in box.fails(2, "db", "backup", "--force", str(box.folder / "way" / "queue.db"))
    box.ok("db", "backup", "--force", str(target))
    assert Path(box.ok("db", "backup").strip()).parent == box.state / "backups"
    assert json.loads(box.ok("db", "check", "--json"))["whole"] is True


def test_a_restored_database_runs_nothing_twice(box: Box) -> None:
    first, runs, gate = gated(box, "a", 4)
    target = box.folder / "copy.db"
    waiting, waiting_runs, waiting_gate = box.submit("true", hold=True), box.folder / "w.runs", box.folder / "w"
    later = box.submit(
        "sh",
        "-c",
        f'echo run >> "{waiting_runs}"; until [ -e "{waiting_gate}" ]; do sleep 0.02; done',
        cpus=0,
        hold=True,
    )
    box.ok("db", "backup", str(target))
    box.ok("release", str(later))
    wait_until(waiting_runs.exists)
    newer = box.wait(box.submit("sh", "-c", "exit 9", cpus=0))
    gate.touch()
    box.wait(first)
    box.ok("db", "restore", str(target))
    assert box.wait(first)["exit_code"] == 4
    assert box.job(later)["state"] == "running"
    waiting_gate.touch()
    assert box.wait(later)["state"] == "succeeded"
    assert (runs.read_text(), waiting_runs.read_text()) == ("run\n", "run\n")
    assert box.job(waiting)["state"] == "held"
    assert box.wait(newer["id"])["exit_code"] == 9, "it was submitted after the copy, and its run folder knows it"
    assert box.submit("true") == newer["id"] + 1
    assert list((box.state / "damaged").glob("*/queue.db")), "what was there is kept"


def test_what_is_no_backup_is_refused(box: Box) -> None:
    held = box.submit("true", hold=True)
    noise = box.folder / "noise"
    noise.write_bytes(b"x" * 9000)
    assert "damaged" in box.fails(1, "db", "restore", str(noise))
    other = box.folder / "other.db"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE jobs (id)")
    assert "not a database of gpuq" in box.fails(1, "db", "restore", str(other))
    os.mkfifo(box.folder / "fifo")
    assert "is not a file" in box.fails(1, "db", "restore", str(box.folder / "fifo"))
    assert "is not a file" in box.fails(1, "db", "restore", str(box.folder))
    assert "No such file" in box.fails(1, "db", "restore", str(box.folder / "nowhere"))
    for what, sql in {
        "makes no sense": "UPDATE jobs SET limits = '{'",
        "flying": "UPDATE jobs SET state = 'flying'",
        "newer": "PRAGMA user_version = 99",
    }.items():
        copied = box.folder / f"{what}.db"
        box.ok("db", "backup", str(copied))
        with closing(sqlite3.connect(copied)) as db:
            db.execute(sql)
            db.commit()
        pid = box.daemon_pid()
        assert what in box.fails(1, "db", "restore", "--yes", str(copied))
        assert box.daemon_pid() == pid
    assert everything(box).keys() == {held}
    assert not (box.state / "damaged").exists() and not list(box.state.glob("*restore*")), "nothing was changed"


def test_a_restore_tells_before_it_begins_which_jobs_are_not_in_the_copy(box: Box) -> None:
    first = box.submit("true", hold=True)
    copied = box.folder / "copy.db"
    box.ok("db", "backup", str(copied))
    assert "lost" not in box.run("db", "restore", str(copied)).stderr
    ran = box.submit("true", cpus=0)
    box.wait(ran)
    lost = box.submit_many([["true"]] * 3, hold=True)
    dry = box.request("db-restore", path=str(copied), dry_run=True)
    assert (dry["missing"], dry["waiting"]) == (4, [[lost[0], lost[-1]]])
    assert "nothing was changed: write --yes" in box.fails(1, "db", "restore", str(copied))
    assert everything(box).keys() == {first, ran, *lost}
    done = box.run("db", "restore", "--yes", "--json", str(copied))
    told = f"4 jobs of the present database, of which 3 wait and will be lost: {lost[0]}-{lost[-1]}"
    assert told in done.stderr
    assert json.loads(done.stdout)["waiting"] == lost
    assert everything(box).keys() == {first, ran}
    assert box.submit("true", hold=True) == lost[-1] + 1


def test_what_ran_and_was_pruned_since_the_copy_is_not_run_again(box: Box) -> None:
    """No run folder tells of it any more; the database that is set aside does."""
    blocker, _, gate = gated(box, "b", 0)
    trace = box.folder / "trace"
    waits = [box.submit("sh", "-c", f'echo ran >> "{trace}"', after=[f"any:{blocker}"], cpus=0) for _ in range(2)]
    asleep = box.submit("true", hold=True)
    copied = box.folder / "copy.db"
    box.ok("db", "backup", str(copied))
    box.ok("cancel", str(waits[1]), str(asleep))
    gate.touch()
    box.wait(waits[0])
    box.ok("prune", str(blocker), *map(str, waits), "--yes")
    done = box.run("db", "restore", str(copied))
    assert f"cancelled or skipped since, and waiting again: {asleep}" in done.stderr
    assert {n: job["state"] for n, job in everything(box).items()} == {asleep: "held"}
    box.ok("run", "--gpus", "0", "--", "true")
    assert trace.read_text() == "ran\n"


def test_a_restore_helps_where_a_newer_database_is_in_the_way(box: Box) -> None:
    held = box.submit("true", hold=True)
    copied = box.folder / "copy.db"
    box.ok("db", "backup", str(copied))
    late = box.submit("true", hold=True)
    box.ok("daemon", "stop")
    with closing(sqlite3.connect(box.state / "queue.db")) as db:
        db.execute("PRAGMA user_version = 99")
        db.commit()
    assert "newer gpuq" in box.fails(5, "list")
    shutil.copy(box.state / "queue.db", box.folder / "newer.db")
    assert "newer" in box.fails(1, "db", "restore", str(box.folder / "newer.db"))
    assert "cannot be read" in box.run("db", "restore", str(copied)).stderr
    assert everything(box).keys() == {held}
    assert box.submit("true", hold=True) == late + 1


def test_ids_of_pruned_jobs_are_never_given_out_again(box: Box) -> None:
    """Not even where the database is lost, and with it or without it what is told beside it."""
    held = box.submit("true", hold=True)
    for kept in (True, False):
        ended = box.submit_many([["true"]] * 3, cpus=0)
        box.wait(*ended)
        box.ok("prune", "--all", "--yes")
        box.kill_daemon()
        for path in box.state.glob("queue.db*"):
            path.unlink()
        if not kept:
            (box.state / "changes").unlink()
        assert everything(box).keys() == ({held} if kept else set())
        fresh = box.submit("true", hold=True)
        assert fresh == ended[-1] + 1 if kept else fresh > ended[-1]
        if kept:
            report = next((box.state / "damaged").glob("*/report.txt")).read_text()
            assert "ids without a job:      none" in report


def test_ids_are_not_given_out_again_where_nothing_is_left_that_tells_them(box: Box) -> None:
    held = box.submit_many([["true"]] * 5, hold=True)
    box.kill_daemon()
    for path in (*box.state.glob("queue.db*"), box.state / "changes"):
        path.unlink()
    (box.state / "queue.db").write_bytes(b"")
    (box.state / "recover").write_text("{}")
    assert everything(box) == {}
    assert held[-1] < box.submit("true", hold=True) <= held[-1] + 200
    report = next((box.state / "damaged").glob("*/report.txt")).read_text()
    assert "Nothing tells whether these ids were given out, and they are not now: 1-1" in report


def test_where_the_changes_are_gone_the_database_may_be_old_and_ids_are_not_given_out_again(box: Box) -> None:
    first = box.submit("true", hold=True)
    box.ok("daemon", "stop")
    old = (box.state / "queue.db").read_bytes()
    late = box.submit_many([["true"]] * 3, hold=True)
    box.ok("daemon", "stop")
    (box.state / "queue.db").write_bytes(old)
    (box.state / "changes").unlink()
    assert everything(box).keys() == {first}
    assert box.submit("true", hold=True) > late[-1]


def test_something_else_in_the_place_of_the_database_is_set_aside(box: Box) -> None:
    held = box.submit("true", hold=True)
    box.ok("daemon", "stop")
    for path in box.state.glob("queue.db*"):
        path.unlink()
    (box.state / "queue.db").mkdir()
    (box.state / "queue.db" / "note").write_text("mine")
    assert "it is not a file" in box.run("list").stderr
    assert everything(box).keys() == {held}
    assert [path.read_text() for path in box.state.glob("damaged/*/queue.db/note")] == ["mine"]


def test_only_jobs_that_still_wait_keep_others_from_being_pruned(box: Box) -> None:
    """A job that was skipped or cancelled waits for nothing any more."""
    box.submit("true", hold=True)
    box.submit("true", after=["ok:1"])
    box.submit("true", hold=True)
    box.submit("true", after=["any:3"], hold=True)
    box.ok("cancel", "4")
    box.ok("cancel", "1", "3")
    assert [box.job(n)["state"] for n in (1, 2, 3, 4)] == ["cancelled", "skipped", "cancelled", "cancelled"]
    done = box.run("prune", "--all", "--yes")
    assert done.stdout.split() == ["1", "2", "3", "4"] and done.stderr == ""
    assert "were pruned" in box.run("list", "--all").stderr


def test_what_a_waiting_job_depends_on_is_kept(box: Box) -> None:
    """Only while those who wait on a job that ended are being told is there such a job: then prune leaves it."""
    box.submit("true", hold=True)
    box.submit("true", after=["any:1"], hold=True)
    box.ok("cancel", "1")
    with closing(sqlite3.connect(box.state / "queue.db")) as base, base:
        assert base.execute("UPDATE dependencies SET met = 0").rowcount == 1
    done = box.run("prune", "--larger", "1GiB", "--yes")
    assert "nothing was chosen" in done.stderr and "kept" not in done.stderr
    assert box.run("prune", "--all", "--logs-only", "--yes").stderr == ""
    done = box.run("prune", "--all", "--yes")
    assert (done.stdout, done.stderr) == ("", "gpuq: kept, because jobs that wait depend on them: 1\n")
    box.ok("cancel", "2")
    assert box.ok("prune", "--all", "--yes").split() == ["1", "2"]


def test_prune_removes_what_was_chosen_and_nothing_else(box: Box) -> None:
    ended = box.submit_many([["sh", "-c", f"exit {n % 2}"] for n in range(6)], cpus=0)
    box.wait(*ended)
    kept_output = box.folder / "out.log"
    own = box.submit("echo", "precious", output=str(kept_output), cpus=0)
    box.wait(own)
    outside = box.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (box.state / "jobs" / str(ended[1]) / "1" / "work" / "link").symlink_to(outside)
    live = box.submit("true", hold=True)
    assert "which jobs" in box.fails(2, "prune")
    assert "no job 9999" in box.fails(3, "prune", "9999")
    assert "nothing was chosen" in box.run("prune", "--state", "running", "--yes").stderr
    dry = json.loads(box.ok("prune", "--state", "failed", "--dry-run", "--json"))
    assert dry["pruned"] == ended[1::2]
    assert everything(box).keys() == {*ended, own, live}
    assert box.ok("prune", "--older", "1d") == ""
    box.ok("prune", "--logs-only", str(ended[0]))
    assert not (box.state / "jobs" / str(ended[0]) / "1" / "log").exists()
    assert box.ok("prune", "--state", "failed").split() == [str(n) for n in ended[1::2]]
    assert everything(box).keys() == {*ended[::2], own, live}
    assert not any((box.state / "jobs" / str(n)).exists() for n in ended[1::2])
    assert (outside / "file").read_text() == "mine"
    box.ok("prune", "--all", "--yes")
    assert everything(box).keys() == {live}
    assert kept_output.read_text() == "precious\n"
    box.kill_daemon()
    assert everything(box).keys() == {live}
    assert box.submit("true", hold=True) == live + 1
    assert not gone(box.daemon_pid())


def test_what_was_cancelled_after_the_copy_stays_so(box: Box) -> None:
    """The copy has it running; that its owner ended it is told by its result, and it is not tried again."""
    box.setenv(GPUQ_GRACE="0.2s")
    jobs = [box.submit("sleep", "1000", cpus=0, retry=rules) for rules in ([], ["2"])]
    for job in jobs:
        box.wait_state(job, "running")
    copy = box.folder / "copy.db"
    box.ok("db", "backup", str(copy))
    box.ok("cancel", *map(str, jobs))
    box.wait(*jobs)
    box.ok("db", "restore", str(copy))
    for job in jobs:
        done = box.wait(job)
        assert (done["state"], done["failure"], done["attempt"]) == ("cancelled", None, 1)


@pytest.mark.parametrize("changes", [True, False])
def test_a_damaged_environment_is_not_given_to_a_job(box: Box, changes: bool) -> None:
    broken = box.submit("true", hold=True, cpus=0)
    box.ok("daemon", "stop")
    with closing(sqlite3.connect(box.state / "queue.db")) as db, db:
        db.execute("UPDATE environments SET body = x'deadbeef'")
    if not changes:
        (box.state / "changes").unlink()
    box.run("list")
    wait_until(lambda: list((box.state / "damaged").glob("*/report.txt")), "the recovery")
    if changes:
        box.run("release", str(broken))
        assert box.wait(broken)["state"] == "succeeded", "the changes tell what it was"
    else:
        wait_until(lambda: "its environment was lost" in (box.job(broken)["note"] or ""), "the hold")
        assert box.job(broken)["state"] == "held"
    box.setenv(OTHER="1")
    assert box.wait(box.submit("true", cpus=0))["state"] == "succeeded"
