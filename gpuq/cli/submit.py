"""`submit`: one command, an array of it, or a file of commands. Prints the ids."""

import os
import sys
import time as clock
from typing import Annotated

import typer

from gpuq.cli import options as opt
from gpuq.cli import parse
from gpuq.cli.commands import Lines, Typed
from gpuq.cli.common import Json, Progress, Quiet, count_jobs, examples, new_app, on_terminal, printing, tell
from gpuq.cli.link import Retries
from gpuq.client import PATIENCE, Client
from gpuq.errors import ConnectionLost, GpuqError, UsageError
from gpuq.protocol import MAX_LINE, Message, encode

#: How often in a row a daemon may go away in the middle of a submission, in some three seconds.
TRIES = 10
#: What the slowest disk may take for the one commit of a large submission.
JOBS_PER_SECOND = 500

Commands = Typed | Lines

app = new_app()


@app.command(
    "submit",
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "gpuq submit --vram 10GiB -- python train.py --lr 1e-4",
        "gpuq submit --gpus 2 --time 8h --name big -- ./train.sh",
        "gpuq submit --gpus 1:4 --gpu-type 'A100|H100' -- ./train.sh",
        "gpuq submit --gpu-min-memory 40GiB --exclude-gpu 0 -- ./train.sh",
        "gpuq submit --array 0-99%4 --vram 4GiB -- ./eval.sh   sees GPUQ_ARRAY_INDEX",
        "gpuq submit --after ok:12 -- python report.py",
        "gpuq submit --after array:13 -- ./merge.sh   after a whole array",
        "gpuq submit --array 0-99 --after each:13 -- ./plot.sh   one by one",
        "gpuq submit --after 'ok:12|failed:13' --after started:14 -- ./report.sh",
        "gpuq submit --retry vram-oom:2*1.5 --requeue --vram 8GiB -- ./train.sh",
        "gpuq submit --time 8h --signal USR1@300 --grace 2m -- ./train.sh",
        "gpuq submit --group night --stop-after 3 --from sweep.txt",
        "gpuq submit --queue night --time 6h -- ./train.sh",
        "gpuq submit --gpus 0 --from commands.txt   a shell command per line",
    ),
)
def submit(
    command: opt.Command = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A shell command per line, `-` for stdin; blank and # lines are none. All are queued or none.",
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            "--array", "-a", metavar="INDEXES", help="One job per index: 0-99, 1,3,5-9, 0-10:2; %4 runs 4 at a time."
        ),
    ] = None,
    name: opt.Name = None,
    gpus: opt.Gpus = None,
    vram: opt.Vram = None,
    gpu_type: opt.GpuType = None,
    gpu_min_memory: opt.GpuMinMemory = None,
    gpu_id: opt.GpuId = None,
    exclude_gpu: opt.ExcludeGpu = None,
    spread: opt.Spread = False,
    cpus: opt.Cpus = None,
    ram: opt.Ram = None,
    time: opt.Time = None,
    priority: opt.Priority = 0,
    after: opt.After = None,
    begin: opt.Begin = None,
    hold: opt.Hold = False,
    tag: opt.Tag = None,
    cwd: opt.Cwd = None,
    env: opt.Env = None,
    export: opt.Export = None,
    output: opt.Output = None,
    signal: opt.Signal = None,
    grace: opt.Grace = None,
    log_limit: opt.LogLimit = None,
    retry: opt.Retry = None,
    requeue: opt.Requeue = False,
    preemptible: opt.Preemptible = False,
    queue: opt.Queue = None,
    group: opt.Group = None,
    stop_after: opt.StopAfter = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Queue a command, an array of it, or a file of commands.

    Prints the id: on a terminal in a sentence, elsewhere and with -q alone, one per line. Options of gpuq end at
    `--` or at the command's first word.
    """
    if from_ is not None and command:
        raise UsageError(f"--from and a command exclude each other: {command[0]!r} is one")
    if from_ is not None and array is not None:
        raise UsageError("--from and --array exclude each other: each line of a file is a job already")
    if from_ is None:
        opt.check_command(command or [], "submit")
    members = parse.parse_array(array) if array is not None else None
    resources = opt.Resources(
        name,
        gpus,
        vram,
        cpus,
        ram,
        time,
        priority,
        after or [],
        begin,
        hold,
        tag or [],
        cwd,
        output,
        signal,
        grace,
        log_limit,
        retry or [],
        requeue,
        preemptible,
        gpu_type=gpu_type or [],
        gpu_min_memory=gpu_min_memory,
        gpu_id=gpu_id or [],
        exclude_gpu=exclude_gpu or [],
        spread=spread,
        queue=queue,
        group=group,
        stop_after=stop_after,
    )
    template = opt.make_template(resources, clock.time())
    environment = opt.make_environment(export, env or [])
    if from_ is None:
        first, last = send(template, environment, Typed(command or []), members)
    else:
        with Lines(from_) as commands:
            first, last = send(template, environment, commands)
    _report(first, last, as_json=as_json, quiet=quiet)


def send(
    template: Message,
    environment: dict[str, str],
    commands: Commands,
    array: tuple[list[int], int] | None = None,
) -> tuple[int, int]:
    """Submit; the first and last id. The key makes it safe to send again when the connection breaks."""
    head: Message = {"key": os.urandom(16).hex(), "template": template, "env": environment, "count": commands.count}
    if array is not None:
        head["array"] = {"indexes": array[0], "limit": array[1]}
    jobs = commands.count * (len(array[0]) if array is not None else 1)
    retries = Retries(TRIES)
    sending = Sending()
    while True:
        try:
            with retries.connect() as client:
                client.socket.settimeout(PATIENCE + jobs / JOBS_PER_SECOND)
                reply = _send_parts(client, head, commands, sending)
            break
        except ConnectionLost as error:
            retries.lost(error)
        except KeyboardInterrupt:
            tell(sending.interrupted())
            raise
    for note in reply.get("notes", []):
        tell(str(note))
    first, last = reply["ids"]
    return int(first), int(last)


class Sending:
    """How far a submission has come, in however many tries."""

    def __init__(self) -> None:
        #: its last part was on its way once: it may be queued by now
        self.whole = False

    def interrupted(self) -> str:
        if not self.whole:
            return "interrupted: nothing was queued"
        return "interrupted before the answer: it may have been queued; `gpuq list` tells"


def _send_parts(client: Client, head: Message, commands: Commands, sending: Sending) -> Message:
    """Send every part, the next before the reply to one is read; a refusal is heard soon, and ends the sending."""
    sent, unanswered = 0, 0
    reply: Message = {}
    with Progress("submitting", commands.count) as progress:
        for part in commands.parts():
            sent += len(part)
            fields = {**head, "commands": part, "last": sent == commands.count}
            if "template" in head:
                _refuse_too_long(fields)
            sending.whole = sending.whole or sent == commands.count
            client.send("submit", **fields)
            unanswered += 1
            head = {"key": head["key"]}
            if unanswered > 1:
                reply = client.receive()
                unanswered -= 1
            progress.show(sent)
        for _ in range(unanswered):
            reply = client.receive()
    if "ids" not in reply:
        raise UsageError(f"the file of commands was changed while it was read: {commands.count:,} were there at first")
    return reply


def _refuse_too_long(fields: Message) -> None:
    size = len(encode(fields)) + 100
    if size > MAX_LINE:
        raise UsageError(
            f"command, environment and array indexes are {size:,} bytes together, and at most "
            f"{MAX_LINE:,} can be sent; choose variables with --export"
        )


def _report(first: int, last: int, *, as_json: bool, quiet: bool) -> None:
    """Print the ids. Where that fails the message has them, so that nobody submits again what is queued."""
    try:
        with printing():
            _print_ids(first, last, as_json=as_json, quiet=quiet)
    except (GpuqError, KeyboardInterrupt) as error:
        queued = f"job {first} is" if first == last else f"jobs {first}-{last} are"
        text = f"{queued} queued all the same: do not submit again"
        if isinstance(error, KeyboardInterrupt):
            tell(f"interrupted: {text}")
            raise
        raise type(error)(f"{error.message}; {text}") from None


def _print_ids(first: int, last: int, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        from gpuq.cli.pages import by_id, print_jobs

        print_jobs(by_id(range(first, last + 1)))
    elif quiet or not on_terminal():
        sys.stdout.writelines(f"{job}\n" for job in range(first, last + 1))
    elif first == last:
        print(f"submitted job {first}; `gpuq logs -f {first}` follows its output")
    else:
        print(f"submitted jobs {first}-{last}, {count_jobs(last - first + 1)}; `gpuq list` shows them")
