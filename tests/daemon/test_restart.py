"""What is known after the daemon was killed, stopped or replaced while jobs ran."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpuq.client import Client
from gpuq.errors import ConnectionLost, DaemonUnreachable
from tests.harness import GPUQ, Box, gone, wait_until


def gated(box: Box, name: str, then: str) -> tuple[list[str], Path, Path]:
    """A command that says it began, waits for a gate and then does something."""
    begun, gate = box.folder / f"{name}.begun", box.folder / f"{name}.gate"
    script = (
        f'echo $$ > "{begun}.new"; mv "{begun}.new" "{begun}"; while [ ! -e "{gate}" ]; do sleep 0.02; done; {then}'
    )
    return ["sh", "-c", script], begun, gate


def test_a_killed_daemon_takes_its_jobs_back_and_knows_their_true_results(box: Box) -> None:
    command, begun, gate = gated(box, "a", "exit 5")
    running = box.submit(*command)
    other, begun2, gate2 = gated(box, "b", "kill -9 $$")
    killed = box.submit(*other, cpus=0)
    wait_until(lambda: begun.exists() and begun2.exists())
    box.kill_daemon()
    gate.touch()  # ends while no daemon is there
    pid = int(begun.read_text())
    wait_until(lambda: gone(pid))
    assert box.wait(running)["exit_code"] == 5
    assert box.job(killed)["state"] == "running"
    gate2.touch()
    assert box.wait(killed)["signal"] == signal.SIGKILL
    assert [box.job(n)["attempt"] for n in (running, killed)] == [1, 1]


def test_the_time_limit_holds_while_no_daemon_lives(box: Box) -> None:
    command, begun, _ = gated(box, "a", "true")
    job = box.submit(*command, time_limit=1.0)
    wait_until(begun.exists)
    pid = int(begun.read_text())
    box.kill_daemon()
    wait_until(lambda: gone(pid), "the end at the time limit")
    assert box.wait(job)["failure"] == "timeout"


def test_the_queue_survives_and_goes_on(box: Box) -> None:
    command, begun, gate = gated(box, "a", "true")
    cpus = len(os.sched_getaffinity(0))
    first = box.submit(*command, cpus=cpus)
    wait_until(begun.exists)
    waiting = [box.submit("true") for _ in range(5)]
    held = box.submit("true", hold=True)
    dependent = box.submit("true", after=[str(waiting[-1])])
    box.kill_daemon()
    states = {n: box.job(n)["state"] for n in (first, *waiting, held, dependent)}
    assert states == {first: "running", **dict.fromkeys(waiting, "queued"), held: "held", dependent: "queued"}
    gate.touch()
    box.wait(first, *waiting, dependent)
    assert all(box.job(n)["attempt"] == 1 for n in (first, *waiting, dependent))
    assert box.job(held)["state"] == "held"


def test_a_cancel_is_carried_out_though_the_daemon_dies(box: Box) -> None:
    box.setenv(GPUQ_GRACE="1s")
    command, begun, _ = gated(box, "a", "true")
    job = box.submit("sh", "-c", f"trap '' TERM; {command[2]}")
    wait_until(begun.exists)
    box.request("cancel", sel={"ranges": [[job, job]]})
    box.kill_daemon()
    assert box.wait(job)["state"] == "cancelled"


def test_a_supervisor_that_is_killed_leaves_a_lost_job_and_no_process(box: Box) -> None:
    command, begun, _ = gated(box, "a", "true")
    job = box.submit(*command)
    wait_until(begun.exists)
    pid = int(begun.read_text())
    supervisor = json.loads((box.state / "jobs" / str(job) / "1" / "identity").read_text())["pid"]
    os.kill(supervisor, signal.SIGKILL)
    ended = box.wait(job)
    assert (ended["state"], ended["failure"], ended["exit_code"]) == ("failed", "lost", None)
    assert gone(pid)


def test_an_attempt_that_was_claimed_and_never_launched_is_queued_again(box: Box) -> None:
    """A daemon that died between claim and launch leaves a running job, and a run folder without a lock."""
    job = box.submit("true", hold=True)
    box.kill_daemon()
    run_dir = box.state / "jobs" / str(job) / "1"
    (run_dir / "work").mkdir(parents=True)
    (run_dir / "job").touch()
    with sqlite3.connect(box.state / "queue.db") as db:
        db.execute("UPDATE jobs SET state = 'running', attempt = 1, started_at = 1.0 WHERE id = ?", (job,))
        db.execute(
            "INSERT INTO attempts (job_id, number, started_at, run_dir, log_path) VALUES (?, 1, 1.0, ?, ?)",
            (job, json.dumps(str(run_dir)), json.dumps(str(run_dir / "log"))),
        )
    db.close()
    assert box.wait(job)["state"] == "succeeded"
    shown = box.job(job)
    assert shown["attempt"] == 2
    assert "requeued" in [event["kind"] for event in shown["events"]]


def test_stop_leaves_jobs_running_and_says_how_many(box: Box) -> None:
    command, begun, gate = gated(box, "a", "exit 3")
    job = box.submit(*command)
    wait_until(begun.exists)
    said = box.run("daemon", "stop")
    assert said.returncode == 0
    assert "1" in said.stdout + said.stderr
    assert "no daemon runs" in box.fails(5, "daemon", "status")
    assert "no daemon runs" in box.fails(5, "daemon", "stop")
    gate.touch()
    assert box.wait(job)["exit_code"] == 3


def test_stop_with_jobs_ends_them_first(box: Box) -> None:
    command, begun, _ = gated(box, "a", "true")
    job = box.submit(*command)
    waiting = box.submit("true", hold=True)
    wait_until(begun.exists)
    pid = int(begun.read_text())
    box.ok("daemon", "stop", "--jobs")
    assert gone(pid)
    assert box.job(job)["state"] == "cancelled"
    assert box.job(waiting)["state"] == "held"


def test_stop_with_jobs_says_what_it_waits_for(box: Box) -> None:
    begun = box.folder / "begun"
    job = box.submit("sh", "-c", f"trap '' TERM; : > '{begun}'; while :; do sleep 0.05; done", cpus=0, grace=1.5)
    wait_until(begun.exists)
    done = box.run("daemon", "stop", "--jobs")
    assert "ending the running jobs" in done.stderr.splitlines()[0]
    assert done.returncode == 0
    assert box.job(job)["state"] == "cancelled"


def test_a_daemon_that_was_stopped_by_a_signal_is_named(box: Box) -> None:
    pid = box.daemon_pid()
    with Client.connect(start=False) as client:
        os.kill(pid, signal.SIGSTOP)
        client.socket.settimeout(0.2)
        with pytest.raises(DaemonUnreachable, match=f"kill -CONT {pid}"):
            client.request("status")
        os.kill(pid, signal.SIGCONT)
    assert box.daemon_pid() == pid


def test_restart_replaces_the_daemon_under_running_jobs_and_waiters(box: Box) -> None:
    command, begun, gate = gated(box, "a", "echo done; exit 6")
    with box.started("run", "--", *command) as run:
        wait_until(begun.exists)
        before = box.daemon_pid()
        with box.started("wait", "1") as waiter:
            wait_until(lambda: len(list(Path(f"/proc/{waiter.pid}/fd").iterdir())) > 3)
            box.ok("daemon", "restart")
            assert box.daemon_pid() != before
            gate.touch()
            assert waiter.wait(60) == 6
        out, _ = run.communicate(timeout=60)
        assert (run.returncode, out) == (6, "done\n")


def test_waiters_are_told_when_the_daemon_is_stopped(box: Box) -> None:
    job = box.submit("true", hold=True)
    with Client.connect() as client:
        client.send("wait", sel={"ranges": [[job, job]]})
        client.send("status")  # is not answered: the wait goes on
        box.ok("daemon", "stop")
        with pytest.raises(DaemonUnreachable, match="was stopped"):
            client.receive()


def test_waiters_lose_their_connection_when_the_daemon_crashes(box: Box) -> None:
    job = box.submit("true", hold=True)
    with Client.connect() as client:
        client.send("wait", sel={"ranges": [[job, job]]})
        box.kill_daemon()
        with pytest.raises(ConnectionLost):
            client.receive()


def test_twenty_first_commands_start_one_daemon(box: Box) -> None:
    with ThreadPoolExecutor(20) as pool:
        outs = list(pool.map(lambda n: box.ok("submit", "--", "echo", str(n)), range(20)))
    ids = sorted(int(out) for out in outs)
    assert ids == list(range(1, 21))
    started = [e for e in box.request("events")["events"] if e["kind"] == "daemon-started"]
    assert len(started) == 1
    box.wait(*ids)


def test_a_job_uses_the_daemon_and_never_starts_one(box: Box) -> None:
    gate = box.folder / "gate"
    script = f'until [ -e "{gate}" ]; do sleep 0.02; done; {" ".join(GPUQ)} submit -- true'
    env = dict(os.environ)
    fine = box.submit("sh", "-c", script, env=env)
    gate.touch()
    assert box.wait(fine)["exit_code"] == 0
    assert box.wait(int(box.log(fine)))["state"] == "succeeded"
    gate.unlink()
    orphan = box.submit("sh", "-c", script + f"; {' '.join(GPUQ)} daemon restart", env=env)
    box.wait_begun(orphan)
    log = Path(box.job(orphan)["log_path"])
    box.kill_daemon()
    gate.touch()
    wait_until(lambda: log.exists() and log.read_text().count("would end with it") == 2, "the refusals")
    assert box.wait(orphan)["exit_code"] == 5


def test_a_socket_left_by_a_dead_daemon_is_no_hindrance(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(box.state / "sock"))
    left.close()
    assert box.ok("submit", "--", "true") == "1\n"


def test_a_long_state_path_is_reached(box: Box) -> None:
    state = box.folder / ("long" * 40) / "state"
    box.state = state
    box.setenv(GPUQ_STATE_DIR=str(state))
    assert len(str(state / "sock")) > 107
    assert box.ok("run", "--", "echo", "here") == "here\n"


def test_the_state_folder_must_be_ours(box: Box) -> None:
    box.state.symlink_to(box.folder / "home")
    assert "symbolic link" in box.fails(5, "list")
    box.state.unlink()
    box.state.write_text("a file")
    assert "not a folder" in box.fails(5, "list")
    box.state.unlink()
    box.setenv(GPUQ_STATE_DIR="/proc/gpuq")
    assert "cannot be made" in box.fails(5, "submit", "--", "true")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
def test_somebody_elses_state_folder_is_refused(box: Box) -> None:
    box.state.mkdir(mode=0o755)
    os.chown(box.state, 12345, 12345)
    assert "belongs to uid 12345" in box.fails(4, "list")
    os.chown(box.state, 0, 0)
    box.ok("list")
    # its modules are imported before it becomes somebody else, who may not be allowed to read them
    become = (
        "import os; from gpuq.client import request; from gpuq.errors import NotAllowed\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "try: request('status')\n"
        "except NotAllowed as error: print('refused:', error)"
    )
    for mode in (0o700, 0o755):
        box.state.chmod(mode)
        said = subprocess.run([sys.executable, "-c", become], capture_output=True, text=True, check=True).stdout
        assert said.startswith("refused: the state folder"), said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
def test_the_kernel_says_who_is_at_the_socket(box: Box) -> None:
    """Even where the file system would let somebody else in."""
    box.request("status")
    box.state.chmod(0o777)
    (box.state / "sock").chmod(0o777)
    stranger = (
        "import os, socket\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "connection = socket.socket(socket.AF_UNIX); connection.connect('sock')\n"
        'try: connection.sendall(b\'{"v": 1, "op": "status"}\\n\')\n'
        "except BrokenPipeError: pass  # it may be refused before it has said anything\n"
        "print(connection.recv(65536).decode())"
    )
    env = {**os.environ, "USER": "root", "LOGNAME": "root"}
    done = subprocess.run([sys.executable, "-c", stranger], cwd=box.state, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "NotAllowed"


def test_a_newer_database_is_refused_in_plain_words(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    db = sqlite3.connect(box.state / "queue.db")
    db.execute("PRAGMA user_version = 999")
    db.close()
    assert "newer gpuq" in box.fails(5, "submit", "--", "true")


def test_a_file_that_is_no_database_is_set_aside(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    (box.state / "queue.db").write_bytes(b"not a database" * 1000)
    done = box.run("submit", "--", "true")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "the database was recovered" in done.stderr
    [aside] = (box.state / "damaged").iterdir()
    assert (aside / "queue.db").read_bytes() == b"not a database" * 1000
    assert "recovered" not in box.run("submit", "--", "true").stderr, "it is told once"


def test_an_idle_daemon_sleeps(box: Box) -> None:
    """No wake-up on an empty queue: the kernel counts how often the process was put to sleep and woken."""
    box.wait(box.submit("true"))
    pid = box.daemon_pid()

    def switches() -> int:
        found = 0
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            lines = dict(line.split(":\t") for line in status.read_text().splitlines() if ":\t" in line)
            found += int(lines["voluntary_ctxt_switches"])
        return found

    def settled() -> bool:
        before = switches()
        select_for(0.5)
        return switches() == before

    wait_until(settled, "a daemon that sleeps")
    before, asked = switches(), time.monotonic()
    select_for(3.0)
    assert time.monotonic() - asked >= 3.0
    assert switches() == before


def select_for(seconds: float) -> None:
    """Let time pass: what is tested is that nothing happens meanwhile."""
    import select

    select.select([], [], [], seconds)


# --- the process that supervisors are forked from -------------------------------------------------


def zygote_of(box: Box) -> int:
    daemon = box.daemon_pid()
    children = Path(f"/proc/{daemon}/task/{daemon}/children")

    def found() -> int | None:
        pids = map(int, children.read_text().split())
        return next((pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"gpuq zygote")), None)

    pid = wait_until(found, "the zygote")
    assert pid is not None
    return pid


def test_jobs_outlive_what_their_supervisors_were_forked_from_and_there_is_another(box: Box) -> None:
    argv, begun, gate = gated(box, "job", "exit 4")
    running = box.submit(*argv, cpus=0)
    wait_until(begun.exists, "the job")
    first = zygote_of(box)
    os.kill(first, signal.SIGKILL)
    others = [box.submit(*argv, cpus=0) for _ in range(3)]  # more than there are supervisors ready
    wait_until(lambda: all(box.job(job)["state"] == "running" for job in others), "the others")
    assert zygote_of(box) != first
    gate.touch()
    ended = box.wait(running)
    assert (ended["exit_code"], ended["attempt"]) == (4, 1)
    assert [box.wait(job)["exit_code"] for job in others] == [4] * 3


def test_a_zygote_that_a_job_stopped_goes_on(box: Box) -> None:
    box.ok("daemon", "start")
    stopper = box.submit("kill", "-STOP", str(zygote_of(box)))
    box.wait(stopper)
    assert box.wait(box.submit("true"))["state"] == "succeeded"


def test_many_jobs_that_may_all_start_at_once_are_started_once_each(box: Box) -> None:
    """More than may be under way at a time, and none ends before all have begun."""
    trace, gate = box.folder / "trace", box.folder / "gate"
    trace.touch()
    script = f'echo "$GPUQ_JOB_ID" >> "{trace}"; until [ -e "{gate}" ]; do sleep 0.2; done'
    jobs = box.submit_many([["sh", "-c", script]] * 80, cpus=0)
    wait_until(lambda: len(trace.read_text().split()) == len(jobs), "all of them")
    gate.touch()
    assert {box.wait(job)["state"] for job in jobs} == {"succeeded"}
    assert sorted(map(int, trace.read_text().split())) == jobs
