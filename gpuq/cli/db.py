"""`db check|backup|restore`."""

import sys
from typing import Annotated

import typer

from gpuq.cli.common import Json, absolute, count_jobs, examples, new_app, print_json, tell
from gpuq.client import request, request_then_anew, restore_alone
from gpuq.errors import DaemonUnreachable, GpuqError
from gpuq.protocol import Message, ranges
from gpuq.units import format_size

app = new_app()
app.info.epilog = examples("gpuq db check", "gpuq db backup ~/queue.db", "gpuq db restore ~/queue.db")


@app.callback()
def db() -> None:
    """Check, copy and restore the queue's database."""


@app.command("check", epilog=examples("gpuq db check", "gpuq db check --json | jq .whole"))
def check(as_json: Json = False) -> int:
    """Read the whole database and say whether it is whole; exit code 1 if it is damaged.

    The daemon then recovers what can be read, by itself; `gpuq daemon status` names the report.
    """
    reply = request_then_anew("db-check", anew=lambda reply: not reply["whole"])
    if as_json:
        print_json("gpuq.db/1", **{key: value for key, value in reply.items() if key != "ok"})
    elif reply["whole"]:
        print(f"{reply['path']} is whole ({format_size(reply['bytes'])})")
    if not reply["whole"]:
        tell(
            f"{reply['path']} is damaged: {reply['problems'][0]}; it was set aside, and what could be "
            "read is recovered: `gpuq daemon status` names the report"
        )
    return 0 if reply["whole"] else 1


@app.command("backup", epilog=examples("gpuq db backup", "gpuq db backup --force /mnt/nas/queue.db"))
def backup(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Where to; into `backups/` if not given.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Copy the database while the queue goes on; without FILE into `backups/` of the state folder."""
    path = None if file is None else absolute(file)
    reply = request("db-backup", path=path, force=force)
    if as_json:
        print_json("gpuq.db/1", path=reply["path"], bytes=reply["bytes"])
    else:
        print(reply["path"])


@app.command("restore", epilog=examples("gpuq db restore ~/queue.db", "gpuq db restore --yes ~/queue.db"))
def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A copy that `db backup` made.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Go on with a copy of the database, which is checked first.

    The present database is set aside in `damaged/`, not deleted. Jobs that run go on; nothing that has run since the
    copy was made runs again, and no id is used twice. Jobs that are not in the copy and have not run are lost: it asks
    first, or, where nobody can answer, wants --yes. What was cancelled before it ran waits again if the copy has it so.
    """
    path = absolute(file)
    try:
        told = request("db-restore", path=path, dry_run=True)
        alone = False
    except DaemonUnreachable:  # perhaps because of the database that is to go
        told = restore_alone(path, dry_run=True)
        alone = True
    warning = _warning(told)
    if warning:
        tell(warning)
        if not yes and sys.stdin.isatty():
            tell("go on? [y/N]")
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                return 1
        elif not yes and told["waiting"]:
            raise GpuqError("nothing was changed: write --yes to lose them")
    if alone:
        reply = restore_alone(path, dry_run=False)
        request("status")
    else:
        reply = request_then_anew("db-restore", anew=lambda _: True, path=path)
    if as_json:
        fields = {name: reply[name] for name in ("path", "jobs", "missing")}
        print_json("gpuq.db/1", **fields, waiting=_ids(reply["waiting"]), revived=_ids(reply["revived"]))
    else:
        tell(f"the queue goes on with {reply['path']}: {count_jobs(int(reply['jobs']))} in it")
    return 0


def _ids(spans: list[list[int]]) -> list[int]:
    return [job_id for low, high in spans for job_id in range(low, high + 1)]


def _warning(told: Message) -> str:
    """What a restore costs; empty if nothing."""
    if told["missing"] is None:
        return "the present database cannot be read: how many of its jobs are not in the copy is not known"
    said = []
    waiting, revived = _ids(told["waiting"]), _ids(told["revived"])
    if told["missing"]:
        text = f"not in the copy: {count_jobs(told['missing'])} of the present database"
        if waiting:
            said.append(f"{text}, of which {len(waiting):,} wait and will be lost: {ranges(waiting)}")
        else:
            said.append(f"{text}; those that ran are known by their run folders")
    if revived:
        said.append(f"cancelled or skipped since, and waiting again: {ranges(revived)}")
    return "; ".join(said)
