"""The database's health while the daemon lives: a thorough check now and then, and what follows when it is damaged.

Damage, whoever meets it, is written down in the file `recover`, and the daemon starts anew in its own place: every
start recovers what has to be, and running jobs run on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuq.daemon import threads
from gpuq.daemon.core import Core
from gpuq.errors import HostBusy, StoreError
from gpuq.events import Event, Kind
from gpuq.store import check, recovery

log = logging.getLogger("gpuq.upkeep")

#: Between two thorough checks, in seconds.
CHECK_EVERY = 86400.0


@dataclass(frozen=True, slots=True)
class Checked:
    """The newest thorough check. `at` is in seconds since the epoch."""

    at: float
    problems: tuple[str, ...] = ()
    #: why nothing is known
    failed: str | None = None


class Upkeep:
    """Made on the loop's thread. `start_anew` ends the daemon so that it begins again in its own place."""

    def __init__(self, core: Core, start_anew: Callable[[], None]) -> None:
        self._core = core
        self._folder = core.state_dir
        self._start_anew = start_anew
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        #: whoever waits for the check that is under way
        self._checking: asyncio.Future[Checked] | None = None
        self.checked: Checked | None = None
        core.store.on_damage = self.damaged

    def damaged(self, why: str) -> None:
        """The database cannot be trusted any more: have the next start recover it, and start."""
        log.error("the database is damaged: %s; it is recovered now", why, extra={"event": "damaged"})
        try:
            recovery.mark(self._folder, why)
        except OSError as error:
            log.error("that could not be written down: %s", error)
        self._loop.call_soon(self._start_anew)

    def words(self) -> str:
        """One line for `daemon status`."""
        checked = "is being checked"
        if self.checked is not None:
            checked = "whole" if not self.checked.problems else f"damaged: {self.checked.problems[0]}"
        if self.checked is not None and self.checked.failed is not None:
            checked = f"could not be checked: {self.checked.failed}"
        report = recovery.last_report(self._folder)
        return checked if report is None else f"{checked}; recovered before, see {report}"

    async def keep(self) -> None:
        """Check now and once a day, for as long as the daemon lives."""
        try:
            while True:
                try:
                    checked = await self.check()
                    log.info("the database was checked: %s", checked.problems or "whole", extra={"event": "checked"})
                except StoreError as error:
                    log.warning("%s", error.message)
                await asyncio.sleep(CHECK_EVERY)
        finally:
            self._stopping.set()

    async def check(self) -> Checked:
        """A thorough check, in a thread; several who ask share one. Raises StoreError where it cannot be made."""
        if self._checking is None:
            self._checking = self._loop.create_future()
            try:
                threads.begin(self._check, "database-check")
            except HostBusy as error:
                self._done(Checked(time.time(), failed=error.message))
        checked = self.checked if self._checking is None else await asyncio.shield(self._checking)
        if checked is None or checked.failed is not None:
            raise StoreError(f"the database could not be checked: {checked.failed if checked else 'not begun'}")
        return checked

    def _check(self) -> None:
        """Whatever becomes of the check, those who wait for it are answered."""
        checked = Checked(time.time(), failed="it broke off; the daemon's log tells more")
        try:
            found = check.thorough(self._folder / recovery.DATABASE, self._stopping.is_set)
            checked = Checked(time.time(), tuple(found or ()), None if found is not None else "the daemon stops")
        except (OSError, StoreError) as error:
            checked = Checked(time.time(), failed=str(error))
        finally:
            try:
                self._loop.call_soon_threadsafe(self._done, checked)
            except RuntimeError:
                log.debug("the daemon stopped before the check ended")

    def _done(self, checked: Checked) -> None:
        waiting, self._checking = self._checking, None
        self.checked = checked
        if waiting is not None and not waiting.done():
            waiting.set_result(checked)
        if checked.problems:
            try:
                self._core.note_event(Event(time.time(), Kind.DAMAGED, data={"note": checked.problems[0]}))
            except StoreError as error:
                log.error("%s", error.message)
            self.damaged(checked.problems[0])
