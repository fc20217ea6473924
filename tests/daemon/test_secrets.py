"""Who may see what: another user nothing of ours, a job nothing of the daemon's environment, a log none of a job's."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import Box

SECRET = "hunter2-" + "b7f1c09e"

#: As another user, without any capability of root's: what can be read, listed or connected to below a folder.
INTRUDER = """
import os, socket, sys
os.setgroups([]); os.setgid(12345); os.setuid(12345)
for path in map(os.fsdecode, sys.stdin.buffer.read().split(b"\\0")):
    for how in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND):
        try:
            os.open(path, how | os.O_NONBLOCK)
            print("opened", path)
        except OSError:
            pass
    try:
        os.listdir(path)
        print("listed", path)
    except OSError:
        pass
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("reached", path)
    except OSError:
        pass
    try:
        os.chmod(path, 0o777)
        print("changed", path)
    except OSError:
        pass
"""


def below(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.rglob("*"))]


def used(box: Box) -> int:
    """A box in which a job with a secret in its environment ran, failed, and was retried."""
    env = {"PATH": os.environ["PATH"], "TOKEN": SECRET}
    job = box.submit("sh", "-c", "echo visible; exit 3", env=env, retry=["1"])
    box.wait(job)
    return job


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["closed", "opened by mistake"])
def test_another_user_neither_reaches_the_socket_nor_reads_or_lists_anything(box: Box, mode: int) -> None:
    used(box)
    paths = below(box.state)
    assert {"sock", "queue.db", "daemon.log", "log", "result", "identity", "work"} <= {path.name for path in paths}
    box.folder.chmod(0o755)
    box.state.chmod(mode)
    told = b"\0".join(os.fsencode(path.relative_to(box.folder)) for path in [box.folder, *paths])
    done = subprocess.run([sys.executable, "-c", INTRUDER], input=told, capture_output=True, cwd=box.folder)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.decode().splitlines())
    assert found == {"opened .", "listed ."} | ({"opened state", "listed state"} if mode & 0o055 else set())


def test_files_are_for_their_owner_alone(box: Box) -> None:
    """Whatever the umask of who starts the daemon or submits; but what the job itself makes is the job's affair."""
    former = os.umask(0)
    try:
        used(box)
    finally:
        os.umask(former)
    for path in below(box.state):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_the_daemons_environment_is_not_the_jobs(box: Box) -> None:
    box.setenv(ONLY_THE_DAEMONS=SECRET)
    box.ok("daemon", "start")
    box.setenv(ONLY_THE_DAEMONS=None)
    pid = box.daemon_pid()
    assert SECRET.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    job = box.submit("env", env={"PATH": os.environ["PATH"], "A": "1"})
    box.wait(job)
    names = {line.partition("=")[0] for line in box.log(job).splitlines()}
    ours = {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED"}
    assert {name for name in names if not name.startswith("GPUQ_")} == {"PATH", "A"} | ours
    assert SECRET not in box.log(job)


def test_the_submitters_own_variables_do_not_name_another_job(box: Box) -> None:
    env = {"PATH": os.environ["PATH"], "GPUQ_JOB_ID": "77", "GPUQ_STATE_DIR": "/elsewhere"}
    job = box.submit("env", env=env)
    box.wait(job)
    assert f"GPUQ_JOB_ID={job}\n" in box.log(job)
    assert f"GPUQ_STATE_DIR={box.state}\n" in box.log(job)


def test_a_jobs_values_are_in_no_log_file_or_column_but_their_own(box: Box) -> None:
    job = used(box)
    box.fails(1, "submit", "--gpus", "77", "--env", f"TOKEN={SECRET}", "--", "true")
    shown = box.ok("show", str(job), "--json") + box.ok("list", "--all", "--json") + box.ok("events", "--json")
    assert SECRET not in shown
    with closing(sqlite3.connect(f"file:{box.state / 'queue.db'}?mode=ro", uri=True)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        holding = {table for table in tables if any(map(_tells, db.execute(f"SELECT * FROM {table}")))}
    assert holding == {"environments"}
    for path in below(box.state):
        if path.is_file() and not path.name.startswith("queue.db"):
            assert SECRET.encode() not in path.read_bytes(), path


def _tells(row: tuple[object, ...]) -> bool:
    return any(SECRET.encode() in (value if isinstance(value, bytes) else str(value).encode()) for value in row)
