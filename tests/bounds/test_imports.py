"""What each verb imports: most of what a command takes is the start of its interpreter and its imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness import Box

#: Modules that a command of Typer's comes with which does nothing: what is ours to decide is what comes on top.
BARE = """\
import sys
import typer
app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
@app.command()
def nothing():
    pass
app([], standalone_mode=False)
print(*sys.modules, file=sys.stderr)
"""
OURS = """\
import sys
from gpuq.cli.app import invoke
code = invoke(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
#: Modules beyond those of the bare command, ours included: a command is to take at most 1.3 times the bare one.
BOUNDS = {
    "submit --gpus 0 -- true": 27,
    "list -n 20": 26,
    "show 1": 27,
    "wait 1": 27,
    "cancel 2": 23,
    "why 1": 26,
    "list --json": 24,
}


def modules(program: str, *args: str) -> set[str]:
    """All that an interpreter has imported at the end of a program."""
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def bare() -> set[str]:
    return modules(BARE)


def test_modules_of_a_verb(box: Box, bare: set[str]) -> None:
    box.wait(box.submit("true", gpus=0))
    box.submit("true", gpus=0, hold=True)
    more = {words: sorted(modules(OURS, *words.split()) - bare) for words in BOUNDS}
    over = {words: (len(names), names) for words, names in more.items() if len(names) > BOUNDS[words]}
    assert not over, over
