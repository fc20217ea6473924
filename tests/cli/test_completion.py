"""Completion in the real shells: the scripts are what `gpuq completion` prints, and TAB offers what it should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuq.cli.completion import WHICH
from gpuq.model import ENDED, LIVE
from tests.harness import Box

SCRIPTS = Path(__file__).parents[2] / "completions"
FILES = {"bash": "gpuq.bash", "zsh": "_gpuq", "fish": "gpuq.fish"}

Complete = Callable[[str], list[str]]


def shell(name: str) -> str:
    """The shell's path; a missing one skips the test, except in CI."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


def run(box: Box, *command: str) -> str:
    """Standard output of a shell in which `gpuq` is ours."""
    programs = box.folder / "bin"
    if not programs.exists():
        programs.mkdir()
        (programs / "gpuq").write_text(f'#!/bin/sh\nexec {sys.executable} -m gpuq "$@"\n')
        (programs / "gpuq").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path, "TERM": "dumb"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def in_bash(box: Box, line: str) -> list[str]:
    words = line.split(" ")
    pieces: list[str] = []
    for word in words:  # as readline splits them: at = and : as well (COMP_WORDBREAKS)
        pieces += [p for p in word.replace("=", " = ").replace(":", " : ").split(" ") if p] or [""]
        if word.endswith((":", "=")):
            pieces.append("")
    script = (
        f"source {SCRIPTS / FILES['bash']}\n"
        "compopt() { :; }\n"  # works only inside a completion that readline started
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({' '.join(repr(p) for p in pieces)})\n"
        f"COMP_CWORD={len(pieces) - 1}\n"
        '_gpuq\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    return run(box, shell("bash"), "--norc", "--noprofile", "-c", script).split()


def in_zsh(box: Box, line: str) -> list[str]:
    driver = Path(__file__).parent / "drive.zsh"
    return run(box, shell("zsh"), "-f", str(driver), str(SCRIPTS), line).splitlines()[1:]


def in_fish(box: Box, line: str) -> list[str]:
    script = f"source {SCRIPTS / FILES['fish']}; complete -C '{line}'"
    found = run(box, shell("fish"), "--no-config", "-c", script).splitlines()
    return [candidate.partition("\t")[0] for candidate in found]


SHELLS = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}


@pytest.fixture(params=sorted(SHELLS))
def complete(request: pytest.FixtureRequest, box: Box) -> Complete:
    """TAB at the end of a line, in each shell."""
    return lambda line: SHELLS[request.param](box, line)


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_scripts_are_up_to_date(box: Box, name: str) -> None:
    printed = box.ok("completion", name)
    assert printed == (SCRIPTS / FILES[name]).read_text(), f"run: gpuq completion {name} > completions/{FILES[name]}"
    assert not box.state.exists()


def test_verbs_and_options_need_no_program(complete: Complete, box: Box) -> None:
    (box.folder / "bin").mkdir()
    (box.folder / "bin" / "gpuq").write_text("#!/bin/sh\necho called >> $HOME/called\n")
    (box.folder / "bin" / "gpuq").chmod(0o755)
    verbs = complete("gpuq ")
    assert {"submit", "run", "list", "top", "daemon", "sim-job"} <= set(verbs)
    assert "complete-ids" not in verbs
    assert complete("gpuq li") == ["list"]
    assert set(complete("gpuq daemon st")) == {"start", "stop", "status"}
    assert "--name" in complete("gpuq submit --na")
    assert set(complete("gpuq daemon stop --")) >= {"--jobs", "--help"}
    assert set(complete("gpuq completion ")) == {"bash", "zsh", "fish"}
    assert complete("gpuq list --state ru") == ["running"]
    assert not (box.folder / "home" / "called").exists()


def test_without_a_daemon_no_ids_and_no_daemon(complete: Complete, box: Box) -> None:
    assert complete("gpuq cancel ") == ["@last"]
    assert not box.state.exists()


def test_ids_are_of_jobs_that_the_verb_can_do_it_to(complete: Complete, box: Box) -> None:
    ended = box.submit("true", gpus=0)
    held = box.submit("true", gpus=0, hold=True, name="a\tb\nc\x1b[31m:d;$(touch x)")
    box.wait(ended)
    assert set(complete("gpuq cancel ")) == {str(held), "@last"}
    assert set(complete("gpuq release ")) == {str(held), "@last"}
    assert set(complete("gpuq retry ")) == {str(ended), "@last"}
    assert set(complete("gpuq show ")) == {str(ended), str(held), "@last"}
    assert complete(f"gpuq logs {held}") == [str(held)]
    after = complete(f"gpuq submit --after ok:{held}")
    assert after in ([str(held)], [f"ok:{held}"])  # shells differ in which part of a word they show
    assert not (box.folder / "x").exists()


def test_the_command_is_completed_as_the_shell_does(complete: Complete, box: Box) -> None:
    (box.folder / "some-file.py").write_text("")
    assert "printenv" in complete("gpuq submit --gpus 1 -- printen")
    assert "printenv" in complete("gpuq run -J name printen")
    for line in ("gpuq submit --gpus 1 -- cat some-f", "gpuq submit cat some-f"):
        assert "--from" not in complete(line)


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_arguments_of_the_command_are_files(box: Box, name: str) -> None:
    (box.folder / "some-file.py").write_text("")
    assert "some-file.py" in SHELLS[name](box, "gpuq submit --gpus 1 -- cat some-f")


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_what_a_verb_reads_is_a_file(box: Box, name: str) -> None:
    (box.folder / "some-jobs.csv").write_text("")
    assert "some-jobs.csv" in SHELLS[name](box, "gpuq simulate some-j")


def test_bash_at_a_real_prompt(box: Box) -> None:
    """With readline itself, which also asks for files where the script leaves the word to it."""
    from tests.cli.terminal import Terminal

    (box.folder / "some-file.py").write_text("")
    run(box, "true")
    box.setenv(PATH=f"{box.folder / 'bin'}:{os.environ['PATH']}", PS1="$ ", INPUTRC="/dev/null")
    program = [shell("bash"), "--norc", "--noprofile", "-i"]
    with Terminal(program=program) as terminal:
        terminal.type(f"source {SCRIPTS / FILES['bash']}; bind 'set bell-style none'; echo read''y\n")
        terminal.read_until("ready")
        terminal.type("gpuq submit --gpus 0 -- cat some-f\t")
        terminal.read_until("some-file.py")
        terminal.type("\x15gpuq comp\t bas\t > printed; echo do''ne\n")
        terminal.read_until("done")
        terminal.type("exit\n")
        terminal.finish()
    assert (box.folder / "printed").read_text() == (SCRIPTS / FILES["bash"]).read_text()


def test_descriptions_are_escaped(box: Box) -> None:
    box.submit("echo", "\x1b[2J", gpus=0, hold=True, name="a\tb\n\x07")
    assert box.ok("complete-ids", "held") == "1\theld a\\tb\\n\\x07: echo '\\x1b[2J'\n"
    assert box.ok("complete-ids", "ended") == ""


def test_every_state_is_somewhere() -> None:
    named = {state for states in WHICH.values() for state in states}
    assert named == {state.value for state in LIVE | ENDED}
    assert set(WHICH["live"]) == set(LIVE) and set(WHICH["ended"]) == set(ENDED)
