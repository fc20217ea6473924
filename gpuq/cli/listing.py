"""`list`: the queue as a table."""

import shlex
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated

import typer

from gpuq.cli.common import (
    Groups,
    Ids,
    Json,
    Quiet,
    States,
    Tags,
    check_number,
    examples,
    flush,
    new_app,
    on_terminal,
    select,
    tell,
)
from gpuq.cli.pages import Job, Jobs, print_jobs
from gpuq.errors import NoSuchJob
from gpuq.units import printable

app = new_app()


@app.command(
    "list",
    epilog=examples(
        "gpuq list                          what runs and what waits",
        "gpuq list --all -n 20              the last jobs as well",
        "gpuq list --state failed --tag lr  what failed of a series",
        "gpuq list --start                  when waiting jobs will start",
        "gpuq list -q --state queued | xargs gpuq hold",
    ),
)
def list_(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Ended jobs too, newest first.")] = False,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    number: Annotated[
        int | None,
        typer.Option("-n", metavar="N", help="At most this many rows, 0 for all; on a terminal 50 if not given."),
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="When waiting jobs will start, as far as one can say.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show jobs: running first, then those that wait by priority and age.

    Without ids, states or --all those that have not ended. VRAM is used/claimed on each GPU, with `!` where more is
    used than was claimed; TIME is how long a job runs or has waited. Estimates are of the queue as it is: `16:20-16:40`
    is from what is likely to what time limits allow, `>17:00` not before, `?` where what is in the way has no limit.
    """
    selection = select(ids, state, tag, group)
    check_number(number, "rows", ", 0 for all")
    limit = number if number is not None else _default_limit(bare=as_json or quiet)
    ended = everything or bool(selection.ranges or selection.last or selection.states)
    bare_ids = quiet and not as_json
    jobs = Jobs(selection, everything=ended, limit=limit or None, ids=bare_ids)
    found = iter(jobs)
    first = next(found, None)
    if first is None and ids:
        raise NoSuchJob(
            f"there is no job {', '.join(ids)}" + (" in that state, with that tag" if state or tag or group else "")
        )
    every = found if first is None else chain([first], found)
    estimates = _estimates() if start and not bare_ids else None
    if as_json and estimates is not None:
        every = ({**job, "estimate": estimates.get(job["id"])} for job in every)
    if as_json:
        print_jobs(every)
    elif quiet:
        sys.stdout.writelines(f"{job['id']}\n" for job in every)
    elif first is None:
        chosen = (
            "no job was chosen"
            if state or tag or group
            else "there is no job: none was submitted yet, or all were pruned"
        )
        tell(chosen if state or tag or group or everything else "no jobs are waiting or running")
    else:
        count = _print(every, estimates)
        command = ["gpuq", "list", *(ids or []), *(["--all"] if everything else [])]
        command += ["--state", state] if state is not None else []
        command += [word for one in tag or [] for word in ("--tag", one)]
        command += [word for one in group or [] for word in ("--group", one)]
        _tell_more(jobs.total - count, shlex.join([*command, "-n", "0"]))


def _default_limit(*, bare: bool) -> int:
    if bare or not on_terminal():
        return 0
    from gpuq.config import load_settings

    return load_settings().list_rows


def _estimates() -> dict[int, Job]:
    """When waiting jobs will start, by id."""
    from gpuq.client import request

    return {estimate.pop("job"): estimate for estimate in request("estimates")["estimates"]}


def _print(jobs: Iterable[Job], estimates: dict[int, Job] | None) -> int:
    """The table; how many rows it has."""
    count = 0

    def counted() -> Iterator[Job]:
        nonlocal count
        for job in jobs:
            count += 1
            yield job

    if on_terminal():
        from gpuq.cli import render

        render.print_jobs(counted(), estimates)
    else:
        from gpuq.cli import fields, plain

        header = fields.JOB_HEADER if estimates is None else fields.START_HEADER
        sys.stdout.writelines(plain.lines(header, (fields.job_row(job, None, estimates) for job in counted())))
    return count


def _tell_more(more: int, for_all: str) -> None:
    if more > 0:
        flush()  # where both go to one file, the table comes first
        text = f"… and {more:,} more ({printable(for_all)} shows all)"
        print(text, file=sys.stdout if on_terminal() else sys.stderr)
