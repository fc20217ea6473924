"""The jobs that are simulated, column by column: a job is some fifty bytes, however many there are.

Times are whole microseconds since the first submission, so that decimals add up exactly: a job that ends at 0.1 + 0.2
ends when another one is submitted at 0.3.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from gpuq.errors import UsageError
from gpuq.model import DEFAULT_QUEUE, Queue
from gpuq.simulate.cards import Cards, name_of
from gpuq.units import format_size

SECOND = 1_000_000
#: Of a time limit: there is none.
NO_LIMIT = -1
#: Of a job's GPU memory: it takes whole GPUs.
WHOLE = 0


class Refusal(Protocol):
    """Why a request of so many GPUs, with so many bytes on each (`WHOLE`), can never run; None where it can."""

    def __call__(self, gpus: int, vram: int, queue: str = DEFAULT_QUEUE) -> str | None: ...


class Member(NamedTuple):
    """What limits a job together with others, on the host where it ran."""

    queue: str = DEFAULT_QUEUE
    #: (array id, most members at a time), where its array has such a limit
    array: tuple[int, int] | None = None


ALONE = Member()


class Trace:
    """Jobs in the order of their submission; row by row where they were submitted at once."""

    def __init__(self) -> None:
        #: what its owner calls each job; gpuq's own id, or whatever the file says
        self.ids: list[str] = []
        self.submit = array("q")
        #: what the job takes if nothing ends it
        self.duration = array("q")
        self.limit = array("q")
        self.gpus = array("i")
        #: bytes on each GPU
        self.vram = array("q")
        self.priority = array("i")
        self._user = array("l")
        self._users: dict[str, int] = {}
        self._member = array("l")
        self._members: dict[Member, int] = {}
        #: the first submission, in microseconds of the clock that the jobs were read by
        self.origin = 0
        #: whether they came in another order
        self.sorted = False

    def __len__(self) -> int:
        return len(self.ids)

    def add(
        self,
        name: str,
        submit: int,
        gpus: int,
        duration: int,
        *,
        limit: int = NO_LIMIT,
        vram: int = WHOLE,
        priority: int = 0,
        user: str = "",
        member: Member = ALONE,
    ) -> None:
        """One more job; its submission on any clock, as long as it is that of the others. `close` follows the last."""
        self.ids.append(name)
        self.submit.append(submit)
        self.gpus.append(gpus)
        self.duration.append(duration)
        self.limit.append(limit)
        self.vram.append(vram)
        self.priority.append(priority)
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._member.append(self._members.setdefault(member, len(self._members)))

    def close(self) -> Trace:
        """All jobs are there: they are put in order, and their clock begins with the first."""
        submit = self.submit
        if any(submit[row] < submit[row - 1] for row in range(1, len(submit))):
            self.sorted = True
            order = sorted(range(len(self)), key=submit.__getitem__)
            self.ids = [self.ids[row] for row in order]
            for name in ("submit", "duration", "limit", "gpus", "vram", "priority", "_user", "_member"):
                column: array[int] = getattr(self, name)
                setattr(self, name, array(column.typecode, (column[row] for row in order)))
        if self.ids:
            self.origin = self.submit[0]
            self.submit = array("q", (at - self.origin for at in self.submit))
        return self

    def users(self) -> list[str]:
        """Whose each job is; empty where that was not told."""
        names = list(self._users)
        return [names[number] for number in self._user]

    def members(self) -> list[Member]:
        """What each job is limited with."""
        found = list(self._members)
        return [found[number] for number in self._member]

    def runs(self, row: int) -> int:
        """How long the job occupies its GPUs: its limit cuts it."""
        limit = self.limit[row]
        return self.duration[row] if limit == NO_LIMIT else min(self.duration[row], limit)

    def estimate(self, row: int) -> int:
        """How long the planner is told that it takes: its limit, or what is true."""
        limit = self.limit[row]
        return self.duration[row] if limit == NO_LIMIT else limit

    def cut(self) -> int:
        """How many jobs their limit ends."""
        return sum(0 <= limit < duration for limit, duration in zip(self.limit, self.duration, strict=True))


def refusal_by(sets: list[Cards], queues: Mapping[str, Queue] = MappingProxyType({})) -> Refusal:
    """What can never run on one of these sets of GPUs, or by what its queue allows."""

    def refuse(gpus: int, vram: int, queue: str = DEFAULT_QUEUE) -> str | None:
        own = queues.get(queue)
        if own is not None and own.max_gpus is not None and gpus > own.max_gpus:
            return f"asks for {gpus} GPUs, and queue {queue} has {own.max_gpus} at most"
        for cards in sets:
            if gpus > len(cards):
                return f"asks for {gpus} GPU{'s' if gpus != 1 else ''}, and {len(cards)} are simulated"
            if vram and not all(cards):
                return "asks for GPU memory, and how much the simulated GPUs have is not told: write --gpus 8x80GiB"
            allowed = (
                size for n, size in enumerate(cards) if own is None or own.gpus is None or name_of(n) in own.gpus
            )
            able = sum(size >= vram for size in allowed)
            if able < gpus:
                what = f"with {format_size(vram)}" if vram else f"of queue {queue}"
                return f"asks for {gpus} {what}, and {able} of the simulated GPUs {'have as much' if vram else 'are'}"
        return None

    return refuse


def no_jobs(where: str) -> UsageError:
    return UsageError(f"{where}: there is no job to simulate")
