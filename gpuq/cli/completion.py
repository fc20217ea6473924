"""`completion SHELL` prints a static script, made from the commands themselves: TAB on verbs and options starts no
Python. Job ids come from the hidden `complete-ids`, which never starts a daemon.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from gpuq.cli.common import examples, new_app
from gpuq.errors import GpuqError, UsageError

app = new_app()

#: Where each shell looks for the script.
INSTALL = {
    "bash": "~/.local/share/bash-completion/completions/gpuq",
    "zsh": "~/.zfunc/_gpuq",
    "fish": "~/.config/fish/completions/gpuq.fish",
}

#: Which jobs a verb can be about, by their states. In words, because importing them takes longer than all else here.
WHICH = {
    "live": ["held", "queued", "running", "suspended"],
    "running": ["running"],
    "suspended": ["suspended"],
    "queued": ["queued"],
    "held": ["held"],
    "waiting": ["held", "queued"],
    "ended": ["cancelled", "failed", "skipped", "succeeded"],
    "all": [],
}
VERB_JOBS = {
    "cancel": "live",
    "wait": "live",
    "hold": "queued",
    "edit": "waiting",
    "release": "held",
    "suspend": "running",
    "resume": "suspended",
    "retry": "ended",
}
#: At most so many ids are offered, the newest.
MOST = 200
#: Characters of a description.
WIDTH = 60


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a verb, for the scripts."""

    names: tuple[str, ...]
    help: str
    #: what its value is: "" for a flag, else files, folders, states, ids, text
    value: str
    repeatable: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A verb, for the scripts. `words` is what one types: `daemon stop`."""

    words: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    #: what follows: "" nothing, ids:WHICH, command, shells, files, verbs (of a group)
    argument: str


#: What bash needs besides the file.
BASH_NEEDS = f"install the bash-completion package, or write into ~/.bashrc: source {INSTALL['bash']}"


def install_commands(shell: str) -> tuple[str, str]:
    """What to type to install the script where the shell looks for it."""
    place = INSTALL[shell]
    return f"mkdir -p {place.rpartition('/')[0]}", f"gpuq completion {shell} > {place}"


@app.command(
    "completion",
    epilog=examples(
        *(line for shell in INSTALL for line in install_commands(shell)),
        "for bash without the bash-completion package once in ~/.bashrc:",
        f"  source {INSTALL['bash']}",
        "for zsh once in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit",
    ),
)
def completion(shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]) -> None:
    """Print the completion script of a shell: verbs, options, states, and the ids of your jobs."""
    from gpuq.cli import shells

    if shell not in INSTALL:
        raise UsageError(f"{shell!r} is none of {', '.join(INSTALL)}")
    sys.stdout.write({"bash": shells.bash, "zsh": shells.zsh, "fish": shells.fish}[shell](entries()))


@app.command("complete-ids", hidden=True, epilog=examples("gpuq complete-ids live"))
def complete_ids(
    which: Annotated[str, typer.Argument(metavar="WHICH", help=f"{', '.join(WHICH)}.")] = "all",
) -> None:
    """Print ids and what they are, separated by a tab; nothing where no daemon runs."""
    from gpuq.cli.fields import command_cell, name_cell
    from gpuq.client import Client

    states = WHICH.get(which, [])
    try:
        with Client.connect(start=False) as client:
            client.socket.settimeout(2)
            reply = client.request("list", sel={"states": states}, all=True, limit=MOST, after=None)
    except GpuqError:
        return  # a shell in the middle of a line is no place for messages
    for job in reply["jobs"]:
        text = f"{job['state']} {name_cell(job)}: {command_cell(job['command'])}"
        print(f"{job['id']}\t{text if len(text) <= WIDTH else text[: WIDTH - 1] + '…'}")


def entries() -> list[Entry]:
    """Every verb, and every verb of a group, as the scripts need them."""
    from gpuq.cli.app import VERBS, build

    found: list[Entry] = []
    for name, verb in VERBS.items():
        if not verb.panel:
            continue
        command = build(name)
        if verb.group:
            options = _entry((name,), verb.help, command).options if command.params else ()
            found.append(Entry((name,), verb.help, options, "verbs"))
            for sub, subcommand in command.commands.items():
                found.append(_entry((name, sub), subcommand.get_short_help_str(limit=200), subcommand))
        else:
            found.append(_entry((name,), verb.help, command))
    return found


def _entry(words: tuple[str, ...], help_: str, command: Any) -> Entry:
    options, argument = [], ""
    for param in command.params:
        if param.param_type_name == "option":
            options.append(_option(param))
        else:
            argument = _argument(words[0], param.metavar or "")
    options.append(Option(("-h", "--help"), "Show the help.", "", False))
    return Entry(words, help_, tuple(options), argument)


def _option(param: Any) -> Option:
    metavar = param.metavar or ""
    value = "text"
    for kind, mark in (("files", "FILE"), ("folders", "DIR"), ("states", "STATE"), ("ids", "]ID")):
        if mark in metavar:
            value = kind
    names = tuple(sorted(param.opts, key=len))
    return Option(names, (param.help or "").rstrip("."), "" if param.is_flag else value, bool(param.multiple))


def _argument(verb: str, metavar: str) -> str:
    if "COMMAND" in metavar:
        return "command"
    if "SHELL" in metavar:
        return "shells"
    if "FILE" in metavar:
        return "files"
    return f"ids:{VERB_JOBS.get(verb, 'all')}" if "ID" in metavar else ""
