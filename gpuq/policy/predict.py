"""How long a job will run, from how long those of its kind did. Pure.

A prediction plans and explains; it never ends a job. The kind is the job's name, or its module's, with what numbers it
holds left out: the members of a sweep are called `train-1`, `train-2` and so on, and are alike.

The last runs say most about the next one, as Tsafrir, Etsion and Feitelson found (Backfilling Using System-Generated
Predictions Rather than User Runtime Estimates, IEEE TPDS 18(6), 2007): the median of the last few is what is likely,
the longest of them what planning counts with.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

#: Runs of a kind that are remembered, and how many are needed for a prediction.
REMEMBERED, NEEDED = 10, 3
#: Kinds that are remembered, those that ran last.
MOST_KINDS = 1000
#: A run that is longer than those before it is expected to go on for this part of what it has taken.
OVERRUN = 0.25

_NUMBERS = re.compile(r"\d+")


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    return _NUMBERS.sub("#", name)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds."""

    likely: float
    longest: float

    def left(self, elapsed: float) -> float:
        """Seconds that a job which has run for so long is expected to run on, at most."""
        return self.longest - elapsed if elapsed < self.longest else elapsed * OVERRUN

    def likely_left(self, elapsed: float) -> float:
        """What is likely of that."""
        return self.likely - elapsed if elapsed < self.likely else min(self.left(elapsed), elapsed * OVERRUN)


class Predictions:
    """What is remembered of the last runs of each kind."""

    def __init__(self, runs: Iterable[tuple[str, float]] = ()) -> None:
        """`runs` are names and seconds, the oldest first."""
        self._runs: OrderedDict[str, deque[float]] = OrderedDict()
        self._known: dict[str, Prediction] = {}
        for name, seconds in runs:
            self.learn(name, seconds)

    def __bool__(self) -> bool:
        """Whether anything is predicted."""
        return any(len(runs) >= NEEDED for runs in self._runs.values())

    def learn(self, name: str, seconds: float) -> None:
        """A job of this name has run to its end. The wall clock may have been set meanwhile."""
        if seconds < 0:
            return
        kind = kind_of(name)
        runs = self._runs.setdefault(kind, deque(maxlen=REMEMBERED))
        runs.append(seconds)
        self._runs.move_to_end(kind)
        self._known.pop(kind, None)
        if len(self._runs) > MOST_KINDS:
            gone, _ = self._runs.popitem(last=False)
            self._known.pop(gone, None)

    def of(self, kind: str | None) -> Prediction | None:
        """None where too little is known."""
        if kind is None or len(runs := self._runs.get(kind, ())) < NEEDED:
            return None
        if kind not in self._known:
            self._known[kind] = Prediction(median(runs), max(runs))
        return self._known[kind]
