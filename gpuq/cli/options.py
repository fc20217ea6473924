"""The options that `submit` and `run` share, and the part of a request that they make."""

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gpuq import config, units
from gpuq.cli import parse
from gpuq.cli.common import tell
from gpuq.errors import NoSuchJob, UsageError
from gpuq.protocol import MAX_COMMAND, MAX_ENVIRONMENT, MAX_JOBS, MAX_NAME, MAX_TAGS, MAX_TEXT, Selection

#: Slurm's --priority without its extremes; larger runs first.
MAX_PRIORITY = 1000
#: A host that goes down each time a job runs must not do so for ever.
REQUEUES = 10

Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="[--] COMMAND [ARG]...", help="The program and its arguments.", show_default=False),
]
Name = Annotated[str | None, typer.Option("--name", "-J", help="Name; the program's own if not given.", metavar="NAME")]
Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        "-g",
        metavar="N[:MOST]",
        help="GPUs; 0 for a CPU job, 1 if not given and there are GPUs. 1:4 starts with 1 at least, and takes up to 4 "
        "that have room then; GPUQ_GPU_COUNT tells the job how many.",
    ),
]
Vram = Annotated[
    str | None,
    typer.Option(
        "--vram", metavar="SIZE", help="GPU memory to claim on each GPU (10GiB), or 'whole'; whole GPUs if not given."
    ),
]
GpuType = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu-type",
        metavar="NAME[|NAME]...",
        help="Only GPUs with one of these in their product name, as `gpuq gpus` shows it, in any case: 'A100|H100'.",
        show_default=False,
    ),
]
GpuMinMemory = Annotated[
    str | None,
    typer.Option(
        "--gpu-min-memory",
        metavar="SIZE",
        help="Only GPUs with so much memory in all (40GiB); `gpuq gpus` shows it, often a little less than what they "
        "are sold with.",
    ),
]
GpuId = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu-id",
        metavar="GPU[,GPU]...",
        help="Only one of these GPUs, or --gpus of them: each by index, UUID, or how its UUID begins. Repeat, or "
        "separate by commas.",
        show_default=False,
    ),
]
ExcludeGpu = Annotated[
    list[str] | None,
    typer.Option("--exclude-gpu", metavar="GPU[,GPU]...", help="None of these GPUs.", show_default=False),
]
Spread = Annotated[
    bool,
    typer.Option(
        "--spread",
        help="Take the emptiest GPUs, not the fullest that have room; with whole GPUs the largest; and of several not "
        "those that are closest to each other.",
    ),
]
Cpus = Annotated[
    int | None,
    typer.Option("--cpus", "-c", metavar="N", help="CPUs; 1 for a CPU job and 0, not counted, for a GPU job."),
]
Ram = Annotated[str | None, typer.Option("--ram", metavar="SIZE", help="Host memory to reserve (16GiB).")]
Time = Annotated[
    str | None, typer.Option("--time", "-t", metavar="TIME", help="Time limit: 90s, 30m, 2h, 1d or H:MM:SS.")
]
Priority = Annotated[
    int,
    typer.Option("--priority", "-p", metavar="N", help=f"Larger starts first: -{MAX_PRIORITY} to {MAX_PRIORITY}."),
]
After = Annotated[
    list[str] | None,
    typer.Option(
        "--after",
        "-d",
        metavar="[ok|any|failed|started:]ID",
        help="Start after that job succeeded, ended, failed or started; ok if not said. 12-20, array:12, tag=NAME: "
        "after each of those. each:12, in an array: after the member of that one with the same index. 'ok:1|failed:2' "
        "is one of them. Repeat, or separate by commas, for all of several.",
        show_default=False,
    ),
]
Begin = Annotated[
    str | None,
    typer.Option("--begin", "-b", metavar="WHEN", help="Not before: now+1h, 2h, 16:00 or 2026-11-23T08:00."),
]
Hold = Annotated[bool, typer.Option("--hold", "-H", help="Wait for `gpuq release`.")]
Tag = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="A label to choose jobs by; repeat for several.", show_default=False),
]
Cwd = Annotated[str | None, typer.Option("--cwd", "-D", metavar="DIR", help="Folder to run in; this one if not given.")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=VALUE", help="Set a variable; repeat for several.", show_default=False),
]
Export = Annotated[
    str | None,
    typer.Option(
        "--export", metavar="ALL|NONE|NAME,...", help="Which of your variables the job gets; all if not given."
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Log file; %j is the id, %A the array's, %a the index, %x the name."
    ),
]
Signal = Annotated[
    str | None,
    typer.Option(
        "--signal",
        metavar="NAME@TIME",
        help="So long before the time limit, send that to those processes that handle it: USR1@300, TERM@5m.",
    ),
]
Grace = Annotated[
    str | None,
    typer.Option("--grace", metavar="TIME", help="Time between TERM and KILL; the setting's if not given."),
]
LogLimit = Annotated[
    str | None,
    typer.Option(
        "--log-limit", metavar="SIZE", help="Keep this much of the log (64KiB at least): its beginning and end."
    ),
]
Retry = Annotated[
    list[str] | None,
    typer.Option(
        "--retry",
        metavar="[FAILURE,...:]N[*F]",
        help="Try again after a failure: 2 (any but lost), vram-oom:2*1.5 (a larger claim each time), lost,gpu-lost:3. "
        "Repeat; each rule has its own count, and a named failure goes by its own rule. Failures: exit, signal, "
        "timeout, vram-oom, host-oom, gpu-lost, over-memory, launch, lost.",
        show_default=False,
    ),
]
Requeue = Annotated[
    bool, typer.Option("--requeue", help=f"Try again, up to {REQUEUES} times, when lost to a crash or reboot.")
]

Preemptible = Annotated[
    bool,
    typer.Option(
        "--preemptible",
        help="Give way to jobs of higher priority that cannot start otherwise: TERM, --grace, and queued again.",
    ),
]


Queue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Queue; `gpuq queue list` shows them.")]
Group = Annotated[
    str | None, typer.Option("--group", metavar="NAME", help="Jobs that stop together; see --stop-after.")
]
StopAfter = Annotated[
    int | None,
    typer.Option(
        "--stop-after",
        metavar="N",
        help="After N failures in a row nothing more of the group starts, or of the array, until `gpuq group resume`.",
    ),
]


class Resources(NamedTuple):
    """The values of the options, as they were typed."""

    name: str | None = None
    gpus: str | None = None
    vram: str | None = None
    cpus: int | None = None
    ram: str | None = None
    time: str | None = None
    priority: int = 0
    after: Sequence[str] = ()
    begin: str | None = None
    hold: bool = False
    tags: Sequence[str] = ()
    cwd: str | None = None
    output: str | None = None
    signal: str | None = None
    grace: str | None = None
    log_limit: str | None = None
    retry: Sequence[str] = ()
    requeue: bool = False
    preemptible: bool = False
    gpu_type: Sequence[str] = ()
    gpu_min_memory: str | None = None
    gpu_id: Sequence[str] = ()
    exclude_gpu: Sequence[str] = ()
    spread: bool = False
    queue: str | None = None
    group: str | None = None
    stop_after: int | None = None


def make_template(options: Resources, now: float) -> dict[str, Any]:
    """What all jobs of a submission have in common, in bytes and seconds. Raises UsageError, NoSuchJob."""
    settings = {name: found.value for name, found in config.find_given().items()}
    gpus, most = parse.parse_gpus(options.gpus) if options.gpus is not None else (settings.get("default_gpus"), None)
    if options.cpus is not None and not 0 <= options.cpus <= 1_000_000:
        raise UsageError(f"--cpus {options.cpus} is not a number of cpus")
    if not -MAX_PRIORITY <= options.priority <= MAX_PRIORITY:
        raise UsageError(f"--priority {options.priority} is not from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    time_limit = (
        units.parse_duration(options.time, "--time") if options.time is not None else settings.get("default_time")
    )
    return {
        "name": short(options.name, "--name", MAX_NAME),
        "gpus": gpus,
        "gpus_most": most,
        **_which(options),
        "vram": _vram(options, gpus, settings.get("default_vram")),
        "cpus": options.cpus,
        "ram": units.parse_size(options.ram, "--ram") if options.ram is not None else None,
        "time_limit": time_limit,
        # what was not typed gives way to the queue's default
        "time_chosen": options.time is not None,
        "queue": short(options.queue, "--queue", MAX_NAME),
        "group": short(options.group, "--group", MAX_NAME),
        "stop_after": _count(options.stop_after, "--stop-after"),
        "priority": options.priority,
        "begin_at": parse.parse_begin(options.begin, now) if options.begin is not None else None,
        "hold": options.hold,
        "tags": check_tags(options.tags),
        "after": parse.parse_after(options.after, last_job),
        "cwd": _folder(options.cwd),
        "output": short(options.output, "--output", MAX_TEXT),
        "early_signal": options.signal,
        "grace": units.parse_duration(options.grace, "--grace") if options.grace is not None else None,
        "log_limit": units.parse_size(options.log_limit, "--log-limit") if options.log_limit is not None else None,
        "retry": _retry(options),
        "preemptible": options.preemptible,
        "umask": _umask(),
        "limits": _limits(),
    }


def check_command(command: list[str], verb: str) -> None:
    """Raises UsageError for what no kernel would run, and for ids that a shell took apart."""
    if not command:
        raise UsageError(f"there is no command: write it after `--`, as in `gpuq {verb} -- python train.py`")
    if not command[0].strip():
        raise UsageError(f"the command {command[0]!r} is empty")
    _refuse_stray_ids(command)
    size = sum(len(os.fsencode(word)) + 1 for word in command)
    if size > MAX_COMMAND:
        raise UsageError(
            f"the command is {size:,} bytes long, and at most {MAX_COMMAND:,} are taken; put it into a script"
        )


def _refuse_stray_ids(command: list[str]) -> None:
    """Of `--after ok:$ids -- true`, with several lines in `ids`, the option gets the first; the rest lead the command.

    Raises UsageError.
    """
    numbers = list(takewhile(lambda word: word.isascii() and word.isdigit(), command))
    if numbers and command[len(numbers) :][:1] == ["--"]:
        raise UsageError(
            f"the command begins with {' '.join(numbers[:5])}{' …' if len(numbers) > 5 else ''} before `--`, as if the "
            "shell had split a list of ids: write --after ok:12-20, or --after ok:$(echo $ids | tr ' ' ,)"
        )


def make_environment(export: str | None, env: list[str]) -> dict[str, str]:
    """The job's environment. Warns of what will not have the effect that it looks like. Raises UsageError."""
    given = parse.parse_env(env)
    environment, missing = parse.choose_environment(os.environ, export, given)
    if missing:
        tell(f"--export: not set here, and so not passed on: {', '.join(missing)}")
    chosen_by_us = "GPUQ_JOB_ID" in os.environ  # inside a job the variable is what gpuq set
    if "CUDA_VISIBLE_DEVICES" in given or ("CUDA_VISIBLE_DEVICES" in environment and not chosen_by_us):
        tell("CUDA_VISIBLE_DEVICES is set here; gpuq replaces it by the GPUs that it gives the job")
    size = sum(len(os.fsencode(k)) + len(os.fsencode(v)) + 2 for k, v in environment.items())
    if size > MAX_ENVIRONMENT:
        raise UsageError(
            f"the environment is {size:,} bytes, and at most {MAX_ENVIRONMENT:,} are taken; choose with --export"
        )
    return environment


def _vram(options: Resources, gpus: int | None, default: int | None) -> int | None:
    """Bytes; None for whole GPUs."""
    if options.vram is None:
        return default if gpus != 0 else None
    if options.vram == "whole":
        return None
    if gpus == 0:
        raise UsageError("--vram asks for GPU memory, and --gpus 0 is a job without GPUs: leave one of them out")
    return units.parse_size(options.vram, "--vram")


def _which(options: Resources) -> dict[str, Any]:
    """Which GPUs will do."""
    least = options.gpu_min_memory
    return {
        "gpu_types": parse.parse_words(options.gpu_type, "|", "--gpu-type"),
        "gpu_min_memory": units.parse_size(least, "--gpu-min-memory") if least is not None else None,
        "gpu_ids": parse.parse_words(options.gpu_id, ",", "--gpu-id"),
        "gpus_excluded": parse.parse_words(options.exclude_gpu, ",", "--exclude-gpu"),
        "spread": options.spread,
    }


def _retry(options: Resources) -> list[str]:
    """The rules as they were typed; --requeue is one for `lost`, where none names that."""
    named = {name.strip() for rule in options.retry for name in rule.rpartition(":")[0].split(",")}
    return [*options.retry, *([f"lost:{REQUEUES}"] if options.requeue and "lost" not in named else [])]


def _count(number: int | None, what: str) -> int | None:
    if number is not None and not 1 <= number <= MAX_JOBS:
        raise UsageError(f"{what} {number} is not from 1 to {MAX_JOBS:,}")
    return number


def short(text: str | None, what: str, limit: int) -> str | None:
    if text is None:
        return None
    if not text:
        raise UsageError(f"{what} is empty")
    if len(text) > limit:
        raise UsageError(f"{what} is {len(text):,} characters long, and at most {limit} are taken")
    return text


def check_tags(tags: Sequence[str]) -> list[str]:
    if len(tags) > MAX_TAGS:
        raise UsageError(f"{len(tags)} tags, and at most {MAX_TAGS} are taken")
    for tag in tags:
        short(tag, "--tag", MAX_NAME)
    return list(dict.fromkeys(tags))


def _folder(cwd: str | None) -> str:
    """An absolute path. Raises UsageError unless it is a folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        if cwd is None or not cwd.startswith("/"):
            raise UsageError("this folder has been removed; cd to another, or give --cwd") from None
        here = Path("/")
    if cwd is None:
        return str(here)
    if not cwd:
        raise UsageError("--cwd is empty: name a folder")
    path = here / cwd
    if not path.is_dir():
        problem = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise UsageError(f"--cwd {cwd!r} {problem}")
    return str(path.resolve())


def last_job() -> int:
    """Ask which job `@last` is; only when it is used."""
    from gpuq.cli.pages import Jobs

    last = next(iter(Jobs(Selection(last=True), everything=True, limit=1)), None)
    if last is None:
        raise NoSuchJob("--after @last: there is no job yet")
    return int(last["id"])


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def _limits() -> list[list[int]]:
    """Soft limits by RLIMIT number, -1 for none (getrlimit(2)): what `ulimit` set here holds for the job."""
    import resource

    numbers = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
    return [[number, resource.getrlimit(number)[0]] for number in numbers]
