"""The request `submit`: a submission comes in parts, is written as they come, and is seen once it is whole.

A small one is one transaction. A larger one is written in slices (`store/staging.py`), between which others are
served; each part is answered when it is written, so that the client sends no faster than that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from gpuq import protocol
from gpuq.daemon import decisions, depending, views
from gpuq.daemon import submit as submission
from gpuq.daemon.asking import Daemon, Session
from gpuq.daemon.core import Core
from gpuq.daemon.hub import let_others
from gpuq.daemon.queues import refuse_closed
from gpuq.errors import BadRequest, CannotFit, DiskFull, StoreError
from gpuq.events import Event, Kind
from gpuq.model import WAITING, Job, State
from gpuq.policy.dependencies import Numbered
from gpuq.policy.lifecycle import Step, advance
from gpuq.protocol import Message
from gpuq.store import dependents, runrecord
from gpuq.store.staging import SLICE, Needs, Own, Staged, in_slices

log = logging.getLogger("gpuq.submitting")

#: A submit waits at most this long for the first word on the GPUs, in seconds.
FIRST_READING = 3.0
#: When the database's log holds so much of a submission it is written back, in a thread: a commit would do it at 4 MiB.
LOG_BYTES = 2 * 1024 * 1024
#: So much stays free beside the reserve while one is written, in bytes: what is given up takes room to be removed.
ROOM = 8 * 1024 * 1024

Ids = tuple[int, int]


async def submit(daemon: Daemon, session: Session, message: Message) -> Message:
    """Take a part of a submission; with the last one, all of its jobs are queued or none."""
    commands = submission.check_commands(message.get("commands"))
    if session.intake is None:
        session.intake = Intake(daemon, session, message)
    if not await session.intake.take(commands, last=message.get("last") is True):
        return {}
    intake, session.intake = session.intake, None
    return intake.reply()


class Intake:
    """One submission, from its first part to its last. `give_up` undoes what was written of it."""

    def __init__(self, daemon: Daemon, session: Session, first: Message) -> None:
        self._daemon, self._core, self._session = daemon, daemon.core, session
        self._first = first
        self._key = submission.check_key(first.get("key"))
        self._count = submission.check_count(first.get("count"))
        #: of a client that does not say how many will come
        self._parts: list[tuple[str, ...]] = []
        self._checked: submission.Submission | None = None
        self._first_job = False
        #: first and last id, once they are queued
        self._ids: Ids | None = None
        self._staged: Staged | None = None
        #: commands written
        self._taken = 0
        #: what the jobs wait for, and what can hold no more
        self._depending = depending.Depending()
        self._unmet: frozenset[Numbered] = frozenset()
        self._skipped: Step | None = None

    async def take(self, commands: list[tuple[str, ...]], *, last: bool) -> bool:
        """Check and write a part; whether all jobs are queued now. Raises what is wrong with it."""
        if self._count is None:
            self._parts += commands
            if len(self._parts) > protocol.MAX_JOBS:
                raise CannotFit(f"a submission holds at most {protocol.MAX_JOBS:,} jobs")
            if not last:
                return False
            commands, self._count = self._parts, len(self._parts)
        if self._checked is None:
            await self._check(self._count)
        assert self._checked is not None
        self._refuse_false_count(len(commands), last=last)
        if self._ids is None and last and self._staged is None and self._checked.jobs <= SLICE:
            self._write_whole(self._checked, commands)
        elif self._ids is None:
            await self._write(self._checked, commands)
            if last:
                await self._finish(self._checked)
        self._taken += len(commands)
        if last and self._depending.own:
            with suppress(StoreError):  # it goes on when that can be written
                await self._daemon.runner.afterwards.done()
        return last

    def _refuse_false_count(self, coming: int, *, last: bool) -> None:
        total = self._taken + coming
        assert self._count is not None
        if total > self._count or (last and total < self._count):
            raise BadRequest(f"a submission of {self._count:,} commands was announced, and {total:,} have come")

    async def _check(self, count: int) -> None:
        """Everything but the commands. A key that is known already gives the ids it had."""
        core, first = self._core, self._first
        template = first.get("template")
        if not isinstance(template, dict):
            raise BadRequest("a submission has a template")
        if template.get("gpus") != 0:
            await self._daemon.runner.gpus.known(FIRST_READING)
        if template.get("gpu_ids") or template.get("gpus_excluded"):
            await self._daemon.runner.gpus.fresh()  # another GPU may have an index since the last reading
        self._ids = core.store.submission(self._key)
        job = _template(core, self._session, template)
        clauses = depending.check(template.get("after") or [])
        self._checked = submission.read_submission(first, count, job)
        if self._ids is not None:
            return
        self._depending = await depending.resolve(core.store, job.owner, clauses, self._checked.indexes)
        after = replace(self._checked.template, after=self._depending.common)
        self._checked = replace(self._checked, template=after)
        problem = core.impossible(job.request, core.rules.queue(job.queue))
        if problem is not None and job.request.gpus:
            await self._daemon.runner.gpus.fresh()  # a GPU may have come, or come back, since the last reading
            problem = core.impossible(job.request, core.rules.queue(job.queue))
        if problem is not None:
            about_gpus = job.request.gpus and "--cpus" not in problem and "--ram" not in problem
            look = "queue list" if f"queue {job.queue}" in problem else "gpus"
            raise CannotFit(f"{problem}; see `gpuq {look}`" if about_gpus else problem)
        refuse_closed(core.rules.queue(job.queue))
        core.reserve.require()
        self._ids = core.store.submission(self._key)  # sent again while this one waited for the GPUs
        self._first_job = core.store.next_id() == 1

    # --- writing ----------------------------------------------------------------------------------

    def _write_whole(self, checked: submission.Submission, commands: list[tuple[str, ...]]) -> None:
        """All jobs and what they wait for in one transaction."""
        core = self._core
        with core.store.transaction():
            first = core.store.next_id()
            last = first + checked.jobs - 1
            template = self._look_ahead(checked.at(first))
            self._reserve_ids(last)
            own = list(submission.own_values(checked, commands, first))
            core.store.put_environment(template.env_hash, checked.environment)
            core.store.insert_alike(template, own, self._unmet, self._each(template, own))
            core.store.put_submission(self._key, first, last)
            for event in self._events(template):
                named = event.kind is Kind.SUBMITTED
                core.store.add_events(
                    replace(event, job_id=row[0], data={"name": row[1], **event.data} if named else event.data)
                    for row in own
                )
        self._queued(template, first, last)

    async def _write(self, checked: submission.Submission, commands: list[tuple[str, ...]]) -> None:
        """Jobs of one part, unseen, in slices between which others are served."""
        core = self._core
        if self._staged is None:
            self._look_ahead(checked.template)
            self._staged = core.store.stage(checked.jobs, checked.template.env_hash, checked.environment)
            self._reserve_ids(self._staged.last)
        staged = self._staged
        template = self._now(checked.at(staged.first))
        own = submission.own_values(checked, commands, staged.first + self._taken)
        for some in in_slices(own):
            core.reserve.require(beside=ROOM)
            staged.write(template, some, self._unmet, self._each(template, some))
            if staged.in_log > LOG_BYTES:
                staged.in_log = 0
                await asyncio.to_thread(core.store.empty_log)
            await self._others()

    async def _finish(self, checked: submission.Submission) -> None:
        """Show what was written, after a last look at what it depends on."""
        core, staged = self._core, self._staged
        assert staged is not None
        await self._catch_up(checked, staged)
        self._ids = core.store.submission(self._key)
        if self._ids is not None:  # sent again meanwhile, and that one was faster
            await self.give_up()
            return
        template = self._now(checked.at(staged.first))
        staged.show(self._key, [replace(event, job_id=staged.first) for event in self._events(template)])
        self._staged = None
        self._queued(template, staged.first, staged.last)

    async def _catch_up(self, checked: submission.Submission, staged: Staged) -> None:
        """What the jobs depend on may have ended while they were written; returns when nothing of it is left to do."""
        skipped = self._skipped is not None
        while not skipped:
            unmet = self._unmet
            template = self._look_ahead(checked.at(staged.first))
            skipped, met = self._skipped is not None, unmet - self._unmet
            if not skipped and not met:
                return
            for low, high in staged.slices():
                if skipped:
                    staged.change(template, low, high)
                else:
                    staged.meet(met, low, high)
                await self._others()

    async def _others(self) -> None:
        """Serve others. Raises ConnectionError where nobody waits for the answer any more."""
        await let_others()
        if self._session.gone():
            raise ConnectionError("the client has gone away")

    async def give_up(self) -> None:
        """Remove what nobody has seen; the next start of the daemon does it where that fails."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        try:
            try:
                await self._remove(staged)
            except DiskFull:
                await self._take_back(staged)
        except StoreError as error:
            log.warning("a submission that was given up is removed at the next start: %s", error.message)

    async def _remove(self, staged: Staged) -> None:
        count = staged.written
        while staged.remove_some(time.time()):
            await asyncio.sleep(0)
        store = self._core.store
        if sum(store.counts().values()) < count:  # or else it is long anyway
            store.shorten_changes()

    async def _take_back(self, staged: Staged) -> None:
        """What was written has filled the disk, and goes in the room that is kept for results: that is kept again."""
        self._core.reserve.give_up()
        await self._remove(staged)
        await asyncio.to_thread(self._core.store.empty_log)
        self._core.reserve.keep()

    # --- what becomes of it -----------------------------------------------------------------------

    def _look_ahead(self, template: Job) -> Job:
        """The jobs as they are now that it is known whether what they depend on can still hold. Raises NoSuchJob, and
        NoSuchQueue or GpuqError where their queue is gone, or takes no more."""
        refuse_closed(self._core.rules.queue(template.queue))
        self._unmet, broken = depending.weighed(self._core.store, template.after)
        if broken is not None:
            # what can no longer hold is skipped at once: whether it ended before or after this is a matter of luck
            self._skipped = advance(template, broken, template.submitted_at)
        return self._now(template)

    def _each(self, template: Job, own: Sequence[Own]) -> dict[int, Needs] | None:
        """What each of these jobs waits for, where that is not the same for all. Raises NoSuchJob."""
        if not self._depending.own:
            return None
        members = [(row[0], row[3] or 0) for row in own]
        waits = template.state in WAITING
        return depending.own_needs(self._core.store, self._depending, self._unmet, members, waits=waits)

    def _now(self, template: Job) -> Job:
        """The template as its jobs stand: queued, held, or skipped."""
        if self._skipped is None:
            return template
        return replace(self._skipped.job, array=template.array, group=template.group)

    def _events(self, template: Job) -> list[Event]:
        """Of each of the jobs, but for its id and its name."""
        held = self._checked is not None and self._checked.template.state is State.HELD
        events = [Event(template.submitted_at, Kind.SUBMITTED, data={"held": True} if held else {})]
        return events if self._skipped is None else [*events, self._skipped.event]

    def _reserve_ids(self, last: int) -> None:
        core = self._core
        if last > core.ids_upto:
            core.ids_upto = runrecord.reserve(core.run_root, last)

    def _queued(self, template: Job, first: int, last: int) -> None:
        """They are committed: memory, the log and whoever listens are told."""
        core = self._core
        self._ids = first, last
        decisions.submitted(template, first, last)
        now = time.time()
        for ids, unmet in self._alike(range(first, last + 1)):
            core.waiting.put_all(template, ids, unmet, now)
        if self._depending.own:
            core.cascade.add(dependents.decided(core.store, first, last))
            core.on_left()
        core.hub.tell()
        self._daemon.runner.wake()

    def _alike(self, ids: range) -> Iterator[tuple[range, int]]:
        """The jobs in runs of those that wait for something, and of those that do not."""
        if not self._depending.own:
            yield ids, len(self._unmet)
            return
        open_ = self._core.store.with_open_dependencies(ids.start, ids.stop - 1)
        for waits, run in itertools.groupby(ids, lambda job_id: job_id in open_):
            some = list(run)
            yield range(some[0], some[-1] + 1), int(waits)

    def reply(self) -> Message:
        core, ids = self._core, self._ids
        assert ids is not None
        # a job without GPUs did not wait for the first reading, and need not hear that there was none yet
        told = self._first_job and (self._first["template"].get("gpus") != 0 or core.readings)
        note = views.gpus_note(core) if told else None
        queued = core.store.job(ids[0])
        if queued is not None and queued.state is State.SKIPPED:
            note = f"job {queued.id} is skipped: it {queued.note}"
        notes = [note, submission.missing_folder(queued) if queued is not None else None]
        if queued is not None and queued.group is not None and queued.state in WAITING:
            notes.append(core.rules.stopped.get(queued.group))
        return {"ids": list(ids), "notes": [text for text in notes if text]}


def _template(core: Core, session: Session, template: Message) -> Job:
    queue = core.rules.queue(submission.check_queue(template))
    return submission.check_template(template, session.uid, core.listed(), queue, time.time())
