"""Checks of what a person has set up: settings, completion."""

import os
from collections.abc import Iterable
from pathlib import Path

from gpuq import config
from gpuq.cli.checks.check import FAIL, OK, WARN, Check
from gpuq.errors import GpuqError

#: What loads the completions of a person's own folder in bash, where distributions install it.
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")


def check_settings() -> Iterable[Check]:
    try:
        found = config.find_settings()
    except GpuqError as error:
        yield Check("settings", FAIL, error.message, "correct that line; `gpuq config show` checks it")
        return
    changed = sum(one.source != "default" for one in found.values())
    yield Check("settings", OK, f"{changed} of {len(found)} changed from their defaults")


def check_completion() -> Iterable[Check]:
    """Whether the completion of the login shell is where its instructions put it."""
    from gpuq.cli.completion import BASH_NEEDS, INSTALL, install_commands

    shell = Path(os.environ.get("SHELL", "")).name
    if shell not in INSTALL:
        yield Check("completion", OK, "for bash, zsh and fish: `gpuq completion --help`")
        return
    place = Path(INSTALL[shell]).expanduser()
    if not place.exists():
        yield Check("completion", WARN, f"not installed for {shell}", " && ".join(install_commands(shell)))
    elif shell == "bash" and not bash_finds_completions(BASH_COMPLETION, Path("~/.bashrc").expanduser()):
        yield Check("completion", WARN, "installed for bash, which does not look there by itself", BASH_NEEDS)
    else:
        yield Check("completion", OK, f"installed for {shell}")


def bash_finds_completions(package: Path, bashrc: Path) -> bool:
    """Whether bash reads the script: through the bash-completion package, or because ~/.bashrc names it."""
    if package.exists():
        return True
    try:
        return "gpuq" in bashrc.read_text(errors="replace")
    except FileNotFoundError:
        return False
