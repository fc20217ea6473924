"""Processes are who they are, and belong to whom they belong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuq.launch import leftovers
from gpuq.launch.identity import (
    alive,
    all_processes,
    boot_id,
    identity_of,
    job_of,
    look_for_left,
    members,
    read_stat,
)
from gpuq.model import Identity
from tests.launch.conftest import Attempts, child, gone, python, until, written
from tests.launch.test_shim import DAEMONISE

NO_PID = 2**22 + 1  # above the largest pid_max (proc(5))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with child("sleep", "1000") as process:
        yield process


def test_ourselves() -> None:
    own = identity_of(os.getpid())
    assert own is not None
    assert own.pid == os.getpid()
    assert own.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id()
    assert alive(own)


def test_nobody() -> None:
    assert identity_of(NO_PID) is None
    assert not alive(Identity(NO_PID, 1, boot_id()))


def test_the_same_number_is_not_the_same_process() -> None:
    own = identity_of(os.getpid())
    assert own is not None
    assert not alive(replace(own, start_time=own.start_time + 1))
    assert not alive(replace(own, boot_id="another boot"))


def test_a_zombie_has_an_identity_and_does_not_live(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper.pid)
    assert identity is not None
    assert alive(identity)
    sleeper.kill()
    until(lambda: gone(sleeper.pid))
    assert identity_of(sleeper.pid) == identity
    assert not alive(identity)
    sleeper.wait()
    assert identity_of(sleeper.pid) is None


def test_a_process_whose_first_thread_ended_lives() -> None:
    exit_number = {"x86_64": 60}.get(os.uname().machine, 93)  # exit(2), which ends one thread only
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        f"ctypes.CDLL(None).syscall({exit_number}, 0)\n"
    )
    with child(sys.executable, "-c", code) as process:
        until(lambda: gone(process.pid))  # /proc shows it as a zombie
        identity = identity_of(process.pid)
        assert identity is not None
        assert alive(identity)


def test_a_name_may_look_like_fields(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 1 ("
    program.symlink_to("/bin/sleep")
    with child(str(program), "1000") as process:
        until(lambda: b"a) Z" in Path(f"/proc/{process.pid}/stat").read_bytes())
        stat = read_stat(process.pid)
        assert stat is not None
        assert (stat.parent, stat.session) == (os.getpid(), os.getsid(0))
        assert stat.state in ("S", "R", "D")


def test_all_processes_holds_us() -> None:
    own = all_processes()[os.getpid()]
    assert own.parent == os.getppid()


def test_a_process_belongs_to_the_job_above_it(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(python(DAEMONISE.format(before="pass") + "time.sleep(1000)\n"))
    supervisor = attempts.start(launch)
    pid = int(written(tmp_path / "pid"))
    assert os.getsid(pid) != supervisor.pid  # it left the session, and still is below its supervisor
    assert job_of(pid, {supervisor.pid: 7, NO_PID: 8}) == 7
    assert job_of(supervisor.pid, {supervisor.pid: 7}) == 7
    assert job_of(pid, {NO_PID: 8}) is None
    assert job_of(pid, {}) is None
    assert job_of(os.getpid(), {supervisor.pid: 7}) is None
    assert job_of(NO_PID, {supervisor.pid: 7}) is None


def test_a_process_belongs_to_its_job_by_session_when_the_supervisor_is_gone(attempts: Attempts) -> None:
    code = (
        "import os,time\n"
        "pid = os.fork()\n"
        "if pid: open('child.tmp','w').write(str(pid)); os.rename('child.tmp','child')\n"
        "time.sleep(1000)\n"
    )
    launch = attempts.launch(python(code))
    supervisor = attempts.start(launch)
    identity = identity_of(supervisor.pid)
    assert identity is not None
    forked = int(written(Path(launch.cwd) / "child"))
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    assert job_of(forked, {supervisor.pid: 7}) == 7
    assert len(members(identity)) == 2
    assert forked in {member.pid for member in members(identity)}
    assert members(replace(identity, boot_id="another boot")) == []
    leftovers.end_leftovers(identity, 5.0)
    assert members(identity) == []
    assert gone(forked)


def test_a_number_that_was_given_away_has_no_members() -> None:
    script = "sleep 1000 & echo; wait"
    with child("/bin/sh", "-c", script, start_new_session=True, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        identity = identity_of(stranger.pid)
        assert identity is not None
        assert len(members(identity)) == 1
        before = replace(identity, start_time=identity.start_time - 1)
        assert members(before) == []
        leftovers.end_leftovers(before, 0.0)
        assert len(members(identity)) == 1
        os.killpg(stranger.pid, signal.SIGKILL)


def test_a_helper_of_our_own_is_no_orphan() -> None:
    """The daemon's reader of a sick NVML is its child, too; what outlived a supervisor is in another session."""
    command = ["sleep", "1000"]
    with subprocess.Popen(command) as helper, subprocess.Popen(command, start_new_session=True) as orphan:
        try:
            lost = Identity(NO_PID, 1, boot_id())
            found = {process.pid for process in look_for_left(lost, orphans=True).processes}
        finally:
            helper.kill()
            orphan.kill()
    assert orphan.pid in found
    assert helper.pid not in found
