"""Rows of the result, and the two ways to print them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured, in `unit`: s, jobs/s, bytes or cores (1.0 is one core in full)."""

    name: str
    unit: str
    values: tuple[float, ...]
    #: most that is wished for, times the no-op command (`noop`) or in `unit` (`unit`); None: nothing is promised
    goal: tuple[str, float] | None = None

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def p95(self) -> float:
        """Nearest rank."""
        return sorted(self.values)[math.ceil(0.95 * len(self.values)) - 1]


PASS = "python -c pass"
NOOP = "no-op Typer command"


def as_json(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """`gpuq.bench/1`. Ratios are of medians, and only where the unit is seconds."""
    python, noop = _of(rows, PASS), _of(rows, NOOP)
    found = []
    for row in rows:
        seconds = _seconds(row)
        found.append(
            {
                "name": row.name,
                "unit": row.unit,
                "n": len(row.values),
                "median": row.median,
                "p95": row.p95,
                "times_python": seconds / python if seconds else None,
                "times_noop": seconds / noop if seconds else None,
                "goal": None if row.goal is None else {"of": row.goal[0], "most": row.goal[1], "met": _met(row, noop)},
            }
        )
    return {"schema": "gpuq.bench/1", **about, "rows": found}


def as_table(rows: Sequence[Row], about: dict[str, Any]) -> str:
    python, noop = _of(rows, PASS), _of(rows, NOOP)
    lines = [f"{key}: {value}" for key, value in about.items()]
    lines += ["", f"{'':52} {'median':>10} {'p95':>10} {'× python':>9} {'× no-op':>8} {'n':>3}  goal"]
    for row in rows:
        seconds = _seconds(row)
        ratios = f"{seconds / python:9.2f} {seconds / noop:8.2f}" if seconds else f"{'':9} {'':8}"
        shown = f"{_show(row.median, row.unit):>10} {_show(row.p95, row.unit):>10}"
        lines.append(f"{row.name:52} {shown} {ratios} {len(row.values):3}  {_goal(row, noop)}".rstrip())
    return "\n".join(lines)


def _of(rows: Sequence[Row], name: str) -> float:
    return next(row.median for row in rows if row.name == name)


def _seconds(row: Row) -> float | None:
    """What the ratios are made from: a time, or the time per job."""
    if row.unit == "jobs/s":
        return 1 / row.median
    return row.median if row.unit == "s" else None


def _met(row: Row, noop: float) -> bool:
    assert row.goal is not None
    of, most = row.goal
    return row.median / (noop if of == "noop" else 1) <= most


def _goal(row: Row, noop: float) -> str:
    if row.goal is None:
        return ""
    of, most = row.goal
    text = f"{most} × no-op" if of == "noop" else _show(most, row.unit)
    return f"≤ {text}: {'yes' if _met(row, noop) else 'NO'}"


def _show(value: float, unit: str) -> str:
    match unit:
        case "s":
            return f"{value * 1000:.1f} ms"
        case "bytes":
            return f"{value / 1e6:.1f} MB"
        case "cores":
            return f"{value * 100:.3f} %"
    return f"{value:.1f}/s"
