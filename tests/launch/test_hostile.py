"""Jobs that remove, replace and lock up what is ours, stop their supervisor or fork without end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuq.errors import LaunchError, StoreError
from gpuq.launch import adoption, launcher, leftovers, supervisors
from gpuq.launch.adoption import Ended, Gone, Lost, NeverStarted, Running, adopt
from gpuq.launch.identity import members
from gpuq.launch.outcome import judge, log_tail, read_result
from gpuq.launch.runfolder import valid_text
from gpuq.model import Failure
from tests.harness import Box
from tests.launch.conftest import SHELL_ENV, Attempts, claimed, gone, python, shell, unprivileged, until, written

ROOT = str(Path(launcher.__file__).parents[2])


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.with_name("elsewhere").write_text('{"pid": 1, "start_time": 1, "boot_id": "b"}')
    path.symlink_to("elsewhere")


def make_huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse


def make_unreadable(path: Path) -> None:
    path.touch(mode=0)


def make_nested(path: Path) -> None:
    path.write_text("[" * 60_000)


NOT_FILES = [make_fifo, make_folder, make_link]
NOT_READABLE = [*NOT_FILES, make_huge, make_unreadable, make_nested]


# --- files that are none --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*NOT_FILES, make_unreadable])
@pytest.mark.parametrize("name", ["lock", "identity", "result"])
def test_what_stands_in_place_of_a_file_is_an_error_and_no_wait(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    with pytest.raises(StoreError, match=f"{name} cannot be read"):
        unprivileged(lambda: isinstance(adopt(tmp_path), Ended) and read_result(tmp_path))


@pytest.mark.parametrize("make", NOT_READABLE)
def test_an_identity_that_makes_no_sense_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "identity")
    with pytest.raises(StoreError, match=r"identity (cannot be read|is damaged)"):
        unprivileged(lambda: adopt(tmp_path))


@pytest.mark.parametrize("pid", ["0", "-1", "1e999", str(2**40), "9" * 5000])
def test_an_identity_of_an_impossible_number_is_an_error(tmp_path: Path, pid: str) -> None:
    (tmp_path / "identity").write_text(f'{{"pid": {pid}, "start_time": 1, "boot_id": "b"}}')
    with pytest.raises(StoreError, match="damaged"):
        adopt(tmp_path)


@pytest.mark.parametrize("make", NOT_READABLE)
def test_a_result_that_makes_no_sense_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "result")
    with pytest.raises(StoreError, match=r"result .*(cannot be read|is damaged)"):
        unprivileged(lambda: read_result(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("wait_status", "4991"),  # stopped, not ended
        ("wait_status", str(2**70)),
        ("ended_at", "NaN"),
        ("started_at", "1e300"),
        ("log_start", "-1"),
        ("max_rss_bytes", str(2**63)),
        ("leftovers", "Infinity"),
    ],
)
def test_a_result_with_values_that_cannot_be_is_an_error(attempts: Attempts, field: str, value: str) -> None:
    launch = attempts.launch(["true"])
    attempts.run(launch)
    text = (launch.run_dir / "result").read_text()
    before, _, rest = text.partition(f'"{field}":')
    end = min(at for at in (rest.find(","), rest.find("}")) if at >= 0)
    (launch.run_dir / "result").write_text(f'{before}"{field}":{value}{rest[end:]}')
    with pytest.raises(StoreError, match="damaged"):
        read_result(launch.run_dir)


@pytest.mark.parametrize("make", [*NOT_FILES, make_unreadable])
def test_a_lock_that_is_none_has_no_complaint_and_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "lock")
    (tmp_path / "identity").write_text('{"pid": 1, "start_time": 1, "boot_id": "b"}')
    found = unprivileged(lambda: adopt(tmp_path))
    assert isinstance(found, Lost)
    assert found.complaint is None
    unprivileged(lambda: adoption.wait_unlocked(tmp_path))


def test_the_tail_of_a_log_from_an_impossible_offset(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"text")
    assert log_tail(tmp_path / "log", 2**80) == b""
    assert log_tail(f"{tmp_path}/l\0g", 0) == b""


def test_without_free_file_numbers_nothing_is_said_of_an_attempt(attempts: Attempts) -> None:
    launch = attempts.launch(shell("exec sleep 1000"))
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    (launch.run_dir / "lock").unlink()  # so that all of /proc is looked at
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from gpuq.errors import StoreBusy\n"
        "from gpuq.launch import adoption\n"
        "top = os.open('/dev/null', os.O_RDONLY)\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "busy = 0\n"
        "for limit in range(top, top + 20):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))\n"
        "    try:\n"
        "        found = adoption.adopt(Path(sys.argv[1]))\n"
        "    except StoreBusy:\n"
        "        busy += 1\n"
        "        continue\n"
        "    print(busy, found.supervisor.pid)\n"
        "    break\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(launch.run_dir)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.stderr == ""
    busy, pid = map(int, done.stdout.split())
    assert busy >= 1
    assert pid == supervisor.pid
    launcher.end(supervisor)
    attempts.finish(launch, supervisor)


# --- never twice, never lost while it lives -------------------------------------------------------

REMOVALS = {
    "lock": "rm -f lock",
    "identity": "rm -f identity",
    "both": "rm -f lock identity",
    "lock replaced": "rm -f lock; : > lock",
    "lock is a pipe": "rm -f lock; mkfifo lock",
    "identity is a folder": "rm -f identity; mkdir identity",
    "identity is damaged": "echo x > identity",
    "identity of the job": (
        'echo "{\\"pid\\": $$, \\"start_time\\": $(cut -d " " -f 22 /proc/$$/stat),'
        ' \\"boot_id\\": \\"$(cat /proc/sys/kernel/random/boot_id)\\"}" > identity'
    ),
    "a result of its own": "rm -f lock; echo {} > result",
}


@pytest.mark.parametrize("what", REMOVALS)
def test_a_job_that_removes_our_files_is_still_found_running(attempts: Attempts, tmp_path: Path, what: str) -> None:
    run_dir = tmp_path / "run-1"
    script = f"(cd {run_dir} && {REMOVALS[what]}); : > ready; while [ ! -e go ]; do sleep 0.02; done; exit 7"
    launch = attempts.launch(shell(script))
    assert launch.run_dir == run_dir
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    found = adopt(run_dir)
    assert isinstance(found, Running)
    assert found.supervisor.pid == supervisor.pid
    supervisors.reap(found.supervisor)
    (tmp_path / "go").touch()
    result = attempts.finish(launch, supervisor)
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7
    assert isinstance(adopt(run_dir), Ended)


def test_a_job_that_removes_its_run_folder_runs_until_it_is_gone(attempts: Attempts, tmp_path: Path) -> None:
    script = f"rm -r {tmp_path}/run-1; : > ready; while [ ! -e go ]; do sleep 0.02; done"
    launch = attempts.launch(shell(script))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    found = adopt(launch.run_dir)
    assert isinstance(found, Running)
    assert found.supervisor.pid == supervisor.pid
    supervisors.reap(found.supervisor)
    (tmp_path / "go").touch()
    attempts.wait(supervisor)
    assert adopt(launch.run_dir) == Gone()


def test_the_supervisor_of_another_folder_is_not_taken_for_ours(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("exec sleep 1000"))
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    other = launch.run_dir.with_name(launch.run_dir.name + "0")
    other.mkdir()
    (other / "identity").write_bytes((launch.run_dir / "identity").read_bytes())
    found = adopt(other)
    assert isinstance(found, Lost)
    claimed(tmp_path)
    assert adopt(tmp_path) == NeverStarted()
    launcher.end(supervisor)
    attempts.finish(launch, supervisor)


# --- what outlives its supervisor -----------------------------------------------------------------

#: Leaves the session and loses its parent.
AWAY = (
    "import os, signal, time\n"
    "signal.signal(15, signal.SIG_IGN)\n"
    "if not os.fork():\n"
    "    os.setsid()\n"
    "    if os.fork(): os._exit(0)\n"
    "    os.setsid()\n"
    "    open('t', 'w').write(str(os.getpid())); os.rename('t', 'away')\n"
    "    time.sleep(1000)\n"
    "os.wait()\n"
    "time.sleep(1000)\n"
)


@pytest.mark.parametrize("removed", ["nothing", "lock and identity", "everything"])
def test_a_process_that_left_the_session_of_a_killed_supervisor_is_ended(
    attempts: Attempts, tmp_path: Path, removed: str
) -> None:
    run_dir = tmp_path / "run-1"
    launch = attempts.launch(python(AWAY), env={**SHELL_ENV, "GPUQ_JOB_DIR": f"{run_dir}/work"})
    supervisor = attempts.start(launch)
    away = int(written(tmp_path / "away"))
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    if removed != "nothing":
        (run_dir / "lock").unlink()
        (run_dir / "identity").unlink()
    if removed == "everything":
        shutil.rmtree(run_dir)
    found = adopt(run_dir)
    assert isinstance(found, Lost)
    assert not gone(away)
    leftovers.end_leftovers(found.identity, 0.1, run_dir)
    assert gone(away)
    assert not list(run_dir.glob("result*"))
    if removed == "everything":
        assert found.complaint == "its run folder is gone"
        assert adopt(run_dir) == Gone()


@pytest.mark.parametrize("identity", ["there", "removed", "damaged", "damaged alone"])
def test_a_false_result_does_not_save_what_was_left_behind(attempts: Attempts, tmp_path: Path, identity: str) -> None:
    run_dir = tmp_path / "run-1"
    launch = attempts.launch(python(AWAY), env={**SHELL_ENV, "GPUQ_JOB_DIR": f"{run_dir}/work"})
    supervisor = attempts.start(launch)
    away = int(written(tmp_path / "away"))
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    if identity != "damaged alone":
        (run_dir / "result").write_text("{}")
    if identity != "there":
        (run_dir / "identity").unlink()
    if identity.startswith("damaged"):
        (run_dir / "identity").write_text("?")
    found = adopt(run_dir)
    assert isinstance(found, Lost)
    assert "is damaged" in (found.complaint or "")
    leftovers.end_leftovers(found.identity, 0.1, run_dir)
    assert gone(away)


def test_we_are_no_leftover_though_our_environment_says_so(tmp_path: Path) -> None:
    claimed(tmp_path / "run")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from gpuq.launch import adoption\n"
        "print(adoption.adopt(Path(sys.argv[1])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ROOT, "GPUQ_JOB_DIR": f"{tmp_path}/run/work"},
    )
    assert done.stdout == "NeverStarted(complaint=None)\n"


# --- stopping and forking -------------------------------------------------------------------------


def test_a_job_that_stopped_its_supervisor_can_be_ended(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("kill -STOP $PPID; : > ready; exec sleep 1000"))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).ended


def test_what_forks_all_the_time_is_killed_in_one_go(tmp_path: Path) -> None:
    forker = (
        "import os, signal\n"
        "os.setsid()\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "for _ in range(20000):\n"
        "    if os.fork(): os._exit(0)\n"
        f"open({str(tmp_path / 'lived')!r}, 'w').close()\n"
    )
    code = (
        "import os, signal, subprocess, sys, time\n"
        "from gpuq.launch.parts import processes, start\n"
        "start.become_subreaper()\n"
        "for _ in range(4):\n"
        f"    subprocess.Popen([sys.executable, '-I', '-S', '-c', {forker!r}])\n"
        "while len([stat for stat in processes.descendants() if stat.gone]) < 40:\n"
        "    pass\n"
        "left = processes.descendants()\n"
        "processes.signal_all(left, time.monotonic(), signal.SIGKILL)\n"
        "while True:\n"
        "    try:\n"
        "        os.wait()\n"
        "    except ChildProcessError:\n"
        "        break\n"
    )
    env = {**os.environ, "PYTHONPATH": ROOT}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert not (tmp_path / "lived").exists()


def test_what_forks_all_the_time_is_ended_without_its_supervisor(attempts: Attempts, tmp_path: Path) -> None:
    forker = (
        "import os, signal, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "if os.fork(): time.sleep(1000)\n"
        "os.setsid()\n"
        "open('t', 'w').write('x'); os.rename('t', 'forks')\n"
        "for _ in range(20000):\n"
        "    if os.fork(): os._exit(0)\n"
        "open('lived', 'w').close()\n"
    )
    run_dir = tmp_path / "run-1"
    launch = attempts.launch(python(forker), env={**SHELL_ENV, "GPUQ_JOB_DIR": f"{run_dir}/work"})
    supervisor = attempts.start(launch)
    until((tmp_path / "forks").exists)
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    found = adopt(run_dir)
    assert isinstance(found, Lost)
    leftovers.end_leftovers(found.identity, 0.0, run_dir)
    assert members(found.identity, run_dir) == []
    assert not (tmp_path / "lived").exists()


def test_a_thousand_that_die_at_once_are_all_taken(attempts: Attempts) -> None:
    code = (
        "import os, signal\n"
        "os.kill(os.getppid(), signal.SIGSTOP)\n"
        "for _ in range(1000):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        if not os.fork(): os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "os.kill(os.getppid(), signal.SIGCONT)\n"
        "os._exit(7)\n"
    )
    result = attempts.run(attempts.launch(python(code)))
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7


# --- true results ---------------------------------------------------------------------------------

OBSTACLES = {
    "its room removed": "rm result.*.tmp",
    "its room replaced": "for f in result.*.tmp; do rm $f; ln -s /dev/null $f; done",
    "its room a folder": "for f in result.*.tmp; do rm $f; mkdir $f; done",
    "temporary folder": "mkdir result.tmp",
    "temporary link": "ln -s /dev/full result.tmp",
    "temporary leftover": "echo x > result.tmp; chmod 400 result.tmp",
    "folder": "mkdir result",
    "full folder": "mkdir result; : > result/x",
    "link": "ln -s /dev/null result",
    "pipe": "mkfifo result",
    "read-only run folder": "chmod 500 .",
    "folder in a read-only run folder": "mkdir result; chmod 500 result .",
    "run folder that nobody enters": "chmod 000 .",
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_a_true_result_is_not_lost_for_a_trifle(attempts: Attempts, tmp_path: Path, what: str) -> None:
    launch = attempts.launch(shell(f"cd {tmp_path}/run-1 && {OBSTACLES[what]} && exit 7"))
    supervisor = unprivileged(lambda: attempts.start(launch))
    attempts.wait(supervisor)
    assert isinstance(unprivileged(lambda: adopt(launch.run_dir)), Ended)
    result = unprivileged(lambda: read_result(launch.run_dir))
    assert result is not None
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7


@pytest.mark.parametrize("obstacle", [make_folder, make_link, make_fifo])
def test_an_identity_is_written_whatever_stands_there(attempts: Attempts, obstacle: Callable[[Path], None]) -> None:
    launch = attempts.launch(shell("exit 7"))
    launch.run_dir.mkdir()
    obstacle(launch.run_dir / "identity")
    obstacle(launch.run_dir / "identity.tmp")
    result = attempts.run(launch)
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7


def test_the_end_of_a_supervisor_by_its_job_is_named(box: Box) -> None:
    ended = box.wait(box.submit("sh", "-c", "kill -KILL $PPID; sleep 1000"))
    assert ended["failure"] == "lost"
    assert ended["note"] == "its supervisor was ended by SIGKILL, which gpuq did not send"


# --- text -----------------------------------------------------------------------------------------


def test_text_that_is_not_utf8() -> None:
    assert valid_text("plain é") == "plain é"
    assert valid_text(os.fsdecode(b"a\xffb")) == "a\\xffb"
    assert valid_text("a\ud800b") == "a\\ud800b"


def test_a_command_that_is_not_text_fails_with_text(attempts: Attempts) -> None:
    launch = attempts.launch([os.fsdecode(b"/no/such/\xff")])
    result = attempts.run(launch)
    assert result.start_failure is not None
    assert "no such file: /no/such/\\xff" in result.start_failure.text
    outcome = judge(result, b"")
    assert outcome.failure == Failure.LAUNCH
    assert outcome.note is not None
    outcome.note.encode()


def test_a_run_folder_whose_name_is_not_text(attempts: Attempts, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).touch()
    run_dir = tmp_path / os.fsdecode(b"\xff/run")
    with pytest.raises(LaunchError, match="cannot be made") as caught:
        attempts.launcher.start(attempts.launch(["true"], run_dir=run_dir))
    caught.value.message.encode()
    run_dir = tmp_path / os.fsdecode(b"\xfe")
    run_dir.mkdir()
    make_fifo(run_dir / "result")
    with pytest.raises(StoreError) as store:
        adopt(run_dir)
    store.value.message.encode()


def test_a_complaint_that_is_not_text(tmp_path: Path) -> None:
    claimed(tmp_path)
    (tmp_path / "lock").write_bytes(b"one\nbroken \xff\n")
    assert adopt(tmp_path) == NeverStarted("broken \\xff")
