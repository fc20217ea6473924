"""A picture of a run in characters: a row per GPU, time to the right. Pure.

Where bars would be narrower than two columns on average, a column shows how much of the GPU was given to jobs in it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpuq.simulate.results import Run
from gpuq.simulate.trace import SECOND, WHOLE, Trace
from gpuq.units import format_short_duration

#: GPUs that are drawn.
MOST_GPUS = 64
#: Jobs that share a GPU are drawn below each other; with more at a time the picture is one of shades.
MOST_LANES = 4
#: Columns from one time on the axis to the next.
TICK = 12

_START, _BAR, _IDLE = "|", "-", "."
#: From none of the GPU to all of it.
SHADES = " .:*#"
#: The same on a terminal.
BLOCKS = " ░▒▓█"


class Span(NamedTuple):
    """Some columns that belong together: those of one job, with its row in the trace, or of nobody."""

    text: str
    job: int | None


@dataclass(frozen=True, slots=True)
class Picture:
    #: a label, empty for a GPU's further lines, and what stands behind it
    lines: list[tuple[str, list[Span]]]
    axis: str
    legend: str
    #: whether its characters are of `SHADES`
    shaded: bool
    #: GPUs for which there is no room
    more: int


class _Bar(NamedTuple):
    start: int
    end: int
    row: int


def draw(trace: Trace, run: Run, width: int) -> Picture:
    """The whole run in so many columns, labels included."""
    bars = _bars(trace, run)
    label = len(f"gpu{len(run.cards) - 1} ")
    columns = max(TICK, width - label)
    until = max(max(run.end), 1)
    lanes = [_lanes(some) for some in bars]
    shaded = sum(map(len, bars)) * 2 > sum(map(len, lanes)) * columns or max(map(len, lanes)) > MOST_LANES
    lines: list[tuple[str, list[Span]]] = []
    for index, some in enumerate(bars):
        name = f"gpu{index}".ljust(label)
        if shaded:
            lines.append((name, [Span(_shades(trace, some, run.cards[index], columns, until), None)]))
        else:
            drawn = [list(_lane(trace, lane, columns, until)) for lane in lanes[index]]
            lines += zip([name, *[" " * label] * (len(drawn) - 1)], drawn, strict=True)
    a_column = f"a column is {format_short_duration(until / columns / SECOND)}"
    legend = f"{a_column}, {'darker where more is given to jobs' if shaded else '| and an id is a start'}"
    return Picture(lines, " " * label + _axis(columns, until), legend, shaded, len(run.cards) - len(bars))


def _bars(trace: Trace, run: Run) -> list[list[_Bar]]:
    """By GPU, in the order of their starts."""
    bars: list[list[_Bar]] = [[] for _ in run.cards[:MOST_GPUS]]
    for row in sorted(range(len(trace)), key=lambda row: (run.start[row], row)):
        for index in run.gpus(row, trace.gpus[row]):
            if index < MOST_GPUS:
                bars[index].append(_Bar(run.start[row], run.end[row], row))
    return bars


def _lanes(bars: Sequence[_Bar]) -> list[list[_Bar]]:
    """The bars of one GPU such that none overlaps another in its lane; one empty lane where there are none."""
    lanes: list[list[_Bar]] = [[]]
    for bar in bars:
        free = next((lane for lane in lanes if not lane or lane[-1].end <= bar.start), None)
        if free is not None:
            free.append(bar)
        else:
            lanes.append([bar])
        if len(lanes) > MOST_LANES:
            break
    return lanes


def _lane(trace: Trace, bars: Sequence[_Bar], columns: int, until: int) -> Iterator[Span]:
    """A job has one column at least, and that in which it starts: there the one before ends."""
    begins = [min(bar.start * columns // until, columns - 1) for bar in bars]
    at = 0
    for number, bar in enumerate(bars):
        begin = begins[number]
        following = begins[number + 1] if number + 1 < len(bars) else columns
        end = min(max(begin + 1, -(-bar.end * columns // until)), following)
        if end <= begin:  # it is over within the column in which the next one starts
            continue
        if begin > at:
            yield Span(_IDLE * (begin - at), None)
        name = trace.ids[bar.row]
        fits = name.isascii() and name.isprintable() and len(name) < end - begin
        yield Span((_START + (name if fits else "")).ljust(end - begin, _BAR), bar.row)
        at = end
    if at < columns:
        yield Span(_IDLE * (columns - at), None)


def _shades(trace: Trace, bars: Sequence[_Bar], size: int, columns: int, until: int) -> str:
    load = array("d", bytes(8 * columns))  # in columns of whole GPU
    for bar in bars:
        share = 1.0 if trace.vram[bar.row] == WHOLE else trace.vram[bar.row] / size
        start, end = bar.start * columns / until, bar.end * columns / until
        for column in range(int(start), min(columns, int(end) + 1)):
            load[column] += share * max(0.0, min(end, column + 1) - max(start, column))
    darkest = len(SHADES) - 1
    return "".join(SHADES[max(part > 0, min(darkest, round(part * darkest)))] for part in load)


def _axis(columns: int, until: int) -> str:
    marks = [f"|{format_short_duration(at * until / columns / SECOND)}" for at in range(0, columns, TICK)]
    if (len(marks) - 1) * TICK + len(marks[-1]) > columns:
        marks.pop()
    return "".join(mark.ljust(TICK) for mark in marks).rstrip()
