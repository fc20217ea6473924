"""What holds for every verb: help with examples, errors as one line, start-up without what is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("words", ["config show", "list", "list -n 1", "events", "show 1", "--help"])
def test_a_full_disk_is_reported(box: Box, words: str) -> None:
    box.submit_many([["true"]] * 2, hold=True, gpus=0)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*GPUQ, *words.split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "gpuq: the output could not be written: No space left on device\n"


def _on_a_full_disk(*args: str) -> str:
    """The one message of a command whose output cannot be written."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*GPUQ, *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1, done.stderr
    start = "gpuq: the output could not be written: No space left on device"
    assert done.stderr.startswith(start) and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix(start).strip()


def test_jobs_whose_ids_could_not_be_printed_are_named(box: Box) -> None:
    """Whoever is told that it failed, and not that it is queued, submits again."""
    box.submit("true")  # the first is told of the GPUs
    submit = ["submit", "--gpus", "0", "--hold"]
    assert _on_a_full_disk(*submit, "--", "true") == "; job 2 is queued all the same: do not submit again"
    told = "; jobs 3-5 are queued all the same: do not submit again"
    assert _on_a_full_disk(*submit, "--array", "0-2", "--", "true") == told
    told = "; jobs 6-5005 are queued all the same: do not submit again"
    assert _on_a_full_disk(*submit, "--array", "0-4999", "--", "true") == told, "more than a buffer holds"
    assert _on_a_full_disk(*submit, "--json", "--", "true").startswith("; job 5006 is queued")
    assert _on_a_full_disk("run", "--", "echo", "x") == "; job 5007 goes on, `gpuq logs -f 5007` follows it"
    assert box.wait(5007)["state"] == "succeeded"


def test_a_log_that_cannot_be_printed(box: Box) -> None:
    job = box.submit("echo", "x")
    box.wait(job)
    assert _on_a_full_disk("logs", "1") == "" and _on_a_full_disk("logs", "-f", "1") == ""


def test_in_a_folder_that_was_removed(box: Box) -> None:
    """Names of files mean nothing there; whole paths do."""
    gone = "mkdir gone; cd gone; rmdir ../gone; exec " + " ".join(GPUQ)
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}

    def there(words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f"{gone} {words}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **env, **more},
        )

    for words in ("db backup x.db", "db restore x.db", "submit -g0 -- true"):
        done = there(words)
        assert done.returncode == 2 and done.stderr.startswith("gpuq: this folder has been removed; cd to another"), (
            words
        )
    done = there("list", GPUQ_STATE_DIR="state")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "GPUQ_STATE_DIR 'state'" in done.stderr
    assert there(f"db backup {box.folder}/copy.db").stdout == f"{box.folder}/copy.db\n"


@pytest.mark.parametrize("words", [["list"], ["db", "restore", "/x"]])
def test_an_interpreter_that_cannot_be_executed_is_named(box: Box, words: list[str]) -> None:
    """As where somebody took the rights of a virtual environment's files."""
    python = box.folder / "python"
    python.write_text("")
    program = (
        f"import sys; from gpuq.cli.app import invoke; sys.executable = {str(python)!r}; sys.exit(invoke({words}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert f"could not be started: {python}: Permission denied; " in done.stderr and done.stderr.count("\n") == 1


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
