"""`db check|backup|restore`."""

import os
from typing import Annotated

import typer

from gpuq.cli.common import Json, count_jobs, examples, new_app, print_json, tell
from gpuq.client import request, request_then_anew
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
    path = None if file is None else os.path.abspath(file)
    reply = request("db-backup", path=path, force=force)
    if as_json:
        print_json("gpuq.db/1", path=reply["path"], bytes=reply["bytes"])
    else:
        print(reply["path"])


@app.command("restore", epilog=examples("gpuq db restore ~/queue.db"))
def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A copy that `db backup` made.")],
    as_json: Json = False,
) -> None:
    """Go on with a copy of the database, which is checked first.

    The present database is set aside in `damaged/`, not deleted. Jobs that run go on; nothing that has run since the
    copy was made runs again, and no id is used twice.
    """
    reply = request_then_anew("db-restore", anew=lambda _: True, path=os.path.abspath(file))
    if as_json:
        print_json("gpuq.db/1", path=reply["path"], jobs=reply["jobs"])
    else:
        tell(f"the queue goes on with {reply['path']}: {count_jobs(int(reply['jobs']))} in it")
