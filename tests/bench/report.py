"""Rows of the result, and the two ways to print them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: What each section is about, and the row of it that its ratios are made of.
SECTIONS = {
    "machine": ("The machine's own limit", ""),
    "commands": ("A command, from before its fork until after its exit", "no-op Typer command"),
    "first": ("From the submission to the job's first instruction, idle queue", "gpuq, typed"),
    "next": ("From a job's exit to the first instruction of the next, which waited for its slot", "gpuq"),
    "batch": ("`true` jobs, 2 at a time, until the last has ended", "gpuq submit --from FILE"),
    "plan": ("A planning pass: 200 distinct requests, 16 GPUs, 64 jobs run (at most 1.5 times)", "1,000 wait"),
    "large": ("Many at once", ""),
    "flat": ("A full queue", ""),
    "rest": ("What nothing to do, or little, costs", ""),
}


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wished for: a median of at most (`least`: at least) so much, in the row's unit or times the section's
    base, and a 95th percentile of at most `p95`."""

    bound: float
    times: bool = False
    least: bool = False
    p95: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured, in `unit`: s, /s, bytes, cores (1.0 is one core in full) or a word for what was counted."""

    section: str
    name: str
    unit: str
    values: tuple[float, ...]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def p95(self) -> float:
        """The value that 95 % are no worse than, by nearest rank: of rates the 5th percentile."""
        ranked = sorted(self.values, reverse=self.unit == "/s")
        return ranked[math.ceil(0.95 * len(ranked)) - 1]


def as_json(rows: Sequence[Row], left_out: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """`gpuq.bench/2`. A ratio is that of the medians, to the base of the section, where both have one unit."""
    found = []
    for row in rows:
        ratio = _ratio(row, rows)
        goal = row.goal
        found.append(
            {
                "section": row.section,
                "name": row.name,
                "unit": row.unit,
                "n": len(row.values),
                "median": row.median,
                "p95": row.p95,
                "ratio": ratio,
                "goal": goal
                and {
                    "bound": goal.bound,
                    "times": goal.times,
                    "least": goal.least,
                    "p95": goal.p95,
                    "met": _met(goal, row, ratio),
                },
            }
        )
    bases = {section: base or None for section, (_, base) in SECTIONS.items()}
    return {"schema": "gpuq.bench/2", **about, "left_out": list(left_out), "bases": bases, "rows": found}


def as_table(rows: Sequence[Row], left_out: Sequence[str], about: dict[str, Any]) -> str:
    lines = [f"{key}: {value}" for key, value in about.items()]
    lines += [f"left out: {line}" for line in left_out]
    for section, (title, base) in SECTIONS.items():
        of_it = [row for row in rows if row.section == section]
        if of_it:
            lines += ["", f"{title}{f' (ratio: to {base})' if base else ''}"]
            lines += [f"  {'':58} {'median':>11} {'p95':>11} {'ratio':>7} {'n':>3}  goal"]
            lines += [_line(row, _ratio(row, rows)) for row in of_it]
    return "\n".join(lines)


def _line(row: Row, ratio: float | None) -> str:
    shown = f"{_show(row.median, row.unit):>11} {_show(row.p95, row.unit):>11}"
    times = "" if ratio is None else f"{ratio:.2f}"
    return f"  {row.name:58} {shown} {times:>7} {len(row.values):3}  {_goal(row, ratio)}".rstrip()


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    base = SECTIONS[row.section][1]
    found = [other.median for other in rows if (other.section, other.name, other.unit) == (row.section, base, row.unit)]
    return row.median / found[0] if found and found[0] else None


def _met(goal: Goal, row: Row, ratio: float | None) -> bool | None:
    """None where there is nothing to compare with."""
    value = ratio if goal.times else row.median
    if value is None:
        return None
    met = value >= goal.bound if goal.least else value <= goal.bound
    return met and (goal.p95 is None or row.p95 <= goal.p95)


def _goal(row: Row, ratio: float | None) -> str:
    if row.goal is None:
        return ""
    text = f"{row.goal.bound:g} ×" if row.goal.times else _show(row.goal.bound, row.unit)
    if row.goal.p95 is not None:
        text += f", p95 {_show(row.goal.p95, row.unit)}"
    said = {True: "yes", False: "NO", None: "?"}[_met(row.goal, row, ratio)]
    return f"{'≥' if row.goal.least else '≤'} {text}: {said}"


def _show(value: float, unit: str) -> str:
    match unit:
        case "s":
            return f"{value * 1000:,.2f} ms" if value < 0.01 else f"{value * 1000:,.1f} ms"
        case "/s":
            return f"{value:,.0f}/s" if value >= 10 else f"{value:.1f}/s"
        case "bytes":
            return f"{value / 1e6:.2f} MB"
        case "cores":
            return f"{value * 100:.3f} %"
    return f"{value:,.6g}"
