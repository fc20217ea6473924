"""What came of a simulated run, and its summary in the usual numbers. Microseconds inside, seconds to the outside."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpuq.simulate.cards import Cards
from gpuq.simulate.trace import SECOND, Trace


class Run:
    """When and where each job of a trace ran under one policy; rows as in the trace."""

    def __init__(self, policy: str, cards: Cards, jobs: int) -> None:
        self.policy = policy
        self.cards = cards
        self.start = array("q", bytes(8 * jobs))
        self.end = array("q", bytes(8 * jobs))
        #: GPU indexes of all jobs in the order of their starts, and where each job's begin
        self._placed = array("H")
        self._first = array("l", bytes(8 * jobs))
        #: Σ over the GPUs of the time in which a job was on it
        self.busy = 0

    def place(self, row: int, start: int, end: int, gpus: Sequence[int]) -> None:
        """A job starts, and will end then."""
        self.start[row], self.end[row] = start, end
        self._first[row] = len(self._placed)
        self._placed.extend(gpus)

    def gpus(self, row: int, count: int) -> array[int]:
        """The indexes of the `count` GPUs that a job had."""
        first = self._first[row]
        return self._placed[first : first + count]


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity over all jobs, in seconds. Median and p95 interpolate linearly between the two nearest jobs."""

    mean: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class Summary:
    wait: Spread
    #: end − submission
    completion: Spread
    #: last end − first submission, in seconds
    makespan: float
    #: the part of all GPUs' time until the last end in which a job was on them; None where that time is none
    utilisation: float | None


def summary(trace: Trace, run: Run) -> Summary:
    makespan = max(run.end)
    available = makespan * len(run.cards)
    return Summary(
        wait=spread(start - at for start, at in zip(run.start, trace.submit, strict=True)),
        completion=spread(end - at for end, at in zip(run.end, trace.submit, strict=True)),
        makespan=makespan / SECOND,
        utilisation=run.busy / available if available else None,
    )


def spread(microseconds: Iterator[int]) -> Spread:
    values = array("q", sorted(microseconds))
    return Spread(
        mean=sum(values) / len(values) / SECOND,
        median=quantile(values, 50) / SECOND,
        p95=quantile(values, 95) / SECOND,
        max=values[-1] / SECOND,
    )


def quantile(values: Sequence[int], percent: int) -> float:
    """Of ascending values, interpolated between neighbours: type 7 of Hyndman & Fan 1996, what numpy and R do."""
    below, part = divmod((len(values) - 1) * percent, 100)
    if not part:
        return values[below]
    return values[below] + (values[below + 1] - values[below]) * part / 100
