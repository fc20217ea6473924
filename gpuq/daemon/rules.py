"""What holds for many jobs, in memory: queues, disabled GPUs, groups that have stopped. The store has the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpuq.errors import NoSuchQueue
from gpuq.events import Event, Kind
from gpuq.model import DEFAULT_QUEUE, DisabledGpu, Group, Job, Queue
from gpuq.policy import groups
from gpuq.policy.ledger import GpuState
from gpuq.store import rules
from gpuq.store.rules import Rule
from gpuq.store.store import Store


@dataclass(frozen=True, slots=True)
class Fared:
    """What the ends of jobs mean for their groups."""

    #: groups that are otherwise now, and those of which there is nothing to keep
    put: list[Group]
    gone: list[Group]
    events: list[Event]


class Rules:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.queues: dict[str, Queue] = {DEFAULT_QUEUE: Queue()}
        self.disabled: dict[str, DisabledGpu] = {}
        #: those of which the last job to end failed
        self.groups: dict[str, Group] = {}
        #: why nothing more of a group starts
        self.stopped: dict[str, str] = {}

    def load(self) -> None:
        """Fill memory from the store. Raises StoreDamaged."""
        self.keep(rules.read(self._store))
        for name in rules.lost_queues(self._store):  # of jobs that only their run folders knew
            self.queues.setdefault(name, Queue(name))

    def write(self, put: Iterable[Rule] = (), gone: Iterable[Rule] = ()) -> None:
        """Write rules that are new, changed, or no more. In a transaction; `keep` follows it."""
        for rule in put:
            rules.put(self._store, rule)
        for rule in gone:
            rules.remove(self._store, rule)

    def keep(self, put: Iterable[Rule] = (), gone: Iterable[Rule] = ()) -> None:
        """Bring memory to what was committed."""
        put, gone = list(put), list(gone)
        if not put and not gone:
            return
        for rule in gone:
            if isinstance(rule, DisabledGpu):
                self.disabled.pop(rule.uuid, None)
            else:
                (self.queues if isinstance(rule, Queue) else self.groups).pop(rule.name, None)
        for rule in put:
            match rule:
                case Queue():
                    self.queues[rule.name] = rule
                case DisabledGpu():
                    self.disabled[rule.uuid] = rule
                case Group():
                    self.groups[rule.name] = rule
        self.stopped = _stopped(self.groups)

    def queue(self, name: str) -> Queue:
        """Raises NoSuchQueue."""
        found = self.queues.get(name)
        if found is None:
            known = ", ".join(sorted(self.queues))
            raise NoSuchQueue(f"there is no queue {name!r}: there {_are(len(self.queues))} {known}")
        return found

    def priority(self, job: Job) -> int:
        """A job's priority, with its queue's."""
        queue = self.queues.get(job.queue)
        return job.priority + (0 if queue is None else queue.priority)

    def judged(self, gpu: GpuState) -> GpuState:
        """The GPU as it may be used: one that is disabled takes nothing new."""
        found = self.disabled.get(gpu.uuid)
        return gpu if found is None or gpu.fault is not None else replace(gpu, fault=f"disabled: {found.why}")

    # --- groups ---------------------------------------------------------------------------------------

    def record(self, ended: Sequence[Job], now: float) -> Fared:
        """Write what the ends of these jobs mean for their groups. In a transaction; `keep` follows it."""
        fared = self._fared(ended, now)
        self.write(fared.put, fared.gone)
        self._store.add_events(fared.events)
        return fared

    def stopped_with(self, ended: Sequence[Job], now: float) -> Mapping[str, str]:
        """Why groups start nothing more once these jobs have ended so."""
        fared = self._fared(ended, now)
        if not fared.put and not fared.gone:
            return self.stopped
        gone = {group.name for group in fared.gone}
        kept = {name: group for name, group in self.groups.items() if name not in gone}
        return _stopped(kept | {group.name: group for group in fared.put})

    def _fared(self, ended: Sequence[Job], now: float) -> Fared:
        changed: dict[str, Group] = {}
        events: list[Event] = []
        for job in ended:
            if job.group is None:
                continue
            before = changed.get(job.group) or self.groups.get(job.group) or Group(job.group)
            after = groups.fared(before, job, now)
            if after == before:
                continue
            changed[job.group] = after
            if after.stopped_at is not None:
                data = {"group": job.group, "failures": after.failures, "jobs": list(after.failed)}
                events.append(Event(now, Kind.GROUP_STOPPED, data=data))
        found = changed.values()
        return Fared([one for one in found if one.failures], [one for one in found if not one.failures], events)


def _stopped(found: Mapping[str, Group]) -> dict[str, str]:
    return {name: groups.why_stopped(group) for name, group in found.items() if group.stopped_at is not None}


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
