"""`logs`, `run` and `wait`: output as it comes, exit codes, signals, daemons that go away."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuq.cli.follow import Watch, tail_position
from gpuq.client import Client
from tests.cli.terminal import finish, read_line
from tests.harness import GPUQ, PATIENCE, Box, gone, wait_until


class Gate:
    """A job that says something, then waits until it is let through, then says something more."""

    def __init__(self, box: Box, end: str = "exit 0") -> None:
        self.path = box.folder / "gate"
        os.mkfifo(self.path)
        self.command = ["sh", "-c", f"echo before; cat {self.path} >&2; echo after; {end}"]

    def open(self, text: str = "") -> None:
        self.path.write_text(text)


# --- logs -----------------------------------------------------------------------------------------


def test_logs_prints_bytes_as_written(box: Box) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)"
    job = box.submit(sys.executable, "-c", program, gpus=0)
    box.wait(job)
    done = subprocess.run([*GPUQ, "logs", str(job)], capture_output=True, check=True)
    assert done.stdout == bytes(range(256)) * 1000


def test_last_lines(box: Box) -> None:
    job = box.submit("seq", "20000", gpus=0)
    box.wait(job)
    assert box.ok("logs", "@last", "-n", "3") == "19998\n19999\n20000\n"
    assert box.ok("logs", str(job), "-n", "0") == ""
    assert box.ok("logs", str(job), "-n", "99999").count("\n") == 20000
    assert box.ok("logs", "-f", str(job), "-n", "1") == "20000\n"


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"", 5, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\n\n\n", 2, b"\n\n"),
        (b"\n", 1, b"\n"),
        (b"x" * 200_000 + b"\n" + b"y" * 200_000 + b"\n", 1, b"y" * 200_000 + b"\n"),
        (b"x" * (65536 - 1) + b"\n" + b"y" * 65536, 1, b"y" * 65536),
    ],
)
def test_where_the_last_lines_begin(tmp_path: Path, content: bytes, lines: int, expected: bytes) -> None:
    file = tmp_path / "log"
    file.write_bytes(content)
    with file.open("rb") as log:
        assert content[tail_position(log.fileno(), lines) :] == expected


def test_a_log_that_is_yet_to_be_made_is_watched_for(tmp_path: Path) -> None:
    path = tmp_path / "run" / "1" / "log"
    watch = Watch()
    try:
        for make in (path.parent.parent.mkdir, path.parent.mkdir, path.touch):
            watch.coming(str(path))
            watch.drain()
            watch.coming(str(path))  # which is no news of its own: it would be waited for in a circle
            assert not select.select([watch.fd], [], [], 0)[0]
            make()
            assert select.select([watch.fd], [], [], PATIENCE)[0]
            watch.drain()
        with path.open("ab") as log:
            watch.file(log.fileno())
            watch.drain()
            log.write(b"x")
            log.flush()
            assert select.select([watch.fd], [], [], PATIENCE)[0]
    finally:
        watch.close()


def test_a_job_without_a_log(box: Box) -> None:
    job = box.submit("true", gpus=0, hold=True)
    done = box.run("logs", str(job))
    assert (done.returncode, done.stdout) == (0, "")
    assert "has written nothing yet" in done.stderr


def test_logs_of_a_former_attempt(box: Box) -> None:
    job = box.submit("sh", "-c", "echo attempt $GPUQ_ATTEMPT", gpus=0)
    box.wait(job)
    box.ok("retry", str(job))
    box.wait(job)
    assert box.ok("logs", str(job)) == "attempt 2\n"
    assert box.ok("logs", str(job), "--attempt", "1") == "attempt 1\n"
    assert "its attempts are 1, 2" in box.fails(2, "logs", str(job), "--attempt", "3")


def test_a_log_that_was_removed(box: Box) -> None:
    job = box.submit("true", gpus=0)
    path = Path(box.wait(job)["log_path"])
    path.unlink()
    assert f"{path} does not exist" in box.fails(1, "logs", str(job))
    assert box.ok("logs", "-f", str(job)) == ""


def test_follow_prints_as_it_comes_and_ends_with_the_job(box: Box) -> None:
    gate = Gate(box)
    job = box.submit(*gate.command, gpus=0, hold=True)
    with box.started("logs", "-f", str(job)) as process:
        wait_until(lambda: selects(process), "following")
        box.ok("release", str(job))
        assert read_line(process) == "before\n"
        gate.open("through\n")
        out, err = finish(process)
    assert (process.returncode, out, err) == (0, "through\nafter\n", "")


def test_follow_of_a_limited_log_says_what_it_missed(box: Box) -> None:
    """It is rewritten all the time while it is followed: nothing is printed twice, and gaps are told."""
    program = "import sys\nfor n in range(400000): sys.stdout.write('%015d\\n' % n)"
    job = box.submit(sys.executable, "-ISc", program, gpus=0, log_limit=1 << 18)
    seen = subprocess.run([*GPUQ, "logs", "-f", str(job)], capture_output=True, check=True).stdout
    position = 0
    for part in re.split(rb"\n(\[gpuq: +\d+) bytes are left out here by the log's limit\]\n", seen):
        if part.startswith(b"[gpuq:"):
            position += int(part.split()[1])
        else:
            number = -(-position // 16)
            assert part[number * 16 - position :][:16] in (b"%015d\n" % number, b"")
            position += len(part)
    assert position == 400_000 * 16
    assert seen.startswith(b"%015d\n" % 0) and seen.endswith(b"%015d\n" % 399_999)
    last = f"{399_998:015d}\n{399_999:015d}\n"
    stored = box.ok("logs", str(job))
    assert len(stored) < (1 << 18) + 100
    assert box.ok("logs", str(job), "-n", "2") == last
    assert box.ok("logs", "-f", str(job), "-n", "2") == last


def test_follow_goes_on_with_a_new_daemon(box: Box) -> None:
    gate = Gate(box)
    job = box.submit(*gate.command, gpus=0)
    with box.started("logs", "-f", str(job)) as process:
        assert read_line(process) == "before\n"
        box.kill_daemon()
        gate.open()
        out, _ = finish(process)
    assert (process.returncode, out) == (0, "after\n")


def test_follow_of_a_job_that_could_not_start(box: Box) -> None:
    job = box.submit("/nonexistent/program", gpus=0)
    box.wait(job)
    assert box.run("logs", "-f", str(job)).returncode == 0


# --- run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 0", 0, ""),
        ("exit 7", 7, "job 1 failed: exit 7"),
        ("kill -SEGV $$", 128 + signal.SIGSEGV, "signal 11 (SEGV)"),
        ("kill -KILL $$", 128 + signal.SIGKILL, "signal 9 (KILL)"),
    ],
)
def test_run_exits_as_the_job_does(box: Box, script: str, code: int, message: str) -> None:
    done = box.run("run", "--gpus", "0", "--", "sh", "-c", f"echo out; echo err >&2; {script}")
    assert done.returncode == code
    assert done.stdout == "out\nerr\n"
    assert message in done.stderr


def test_run_says_a_time_limit_by_its_signal(box: Box) -> None:
    done = box.run("run", "--gpus", "0", "--time", "0.2s", "--", "sleep", "1000")
    assert done.returncode == 128 + signal.SIGTERM
    assert "timeout" in done.stderr


def test_run_without_a_code_is_1(box: Box) -> None:
    done = box.run("run", "--gpus", "0", "--", "/nonexistent/program")
    assert done.returncode == 1
    assert "launch" in done.stderr and "/nonexistent/program" in done.stderr


def test_run_large_output(box: Box) -> None:
    done = box.run("run", "--gpus", "0", "--", "seq", "200000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200_001))


def test_ctrl_c_cancels_and_waits(box: Box) -> None:
    script = 'trap "echo ending; exit 5" TERM; echo ready; while :; do sleep 0.05; done'
    with box.started("run", "--gpus", "0", "--", "sh", "-c", script) as process:
        assert read_line(process) == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = finish(process)
    assert out.endswith("ending\n")  # the shell may tell of its `sleep` before
    assert process.returncode == 5
    assert "cancelling job 1" in err
    assert box.job(1)["state"] == "cancelled"


def test_ctrl_c_twice_stops_waiting(box: Box) -> None:
    box.setenv(GPUQ_GRACE="1m")
    box.submit("true", gpus=0)  # the first submit is told about the GPUs
    gate = Gate(box)
    script = f'trap "" TERM; echo ready; cat {gate.path}'
    with box.started("run", "--gpus", "0", "--", "sh", "-c", script) as process:
        assert read_line(process) == "ready\n"
        process.send_signal(signal.SIGINT)
        assert "cancelling job 2" in read_line(process, process.stderr)
        process.send_signal(signal.SIGINT)
        _, err = finish(process)
    assert process.returncode == 130
    assert "no longer waiting" in err
    assert box.job(2)["state"] == "running"
    gate.open()
    box.wait(2)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM])
def test_detaching_leaves_the_job(box: Box, number: signal.Signals) -> None:
    gate = Gate(box)
    with box.started("run", "--gpus", "0", "--", *gate.command) as process:
        assert read_line(process) == "before\n"
        process.send_signal(number)
        _, err = finish(process)
    assert process.returncode == 128 + number
    assert "job 1 goes on" in err
    assert box.job(1)["state"] == "running"
    gate.open()
    assert box.wait(1)["state"] == "succeeded"


def test_a_reader_that_leaves_leaves_the_job(box: Box) -> None:
    gate = Gate(box)
    with box.started("run", "--gpus", "0", "--", *gate.command) as process:
        assert read_line(process) == "before\n"
        assert process.stdout is not None
        process.stdout.close()
        gate.open("more\n")
        _, err = finish(process)
    assert process.returncode == 141
    assert "job 1 goes on" in err
    assert box.wait(1)["state"] == "succeeded"


# --- wait -----------------------------------------------------------------------------------------


def test_wait_returns_the_jobs_own_code(box: Box) -> None:
    for script in ("exit 0", "exit 3", "kill -INT $$"):
        box.submit("sh", "-c", script, gpus=0)
    box.submit("/nonexistent/program", gpus=0)
    box.submit("true", gpus=0, hold=True)
    box.ok("cancel", "5")
    assert [box.run("wait", str(job)).returncode for job in (1, 2, 3, 4, 5)] == [0, 3, 130, 1, 1]


def test_wait_for_several(box: Box) -> None:
    box.submit_many([["true"], ["true"], ["false"]], gpus=0, tags=["t"])
    assert box.run("wait", "1-2").returncode == 0
    done = box.run("wait", "--tag", "t")
    assert done.returncode == 1
    assert "job 3 failed: exit 1" in done.stderr
    assert box.ok("wait", "-q", "1", "2") == "1\n2\n"
    assert [job["id"] for job in box.json("wait", "1-2")["jobs"]] == [1, 2]


@pytest.mark.parametrize("how", [[], ["-q"], ["--json"]])
@pytest.mark.parametrize("count", [3, 30])
def test_wait_for_any_exits_with_the_code_of_the_first_that_ended(box: Box, count: int, how: list[str]) -> None:
    held = box.submit_many([["true"]] * count, cpus=0, hold=True)
    first = held[count // 2]
    box.wait(box.submit("sh", "-c", "exit 3"))
    box.ok("release", str(first))
    box.wait(first)
    box.ok("release", f"{held[0]}-{held[-1]}")
    box.wait(*held)
    chosen = f"{held[0]}-{held[-1] + 1}"
    assert box.run("wait", "--any", chosen, *how).returncode == 3
    box.ok("wait", "--any", f"{held[0]}-{held[-1]}", *how)


@pytest.mark.parametrize("brief", [True, False])
def test_wait_for_all_waits_for_one_that_is_tried_again_meanwhile(box: Box, brief: bool) -> None:
    gate, other_gate, second = (box.folder / name for name in ("gate", "other", "second"))
    script = f"[ -e {second} ] || exit 1; until [ -e {gate} ]; do sleep 0.02; done; exit 1"
    job = box.submit("sh", "-c", script, cpus=0)
    box.wait(job)
    other = box.submit("sh", "-c", f"until [ -e {other_gate} ]; do sleep 0.02; done", cpus=0)
    with Client.connect() as client:
        client.send("wait", sel={"ranges": [[job, other]]}, pages=True, brief=brief)
        box.request("status")  # by then the wait has begun
        second.touch()
        box.request("retry", sel={"ranges": [[job, job]]})
        other_gate.touch()
        box.wait(other)
        box.request("status")
        assert not select.select([client.socket], [], [], 0)[0]
        gate.touch()
        answer = client.receive()
    assert [found["id"] for found in answer["jobs"]] == [job, other]
    assert box.job(job)["attempt"] == 2


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_wait_does_not_pass_over_a_job_that_is_removed_meanwhile(box: Box, how: list[str]) -> None:
    failed = box.submit("false", cpus=0)
    box.wait(failed)
    held = box.submit("true", hold=True)
    with Client.connect() as client:
        client.send("wait", sel={"ranges": [[failed, held]]}, pages=True, brief=not how)
        box.request("status")  # by then the wait has begun
        box.ok("prune", str(failed))
        box.ok("release", str(held))
        answer = client.receive()
    assert ([job["id"] for job in answer["jobs"]], answer["gone"]) == ([held], 1)
    assert box.run("wait", str(held), *how).returncode == 0


def test_wait_for_any(box: Box) -> None:
    box.submit("true", gpus=0, hold=True)
    box.submit("sh", "-c", "exit 6", gpus=0)
    done = box.run("wait", "--any", "-q", "1", "2")
    assert (done.returncode, done.stdout) == (6, "2\n")


def test_wait_gives_up_after_its_timeout(box: Box) -> None:
    job = box.submit("true", gpus=0, hold=True)
    assert box.fails(124, "wait", str(job), "--timeout", "0.1s") == "gpuq: not ended within 0.1s\n"


def test_wait_sees_the_end(box: Box) -> None:
    gate = Gate(box, "exit 4")
    job = box.submit(*gate.command, gpus=0)
    box.wait_state(job, "running")
    with box.started("wait", "--state", "queued,running") as process:
        wait_until(lambda: receives(process), "waiting")
        gate.open()
        finish(process)
    assert process.returncode == 4


def test_wait_goes_on_with_a_new_daemon(box: Box) -> None:
    gate = Gate(box, "exit 4")
    job = box.submit(*gate.command, gpus=0)
    box.wait_begun(job)
    with box.started("wait", str(job)) as process:
        wait_until(lambda: receives(process), "waiting")
        pid = box.kill_daemon()
        wait_until(lambda: (box.state / "sock").exists() and box.daemon_pid() != pid, "a new daemon")
        gate.open()
        finish(process)
    assert process.returncode == 4


def test_wait_means_the_jobs_that_were_chosen_at_first(box: Box) -> None:
    """`--state held` are the jobs that are held now, also where the question has to be asked again."""
    gate = Gate(box, "exit 4")
    job = box.submit(*gate.command, gpus=0, hold=True)
    with box.started("wait", "--state", "held") as process:
        wait_until(lambda: receives(process), "waiting")
        box.ok("release", str(job))
        box.wait_begun(job)
        pid = box.kill_daemon()
        wait_until(lambda: box.daemon_pid() != pid, "a new daemon")
        gate.open()
        finish(process)
    assert process.returncode == 4


def test_wait_ends_when_the_daemon_is_stopped(box: Box) -> None:
    gate = Gate(box)
    job = box.submit(*gate.command, gpus=0)
    box.wait_state(job, "running")
    with box.started("wait", str(job)) as process:
        wait_until(lambda: receives(process), "waiting")
        box.ok("daemon", "stop")
        _, err = finish(process)
    assert process.returncode == 5
    assert "the daemon was stopped" in err
    gate.open()
    assert box.wait(job)["state"] == "succeeded"


def test_wait_outlives_a_restart(box: Box) -> None:
    gate = Gate(box)
    job = box.submit(*gate.command, gpus=0)
    box.wait_state(job, "running")
    with box.started("wait", str(job)) as process:
        wait_until(lambda: receives(process), "waiting")
        pid = box.daemon_pid()
        box.ok("daemon", "restart")
        assert gone(pid)
        gate.open()
        finish(process)
    assert process.returncode == 0


#: Numbers of select(2) and pselect6(2) in /proc/PID/syscall (proc(5)).
SELECT = {"x86_64": {"23", "270"}, "aarch64": {"72"}}


RECEIVE = {"x86_64": {"45"}, "aarch64": {"207"}}


def selects(process: subprocess.Popen[str]) -> bool:
    """Whether the process has sent its request and waits for log and daemon, as the kernel tells it."""
    return _calls(process) in SELECT[os.uname().machine]


def receives(process: subprocess.Popen[str]) -> bool:
    """Whether it waits for the daemon's answer alone, without a time limit (with one, it is in poll(2))."""
    return _calls(process) in RECEIVE[os.uname().machine]


def _calls(process: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{process.pid}/syscall").read_text().split()[0]
