"""What tests run as commands is what people run: the same words on the same streams, and the same code."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests import commands
from tests.harness import GPUQ, PATIENCE, Box

LINES: list[tuple[list[str], bytes | None]] = [
    (["--version"], None),
    ([], None),
    (["nonsense"], None),
    (["config", "show"], None),
    (["submit", "--gpus", "0", "--dry-run", "--", "echo", "\udcff", "ü"], None),
    (["submit", "--from", "-"], b""),
    (["submit", "--gpus", "0", "--from", "-"], b"true\0\n"),
    (["submit", "--gpus", "1000000", "--", "true"], b"not read"),
    (["show", "77"], None),
    (["daemon", "status", "--json", "more"], None),
]


@pytest.mark.parametrize(
    ("words", "given"), LINES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_forked_command_does_what_a_new_interpreter_does(box: Box, words: list[str], given: bytes | None) -> None:
    box.setenv(COLUMNS="70")
    forked = commands.run(tuple(words), given, dict(os.environ), str(box.folder), PATIENCE)
    if given is None:
        started = subprocess.run([*GPUQ, *words], capture_output=True, stdin=subprocess.DEVNULL)
    else:
        started = subprocess.run([*GPUQ, *words], capture_output=True, input=given)
    assert forked is not None
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_what_a_new_interpreter_would_read_needs_one(box: Box) -> None:
    for name in ("PYTHONUTF8", "LC_ALL", "LD_PRELOAD"):
        env = {**os.environ, name: "0"}
        assert commands.run(("--version",), None, env, str(box.folder), PATIENCE) is None
    assert box.ok("--version", env={"PYTHONUTF8": "0"}).startswith("gpuq ")


def test_a_command_that_takes_too_long_is_killed(box: Box) -> None:
    job = box.submit("true", gpus=0, hold=True)
    late = commands.run(("wait", str(job)), None, dict(os.environ), str(box.folder), 0.3)
    assert late is not None and late.returncode == -9
