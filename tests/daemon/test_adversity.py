"""Jobs, files and hosts that do what they should not: the daemon goes on, and what it says is true."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpuq.client import Client
from gpuq.errors import BadRequest, NoSuchJob, StoreError, UsageError
from gpuq.store.connection import connect_readonly
from tests.harness import Box, wait_until

FOLDER = 'cd "$GPUQ_JOB_DIR/.."'


def test_a_command_that_is_not_text_fails_like_any_other(box: Box) -> None:
    for argv in (["\udcff"], ["/no/\udcff/such"]):
        ended = box.wait(box.submit(*argv))
        assert (ended["state"], ended["failure"]) == ("failed", "launch")
        assert "\\xff" in ended["note"] or "\\udcff" in ended["note"]
    ended = box.wait(box.submit("true", output="/no/\udcff/log"))
    assert ended["failure"] == "launch"
    box.kill_daemon()
    assert box.wait(box.submit("true"))["state"] == "succeeded"


MISCHIEF = [
    f"{FOLDER}; rm lock identity; mkdir lock; kill -9 $PPID",
    f"{FOLDER}; rm -f lock; mkfifo lock; exit 3",
    f"{FOLDER}; rm identity; mkfifo identity; kill -9 $PPID",
    f"{FOLDER}; mkfifo result.tmp; exit 3",
    f"{FOLDER}; mkdir result; exit 3",
    f"{FOLDER}; chmod 500 .; exit 3",
    f"{FOLDER}; rm -r lock identity log; exit 3",
    'rm -r "$(dirname "$GPUQ_JOB_DIR")"; exit 3',
    "kill -STOP $PPID; exit 3",
]


def test_a_job_that_breaks_its_own_run_folder_harms_only_itself(box: Box) -> None:
    endings = {}
    for mischief in MISCHIEF:
        vandal = box.submit("sh", "-c", mischief, cpus=0)
        bystander = box.submit("true", cpus=0)
        assert box.wait(bystander)["state"] == "succeeded", mischief
        if "STOP" in mischief:
            box.request("cancel", sel={"ranges": [[vandal, vandal]]})
        ended = box.wait(vandal)
        assert ended["state"] in ("failed", "cancelled"), mischief
        assert ended["failure"] != "launch", f"it did begin: {mischief}"
        assert ended["exit_code"] in (3, None), mischief
        endings[vandal] = ended["state"]
    box.kill_daemon()
    assert {job: box.job(job)["attempt"] for job in endings} == dict.fromkeys(endings, 1)
    assert {job: box.job(job)["state"] for job in endings} == endings


def test_a_job_that_removed_its_traces_is_not_run_twice(box: Box) -> None:
    gate = box.folder / "gate"
    jobs = {}
    for number, mischief in enumerate(("lock", "identity", "lock identity", "../1")):
        ran = box.folder / f"ran{number}"
        waits = f'echo $GPUQ_ATTEMPT >> "{ran}"; until [ -e "{gate}" ]; do sleep 0.02; done'
        jobs[box.submit("sh", "-c", f"{FOLDER}; rm -r {mischief}; {waits}", cpus=0)] = ran, mischief
        wait_until(ran.exists, "the job")
    box.kill_daemon()
    for job, (_, mischief) in jobs.items():
        assert box.job(job)["state"] == "running", mischief
    gate.touch()
    for job, (ran, mischief) in jobs.items():
        ended = box.wait(job)
        assert ran.read_text() == "1\n", mischief
        assert ended["attempt"] == 1, mischief
        assert mischief == "../1" or ended["state"] == "succeeded", mischief


def test_a_new_database_does_not_use_old_ids_again(box: Box) -> None:
    box.wait(box.submit("true"), box.submit("true"))
    box.ok("daemon", "stop")
    for file in box.state.glob("queue.db*"):
        file.unlink()
    job = box.submit("true")
    assert job == 3
    assert box.wait(job)["state"] == "succeeded"


def test_few_descriptors_make_jobs_wait_and_not_fail(box: Box) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    starter = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
        "from gpuq.client import request; request('status')"
    )
    subprocess.run([sys.executable, "-c", starter], check=True)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    gate = box.folder / "gate"
    jobs = box.submit_many([["sh", "-c", f'until [ -e "{gate}" ]; do sleep 0.05; done']] * 40, cpus=0)
    wait_until(
        lambda: "Too many open files" in str(box.request("list", sel={})["jobs"][-1]["reason_text"]), "the reason"
    )
    gate.touch()
    box.wait(*jobs)
    assert {box.job(n)["state"] for n in jobs} == {"succeeded"}


def test_a_daemon_started_in_the_c_locale_takes_any_text(box: Box) -> None:
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    box.ok("daemon", "start", env=c)
    job = box.submit("echo", "é🚀", name="é")
    box.wait(job)
    assert box.log(job) == "é🚀\n"


def test_no_message_shows_the_value_of_a_variable(box: Box) -> None:
    with pytest.raises(UsageError) as error:
        box.submit("true", env={"TOKEN": "s3cret-\ud800"})
    assert "TOKEN" in str(error.value)
    assert "s3cret" not in str(error.value)
    assert b"s3cret" not in (box.state / "daemon.log").read_bytes()


def test_tags_and_counts_that_no_database_can_hold(box: Box) -> None:
    job = box.submit("true", tags=["\udcff"])
    assert box.request("list", sel={"tags": ["\udcff"]}, all=True)["jobs"][0]["id"] == job
    for fields in ({"limit": 2**63}, {"limit": True}):
        with pytest.raises(BadRequest):
            box.request("list", sel={}, **fields)
        with pytest.raises(BadRequest):
            box.request("events", **fields)
    with pytest.raises(NoSuchJob):
        box.request("show", sel={"ranges": [[2**62, 2**62]]})


def test_a_lock_held_by_somebody_who_does_not_listen_is_explained(box: Box) -> None:
    pid = box.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        (box.state / "sock").unlink()
        said = box.fails(5, "list")
        assert f"daemon {pid}" in said
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until((box.state / "sock").exists, "the socket")
    assert box.daemon_pid() == pid


def test_files_that_are_none_are_named(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    os.mkfifo(box.state / "daemon.log")
    assert "daemon.log" in box.fails(5, "list")
    (box.state / "daemon.log").unlink()
    (box.state / "daemon.log").mkdir()
    assert "daemon.log" in box.fails(5, "list")
    (box.state / "daemon.log").rmdir()
    (box.state / "sock").mkdir()
    assert "sock" in box.fails(5, "list")
    (box.state / "sock").rmdir()
    box.ok("list")


def test_giving_up_on_the_end_of_jobs_lets_the_queue_go_on(box: Box) -> None:
    box.setenv(GPUQ_GRACE="2s")
    begun = box.folder / "begun"
    stubborn = box.submit("sh", "-c", f'trap "" TERM; touch "{begun}"; while :; do sleep 0.05; done', cpus=0)
    wait_until(begun.exists)
    with Client.connect() as client:
        client.send("stop", jobs=True)
        wait_until(lambda: box.job(stubborn)["ending"] == "cancel", "the request")
        late = box.submit("true", cpus=0)
        client.socket.shutdown(socket.SHUT_RDWR)
    assert box.wait(late)["state"] == "succeeded"
    assert box.wait(stubborn)["state"] == "cancelled"


@pytest.fixture
def small(box: Box) -> Iterator[Box]:
    """A box whose state folder is a file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    box.state.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "gpuq-test", str(box.state)])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield box
        box.ok("daemon", "stop", "--jobs")
    finally:
        box.close()
        subprocess.run(["umount", str(box.state)], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no room beside it."""
    filler = folder / "filler"
    with pytest.raises(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_full_disk_loses_nothing(small: Box) -> None:
    gate, begun = small.folder / "gate", small.folder / "begun"
    job = small.submit("sh", "-c", f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit 7', cpus=0)
    wait_until(begun.exists)
    held = small.submit("true", hold=True)
    waiting = small.submit("true", after=[f"any:{job}"], cpus=0)
    filler = fill(small.state)
    gate.touch()
    assert small.wait(job)["exit_code"] == 7, "what was kept in reserve holds its result"
    assert "is full" in (said := small.fails(1, "submit", "--", "true")) and "gpuq prune" in said
    assert small.job(waiting)["state"] == "queued"
    assert "is full" in small.reason(waiting)[1]
    small.ok("cancel", str(held))
    filler.unlink()
    assert small.wait(waiting)["state"] == "succeeded"
    assert small.wait(small.submit("true"))["state"] == "succeeded"
    assert (small.state / "reserve").stat().st_size == 4 * 1024 * 1024
    assert small.request("list", sel={}, all=True)["total"] == 4


def test_a_daemon_starts_on_a_full_disk(small: Box) -> None:
    small.setenv(GPUQ_GPUS="sim:2x24GiB")
    gate, begun = small.folder / "gate", small.folder / "begun"
    script = f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit 7'
    job = small.submit("sh", "-c", script, cpus=0, gpus=0)
    wait_until(begun.exists)
    small.kill_daemon()
    gate.touch()
    wait_until((small.state / "jobs" / str(job) / "1" / "result").exists)
    filler = fill(small.state)
    assert small.wait(job)["exit_code"] == 7
    filler.unlink()
    assert small.wait(small.submit("true", gpus=0))["state"] == "succeeded"


def test_a_recovery_that_finds_no_room_says_so_and_goes_on_when_there_is(small: Box) -> None:
    held = small.submit_many([["true", str(n) * 400] for n in range(500)], hold=True)
    small.ok("daemon", "stop")
    (small.state / "reserve").unlink()
    with (small.state / "queue.db").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 2)
    filler = fill(small.state)
    said = small.fails(5, "list")
    assert "is full" in said and "free some" in said
    filler.unlink()
    assert small.request("list", sel={}, all=True)["total"] == len(held)


def test_one_run_folder_that_cannot_be_made_hinders_no_other_job(box: Box) -> None:
    first = box.submit("true", hold=True)
    (box.state / "jobs").mkdir(exist_ok=True, mode=0o700)
    (box.state / "jobs" / str(first)).write_text("in the way")
    other = box.submit("true")
    box.request("release", sel={"ranges": [[first, first]]})
    assert box.wait(other)["state"] == "succeeded"
    assert box.wait(first)["failure"] == "launch"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_file_system_that_becomes_read_only_is_called_that(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=0700", "gpuq-test", str(box.state)]).returncode:
        pytest.skip("mounting is not allowed here")

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(box.state)], check=True)

    # a file system with a file that is open for writing is not remounted; one mounted over it is read-only for us
    over = ["mount", "--bind", str(box.state), str(box.state)]
    try:
        job = box.submit("true", cpus=0)
        box.wait(job)
        pid = box.daemon_pid()
        subprocess.run(over, check=True)
        remount("bind,ro")
        try:
            assert box.ok("list", "--all", "-q") == f"{job}\n", "a daemon that lives can be asked"
            assert box.json("daemon", "status")["pid"] == pid
        finally:
            subprocess.run(["umount", str(box.state)], check=True)
        box.ok("daemon", "stop")
        remount("ro")
        assert "mounted read-only" in (said := box.fails(5, "list")) and "chmod" not in said
        conn = connect_readonly(box.state / "queue.db")
        with closing(conn), pytest.raises(StoreError, match="mounted read-only"):
            conn.execute("DELETE FROM jobs")
        remount("rw")
        assert box.ok("list", "--all", "-q") == f"{job}\n"
        box.ok("daemon", "stop")
    finally:
        box.close()
        subprocess.run(["umount", str(box.state)], check=True)


def test_a_submission_that_fills_the_disk_leaves_the_room_that_it_took(small: Box) -> None:
    held = small.submit("true", hold=True)
    file = small.folder / "lines"
    file.write_text("".join(f"echo {number} {'x' * 150}\n" for number in range(60_000)))
    assert "is full" in small.fails(1, "submit", "--hold", "--from", str(file))
    assert [job["id"] for job in small.request("list", sel={})["jobs"]] == [held], "nothing half is there"
    wait_until(lambda: (small.state / "changes").stat().st_size < 100_000, "the end of what was noted of it")
    assert small.wait(small.submit("true"))["state"] == "succeeded", "there is room for one that is small"
    small.ok("daemon", "restart")
    assert small.wait(small.submit("true"))["state"] == "succeeded"
    assert small.job(held)["state"] == "held"
