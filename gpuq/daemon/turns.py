"""Planning among the daemons of this host: one at a time, telling the others what is claimed, and giving them way."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from gpuq import crash
from gpuq.daemon.claimsfile import PublishedClaim, PublishedWait, hashed
from gpuq.daemon.core import Core
from gpuq.daemon.neighbours import Others
from gpuq.daemon.sharing import Sharing
from gpuq.policy import courtesy, scheduler
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import permitted

log = logging.getLogger("gpuq.turns")

#: Looks at the others' claims in one turn: one to plan by, one after telling, and what others' haste may ask for.
MOST_LOOKS = 4
#: A turn that took longer than this, in seconds, without the looks themselves, began with a reading that is old by now:
#: the daemon was stopped, or the host is short of everything.
OLD = 2.0


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

    def agreed(self, plan: scheduler.Plan, states: Sequence[GpuState]) -> scheduler.Plan:
        """The plan, which was made for GPUs in these states, made anew among the claims of others, and told to them
        before anything starts.

        A start counts once a look at the others' claims that began after ours was told leaves room for it. So whoever
        tells later sees what was told earlier, whoever holds the lock and however long anything took meanwhile. Two
        that see each other both take theirs back, and plan again with their next readings.
        """
        if self.sharing is None:
            return plan
        ours = time.monotonic() if self._waits_since is None else self._waits_since
        wanted = self._wanted(plan)
        with self.sharing.turn():
            began, looking = time.monotonic(), 0.0
            for _ in range(MOST_LOOKS):
                others, took = self._look(self.sharing)
                looking += took
                if others is None:
                    break
                among = self._states_among(others, ours)
                if among != states:
                    plan, states = scheduler.plan(self._core.snapshot(), among), among
                    wanted = self._wanted(plan)
                if wanted.items() <= self.planned.items():
                    if time.monotonic() - began - looking > OLD:
                        break
                    self.planned = wanted
                    if wanted:
                        self._waits_since = None
                    return plan
                self.planned = wanted
                crash.point("tell-before")
                told = self.publish(waiting=True)
                crash.point("tell-after")
                if not told:
                    break
        self.planned = {}
        log.warning("nothing is started on a GPU yet: other daemons claim at the same time, or that took too long")
        return replace(plan, starts=tuple(start for start in plan.starts if not start.gpus))

    @staticmethod
    def _look(sharing: Sharing) -> tuple[Others | None, float]:
        """What the others claim, None where that cannot be known now, and the seconds that it took."""
        began = time.monotonic()
        return sharing.look(), time.monotonic() - began

    def _states_among(self, others: Others, ours: float) -> Sequence[GpuState]:
        core = self._core
        core.neighbours = others.claims
        now = time.monotonic()
        states, self._courtesy = courtesy.give_way(core.gpu_states(), others.waits, ours, self._courtesy, now)
        return states

    def _wanted(self, plan: scheduler.Plan) -> dict[int, list[PublishedClaim]]:
        """The claims of what the plan starts on GPUs, by job."""
        wanted = {}
        for start in plan.starts:
            job = self._core.store.job(start.job_id) if start.gpus else None
            if job is not None:
                run = hashed(os.fsencode(self._core.next_run_dir(job)))
                wanted[job.id] = [PublishedClaim(uuid, start.request.vram, run) for uuid in start.gpus]
        return wanted

    def publish(self, *, waiting: bool) -> bool:
        """Tell them what we claim, where that has changed, and, with `waiting`, what we wait for.

        False where that is not possible for the moment.
        """
        if self.sharing is None:
            return True
        planned = [claim for claims in self.planned.values() for claim in claims]
        told = self.sharing.publish([*self._core.published(), *planned], self._next_wait(waiting))
        self._core.sharing_fault = self.sharing.fault
        return told

    def _next_wait(self, waiting: bool) -> PublishedWait | None:
        """The most urgent request that could not be placed, and since when we have got nothing."""
        found = self._core.most_urgent() if waiting else None
        if found is None:
            self._waits_since = None
            return None
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        states = self._core.gpu_states()
        able = [gpu.uuid for gpu in permitted(found, states)]
        if not able:
            return None
        only = tuple(able) if len(able) < len(states) else None
        return PublishedWait(int(self._waits_since * 1000), found.gpus, found.vram, only)
