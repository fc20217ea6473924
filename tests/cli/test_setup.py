"""Settings, `doctor`, the daemon's life and completion, where something about them is wrong."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from gpuq.cli.checks.person import bash_finds_completions
from tests.cli.terminal import shown
from tests.harness import GPUQ, Box

#: <linux/prctl.h> and <linux/capability.h>
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def write_config(box: Box, text: str) -> Path:
    file = box.folder / "home" / ".config" / "gpuq" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


# --- the daemon -----------------------------------------------------------------------------------


def test_restart_looks_at_the_settings_first(box: Box) -> None:
    pid = box.daemon_pid()
    file = write_config(box, "margin = 5\n")
    assert f"{file}: margin" in box.fails(2, "daemon", "restart")
    file.unlink()
    assert "GPUQ_GRACE" in box.fails(2, "daemon", "restart", env={"GPUQ_GRACE": "soon"})
    assert "GPUQ_GPUS" in box.fails(2, "daemon", "restart", env={"GPUQ_GPUS": "many"})
    assert "GPUQ_GPUS" in box.fails(2, "daemon", "restart", env={"GPUQ_GPUS": "sim:many"})
    assert box.daemon_pid() == pid, "the good daemon was stopped"


def test_stop_jobs_without_a_daemon(box: Box) -> None:
    message = box.fails(5, "daemon", "stop", "--jobs")
    assert "no daemon runs" in message
    assert "run on" in message and "`gpuq cancel --state running`" in message
    assert "run on" not in box.fails(5, "daemon", "stop")


# --- config ---------------------------------------------------------------------------------------


def test_config_shows_the_meaning_at_80_columns(box: Box) -> None:
    file = write_config(box, 'margin = "1GiB"\n')
    text = shown("config", "show")
    assert "memory kept free on each GPU, beside all claims" in re.sub(r"\s+", " ", text)
    assert max(len(line) for line in text.splitlines() if str(file) not in line) <= 80
    assert str(file) in text
    assert "SETTING" in text and re.search(r"^margin +1GiB +config\.toml$", text, re.M)


def test_config_tells_what_the_daemon_does_not_use_yet(box: Box) -> None:
    box.daemon_pid()
    assert box.run("config", "show").stderr == ""
    write_config(box, 'margin = "1GiB"\nlist_rows = 7\ndefault_gpus = 0\n')
    done = box.run("config", "show")
    assert done.returncode == 0
    assert "margin" in done.stderr and "256MiB" in done.stderr and "`gpuq daemon restart`" in done.stderr
    assert "list_rows" not in done.stderr and "default_gpus" not in done.stderr
    assert "margin" in box.run("config", "show", "--json").stderr
    box.ok("daemon", "restart")
    assert box.run("config", "show").stderr == ""


# --- doctor ---------------------------------------------------------------------------------------


def obey_modes() -> None:
    """Runs before a program: takes away what lets root pass by the modes of files (capabilities(7))."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_doctor_where_nothing_may_be_looked_at(box: Box) -> None:
    closed = box.folder / "closed"
    closed.mkdir(mode=0)
    done = subprocess.run(
        [*GPUQ, "doctor"],
        capture_output=True,
        text=True,
        env={**os.environ, "GPUQ_STATE_DIR": str(closed / "state"), "HOME": str(closed), "SHELL": "/bin/bash"},
        preexec_fn=obey_modes if os.geteuid() == 0 else None,
        check=False,
    )
    closed.chmod(0o700)
    assert done.stderr == ""
    assert done.returncode == 1
    for name in ("settings", "state folder"):
        assert re.search(rf"^fail  {name}: .*[Pp]ermission denied", done.stdout, re.M), done.stdout
    assert re.search(r"^ok    python: ", done.stdout, re.M)
    assert re.search(r"^ok    cgroups: ", done.stdout, re.M), "a check after the broken ones"


def test_doctor_on_completion(box: Box) -> None:
    text = box.run("doctor", env={"SHELL": "/bin/zsh"}).stdout
    assert "mkdir -p ~/.zfunc && gpuq completion zsh > ~/.zfunc/_gpuq\n" in text
    folder = box.folder / "home" / ".local" / "share" / "bash-completion" / "completions"
    folder.mkdir(parents=True)
    (folder / "gpuq").write_text("")
    packaged = Path("/usr/share/bash-completion/bash_completion").exists()
    text = box.run("doctor", env={"SHELL": "/bin/bash"}).stdout
    assert re.search(rf"^{'ok  ' if packaged else 'warn'}  completion: ", text, re.M)
    assert ("bash-completion package" in text) == (not packaged)
    (box.folder / "home" / ".bashrc").write_text("source ~/.local/share/bash-completion/completions/gpuq\n")
    assert "ok    completion: installed for bash\n" in box.run("doctor", env={"SHELL": "/bin/bash"}).stdout


@pytest.mark.parametrize(
    ("packaged", "bashrc", "found"),
    [(True, None, True), (False, None, False), (False, "alias l=ls\n", False), (False, ". ~/gpuq.bash\n", True)],
)
def test_where_bash_finds_completions(tmp_path: Path, packaged: bool, bashrc: str | None, found: bool) -> None:
    package, rc = tmp_path / "bash_completion", tmp_path / "bashrc"
    if packaged:
        package.write_text("")
    if bashrc is not None:
        rc.write_text(bashrc)
    assert bash_finds_completions(package, rc) is found


# --- help -----------------------------------------------------------------------------------------


def test_completion_help_makes_the_folder(box: Box) -> None:
    text = box.ok("completion", "--help")
    for folder in ("~/.local/share/bash-completion/completions", "~/.zfunc", "~/.config/fish/completions"):
        assert f"mkdir -p {folder}" in text
    assert "bash-completion package" in text and "~/.bashrc" in text


def test_examples_of_simulated_gpus_leave_the_real_queue_alone(box: Box) -> None:
    for words in (["daemon", "start"], ["sim-job"]):
        text = box.ok(*words, "--help")
        lines = [line for line in text.splitlines() if "GPUQ_GPUS=sim:" in line]
        assert lines and all("GPUQ_STATE_DIR=$(mktemp -d)" in line for line in lines), text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["submit", "--cpus", "x", "--", "true"], "gpuq: --cpus 'x' is not a whole number; see `gpuq submit --help`\n"),
        (["submit", "-c", "1.5", "--", "true"], "gpuq: --cpus '1.5' is not a whole number; see `gpuq submit --help`\n"),
        (["list", "-n", "x"], "gpuq: -n 'x' is not a whole number; see `gpuq list --help`\n"),
        (["list", "--bogus"], "gpuq: there is no option --bogus; see `gpuq list --help`\n"),
        (
            ["list", "--sate", "x"],
            "gpuq: there is no option --sate; did you mean --state, --start? see `gpuq list --help`\n",
        ),
        (["list", "--state"], "gpuq: --state needs a value; see `gpuq list --help`\n"),
        (["list", "--json=1"], "gpuq: --json takes no value; see `gpuq list --help`\n"),
        (["logs"], "gpuq: ID is missing; see `gpuq logs --help`\n"),
        (["gpus", "x"], "gpuq: there is no verb 'x'; see `gpuq gpus --help`\n"),
        (["top", "x"], "gpuq: 'x' is too much; see `gpuq top --help`\n"),
        (["daemon", "frob"], "gpuq: there is no verb 'frob'; see `gpuq daemon --help`\n"),
        (["logs", "1", "\x1b[31m"], "gpuq: '\\x1b[31m' is too much; see `gpuq logs --help`\n"),
    ],
)
def test_typing_errors_are_told_in_our_words(box: Box, args: list[str], message: str) -> None:
    assert box.fails(2, *args) == message
