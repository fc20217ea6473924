"""`submit` against a real daemon: what is queued is what was typed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from gpuq.cli.commands import Lines
from gpuq.cli.options import make_environment
from gpuq.cli.submit import TRIES
from gpuq.errors import ConnectionLost, UsageError
from gpuq.protocol import decode
from tests.cli.terminal import finish
from tests.harness import PATIENCE, Box, wait_until

PRINT_ARGS = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]


def test_prints_the_id_alone(box: Box) -> None:
    assert box.ok("submit", "--gpus", "0", "--", "true") == "1\n"
    assert box.ok("submit", "-q", "--gpus", "0", "--", "true") == "2\n"
    assert box.ok("submit", "--gpus", "0", "--array", "3-5", "--", "true") == "3\n4\n5\n"


def test_json_is_the_job(box: Box) -> None:
    options = ["-J", "a name", "--tag", "x", "--hold", "-p", "-7", "--time", "1h", "--json"]
    found = json.loads(box.ok("submit", "--gpus", "0", *options, "--", "true"))
    assert found["schema"] == "gpuq.jobs/1"
    job = found["jobs"][0]
    assert (job["id"], job["name"], job["tags"], job["state"]) == (1, "a name", ["x"], "held")
    assert (job["priority"], job["time_limit_seconds"], job["command"]) == (-7, 3600.0, ["true"])


@pytest.mark.parametrize(
    "words",
    [
        [*PRINT_ARGS, "--gpus", "7", "-J", "x", "--", "-q"],
        ["--", *PRINT_ARGS, "--gpus", "7", "-J", "x", "--", "-q"],
    ],
)
def test_options_after_the_command_are_its_own(box: Box, words: list[str]) -> None:
    box.ok("submit", "--gpus", "0", *words)
    assert box.wait(1)["state"] == "succeeded"
    assert box.log(1) == "['--gpus', '7', '-J', 'x', '--', '-q']\n"


def test_arguments_arrive_byte_by_byte(box: Box) -> None:
    odd = ["", " ", "a'b\"c", "$HOME", "*", "\n", "\udcff\udcfe", "日本", "-"]
    box.ok("submit", "--gpus", "0", "--", sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", *odd)
    box.wait(1)
    assert box.log(1) == ascii(odd) + "\n"


def test_folder_and_log_file(box: Box) -> None:
    (box.folder / "sub").mkdir()
    box.ok("submit", "--gpus", "0", "--cwd", "sub", "-o", "log-%j.txt", "--", "pwd")
    assert box.wait(1)["state"] == "succeeded"
    assert (box.folder / "sub" / "log-1.txt").read_text() == f"{box.folder / 'sub'}\n"


def test_environment(box: Box) -> None:
    box.setenv(ONE="1", TWO="2", SSH_TTY="/dev/pts/9", SHLVL="5", GPUQ_ARRAY_INDEX="8")
    show = 'echo "${ONE-} ${TWO-} ${THREE-} ${SSH_TTY-} ${GPUQ_ARRAY_INDEX-} ${HOME:+home}"'
    for options in ([], ["--export", "NONE"], ["--export", "TWO", "--env", "THREE=3"], ["--env", "ONE=a b"]):
        box.ok("submit", "--gpus", "0", *options, "--", "sh", "-c", show)
    box.wait(1, 2, 3, 4)
    logs = [box.log(job).split("\n")[0] for job in (1, 2, 3, 4)]
    assert logs == ["1 2    home", "     home", " 2 3   home", "a b 2    home"]


def test_a_variable_that_is_not_set_is_told(box: Box) -> None:
    done = box.run("submit", "--gpus", "0", "--export", "PATH,NO_SUCH", "--", "true")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "NO_SUCH" in done.stderr


def test_cuda_visible_devices_is_replaced_with_a_warning(box: Box) -> None:
    box.setenv(CUDA_VISIBLE_DEVICES="secret-3")
    done = box.run("submit", "--gpus", "0", "--", "sh", "-c", 'echo "[$CUDA_VISIBLE_DEVICES]"')
    assert "CUDA_VISIBLE_DEVICES" in done.stderr and "secret" not in done.stderr
    box.wait(1)
    assert box.log(1) == "[]\n"


def test_a_job_submits_without_that_warning(box: Box) -> None:
    gpuq = f"{sys.executable} -m gpuq"
    box.ok("submit", "--gpus", "0", "--", "sh", "-c", f"{gpuq} submit --gpus 0 -- true")
    assert box.wait(1)["state"] == "succeeded"
    assert box.log(1) == "2\n"


def test_dependencies(box: Box) -> None:
    box.ok("submit", "--gpus", "0", "--hold", "--", "true")
    box.ok("submit", "--gpus", "0", "--after", "@last", "--", "true")
    box.ok("submit", "--gpus", "0", "--after", "any:1,ok:2", "-d", "1", "--", "true")
    assert box.job(2)["after"] == ["ok:1"]
    assert sorted(box.job(3)["after"]) == ["any:1", "ok:1", "ok:2"]
    box.ok("submit", "--gpus", "0", "--after", "any:1-3", "--", "true")
    assert box.job(4)["after"] == ["any:1", "any:2", "any:3"]
    assert box.fails(3, "submit", "--after", "9", "--", "true") == "gpuq: --after ok:9: there is no job 9\n"


def test_a_file_of_commands(box: Box) -> None:
    (box.folder / "commands").write_text("echo one && echo two\n\n# three\nexit 4\n")
    assert box.ok("submit", "--gpus", "0", "--from", "commands", "--tag", "t") == "1\n2\n"
    assert box.wait(1)["command"] == ["/bin/sh", "-c", "echo one && echo two"]
    assert box.log(1) == "one\ntwo\n"
    assert box.wait(2)["exit_code"] == 4
    assert box.ok("submit", "--gpus", "0", "--from", "-", stdin="echo x\n") == "3\n"


def test_many_commands_in_parts(box: Box) -> None:
    text = "".join(f"echo {n}\n" for n in range(4500))
    ids = box.ok("submit", "--gpus", "0", "--hold", "--from", "-", stdin=text).split()
    assert ids == [str(n) for n in range(1, 4501)]
    assert [box.job(n)["command"][2] for n in (1, 2000, 2001, 4500)] == [f"echo {n}" for n in (0, 1999, 2000, 4499)]


def test_a_file_that_can_be_read_only_once(box: Box) -> None:
    """A pipe with a name, and what is left of standard input when somebody has read its beginning."""
    pipe = box.folder / "pipe"
    os.mkfifo(pipe)
    with box.started("submit", "--gpus", "0", "--hold", "--from", str(pipe)) as process:
        pipe.write_text("echo 1\necho 2\n")
        assert finish(process)[0] == "1\n2\n"
    (box.folder / "commands").write_text("read by the shell\necho 3\n")
    script = f"{{ read line; {sys.executable} -m gpuq submit --gpus 0 --hold --from -; }} < commands"
    assert subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout == b"3\n"
    assert box.job(3)["command"][2] == "echo 3"


def test_the_client_does_not_hold_the_file(tmp_path: Path) -> None:
    file = tmp_path / "commands"
    file.write_text("".join(f"echo {n:0100}\n" for n in range(30_000)))
    tracemalloc.start()
    try:
        with Lines(str(file)) as lines:
            assert lines.count == sum(map(len, lines.parts())) == 30_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2000 * 500, "more than two parts were in memory"


def test_a_bad_line_queues_nothing(box: Box) -> None:
    text = "echo 1\n" * 3000 + "echo \0\n"
    message = box.fails(2, "submit", "--gpus", "0", "--from", "-", stdin=text)
    assert message == "gpuq: standard input, line 3001: holds a NUL byte; nothing was queued\n"
    assert box.json("list", "--all")["jobs"] == []


def test_sent_again_with_the_same_key_when_the_daemon_dies(box: Box) -> None:
    """A daemon that takes the request and dies before it answers; the next one gets the request again."""
    box.state.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(box.state / "sock"))
        dying.listen()
        dying.settimeout(PATIENCE)
        with box.started("submit", "--gpus", "0", "--", "true") as process:
            connection, _ = dying.accept()
            with connection, connection.makefile("rb") as lines:
                request = decode(lines.readline())
                (box.state / "sock").unlink()
            out, _ = finish(process)
    assert (process.returncode, out) == (0, "1\n")
    again = box.request("submit", **{k: v for k, v in request.items() if k not in ("v", "op")})
    assert again["ids"] == [1, 1], "the second daemon was sent another key"


def test_gives_up_where_no_daemon_stays(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(box.state / "sock"))
        dying.listen()
        dying.settimeout(PATIENCE)
        with box.started("submit", "--gpus", "0", "--", "true") as process:
            for _ in range(TRIES):
                connection, _ = dying.accept()
                connection.recv(1)
                connection.close()
            _, err = finish(process)
    (box.state / "sock").unlink()
    assert process.returncode == ConnectionLost.exit_code
    assert "closed the connection" in err


# --- bad input ------------------------------------------------------------------------------------

BAD: list[tuple[int, list[str], str]] = [
    (2, ["submit"], "no command"),
    (2, ["submit", "--"], "no command"),
    (2, ["submit", "--", ""], "is empty"),
    (2, ["submit", "--vram", "10", "--", "true"], "'10' is not a size"),
    (2, ["submit", "--vram", "0", "--", "true"], "'0' is not a size"),
    (2, ["submit", "--vram", "0G", "--", "true"], "more than zero"),
    (2, ["submit", "--vram", "-5G", "--", "true"], "'-5G' is not a size"),
    (2, ["submit", "--vram", "nan", "--", "true"], "'nan' is not a size"),
    (2, ["submit", "--vram", "9" * 40 + "G", "--", "true"], "larger than any host"),
    (2, ["submit", "--ram", "1e9", "--", "true"], "is not a size"),
    (2, ["submit", "--time", "90", "--", "true"], "'90' is not a time"),
    (2, ["submit", "--time", "0s", "--", "true"], "more than zero"),
    (2, ["submit", "--time", "nan", "--", "true"], "'nan' is not a time"),
    (2, ["submit", "--time", "99999d", "--", "true"], "longer than ten years"),
    (2, ["submit", "--gpus", "-1", "--", "true"], "--gpus '-1' is not a number"),
    (2, ["submit", "--gpus", "one", "--", "true"], "'one'"),
    (2, ["submit", "--gpus", "0", "--vram", "1G", "--", "true"], "leave one of them out"),
    (2, ["submit", "--gpus", "4:1", "--", "true"], "upside down: write 1:4"),
    (2, ["submit", "--gpus", "1:", "--", "true"], "'1:' is open at one end"),
    (2, ["submit", "--gpus", "0", "--gpu-type", "A100", "--", "true"], "--gpu-type chooses among them"),
    (2, ["submit", "--gpu-type", "A100|", "--", "true"], "--gpu-type 'A100|'"),
    (2, ["submit", "--gpu-min-memory", "40", "--", "true"], "--gpu-min-memory '40' is not a size"),
    (1, ["submit", "--gpu-id", "0", "--", "true"], "--gpu-id 0: this host has no GPUs"),
    (1, ["submit", "--spread", "--", "true"], "this host has no GPUs"),
    (1, ["submit", "--gpus", "0", "--cpus", "5000", "--", "true"], "5000"),
    (1, ["submit", "--gpus", "0", "--ram", "900TiB", "--", "true"], "900TiB"),
    (2, ["submit", "--gpus", "0", "--cwd", "/nonexistent", "--", "true"], "/nonexistent"),
    (2, ["submit", "--gpus", "0", "--after", "x", "--", "true"], "'x' is not a dependency"),
    (3, ["submit", "--gpus", "0", "--after", "1", "--", "true"], "there is no job 1"),
    (3, ["submit", "--gpus", "0", "--after", "@last", "--", "true"], "@last"),
    (2, ["submit", "--gpus", "0", "--array", "9-1", "--", "true"], "upside down"),
    (2, ["submit", "--gpus", "0", "--begin", "soon", "--", "true"], "'soon'"),
    (2, ["submit", "--gpus", "0", "--env", "A", "--", "true"], "--env"),
    (2, ["submit", "--gpus", "0", "--priority", "9999", "--", "true"], "--priority 9999"),
    (2, ["submit", "--gpus", "0", "--from", "/nonexistent"], "/nonexistent"),
    (2, ["submit", "--gpus", "0", "--from", "-", "--", "true"], "exclude each other"),
    (2, ["submit", "--gpus", "0", "--from", "-", "--array", "1-2"], "exclude each other"),
    (2, ["submit", "--gpus", "0", "--from", "-"], "holds no command"),
    (2, ["submit", "--gpus", "0", "--after", "ok:3-1", "--", "true"], "write 1-3"),
    (2, ["submit", "--gpus", "0", "--after", "1", "2", "3", "--", "true"], "begins with 2 3 before `--`"),
    (2, ["submit", "--gpus", "0", "--cwd", "", "--", "true"], "--cwd is empty"),
    (2, ["submit"], "`gpuq submit -- python train.py`"),
    (2, ["run"], "`gpuq run -- python train.py`"),
    (2, ["top", "--svg", ""], "--svg is empty"),
    (3, ["show", "1"], "there is no job 1"),
    (3, ["list", "1"], "there is no job 1"),
    (3, ["logs", "1"], "there is no job 1"),
    (3, ["cancel", "1-9"], "there is no job"),
    (3, ["wait", "1"], "there is no job 1"),
    (3, ["wait", "--tag", "x"], "no job was chosen"),
    (3, ["show", "@last"], "no job"),
    (2, ["show", "x"], "'x' is not a job id"),
    (2, ["show", "9-1"], "upside down"),
    (2, ["cancel"], "which jobs?"),
    (2, ["retry", "--state", "bogus"], "no state 'bogus'"),
    (2, ["wait", "1", "--timeout", "5"], "'5' is not a time"),
    (2, ["list", "-n", "-1"], "-n -1"),
    (2, ["list", "-n", "9" * 20], "at most 2,147,483,647 rows, 0 for all"),
    (2, ["events", "-n", "9" * 20], "at most 2,147,483,647 events"),
    (2, ["logs", "1", "-n", "9" * 20], "at most 2,147,483,647 lines"),
    (2, ["completion", "tcsh"], "'tcsh'"),
]


def test_bad_input_changes_nothing(box: Box) -> None:
    """Each gives its message and code, and leaves queue and daemon as they were."""
    pid = box.daemon_pid()
    events = box.json("events")["events"]
    for code, args, message in BAD:
        found = box.fails(code, *args)
        assert found.startswith("gpuq: ") and found.count("\n") == 1, (args, found)
        assert message in found, (args, found)
    assert box.json("list", "--all")["jobs"] == []
    assert box.json("events")["events"] == events
    assert box.daemon_pid() == pid


def test_more_than_the_host_has(sim: Box) -> None:
    assert "this host has 2" in sim.fails(1, "submit", "--gpus", "9", "--", "true")
    assert "24GiB" in sim.fails(1, "submit", "--vram", "100GiB", "--", "true") + "24GiB"
    assert "23.8GiB" in sim.fails(1, "submit", "--vram", "100GiB", "--", "true")
    assert sim.json("list", "--all")["jobs"] == []


def test_a_command_of_a_mebibyte(box: Box) -> None:
    words = ["x" * 100_000] * 11
    assert "bytes long" in box.fails(2, "submit", "--gpus", "0", "--", "echo", *words)
    assert box.json("list", "--all")["jobs"] == []


def test_an_environment_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x" * (2 * 1024 * 1024))
    with pytest.raises(UsageError, match="the environment is 2,") as error:
        make_environment(None, [])
    assert "xx" not in str(error.value)
    assert "SECRET" not in make_environment("PATH", [])


def test_a_state_folder_that_cannot_be(box: Box) -> None:
    file = box.folder / "file"
    file.write_text("")
    for path, message in (
        (file, "is not a folder"),
        (file / "below", "Not a directory"),
        (Path("/proc/nope/state"), "cannot be made"),
    ):
        found = box.fails(5, "submit", "--gpus", "0", "--", "true", env={"GPUQ_STATE_DIR": str(path)})
        assert message in found and str(path) in found


def test_a_socket_left_by_a_dead_daemon(box: Box) -> None:
    box.ok("submit", "--gpus", "0", "--", "true")
    box.wait(1)
    box.kill_daemon()
    assert (box.state / "sock").exists()
    assert box.ok("submit", "--gpus", "0", "--", "true") == "2\n"


def test_twenty_first_commands_make_one_daemon(box: Box) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        started = [stack.enter_context(box.started("submit", "--gpus", "0", "--", "true")) for _ in range(20)]
        done = [finish(process) for process in started]
    assert sorted(int(out) for out, _ in done) == list(range(1, 21))
    events = box.json("events", "-n", "0")["events"]
    assert sum(event["kind"] == "daemon-started" for event in events) == 1


def test_names_are_escaped_wherever_they_are_shown(box: Box) -> None:
    name = "a\nb\x1b[31m\x07🎉\u202e"
    box.ok("submit", "--gpus", "0", "--hold", "-J", name, "--tag", "t\x1b]0;x\x07", "--", "echo", "\x1b[2J\n")
    shown = "".join(
        box.ok(*args)
        for args in (["list"], ["show", "1"], ["why", "1"], ["events"], ["complete-ids"], ["top"], ["list", "--json"])
    )
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "a\\nb\\x1b[31m\\x07🎉\\u202e" in shown
    assert json.loads(box.ok("list", "--json"))["jobs"][0]["name"] == name
    assert os.linesep not in box.ok("list", "-q").strip()


def test_a_submission_is_sent_again_until_it_is_answered(box: Box) -> None:
    """Under its key, so that however often its daemon dies it is one submission."""
    box.state.mkdir(mode=0o700)
    keys: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(box.state / "sock"))
        listener.listen()

        def answer() -> None:
            for left in reversed(range(8)):
                connection, _ = listener.accept()
                with connection, connection.makefile("rwb") as file:
                    keys.append(json.loads(file.readline())["key"])
                    if not left:
                        file.write(b'{"ok": true, "ids": [7, 7], "notes": []}\n')

        answering = threading.Thread(target=answer)
        answering.start()
        assert box.ok("submit", "--", "true") == "7\n"
        answering.join()
    (box.state / "sock").unlink()
    assert len(keys) == 8 and len(set(keys)) == 1


#: Numbers of poll(2) in /proc/PID/syscall (proc(5)): a submission waits for an answer, with a time limit.
POLL = {"x86_64": "7", "aarch64": "73"}


@pytest.mark.parametrize(
    ("lines", "said"), [(1, "it may have been queued; `gpuq list` tells"), (9000, "nothing was queued")]
)
def test_an_interrupted_submission_says_what_became_of_it(box: Box, lines: int, said: str) -> None:
    """The daemon is stopped, so that no answer comes: to the only part, or to the first of several."""
    file = box.folder / "lines"
    file.write_text("true\n" * lines)
    daemon = box.daemon_pid()
    os.kill(daemon, signal.SIGSTOP)
    try:
        with box.started("submit", "--hold", "--gpus", "0", "--from", str(file)) as process:
            syscall = Path(f"/proc/{process.pid}/syscall")
            wait_until(lambda: syscall.read_text().split()[0] == POLL[os.uname().machine], "the client's wait")
            process.send_signal(signal.SIGINT)
            out, err = finish(process)
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert (out, process.returncode) == ("", 130)
    assert said in err
    if lines > 1:
        assert box.request("list", sel={})["jobs"] == []
