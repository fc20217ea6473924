"""What the claims of other daemons on this host leave of a GPU. Pure.

A neighbour's claim holds in full from launch, as ours do. What its processes already use is foreign use, which a
reading shows; so what counts beside that is the part that is not allocated yet, `max(0, claim − use)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gpuq.model import GpuProcess, GpuReading


@dataclass(frozen=True, slots=True)
class NeighbourClaim:
    """A claim of another daemon on one GPU, of another user or of our own."""

    uid: int
    #: the user's name, for people
    owner: str
    uuid: str
    #: bytes; None claims the whole GPU
    bytes: int | None
    #: pid of the attempt's supervisor, None while it is not known
    supervisor: int | None = None
    #: processes that its daemon saw on this GPU
    pids: frozenset[int] = frozenset()
    #: False where its pids mean nothing to us (another PID namespace)
    traceable: bool = True

    def has(self, process: GpuProcess) -> bool:
        """Whether it is a process of this claim. Nobody can pass somebody else's process off as his own."""
        if not self.traceable or process.job_id is not None or process.uid not in (None, self.uid):
            return False
        return process.pid in self.pids or (self.supervisor is not None and self.supervisor in process.lineage)


def most_covered(claims: Sequence[NeighbourClaim], reading: GpuReading) -> int:
    """Bytes that may have been in use under the claims, as far as they allow.

    The larger figure of each process, as with our own: what came while the card was read is nobody else's.
    """
    both = [{p.pid: p for p in processes} for processes in (reading.before, reading.after)]
    largest: dict[int, GpuProcess] = {}
    for pid in both[0].keys() | both[1].keys():
        largest[pid] = max((found[pid] for found in both if pid in found), key=lambda p: p.used or 0)
    whole = tuple(largest.values())
    return sum(use.covered for use in uses(claims, replace(reading, before=whole, after=whole)))


@dataclass(frozen=True, slots=True)
class NeighbourUse:
    """A neighbour's claim on a GPU beside what its processes use there, in bytes."""

    owner: str
    #: None for the whole GPU
    claimed: int | None
    used: int
    #: it has not claimed it yet, and it is its turn
    waits: bool = False

    @property
    def unallocated(self) -> int:
        return max(0, (self.claimed or 0) - self.used)

    @property
    def covered(self) -> int:
        """Bytes in use that the claim allows."""
        return self.used if self.claimed is None else min(self.used, self.claimed)


def uses(claims: Sequence[NeighbourClaim], reading: GpuReading) -> tuple[NeighbourUse, ...]:
    """Each claim with its use, in the order of the claims. A process counts for one claim only.

    Of the lists before and after `used` the smaller figure of each process counts: so much of it is surely in `used`.
    """
    found = [0] * len(claims)
    after = {p.pid: p.used or 0 for p in reading.after}
    for process in reading.before:
        place = next((n for n, claim in enumerate(claims) if claim.has(process)), None)
        if place is not None:
            found[place] += min(process.used or 0, after.get(process.pid, 0))
    return tuple(NeighbourUse(c.owner, c.bytes, used) for c, used in zip(claims, found, strict=True))


def promised(claims: Sequence[NeighbourClaim], found: Sequence[NeighbourUse], foreign: int) -> int:
    """Bytes that neighbours claim and have not allocated; whole claims are left to the caller.

    `foreign` is all foreign use. Of a claim whose processes cannot be told from others it is not known how much of the
    foreign use is its own. It is taken to be as much as it can be: the other assumption, none of it, would count such a
    claim twice for as long as it is used, and two users of one card would take turns where they could share.
    """
    rest = max(0, foreign - sum(use.used for use in found))
    traced = blind = 0
    for claim, use in zip(claims, found, strict=True):
        if claim.traceable:
            traced += use.unallocated
        else:
            blind += claim.bytes or 0
    return traced + max(0, blind - rest)


def blinded(claims: Iterable[NeighbourClaim]) -> tuple[NeighbourClaim, ...]:
    """The claims where no process can be told from another."""
    return tuple(NeighbourClaim(c.uid, c.owner, c.uuid, c.bytes, traceable=False) for c in claims)
