"""A virtual clock: it goes from one submission or end to the next, and the daemon's planner says who starts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace

from gpuq.errors import CannotFit
from gpuq.model import Claim, GiB, Host, Order, Request
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.reserve import Ongoing, Reservation
from gpuq.policy.scheduler import Plan, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from gpuq.simulate.cards import Cards, name_of
from gpuq.simulate.results import Run
from gpuq.simulate.rules import Rules
from gpuq.simulate.trace import ALONE, WHOLE, Member, Trace

#: Told how many jobs have ended.
Progress = Callable[[int], None]
#: Jobs between two words of progress.
STEP = 500
#: What is asked of a host besides GPUs is not simulated.
_HOST = Host(cpus=0, ram=0)


def simulate(trace: Trace, cards: Cards, rules: Rules, progress: Progress | None = None) -> Run:
    """Run every job of the trace on these GPUs under a policy. Each must be able to run there.

    Raises CannotFit for one that a limit keeps from starting for ever.
    """
    return _Simulation(trace, cards, rules).run(progress)


class _Gpus:
    """The GPUs as the planner sees them, and how long each has had a job on it."""

    def __init__(self, cards: Cards) -> None:
        self._empty = [_gpu(index, size) for index, size in enumerate(cards)]
        self.states = list(self._empty)
        self.index = {gpu.uuid: number for number, gpu in enumerate(self._empty)}
        self._busy_since = [0] * len(cards)
        #: those on which there may be room for another job
        self.open = len(cards)
        self.busy = 0
        #: how many are free as a whole, and the headroom of each, the largest first
        self._room: tuple[int, list[int]] | None = None

    def take(self, number: int, job_id: int, vram: int | None, now: int) -> None:
        state = self.states[number]
        if not state.claims:
            self._busy_since[number] = now
        self._put(number, state.with_claim(Claim(job_id, 0, state.uuid, vram)))

    def give_back(self, number: int, job_id: int, now: int) -> None:
        left = tuple(claim for claim in self.states[number].claims if claim.job_id != job_id)
        if left:
            self._put(number, replace(self.states[number], claims=left))
        else:
            self.busy += now - self._busy_since[number]
            self._put(number, self._empty[number])

    def have_room(self, request: Request) -> bool:
        """Whether enough of them have, each by itself."""
        if self._room is None:
            whole = sum(state.whole_free for state in self.states)
            self._room = whole, sorted((state.headroom for state in self.states), reverse=True)
        whole, headroom = self._room
        return whole >= request.gpus if request.vram is None else headroom[request.gpus - 1] >= request.vram

    def _put(self, number: int, state: GpuState) -> None:
        self._room = None
        self.open += (state.headroom > 0) - (self.states[number].headroom > 0)
        self.states[number] = state


def _gpu(index: int, size: int) -> GpuState:
    total = size or GiB  # jobs take whole ones, of whatever size
    return GpuState(name_of(index), index, "simulated", total, 0, 0, 0, 0, 0)


def _rank(key: GroupKey, line: Line) -> tuple[int, int]:
    """Of the first job, without ageing: smaller is earlier."""
    return -key.priority, line.first


class _Simulation:
    def __init__(self, trace: Trace, cards: Cards, rules: Rules) -> None:
        self._trace = trace
        self._rules = rules
        self._result = Run(rules.name, cards, len(trace))
        self._gpus = _Gpus(cards)
        #: the planner's ids go by the order of the queue: rows by id, and ids by row
        self._row = rules.order(trace)
        self._id = self._row[:]
        for job_id, row in enumerate(self._row):
            self._id[row] = job_id
        self._groups: dict[GroupKey, Line] = {}
        self._keys: dict[tuple[int, int, int, Member | None], GroupKey] = {}
        self._members = trace.members() if rules.limited else None
        self._ongoing: dict[int, Ongoing] = {}
        self._ends: list[tuple[int, int]] = []
        self._reserved: tuple[Reservation, ...] = ()

    def run(self, progress: Progress | None) -> Run:
        trace, ends = self._trace, self._ends
        coming = ended = told = now = 0
        while coming < len(trace) or ends:
            now = ends[0][0] if ends else trace.submit[coming]
            if coming < len(trace):
                now = min(now, trace.submit[coming])
            while ends and ends[0][0] == now:
                self._end(heapq.heappop(ends)[1], now)
                ended += 1
            while coming < len(trace) and trace.submit[coming] == now:
                self._submit(coming)
                coming += 1
            if self._gpus.open and (groups := self._worth_a_look()):
                self._plan(groups, now)
            if progress is not None and ended - told >= STEP:
                told = ended
                progress(ended)
        if self._groups:
            raise self._stuck(now)
        self._result.busy = self._gpus.busy
        return self._result

    def _stuck(self, now: int) -> CannotFit:
        """Nothing runs any more, and nothing will come: why one of those that wait does."""
        key, line = next(iter(self._groups.items()))
        verdict = self._ask(self._groups, now).verdicts.get(key)
        name = self._trace.ids[self._row[line.first]]
        return CannotFit(f"under {self._rules.name} job {name} never starts{f': {verdict.text}' if verdict else ''}")

    def _key(self, row: int) -> GroupKey:
        trace = self._trace
        member = None if self._members is None else self._members[row]
        parts = (trace.priority[row], trace.gpus[row], trace.vram[row], member)
        key = self._keys.get(parts)
        if key is None:
            request = Request(trace.gpus[row], None if trace.vram[row] == WHOLE else trace.vram[row], 0, 0)
            queue, array = member or ALONE
            key = self._keys[parts] = GroupKey(trace.priority[row], 0, request, array, queue)
        return key

    def _submit(self, row: int) -> None:
        key = self._key(row)
        line = self._groups.get(key)
        if line is None:
            line = self._groups[key] = Line()
        line.add(self._id[row], self._trace.submit[row], self._trace.estimate(row))

    def _worth_a_look(self) -> Mapping[GroupKey, Line]:
        """The groups of which a job could start now, with the first of the others, for which these may have to wait.

        The rest can make no difference: what is free does not grow while a plan is made. Limits are another matter.
        """
        if self._rules.limited:
            return self._groups
        fits = {key: line for key, line in self._groups.items() if self._gpus.have_room(key.request)}
        if not fits or len(fits) == len(self._groups):
            return fits
        first, key = min((_rank(key, line), key) for key, line in self._groups.items() if key not in fits)
        if self._rules.policy.order is Order.FIFO:
            fits = {key: line for key, line in fits.items() if _rank(key, line) < first}
        return {**fits, key: self._groups[key]} if fits else fits

    def _plan(self, groups: Mapping[GroupKey, Line], now: int) -> None:
        found = self._ask(groups, now)
        self._reserved = found.reservations if self._rules.limited else ()
        for start in found.starts:
            self._start(self._row[start.job_id], [self._gpus.index[uuid] for uuid in start.gpus], now)

    def _ask(self, groups: Mapping[GroupKey, Line], now: int) -> Plan:
        snapshot = Snapshot(
            groups,
            _HOST,
            now=now,
            policy=self._rules.policy,
            ongoing=tuple(self._ongoing.values()),
            queues=self._rules.queues,
            reserved=self._reserved,
        )
        return plan(snapshot, self._gpus.states)

    def _start(self, row: int, gpus: list[int], now: int) -> None:
        trace, job_id, key = self._trace, self._id[row], self._key(row)
        end = now + trace.runs(row)
        self._result.place(row, now, end, gpus)
        heapq.heappush(self._ends, (end, row))
        self._ongoing[job_id] = Ongoing(
            job_id,
            ends=now + trace.estimate(row),
            gpus=len(gpus),
            queue=key.queue,
            array_id=None if key.array is None else key.array[0],
        )
        for number in gpus:
            self._gpus.take(number, job_id, key.request.vram, now)
        line = self._groups[key]
        line.remove(job_id)
        if not line:
            del self._groups[key]

    def _end(self, row: int, now: int) -> None:
        job_id = self._id[row]
        del self._ongoing[job_id]
        for number in self._result.gpus(row, self._trace.gpus[row]):
            self._gpus.give_back(number, job_id, now)
