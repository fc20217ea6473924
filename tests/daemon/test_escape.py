"""Jobs that turn on their supervisor while the daemon lives: nothing of them is left, nothing runs on for ever."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.harness import Box, gone, wait_until

#: Ignores TERM and says who it is.
STAY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[2] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[2] + ".new", sys.argv[2])
time.sleep(1000)
"""
#: One process leaves the session, its parent and its environment behind; the main one waits for it, and goes on.
MAIN = """
import os, subprocess, sys, time
stay, pid_file, last = sys.argv[1:4]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", stay, "", pid_file], {})
    os._exit(0)
while not os.path.exists(pid_file):
    time.sleep(0.02)
exec(last)
"""


def hidden(box: Box, last: str, **template: object) -> tuple[int, int]:
    """A job that left a hidden process behind and then does `last`; the job, and that process's pid."""
    file = box.folder / "hidden"
    job = box.submit(sys.executable, "-c", MAIN, STAY, str(file), last, **template)
    wait_until(file.exists)
    return job, int(file.read_text())


def test_what_hides_and_outlives_its_supervisor_is_ended(box: Box) -> None:
    box.setenv(GPUQ_GRACE="0.2s")
    job, pid = hidden(box, "os.kill(os.getppid(), 9); time.sleep(1000)")
    done = box.wait(job)
    assert (done["failure"], done["note"]) == ("lost", "its supervisor was ended by SIGKILL, which gpuq did not send")
    assert gone(pid), "the claim is given up only when none is left"
    assert box.wait(box.submit("true"))["state"] == "succeeded", "nobody else's processes were taken for orphans"


def test_what_outlives_its_supervisor_has_the_grace_that_its_owner_asked_for(box: Box) -> None:
    box.setenv(GPUQ_GRACE="0.01s")
    saved, ready = box.folder / "saved", box.folder / "ready"
    script = f'trap "sleep 0.5; touch {saved}; exit 0" TERM; touch {ready}; kill -9 $PPID; while :; do sleep 0.05; done'
    job = box.submit("sh", "-c", script, grace=1000)
    assert box.wait(job)["failure"] == "lost"
    assert saved.exists()


def test_others_run_on_while_orphans_are_ended(box: Box) -> None:
    box.setenv(GPUQ_GRACE="0.2s")
    gate = box.folder / "gate"
    other = box.submit("sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.02; done; exit 4', cpus=0)
    box.wait_state(other, "running")
    job, pid = hidden(box, "os.kill(os.getppid(), 9); time.sleep(1000)", cpus=0)
    assert box.wait(job)["failure"] == "lost"
    assert gone(pid)
    gate.touch()
    assert box.wait(other)["exit_code"] == 4


@pytest.mark.parametrize(
    ("last", "limit", "failure", "code"),
    [("time.sleep(1000)", 0.5, "timeout", None), ("sys.exit(5)", None, "exit", 5)],
)
def test_a_supervisor_that_is_stopped_goes_on(
    box: Box, last: str, limit: float | None, failure: str, code: int | None
) -> None:
    box.setenv(GPUQ_GRACE="0.2s")
    stop = f"import os, sys, time; os.kill(os.getppid(), 19); {last}"
    job = box.submit(sys.executable, "-c", stop, time_limit=limit)
    done = box.wait(job)
    assert (done["failure"], done["exit_code"]) == (failure, code)


def test_a_folder_that_serves_something_else_is_not_taken_over(box: Box, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    box.setenv(GPUQ_STATE_DIR=str(shared))
    assert "is shared with others" in box.fails(5, "submit", "--gpus", "0", "--", "true")
    assert shared.stat().st_mode & 0o7777 == 0o1777
    used = tmp_path / "project"
    (used / "jobs").mkdir(parents=True)
    used.chmod(0o755)
    box.setenv(GPUQ_STATE_DIR=str(used))
    assert "holds other things ('jobs')" in box.fails(5, "submit", "--gpus", "0", "--", "true")
    assert (used.stat().st_mode & 0o777, os.listdir(used)) == (0o755, ["jobs"])
    box.setenv(GPUQ_STATE_DIR=str(box.state))
