"""`suspend` and `resume` with a real daemon: what stands still, what is kept, and what survives the daemon."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gpuq.launch.identity import read_stat
from tests.fakenvml import FakeNvml, fake_gpus
from tests.harness import Box, wait_until

GiB = 1024**3
#: Counts as fast as it can; what it left behind counts as well.
COUNT = 'while :; do echo "$$" >> "$0"; done'


def counting(box: Box, **template: object) -> tuple[int, int, Path]:
    """A job that grows a file, its main process's pid, and the file."""
    file = box.folder / f"count{len(list(box.folder.glob('count*')))}"
    job = box.submit("sh", "-c", COUNT, str(file), cpus=0, **template)
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the first count")
    return job, int(file.read_text().split()[0]), file


def stopped(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state == "T"


def test_a_suspended_job_stands_still_until_it_is_resumed(box: Box) -> None:
    job, pid, file = counting(box)
    assert box.ok("suspend", str(job)) == f"{job}\n"
    wait_until(lambda: stopped(pid), "the stop")
    size = file.stat().st_size
    found = box.job(job)
    assert (found["state"], found["suspended_at"] is not None, found["ended_at"]) == ("suspended", True, None)
    assert "suspended" in box.ok("list")
    assert "suspended" in box.ok("show", str(job))
    assert box.ok("list", "-q", "--state", "suspended") == f"{job}\n"
    assert "is suspended, and cannot be suspended" in box.fails(1, "suspend", str(job))
    assert file.stat().st_size == size
    assert box.ok("resume", str(job)) == f"{job}\n"
    wait_until(lambda: file.stat().st_size > size, "it to go on")
    found = box.job(job)
    assert (found["state"], found["suspended_at"]) == ("running", None)
    assert found["suspended_seconds"] > 0
    assert "is running, and cannot be resumed" in box.fails(1, "resume", str(job))


def test_what_is_being_cancelled_is_not_suspended(box: Box) -> None:
    box.setenv(GPUQ_GRACE="30s")
    begun, told, gate = (box.folder / name for name in ("begun", "told", "gate"))
    script = f'trap ": > {told}" TERM; : > {begun}; until [ -e {gate} ]; do sleep 0.02; done'
    job = box.submit("sh", "-c", script, cpus=0)
    wait_until(begun.exists)
    box.ok("cancel", str(job))
    wait_until(told.exists)
    assert "is being ended, and cannot be suspended" in box.fails(1, "suspend", str(job))
    gate.touch()
    assert box.wait(job)["state"] == "cancelled"


def test_only_what_runs_is_suspended(box: Box) -> None:
    held, done = box.submit("true", hold=True), box.submit("true")
    box.wait(done)
    assert "is held" in box.fails(1, "suspend", str(held))
    assert "already ended" in box.fails(1, "suspend", str(done))
    assert box.run("suspend", f"{held}-{done}").returncode == 0, "a range means those that it can be done to"
    assert (box.job(held)["state"], box.job(done)["state"]) == ("held", "succeeded")


def test_it_stays_suspended_though_the_daemon_dies(box: Box) -> None:
    job, pid, file = counting(box)
    box.request("suspend", sel={"ranges": [[job, job]]})
    wait_until(lambda: stopped(pid), "the stop")
    box.kill_daemon()
    assert (box.job(job)["state"], stopped(pid)) == ("suspended", True)
    size = file.stat().st_size
    box.request("resume", sel={"ranges": [[job, job]]})
    wait_until(lambda: file.stat().st_size > size, "it to go on")
    assert box.job(job)["state"] == "running"


def test_a_suspended_job_can_be_cancelled(box: Box) -> None:
    job, pid, _ = counting(box)
    box.request("suspend", sel={"ranges": [[job, job]]})
    wait_until(lambda: stopped(pid), "the stop")
    box.request("cancel", sel={"ranges": [[job, job]]})
    done = box.wait(job)
    assert (done["state"], done["suspended_at"], read_stat(pid)) == ("cancelled", None, None)


def test_one_that_is_killed_while_suspended_is_known_to_have_been(box: Box) -> None:
    job, pid, _ = counting(box)
    box.request("suspend", sel={"ranges": [[job, job]]})
    wait_until(lambda: stopped(pid), "the stop")
    os.kill(pid, signal.SIGXCPU)  # not KILL: where another test has the kernel kill for want of memory, that is named
    os.kill(pid, signal.SIGCONT)
    done = box.wait(job)
    assert (done["state"], done["failure"], done["signal"]) == ("failed", "signal", signal.SIGXCPU)


def test_its_time_limit_stands_still(box: Box) -> None:
    job, pid, file = counting(box, time_limit=1.0)
    box.request("suspend", sel={"ranges": [[job, job]]})
    wait_until(lambda: stopped(pid), "the stop")
    # another job with the same limit, started later, is over: so the first one's time would have been too
    other = box.submit("sleep", "1000", time_limit=1.1, cpus=0)
    assert box.wait(other)["failure"] == "timeout"
    assert box.job(job)["state"] == "suspended"
    box.request("resume", sel={"ranges": [[job, job]]})
    assert box.wait(job)["failure"] == "timeout"
    assert file.exists()


def test_daemon_stop_jobs_ends_suspended_ones_too(box: Box) -> None:
    job, pid, _ = counting(box)
    box.request("suspend", sel={"ranges": [[job, job]]})
    wait_until(lambda: stopped(pid), "the stop")
    box.ok("daemon", "stop", "--jobs")
    assert read_stat(pid) is None
    assert box.job(job)["state"] == "cancelled"


@pytest.mark.parametrize("vram", [None, 20 * GiB])
def test_it_keeps_its_gpu(box: Box, nvml: FakeNvml, vram: int | None) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    job, pid, _ = counting(box, gpus=1, vram=vram)
    box.request("suspend", sel={"ranges": [[job, job]]})
    wait_until(lambda: stopped(pid), "the stop")
    waiting = box.submit("true", gpus=1, vram=10 * GiB)
    assert box.reason(waiting)[0] == "Resources"
    box.kill_daemon()
    assert box.reason(waiting)[0] == "Resources", "and after a restart"
    box.request("cancel", sel={"ranges": [[job, job]]})
    assert box.wait(waiting)["state"] == "succeeded"
