"""`why`: the typed reason for which a job waits, and the numbers behind it."""

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gpuq.cli import fields, plain
from gpuq.cli.common import Groups, Ids, Json, States, Tags, examples, new_app, print_json, screen_width, select_some
from gpuq.units import printable

app = new_app()

#: On a terminal of fewer columns a GPU's name is cut to so many, and a verdict gets at least so many.
_ROOMY, _SHORT_NAME, _NARROW = 120, 10, 12
#: A moment as the daemon writes it.
_MOMENT = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_HEADER = ("gpu", "name", "total", "margin", "foreign", "claimed", "headroom", "verdict")


@app.command("why", epilog=examples("gpuq why 12", "gpuq why --state queued --json"))
def why(ids: Ids = None, state: States = None, tag: Tags = None, group: Groups = None, as_json: Json = False) -> None:
    """Say why jobs wait: the reason, what they ask for, and what each GPU has left.

    Headroom is what is left of a GPU's memory after a margin, foreign use and the claims of running jobs.
    """
    from gpuq.cli.pages import by_id
    from gpuq.client import request

    explanations = request("why", sel=select_some(ids, state, tag, group).to_json())["explanations"]
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
    what = fields.because(explanation.get("reason"), _in_local_time(explanation.get("text") or ""))
    position = explanation.get("position")
    place = f"  position {position:,} of those that may start\n" if position is not None else ""
    told = [*(explanation.get("lines") or []), *_conditions(explanation), *_outlook(explanation)]
    lines = "".join(plain.wrapped("  ", printable(line), screen) for line in told)
    gpus = explanation.get("gpus") or []
    return plain.wrapped(f"{head}: ", what, screen) + place + lines + (_gpu_table(gpus, screen) if gpus else "")


def _in_local_time(text: str) -> str:
    """The daemon's text, whose moments are of UTC."""
    return _MOMENT.sub(lambda found: fields.local_time(found[0]), text)


def _conditions(explanation: Mapping[str, Any]) -> Iterator[str]:
    """How many GPUs pass each condition in turn, down to the first that none passes."""
    found = explanation.get("conditions") or []
    words = []
    for one in found:
        names = f" ({', '.join(one['gpus'])})" if 0 < one["count"] < found[0]["count"] else ""
        words.append(f"{one['count']} {one['condition']}{names}")
        if not one["count"]:
            break
    if words:
        yield f"GPUs: {', '.join(words)}"


def _outlook(explanation: Mapping[str, Any]) -> Iterator[str]:
    """What will be, and what would help."""
    reservation = explanation.get("reservation")
    if reservation is not None:
        what = " and ".join(reservation["places"]) or "what it asks for"
        at = fields.local_time(reservation["at"])
        yield (
            f"reserved for it: {what}, from {at} at the latest" if at else f"kept free for it as they come free: {what}"
        )
    estimate = explanation.get("estimate")
    if estimate is not None:
        yield start_words(estimate)
    changes = explanation.get("changes") or []
    if changes:
        yield f"would start now with {', or '.join(changes)}: `gpuq edit {explanation['job']} {changes[0]}`"


def start_words(estimate: Mapping[str, Any]) -> str:
    """When it starts, in local time: `starts between 2026-01-02 16:20:00 and 16:40:00`."""
    earliest, latest, later = (fields.local_time(estimate[key]) for key in ("earliest", "latest", "later_than"))
    if latest and earliest in ("", latest):
        return f"starts by {latest}, if the queue stays as it is"
    if latest:
        return f"starts between {earliest} and {_same_day(latest, earliest)}, if the queue stays as it is"
    if later:
        return f"starts later than {later}"
    if earliest:
        return f"will probably start at {earliest}; nobody can say by when: a job before it has no time limit"
    return "nobody can say when it starts: what is in its way has no time limit, or does not end by itself"


def _same_day(time: str, other: str) -> str:
    """Without its date where that is the other's."""
    date, _, clock = time.partition(" ")
    return clock if date == other.partition(" ")[0] else time


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
        _verdict(gpu),
    )


def _verdict(gpu: Mapping[str, Any]) -> str:
    text = printable(gpu.get("verdict") or "")
    if gpu.get("reserved_for") is None:
        return text
    at = fields.short_time(gpu.get("reserved_at"), time.time())
    return f"{text}; reserved for job {gpu['reserved_for']}{f' by {at}' if at else ''}"
