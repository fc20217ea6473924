"""Kills: daemons at random instants and while they start, supervisors, whole boxes; and arms crash points."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gpuq import crash
from tests.chaos.evidence import Living, living
from tests.chaos.world import World, until

#: A daemon that has not come to its crash point after so many seconds is killed.
TOO_LATE = 4.0


class Killer:
    """One after the other, until enough daemons died. `judge` is given copies of the database to look at."""

    def __init__(self, world: World, seed: int, mode: str, judge: Callable[[Path, Living], None]) -> None:
        self._world, self._mode, self._judge = world, mode, judge
        self._random = random.Random(f"{seed}-killer")
        self.kills = 0
        self.faults: Counter[str] = Counter()
        self._deck: list[str] = []
        #: crash points, in an order of their own, again and again
        self._points: list[str] = []
        self._judged_until = 0.0
        self._cost = 0.0

    def run(self, kills: int, deadline: float, stop: threading.Event, tell: Callable[[], None]) -> None:
        """Until so many daemons died, or the time is up; `tell` is called after each."""
        while (self.kills < kills or self._owed()) and time.monotonic() < deadline and not stop.is_set():
            if self._mode == "points" or (self._mode == "both" and self._random.random() < 0.3):
                self._at_a_point()
            else:
                self._at_random()
            self._maybe_judge()
            tell()
        os.environ.pop(crash.VARIABLE, None)

    def _owed(self) -> bool:
        """A run, however short, reboots once, and kills a supervisor."""
        return self._mode != "points" and not (self.faults["reboot"] and self.faults["supervisor killed"])

    def _at_random(self) -> None:
        time.sleep(min(4.0, self._random.expovariate(1 / 0.8)))
        fault = self._next_fault()
        if fault == "supervisor":
            self._supervisor()
        elif fault == "reboot":
            self._world.reboot()
            self.kills += 1
            self.faults["reboot"] += 1
        elif self._daemon("kill"):
            while self._random.random() < 0.3:  # again, while the next one starts
                time.sleep(self._random.uniform(0, 0.6))
                if not self._daemon("kill in start-up"):
                    break

    def _next_fault(self) -> str:
        """From a deck that is dealt again and again, so that each comes as often as it should."""
        if not self._deck:
            self._deck = ["reboot", "supervisor"] + ["daemon"] * (4 if self._owed() else 18)
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _daemon(self, why: str) -> bool:
        daemons = self._world.daemons()
        if daemons:
            self._world.kill(daemons)
            self.kills += 1
            self.faults[why] += 1
        return bool(daemons)

    def _supervisor(self) -> None:
        with suppress(TimeoutError):
            until(self._world.supervisors, "a supervisor", 3.0)
        supervisors = self._world.supervisors()
        if supervisors:
            pid, job, attempt = self._random.choice(supervisors)
            self._world.journal.note("kill-supervisor", job=job, attempt=attempt)
            self._world.kill([pid])
            self.faults["supervisor killed"] += 1

    def _at_a_point(self) -> None:
        """Kill, and have the next daemon die at a point; it is given some seconds to get there."""
        self._points = self._points or self._random.sample(sorted(crash.POINTS), len(crash.POINTS))
        name = self._points.pop()
        os.environ[crash.VARIABLE] = f"{name}:{self._random.choice((1, 1, 1, 2, 3, 5))}"
        self._daemon("kill")
        with suppress(TimeoutError):
            until(self._world.daemons, "a daemon", 3.0)
        armed = set(self._world.daemons())
        deadline = time.monotonic() + TOO_LATE
        met = False
        while not met and armed & set(self._world.daemons()) and time.monotonic() < deadline:
            met = name in self._world.note_points()
            time.sleep(0.02)
        os.environ.pop(crash.VARIABLE, None)
        met = name in self._world.note_points() or met
        if met:
            self.faults[f"at {name}"] += 1
        if met and not name.startswith("supervisor"):
            with suppress(TimeoutError):  # the log tells of it a moment before it dies
                until(lambda: not armed & set(self._world.daemons()), "its end", 1.0)
                self.kills += 1

    # --- judging ----------------------------------------------------------------------------------

    def _maybe_judge(self) -> None:
        """After a kill, unless looking takes more than a tenth of the time: the evidence grows."""
        if time.monotonic() < self._judged_until:
            return
        began = time.monotonic()
        copy = self._world.folder / "copy"
        with self._world.nobody_starts_a_daemon():
            self._daemon("kill")
            self._world.note_points()
            copy_evidence(self._world.folder, copy)
            alive = living(self._world.state)  # what the next daemon starts is not in the copy
        self._judge(copy, alive)
        shutil.rmtree(copy)
        self._cost = time.monotonic() - began
        self._judged_until = time.monotonic() + 9 * self._cost


def copy_evidence(folder: Path, copy: Path) -> None:
    """Journals first: what they say was acknowledged is then in the database, and in the trace what that knows."""
    copy.mkdir()
    shutil.copytree(folder / "journal", copy / "journal")
    (copy / "state").mkdir()
    for name in ("queue.db", "queue.db-wal"):
        with suppress(FileNotFoundError):
            shutil.copy(folder / "state" / name, copy / "state" / name)
    shutil.copy(folder / "trace", copy / "trace")
