"""Starting supervisors, and finding them again after a restart."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gpuq.errors import HostBusy, LaunchError, StoreError
from gpuq.launch import adoption, launcher, leftovers, supervisors
from gpuq.launch.adoption import Ended, Gone, Lost, NeverStarted, Running, Starting, adopt
from gpuq.launch.identity import identity_of, is_supervisor, read_stat
from gpuq.launch.outcome import read_result
from gpuq.launch.supervisors import NotBegun
from tests.launch.conftest import (
    SHELL_ENV,
    Attempts,
    claimed,
    gone,
    python,
    reap_children,
    settled,
    shell,
    until,
    written,
)

ROOT = str(Path(launcher.__file__).parents[2])


# --- starting -------------------------------------------------------------------------------------


def test_a_folder_is_started_in_once(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("echo ran >> ran"))
    attempts.run(launch)
    with pytest.raises(LaunchError, match="already started"):
        attempts.launcher.start(launch)
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_a_run_folder_that_cannot_be_made(attempts: Attempts, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="cannot be made"):
        attempts.launcher.start(attempts.launch(["true"], run_dir=tmp_path / "file" / "run"))


def test_text_that_no_program_can_be_given(attempts: Attempts) -> None:
    launch = attempts.launch(["echo", "\ud800"])
    with pytest.raises(LaunchError, match="no program can be given"):
        attempts.launcher.start(launch)
    attempts.run(replace(launch, argv=("true",)))  # nothing was started, so it may be


def test_without_free_file_numbers_nothing_is_started_and_it_may_be_tried_again(tmp_path: Path) -> None:
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from gpuq.errors import HostBusy\n"
        "from gpuq.launch import adoption, launcher\n"
        "from gpuq.launch.supervisors import NotBegun\n"
        "from tests.launch.conftest import answer\n"
        "folder = Path(sys.argv[1])\n"
        "log = str(folder / 'log')\n"
        "launch = launcher.Launch(1, 1, folder / 'run', ('/bin/true',), '/', {}, log, True, 0o22, (), None, 1.0)\n"
        "starter = launcher.Launcher(spare=0)\n"
        "held = [os.open('/dev/null', os.O_RDONLY) for _ in range(3)]\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1, hard))\n"
        "failures = 0\n"
        "while True:\n"
        "    try:\n"
        "        starter.start(launch)\n"
        "        answered = answer(starter)\n"
        "        if isinstance(answered, NotBegun): raise answered.failure\n"
        "        break\n"
        "    except HostBusy as error:\n"
        "        assert 'ulimit -n' in str(error) or 'Too many open files' in str(error), error\n"
        "        failures += 1\n"
        "        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (limit + 1, hard))\n"
        "adoption.wait_unlocked(launch.run_dir)\n"
        "print(failures)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert int(done.stdout) >= 3
    found = read_result(tmp_path / "run")
    assert found is not None
    assert found.wait_status == 0


def test_a_reaped_supervisor_leaves_no_zombie_and_no_file(attempts: Attempts) -> None:
    attempts.run(attempts.launch(["true"]))
    before = os.listdir("/proc/self/fd")
    launch = attempts.launch(["true"])
    supervisor = attempts.start(launch)
    attempts.finish(launch, supervisor)
    assert os.listdir("/proc/self/fd") == before
    assert identity_of(supervisor.pid) is None


def test_ending_what_has_ended(attempts: Attempts) -> None:
    supervisor = attempts.start(attempts.launch(["true"]))
    pidfd = os.dup(supervisor.pidfd)
    attempts.wait(supervisor)
    ended = replace(supervisor, pidfd=pidfd)
    launcher.end(ended)
    assert supervisors.reap(ended) is None  # nobody's child by now


def test_who_was_waited_for_is_asked_nothing_whosever_its_number_is(attempts: Attempts) -> None:
    supervisor = attempts.start(attempts.launch(["true"]))
    number = supervisor.pidfd
    attempts.wait(supervisor)
    with subprocess.Popen(["sleep", "1000"]) as other:
        pidfd = os.pidfd_open(other.pid)
        os.dup2(pidfd, number)
        for ask in (launcher.end, launcher.suspend, launcher.resume):
            ask(supervisor)
        assert other.poll() is None
        other.kill()
    assert other.returncode == -signal.SIGKILL
    os.close(pidfd)
    if number != pidfd:
        os.close(number)


# --- adopting -------------------------------------------------------------------------------------


def test_adopt_running_and_then_ended(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("while [ ! -e go ]; do sleep 0.02; done; exit 5"))
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    found = adopt(launch.run_dir)
    assert isinstance(found, Running)
    assert found.supervisor.pid == supervisor.pid
    (tmp_path / "go").touch()
    attempts.wait(supervisor)
    supervisors.reap(found.supervisor)
    assert isinstance(adopt(launch.run_dir), Ended)
    result = read_result(launch.run_dir)
    assert result is not None
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 5


def test_an_adopted_attempt_can_be_ended(attempts: Attempts) -> None:
    launch = attempts.launch(shell("exec sleep 1000"))
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    found = adopt(launch.run_dir)
    assert isinstance(found, Running)
    launcher.end(found.supervisor)
    assert attempts.finish(launch, supervisor).ended
    supervisors.reap(found.supervisor)


def test_adopt_never_started(tmp_path: Path) -> None:
    claimed(tmp_path)
    assert adopt(tmp_path) == NeverStarted()
    (tmp_path / "lock").touch()
    assert adopt(tmp_path) == NeverStarted()


def test_a_run_folder_that_is_missing_does_not_say_that_nothing_began(tmp_path: Path) -> None:
    assert adopt(tmp_path / "missing") == Gone()
    (tmp_path / "lock").touch()
    assert adopt(tmp_path) == Gone(), "what was written before the claim has been removed"
    (tmp_path / "file").touch()
    assert adopt(tmp_path / "file") == Gone()
    assert adopt(tmp_path / "file" / "run") == Gone()


def test_adopt_starting(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    claimed(run_dir)
    with open(run_dir / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert adopt(run_dir) == Starting(run_dir / "lock")
        waiting = threading.Thread(target=adoption.wait_unlocked, args=(run_dir,))
        waiting.start()
        assert adopt(run_dir) == Starting(run_dir / "lock")
        assert waiting.is_alive()
    waiting.join()
    assert adopt(run_dir) == NeverStarted()


def test_a_lock_that_is_held_by_a_stranger_is_not_taken_for_the_process_of_that_number(tmp_path: Path) -> None:
    own = identity_of(os.getpid())
    assert own is not None
    text = json.dumps({"pid": own.pid, "start_time": own.start_time - 1, "boot_id": own.boot_id})
    (tmp_path / "identity").write_text(text)
    with open(tmp_path / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert adopt(tmp_path) == Starting(tmp_path / "lock")
    assert adopt(tmp_path) == Lost(replace(own, start_time=own.start_time - 1))


def test_adopt_lost_and_end_its_leftovers(attempts: Attempts, tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: open('t', 'w').write(f'{os.getpid()} {child}'); os.rename('t', 'pids')\n"
        "else: os.setsid()\n"
        "time.sleep(1000)\n"
    )
    launch = attempts.launch(python(code))
    supervisor = attempts.start(launch)
    pids = [int(pid) for pid in written(tmp_path / "pids").split()]
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    found = adopt(launch.run_dir)
    assert isinstance(found, Lost)
    assert found.identity.pid == supervisor.pid
    assert not any(gone(pid) for pid in pids)
    leftovers.end_leftovers(found.identity, 0.2)
    assert all(gone(pid) for pid in pids)
    assert isinstance(adopt(launch.run_dir), Lost)


def test_leftovers_that_go_when_asked_are_not_killed(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("trap ': > asked; exit' TERM; : > ready; while :; do sleep 0.02; done"))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    found = adopt(launch.run_dir)
    assert isinstance(found, Lost)
    leftovers.end_leftovers(found.identity, 1000.0)
    assert (tmp_path / "asked").exists()


def test_a_supervisor_that_breaks_says_why(attempts: Attempts) -> None:
    launch = attempts.launch(["true"], log_limit="none")
    claimed(launch.run_dir)
    attempts.wait(attempts.start(launch))
    found = adopt(launch.run_dir)
    assert isinstance(found, Lost)
    assert found.complaint is not None and found.complaint.startswith("TypeError")


def test_an_interpreter_that_is_none(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/cat")
    launch = attempts.launch(["true"])
    claimed(launch.run_dir)
    try:
        attempts.launcher.start(launch)
        told = 1
    except HostBusy:  # it has ended already
        told = 0
    attempts.hear_until(lambda: attempts.launcher.zygote is None and len(attempts.refused) == told)
    assert all(refused.failure is None for refused in attempts.refused.values())
    assert settled(launch.run_dir) == NeverStarted()
    reap_children()


def test_orders_that_a_killed_zygote_had_not_taken_are_told_of(attempts: Attempts, tmp_path: Path) -> None:
    attempts.run(attempts.launch(["true"]))
    zygote = attempts.launcher.zygote
    assert zygote is not None
    os.kill(zygote, signal.SIGSTOP)
    launches = [attempts.launch(shell("echo ran >> ran")) for _ in range(3)]
    for launch in launches:
        claimed(launch.run_dir)
        attempts.launcher.start(launch)
        assert isinstance(adopt(launch.run_dir), Starting), "its lock is on its way"
    os.kill(zygote, signal.SIGKILL)
    keys = [(launch.job_id, 1) for launch in launches]
    attempts.hear_until(lambda: len(attempts.refused) == len(launches) and attempts.launcher.zygote is None)
    assert attempts.refused == {key: NotBegun(key) for key in keys}
    assert [settled(launch.run_dir) for launch in launches] == [NeverStarted()] * 3
    reap_children()
    assert attempts.output(shell("echo again")) == "again\n", "there is another one"
    assert not (tmp_path / "ran").exists()


def test_what_was_forked_outlives_the_zygote_and_is_our_child(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("while [ ! -e go ]; do sleep 0.02; done; exit 5"))
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    stat = read_stat(supervisor.pid)
    assert stat is not None and (stat.parent, stat.session) == (os.getpid(), supervisor.pid)
    zygote = attempts.launcher.zygote
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert os.waitstatus_to_exitcode(attempts.finish(launch, supervisor).wait_status or 0) == 5
    attempts.hear_until(lambda: attempts.launcher.zygote is None)
    reap_children()


def test_a_supervisor_has_nothing_of_the_zygote(attempts: Attempts, tmp_path: Path) -> None:
    """Neither its channel, nor another attempt's orders; and it is called what it is."""
    launches = [attempts.launch(shell("until [ -e go ]; do sleep 0.02; done"), env={"SECRET": "x"}) for _ in range(2)]
    started = [(launch, attempts.start(launch)) for launch in launches]
    for launch, supervisor in started:
        until((launch.run_dir / "identity").exists)
        files = {os.readlink(f"/proc/{supervisor.pid}/fd/{name}") for name in os.listdir(f"/proc/{supervisor.pid}/fd")}
        assert files <= {"/dev/null", str(launch.run_dir / "lock"), str(launch.run_dir), launch.log_path} | {
            name for name in files if name.startswith(("pipe:", f"{launch.run_dir}/result."))
        } | {name for name in files if name.startswith("socket:")}
        assert len([name for name in files if name.startswith("socket:")]) == 1, "its own channel"
        words = Path(f"/proc/{supervisor.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert words == [b"gpuq supervisor", b"job=%d" % launch.job_id, b"attempt=1", os.fsencode(launch.run_dir)]
        assert is_supervisor(supervisor.pid, launch.run_dir)
    zygote = attempts.launcher.zygote
    assert Path(f"/proc/{zygote}/cmdline").read_bytes().rstrip(b"\0") == b"gpuq zygote"
    assert b"SECRET" not in Path(f"/proc/{zygote}/environ").read_bytes()
    (tmp_path / "go").touch()
    for pair in started:
        attempts.finish(*pair)


def test_an_interpreter_that_is_gone(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    launch = attempts.launch(["true"])
    claimed(launch.run_dir)
    with pytest.raises(LaunchError, match="/no/such/python, is gone"):
        attempts.launcher.start(launch)
    assert adopt(launch.run_dir) == NeverStarted()


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"pid": "x", "start_time": 1, "boot_id": "b"}', "\xff"])
def test_a_damaged_identity_is_not_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match="damaged"):
        adopt(tmp_path)


def test_a_lock_that_is_a_link_is_not_followed(attempts: Attempts, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be read"):
        adopt(run_dir)
    with pytest.raises(LaunchError, match="already started"):
        attempts.launcher.start(attempts.launch(["true"], run_dir=run_dir, env=SHELL_ENV))


def test_many_at_once(attempts: Attempts) -> None:
    launches = [attempts.launch(shell(f"echo {n}; exit {n}")) for n in range(40)]
    started = [(launch, attempts.start(launch)) for launch in launches]
    codes = [os.waitstatus_to_exitcode(attempts.finish(*pair).wait_status or 0) for pair in started]
    assert codes == list(range(40))
    assert [int(Path(launch.log_path).read_text()) for launch in launches] == list(range(40))
