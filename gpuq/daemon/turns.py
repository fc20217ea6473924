"""Planning among the daemons of this host: one at a time, telling the others what is claimed, and giving them way."""

from __future__ import annotations

import os
import time

from gpuq.daemon.claimsfile import PublishedClaim, PublishedWait, hashed
from gpuq.daemon.core import Core
from gpuq.daemon.sharing import Sharing
from gpuq.policy import courtesy, scheduler


class Turns:
    """Our dealings with them. Nothing is told where `sharing` is None: nobody else sees our GPUs."""

    def __init__(self, core: Core, sharing: Sharing | None) -> None:
        self.sharing = sharing
        #: claims of planned attempts that others have been told of and that are not recorded yet, by job
        self.planned: dict[int, list[PublishedClaim]] = {}
        self._core = core
        #: monotonic time since which a GPU job waits and none has been started, None while none waits
        self._waits_since: float | None = None
        self._courtesy = courtesy.NONE

    def agreed(self, plan: scheduler.Plan) -> scheduler.Plan:
        """The plan, made anew while no other daemon of this host plans, and told to them before anything starts."""
        core, sharing = self._core, self.sharing
        if sharing is None:
            return plan
        with sharing.turn():
            others, now = sharing.read(), time.monotonic()
            core.neighbours = others.claims
            ours = now if self._waits_since is None else self._waits_since
            states, self._courtesy = courtesy.give_way(core.gpu_states(), others.waits, ours, self._courtesy, now)
            plan = scheduler.plan(core.snapshot(), states)
            if any(start.gpus for start in plan.starts):
                self._waits_since = None
            for start in plan.starts:
                job = core.store.job(start.job_id) if start.gpus else None
                if job is not None:
                    run = hashed(os.fsencode(core.next_run_dir(job)))
                    self.planned[job.id] = [PublishedClaim(uuid, start.request.vram, run) for uuid in start.gpus]
            self.publish(waiting=True)
        return plan

    def publish(self, *, waiting: bool) -> None:
        """Tell them what we claim, where that has changed, and, with `waiting`, what we wait for."""
        if self.sharing is not None:
            planned = [claim for claims in self.planned.values() for claim in claims]
            self.sharing.publish([*self._core.published(), *planned], self._next_wait(waiting))
            self._core.sharing_fault = self.sharing.fault

    def _next_wait(self, waiting: bool) -> PublishedWait | None:
        """The most urgent request that could not be placed, and since when we have got nothing."""
        found = self._core.most_urgent() if waiting else None
        if found is None:
            self._waits_since = None
            return None
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        return PublishedWait(int(self._waits_since * 1000), found.gpus, found.vram)
