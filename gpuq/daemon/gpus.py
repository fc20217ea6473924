"""When the GPUs are read, and what becomes of a reading; and of a driver that does not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from gpuq.daemon.core import Core
from gpuq.daemon.watch import Watcher
from gpuq.model import Readings
from gpuq.policy.ledger import Neighbours

log = logging.getLogger("gpuq.gpus")


class Gpus:
    """`look` is called whenever they are known anew, or it is known that nobody tells of them."""

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop, watcher: Watcher, look: Callable[[], None]) -> None:
        self._core = core
        self._loop = loop
        self._watcher = watcher
        self._look = look
        #: people who look at the GPUs: readings go on while there are any
        self.onlookers = 0
        self._next: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._first_reading = asyncio.Event()
        self._reading_done = asyncio.Event()
        #: when the newest reading that was delivered began, on the monotonic clock
        self._read_at = float("-inf")
        watcher.begin(self._take)

    def read(self) -> None:
        """Ask for a reading that begins after now; what comes of it is planned with."""
        self._watcher.request()
        if self._patience is None:
            self._patience = self._loop.call_later(self._core.settings.nvml_patience, self._impatient)

    async def fresh(self) -> None:
        """Wait for a reading that begins after now, unless the driver is silent, or becomes so."""
        wish = time.monotonic()
        self.read()
        # the reading that is under way may have begun before: then there is one more behind it
        while self._core.silent is None and self._read_at < wish:
            self._reading_done.clear()
            await self._reading_done.wait()

    async def known(self, patience: float) -> None:
        """Wait, not for longer than so many seconds, until they were read once."""
        if self._first_reading.is_set():
            return
        try:
            await asyncio.wait_for(self._first_reading.wait(), patience)
        except TimeoutError:
            log.warning("the GPUs are not known yet")

    def close(self) -> None:
        """The daemon ends."""
        self._watcher.close()

    def _take(self, readings: Readings, neighbours: Neighbours) -> None:
        core = self._core
        if self._patience is not None and self._watcher.asked_at is None:
            self._patience.cancel()
            self._patience = None
        late = core.silent is not None
        if late:
            log.warning("%s answers again", core.silent_who, extra={"event": "nvml-back"})
        self._read_at = readings.at
        core.neighbours = neighbours
        core.take_readings(readings)
        self._first_reading.set()
        self._reading_done.set()
        if late:
            self.read()  # some of this is as old as the silence was long: jobs start on the next one
        else:
            self._look()
        core.hub.tell()
        self._go_on()

    def _go_on(self) -> None:
        """Readings go on while a job runs on a GPU or waits for one, or somebody looks; otherwise the daemon sleeps."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        runs = any(running.claims for running in self._core.running.values())
        if runs or self._core.waiting.wants_gpus() or self.onlookers:
            self._next = self._loop.call_later(self._core.settings.reading_interval, self.read)

    def _impatient(self) -> None:
        """The driver is silent: say so, until it answers."""
        self._patience = None
        core, waits = self._core, self._watcher.waits()
        if waits is None:
            return
        who, since = waits
        silent, patience = time.monotonic() - since, core.settings.nvml_patience
        if silent < patience:  # it has answered meanwhile, and was asked again
            self._patience = self._loop.call_later(patience - silent, self._impatient)
            return
        core.silent_since, core.silent_who = since, who
        log.warning("%s has not answered for %.0f s", who, silent, extra={"event": "nvml-silent", "seconds": silent})
        self._first_reading.set()
        self._reading_done.set()
        self._look()
        core.hub.tell()
        # a driver may never answer: each look comes after twice the time of the last
        self._patience = self._loop.call_later(max(patience, silent), self._impatient)
