"""`gpus`: each GPU, what is claimed and used on it, and by whom; `gpus disable|enable`."""

import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from gpuq.cli import fields, plain
from gpuq.cli.common import Json, examples, new_app, on_terminal, print_json, tell
from gpuq.units import format_size, printable

app = new_app()


app.info.epilog = examples(
    "gpuq gpus",
    "gpuq gpus --json | jq '.gpus[] | {index, headroom_bytes}'",
    "gpuq gpus disable 0 --why 'fan is broken'",
    "gpuq gpus enable 0",
)

Gpus = Annotated[list[str], typer.Argument(metavar="GPU...", help="Indexes or UUIDs.", show_default=False)]


@app.callback(invoke_without_command=True)
def gpus(context: typer.Context, as_json: Json = False) -> None:
    """Show the GPUs: memory used, foreign use, claims of jobs, and the headroom left for a start.

    Foreign use is by processes that gpuq did not start; the largest of them are named. What the gpuq of other users
    claims and has not allocated yet counts as foreign, too.
    """
    if context.invoked_subcommand is None:
        _show(as_json)


@app.command(
    "disable",
    epilog=examples("gpuq gpus disable 0 --why 'fan is broken'", "gpuq gpus disable 2 3"),
)
def disable(
    gpu: Gpus,
    why: Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Shown to whoever asks why.")] = None,
    as_json: Json = False,
) -> None:
    """Start no new job on these GPUs, until `gpuq gpus enable`; what runs there goes on."""
    _switch("disable", gpu, why, as_json=as_json)


@app.command("enable", epilog=examples("gpuq gpus enable 0"))
def enable(gpu: Gpus, as_json: Json = False) -> None:
    """Let jobs start again on GPUs that were disabled."""
    _switch("enable", gpu, None, as_json=as_json)


def _switch(do: str, gpu: list[str], why: str | None, *, as_json: bool) -> None:
    from gpuq.client import request

    found = request("gpus-switch", do=do, gpus=gpu, why=why)["gpus"]
    if as_json:
        _show(as_json)
        return
    for one in found:
        name = f"GPU {fields.index_cell(one)}" if one["index"] is not None else one["uuid"]
        if not one["changed"]:
            tell(f"{name} is {do}d already")
        elif on_terminal():
            print(f"{name} is {do}d")


def _show(as_json: bool) -> None:
    from gpuq.client import request

    reply = request("gpus")
    if as_json:
        print_json("gpuq.gpus/1", **{key: reply.get(key) for key in ("gpus", "driver", "version", "fault", "note")})
        return
    found: list[dict[str, Any]] = reply["gpus"]
    fault, note = reply.get("fault"), reply.get("note")
    if fault and not (note or "").startswith(fault):
        tell(fault)
    if note:
        tell(note)
    if not found:
        return
    if on_terminal():
        from gpuq.cli import render

        render.print_gpus(found, list(foreign_lines(found)))
    else:
        sys.stdout.write(plain.columns((*fields.GPU_HEADER, "uuid"), map(_row, found)))


def _row(gpu: Mapping[str, Any]) -> tuple[str, ...]:
    return (*fields.gpu_row(gpu), printable(gpu["uuid"]))


def foreign_lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line per foreign process and per claim of another gpuq: whom to ask."""
    for gpu in found:
        for claim in gpu.get("neighbours") or []:
            size, used = claim.get("claimed_bytes"), claim.get("used_bytes") or 0
            what = "the whole GPU" if size is None else format_size(size)
            owner = printable(str(claim.get("owner")))
            yield f"gpu{fields.index_cell(gpu)}: {owner}'s gpuq claims {what} and uses {format_size(used)} of it"
        for process in gpu.get("processes") or []:
            if process.get("job") is None:
                used = fields.size_cell(process.get("used_bytes")) or "an unknown amount"
                program = printable(str(process.get("program") or "a process that cannot be seen from here"))
                owner = f" of {printable(str(process['owner']))}" if process.get("owner") is not None else ""
                yield f"gpu{fields.index_cell(gpu)}: {program}{owner}, pid {process['pid']}, uses {used}"
