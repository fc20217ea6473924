"""What holds for every verb: help with examples, errors as one line, start-up without what is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gpuq import __version__
from gpuq.cli.app import VERBS, build
from tests.harness import GPUQ, Box

#: Every verb as one types it, those of groups included.
WORDS = [
    words
    for name, verb in VERBS.items()
    for words in ([(name, sub) for sub in build(name).commands] if verb.group else [(name,)])
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_every_verb_has_help_and_examples(words: tuple[str, ...]) -> None:
    command = build(words[0])
    if len(words) == 2:
        command = command.commands[words[1]]
    assert len(command.help.split(".")[0]) > 10
    assert "Examples:" in command.epilog
    assert f"gpuq {' '.join(words)}" in command.epilog
    for param in command.params:
        assert param.help, f"{param.name} has no help"


def test_help_is_text_of_80_columns(box: Box) -> None:
    for name, verb in VERBS.items():
        if not verb.group:
            shown = box.ok(name, "--help", env={"COLUMNS": "80"})
            assert f"Usage: gpuq {name}" in shown
            assert max(map(len, shown.splitlines())) <= 80


def test_help_lists_every_verb(box: Box) -> None:
    shown = box.ok("--help")
    for name, verb in VERBS.items():
        assert (f"\n  {name} " in shown) == bool(verb.panel), name
    assert box.ok("-h") == shown
    assert not box.state.exists(), "help started a daemon"


def test_without_a_verb_help_is_a_message(box: Box) -> None:
    assert "submit" in box.fails(2)


def test_version(box: Box) -> None:
    assert box.ok("--version") == f"gpuq {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], "gpuq: there is no verb 'lst'; did you mean 'list'?\n"),
        (["frobnicate"], "gpuq: there is no verb 'frobnicate'; `gpuq --help` lists them\n"),
        (["\x1b[31m"], "gpuq: there is no verb '\\x1b[31m'; `gpuq --help` lists them\n"),
        (["list", "--bogus"], "gpuq: there is no option --bogus; see `gpuq list --help`\n"),
        (["list", "-n", "x"], "gpuq: -n 'x' is not a whole number; see `gpuq list --help`\n"),
        (["daemon", "frob"], "gpuq: there is no verb 'frob'; see `gpuq daemon --help`\n"),
    ],
)
def test_wrong_usage_is_one_line(box: Box, args: list[str], message: str) -> None:
    assert box.fails(2, *args) == message


def test_messages_are_not_endless(box: Box) -> None:
    assert len(box.fails(2, "submit", "--vram", "x" * 100_000, "--", "true")) < 3000


#: What verbs that only talk to the daemon must not import: each costs more than the verb itself.
HEAVY = ["asyncio", "sqlite3", "sqlite_utils", "psutil", "pynvml", "rich", "filelock", "gpuq.model", "tomllib"]
TALKING = [
    ["submit", "--gpus", "0", "--", "true"],
    ["submit", "--hold", "--array", "0-3", "--after", "1", "--gpus", "0", "--time", "1h", "--", "true"],
    ["list"],
    ["list", "--all", "--json"],
    ["show", "1"],
    ["why", "1"],
    ["cancel", "1-2"],
    ["retry", "1"],
    ["events"],
    ["gpus"],
    ["daemon", "status"],
    ["complete-ids"],
]


def test_talking_verbs_import_nothing_heavy(box: Box) -> None:
    box.submit("true", gpus=0)
    program = (
        "import sys\n"
        "from gpuq.cli.app import invoke\n"
        "code = invoke(sys.argv[1:])\n"
        f"found = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print('imported', found, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    for args in TALKING:
        done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        assert "imported []" in done.stderr, (args, done.stderr)


@pytest.mark.usefixtures("box")
def test_only_the_called_verb_is_imported() -> None:
    program = (
        "import sys\n"
        "from gpuq.cli.app import invoke\n"
        "invoke(['config', 'show'])\n"
        "print([m for m in sys.modules if m.startswith('gpuq.cli.')], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "gpuq.cli.settings" in done.stderr
    assert "gpuq.cli.submit" not in done.stderr and "gpuq.cli.listing" not in done.stderr


def test_a_reader_that_leaves_ends_us_quietly(box: Box) -> None:
    box.submit_many([["true"]] * 2000, hold=True, gpus=0)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {' '.join(GPUQ)} list | head -n 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("ID")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", ["config show", "list", "list -n 1", "events", "show 1"])
def test_a_full_disk_is_reported(box: Box, words: str) -> None:
    box.submit_many([["true"]] * 2, hold=True, gpus=0)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*GPUQ, *words.split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "gpuq: the output could not be written: No space left on device\n"


@pytest.mark.usefixtures("box")
def test_closed_streams() -> None:
    for redirection in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f"{' '.join(GPUQ)} config show {redirection}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (redirection, done.stderr)
        assert done.stderr == ""


def test_internal_errors_are_one_line(box: Box) -> None:
    """Code that breaks in a way nobody thought of: a module of ours replaced by one that raises."""
    program = (
        "import sys, types\n"
        "broken = types.ModuleType('gpuq.cli.listing')\n"
        "sys.modules['gpuq.cli.listing'] = broken\n"
        "from gpuq.cli.app import invoke\n"
        "sys.exit(invoke(['list']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gpuq: internal error: AttributeError: ") and done.stderr.count("\n") == 1
    box.setenv(GPUQ_DEBUG="1")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
