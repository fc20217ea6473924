"""Queues at a real daemon: what they allow, what is told of them, and that what was acknowledged is kept."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from gpuq.errors import ConnectionLost, GpuqError
from tests.harness import Box, gone, wait_until

HOLD = ["sleep", "1000"]


def queue_of(box: Box, name: str) -> dict[str, Any]:
    found = {one["name"]: one for one in box.request("queues")["queues"]}
    one = found[name]
    assert isinstance(one, dict)
    return one


def waits_for(box: Box, job: int, reason: str, text: str) -> None:
    def told() -> bool:
        found, said = box.reason(job)
        return found == reason and text in said

    wait_until(told, f"job {job} to wait for {reason}: {text}; it says {box.reason(job)}")


@pytest.fixture
def jobs(sim: Box) -> Iterator[Box]:
    yield sim
    sim.run("cancel", "--state", "queued,running,held")


def test_a_queue_is_made_and_only_what_is_named_changes(sim: Box) -> None:
    assert [one["name"] for one in sim.json("queue", "list")["queues"]] == ["default"]
    sim.ok("queue", "set", "night", "--gpus", "0", "--default-time", "2h", "--max-time", "1d", "--max-jobs", "4")
    sim.ok("queue", "set", "night", "--max-gpus", "2", "--priority", "-7")
    found = queue_of(sim, "night")
    assert (found["gpu_indexes"], found["default_time_seconds"], found["max_time_seconds"]) == ([0], 7200.0, 86400.0)
    assert (found["max_jobs"], found["max_gpus"], found["priority"], found["state"]) == (4, 2, -7, "open")
    assert found["gpus"] == [sim.json("gpus")["gpus"][0]["uuid"]]
    sim.ok("queue", "set", "night", "--gpus", "all", "--max-jobs", "none", "--default-time", "none")
    found = queue_of(sim, "night")
    assert (found["gpus"], found["max_jobs"], found["default_time_seconds"], found["max_gpus"]) == (None, None, None, 2)
    kinds = [event["kind"] for event in sim.json("events")["events"]]
    assert kinds.count("queue-set") == 3


def test_the_table_fits_a_terminal_and_tells_what_runs(jobs: Box) -> None:
    jobs.ok("queue", "set", "n" * 32, "--gpus", "0,1", "--default-time", "90m", "--max-time", "10d", "--max-gpus", "2")
    first, _ = jobs.submit_many([HOLD] * 2, gpus=2, queue="n" * 32)
    jobs.wait_state(first, "running")
    jobs.ok("queue", "pause", "n" * 32, "--why", "x" * 200)
    header, default, row = jobs.ok("queue", "list").splitlines()
    assert header.split() == ["QUEUE", "STATE", "PRIORITY", "RUNNING", "WAITING", "GPUS", "OF", "TIME", "WHY"]
    assert default.split() == ["default", "open", "0", "0", "0", "0", "all", "-", "-"]
    assert row.split() == ["n" * 32, "paused", "0", "1", "1", "2/2", "0,1", "1h30m/10d", "x" * 200]


def test_unknown_queues_are_refused_with_those_there_are(sim: Box) -> None:
    sim.ok("queue", "set", "night")
    for args in (["submit", "--queue", "nigth", "--", "true"], ["run", "--queue", "nigth", "--", "true"]):
        assert "there is no queue 'nigth': there are default, night" in sim.fails(1, *args)
    for verb in ("pause", "resume", "drain", "remove"):
        assert "there are default, night" in sim.fails(1, "queue", verb, "day")
    assert not sim.request("list", sel={}, all=True)["jobs"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["set", "a b"], "cannot be called 'a b'"),
        (["set", "x" * 33], "cannot be called"),
        (["set", "q", "--gpus", "7"], "--gpus 7: there is no GPU 7; there are 0 ("),
        (["set", "q", "--gpus", "0,,1"], "names no GPU in one place"),
        (["set", "q", "--max-jobs", "0"], "--max-jobs is 0, and must be 1 or more"),
        (["set", "q", "--max-jobs", "few"], "'few' is neither a number nor none"),
        (["set", "q", "--max-time", "90"], "not a time"),
        (["set", "q", "--priority", "5000"], "must be from -1000 to 1000"),
        (["set", "q", "--default-time", "2h", "--max-time", "1h"], "default time of queue q would be 2h00m, and its"),
        (["pause", "default", "--why", ""], "--why is one line"),
        (["pause", "default", "--why", "a\nb"], "--why is one line"),
        (["remove", "default"], "is always there"),
    ],
)  # fmt: skip
def test_bad_input(sim: Box, args: list[str], said: str) -> None:
    done = sim.run("queue", *args)
    assert done.returncode in (1, 2) and said in done.stderr, done.stderr
    assert [one["name"] for one in sim.request("queues")["queues"]] == ["default"], "nothing was made"


def test_times_of_a_queue(sim: Box) -> None:
    sim.setenv(GPUQ_DEFAULT_TIME="5h")
    sim.ok("queue", "set", "night", "--default-time", "2h", "--max-time", "3h")
    sim.ok("queue", "set", "short", "--max-time", "1h")
    said = sim.fails(2, "submit", "--queue", "night", "--time", "4h", "--", "true")
    assert "--time 4h00m is more than queue night allows: 3h00m at most" in said
    ids = [
        int(sim.ok("submit", "--hold", *args, "--", "true"))
        for args in ([], ["--queue", "night"], ["--queue", "night", "--time", "3h"], ["--queue", "short"])
    ]
    assert [sim.job(n)["time_limit_seconds"] for n in ids] == [5 * 3600, 2 * 3600, 3 * 3600, 3600]


def test_what_a_queue_can_never_serve_is_refused(sim: Box) -> None:
    sim.ok("queue", "set", "night", "--gpus", "1", "--max-gpus", "1")
    assert "queue night has at most 1 GPU at a time" in sim.fails(
        1, "submit", "--queue", "night", "-g", "2", "--", "true"
    )
    sim.ok("queue", "set", "night", "--max-gpus", "none")
    assert "1 of 2 GPUs is for queue night" in sim.fails(1, "submit", "--queue", "night", "-g", "2", "--", "true")
    job = sim.submit("true", gpus=1, queue="night")
    sim.wait(job)
    assert sim.job(job)["gpu_indexes"] == [1], "of GPUs with as much room the first would be 0"


def test_limits_hold_and_their_reason_is_told(jobs: Box) -> None:
    jobs.ok("queue", "set", "night", "--max-jobs", "1")
    jobs.ok("queue", "set", "wide", "--max-gpus", "1")
    a, b = jobs.submit_many([HOLD] * 2, gpus=0, cpus=0, queue="night")
    c, d = jobs.submit_many([HOLD] * 2, gpus=1, vram=2**30, queue="wide")
    jobs.wait_state(a, "running")
    jobs.wait_state(c, "running")
    waits_for(jobs, b, "Limit", "1 of at most 1 jobs of queue night run")
    waits_for(jobs, d, "Limit", "queue wide has 1 of at most 1 GPUs, and 1 is asked for")
    jobs.ok("cancel", str(a), str(c))
    jobs.wait_state(b, "running")
    jobs.wait_state(d, "running")


def test_limits_below_what_runs_are_taken_and_told(jobs: Box) -> None:
    ids = jobs.submit_many([HOLD] * 3, gpus=0, cpus=0)
    for job in ids:
        jobs.wait_state(job, "running")
    more = jobs.submit(*HOLD, gpus=0, cpus=0, hold=True)
    done = jobs.run("queue", "set", "default", "--max-jobs", "2")
    assert (done.returncode, "3 jobs of queue default run, 1 above its limit" in done.stderr) == (0, True)
    jobs.ok("release", str(more))
    waits_for(jobs, more, "Limit", "3 of at most 2 jobs of queue default run")
    jobs.ok("cancel", str(ids[0]))
    waits_for(jobs, more, "Limit", "2 of at most 2 jobs of queue default run")
    jobs.ok("cancel", str(ids[1]))
    jobs.wait_state(more, "running")


def test_jobs_that_a_change_makes_impossible_are_named_and_wait(jobs: Box) -> None:
    ids = jobs.submit_many([["true"]] * 7, gpus=2, hold=True)
    one = jobs.submit("true", gpus=1, hold=True)
    jobs.ok("release", str(ids[0]))
    jobs.wait(ids[0])
    said = jobs.run("queue", "set", "default", "--gpus", "1").stderr
    assert (
        "6 jobs wait (2, 3, 4, 5, 6, …) for what the queue can give no more: 1 of 2 GPUs is for queue default" in said
    )
    jobs.ok("release", str(ids[1]), str(one))
    waits_for(jobs, ids[1], "Limit", "queue default may have 1 GPU, and 2 GPUs are asked for")
    assert jobs.wait(one)["state"] == "succeeded"


def test_pause_resume_and_drain(jobs: Box) -> None:
    jobs.ok("queue", "set", "night")
    jobs.ok("queue", "pause", "night", "--why", "until nine")
    job = jobs.submit("true", gpus=0, queue="night")
    other = jobs.submit("true", gpus=0)
    waits_for(jobs, job, "QueuePaused", "queue night is paused: until nine")
    assert jobs.wait(other)["state"] == "succeeded"
    jobs.ok("queue", "drain", "night")
    said = jobs.fails(1, "submit", "--queue", "night", "--", "true")
    assert "queue night is draining, and takes no new jobs: until nine; `gpuq queue resume night` opens it" in said
    with pytest.raises(GpuqError, match="takes no new jobs"):
        jobs.submit_many([["true"]] * 300, gpus=0, queue="night")
    jobs.ok("queue", "resume", "night")
    assert jobs.wait(job)["state"] == "succeeded"
    jobs.ok("queue", "drain", "night")
    assert "cannot be queued again: queue night is draining" in jobs.fails(1, "retry", str(job))
    jobs.ok("queue", "resume", "night")
    assert "neither paused nor draining" in jobs.run("queue", "resume", "night").stderr


def test_a_draining_queue_starts_what_it_has(box: Box) -> None:
    box.ok("queue", "set", "night")
    job = box.submit("true", queue="night", hold=True)
    box.ok("queue", "drain", "night")
    box.ok("release", str(job))
    assert box.wait(job)["state"] == "succeeded"


def test_a_queue_with_jobs_in_it_is_not_removed(jobs: Box) -> None:
    jobs.ok("queue", "set", "night")
    a, b = jobs.submit_many([HOLD] * 2, gpus=0, queue="night", hold=True)
    assert "2 jobs are in queue night" in jobs.fails(1, "queue", "remove", "night")
    jobs.ok("cancel", str(a))
    assert "1 job is in queue night" in jobs.fails(1, "queue", "remove", "night")
    jobs.ok("cancel", str(b))
    jobs.ok("queue", "remove", "night")
    assert [one["name"] for one in jobs.request("queues")["queues"]] == ["default"]
    assert "there is no queue 'night'" in jobs.fails(1, "retry", str(a))
    jobs.ok("daemon", "restart")
    assert [one["name"] for one in jobs.request("queues")["queues"]] == ["default"]


def test_two_commands_at_once_lose_nothing_of_each_other(box: Box) -> None:
    box.request("status")
    wanted = [("max_jobs", 3), ("max_gpus", 5), ("priority", 9), ("default_time", 60.0), ("max_time", 90.0)]
    with ThreadPoolExecutor(5) as pool:
        for _ in range(4):
            list(pool.map(lambda one: box.request("queue", name="q", do="set", changes=dict([one])), wanted))
    found = queue_of(box, "q")
    assert [found[name] for name in ("max_jobs", "max_gpus", "priority")] == [3, 5, 9]
    assert [found[name] for name in ("default_time_seconds", "max_time_seconds")] == [60.0, 90.0]


def test_what_was_acknowledged_survives_a_kill(sim: Box) -> None:
    sim.ok("queue", "set", "night", "--gpus", "1", "--max-jobs", "2", "--default-time", "1h", "--max-time", "2h")
    sim.ok("queue", "pause", "night", "--why", "größe")
    sim.ok("queue", "set", "default", "--priority", "3")
    before = sim.request("queues")["queues"]
    job = sim.submit("true", queue="night", gpus=0)
    sim.kill_daemon()
    assert [dict(one, waiting=0) for one in sim.request("queues")["queues"]] == before
    waits_for(sim, job, "QueuePaused", "größe")


@pytest.mark.parametrize("point", ["commit-before", "commit-after"])
def test_a_kill_in_the_middle_leaves_all_of_a_change_or_nothing(box: Box, point: str) -> None:
    box.ok("queue", "set", "night", "--max-jobs", "1")
    box.ok("daemon", "stop")
    box.setenv(GPUQ_CRASH_AT=f"{point}:3")  # the start itself, and what it erases, are two
    pid = box.daemon_pid()
    with pytest.raises(ConnectionLost):
        box.request("queue", name="night", do="set", changes={"max_jobs": 2, "priority": 4})
    wait_until(lambda: gone(pid), "the crash")
    box.setenv(GPUQ_CRASH_AT=None)
    found = queue_of(box, "night")
    told = [event["data"] for event in box.request("events", sel={})["events"] if event["kind"] == "queue-set"]
    whole = {"queue": "night", "was": {"priority": 0, "max_jobs": 1}, "now": {"priority": 4, "max_jobs": 2}}
    assert (found["max_jobs"], found["priority"], told[1:]) in [(1, 0, []), (2, 4, [whole])]
    assert (found["max_jobs"] == 2) == (point == "commit-after")


def test_a_backup_has_the_queues_and_a_restore_brings_them_back(box: Box) -> None:
    box.ok("queue", "set", "night", "--max-jobs", "3")
    copy = box.folder / "copy.db"
    box.ok("db", "backup", str(copy))
    box.ok("queue", "set", "night", "--max-jobs", "5")
    box.ok("queue", "set", "day")
    job = box.submit("true", queue="day")
    box.wait(job)
    box.ok("db", "restore", "--yes", str(copy))
    assert queue_of(box, "night")["max_jobs"] == 3


@pytest.mark.parametrize("how", ["rows", "nonsense", "file"])
def test_damage_loses_no_queue(box: Box, how: str) -> None:
    box.ok("queue", "set", "night", "--max-jobs", "3", "--max-time", "2h")
    box.ok("queue", "set", "gone")
    box.ok("queue", "remove", "gone")
    box.ok("queue", "pause", "night", "--why", "because")
    job = box.submit("true", queue="night")
    before = box.request("queues")["queues"]
    box.kill_daemon()
    if how == "file":
        for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
            (box.state / name).unlink(missing_ok=True)
        (box.state / "queue.db").write_bytes(os.urandom(8192))
    else:
        with closing(sqlite3.connect(box.state / "queue.db")) as db:
            db.execute("UPDATE queues SET gpus = '{]'" if how == "nonsense" else "DELETE FROM queues")
            if how == "rows":
                db.execute("UPDATE jobs SET limits = 'nonsense'")
            db.commit()
    assert box.request("queues")["queues"] == before
    waits_for(box, job, "QueuePaused", "because")
    assert box.request("status")["database"] is not None


def test_a_queue_whose_settings_are_lost_starts_nothing_until_somebody_says_so(box: Box) -> None:
    box.ok("queue", "set", "night", "--max-jobs", "1")
    job = box.submit("true", queue="night", hold=True)
    box.ok("daemon", "stop")
    (box.state / "changes").write_text('{"e":1}\n')
    with closing(sqlite3.connect(box.state / "queue.db")) as db:
        db.execute("DELETE FROM queues")
        db.execute("INSERT INTO queues VALUES ('night', 0, x'00', NULL, NULL, NULL, NULL, 0, 0, NULL)")
        db.commit()
    box.ok("release", str(job))
    waits_for(box, job, "QueuePaused", "what was set for it is lost")
    box.ok("queue", "resume", "night")
    assert box.wait(job)["state"] == "succeeded"


def test_a_queue_that_is_removed_while_a_large_submission_comes_is_not_removed(box: Box) -> None:
    """Slices are written where nobody sees them; the queue they are for is not empty all the same."""
    from gpuq.client import Client

    box.ok("queue", "set", "night")
    with Client.connect() as client:
        head = {"key": "k" * 16, "template": {"cwd": str(box.folder), "queue": "night", "hold": True}, "env": {}}
        client.request("submit", **head, count=500, commands=[["true"]] * 400, last=False)
        assert "400 jobs are in queue night" in box.fails(1, "queue", "remove", "night")
        box.ok("queue", "drain", "night")
        with pytest.raises(GpuqError, match="takes no new jobs"):
            client.request("submit", key="k" * 16, commands=[["true"]] * 100, last=True)
    box.ok("queue", "remove", "night")
    assert not box.request("list", sel={}, all=True)["jobs"]


def test_the_daemon_that_is_stopped_while_a_change_waits_answers_it_later(box: Box) -> None:
    """An answer means durable: a daemon that cannot run cannot have answered."""
    pid = box.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    with box.started("queue", "set", "night", "--json") as asked:
        os.kill(pid, signal.SIGCONT)
        out, _ = asked.communicate(timeout=60)
    assert '"night"' in out
    assert queue_of(box, "night")["state"] == "open"
