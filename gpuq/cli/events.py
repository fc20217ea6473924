"""`events`: what happened, oldest first."""

import json
import sys
from typing import Annotated, Any

import typer

from gpuq.cli.common import Ids, Json, States, Tags, examples, new_app, print_json, select
from gpuq.errors import UsageError

app = new_app()

Event = dict[str, Any]


@app.command(
    "events",
    epilog=examples(
        "gpuq events                    the last 50",
        "gpuq events 12                 of one job",
        "gpuq events -f --json | jq .   as they happen, one object per line",
    ),
)
def events(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens next.")] = False,
    number: Annotated[int, typer.Option("-n", metavar="N", help="The last N; 0 for all that are kept.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what happened: submissions, starts, ends, over-use of claims, GPUs lost.

    With --json one object with `events`; with -f and --json one event per line.
    """
    selection = select(ids, state, tag)
    if not 0 <= number < 2**31:
        raise UsageError(f"-n {number} is not a number of events: 0 for all, or more")
    fields: dict[str, Any] = {"limit": number or None, "follow": follow}
    if not selection.empty:
        fields["sel"] = selection.to_json()
    if follow:
        _follow(fields, as_json)
        return
    from gpuq.client import request

    found: list[Event] = request("events", **fields)["events"]
    if as_json:
        print_json("gpuq.events/1", events=found)
    else:
        for event in found:
            _print(event, as_json=False)


def _follow(fields: dict[str, Any], as_json: bool) -> None:
    from gpuq.cli.link import stream

    for message in stream("events", fields):
        for event in message.get("events") or ([message["event"]] if "event" in message else []):
            _print(event, as_json)
            fields.update(since=event["id"], limit=None)  # where a new connection goes on
        sys.stdout.flush()


def _print(event: Event, as_json: bool) -> None:
    if as_json:
        print(json.dumps(event))
        return
    from gpuq.cli.show import event_line

    print(event_line(event))
