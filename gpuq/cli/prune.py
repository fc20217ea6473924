"""`prune`: ended jobs and what they left on the disk go."""

import sys
from typing import Annotated, Any

import typer

from gpuq.cli.common import (
    Groups,
    Ids,
    Json,
    Quiet,
    States,
    Tags,
    count_jobs,
    examples,
    new_app,
    print_done,
    print_json,
    select,
    tell,
)
from gpuq.protocol import ranges
from gpuq.units import format_size, parse_duration, parse_size

app = new_app()


@app.command(
    "prune",
    epilog=examples(
        "gpuq prune --older 90d",
        "gpuq prune --older 7d --state failed,cancelled --dry-run",
        "gpuq prune --larger 1GiB --logs-only",
    ),
)
def prune(
    ids: Ids = None,
    older: Annotated[str | None, typer.Option("--older", metavar="TIME", help="Only jobs ended so long ago.")] = None,
    larger: Annotated[
        str | None, typer.Option("--larger", metavar="SIZE", help="Only jobs that left at least so much on disk.")
    ] = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    every: Annotated[bool, typer.Option("--all", help="Every job that has ended.")] = False,
    logs_only: Annotated[bool, typer.Option("--logs-only", help="Remove logs, keep the jobs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Remove ended jobs, with their logs and run folders.

    Files that `--output` named stay, and so do jobs that a waiting job depends on. On a terminal it asks first.
    """
    from gpuq.client import request

    wanted: dict[str, Any] = {
        "sel": select(ids, state, tag, group).to_json(),
        "older": None if older is None else parse_duration(older, "--older"),
        "larger": None if larger is None else parse_size(larger, "--larger"),
        "logs_only": logs_only,
        "all": every,
    }
    if not (yes or dry_run) and sys.stdin.isatty():
        told = request("prune", dry_run=True, **wanted)
        tell(f"{_sentence(told, logs_only)} would go; go on? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    reply = request("prune", dry_run=dry_run, **wanted)
    if as_json:
        print_json("gpuq.db/1", pruned=reply["done"], kept=reply["kept"], bytes=reply["bytes"], dry_run=dry_run)
        return 0
    print_done(reply["done"], f"{_sentence(reply, logs_only)} {'would go' if dry_run else 'went'}", quiet=quiet)
    if not reply["done"] and not reply["kept"]:
        tell("nothing was chosen: no ended job is as these options say")
    if reply["kept"]:
        tell(f"kept, because jobs that wait depend on them: {ranges(reply['kept'])}")
    return 0


def _sentence(reply: dict[str, object], logs_only: bool) -> str:
    done = reply["done"]
    count = count_jobs(len(done) if isinstance(done, list) else 0)
    size = format_size(int(str(reply["bytes"])))
    return f"the logs of {count} (of {size})" if logs_only else f"{count} ({size})"
