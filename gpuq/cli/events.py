"""`events`: what happened, oldest first."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from gpuq.cli.common import (
    Groups,
    Ids,
    Json,
    States,
    Tags,
    check_number,
    examples,
    flush,
    new_app,
    print_json,
    screen_width,
    select,
)

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
    group: Groups = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens next.")] = False,
    number: Annotated[int, typer.Option("-n", metavar="N", help="The last N; 0 for all that are kept.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what happened: submissions, starts, ends, over-use of claims, GPUs lost.

    With --json one object with `events`; with -f and --json one event per line.
    """
    selection = select(ids, state, tag, group)
    check_number(number, "events", ", 0 for all")
    fields: dict[str, Any] = {"limit": number or None, "follow": follow, "pages": True}
    if not selection.empty:
        fields["sel"] = selection.to_json()
    if as_json and not follow:
        print_json("gpuq.events/1", events=[event for some in _told(fields) for event in some])
        return
    indexes: dict[str, int] = {}
    for found in _told(fields):
        if as_json:
            sys.stdout.writelines(json.dumps(event) + "\n" for event in found)
        else:
            _print(found, indexes)
        flush()


def _told(fields: dict[str, Any]) -> Iterator[list[Event]]:
    """The events, as they come."""
    from gpuq.cli.link import stream

    for message in stream("events", fields):
        # one at a time from a daemon that is older than pages are
        found: list[Event] = message.get("events") or ([message["event"]] if "event" in message else [])
        yield found
        if found:  # where a new connection goes on
            fields.update(since=found[-1]["id"], since_job=found[-1]["job"], limit=None)


def _print(found: list[Event], indexes: dict[str, int]) -> None:
    """A line per event. `indexes` of GPUs is what is known so far, and is added to."""
    from gpuq.cli import event_text, plain

    screen = screen_width()
    indexes.update(_indexes(found, indexes))
    for event in found:
        sys.stdout.write(plain.wrapped(event_text.head(event, named=True), event_text.details(event, indexes), screen))


def _indexes(found: list[Event], known: Mapping[str, int]) -> dict[str, int]:
    """The indexes of GPUs that these events name and nobody told yet, from jobs that had them last."""
    from gpuq.cli.event_text import indexes_of

    data = [(event["job"], event.get("data") or {}) for event in found]
    jobs = {uuid: job for job, told in data if "indexes" not in told for uuid in told.get("gpus") or ()}
    wanted = {job for uuid, job in jobs.items() if uuid not in known}
    if not wanted:
        return {}
    from gpuq.cli.pages import by_id

    return {uuid: index for job in by_id(sorted(wanted)) for uuid, index in indexes_of(job).items()}
