"""What jobs that have ended say together: how long they waited and ran, what they used, how they failed, and how good
predictions of them were. Pure.

Predictions of run times are made anew for each job from those that ended before it, as planning would have had them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles

from gpuq.policy.predict import Predictions, kind_of

#: A prediction is good if the run took between this part of it and its inverse.
GOOD = 0.5
#: A start is late that is so many seconds after its reservation: the end that it waited for is learnt in a moment.
LATE = 1.0


@dataclass(frozen=True, slots=True)
class Past:
    """A job that has ended. Times are seconds since the epoch."""

    state: str
    failure: str | None
    name: str
    submitted_at: float
    #: of its newest attempt; None where it never started
    started_at: float | None
    ended_at: float
    suspended: float
    #: of all its attempts: a GPU, and when it had it and had it no more
    used: tuple[tuple[str, float, float], ...] = ()
    #: when it was to start at the latest, if it had a reservation
    reserved_at: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds. p95 interpolates linearly between the two nearest values."""

    count: int
    mean: float
    median: float
    p95: float
    max: float


def spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    p95 = quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
    return Spread(len(values), fmean(values), median(values), p95, max(values))


@dataclass(slots=True)
class Figures:
    """Takes jobs in the order of their ends."""

    states: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    waits: array[float] = field(default_factory=lambda: array("d"))
    runs: array[float] = field(default_factory=lambda: array("d"))
    #: by GPU, when jobs had it and had it no more, one after the other
    _used: dict[str, array[float]] = field(default_factory=dict)
    #: |start − reserved| where that was earlier, and how much later the others were
    early: array[float] = field(default_factory=lambda: array("d"))
    late: array[float] = field(default_factory=lambda: array("d"))
    #: what a run took, in parts of what was likely
    ratios: array[float] = field(default_factory=lambda: array("d"))
    #: of these, how many took no longer than the longest that was expected
    within_longest: int = 0
    _predictions: Predictions = field(default_factory=Predictions)

    def add(self, job: Past) -> None:
        self.states[job.state] += 1
        if job.failure is not None:
            self.failures[job.failure] += 1
        for uuid, since, until in job.used:
            self._used.setdefault(uuid, array("d")).extend((since, max(since, until)))
        if job.started_at is None:
            return
        # the wall clock may have been set meanwhile
        self.waits.append(max(0.0, job.started_at - job.submitted_at))
        ran = max(0.0, job.ended_at - job.started_at - job.suspended)
        self.runs.append(ran)
        if job.reserved_at is not None:
            off = job.started_at - job.reserved_at
            (self.late if off > LATE else self.early).append(abs(off))
        if job.state == "succeeded" and job.name:
            known = self._predictions.of(kind_of(job.name))
            if known is not None and known.likely > 0:
                self.ratios.append(ran / known.likely)
                self.within_longest += ran <= known.longest
            self._predictions.learn(job.name, ran)

    def gpu_seconds(self, since: float) -> float:
        """Σ over the GPUs of the seconds, from that time on, in which a job had it; one that jobs share counts once."""
        total = 0.0
        for spans in self._used.values():
            reached = since
            for begin, end in sorted(zip(spans[::2], spans[1::2], strict=True)):
                total += max(0.0, end - max(begin, reached))
                reached = max(reached, end)
        return total

    @property
    def good(self) -> int:
        """Predictions of run times that were good."""
        return sum(GOOD <= ratio <= 1 / GOOD for ratio in self.ratios)
