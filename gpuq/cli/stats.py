"""`stats`: what jobs waited, ran, used and failed of, and how good estimates were."""

import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from gpuq.cli import fields, plain
from gpuq.cli.common import Json, examples, new_app, print_json, screen_width
from gpuq.units import format_short_duration, parse_duration

app = new_app()


@app.command("stats", epilog=examples("gpuq stats", "gpuq stats --since 7d", "gpuq stats --since 30d --json"))
def stats(
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Of jobs that ended in the last 24h, 7d, …; of all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how long jobs waited and ran, what they used, how they failed, and how good estimates were.

    A run is estimated from the last ones of its name; that was good where it took between half and twice as long. A
    start is estimated where a job has a reservation: it should not be later.
    """
    from gpuq.client import request

    seconds = None if since is None else parse_duration(since, "--since")
    found = request("stats", seconds=seconds)["stats"]
    if as_json:
        print_json("gpuq.stats/1", **found)
        return
    sys.stdout.write(plain.pairs(_rows(found), screen=screen_width()))


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    total = sum(found["jobs"].values())
    yield "from", f"{fields.local_time(found['since'])} to {fields.local_time(found['until'])}"
    yield "ended", _counts(total, found["jobs"])
    yield "failures", ", ".join(f"{count:,} {name}" for name, count in found["failures"].items())
    yield "waited", _spread(found["wait_seconds"])
    yield "ran", _spread(found["run_seconds"])
    used = found["utilisation"]
    yield (
        "GPU time",
        f"{found['gpu_hours']:,.1f} hours" + ("" if used is None else f", {used:.0%} of {found['gpus']} GPUs"),
    )
    runs, starts = found["run_estimates"], found["start_estimates"]
    if runs["runs"]:
        yield (
            "run estimates",
            f"{runs['good'] / runs['runs']:.0%} of {runs['runs']:,} good; "
            f"{runs['within_longest'] / runs['runs']:.0%} took no longer than was counted with",
        )
    if starts["jobs"]:
        late = f"{starts['late']:,} later" if starts["late"] else "none later"
        most = f", at most by {format_short_duration(starts['max_late_seconds'])}" if starts["late"] else ""
        yield "start estimates", f"{starts['jobs']:,} reservations, {late} than said{most}"


def _counts(total: int, states: Mapping[str, int]) -> str:
    each = ", ".join(f"{count:,} {state}" for state, count in states.items())
    return f"{total:,}" + (f": {each}" if each else " jobs")


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    names = {"mean": "mean", "median": "median", "p95": "95 %", "max": "longest"}
    return ", ".join(f"{word} {format_short_duration(found[name])}" for name, word in names.items())
