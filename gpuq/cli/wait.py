"""`wait`: blocks until jobs have ended. The daemon answers when they have; nothing is polled."""

import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

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
T = TypeVar("T")


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
    jobs = _ended(selection, any_) if seconds is None else _within(seconds, lambda: _ended(selection, any_))
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


def _ended(selection: Selection, any_: bool) -> list[Job]:
    """The jobs once they ended."""
    fields = {"sel": _settled(selection).to_json(), "any": any_}
    retries = Retries()
    while True:
        try:
            with retries.connect() as client:
                client.send("wait", **fields)
                return list(client.receive()["jobs"])
        except ConnectionLost as error:
            retries.lost(error)


class _TimeUp(Exception):
    pass


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns or raises; None when the time is up first, also where no daemon can be started meanwhile."""

    def end(_number: int, _frame: object) -> None:
        raise _TimeUp

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    except _TimeUp:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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
