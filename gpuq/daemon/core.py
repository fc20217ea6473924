"""The daemon's state, and the one way to change it: facts go in, the store is written, listeners are told.

Everything here runs on the loop's thread and never awaits: between two lines nothing else changes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from gpuq import crash
from gpuq.daemon import decisions
from gpuq.daemon.cascade import Cascade
from gpuq.daemon.claimsfile import PublishedClaim, hashed
from gpuq.daemon.hub import Hub
from gpuq.daemon.reserve import Reserve
from gpuq.daemon.rules import Rules
from gpuq.daemon.running import NewAttempt, Running, note_broken, ongoing, over_text
from gpuq.daemon.wishes import Listed
from gpuq.errors import DiskFull, StoreError
from gpuq.events import Event, Kind
from gpuq.launch.supervisors import Supervisor
from gpuq.model import (
    ACTIVE,
    WAITING,
    Claim,
    Driver,
    Ending,
    Failure,
    GpuReading,
    Host,
    Job,
    Queue,
    Readings,
    Reason,
    Request,
    Settings,
    State,
)
from gpuq.policy import ledger, placing, retry
from gpuq.policy.dependencies import Standing, listed
from gpuq.policy.explain import Verdict, impossible
from gpuq.policy.ledger import GpuState
from gpuq.policy.lifecycle import (
    Cancelled,
    Edited,
    Ended,
    Fact,
    NeverStarted,
    Retried,
    Step,
    TriedAgain,
    advance,
    noted,
)
from gpuq.policy.predict import Predictions
from gpuq.policy.reserve import Reservation
from gpuq.policy.retry import GivenUp
from gpuq.policy.scheduler import PLACEABLE, Policy, Snapshot
from gpuq.policy.waiting import GroupKey, Waiting
from gpuq.store import dependents
from gpuq.store.store import Store, with_outcome
from gpuq.units import format_duration

log = logging.getLogger("gpuq.core")

T = TypeVar("T")


#: Whom the thread that reads the GPUs may wait for.
NVML, CLAIMS_FOLDER = "NVML", "the folder of other daemons' claims"


#: Ended jobs that a start learns run times from.
REMEMBERED_RUNS = 2000


class Core:
    def __init__(self, settings: Settings, store: Store, host: Host, state_dir: Path, run_root: Path) -> None:
        self.settings = settings
        self.store = store
        self.host = host
        self.state_dir = state_dir
        self.run_root = run_root
        self.hub = Hub()
        self.reserve = Reserve(state_dir)
        #: no larger id is given out before that is written down beside the run folders
        self.ids_upto = 0
        self.waiting = Waiting(max(retry.LONGEST_PAUSE, settings.retry_backoff), settings.grace)
        self.cascade = Cascade(store, self.waiting)
        #: called after a transaction that has left something to `go_on` with
        self.on_left: Callable[[], None] = lambda: None
        #: queues, disabled GPUs, groups that have stopped
        self.rules = Rules(store)
        self.running: dict[int, Running] = {}
        #: running jobs by their supervisor's pid; the thread that reads the GPUs looks into it
        self.shims: dict[int, int] = {}
        self.verdicts: dict[GroupKey, Verdict] = {}
        #: jobs that the last plan keeps GPUs for
        self.reserved: tuple[Reservation, ...] = ()
        self.policy = Policy.of(settings)
        self.predictions = Predictions()
        self.readings: Readings | None = None
        self.history: ledger.History = {}
        #: other daemons' claims by GPU, and why they are not known, or ours not told
        self.neighbours: ledger.Neighbours = {}
        self.sharing_fault: str | None = None
        #: monotonic time of the last sign of the driver's, None while it answers; and who is silent
        self.silent_since: float | None = None
        self.silent_who = NVML
        #: how many want no new attempt to be started, because the daemon is about to stop
        self.draining = 0

    def load(self) -> list[Job]:
        """Fill memory from the store; returns the running jobs, whose attempts are to be taken back."""
        now = time.time()
        self.rules.load()
        free, others = self.store.waiting(self.settings.grace)
        for key, ids in free.items():
            self.waiting.add_free(key, ids)
        for other in others:
            self.waiting.add(other, now)
        self.cascade.load()
        self.predictions = Predictions(self.store.last_runs(REMEMBERED_RUNS))
        running = [job for state in sorted(ACTIVE) for job in self.store.live_jobs(state)]
        for job in running:
            attempt = self.store.attempt(job.id, job.attempt)
            if attempt is None:
                raise self.store.conn.senseless(f"job {job.id} runs, and its attempt {job.attempt} is missing")
            over = any(claim.over for claim in attempt.claims)
            self.running[job.id] = Running(job, attempt, attempt.claims, over_told=over)
        counts = self.store.counts()
        log.info("the queue holds %s", ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no jobs")
        return running

    # --- changing ---------------------------------------------------------------------------------

    def apply(
        self,
        facts: Iterable[tuple[Job, Fact]],
        attempts: Sequence[NewAttempt] = (),
        now: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        """Advance jobs by facts, and claim what new attempts need, in one transaction.

        A part of what depends on them is seen to in it, too; where more is left `on_left` is called, for `go_on`.

        `now` is when the facts became known, where that was before the attempts were made, in seconds since the epoch;
        `meanwhile` is called before the disk is waited for. Raises IllegalTransition or StoreError, and then nothing
        has changed. What is kept in reserve for that is used where the disk is full.
        """
        todo = list(facts)
        self.with_room(lambda: self._apply(todo, attempts=attempts, now=now, meanwhile=meanwhile))

    def cancel_waiting(self, ids: Sequence[int]) -> None:
        """Cancel jobs that wait in one transaction, as far as `apply` does with those that depend on them.

        The same as `apply` with Cancelled for each, without a look at each. Raises as it does.
        """
        self.with_room(lambda: self._apply((), cancelled=ids))

    def go_on(self) -> None:
        """See, in one transaction, to more of those that depend on jobs that have ended. Raises StoreError."""
        self.with_room(lambda: self._apply(()))

    def with_room(self, work: Callable[[], T]) -> T:
        """Write something; what is kept in reserve for that is used where the disk is full. Raises StoreError."""
        try:
            return work()
        except DiskFull:
            if not self.reserve.give_up():
                raise
            return work()

    def _apply(
        self,
        facts: Iterable[tuple[Job, Fact]],
        cancelled: Sequence[int] = (),
        attempts: Sequence[NewAttempt] = (),
        now: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        crash.point("transition-before")
        now = time.time() if now is None else now
        changed: dict[int, Job] = {}
        events: list[Event] = []
        ended: dict[int, Standing] = {}
        alike: Event | None = None
        todo = list(facts)
        with self.store.transaction():
            if cancelled:
                alike = self._cancel_alike(cancelled, now)
                ended |= self.cascade.awaited(cancelled, State.CANCELLED)
            for job, fact in todo:
                step = self._step(changed.get(job.id, job), fact, now)
                events.append(step.event)
                changed[job.id] = step.job
                if step.job.ended:
                    ended[job.id] = Standing.of(step.job)
            for new in attempts:
                self.store.change(new.before, new.started.job, new.started.event)
                self.store.add_attempt(new.attempt)
            dependents.renew(self.store, [job.id for job, fact in todo if isinstance(fact, Retried)])
            groups = self.rules.record([job for job in changed.values() if job.ended], now)
            told = self.cascade.tell(ended, [new.attempt.job_id for new in attempts], now)
            if meanwhile is not None:
                meanwhile()
        if alike is not None:
            decisions.happened_alike(alike, cancelled)
            self.waiting.remove_all(cancelled)
        decisions.happened(events + groups.events)
        self.rules.keep(groups.put, groups.gone)
        for job in changed.values():
            self._settle(job, now)
        self.cascade.keep(told, now)
        for new in attempts:
            self._begin(new)
        self.hub.tell({*changed, *told.changed, *cancelled, *(new.attempt.job_id for new in attempts)})
        crash.point("transition-after")
        if self.cascade.left:
            self.on_left()

    def _step(self, job: Job, fact: Fact, now: float) -> Step:
        """Write what a fact makes of a job, and what the job's own rules make of that."""
        ended, step = self._outcome(job, fact, now)
        self._close_attempt(ended.job, fact, now)
        if isinstance(fact, Edited):
            self.store.edit(job, step.job, step.event, fact.unmet)
        else:
            self.store.change(job, step.job, step.event)
        return step

    def _outcome(self, job: Job, fact: Fact, now: float) -> tuple[Step, Step]:
        """What a fact makes of a job, and what the job's own rules make of that."""
        step = advance(job, fact, now)
        wanted = step.job.state is State.FAILED and job.ending is not Ending.CANCEL
        rule = self._again(step.job, now) if wanted else None
        if isinstance(rule, GivenUp):
            step = noted(step, rule.note)
        return step, advance(step.job, rule, now) if isinstance(rule, TriedAgain) else step

    def _begin(self, new: NewAttempt) -> None:
        """Hold in memory what the store holds of a claimed attempt."""
        job, attempt = new.started.job, new.attempt
        self.waiting.remove(job.id)
        self.running[job.id] = Running(job, attempt, attempt.claims)
        self.history = ledger.disturb(self.history, job.gpus, time.monotonic())

    def _cancel_alike(self, ids: Sequence[int], now: float) -> Event:
        """Write that these jobs, which wait, are cancelled; the event of each of them."""
        sample = self.store.job(ids[0])
        assert sample is not None
        step = advance(sample, Cancelled(), now)
        self.store.change_alike(ids, sample, step.job, step.event)
        return step.event

    def _again(self, job: Job, now: float) -> TriedAgain | GivenUp | None:
        """Whether a job that has just failed is tried again."""
        if not job.retry and job.failure is not Failure.PREEMPTED:
            return None
        cards = [card for card in placing.permitted(job.request, placing.seen(self.host)) if card.total]
        capacities = [card.total - self.settings.margin for card in cards]
        return retry.try_again(job, self.settings.retry_backoff, capacities, self.host.ram, now)

    def _close_attempt(self, job: Job, fact: Fact, now: float) -> None:
        running = self.running.get(job.id)
        if running is None:
            return
        if isinstance(fact, Ended):
            self.store.set_peaks(claim for claim in running.claims if claim.peak)
            self.store.end_attempt(with_outcome(running.attempt, job, fact.user_seconds, fact.system_seconds))
        elif isinstance(fact, NeverStarted):
            self.store.end_attempt(replace(running.attempt, ended_at=now, note="never started"))

    def _settle(self, job: Job, now: float) -> None:
        """Bring memory to what the store holds."""
        running = self.running.get(job.id)
        if job.state is State.SUCCEEDED and job.name and job.ended_at is not None and job.started_at is not None:
            self.predictions.learn(job.name, job.ended_at - job.started_at - job.suspended_seconds)
        if running is not None and job.state not in ACTIVE:
            del self.running[job.id]
            if running.shim is not None and self.shims.get(running.shim) == job.id:  # it may see to another one by now
                del self.shims[running.shim]
            self.history = ledger.disturb(self.history, job.gpus or _uuids(running.claims), time.monotonic())
        elif running is not None:
            running.job = job
        if job.state in WAITING:
            self.waiting.put(job, len(self.store.open_dependencies(job.id)) if job.after else 0, now)
        else:
            self.waiting.remove(job.id)

    def note_event(self, event: Event) -> None:
        """An event that changes no job."""
        with self.store.transaction():
            self.store.add_events([event])
        decisions.happened([event])
        self.hub.tell([event.job_id] if event.job_id is not None else [])

    # --- GPUs -------------------------------------------------------------------------------------

    def take_readings(self, readings: Readings) -> None:
        """Keep what a reading says, and tell of the attempts that it newly shows to use more than they claimed."""
        events = self._gpu_events(readings)
        self.readings = readings
        self.silent_since = None
        sizes, names = dict(self.host.capacities), dict(self.host.names)
        for gpu in readings.gpus:
            sizes[gpu.uuid] = gpu.total if gpu.fault is None else sizes.get(gpu.uuid, 0)
            names[gpu.uuid] = gpu.name if gpu.fault is None else names.get(gpu.uuid, "")
        # a process of ours that NVML lists by its pid here shows that it speaks of our PID namespace
        seen = any(p.job_id is not None for gpu in readings.gpus for p in (*gpu.before, *gpu.after))
        foreign_pids = self.host.foreign_pids and not seen
        self.host = replace(self.host, capacities=sizes, names=names, foreign_pids=foreign_pids)
        self.history = ledger.observe(self.history, readings, self.claims(), self.settings, self.host, self.neighbours)
        use = ledger.observed_use(readings)
        by_uuid = {gpu.uuid: gpu for gpu in readings.gpus}
        over: list[Running] = []
        grown: list[Claim] = []
        for running in self.running.values():
            running.use = {c.uuid: use.get((c.job_id, c.uuid), 0) for c in running.claims}
            claims = tuple(replace(c, peak=max(c.peak, running.use[c.uuid])) for c in running.claims)
            grown += [new for new, old in zip(claims, running.claims, strict=True) if new.peak > old.peak]
            running.claims = claims
            note_broken(running, by_uuid)
            if not running.over_told and any(claim.over for claim in claims):
                running.over_told = True
                over.append(running)
        try:
            self._keep_peaks(grown, over, events)
        except StoreError as error:  # memory knows it, and the end of the attempt will write it
            log.error("a reading could not be recorded: %s", error.message)

    def _keep_peaks(self, grown: list[Claim], over: list[Running], events: list[Event]) -> None:
        for claim in grown:
            running = self.running[claim.job_id]
            running.job = replace(running.job, peak_vram=max(running.job.peak_vram or 0, claim.peak))
        events = events + [
            Event(time.time(), Kind.OVER_CLAIM, r.job.id, r.job.attempt, {"note": over_text(r, self.gpu_index)})
            for r in over
        ]
        decisions.happened(events)
        if not grown and not events:
            return
        with self.store.transaction():
            self.store.set_peaks(grown)
            self.store.add_events(events)
        self.hub.tell({claim.job_id for claim in grown})

    def _gpu_events(self, readings: Readings) -> list[Event]:
        """GPUs that went away or came back between two readings."""
        if self.readings is None:
            return []
        was = {gpu.uuid: gpu.fault for gpu in self.readings.gpus}
        now = {gpu.uuid: gpu for gpu in readings.gpus}
        events = []
        for uuid, gpu in now.items():
            if (was.get(uuid) is None) != (gpu.fault is None) and uuid in was:
                kind = Kind.GPU_BACK if gpu.fault is None else Kind.GPU_LOST
                events.append(Event(time.time(), kind, data={"gpu": uuid, "index": gpu.index, "note": gpu.fault or ""}))
        for uuid in was.keys() - now.keys():
            if was[uuid] is None:
                events.append(Event(time.time(), Kind.GPU_LOST, data={"gpu": uuid, "note": readings.fault or "gone"}))
        return events

    def claims(self) -> dict[str, list[Claim]]:
        """Live claims by GPU."""
        result: dict[str, list[Claim]] = {}
        for running in self.running.values():
            for claim in running.claims:
                result.setdefault(claim.uuid, []).append(claim)
        return result

    def most_urgent(self) -> Request | None:
        """The request of the first group that waits for GPUs that others have, or our own jobs."""
        queue = Snapshot(self.waiting.groups, self.host, policy=self.policy, queues=self.rules.queues)
        waits = [
            (queue.rank(key, self.waiting.groups[key].first), key.request)
            for key, verdict in self.verdicts.items()
            if key.request.gpus and key in self.waiting.groups and verdict.reason in PLACEABLE
        ]
        return min(waits, key=lambda found: found[0])[1] if waits else None

    def published(self) -> list[PublishedClaim]:
        """Our claims, for other daemons."""
        seen: dict[tuple[int, str], set[int]] = {}
        for gpu in self._gpu_readings():
            for p in (*gpu.before, *gpu.after):
                if p.job_id is not None:
                    seen.setdefault((p.job_id, gpu.uuid), set()).add(p.pid)
        return [
            PublishedClaim(
                claim.uuid,
                claim.entitled,
                hashed(os.fsencode(running.attempt.run_dir)),
                running.identity,
                tuple(sorted(seen.get((claim.job_id, claim.uuid), ()))),
            )
            for running in self.running.values()
            for claim in running.claims
        ]

    def gpu_states(self) -> tuple[GpuState, ...]:
        """Every GPU as of the last reading; unavailable ones while the driver is silent. Empty before the first."""
        if self.readings is None:
            return ()
        states = ledger.gpu_states(
            self.readings, self.history, self.claims(), self.settings, self.host, self.neighbours
        )
        fault = self.gpu_fault()
        if fault is not None:
            return tuple(state if state.fault else replace(state, fault=fault) for state in states)
        return tuple(map(self.rules.judged, states)) if self.rules.disabled else states

    @property
    def silent(self) -> float | None:
        """Seconds for which the driver has been silent, None while it answers."""
        return None if self.silent_since is None else time.monotonic() - self.silent_since

    def gpu_fault(self) -> str | None:
        """What is wrong with the driver as a whole."""
        if self.silent is not None:
            return f"{self.silent_who} has not answered for {format_duration(self.silent)}"
        if self.readings is None:
            return "the GPUs have not been read yet"
        if self.readings.driver is Driver.NONE:
            return "this host has no NVIDIA driver"
        return self.readings.fault if self.readings.driver is Driver.BROKEN else None

    def gpu_index(self, uuid: str) -> int | None:
        return next((gpu.index for gpu in self._gpu_readings() if gpu.uuid == uuid), None)

    def listed(self) -> Listed:
        """The GPUs as they may be named, by index."""
        indexes = {gpu.uuid: gpu.index for gpu in sorted(self._gpu_readings(), key=lambda gpu: gpu.order)}
        indexes |= dict.fromkeys((self.host.capacities.keys() | self.rules.disabled.keys()) - indexes.keys())
        return Listed(None if self.readings is None else self.readings.driver, indexes, self.gpu_fault())

    def gpu_place(self, uuid: str) -> str:
        """What a GPU is called: `GPU 0`, or by its UUID where it is not listed."""
        index = self.gpu_index(uuid)
        return uuid if index is None else f"GPU {index}"

    def _gpu_readings(self) -> tuple[GpuReading, ...]:
        return () if self.readings is None else self.readings.gpus

    def supervised(self, running: Running, supervisor: Supervisor) -> None:
        """From now on this supervisor's processes are the attempt's."""
        running.supervisor, running.shim = supervisor, supervisor.pid
        running.identity = (supervisor.pid, supervisor.start_time)
        self.shims[supervisor.pid] = running.job.id

    def grace(self, job: Job) -> float:
        """Seconds between TERM and KILL."""
        return self.settings.grace if job.grace is None else job.grace

    def next_run_dir(self, job: Job) -> Path:
        """The folder of the job's next attempt."""
        return Path(f"{self.run_root}/{job.id}/{job.attempt + 1}")

    # --- asking -----------------------------------------------------------------------------------

    def snapshot(self, over: Mapping[int, Fact] = MappingProxyType({})) -> Snapshot:
        """The queue as it is, or as it will be without the running jobs that are `over`, with how they ended."""
        running = [r for r in self.running.values() if r.job.id not in over]
        now = time.time()
        return Snapshot(
            groups=self.waiting.groups,
            host=self.host,
            now=now,
            policy=self.policy,
            ongoing=[
                ongoing(one, self.predictions, self.grace(one.job), self.rules.priority(one.job), now)
                for one in running
            ],
            queues=self.rules.queues,
            stopped=self.rules.stopped_with(self._foreseen(over, now), now),
            predictions=self.predictions,
            reserved=self.reserved,
            gpu_fault=self.gpu_fault(),
        )

    def _foreseen(self, over: Mapping[int, Fact], now: float) -> list[Job]:
        """Jobs of groups as they are once they have ended so: what starts in their place is decided with that."""
        jobs = ((self.running[job_id].job, fact) for job_id, fact in over.items())
        return [self._outcome(job, fact, now)[1].job for job, fact in jobs if job.group is not None]

    def impossible(self, request: Request, queue: Queue) -> str | None:
        """Why this host can never run the request in that queue, None if it can, or if its GPUs are not known yet."""
        # what is known of the GPUs of a driver that does not work now is what it told before
        known = self.readings is not None and self.readings.driver is not Driver.BROKEN
        return impossible(request, self.host, self.settings, queue, gpus_known=known or bool(self.host.capacities))

    def reason(self, job: Job) -> Verdict | None:
        """Why a job waits; None when it does not."""
        if job.state not in WAITING:
            return None
        blocked = self.waiting.blocked(job.id)
        if blocked is Reason.HELD:
            return Verdict(blocked, f"held; `gpuq release {job.id}` lets it go")
        if blocked is Reason.DEPENDENCY:
            return Verdict(blocked, "waits for " + listed(self.store.open_clauses(job.id)))
        if blocked is Reason.BEGIN_TIME:
            tried = f": {job.note}" if job.note else ""
            return Verdict(blocked, f"begins in {format_duration((job.begin_at or 0) - time.time())}{tried}")
        key = self.waiting.key(job.id)
        verdict = self.verdicts.get(key) if key is not None else None
        if verdict is not None and verdict.reason is Reason.GPU_UNAVAILABLE and self.silent is not None:
            return replace(verdict, text=self.gpu_fault() or verdict.text)  # how long it is now
        return verdict or Verdict(Reason.RESOURCES, "about to be looked at")


def _uuids(claims: Iterable[Claim]) -> list[str]:
    return [claim.uuid for claim in claims]
