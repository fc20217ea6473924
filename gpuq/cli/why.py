"""`why`: the typed reason for which a job waits, and the numbers behind it."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from gpuq.cli import fields, plain
from gpuq.cli.common import Ids, Json, States, Tags, examples, new_app, print_json, screen_width, select_some
from gpuq.units import printable

app = new_app()

#: On a terminal of fewer columns a GPU's name is cut to so many, and a verdict gets at least so many.
_ROOMY, _SHORT_NAME, _NARROW = 120, 10, 12
_HEADER = ("gpu", "name", "total", "margin", "foreign", "claimed", "headroom", "verdict")


@app.command("why", epilog=examples("gpuq why 12", "gpuq why --state queued --json"))
def why(ids: Ids = None, state: States = None, tag: Tags = None, as_json: Json = False) -> None:
    """Say why jobs wait: the reason, what they ask for, and what each GPU has left.

    Headroom is what is left of a GPU's memory after a margin, foreign use and the claims of running jobs.
    """
    from gpuq.cli.pages import by_id
    from gpuq.client import request

    explanations = request("why", sel=select_some(ids, state, tag).to_json())["explanations"]
    if as_json:
        print_json("gpuq.why/1", explanations=explanations)
        return
    jobs = by_id([explanation["job"] for explanation in explanations])
    members = {job["id"]: fields.name_cell(job) for job in jobs if job.get("array")}
    sys.stdout.write("\n".join(describe(one, members.get(one["job"], ""), screen_width()) for one in explanations))


def describe(explanation: Mapping[str, Any], member: str = "", screen: int | None = None) -> str:
    """One explanation as text of several lines; `member` is what the job is called in its array.

    On a terminal of `screen` columns it is wrapped to them.
    """
    head = f"job {explanation['job']} ({f'{member}, ' if member else ''}{explanation['state']})"
    what = fields.because(explanation.get("reason"), explanation.get("text"))
    position = explanation.get("position")
    place = f"  position {position:,} of those that may start\n" if position is not None else ""
    lines = "".join(plain.wrapped("  ", printable(line), screen) for line in explanation.get("lines") or [])
    gpus = explanation.get("gpus") or []
    return plain.wrapped(f"{head}: ", what, screen) + place + lines + (_gpu_table(gpus, screen) if gpus else "")


def _gpu_table(gpus: Iterable[Mapping[str, Any]], screen: int | None) -> str:
    """A row per GPU. On a `screen` names are short, and verdicts go on below themselves."""
    rows = [_gpu_row(gpu) for gpu in gpus]
    if screen is not None and screen < _ROOMY:
        rows = [(row[0], plain.cut(row[1], _SHORT_NAME), *row[2:]) for row in rows]
    lines = plain.columns(_HEADER[:-1], (row[:-1] for row in rows)).splitlines()
    width = max(map(len, lines))
    verdicts = [_HEADER[-1].upper(), *(row[-1] for row in rows)]
    return "".join(
        plain.wrapped(f"  {line:<{width}}  ", verdict, screen, least=_NARROW)
        for line, verdict in zip(lines, verdicts, strict=True)
    )


def _gpu_row(gpu: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = ("total_bytes", "margin_bytes", "foreign_bytes", "claimed_bytes", "headroom_bytes")
    gpu = {**gpu, "foreign_bytes": fields.foreign_bytes(gpu)}
    return (
        fields.index_cell(gpu),
        printable(gpu["name"]),
        *(fields.size_cell(gpu.get(key)) for key in sizes),
        printable(gpu.get("verdict") or ""),
    )
