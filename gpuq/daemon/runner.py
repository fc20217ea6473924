"""The loop: wakes, plans, has attempts launched and takes their results. Events from the kernel come in here.

Whatever becomes of an attempt is learnt in one place, `_take`, whether its supervisor has just ended or the daemon
has just started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from gpuq import config, crash
from gpuq.daemon import decisions, evidence, threads
from gpuq.daemon.attempts import AHEAD, Attempts
from gpuq.daemon.cascade import Afterwards
from gpuq.daemon.clock import WallClock
from gpuq.daemon.core import Core
from gpuq.daemon.gpus import Gpus
from gpuq.daemon.running import NewAttempt, Running, over_text
from gpuq.daemon.sharing import Sharing
from gpuq.daemon.turns import Turns
from gpuq.daemon.watch import Watcher
from gpuq.errors import GpuqError, HostBusy, LaunchError, StoreBusy, StoreError
from gpuq.gpus.source import open_source
from gpuq.launch import adoption, launcher, leftovers, outcome
from gpuq.launch.cgroup import Supervision
from gpuq.launch.runfolder import FULL, for_a_while
from gpuq.launch.supervisors import Began, Died, NotBegun, Reported, Supervisor, ZygoteEnded
from gpuq.model import Ending, Failure, Identity, Job, OverClaim, Reason, State
from gpuq.policy import scheduler
from gpuq.policy.explain import Verdict
from gpuq.policy.lifecycle import EndAsked, Ended, Fact, NeverStarted, Resumed, Suspended
from gpuq.policy.preempt import Preemption
from gpuq.policy.waiting import GroupKey

log = logging.getLogger("gpuq.runner")

#: After a write that failed (disk full), what was to be written is tried again this often, in seconds.
RETRY_WRITE = 5.0

#: An attempt that is to be claimed, and what is wrong with its run folder.
Prepared = tuple[NewAttempt, str | None]

#: What a restarted daemon finds of an attempt, in words.
FOUND: dict[type, str] = {
    adoption.Running: "running",
    adoption.Starting: "starting",
    adoption.Ended: "ended",
    adoption.NeverStarted: "never started",
    adoption.Lost: "lost",
    adoption.Gone: "gone, with its run folder",
}


class Runner:
    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop, supervision: Supervision) -> None:
        self.core = core
        self.supervision = supervision
        self._loop = loop
        source = open_source(os.environ.get("GPUQ_GPUS"))
        #: None where nobody else sees our GPUs
        sharing = Sharing(config.claims_dir(), core.state_dir) if source.shared else None
        self._turns = Turns(core, sharing)
        self.gpus = Gpus(core, loop, Watcher(loop, source, sharing, core.shims), self._look_at_gpus)
        self._awake = False
        self._clock = WallClock(loop, self.wake, self._clock_set)
        #: why nothing is started for a while, None while all is well
        self._paused: str | None = None
        self._pause_timer: asyncio.TimerHandle | None = None
        #: the loop itself holds its tasks only weakly
        self._tasks: set[asyncio.Task[None]] = set()
        self.launcher = launcher.Launcher()
        self._attempts = Attempts(core, supervision)
        #: more could be started than may be at once
        self._held_back = False
        self.afterwards = Afterwards(core.cascade, core.go_on, self.wake)
        core.on_left = self.afterwards.begin
        #: how attempts ended that are to be recorded in this turn of the loop, by job
        self._over: dict[int, Fact] = {}

    def begin(self) -> None:
        """Take back what an earlier daemon left running, then start what can start."""
        self._loop.add_reader(self.launcher.fileno(), self.hear)
        try:
            self.launcher.begin()
        except LaunchError as error:  # each start tries again, and says so of its job
            log.error("no supervisor can be started: %s", error.message)
        for job in self.core.load():
            self._take(job.id, restarted=True)
        self.afterwards.begin()
        self._publish()
        if self._turns.sharing is not None:
            self._turns.sharing.clean()
        self.gpus.read()  # only now: their processes would be taken for strangers
        self.wake()

    def end(self) -> None:
        """The daemon ends."""
        self.gpus.close()
        self._loop.remove_reader(self.launcher.fileno())
        self.launcher.close()

    # --- waking and planning ----------------------------------------------------------------------

    def wake(self) -> None:
        """Plan soon: jobs without GPUs at once, jobs with GPUs as soon as a reading is there."""
        if not self._awake:
            self._awake = True
            self._loop.call_soon(self._plan_without_gpus)

    def _plan_without_gpus(self) -> None:
        self._awake = False
        self._admit_due()
        if self.core.waiting.wants_gpus():
            self.gpus.read()
        self._plan(gpus=self.core.silent is not None)

    def _admit_due(self) -> None:
        """Let in the jobs whose begin time has come, and set the alarm for the next."""
        self._put_again(self.core.waiting.due(time.time()))
        self._clock.set(self.core.waiting.next_begin())

    def _clock_set(self) -> None:
        """Begin times that had come may lie ahead again, and others have come."""
        self._put_again(self.core.waiting.clock_set())
        self.core.hub.tell()
        self.wake()

    def _put_again(self, job_ids: Iterable[int]) -> None:
        now = time.time()
        for job_id in job_ids:
            job = self.core.store.job(job_id)
            if job is not None:
                self.core.waiting.put(job, len(self.core.store.open_dependencies(job_id)), now)

    def _plan(self, *, gpus: bool) -> None:
        """Start what can start now."""
        if self._nothing_starts():
            return
        states = self.core.gpu_states() if gpus else None
        plan = scheduler.plan(self.core.snapshot(), states)
        if states is not None and any(start.gpus for start in plan.starts):
            plan = self._turns.agreed(plan, states)
        self._record({}, plan)
        self._turns.planned.clear()
        self._publish()
        self._preempt(plan.preemptions)

    def _preempt(self, preemptions: Iterable[Preemption]) -> None:
        """Ask running jobs to end for others. What cannot be recorded now is planned again."""
        for one in preemptions:
            running = self.core.running.get(one.job_id)
            if running is None or running.job.ending is not None:
                continue
            try:
                self.direct(running.job, EndAsked(Ending.PREEMPT, f"gives way to job {one.for_job}"))
            except GpuqError as error:
                log.error("job %d cannot be asked to give way: %s", one.job_id, error)

    def _nothing_starts(self) -> bool:
        """Whether nothing is started now, for a reason that is then told of every waiting job."""
        if self._paused is None and self.core.waiting.groups and not self.core.reserve.keep():
            self._pause(self.core.reserve.full().message)
        stopped = "the daemon is about to stop" if self.core.draining else self._paused
        if stopped is not None:
            self._keep_verdicts({key: Verdict(Reason.RESOURCES, stopped) for key in self.core.waiting.groups})
        return stopped is not None

    def _record(self, ended: Mapping[int, Fact], plan: scheduler.Plan) -> None:
        """Write how attempts ended, and claim what is planned, in one transaction; then launch that."""
        now = time.time()
        freed = self.core.waiting.freed
        prepared = self._prepared(plan.starts)
        if prepared or ended:
            prepared = self._written(ended, prepared, now)
        if self.core.waiting.freed != freed:  # whom an end or a start has set free
            self.wake()
        for new, broken in prepared:
            self._launch(self.core.running[new.attempt.job_id], broken)
        for new, _ in prepared:
            self._tell_start(new.started.job)
        if not self._nothing_starts():
            self.core.reserved = plan.reservations
            self._keep_verdicts(plan.verdicts)
            self._make_ready(plan.verdicts)

    def _written(self, ended: Mapping[int, Fact], prepared: list[Prepared], now: float) -> list[Prepared]:
        """The starts that were claimed. Where not all can be written, each is by itself: none holds up another."""
        try:
            self._write(ended, [new for new, _ in prepared], now)
        except Exception as error:  # noqa: BLE001 (whatever it is: the next look is in a moment, and readings go on)
            if len(ended) + len(prepared) == 1:
                self._not_recorded(ended, error)
                return []
        else:
            return prepared
        for job_id, fact in ended.items():
            self._written({job_id: fact}, [], now)
        if any(job_id in self.core.running for job_id in ended):  # a start may be meant for the place of that one
            return []
        return [claimed for one in prepared for claimed in self._written({}, [one], now)]

    def _write(self, ended: Mapping[int, Fact], attempts: Sequence[NewAttempt], now: float) -> None:
        if ended:
            crash.point("record-before")
        if attempts:
            crash.point("claim-before")
        # Nothing is left of what has ended: GPUs are read while the disk writes. Earlier, the reading would keep the
        # statements waiting for the interpreter's lock, one by one.
        read = self.gpus.read if ended and self.core.waiting.wants_gpus() else None
        facts = [(self.core.running[job_id].job, fact) for job_id, fact in ended.items()]
        self.core.apply(facts, attempts, now, meanwhile=read)
        if attempts:
            crash.point("claim-after")
        if ended:
            crash.point("record-after")

    def _make_ready(self, verdicts: Mapping[GroupKey, Verdict]) -> None:
        """What the next start needs and is known now is made while nothing waits for it."""
        self.launcher.settle()
        key = next((key for key, verdict in verdicts.items() if verdict.reason in scheduler.PLACEABLE), None)
        line = None if key is None else self.core.waiting.groups.get(key)
        if line:
            self._loop.call_soon(self._attempts.look_ahead, line.head(AHEAD))

    def _prepared(self, starts: Sequence[scheduler.Start]) -> list[Prepared]:
        """The attempts that are to be claimed, as many as may be started at once; none where the host has no room."""
        self._held_back = False
        try:
            room = self.launcher.room(len(starts))
            self._held_back = len(starts) > room
            return [self._attempts.prepare(start) for start in starts[:room]]
        except HostBusy as error:
            self._pause(error.message)
        except Exception as error:  # noqa: BLE001 (as above)
            self._not_recorded({}, error)
        return []

    def _not_recorded(self, ended: Mapping[int, Fact], error: Exception) -> None:
        """Nothing was written: results wait in their files, and are tried again, as starts are."""
        if not isinstance(error, StoreError):
            log.exception("an attempt could not be recorded")
        if ended:
            log.error("the end of %s cannot be recorded yet: %s", ", ".join(f"job {n}" for n in ended), error)
            for job_id, fact in ended.items():
                self._loop.call_later(RETRY_WRITE, self._finish, job_id, fact)
        else:
            full = isinstance(error, OSError) and error.errno in FULL
            self._pause("the disk is full" if full else f"an attempt could not be recorded: {error}")

    def _publish(self) -> None:
        """Tell the other daemons of this host what we claim, where that has changed."""
        self._turns.publish(waiting=not self.core.draining and self._paused is None)

    def _keep_verdicts(self, fresh: Mapping[GroupKey, Verdict]) -> None:
        """Remember why groups wait, and tell those who follow a job of one whose reason has changed."""
        core = self.core
        before = core.verdicts
        changed = {key for key, verdict in fresh.items() if before.get(key) != verdict}
        core.verdicts = {key: v for key, v in (before | dict(fresh)).items() if key in core.waiting.groups}
        if changed:
            core.hub.tell(n for n in core.hub.awaited() if core.waiting.key(n) in changed)

    # --- launching --------------------------------------------------------------------------------

    def _launch(self, running: Running, broken: str | None) -> None:
        """Have a claimed attempt started, unless its folder is broken: once claimed, it is never forgotten."""
        job_id = running.job.id
        self._turns.planned.pop(job_id, None)
        if broken is not None:
            self._finish(job_id, Ended(failure=Failure.LAUNCH, note=broken))
            return
        try:
            crash.point("spawn-before")
            self.launcher.start(self._attempts.orders(running))
            crash.point("spawn-after")
        except LaunchError as error:
            self._not_launched(job_id, error)
        except Exception as error:  # it is claimed, and may have begun: look at it as after a crash
            log.exception("the start of job %d broke", job_id)
            self._pause(f"a start broke: {error}")
            self._loop.call_later(RETRY_WRITE, self._look_again, running)

    def _not_launched(self, job_id: int, error: LaunchError) -> None:
        if not isinstance(error, HostBusy):
            self._finish(job_id, Ended(failure=Failure.LAUNCH, note=error.message))
            return
        log.warning("job %d cannot be started yet: %s", job_id, error)
        self._pause(error.message)
        self._finish(job_id, NeverStarted())

    def hear(self) -> None:
        """Learn what became of attempts: begun, not begun, over."""
        news = self.launcher.news()
        for one in news:
            if isinstance(one, ZygoteEnded):
                self._pause("the process that supervisors are forked from ended; another one is made")
                continue
            running = self.core.running.get(one.key[0])
            if running is None or running.attempt.number != one.key[1]:
                continue
            try:
                self._heard(one, running)
            except Exception:  # none of the others is lost for it
                log.exception("what was heard of job %d could not be acted on", running.job.id)
                self._loop.call_later(RETRY_WRITE, self._look_again, running)
        if any(isinstance(one, Began) for one in news):
            self._publish()  # with the supervisors, who stand for the claims if we die
        if self._held_back:
            self.wake()

    def _heard(self, one: Began | NotBegun | Reported | Died, running: Running) -> None:
        match one:
            case Began(supervisor=supervisor):
                self._supervise(running, supervisor)
            case NotBegun(failure=LaunchError() as failure):
                self._not_launched(running.job.id, failure)
            case NotBegun():  # whatever ends them may go on doing so
                self._pause("a supervisor ended before it took its orders")
                self._take(running.job.id, restarted=True)
            case Reported(report=report):
                self._ended(running, report=report)
            case Died(status=status):
                self._ended(running, status=status)

    def _look_again(self, running: Running) -> None:
        """What became of an attempt is not known here: its files tell, as after a crash."""
        if self.core.running.get(running.job.id) is running:
            self._take(running.job.id, restarted=True)

    def _supervise(self, running: Running, supervisor: Supervisor) -> None:
        """A supervisor of the attempt runs; what it was asked to do meanwhile, it is asked now."""
        self.core.supervised(running, supervisor)
        if running.job.ending is not None or running.job.state is State.SUSPENDED:
            self._steer(running)

    def children(self) -> Collection[int]:
        """The pids of all children that are waited for: supervisors, and what they are forked from."""
        self.hear()  # one may have ended already that we have not been told of
        return self.launcher.pids()

    def _tell_start(self, job: Job) -> None:
        states = self.core.gpu_states() if job.gpus else ()
        decisions.started(job, (gpu for gpu in states if gpu.uuid in job.gpus))

    def _pause(self, why: str) -> None:
        """Start nothing for a while: the host has no room for another process, which no event tells the end of."""
        log.warning("nothing starts for %.0f s: %s", RETRY_WRITE, why, extra={"event": "pause"})
        self._paused = why
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._pause_timer = self._loop.call_later(RETRY_WRITE, self._resume)

    def _resume(self) -> None:
        """Try again: the time has come, or an attempt has ended, which makes room."""
        if self._paused is not None and self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = self._paused = None
            self.wake()

    def direct(self, job: Job, fact: EndAsked | Suspended | Resumed) -> None:
        """Have a running attempt ended (its result tells when it has), suspended or resumed."""
        self.core.apply([(job, fact)])
        running = self.core.running[job.id]
        if job.ending is None and isinstance(fact, EndAsked):
            running.ends_at = time.time() + self.core.grace(job)
        self._steer(running)

    def _steer(self, running: Running) -> None:
        """Tell the supervisor what the store says of its attempt. Saying it again changes nothing."""
        if running.supervisor is None:
            return
        if running.job.ending is not None:
            launcher.end(running.supervisor)
        elif running.job.state is State.SUSPENDED:
            launcher.suspend(running.supervisor)
        else:
            launcher.resume(running.supervisor)

    # --- results ----------------------------------------------------------------------------------

    def _ended(self, running: Running, *, report: bytes | None = None, status: int | None = None) -> None:
        """Its supervisor has told how it ended, or has ended without telling."""
        running.supervisor = None
        self._resume()
        self._take(running.job.id, restarted=False, report=report, status=status)

    def _take(self, job_id: int, *, restarted: bool, report: bytes | None = None, status: int | None = None) -> None:
        """Learn what became of an attempt, and act on it. Whatever one run folder holds, the others are looked at."""
        running = self.core.running[job_id]
        run_dir = running.attempt.run_dir
        found: adoption.Found
        try:
            crash.point("result-before")
            found = adoption.adopt(Path(run_dir)) if report is None else adoption.Ended(outcome.parse(report, run_dir))
            crash.point("result-after")
            if restarted:
                decisions.adopted(job_id, running.attempt.number, FOUND[type(found)])
            self._act_on(found, running, restarted, status)
        except StoreBusy as error:
            log.warning("job %d cannot be looked at yet: %s", job_id, error)
            self._loop.call_later(RETRY_WRITE, lambda: self._take(job_id, restarted=restarted, status=status))
        except Exception as error:
            log.exception("the result of job %d cannot be read", job_id)
            note = error.message if isinstance(error, StoreError) else f"its result cannot be read: {error}"
            self._finish(job_id, Ended(failure=Failure.LOST, note=note))

    def _act_on(self, found: adoption.Found, running: Running, restarted: bool, status: int | None) -> None:
        job_id = running.job.id
        match found:
            case adoption.Running(supervisor):
                self.launcher.watch((job_id, running.attempt.number), supervisor)
                self.core.supervised(running, supervisor)
                self._steer(running)
            case adoption.Starting():
                run_dir = Path(running.attempt.run_dir)
                self._later(lambda: adoption.wait_unlocked(run_dir), lambda: self._take(job_id, restarted=restarted))
            case adoption.Ended(result):
                failure = result.start_failure
                if failure is not None and for_a_while(failure.step, failure.errno):
                    self._pause(failure.text)
                    self._finish(job_id, NeverStarted())
                    return
                fact = evidence.ended(result, running.attempt)
                if evidence.wants_a_look(running, fact):
                    task = self._loop.create_task(self._finish_after_a_look(running, fact))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                else:
                    self._finish(job_id, fact)
            case adoption.NeverStarted() if status == launcher.DISK_FULL:
                self._pause("the disk is full")
                self._finish(job_id, NeverStarted())
            case adoption.NeverStarted(complaint):
                if restarted and complaint is None:
                    self._finish(job_id, NeverStarted())
                else:
                    note = complaint or "its supervisor ended before the job began"
                    self._finish(job_id, Ended(failure=Failure.LAUNCH, note=note.splitlines()[-1]))
            case adoption.Lost(identity, complaint):
                self._lost(job_id, identity, complaint or launcher.how_ended(status, identity))
            case adoption.Gone():
                self._finish(
                    job_id,
                    Ended(failure=Failure.LOST, note="its run folder was emptied or removed, and its result with it"),
                )

    async def _finish_after_a_look(self, running: Running, fact: Ended) -> None:
        """What broke its GPU or filled it may have happened since the last reading: look once more before saying so."""
        try:
            await self.gpus.fresh()
            fact = evidence.examined(self.core, running, fact)
        except Exception:
            log.exception("the GPUs of job %d cannot be looked at", running.job.id)
        self._finish(running.job.id, fact)

    def _lost(self, job_id: int, identity: Identity, complaint: str | None) -> None:
        """The supervisor vanished: end what it left, and only then give its GPUs to others."""
        note = complaint.splitlines()[-1] if complaint else "its supervisor vanished without a result"
        running = self.core.running[job_id]
        grace = self.core.grace(running.job)
        run_dir = Path(running.attempt.run_dir)
        self._later(
            lambda: leftovers.end_leftovers(identity, grace, run_dir, orphans=True),
            lambda: self._finish(job_id, Ended(failure=Failure.LOST, note=note)),
        )

    def _later(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Do blocking work in a thread of its own, which does not keep the daemon from ending; then go on here."""

        def run() -> None:
            try:
                work()
            except Exception:
                log.exception("work in a thread failed")
            try:
                self._loop.call_soon_threadsafe(then)
            except RuntimeError:
                log.info("the daemon stopped before a thread of its ended")

        try:
            threads.begin(run, "later")
        except HostBusy as error:
            log.warning("what blocks cannot be done yet: %s", error.message)
            self._loop.call_later(RETRY_WRITE, self._later, work, then)

    def _finish(self, job_id: int, fact: Fact) -> None:
        """An attempt ended so. It is recorded with what else ends in this turn of the loop."""
        if not self._over:
            self._loop.call_soon(self._record_ends)
        self._over.setdefault(job_id, fact)

    def _record_ends(self) -> None:
        """Record what has ended, and start what needs no GPU in its place. GPU jobs are planned with the reading that
        is asked for meanwhile, and what the end has set free as whatever is new.

        Where that cannot be written now, the result files wait, and we try again.
        """
        ended = {job_id: fact for job_id, fact in self._over.items() if job_id in self.core.running}
        self._over = {}
        plan = scheduler.Plan((), {})
        if not self._nothing_starts():
            plan = scheduler.plan(self.core.snapshot(over=ended), None)
        self._record(ended, plan)
        self._preempt(plan.preemptions)
        if not self.core.waiting.wants_gpus():  # or else with the reading that comes
            self._publish()

    # --- GPUs -------------------------------------------------------------------------------------

    def _look_at_gpus(self) -> None:
        """The GPUs are known anew, or it is known that nobody tells of them."""
        if self.core.settings.over_claim is OverClaim.KILL:
            self._end_over_users()
        self._plan(gpus=True)

    def _end_over_users(self) -> None:
        """Those that an earlier daemon only told of, too."""
        for running in list(self.core.running.values()):
            if running.over_told and running.supervisor is not None and running.job.ending is None:
                try:
                    self.direct(running.job, EndAsked(Ending.OVER_MEMORY, over_text(running, self.core.gpu_index)))
                except GpuqError as error:
                    log.error("job %d could not be ended: %s", running.job.id, error)
