"""`queue list|set|pause|resume|drain|remove`."""

import sys
from typing import Annotated, Any

import typer

from gpuq import units
from gpuq.cli import plain
from gpuq.cli.common import Json, examples, new_app, on_terminal, print_json, screen_width, tell
from gpuq.client import request
from gpuq.errors import UsageError
from gpuq.protocol import Message
from gpuq.units import format_duration, printable

app = new_app()
app.info.epilog = examples(
    "gpuq queue set night --max-gpus 2 --max-time 8h", "gpuq queue pause night", "gpuq queue list"
)

HEADER = ("queue", "state", "priority", "running", "waiting", "gpus", "of", "time", "why")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The queue.")]
Why = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Shown to whoever asks why a job waits.")]


@app.callback()
def queue() -> None:
    """Look at queues and change them: what jobs of each may have, and whether they start."""


@app.command("list", epilog=examples("gpuq queue list", "gpuq queue list --json | jq '.queues[] | {name, waiting}'"))
def list_(as_json: Json = False) -> None:
    """Show the queues: jobs that run and wait, GPUs in use and allowed, and limits.

    RUNNING and GPUS are used/allowed, OF the indexes of GPUs that its jobs may have, TIME default/maximum.
    """
    found = request("queues")["queues"]
    if as_json:
        print_json("gpuq.queues/1", queues=found)
        return
    screen = screen_width()
    for line in plain.columns(HEADER, map(_row, found)).splitlines():
        sys.stdout.write(plain.cut(line, screen) + "\n")


@app.command(
    "set",
    epilog=examples(
        "gpuq queue set night --gpus 0,1 --default-time 2h --max-time 1d",
        "gpuq queue set night --max-jobs 4 --max-gpus 2 --priority -10",
        "gpuq queue set night --max-time none",
    ),
)
def set_(
    name: Name,
    priority: Annotated[
        int | None, typer.Option("--priority", "-p", metavar="N", help="Added to that of each of its jobs.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="GPU,...|all", help="GPUs that its jobs may have: indexes or UUIDs.")
    ] = None,
    default_time: Annotated[
        str | None, typer.Option("--default-time", metavar="TIME|none", help="Time limit of jobs that name none.")
    ] = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", metavar="TIME|none", help="Longest time limit that a job may have.")
    ] = None,
    max_jobs: Annotated[
        str | None, typer.Option("--max-jobs", metavar="N|none", help="Most jobs that run at a time.")
    ] = None,
    max_gpus: Annotated[
        str | None, typer.Option("--max-gpus", metavar="N|none", help="Most GPUs that these have in all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a queue, or change what is named of it; `none` takes a limit away.

    Times hold for jobs that are submitted or edited from then on. Jobs that run go on, whatever is set.
    """
    changes: dict[str, Any] = {}
    if priority is not None:
        changes["priority"] = priority
    if gpus is not None:
        changes["gpus"] = None if gpus in ("all", "none") else _words(gpus)
    for field, what, text in (("default_time", "--default-time", default_time), ("max_time", "--max-time", max_time)):
        if text is not None:
            changes[field] = None if text == "none" else units.parse_duration(text, what)
    for field, what, text in (("max_jobs", "--max-jobs", max_jobs), ("max_gpus", "--max-gpus", max_gpus)):
        if text is not None:
            changes[field] = None if text == "none" else _count(text, what)
    reply = _change("set", name, changes=changes, as_json=as_json)
    if not as_json and on_terminal():
        done = "is made" if reply["new"] else "is changed" if reply["changed"] else "is so already"
        print(f"queue {name} {done}; `gpuq queue list` shows it")


@app.command("pause", epilog=examples("gpuq queue pause night --why 'maintenance until 9:00'"))
def pause(name: Name, why: Why = None, as_json: Json = False) -> None:
    """Start nothing more of a queue, until `gpuq queue resume`. What runs goes on."""
    _change("pause", name, why=why, as_json=as_json)


@app.command("drain", epilog=examples("gpuq queue drain night --why 'moved to the other host'"))
def drain(name: Name, why: Why = None, as_json: Json = False) -> None:
    """Take no new jobs into a queue, and start what it has."""
    _change("drain", name, why=why, as_json=as_json)


@app.command("resume", epilog=examples("gpuq queue resume night"))
def resume(name: Name, as_json: Json = False) -> None:
    """Let a queue that is paused or draining go on."""
    reply = _change("resume", name, as_json=as_json)
    if not reply["changed"]:
        tell(f"queue {name} is neither paused nor draining")


@app.command("remove", epilog=examples("gpuq queue remove night"))
def remove(name: Name, as_json: Json = False) -> None:
    """Remove a queue in which no jobs wait or run."""
    _change("remove", name, as_json=as_json)


def _change(do: str, name: str, *, as_json: bool, **fields: Any) -> Message:
    reply = request("queue", name=name, do=do, **fields)
    for note in reply["notes"]:
        tell(str(note))
    if as_json:
        print_json("gpuq.queues/1", queues=[reply["queue"]] if reply["queue"] else [])
    return reply


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UsageError(f"--gpus {text!r} names no GPU in one place: write 0,1 or UUIDs, or all")
    return words


def _count(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{what} {text!r} is neither a number nor none")
    return int(text)


def _row(queue: Message) -> tuple[str, ...]:
    times = [format_duration(t) if t else "-" for t in (queue["default_time_seconds"], queue["max_time_seconds"])]
    gpus = queue["gpu_indexes"]
    return (
        printable(queue["name"]),
        queue["state"],
        str(queue["priority"]),
        _of(queue["running"], queue["max_jobs"]),
        str(queue["waiting"]),
        _of(queue["gpus_used"], queue["max_gpus"]),
        "all" if gpus is None else ",".join("?" if index is None else str(index) for index in gpus),
        "" if times == ["-", "-"] else "/".join(times),
        printable(queue["why"] or ""),
    )


def _of(used: int, most: int | None) -> str:
    return str(used) if most is None else f"{used}/{most}"
