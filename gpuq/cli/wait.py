"""`wait`: blocks until jobs have ended. The daemon answers when they have; nothing is polled."""

import select as selectors
import sys
import time
from typing import Annotated, Any

import typer

from gpuq import units
from gpuq.cli.common import (
    Ids,
    Json,
    Quiet,
    States,
    Tags,
    examples,
    new_app,
    on_terminal,
    print_json,
    select_some,
    tell,
)
from gpuq.cli.link import Retries
from gpuq.cli.outcome import exit_code, sentence
from gpuq.client import request
from gpuq.errors import ConnectionLost, NoSuchJob
from gpuq.protocol import Selection, spans

app = new_app()

#: As timeout(1).
TIMED_OUT = 124

Job = dict[str, Any]


@app.command(
    "wait",
    epilog=examples(
        "gpuq wait 12                     exits with the job's code",
        "gpuq wait 12-20 && echo all well",
        "gpuq wait --tag sweep --any      until the first ended",
        "gpuq wait 12 --timeout 2h        124 if it has not ended by then",
    ),
)
def wait(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    any_: Annotated[bool, typer.Option("--any", help="Until the first of them ended; exit with its code.")] = False,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Give up after this time.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Wait until jobs have ended.

    One job: its exit code, 128+n for a signal or its time limit, 1 where there is no code. Several: 1 if any did
    not succeed. With --timeout 124 when the time is up.
    """
    selection = select_some(ids, state, tag)
    seconds = units.parse_duration(timeout, "--timeout") if timeout is not None else None
    jobs = _ended({"sel": _settled(selection).to_json(), "any": any_}, seconds)
    if jobs is None:
        tell(f"not ended within {timeout}")
        return TIMED_OUT
    _report(jobs, as_json=as_json, quiet=quiet)
    if any_ or len(jobs) == 1:
        return exit_code(jobs[0]) if jobs else 0
    return int(any(job["state"] != "succeeded" for job in jobs))


def _settled(selection: Selection) -> Selection:
    """The same jobs by id alone: `--state queued` means those that are queued now, however long this takes."""
    if not (selection.last or selection.states or selection.tags):
        return selection
    jobs = request("list", sel=selection.to_json(), all=True, limit=None, newest=False)["jobs"]
    if not jobs:
        raise NoSuchJob("no job was chosen")
    return Selection(tuple((a, b) for a, b in spans(job["id"] for job in jobs)))


def _ended(fields: dict[str, Any], seconds: float | None) -> list[Job] | None:
    """The jobs once they ended, None when the time is up first."""
    deadline = None if seconds is None else time.monotonic() + seconds
    retries = Retries()
    while True:
        try:
            with retries.connect() as client:
                client.send("wait", **fields)
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selectors.select([client.socket], [], [], left)[0]:
                    return None
                return list(client.receive()["jobs"])
        except ConnectionLost as error:
            retries.lost(error)


def _report(jobs: list[Job], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json("gpuq.jobs/1", jobs=jobs)
    elif quiet:
        sys.stdout.writelines(f"{job['id']}\n" for job in jobs)
    elif on_terminal():
        for job in jobs:
            print(sentence(job))
    else:
        for job in jobs:
            if job["state"] != "succeeded":
                tell(sentence(job))
