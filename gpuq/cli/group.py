"""`group list|resume`."""

import sys
from typing import Annotated

import typer

from gpuq.cli import plain
from gpuq.cli.common import Json, examples, new_app, on_terminal, print_json, screen_width, tell
from gpuq.cli.fields import local_time
from gpuq.client import request
from gpuq.protocol import Message
from gpuq.units import printable

app = new_app()
app.info.epilog = examples("gpuq group list", "gpuq group resume night", "gpuq cancel --group night")

HEADER = ("group", "state", "running", "waiting", "failures", "jobs", "since")


@app.callback()
def group() -> None:
    """Groups of jobs that stop together after failures in a row: which have, and letting them go on."""


@app.command("list", epilog=examples("gpuq group list", "gpuq group list --json"))
def list_(as_json: Json = False) -> None:
    """Show groups in which jobs wait or run, and those of which the last jobs failed.

    FAILURES counts those in a row, of which JOBS are the last; SINCE is when the group stopped.
    """
    found = request("groups")["groups"]
    if as_json:
        print_json("gpuq.groups/1", groups=found)
        return
    if not found:
        tell("there are no groups: `gpuq submit --group NAME --stop-after N` makes one")
        return
    screen = screen_width()
    for line in plain.columns(HEADER, map(_row, found)).splitlines():
        sys.stdout.write(plain.cut(line, screen) + "\n")


@app.command("resume", epilog=examples("gpuq group resume night", "gpuq group resume array:12"))
def resume(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The group; array:12 is that of array 12.")],
    as_json: Json = False,
) -> None:
    """Let a group that has stopped go on; its failures are counted anew."""
    reply = request("group", name=name, do="resume")
    if as_json:
        print_json("gpuq.groups/1", groups=[reply["group"]])
    elif not reply["changed"]:
        tell(f"group {name} has not stopped")
    elif on_terminal():
        print(f"group {name} goes on")


def _row(group: Message) -> tuple[str, ...]:
    return (
        printable(group["name"]),
        "stopped" if group["stopped_at"] else "open",
        str(group["running"]),
        str(group["waiting"]),
        str(group["failures"]),
        ",".join(map(str, group["failed"])),
        local_time(group["stopped_at"]),
    )
