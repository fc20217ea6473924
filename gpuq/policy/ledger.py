"""The GPU memory ledger: from readings and claims to the headroom of each GPU.

headroom = total − margin − foreign − promised − Σ claims, where a claim counts in full from launch (so that a late
allocation cannot collide) and as its observed peak once that is larger, foreign is what the GPU's `used` leaves when
our processes are taken out, as its peak over a window, and promised is what other daemons' claims leave unallocated.
What is known to be used under such a claim is left out of that peak: it can grow no further than the claim says, and
is gone when the claim is. Where the driver does not tell which process uses how much, ours counts as the claims and
headroom is never more than total − margin − used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from gpuq.model import Claim, GpuProcess, GpuReading, Host, Readings, Settings
from gpuq.policy import neighbours
from gpuq.policy.neighbours import NeighbourClaim, NeighbourUse

#: Other daemons' claims by GPU.
Neighbours = Mapping[str, Sequence[NeighbourClaim]]


@dataclass(frozen=True, slots=True)
class Sample:
    """Foreign use at one moment, in bytes, without what neighbours' claims cover. `at` is monotonic."""

    at: float
    foreign: int
    #: the part that is not graphics
    besides: int


@dataclass(frozen=True, slots=True)
class GpuHistory:
    """What the ledger remembers of one GPU between readings."""

    samples: tuple[Sample, ...] = ()
    #: foreign use at the last reading without any claim of ours; counts where the driver tells nothing
    baseline: int = 0
    #: monotonic time of the last start or exit of ours on this GPU
    disturbed_at: float = float("-inf")


History = Mapping[str, GpuHistory]


@dataclass(frozen=True)
class GpuState:
    """One GPU as the planner sees it. Bytes throughout.

    What follows from the fields is computed once: a plan asks for it with every distinct request.
    """

    uuid: str
    index: int | None
    name: str
    total: int
    used: int
    margin: int
    foreign: int
    #: foreign use besides graphics
    foreign_besides: int
    #: most foreign use besides graphics that a whole-GPU job tolerates
    tolerated: int
    claims: tuple[Claim, ...] = ()
    #: foreign processes, as NVML lists them
    strangers: tuple[GpuProcess, ...] = ()
    told: bool = True
    fault: str | None = None
    #: other daemons' claims here, and what of them is not allocated yet
    neighbours: tuple[NeighbourUse, ...] = ()
    promised: int = 0
    #: distance of other GPUs by UUID, as `Readings.distances` has it
    near: Mapping[str, int] = field(default_factory=dict, hash=False)

    @cached_property
    def order(self) -> tuple[float, str]:
        """By index; those without one, which the driver lists no longer, last."""
        return (float("inf") if self.index is None else self.index, self.uuid)

    @cached_property
    def place(self) -> str:
        """What it is called: `GPU 0`, or by its UUID."""
        return self.uuid if self.index is None else f"GPU {self.index}"

    @cached_property
    def capacity(self) -> int:
        """The largest claim that this GPU could ever hold."""
        return self.total - self.margin

    @cached_property
    def taken(self) -> bool:
        """Whether a job has the whole GPU."""
        return any(claim.bytes is None for claim in self.claims)

    @cached_property
    def claimed(self) -> int:
        """Σ claims; a whole claim counts as everything."""
        if self.taken:
            return self.total
        return sum(claim.entitled or 0 for claim in self.claims)

    @cached_property
    def promised_whole(self) -> NeighbourUse | None:
        """A neighbour that has the whole GPU."""
        return next((use for use in self.neighbours if use.claimed is None), None)

    @cached_property
    def headroom(self) -> int:
        """Bytes that may still be claimed. Negative where claims are over-used or foreign use arrived."""
        if self.taken or self.promised_whole:
            return 0
        free = self.total - self.margin - self.foreign - self.promised - self.claimed
        return free if self.told else min(free, self.total - self.margin - self.used)

    @cached_property
    def only_compute(self) -> tuple[GpuProcess, ...]:
        """Foreign processes that compute and draw nothing: somebody else's work."""
        return tuple(p for p in self.strangers if p.compute and not p.graphics)

    @cached_property
    def whole_free(self) -> bool:
        """Whether a job may have this GPU to itself now."""
        if self.fault is not None or self.claims or self.neighbours or self.only_compute:
            return False
        return self.foreign_besides <= self.tolerated

    @cached_property
    def draws(self) -> bool:
        """Whether a desktop, say, is on it."""
        return any(p.graphics for p in self.strangers)

    def with_claim(self, claim: Claim) -> GpuState:
        return self._claimed_by((*self.claims, claim))

    def without(self, job_id: int) -> GpuState:
        """This GPU once the job has ended."""
        return self._claimed_by(tuple(claim for claim in self.claims if claim.job_id != job_id))

    @cached_property
    def without_claims(self) -> GpuState:
        """This GPU if no job of ours were on it."""
        return self._claimed_by(())

    def _claimed_by(self, claims: tuple[Claim, ...]) -> GpuState:
        """The same with other claims, and what is known of it but for them. A plan does this all the time, and
        `replace` would take six times as long."""
        known = {name: value for name, value in self.__dict__.items() if name not in _FROM_CLAIMS}
        gpu = object.__new__(GpuState)
        gpu.__dict__.update(known, claims=claims)
        return gpu

    @property
    def without_foreign(self) -> GpuState:
        """This GPU if nobody but us used it; for explaining."""
        foreign = self.foreign or self.foreign_besides or self.strangers or self.neighbours or self.promised
        return self._cleared if foreign or not self.told else self

    @cached_property
    def _cleared(self) -> GpuState:
        return replace(self, foreign=0, foreign_besides=0, strangers=(), told=True, neighbours=(), promised=0)


#: What follows from the claims, if from other fields, too.
_FROM_CLAIMS = frozenset({"claims", "taken", "claimed", "headroom", "whole_free", "without_claims", "_cleared"})


def ours(processes: Iterable[GpuProcess]) -> int:
    """Bytes in use by processes of ours."""
    return sum(p.used or 0 for p in processes if p.job_id is not None)


def is_told(reading: GpuReading, claims: Sequence[Claim], host: Host) -> bool:
    """Whether the driver tells which of the used memory is ours.

    Not when it says so, when a process of ours has no figure, or, in a PID namespace of our own, when we have claims
    here and NVML lists no process of ours: its pids may be those of another namespace.
    """
    mine = [p for p in (*reading.before, *reading.after) if p.job_id is not None]
    if not reading.told or any(p.used is None for p in mine):
        return False
    return not (host.foreign_pids and claims and not mine)


def _measure(reading: GpuReading, claims: Sequence[Claim], past: GpuHistory, told: bool, in_use: int) -> Sample:
    if told:
        foreign = max(0, reading.used - in_use)
    else:
        entitled = sum(c.entitled or 0 for c in claims)
        if any(c.bytes is None for c in claims):
            entitled = reading.used
        foreign = max(past.baseline, reading.used - entitled) if claims else reading.used
    graphics = sum(p.used or 0 for p in reading.after if p.job_id is None and p.graphics)
    return Sample(0.0, foreign, max(0, foreign - graphics))


def observe(
    history: History,
    readings: Readings,
    claims: Mapping[str, Sequence[Claim]],
    settings: Settings,
    host: Host,
    others: Neighbours = MappingProxyType({}),
) -> History:
    """The history after one more reading. `claims` are the live ones by GPU, `others` those of other daemons."""
    result = dict(history)
    for reading in readings.gpus:
        if reading.fault is not None:
            continue
        past = history.get(reading.uuid, GpuHistory())
        mine = claims.get(reading.uuid, ())
        told = is_told(reading, mine, host)
        now = _measure(reading, mine, past, told, max(ours(reading.before), ours(reading.after)))
        settled = readings.at - past.disturbed_at >= settings.settle
        kept = tuple(s for s in past.samples if readings.at - s.at <= settings.foreign_window)
        if settled:
            covered = _covered(reading, others.get(reading.uuid, ()), told, host)
            kept = (*kept, Sample(readings.at, max(0, now.foreign - covered), max(0, now.besides - covered)))
        baseline = past.baseline if mine or not settled else now.foreign
        result[reading.uuid] = replace(past, samples=kept, baseline=baseline)
    return result


def disturb(history: History, uuids: Iterable[str], at: float) -> History:
    """Note a start or exit of ours on these GPUs."""
    result = dict(history)
    for uuid in uuids:
        result[uuid] = replace(result.get(uuid, GpuHistory()), disturbed_at=at)
    return result


def gpu_states(
    readings: Readings,
    history: History,
    claims: Mapping[str, Sequence[Claim]],
    settings: Settings,
    host: Host,
    others: Neighbours = MappingProxyType({}),
) -> tuple[GpuState, ...]:
    """Every GPU as the planner sees it, by index."""
    near = _near(readings)
    states = [
        _state(
            reading,
            history.get(reading.uuid, GpuHistory()),
            tuple(claims.get(reading.uuid, ())),
            tuple(others.get(reading.uuid, ())),
            near.get(reading.uuid, {}),
            settings,
            host,
        )
        for reading in readings.gpus
    ]
    return tuple(sorted(states, key=lambda gpu: gpu.order))


def _near(readings: Readings) -> dict[str, dict[str, int]]:
    """The distances from each GPU to others."""
    near: dict[str, dict[str, int]] = {}
    for (one, other), distance in readings.distances.items():
        near.setdefault(one, {})[other] = distance
        near.setdefault(other, {})[one] = distance
    return near


def _traced(others: Sequence[NeighbourClaim], told: bool, host: Host) -> tuple[NeighbourClaim, ...]:
    """Their claims as they can be traced here: pids of another PID namespace say nothing."""
    return tuple(others) if told and not host.foreign_pids else neighbours.blinded(others)


def _covered(reading: GpuReading, others: Sequence[NeighbourClaim], told: bool, host: Host) -> int:
    """Foreign use that neighbours' claims cover."""
    return neighbours.most_covered(_traced(others, told, host), reading)


def _state(
    reading: GpuReading,
    past: GpuHistory,
    claims: tuple[Claim, ...],
    others: tuple[NeighbourClaim, ...],
    near: Mapping[str, int],
    settings: Settings,
    host: Host,
) -> GpuState:
    told = is_told(reading, claims, host)
    now = _measure(reading, claims, past, told, max(ours(reading.before), ours(reading.after)))
    others = _traced(others, told, host)
    theirs = neighbours.uses(others, reading)
    covered = sum(use.covered for use in theirs)
    foreign = max([now.foreign, *(s.foreign + covered for s in past.samples)])
    promised = neighbours.promised(others, theirs, foreign)
    if any(use.claimed is None for use in theirs):
        promised = max(0, reading.total - foreign)
    return GpuState(
        uuid=reading.uuid,
        index=reading.index,
        name=reading.name,
        total=reading.total,
        used=reading.used,
        margin=settings.margin,
        foreign=foreign,
        foreign_besides=max([now.besides, *(s.besides + covered for s in past.samples)]),
        tolerated=max(settings.whole_foreign, int(reading.total * settings.whole_foreign_percent / 100)),
        claims=claims,
        strangers=tuple(p for p in reading.after if p.job_id is None),
        told=told,
        fault=reading.fault,
        neighbours=theirs,
        promised=min(promised, reading.total),
        near=near,
    )


def observed_use(readings: Readings) -> dict[tuple[int, str], int]:
    """Bytes in use by (job, GPU), the larger of the two process lists of each reading."""
    use: dict[tuple[int, str], int] = {}
    for reading in readings.gpus:
        for processes in (reading.before, reading.after):
            now: dict[int, int] = {}
            for p in processes:
                if p.job_id is not None and p.used is not None:
                    now[p.job_id] = now.get(p.job_id, 0) + p.used
            for job_id, used in now.items():
                key = (job_id, reading.uuid)
                use[key] = max(use.get(key, 0), used)
    return use
