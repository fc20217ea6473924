"""`simulate`: what would have become of a queue under another policy, or on other GPUs."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import typer

from gpuq.cli.common import Json, Progress, count_jobs, examples, new_app, on_terminal, print_json, tell
from gpuq.cli.parse import parse_past
from gpuq.errors import CannotFit, GpuqError, UsageError
from gpuq.simulate.cards import Cards, describe, parse_cards, parse_what_if
from gpuq.simulate.results import Run, Spread, Summary, summary
from gpuq.simulate.rules import CURRENT, PLAIN, Rules, current, parse_policies, queues_of
from gpuq.simulate.trace import SECOND, Refusal, Trace, refusal_by
from gpuq.units import format_short_duration, printable

#: Columns of a terminal that are always there, and of a table's first column.
NARROW, LABEL = 80, 20
#: Policies that stand side by side in them.
ABREAST = 5

app = new_app()


class Result(NamedTuple):
    run: Run
    summary: Summary
    #: what `--what-if` says of its GPUs; empty for those that there are
    change: str


@app.command(
    "simulate",
    epilog=examples(
        "gpuq simulate                       what this host ran, under each policy",
        "gpuq simulate --policy current --what-if gpus=+2",
        "gpuq simulate --since 30d --until 1d --gantt",
        "gpuq simulate jobs.csv --gpus 8 --policy fifo,easy",
        "gpuq simulate jobs.csv --gpus 2x24GiB,4x80GiB --json --jobs",
    ),
)
def simulate(
    trace: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="A trace, `-` for stdin; this host's history if not given."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="NAME,...", help="fifo, fit-first, easy, sjf, current; all if not given."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", "-g", metavar="N", help="8, 8x80GiB or 2x24GiB,4x80GiB; the host's if not given."),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if", metavar="gpus=N", help="Compare with other GPUs: gpus=+2, gpus=-1, gpus=16, gpus=+2x80GiB."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="History: submitted since 30d ago, or 2026-11-01.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="History: submitted before, as --since.")
    ] = None,
    gantt: Annotated[bool, typer.Option("--gantt", help="Draw who had which GPU when.")] = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="With --json: also when and where each job ran.")] = False,
    as_json: Json = False,
) -> None:
    """Run jobs of the past under other policies, or on other GPUs: gpuq's own planner under a virtual clock.

    A trace is a CSV file with the columns job_id, submit_time, num_gpu and duration, times in seconds, and if you
    like time_limit, vram (10GiB; whole GPUs without), priority and user; others are passed over. It needs no daemon.

    \b
    fifo       in order; the first that does not fit keeps all others waiting
    fit-first  in order; what does not fit is passed over
    easy       EASY backfill: the first that does not fit gets a reservation,
               and whoever does not delay that may go ahead
    sjf        shortest estimate first; what does not fit is passed over, and
               nothing is preempted
    current    this host's settings, ageing and limits included

    A job's estimate is its time limit, which also ends it, or without one how long it takes. A higher priority goes
    first under every policy; only `current` knows ageing. Waits and completions count from the submission.
    """
    if as_json and gantt:
        raise UsageError("--json and --gantt exclude each other: --json --jobs has what the picture shows")
    if jobs and not as_json:
        raise UsageError("--jobs goes with --json")
    if trace is not None and (since is not None or until is not None):
        raise UsageError("--since and --until choose from this host's history; a trace is simulated as a whole")
    span = _span(since, until)
    names = [*PLAIN, *(() if trace is not None else (CURRENT,))] if policy is None else parse_policies(policy)
    cards, uuids = _cards(trace, gpus)
    rules = [PLAIN[name] if name in PLAIN else _current(trace, uuids) for name in names]
    sets = {"": cards} | {text: parse_what_if(text, cards) for text in what_if or ()}
    refuse = refusal_by(list(sets.values()), {name: one for rule in rules for name, one in rule.queues.items()})
    found, left_out = _history(refuse, *span) if trace is None else (_read(trace, refuse), {})
    runs = _run(found, [(one, some) for some in sets.values() for one in rules])
    changes = (text for text in sets for _ in rules)
    results = [Result(run, summary(found, run), change) for run, change in zip(runs, changes, strict=True)]
    if as_json:
        _print_json(trace, found, left_out, results, with_jobs=jobs)
        return
    _tell(found, left_out)
    _print(found, results, len(rules))
    for one in results if gantt else ():
        _draw(found, one)


def _cards(trace: str | None, gpus: str | None) -> tuple[Cards, list[str] | None]:
    """The GPUs that there are, and their UUIDs where they are the host's."""
    if gpus is not None:
        return parse_cards(gpus), None
    if trace is not None:
        raise UsageError("how many GPUs are to run the trace? write --gpus 8, or --gpus 8x80GiB where jobs share them")
    from gpuq.client import request

    found = [gpu for gpu in request("gpus")["gpus"] if gpu["total_bytes"]]
    if not found:
        raise CannotFit("this host has no GPUs now: say on which to simulate, as in --gpus 8 or --gpus 8x80GiB")
    return tuple(gpu["total_bytes"] - gpu["margin_bytes"] for gpu in found), [gpu["uuid"] for gpu in found]


def _current(trace: str | None, uuids: list[str] | None) -> Rules:
    """The host's settings, and with its history the limits of its queues."""
    from gpuq.config import load_settings

    settings = load_settings()
    if trace is not None:
        return current(settings, {})
    from gpuq.client import request

    return current(settings, queues_of(request("queues")["queues"], uuids))


def _read(path: str, refuse: Refusal) -> Trace:
    from gpuq.simulate.tracefile import read_file

    return read_file(path, refuse)


def _span(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    """The times between which jobs of the history were submitted. Raises UsageError."""
    now = time.time()
    first = parse_past(since, now, "--since") if since is not None else None
    last = parse_past(until, now, "--until") if until is not None else None
    if first is not None and last is not None and first >= last:
        raise UsageError(f"--since {since!r} is not before --until {until!r}")
    return first, last


def _history(refuse: Refusal, first: float | None, last: float | None) -> tuple[Trace, dict[str, int]]:
    from gpuq.cli.pages import Jobs
    from gpuq.protocol import Selection
    from gpuq.simulate.history import from_jobs

    history = from_jobs(Jobs(Selection(), everything=True), refuse, first, last)
    if not history.trace:
        raise GpuqError(f"nothing of this host's history can be simulated{_left_out(history.left_out)}")
    return history.trace, history.left_out


def _run(trace: Trace, tasks: list[Any]) -> list[Run]:
    from gpuq.simulate.parallel import run_all

    with Progress("simulating", len(trace) * len(tasks)) as progress:
        return run_all(trace, tasks, progress.show)


# --- words and numbers ----------------------------------------------------------------------------


def _tell(trace: Trace, left_out: Mapping[str, int]) -> None:
    if left_out:
        tell(f"of this host's history {count_jobs(len(trace))} are simulated{_left_out(left_out)}")
    elif trace.sorted:
        tell("the trace was not in the order of submit_time, and was sorted")
    cut = trace.cut()
    if cut:
        tell(f"{count_jobs(cut)} would take longer than the time limit, which ends them")


def _left_out(left_out: Mapping[str, int]) -> str:
    told = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
    return f"; left out: {told}" if told else ""


def _print(trace: Trace, results: Sequence[Result], policies: int) -> None:
    """Side by side what fits, first of all a policy on each set of GPUs."""
    print(f"{count_jobs(len(trace))} on {_gpus(results[0].run.cards)}, times since the first submission")
    sets = len(results) // policies
    by_policy = [one for number in range(policies) for one in results[number::policies]]
    abreast = max(1, ABREAST // sets) * sets
    for begin in range(0, len(by_policy), abreast):
        print()
        _print_table(by_policy[begin : begin + abreast], what_if=sets > 1)


def _gpus(cards: Cards) -> str:
    count = f"{len(cards)} GPU{'s' if len(cards) != 1 else ''}"
    return f"{count} ({describe(cards)})" if all(cards) else count


def _print_table(results: Sequence[Result], *, what_if: bool) -> None:
    width = (NARROW - LABEL) // ABREAST

    def line(label: str, value: Callable[[Result], str]) -> None:
        # a long cell has two spaces before it, and the table is wider
        print(f"{label:<{LABEL}}{''.join(f'  {value(one):>{width - 2}}' for one in results)}".rstrip())

    line("", lambda one: one.run.policy)
    if what_if:
        line("what if", lambda one: one.change or "as it is")
    line("GPUs", lambda one: str(len(one.run.cards)))
    for name in ("wait", "completion"):
        for number in ("mean", "median", "p95", "max"):
            line(f"{name} {number}", partial(_of_spread, name, number))
    line("makespan", lambda one: format_short_duration(one.summary.makespan))
    line("utilisation", lambda one: "-" if (part := one.summary.utilisation) is None else f"{part:.1%}")


def _of_spread(name: str, number: str, one: Result) -> str:
    return format_short_duration(getattr(getattr(one.summary, name), number))


def _draw(trace: Trace, result: Result) -> None:
    import shutil

    from gpuq.simulate.gantt import draw

    run = result.run
    picture = draw(trace, run, shutil.get_terminal_size((NARROW, 24)).columns - 1)
    what_if = f", what if {result.change}" if result.change else ""
    heading = f"{run.policy} on {_gpus(run.cards)}{what_if}"
    if on_terminal():
        from gpuq.cli import render

        render.print_gantt(heading, picture)
    else:
        print(f"\n{heading}")
        for label, spans in picture.lines:
            print(f"{label}{''.join(span.text for span in spans)}".rstrip())
        print(f"{picture.axis}\n{picture.legend}")
    if picture.more:
        print(f"… and {picture.more:,} GPUs more")


# --- JSON -----------------------------------------------------------------------------------------


def _print_json(
    source: str | None,
    trace: Trace,
    left_out: Mapping[str, int],
    results: Sequence[Result],
    *,
    with_jobs: bool,
) -> None:
    told = {
        "source": "history" if source is None else printable(source),
        "jobs": len(trace),
        "left_out": dict(left_out),
        "was_sorted": trace.sorted,
        "cut_by_limit": trace.cut(),
    }
    views = [_view(one) for one in results]
    if not with_jobs:
        print_json("gpuq.simulation/1", **told, runs=views)
        return
    head = json.dumps({"schema": "gpuq.simulation/1", **told})
    sys.stdout.write(f'{head[:-1]}, "runs": [')
    for number, (one, view) in enumerate(zip(results, views, strict=True)):
        sys.stdout.write(f'{", " if number else ""}{json.dumps(view)[:-1]}, "jobs": [\n')
        for row, job in enumerate(_jobs(trace, one.run)):
            sys.stdout.write(("" if not row else ",\n") + json.dumps(job))
        sys.stdout.write("]}")
    sys.stdout.write("]}\n")


def _view(result: Result) -> dict[str, Any]:
    run, found = result.run, result.summary
    return {
        "policy": run.policy,
        "what_if": result.change or None,
        "gpu_count": len(run.cards),
        "gpu_bytes": list(run.cards) if all(run.cards) else None,
        "wait_seconds": _spread(found.wait),
        "completion_seconds": _spread(found.completion),
        "makespan_seconds": found.makespan,
        "utilisation": found.utilisation,
    }


def _spread(spread: Spread) -> dict[str, float]:
    return {"mean": spread.mean, "median": spread.median, "p95": spread.p95, "max": spread.max}


def _jobs(trace: Trace, run: Run) -> Iterator[dict[str, Any]]:
    """Times by the clock of the trace, in seconds."""
    users = trace.users()
    for row, name in enumerate(trace.ids):
        at, start, end = (trace.origin + column[row] for column in (trace.submit, run.start, run.end))
        yield {
            "id": name,
            "user": users[row] or None,
            "submit": at / SECOND,
            "start": start / SECOND,
            "end": end / SECOND,
            "gpus": run.gpus(row, trace.gpus[row]).tolist(),
        }
