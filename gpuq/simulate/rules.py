"""The policies that can be simulated: how each has the planner go about it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpuq.errors import UsageError
from gpuq.model import Order, Queue, Settings
from gpuq.policy.scheduler import Policy
from gpuq.simulate.cards import name_of
from gpuq.simulate.trace import SECOND, Trace


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy by its name. The planner's times are microseconds here, as the clock's are."""

    name: str
    policy: Policy
    #: whether the shortest estimate is first, instead of the oldest job
    shortest_first: bool = False
    #: whether arrays and queues limit how many jobs run, these queues others than the rest
    limited: bool = False
    queues: Mapping[str, Queue] = field(default_factory=dict)

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


def parse_policies(text: str) -> list[str]:
    """Names out of `fifo,easy,current`, each once. Raises UsageError."""
    names = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name != CURRENT and name not in PLAIN:
            raise UsageError(f"there is no policy {name!r}: write some of {','.join((*PLAIN, CURRENT))}")
    return names


def current(settings: Settings, queues: Mapping[str, Queue]) -> Rules:
    """The host's own policy."""
    policy = Policy.of(settings)
    scaled = {name: getattr(policy, name) * SECOND for name in ("ageing", "reserve_after", "preempt_after")}
    return Rules(CURRENT, replace(policy, **scaled), limited=True, queues=queues)


def queues_of(views: Iterable[Mapping[str, Any]], uuids: Sequence[str] | None) -> dict[str, Queue]:
    """The host's queues, as `gpuq.queues/1` has them: what they limit, whether or not they are paused now.

    `uuids` are the host's GPUs in the order in which they are simulated; None where others are.
    """
    found = {}
    for view in views:
        own = view["gpus"]
        gpus = None
        if own is not None and uuids is not None:
            gpus = frozenset(name_of(index) for index, uuid in enumerate(uuids) if uuid in own)
        name = view["name"]
        found[name] = Queue(name, view["priority"], gpus, max_jobs=view["max_jobs"], max_gpus=view["max_gpus"])
    return found
