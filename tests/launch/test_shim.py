"""The supervisor, with real jobs: how they start, how they end, and what is written down."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.launch import adoption, launcher, leftovers
from gpuq.launch.outcome import read_result
from gpuq.launch.parts import rehearse
from gpuq.launch.parts.files import to_json
from tests.launch.conftest import SHELL_ENV, Attempts, gone, python, shell, until, written

IGNORE_TERM = "import signal,sys; signal.signal(15, signal.SIG_IGN); "
#: Leaves the group and the session, and its parent, as daemons do.
DAEMONISE = (
    "import os,sys,time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        {before}\n"
    "        open('pid.tmp', 'w').write(str(os.getpid())); os.rename('pid.tmp', 'pid')\n"
    "        time.sleep(1000)\n"
    "    os._exit(0)\n"
    "os.wait()\n"
    "while not os.path.exists('pid'): time.sleep(0.01)\n"
)


# --- how jobs end ---------------------------------------------------------------------------------


def test_every_exit_code_is_told_truly(attempts: Attempts) -> None:
    for first in range(0, 256, 16):
        launches = [attempts.launch(shell(f"exit {code}")) for code in range(first, first + 16)]
        started = [(launch, attempts.start(launch)) for launch in launches]
        results = [attempts.finish(*pair) for pair in started]
        assert [os.waitstatus_to_exitcode(r.wait_status or 0) for r in results] == list(range(first, first + 16))


@pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 10, 11, 13, 15, 24, 40])
def test_signals_are_told_truly(attempts: Attempts, number: int) -> None:
    result = attempts.run(attempts.launch(shell(f"kill -{number} $$")))
    assert result.wait_status is not None
    assert os.WIFSIGNALED(result.wait_status)
    assert os.WTERMSIG(result.wait_status) == number
    assert not result.ended
    assert not result.timed_out


def test_a_signal_to_its_own_group_does_not_reach_the_supervisor(attempts: Attempts) -> None:
    result = attempts.run(attempts.launch(shell("kill -INT 0; exit 3")))
    assert result.wait_status == signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE])
def test_the_supervisor_ignores_what_is_not_for_it(attempts: Attempts, tmp_path: Path, number: int) -> None:
    launch = attempts.launch(shell("while [ ! -e go ]; do sleep 0.02; done"))
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    signal.pidfd_send_signal(supervisor.pidfd, number)
    (tmp_path / "go").touch()
    assert attempts.finish(launch, supervisor).wait_status == 0


def test_a_time_limit_and_its_warning_hold_after_the_daemon_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gpuq.launch.launcher import Launch, Launcher\n"
        "from tests.launch.conftest import answer\n"
        "folder = Path(sys.argv[1])\n"
        "argv, log = (sys.executable, '-ISc', sys.argv[2]), str(folder / 'log')\n"
        "starter = Launcher()\n"
        "starter.start(Launch(1, 1, folder / 'run', argv, '/', {}, log, True, 0o22, (), 1.5, 5.0, (10, 0.5)))\n"
        "answer(starter)\n"
        "print('started', flush=True)\n"
        "time.sleep(1000)\n"
    )
    root = str(Path(launcher.__file__).parents[2])
    job = "import os, time, signal; signal.signal(10, lambda *a: os.write(1, b'warned')); time.sleep(1000)"
    daemon = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), job],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert daemon.stdout is not None
    with daemon.stdout:
        assert daemon.stdout.readline() == b"started\n"
        daemon.kill()
        daemon.wait()
    adoption.wait_unlocked(tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result.timed_out
    assert result.wait_status == signal.SIGTERM
    assert not result.ended
    assert (tmp_path / "log").read_text() == "warned"


def test_a_job_that_exits_on_term_keeps_its_exit_code(attempts: Attempts) -> None:
    launch = attempts.launch(shell("trap 'exit 7' TERM; : > ready; while :; do sleep 0.02; done"), grace=60.0)
    supervisor = attempts.start(launch)
    until((Path(launch.cwd) / "ready").exists)
    launcher.end(supervisor)
    result = attempts.finish(launch, supervisor)
    assert result.ended
    assert not result.timed_out
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7


def test_a_job_that_ignores_term_is_killed(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(python(IGNORE_TERM + "import time; open('ready', 'w'); time.sleep(1000)"))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    launcher.end(supervisor)
    result = attempts.finish(launch, supervisor)
    assert result.wait_status == signal.SIGKILL
    assert result.ended


def test_asking_again_and_again_does_not_put_off_the_kill(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(python(IGNORE_TERM + "import time; open('ready', 'w'); time.sleep(1000)"), grace=1.0)
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)

    def ended() -> bool:
        launcher.end(supervisor)
        return gone(supervisor.pid)

    until(ended)
    assert attempts.finish(launch, supervisor).wait_status == signal.SIGKILL


def test_a_request_to_end_is_not_lost_while_the_supervisor_starts(attempts: Attempts) -> None:
    for _ in range(10):
        launch = attempts.launch(shell("exec sleep 1000"), grace=60.0)
        supervisor = attempts.start(launch)
        launcher.end(supervisor)
        result = attempts.finish(launch, supervisor)
        assert result.ended
        assert result.wait_status == signal.SIGTERM


def test_a_stopped_job_is_ended_within_its_grace(attempts: Attempts) -> None:
    launch = attempts.launch(shell("kill -STOP $$"), grace=1000.0)
    supervisor = attempts.start(launch)
    status = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
    until(lambda: any("T (stopped)" in Path(f"/proc/{pid}/status").read_text() for pid in status.read_text().split()))
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).wait_status == signal.SIGTERM


def test_a_job_without_open_files_is_held_to_its_limit(attempts: Attempts) -> None:
    code = "import os, time; os.closerange(0, 1000); time.sleep(1000)"
    result = attempts.run(attempts.launch(python(code), time_limit=0.3))
    assert result.timed_out
    assert result.wait_status == signal.SIGTERM


# --- what jobs leave behind -----------------------------------------------------------------------


@pytest.mark.parametrize("before", ["pass", "import signal; signal.signal(15, signal.SIG_IGN)"])
def test_a_daemon_that_a_job_left_is_ended(attempts: Attempts, tmp_path: Path, before: str) -> None:
    result = attempts.run(attempts.launch(python(DAEMONISE.format(before=before))))
    assert result.wait_status == 0
    assert result.leftovers == 1
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_stopped_daemon_that_a_job_left_is_ended_within_its_grace(attempts: Attempts, tmp_path: Path) -> None:
    code = DAEMONISE.format(before="pass").replace("time.sleep(1000)", "os.kill(os.getpid(), 19)")
    pid = tmp_path / "pid"
    launch = attempts.launch(python(code), grace=1000.0)
    assert attempts.run(launch).wait_status == 0
    assert gone(int(pid.read_text()))


def test_background_children_are_ended(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("sleep 1000 & echo $! > pids; sleep 1000 & echo $! >> pids; exit 4"))
    result = attempts.run(launch)
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 4
    assert result.leftovers == 2
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_ending_a_job_reaches_what_left_its_group(attempts: Attempts, tmp_path: Path) -> None:
    code = IGNORE_TERM + DAEMONISE.format(before="pass") + "time.sleep(1000)\n"
    launch = attempts.launch(python(code))
    supervisor = attempts.start(launch)
    pid = int(written(tmp_path / "pid"))
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).wait_status == signal.SIGKILL
    assert gone(pid)


def test_a_job_that_keeps_forking_away_is_ended(attempts: Attempts) -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(15, signal.SIG_IGN)\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid(); time.sleep(0.005)\n"
    )
    result = attempts.run(attempts.launch(python(code)))
    assert result.wait_status == 0


def test_the_group_is_not_asked_twice(attempts: Attempts, tmp_path: Path) -> None:
    child = "import signal,time\nn=[]\nsignal.signal(15, lambda *a: (n.append(1), open('asked','a').write('x')))\n"
    child += "open('ready','w')\nwhile True: time.sleep(0.02)\n"
    (tmp_path / "child.py").write_text(child)
    launch = attempts.launch(shell(f"{sys.executable} -I -S child.py & while :; do sleep 0.02; done"), grace=1.0)
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    launcher.end(supervisor)
    attempts.finish(launch, supervisor)
    assert (tmp_path / "asked").read_text() == "x"


# --- jobs that do not start -----------------------------------------------------------------------


def make_files(folder: Path) -> None:
    (folder / "plain").write_text("hello\n")
    (folder / "nohashbang").write_text("exit 0\n")
    (folder / "nohashbang").chmod(0o755)
    (folder / "nointerpreter").write_text("#!/no/such/interpreter\n")
    (folder / "nointerpreter").chmod(0o755)
    (folder / "sub").mkdir()


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("no-such-program-here", "no such file: no-such-program-here (looked in PATH)"),
        ("./missing", "no such file: ./missing"),
        ("./plain/x", "no such file: ./plain/x"),
        ("", "the command is empty"),
        ("./plain", "not executable: ./plain"),
        ("plain", "not executable: ./plain"),
        ("./sub", "not a program but a folder: ./sub"),
        ("./nohashbang", "not a program: ./nohashbang neither begins with #! nor is a binary of this machine"),
        ("./nointerpreter", "the interpreter that the first line of ./nointerpreter names does not exist"),
    ],
)
def test_a_program_that_cannot_be_started(attempts: Attempts, tmp_path: Path, program: str, text: str) -> None:
    make_files(tmp_path)
    env = {"PATH": "/no/such/folder:." if program == "plain" else "/no/such/folder:/usr/bin"}
    result = attempts.run(attempts.launch([program], env=env))
    assert result.wait_status is None
    assert result.start_failure is not None
    assert (result.start_failure.step, result.start_failure.text) == ("exec", text)


def test_a_program_is_looked_for_in_all_of_path(attempts: Attempts, tmp_path: Path) -> None:
    for folder, mode in (("a", 0o644), ("b", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text(f"#!/bin/sh\necho {folder}\n")
        (tmp_path / folder / "tool").chmod(mode)
    assert attempts.output(["tool"], env={"PATH": f"{tmp_path}/a:{tmp_path}/b"}) == "b\n"


@pytest.mark.parametrize(("cwd", "why"), [("gone", "is gone"), ("plain", "is not a folder")])
def test_a_folder_that_cannot_be_entered(attempts: Attempts, tmp_path: Path, cwd: str, why: str) -> None:
    make_files(tmp_path)
    failure = attempts.run(attempts.launch(["true"], cwd=str(tmp_path / cwd))).start_failure
    assert failure is not None
    assert (failure.step, failure.text) == ("chdir", f"the folder {tmp_path / cwd} {why}")


def test_a_variable_that_no_program_can_have(attempts: Attempts) -> None:
    failure = attempts.run(attempts.launch(["true"], env={"A": "x\0y"})).start_failure
    assert failure is not None
    assert failure.step == "exec"
    assert "null" in failure.text


def test_arguments_that_are_too_long(attempts: Attempts) -> None:
    failure = attempts.run(attempts.launch(["/bin/true", "x" * 200_000])).start_failure
    assert failure is not None
    assert "longer than the kernel allows" in failure.text


def test_logs_that_cannot_be_opened(attempts: Attempts, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    for name, why in [
        ("missing/log", "is in a folder that does not exist"),
        ("link", "is a symbolic link, which is not followed"),
        ("fifo", "is a pipe or device that nobody reads"),
        (".", "cannot be opened: Is a directory"),
    ]:
        path = f"{tmp_path}/{name}"
        failure = attempts.run(attempts.launch(["touch", "ran"], log_path=path)).start_failure
        assert failure is not None
        assert (failure.step, failure.text) == ("log", f"the log {path} {why}")
    assert not target.exists()
    assert not (tmp_path / "ran").exists()


# --- what jobs find -------------------------------------------------------------------------------


def test_the_identity_is_there_before_the_job_starts(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(["/bin/cat", str(tmp_path / "run-1" / "identity")])
    supervisor = attempts.start(launch)
    assert attempts.finish(launch, supervisor).wait_status == 0
    seen = json.loads(Path(launch.log_path).read_text())
    assert seen["pid"] == supervisor.pid
    assert seen == json.loads((launch.run_dir / "identity").read_text())


def test_bytes_that_are_not_text_arrive_as_they_are(attempts: Attempts, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe caf\xc3\xa9")
    (tmp_path / odd).mkdir()
    code = "import os,sys; print(ascii([os.fsencode(sys.argv[1]), os.environb[b'ODD'], os.getcwdb()]))"
    launch = attempts.launch([*python(code), odd], env={"ODD": odd}, cwd=str(tmp_path / odd))
    assert attempts.run(launch).wait_status == 0
    raw = os.fsencode(odd)
    assert Path(launch.log_path).read_text().strip() == ascii([raw, raw, os.fsencode(tmp_path / odd)])


def test_a_thousand_variables_arrive_and_nothing_else(attempts: Attempts) -> None:
    env = {f"NAME_{n}": f"value {n}\n" * 3 for n in range(1000)}
    launch = attempts.launch(["/bin/cat", "/proc/self/environ"], env=env)
    assert attempts.run(launch).wait_status == 0
    found = Path(launch.log_path).read_text().split("\0")
    assert sorted(found) == sorted(["", *(f"{name}={value}" for name, value in env.items())])


def test_no_value_of_the_environment_shows_in_the_supervisor(attempts: Attempts) -> None:
    launch = attempts.launch(shell("exec sleep 1000"), env={**SHELL_ENV, "TOKEN": "hush-hush"})
    supervisor = attempts.start(launch)
    until((launch.run_dir / "identity").exists)
    process = Path(f"/proc/{supervisor.pid}")
    assert b"hush" not in (process / "environ").read_bytes()
    assert b"hush" not in (process / "cmdline").read_bytes()
    assert f"job={launch.job_id}".encode() in (process / "cmdline").read_bytes()
    until(lambda: os.readlink(process / "fd" / "0") == "/dev/null")


def test_no_file_of_the_daemon_is_open_in_the_job(attempts: Attempts, tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    try:
        code = (
            "import os\n"
            "open_files = {}\n"
            "for fd in range(1000):\n"
            "    try: open_files[fd] = os.readlink(f'/proc/self/fd/{fd}')\n"
            "    except OSError: pass\n"
            "print(open_files)\n"
        )
        launch = attempts.launch(python(code))
        assert attempts.run(launch).wait_status == 0
    finally:
        os.close(secret)
    log = launch.log_path
    assert Path(log).read_text().strip() == str({0: "/dev/null", 1: log, 2: log})


def test_the_job_holds_no_lock(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell(": > ready; exec sleep 1000"))
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    found = adoption.adopt(launch.run_dir)
    assert isinstance(found, adoption.Lost)
    leftovers.end_leftovers(found.identity, 5.0)


def test_signals_are_as_in_a_fresh_login(attempts: Attempts) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        text = attempts.output(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # two are the C library's own, for its threads (nptl(7)), which posix_spawn leaves ignored until there are some
    assert [int(line.split()[1], 16) & ~(0b11 << 31) for line in text.splitlines()] == [0, 0]


def test_the_launcher_gives_its_signal_mask_back(attempts: Attempts) -> None:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2})
    try:
        attempts.run(attempts.launch(["true"]))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_session_group_folder_and_input(attempts: Attempts, tmp_path: Path) -> None:
    code = (
        "import os,sys\n"
        "print(os.getpgrp() == os.getpid(), os.getsid(0) == os.getppid(), os.getcwd(), len(sys.stdin.read()))\n"
    )
    assert attempts.output(python(code)).split() == ["True", "True", str(tmp_path), "0"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_is_the_submitters(attempts: Attempts, tmp_path: Path, umask: int) -> None:
    named = tmp_path / f"named-{umask}"
    launch = attempts.launch(shell("umask; : > made"), umask=umask, private_log=False, log_path=str(named))
    assert attempts.run(launch).wait_status == 0
    assert int(named.read_text(), 8) == umask
    for path in (named, tmp_path / "made"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_files_of_ours_are_private(attempts: Attempts) -> None:
    launch = attempts.launch(["true"], umask=0)
    assert attempts.run(launch).wait_status == 0
    assert stat.S_IMODE(launch.run_dir.stat().st_mode) == 0o700
    names = sorted(path.name for path in launch.run_dir.iterdir())
    assert names == ["identity", "lock", "result"]
    for path in [Path(launch.log_path), *launch.run_dir.iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_soft_limits_are_the_submitters_as_far_as_they_may(attempts: Attempts) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    beyond = hard + 1 if hard != resource.RLIM_INFINITY else hard
    limits = ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, 1234), (resource.RLIMIT_NOFILE, beyond), (999, 5))
    code = "import resource as r; print([r.getrlimit(n) for n in (r.RLIMIT_CORE, r.RLIMIT_CPU, r.RLIMIT_NOFILE)])"
    expected = [
        (0, resource.getrlimit(resource.RLIMIT_CORE)[1]),
        (1234, resource.getrlimit(resource.RLIMIT_CPU)[1]),
        (hard, hard),
    ]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))  # what the daemon has is not what counts
    try:
        assert attempts.output(python(code), limits=limits).strip() == str(expected)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- what is written down -------------------------------------------------------------------------


def test_a_log_is_appended_to_and_its_part_is_known(attempts: Attempts, tmp_path: Path) -> None:
    log = tmp_path / "shared.log"
    log.write_text("before\n")
    launch = attempts.launch(shell("echo out; echo err >&2"), log_path=str(log))
    result = attempts.run(launch)
    assert log.read_text() == "before\nout\nerr\n"
    assert (result.log_start, result.log_end) == (7, 15)


def test_use_of_processor_and_memory_counts_descendants(attempts: Attempts) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    x = b'x' * (96 << 20)\n"
        "    while time.process_time() < 0.3: pass\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    result = attempts.run(attempts.launch(python(code)))
    assert result.wait_status == 0
    assert result.max_rss_bytes > 96 << 20
    assert result.user_seconds + result.system_seconds >= 0.3
    assert result.started_at <= result.ended_at


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.dictionaries(st.text(), inner),
    )
)
def test_json_is_read_back_as_it_was(value: object) -> None:
    assert json.loads(to_json(value)) == value


def test_json_keeps_bytes_that_are_not_text() -> None:
    assert json.loads(to_json("\udcff")) == "\udcff"


# --- rehearsals -----------------------------------------------------------------------------------


def test_what_a_killed_zygote_left_in_memory_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearse, "MEMORY", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    others = tmp_path / "others"
    left, lives, senseless = (tmp_path / f"gpuq-{name}-x" for name in (dead.pid, os.getpid(), "１a"))
    for folder in (others, left, lives, senseless):
        folder.mkdir()
        (folder / "identity").touch()
    link, nested = (tmp_path / f"gpuq-{dead.pid}-{name}" for name in ("link", "nested"))
    link.symlink_to(others)
    (nested / "folder").mkdir(parents=True)
    rehearse.remove_left()
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in (others, lives, senseless, link, nested)}
    assert all((folder / "identity").exists() for folder in (others, lives, senseless))
