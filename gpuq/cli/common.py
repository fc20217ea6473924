"""What the verbs share: options that several take, selections, messages, JSON, how far something is."""

import json
import os
import sys
import time as clock
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gpuq.errors import OutputFailed, UsageError
from gpuq.protocol import Selection, parse_ids
from gpuq.units import printable

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Job ids: 12, 12-20 or @last.", show_default=False)
]
States = Annotated[str | None, typer.Option("--state", metavar="STATE,...", help="Only jobs in these states.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="Only jobs with this tag; repeat for several.", show_default=False),
]
Groups = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="NAME", help="Only jobs of this group; array:12 is array 12.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, with a `schema`.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only, one per line.")]


def new_app() -> typer.Typer:
    """A Typer application with our settings, for the commands of one module."""
    return typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


def examples(*lines: str) -> str:
    """The end of a verb's help. `\\b` keeps the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def select(
    ids: list[str] | None, states: str | None = None, tags: list[str] | None = None, groups: list[str] | None = None
) -> Selection:
    """The jobs named on the command line. Raises UsageError."""
    selection = parse_ids(ids or [], states, tags, groups)
    for state in selection.states:
        from gpuq.model import State  # slow to import, and seldom needed

        if state not in {s.value for s in State}:
            raise UsageError(f"there is no state {state!r}: write {', '.join(s.value for s in State)}")
    return selection


def select_some(
    ids: list[str] | None, states: str | None = None, tags: list[str] | None = None, groups: list[str] | None = None
) -> Selection:
    """As `select`, where doing it to every job cannot be what was meant. Raises UsageError."""
    selection = select(ids, states, tags, groups)
    if selection.empty:
        raise UsageError("which jobs? name ids (12, 12-20, @last), or choose with --state, --tag or --group")
    return selection


def on_terminal() -> bool:
    return sys.stdout.isatty()


def screen_width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none."""
    if not on_terminal():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def tell(text: str) -> None:
    """A message for the person: on stderr, one line or more, escaped."""
    print(f"gpuq: {printable(text, newline=True)}", file=sys.stderr)


def print_json(schema: str, **fields: Any) -> None:
    """One object on stdout: on a terminal indented, elsewhere on one line."""
    indent = 2 if on_terminal() else None
    print(json.dumps({"schema": schema, **fields}, indent=indent))


def print_done(done: Iterable[int], sentence: str, *, quiet: bool) -> None:
    """Ids on which something was done: bare, one per line, for programs, and a sentence for a person."""
    if quiet or not on_terminal():
        sys.stdout.writelines(f"{job}\n" for job in done)
    else:
        print(sentence)


def tell_refused(refused: Iterable[Mapping[str, Any]]) -> int:
    """Report jobs on which the operation was not possible; how many they were."""
    count = 0
    for item in refused:
        message = str(item["message"])
        tell(message if str(item["id"]) in message else f"job {item['id']}: {message}")
        count += 1
    return count


def count_jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count:,} jobs"


@contextmanager
def printing() -> Iterator[None]:
    """What the block prints is written when it ends. Raises BrokenPipeError, OutputFailed where it cannot be."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left need not be tried again
        raise _unwritten(error) from None


def absolute(path: str) -> str:
    """The path from the root. Raises UsageError where it is named from a folder that is gone."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise UsageError("this folder has been removed; cd to another, or name the file by its whole path") from None


#: What takes longer than this, in seconds, shows how far it is.
PATIENT = 1.0


class Progress:
    """A bar on the terminal that stderr is, for what takes longer than PATIENT seconds; nothing anywhere else."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._began = clock.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int) -> None:
        if self._bar is None and sys.stderr.isatty() and clock.monotonic() - self._began > PATIENT:
            from gpuq.cli.render import progress_bar  # slow to import, and only where it draws

            self._bar = progress_bar(self._what, self._total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)


#: Nobody has so many of anything that is counted.
MOST = 2**31 - 1


def check_number(number: int | None, what: str, hint: str = "") -> None:
    """Raises UsageError for a `-n` that is no count."""
    if number is not None and number < 0:
        raise UsageError(f"-n {number} is not a number of {what}{hint}")
    if number is not None and number > MOST:
        raise UsageError(f"-n {number} is too large: at most {MOST:,} {what}{hint}")


def flush() -> None:
    """Everything printed so far to stdout. Raises BrokenPipeError, OutputFailed."""
    with printing():
        pass


def write_raw(data: bytes) -> None:
    """Bytes to stdout past Python's buffer, all of them. Raises BrokenPipeError, OutputFailed."""
    view = memoryview(data)
    while view:
        view = view[write_some(view) :]


def write_some(data: memoryview) -> int:
    """As many of the bytes to stdout as it takes now; how many. Raises BrokenPipeError, OutputFailed."""
    try:
        return os.write(1, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritten(error) from None


def _unwritten(error: OSError) -> OutputFailed:
    return OutputFailed(f"the output could not be written: {error.strerror}")
