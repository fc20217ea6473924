"""Suspended jobs, their clock, and the warning before the time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpuq.launch import launcher
from gpuq.launch.identity import all_processes, job_of
from gpuq.launch.parts.processes import signal_handlers
from gpuq.launch.supervisors import Supervisor
from tests.launch.conftest import Attempts, child, gone, python, shell, until, written


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def states(supervisor: Supervisor) -> set[str]:
    """The states of all processes of a job."""
    shims = {supervisor.pid: 1}
    found = [stat for stat in all_processes().values() if stat.pid != supervisor.pid and job_of(stat.pid, shims)]
    return {stat.state for stat in found if not stat.gone}


def stopped(supervisor: Supervisor) -> bool:
    """Whether every process of a job is. What waits for a stopped child of its vfork(2) shows D, and cannot run."""
    if frozen(supervisor):
        return True
    return {"T"} <= states(supervisor) <= {"T", "D"}


def frozen(supervisor: Supervisor) -> bool:
    """Whether the job has a cgroup, and that is frozen with something in it."""
    words = Path(f"/proc/{supervisor.pid}/cmdline").read_text().rstrip("\0").split("\0")
    path = Path(words[-1]) / "identity"  # the run folder comes last
    identity = json.loads(path.read_text()) if path.exists() else {}
    if "cgroup" not in identity:
        return False  # it has none, or is no supervisor yet
    events = Path(identity["cgroup"], "cgroup.events").read_text().split("\n")
    return {"populated 1", "frozen 1"} <= set(events)


#: A child in the group, one in a session of its own, and one without a parent; all are busy.
FAMILY = (
    "import os, time\n"
    "def busy(name):\n"
    "    open(name, 'w').close()\n"
    "    while True: time.sleep(0.001)\n"
    "if not os.fork(): busy('in-group')\n"
    "if not os.fork():\n"
    "    os.setsid()\n"
    "    if not os.fork(): busy('away')\n"
    "    os._exit(0)\n"
    "busy('main')\n"
)
#: The chain leaves its group at every step.
CHAIN = (
    "import os, time\n"
    "if os.fork():\n"
    "    while not os.path.exists('go'): time.sleep(0.01)\n"
    "    os._exit(0)\n"
    "open('ready', 'w').close()\n"
    "while True:\n"
    "    if os.fork(): os._exit(0)\n"
    "    os.setsid(); time.sleep(0.002)\n"
)


def test_every_process_stops_and_goes_on(both: Attempts, tmp_path: Path) -> None:
    launch = both.launch(python(FAMILY))
    supervisor = both.start(launch)
    for name in ("in-group", "away", "main"):
        until((tmp_path / name).exists)
    for _ in range(2):
        launcher.suspend(supervisor)
        until(lambda: stopped(supervisor))
        launcher.suspend(supervisor)
        launcher.resume(supervisor)
        until(lambda: "T" not in states(supervisor))
        launcher.resume(supervisor)
    launcher.end(supervisor)
    result = both.finish(launch, supervisor)
    assert result.wait_status == signal.SIGTERM
    assert result.suspended_seconds > 0


def test_what_forks_away_all_the_time_stops(both: Attempts, tmp_path: Path) -> None:
    launch = both.launch(python(CHAIN))
    supervisor = both.start(launch)
    until((tmp_path / "ready").exists)
    launcher.suspend(supervisor)
    until(lambda: stopped(supervisor))
    (tmp_path / "go").touch()
    launcher.resume(supervisor)
    assert both.finish(launch, supervisor).wait_status == 0


def test_what_the_job_stopped_itself_stays_stopped(both: Attempts, tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "child = os.fork()\n"
        "if not child: os.kill(os.getpid(), 19); os._exit(0)\n"
        "os.waitpid(child, os.WUNTRACED)\n"
        "open('t', 'w').write(f'{os.getpid()} {child}'); os.rename('t', 'pids')\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "open('done', 'w').close()\n"
        "while not os.path.exists('end'): time.sleep(0.01)\n"
    )
    launch = both.launch(python(code))
    supervisor = both.start(launch)
    main, child = map(int, written(tmp_path / "pids").split())
    launcher.suspend(supervisor)
    until(lambda: state(main) == "T" or frozen(supervisor))
    (tmp_path / "go").touch()
    launcher.resume(supervisor)
    until((tmp_path / "done").exists)
    assert state(child) == "T"
    (tmp_path / "end").touch()
    assert both.finish(launch, supervisor).wait_status == 0
    assert gone(child)


@pytest.mark.parametrize("asked", ["s", "srs", "rs", "rrsrs"])
def test_the_last_word_counts_also_while_the_supervisor_starts(attempts: Attempts, asked: str) -> None:
    launch = attempts.launch(shell("exec sleep 1000"))
    supervisor = attempts.start(launch)
    for letter in asked:
        (launcher.suspend if letter == "s" else launcher.resume)(supervisor)
    until(lambda: stopped(supervisor))
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).ended


def test_a_job_that_was_suspended_and_resumed_before_it_began_runs(attempts: Attempts) -> None:
    launch = attempts.launch(shell("exit 7"))
    supervisor = attempts.start(launch)
    launcher.suspend(supervisor)
    launcher.resume(supervisor)
    assert attempts.finish(launch, supervisor).wait_status == 7 << 8


def test_a_job_that_stopped_its_supervisor_is_suspended(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("kill -STOP $PPID; : > ready; while :; do sleep 0.01; done"))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    until(lambda: state(supervisor.pid) == "T")
    launcher.suspend(supervisor)
    until(lambda: stopped(supervisor))
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).ended


def test_the_clock_stands_still_meanwhile(both: Attempts, tmp_path: Path) -> None:
    launch = both.launch(shell(": > ready; exec sleep 1000"), time_limit=0.6)
    supervisor = both.start(launch)
    until((tmp_path / "ready").exists)
    launcher.suspend(supervisor)
    until(lambda: stopped(supervisor))
    late = time.monotonic() + 1.0
    until(lambda: time.monotonic() > late)
    assert stopped(supervisor)
    launcher.resume(supervisor)
    result = both.finish(launch, supervisor)
    assert result.timed_out
    assert result.suspended_seconds >= 0.9
    assert result.ended_at - result.started_at >= 1.6


def test_a_suspended_job_can_be_ended_at_once(both: Attempts, tmp_path: Path) -> None:
    script = "trap 'exit 7' TERM; : > ready; while :; do sleep 0.01; done"
    launch = both.launch(shell(script), grace=1000.0)
    supervisor = both.start(launch)
    until((tmp_path / "ready").exists)
    launcher.suspend(supervisor)
    until(lambda: stopped(supervisor))
    launcher.end(supervisor)
    result = both.finish(launch, supervisor)
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7
    assert result.ended


def test_a_suspended_family_whose_main_process_is_killed_is_asked_to_end(both: Attempts, tmp_path: Path) -> None:
    code = (
        "import os, signal, time\n"
        "main = os.getpid()\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    signal.signal(15, lambda *a: (open('asked', 'w').close(), os._exit(0)))\n"
        "    open('t', 'w').write(str(main)); os.rename('t', 'pid')\n"
        "while True: time.sleep(0.01)\n"
    )
    launch = both.launch(python(code), grace=1000.0)
    supervisor = both.start(launch)
    main = int(written(tmp_path / "pid"))
    launcher.suspend(supervisor)
    until(lambda: stopped(supervisor))
    os.kill(main, signal.SIGKILL)
    assert both.finish(launch, supervisor).wait_status == signal.SIGKILL
    assert (tmp_path / "asked").exists()


# --- the warning ----------------------------------------------------------------------------------

WARNED = python(
    "import os, signal, time\n"
    "signal.signal(signal.SIGUSR1, lambda *a: os.write(1, b'warned\\n'))\n"
    "open('ready', 'w').close()\n"
    "while True: time.sleep(1)\n"
)


def test_a_warning_comes_once_and_before_the_limit(attempts: Attempts) -> None:
    launch = attempts.launch(WARNED, time_limit=2.0, warn=(signal.SIGUSR1, 0.5))
    result = attempts.run(launch)
    assert result.timed_out
    assert Path(launch.log_path).read_text() == "warned\n"


def test_a_job_that_ends_when_it_is_warned_did_not_time_out(attempts: Attempts) -> None:
    code = "import os, signal, time; signal.signal(10, lambda *a: os._exit(5)); time.sleep(1000)"
    result = attempts.run(attempts.launch(python(code), time_limit=1000.0, warn=(signal.SIGUSR1, 998.5)))
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 5
    assert not result.timed_out
    assert not result.ended


def test_a_warning_that_became_due_while_suspended_comes_after(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(WARNED, time_limit=2.0, warn=(signal.SIGUSR1, 0.5))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    launcher.suspend(supervisor)
    until(lambda: stopped(supervisor))
    late = time.monotonic() + 2.0
    until(lambda: time.monotonic() > late)
    assert Path(launch.log_path).read_text() == ""
    launcher.resume(supervisor)
    assert attempts.finish(launch, supervisor).timed_out
    assert Path(launch.log_path).read_text() == "warned\n"


#: A process says what is to happen when it is warned, then that it is ready, and waits.
READY = "sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(1000)"


@pytest.mark.parametrize(
    ("says", "handled"),
    [
        ("pass", False),
        ("signal.signal(10, lambda *a: os._exit(0))", True),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [10])", True),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, [10]); threading.Thread(target=time.sleep, args=(1e3,)).start()",
            True,
        ),
        (
            "threading.Thread(target=time.sleep, args=(1e3,)).start(); signal.pthread_sigmask(signal.SIG_BLOCK, [10])",
            False,
        ),
        ("signal.signal(10, signal.SIG_IGN)", False),
        ("signal.signal(12, print); signal.pthread_sigmask(signal.SIG_BLOCK, [9, 11, 12])", False),
    ],
    ids=["nothing", "catches", "blocks", "all threads block", "one thread does not", "ignores", "handles others"],
)
def test_who_handles_a_signal(says: str, handled: bool) -> None:
    code = f"import os, signal, sys, threading, time\n{says}\n{READY}"
    with child(sys.executable, "-ISc", code, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert signal_handlers(signal.SIGUSR1) == handled
        assert handled or process.poll() is None


@pytest.mark.parametrize("wrapper", ["{}", "setsid {}", "timeout 1000 {}"])
def test_a_wrapper_lives_to_see_what_it_runs_save(attempts: Attempts, wrapper: str) -> None:
    saves = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGUSR1, lambda *a: (time.sleep(0.2), os.write(1, b'saved '), os._exit(3)))\n"
        "time.sleep(1000)\n"
    )
    run = wrapper.format(f"{sys.executable} -ISc '{saves.replace(chr(39), chr(34))}'")
    script = f"{run}; echo python ended with $?"
    launch = attempts.launch(shell(script), time_limit=1000.0, warn=(signal.SIGUSR1, 998.0))
    result = attempts.run(launch)
    assert Path(launch.log_path).read_text() == "saved python ended with 3\n"
    assert (result.wait_status, result.warned, result.warned_processes) == (0, signal.SIGUSR1, 1)


def test_a_job_that_handles_no_warning_runs_to_its_limit(attempts: Attempts) -> None:
    result = attempts.run(attempts.launch(shell("sleep 1000; true"), time_limit=1.0, warn=(signal.SIGUSR1, 0.5)))
    assert result.timed_out
    assert result.wait_status == signal.SIGTERM
    assert (result.warned, result.warned_processes) == (signal.SIGUSR1, 0)


def test_without_a_limit_nobody_is_warned(attempts: Attempts) -> None:
    assert attempts.run(attempts.launch(shell("exit 3"), warn=(signal.SIGUSR1, 5.0))).wait_status == 3 << 8
