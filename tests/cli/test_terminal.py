"""On a terminal: tables that fit, colours that can be turned off, `top` that leaves the terminal as it was."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import termios
import xml.etree.ElementTree as ET

import pytest
from rich.cells import cell_len

from gpuq.cli.follow import Signals
from tests.cli.terminal import Terminal, shown
from tests.harness import GPUQ, Box, wait_until


@pytest.fixture
def busy(sim: Box) -> Box:
    """A running GPU job, one that waits, and names that are long, wide and hostile."""
    sim.submit("sleep", "1000", gpus=2, name="x" * 100, time_limit=7200)
    sim.wait_state(1, "running")
    sim.submit("sh", "-c", "echo " + "long " * 100, vram=1 << 30, name="日本語の名前はとても長い🎉")
    sim.submit("true", gpus=0, hold=True, name="a\x1b[31m\n\x07")
    return sim


def test_tables_fit_the_terminal(busy: Box) -> None:
    for columns in (80, 60, 132):
        for args in (["list"], ["list", "--all"], ["gpus"], ["top", "--once"]):
            lines = shown(*args, columns=columns).splitlines()
            assert len(lines) > 2
            assert max(map(cell_len, lines)) <= columns, (args, lines)
    assert "sleep 1000" in shown("list", columns=132)
    busy.ok("cancel", "1-3")


def test_off_a_terminal_nothing_is_cut(busy: Box) -> None:
    text = busy.ok("list")
    assert "x" * 100 in text and "long " * 100 in text
    header, *rows = text.splitlines()
    assert header.split() == ["ID", "NAME", "STATE", "GPUS", "VRAM", "TIME", "REASON", "COMMAND"]
    assert len(rows) == 3 and all(len(row.split("  ")) >= 8 for row in rows)
    assert " -  " in rows[2], "an empty cell is a dash"
    busy.ok("cancel", "1-3")


def test_hostile_names_are_escaped(busy: Box) -> None:
    for args in (["list"], ["top", "--once"], ["show", "3"], ["events"]):
        with Terminal(*args, columns=160) as terminal:
            _, text = terminal.finish()
        assert "a\\x1b[31m\\n\\x07" in text, args
        assert "\x1b[31m" not in terminal.raw and "\x07" not in terminal.raw
    busy.ok("cancel", "1-3")


def test_colours_can_be_turned_off(box: Box) -> None:
    box.submit("true", gpus=0, hold=True)
    with Terminal("list") as terminal:
        terminal.finish()
    assert "\x1b[33m" not in terminal.raw
    box.setenv(NO_COLOR=None)
    with Terminal("list") as terminal:
        terminal.finish()
    assert "\x1b[33m" in terminal.raw, "held jobs are yellow"


def test_list_shows_the_first_rows(box: Box) -> None:
    box.submit_many([["true"]] * 60, gpus=0, hold=True)
    text = shown("list")
    assert text.count("held") == 50 and "… and 10 more" in text
    assert shown("list", "-n", "0").count("held") == 60
    assert shown("list", "-n", "5").count("held") == 5
    box.setenv(GPUQ_LIST_ROWS="7")
    assert shown("list").count("held") == 7
    assert box.ok("list").count("held") == 60
    done = box.run("list", "-n", "3")
    assert done.stdout.count("held") == 3 and "57 more" in done.stderr


@pytest.mark.usefixtures("box")
def test_sentences_for_people() -> None:
    assert "submitted job 1" in shown("submit", "--gpus", "0", "--hold", "--", "true")
    assert "submitted jobs 2-4, 3 jobs" in shown("submit", "--gpus", "0", "--hold", "--array", "1-3", "--", "true")
    assert shown("submit", "-q", "--gpus", "0", "--hold", "--", "true") == "5\n"
    assert shown("release", "5").strip() == "released: job 5"
    assert shown("wait", "5").strip() == "job 5 succeeded"
    assert shown("cancel", "--state", "held").strip() == "cancelled: 4 jobs (1-4)"


@pytest.mark.usefixtures("box")
def test_ctrl_c_at_the_terminal() -> None:
    """The terminal sends the signal to the whole foreground group; the job, in a session of its own, gets none."""
    script = 'trap "echo interrupted" INT; trap "echo ending; exit 5" TERM; echo ready; while :; do sleep 0.05; done'
    with Terminal("run", "--gpus", "0", "--", "sh", "-c", script) as terminal:
        terminal.read_until("ready")
        terminal.process.send_signal(signal.SIGINT)
        code, text = terminal.finish()
    assert code == 5
    assert "cancelling job 1" in text and "ending" in text and "interrupted" not in text


def test_run_says_why_it_waits(sim: Box) -> None:
    sim.submit("sleep", "1000", gpus=2)
    sim.wait_state(1, "running")
    with Terminal("run", "--", "true") as terminal:
        text = terminal.read_until("job 2 waits: ")
        assert "GPU" in text
        sim.ok("cancel", "1")
        assert terminal.finish()[0] == 0


# --- top ------------------------------------------------------------------------------------------


def test_top_is_live_and_leaves_the_terminal_as_it_was(sim: Box) -> None:
    with Terminal("top", rows=30) as terminal:
        terminal.read_until("GPU 1")
        assert "\x1b[?1049h" in terminal.raw, "it draws on the alternate screen"
        sim.submit("sleep", "1000", vram=4 << 30, name="appears", time_limit=7200)
        terminal.read_until("appears")
        terminal.read_until("2h00m")
        terminal.type("q")
        code, _ = terminal.finish()
        assert code == 0
        assert "\x1b[?1049l" in terminal.raw and "\x1b[?25h" in terminal.raw
        assert terminal.mode() == terminal.before
    sim.ok("cancel", "1")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_top_ended_by_a_signal(sim: Box, number: signal.Signals) -> None:
    with Terminal("top") as terminal:
        terminal.read_until("GPU 1")
        terminal.process.send_signal(number)
        code, _ = terminal.finish()
        assert code == 0
        assert "\x1b[?1049l" in terminal.raw
        assert terminal.mode() == terminal.before
    assert sim.ok("list", "-q") == ""


#: A shell with job control: as a child of a new session, it makes the terminal its own first.
SHELL = [
    sys.executable,
    "-c",
    "import fcntl, os, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execvp('bash', ['bash', '--norc', '--noprofile', '--noediting', '-i'])",
]


def test_top_gives_the_terminal_back_while_it_is_stopped(sim: Box) -> None:
    sim.setenv(PS1="prompt> ")
    with Terminal(program=SHELL) as shell:
        shell.read_until("prompt> ")
        shell.type(" ".join([*GPUQ, "top\n"]))
        shell.read_until("GPU 1")
        assert not _line_mode(shell)
        shell.type("\x1a")
        shell.read_until("prompt> ", 2)
        assert "Stopped" in shell.text
        assert shell.raw.rindex("\x1b[?1049l") > shell.raw.rindex("\x1b[?1049h")
        assert shell.raw.rindex("\x1b[?25h") > shell.raw.rindex("\x1b[?25l")
        assert _line_mode(shell)
        sim.submit("true", gpus=0, hold=True, name="meanwhile")
        shell.type("fg\n")
        shell.read_until("meanwhile")
        assert shell.raw.rindex("\x1b[?1049h") > shell.raw.rindex("\x1b[?1049l")
        assert not _line_mode(shell)
        shell.type("\x1a")
        shell.read_until("prompt> ", 3)
        shell.type("bg\n")  # in the background it may not touch the terminal: it waits for its turn
        shell.read_until("prompt> ", 4)
        shell.type("fg\n")
        shell.read_until("meanwhile", shell.text.count("meanwhile") + 1)
        shell.type("q")
        shell.read_until("prompt> ", 5)
        assert _line_mode(shell)
        shell.type("exit\n")
        assert shell.finish()[0] == 0


def test_top_takes_the_terminal_again_when_it_goes_on(sim: Box) -> None:
    """After SIGSTOP, which nobody hears, a shell has set the terminal as it wants it."""
    with Terminal("top") as terminal:
        terminal.read_until("GPU 1")
        terminal.set_mode(terminal.before)
        terminal.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not _line_mode(terminal), "single keys being read")
        terminal.type("q")
        assert terminal.finish()[0] == 0
        assert terminal.mode() == terminal.before
    assert sim.ok("list", "-q") == ""


def _line_mode(terminal: Terminal) -> bool:
    flags = terminal.mode()[3]
    assert isinstance(flags, int)
    return bool(flags & termios.ICANON)


def test_a_window_that_is_dragged_ends_nothing() -> None:
    with Signals(signal.SIGWINCH, signal.SIGCONT) as heard:
        for _ in range(10):
            signal.raise_signal(signal.SIGWINCH)
            signal.raise_signal(signal.SIGCONT)
        assert heard.take() == [signal.SIGWINCH, signal.SIGCONT] * 10


def test_top_on_a_terminal_that_cannot_be_redrawn(sim: Box) -> None:
    with Terminal("top", term="dumb") as terminal:
        code, text = terminal.finish()
    assert code == 0 and text.count("GPU 1") == 1 and "\x1b" not in terminal.raw
    assert sim.ok("list", "-q") == ""


def test_top_goes_on_with_a_new_daemon(sim: Box) -> None:
    with Terminal("top") as terminal:
        terminal.read_until("GPU 1")
        sim.kill_daemon()
        sim.submit("true", gpus=0, hold=True, name="later")
        terminal.read_until("later")
        terminal.type("q")
        assert terminal.finish()[0] == 0


def test_top_says_that_the_daemon_was_stopped(sim: Box) -> None:
    with Terminal("top") as terminal:
        terminal.read_until("GPU 1")
        sim.ok("daemon", "stop")
        code, text = terminal.finish()
        assert code == 5 and "the daemon was stopped" in text
        assert terminal.mode() == terminal.before


def test_top_off_a_terminal_is_one_frame(busy: Box) -> None:
    text = busy.ok("top")
    assert "GPU 0" in text and "GPU 1" in text and "\x1b" not in text
    assert "Running" in text and "Waiting" in text and "Resources" in text
    found = busy.json("top")
    assert found["schema"] == "gpuq.top/1" and found["waiting_total"] == 2
    busy.ok("cancel", "1-3")


def test_top_as_a_picture(busy: Box) -> None:
    path = busy.folder / "top.svg"
    assert busy.ok("top", "--svg", str(path)) == ""
    text = path.read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert "@font-face" not in text and "url(http" not in text, "it fetches something"
    assert "sleep" in text
    assert "cannot be written" in busy.fails(1, "top", "--svg", "/nonexistent/top.svg")
    busy.ok("cancel", "1-3")


SUBMIT_AT_ONCE_A_BAR = """\
import sys
from gpuq.cli import app, common
common.PATIENT = 0.0  # whatever takes a moment is drawn
sys.argv = ["gpuq", *sys.argv[1:]]
app.main()
"""


def test_a_bar_on_a_terminal_and_nothing_elsewhere(box: Box) -> None:
    text = "".join(f"echo {n}\n" for n in range(6000))
    (box.folder / "commands").write_text(text)
    words = ["submit", "--gpus", "0", "--hold", "--from", "commands"]
    box.daemon_pid()
    with Terminal(*words, program=[sys.executable, "-c", SUBMIT_AT_ONCE_A_BAR]) as terminal:
        code, shown_text = terminal.finish()
    assert code == 0 and "submitted jobs 1-6000, 6,000 jobs" in shown_text
    assert re.search(r"submitting .*(2|4|6),000 of 6,000", shown_text)
    done = subprocess.run([sys.executable, "-c", SUBMIT_AT_ONCE_A_BAR, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(n) for n in range(6001, 12001)]
