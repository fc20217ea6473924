"""`edit`: change what waiting jobs ask for."""

import time as clock
from typing import Annotated, Any

import typer

from gpuq import units
from gpuq.cli import options as opt
from gpuq.cli import parse
from gpuq.cli.common import Ids, Json, Quiet, count_jobs, examples, new_app, print_done, select_some, tell
from gpuq.errors import UsageError
from gpuq.protocol import MAX_NAME, ranges

app = new_app()

NONE = "none"


def _text(name: str, help_: str, metavar: str, *short: str) -> Any:
    return typer.Option(name, *short, metavar=metavar, help=help_, show_default=False)


@app.command(
    "edit",
    epilog=examples(
        "gpuq edit 12 --vram 8GiB --time 4h",
        "gpuq edit 12-20 --priority 10",
        "gpuq edit 12 --after ok:11,ok:13     and: gpuq edit 12 --after none",
        "gpuq edit @last --queue night --tag none",
    ),
)
def edit(
    ids: Ids = None,
    name: Annotated[str | None, _text("--name", "Name.", "NAME", "-J")] = None,
    gpus: Annotated[str | None, _text("--gpus", "GPUs; 0 for a CPU job.", "N[:MOST]", "-g")] = None,
    vram: Annotated[str | None, _text("--vram", "GPU memory on each GPU, or 'whole'.", "SIZE|whole")] = None,
    gpu_type: Annotated[
        list[str] | None, _text("--gpu-type", "Only GPUs with one of these names.", "NAME[|NAME]...|none")
    ] = None,
    gpu_min_memory: Annotated[
        str | None, _text("--gpu-min-memory", "Only GPUs with so much memory in all.", "SIZE|none")
    ] = None,
    gpu_id: Annotated[list[str] | None, _text("--gpu-id", "Only these GPUs.", "GPU[,GPU]...|none")] = None,
    exclude_gpu: Annotated[list[str] | None, _text("--exclude-gpu", "None of these GPUs.", "GPU[,GPU]...|none")] = None,
    spread: Annotated[
        bool | None, typer.Option("--spread/--no-spread", help="Take the emptiest GPUs.", show_default=False)
    ] = None,
    cpus: Annotated[int | None, _text("--cpus", "CPUs.", "N", "-c")] = None,
    ram: Annotated[str | None, _text("--ram", "Host memory to reserve.", "SIZE|none")] = None,
    time: Annotated[str | None, _text("--time", "Time limit.", "TIME|none", "-t")] = None,
    priority: Annotated[int | None, _text("--priority", "Larger starts first.", "N", "-p")] = None,
    queue: Annotated[str | None, _text("--queue", "Queue to move to.", "NAME")] = None,
    after: Annotated[
        list[str] | None, _text("--after", "What to wait for instead; as of `submit`.", "[CONDITION:]ID|none", "-d")
    ] = None,
    begin: Annotated[str | None, _text("--begin", "Not before.", "WHEN|none", "-b")] = None,
    tag: Annotated[list[str] | None, _text("--tag", "Labels instead of those there are; repeat.", "TAG|none")] = None,
    group: Annotated[str | None, _text("--group", "Jobs that stop together.", "NAME|none")] = None,
    stop_after: Annotated[str | None, _text("--stop-after", "Failures after which they do.", "N|none")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change what waiting jobs ask for; all of those that are named or none.

    What is named replaces what was there, and `none` takes it away. A job keeps its id and its age. One that runs or
    has ended is refused; of a range (12-20) those that wait are meant.
    """
    from gpuq.client import request

    selection = select_some(ids)
    changes: dict[str, Any] = {}
    if gpus is not None:
        changes["gpus"], changes["gpus_most"] = parse.parse_gpus(gpus)
    if vram is not None:
        changes["vram"] = None if vram in ("whole", NONE) else units.parse_size(vram, "--vram")
    for field, what, size in (("gpu_min_memory", "--gpu-min-memory", gpu_min_memory), ("ram", "--ram", ram)):
        if size is not None:
            changes[field] = None if size == NONE else units.parse_size(size, what)
    if gpu_type is not None:
        changes["gpu_types"] = [] if gpu_type == [NONE] else parse.parse_words(gpu_type, "|", "--gpu-type")
    for field, what, words in (("gpu_ids", "--gpu-id", gpu_id), ("gpus_excluded", "--exclude-gpu", exclude_gpu)):
        if words is not None:
            changes[field] = [] if words == [NONE] else parse.parse_words(words, ",", what)
    given = {"spread": spread, "cpus": cpus, "priority": priority}
    changes |= {field: value for field, value in given.items() if value is not None}
    for field, what, text in (("name", "--name", name), ("queue", "--queue", queue)):
        if text is not None:
            changes[field] = opt.short(text, what, MAX_NAME)
    if group is not None:
        changes["group"] = None if group == NONE else opt.short(group, "--group", MAX_NAME)
    if stop_after is not None:
        changes["stop_after"] = None if stop_after == NONE else _number(stop_after)
    if time is not None:
        changes["time_limit"] = None if time == NONE else units.parse_duration(time, "--time")
    if begin is not None:
        changes["begin_at"] = None if begin == NONE else parse.parse_begin(begin, clock.time())
    if tag is not None:
        changes["tags"] = [] if tag == [NONE] else opt.check_tags(tag)
    if after is not None:
        changes["after"] = [] if after == [NONE] else parse.parse_after(after, opt.last_job)
    if not changes:
        raise UsageError("nothing to change: name an option, as in `gpuq edit 12 --priority 5`")
    reply = request("edit", sel=selection.to_json(), changes=changes)
    done: list[int] = reply["done"]
    if as_json:
        from gpuq.cli.pages import by_id, print_jobs

        print_jobs(by_id(done))
    elif not done:
        tell("no job was chosen")
    else:
        which = f"job {done[0]}" if len(done) == 1 else f"{count_jobs(len(done))} ({ranges(done)})"
        print_done(done, f"edited: {which}", quiet=quiet)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"--stop-after {text!r} is neither a number nor none")
    return int(text)
