"""The entry point: finds the verb, imports its module and no other, and turns every error into a line and a code."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_command_from_info

from gpuq import __version__
from gpuq.errors import GpuqError, UsageError
from gpuq.units import printable

#: Characters of an error message.
LONGEST_MESSAGE = 2000


class Verb(NamedTuple):
    """Where a verb is defined, and its line in `gpuq --help`."""

    module: str
    help: str
    #: heading in the help; empty for a verb that only programs call
    panel: str
    #: whether the module's app is a group of verbs of its own
    group: bool = False


VERBS: dict[str, Verb] = {
    "submit": Verb("submit", "Queue a command, an array, or a file of commands.", "Jobs"),
    "run": Verb("run", "Submit, print the log, and exit with the job's code.", "Jobs"),
    "edit": Verb("edit", "Change what waiting jobs ask for.", "Jobs"),
    "cancel": Verb("control", "Cancel waiting or running jobs.", "Jobs"),
    "hold": Verb("control", "Keep waiting jobs from starting.", "Jobs"),
    "release": Verb("control", "Let held jobs start.", "Jobs"),
    "suspend": Verb("control", "Stop running jobs where they are; they keep their GPUs.", "Jobs"),
    "resume": Verb("control", "Let suspended jobs go on.", "Jobs"),
    "retry": Verb("control", "Queue ended jobs again, as a new attempt.", "Jobs"),
    "wait": Verb("wait", "Wait until jobs have ended.", "Jobs"),
    "list": Verb("listing", "Show jobs: running first, then waiting.", "Looking"),
    "show": Verb("show", "Show everything about a job.", "Looking"),
    "why": Verb("why", "Say why a job waits, with the numbers behind it.", "Looking"),
    "logs": Verb("logs", "Print a job's output.", "Looking"),
    "gpus": Verb("gpus", "Show the GPUs and who uses their memory; disable and enable them.", "Looking", group=True),
    "top": Verb("top", "Watch GPUs, running jobs and the queue.", "Looking"),
    "events": Verb("events", "Show what happened.", "Looking"),
    "stats": Verb("stats", "Say what jobs waited, ran, used and failed of.", "Looking"),
    "simulate": Verb("simulate", "Try a policy, or other GPUs, on what ran, or on a trace.", "Looking"),
    "queue": Verb("queue", "Queues: their priority, limits and GPUs; pause and drain them.", "Queues", group=True),
    "group": Verb("group", "Groups of jobs that stop together after failures.", "Queues", group=True),
    "prune": Verb("prune", "Remove ended jobs, with their logs.", "Jobs"),
    "db": Verb("db", "Check, copy and restore the queue's database.", "Setting up", group=True),
    "daemon": Verb("daemon", "Start, stop and look at the daemon.", "Setting up", group=True),
    "doctor": Verb("doctor", "Check this machine, and say what to fix.", "Setting up"),
    "config": Verb("settings", "Show the settings, and where each comes from.", "Setting up", group=True),
    "completion": Verb("completion", "Print the completion script of a shell.", "Setting up"),
    "sim-job": Verb("simjob", "Allocate memory on a simulated GPU, to try things out.", "Setting up"),
    "complete-ids": Verb("completion", "List job ids for the completion scripts.", ""),
}


class LazyGroup(TyperGroup):
    """Builds the one command that is called: building all of them would cost more than the rest of the start."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (the signature is Typer's)
        return [name for name, verb in VERBS.items() if verb.panel]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return build(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if word not in VERBS and not word.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(word, self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else "`gpuq --help` lists them"
            raise UsageError(f"there is no verb {word!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        for panel in dict.fromkeys(verb.panel for verb in VERBS.values() if verb.panel):
            rows = [(name, verb.help) for name, verb in VERBS.items() if verb.panel == panel]
            with formatter.section(panel):
                formatter.write_dl(rows)


def build(name: str) -> Any:
    """The command of one verb."""
    from importlib import import_module

    verb = VERBS[name]
    app: typer.Typer = import_module(f"gpuq.cli.{verb.module}").app
    if verb.group:
        return get_command(app)
    info = next(info for info in app.registered_commands if info.name == name)
    return get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)


app = typer.Typer(
    name="gpuq",
    cls=LazyGroup,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB ...",
    epilog="\b\nExamples:\n"
    "  gpuq submit --vram 10GiB -- python train.py   queue a command; prints its id\n"
    "  gpuq list                                     what runs and what waits\n"
    "  gpuq logs -f 12                               follow its output\n"
    "  gpuq VERB --help                              options and examples of a verb",
)


def _version(value: bool) -> None:
    if value:
        print(f"gpuq {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Queue GPU jobs on this machine: a job starts once its GPU memory is free, and not before."""


def main() -> None:
    """What the program `gpuq` runs."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # started with this descriptor closed
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 (open until the process ends)
    if getattr(sys.stdout, "write_through", False):
        # PYTHONUNBUFFERED: without a buffer Python loses what a pipe does not take at once
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(_flushed(invoke(sys.argv[1:])))


def invoke(args: Sequence[str]) -> int:
    """Run a command line; the exit code. Errors become one message on stderr, never a traceback."""
    if not args:
        args = ["--help"]
        sys.stdout = sys.stderr  # help that nobody asked for is a message
        get_command(app)(args, prog_name="gpuq", standalone_mode=False)
        return UsageError.exit_code
    try:
        code = get_command(app)(args, prog_name="gpuq", standalone_mode=False)
    except GpuqError as error:
        return _complain(error.message, error.exit_code)
    except (BrokenPipeError, SystemExit):  # Typer makes of the first the second
        return _closed_pipe()
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:  # noqa: BLE001 (the last resort, which reports)
        if hasattr(error, "format_message"):  # Typer's errors; their base class has no public name
            return _complain(_typed_wrongly(error, args), getattr(error, "exit_code", UsageError.exit_code))
        if os.environ.get("GPUQ_DEBUG"):
            import traceback

            traceback.print_exc()
        return _unforeseen(error)
    return code if isinstance(code, int) else 0


def _unforeseen(error: Exception) -> int:
    from gpuq.cli.common import flush

    try:
        if isinstance(error, OSError):
            flush()  # was it the output? then it fails again
    except BrokenPipeError:
        return _closed_pipe()
    except GpuqError as unwritten:
        return _complain(unwritten.message, unwritten.exit_code)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _complain("no space is left in the state folder; jobs run on", 1)
    return _complain(f"internal error: {type(error).__name__}: {error}", 1)


def _typed_wrongly(error: Exception, args: Sequence[str]) -> str:
    from gpuq.cli.wording import typing_error

    context = getattr(error, "ctx", None)  # the parser's own errors carry none
    words = args[: 2 if args[0] in VERBS and VERBS[args[0]].group else 1] if args[0] in VERBS else ()
    command = context.command_path if context is not None else " ".join(("gpuq", *words))
    text = typing_error(error)
    return f"{text}{' ' if text.endswith('?') else '; '}see `{command} --help`"


def _complain(text: str, code: int) -> int:
    if len(text) > LONGEST_MESSAGE:  # it quotes what was typed, and that may be a file's content
        text = text[:LONGEST_MESSAGE] + "…"
    print(f"gpuq: {printable(text, newline=True)}", file=sys.stderr)
    return code


def _flushed(code: int) -> int:
    from gpuq.cli.common import flush

    try:
        flush()
    except BrokenPipeError:
        return _closed_pipe()
    except GpuqError as error:
        return _complain(error.message, error.exit_code)
    return code


def _closed_pipe() -> int:
    """The reader of our output has gone, as in `gpuq list | head`: stop as `cat` does, without a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 141  # 128 + SIGPIPE
