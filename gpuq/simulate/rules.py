"""The policies that can be simulated: how each has the planner go about it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

from gpuq.errors import UsageError
from gpuq.model import Order, Settings
from gpuq.policy.scheduler import Policy
from gpuq.simulate.trace import SECOND, Trace


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy by its name. The planner's times are microseconds here, as the clock's are."""

    name: str
    policy: Policy
    #: whether the shortest estimate is first, instead of the oldest job
    shortest_first: bool = False

    def order(self, trace: Trace) -> array[int]:
        """Rows as their jobs come in the queue, where their priority is the same."""
        rows = range(len(trace))
        return array("l", sorted(rows, key=lambda row: (trace.estimate(row), row)) if self.shortest_first else rows)


#: Neither ages jobs nor limits anything. A higher priority, where a trace has any, goes first in all of them.
PLAIN = {
    "fifo": Rules("fifo", Policy(Order.FIFO)),
    "fit-first": Rules("fit-first", Policy(Order.FIT_FIRST)),
    "easy": Rules("easy", Policy(Order.EASY, reservations=1)),
    "sjf": Rules("sjf", Policy(Order.FIT_FIRST), shortest_first=True),
}
#: The host's own.
CURRENT = "current"


def parse_policies(text: str, settings: Settings | None) -> list[Rules]:
    """`fifo,easy,current`; `settings` are the host's. Raises UsageError."""
    found: dict[str, Rules] = {}
    for word in text.split(","):
        name = word.strip()
        if name == CURRENT and settings is not None:
            found[name] = Rules(CURRENT, _in_microseconds(settings))
        elif name in PLAIN:
            found[name] = PLAIN[name]
        else:
            raise UsageError(f"there is no policy {name!r}: write some of {','.join((*PLAIN, CURRENT))}")
    return list(found.values())


def _in_microseconds(settings: Settings) -> Policy:
    policy = Policy.of(settings)
    return replace(policy, ageing=policy.ageing * SECOND, reserve_after=policy.reserve_after * SECOND)
