"""What can be measured again and again, and how: all of them once a round, in an order that changes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.report import Goal, Row


class Unfit(Exception):
    """A peer did not do what was asked of it."""


@dataclass(frozen=True, slots=True)
class Measure:
    """`take` does the thing once and returns its value in `unit`."""

    section: str
    name: str
    take: Callable[[], float]
    goal: Goal | None = None
    unit: str = "s"
    #: whose it is; a peer that fails is left out with what it did since, and the rest goes on
    peer: str | None = None


def interleave(measures: Sequence[Measure], rounds: int, warm_up: int) -> tuple[list[Row], list[str]]:
    """The rows, and a line for each peer's measure that was given up: no measure follows the same one each time."""
    values: dict[Measure, list[float]] = {measure: [] for measure in measures}
    left_out = []
    for number in range(warm_up + rounds):
        _tell(number + 1, warm_up + rounds)
        for measure in random.sample(list(values), len(values)):
            try:
                taken = measure.take()
            except (Unfit, OSError, ValueError, subprocess.SubprocessError) as error:
                if measure.peer is None:
                    raise
                del values[measure]
                left_out.append(f"{measure.name} ({measure.section}): {error}")
                continue
            if number >= warm_up:
                values[measure].append(taken)
    return [Row(m.section, m.name, m.unit, tuple(taken), m.goal) for m, taken in values.items()], left_out


def _tell(number: int, of: int) -> None:
    """To whoever waits in front of a terminal."""
    if sys.stderr.isatty():
        print(f"\rround {number} of {of}", end="\n" if number == of else "", file=sys.stderr, flush=True)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
