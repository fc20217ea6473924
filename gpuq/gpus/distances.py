"""How far GPUs are apart, asked once per set of GPUs, in another process.

The calls for it are many, and on sick drivers and links they block or crash. Nothing depends on them but which GPUs a
job on several gets, so that no reading waits long for them, and no GPU is unavailable because of them.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace

from gpuq.gpus.apart import distances_apart
from gpuq.model import Distances, Driver, Readings

log = logging.getLogger("gpuq.nvml")

#: Seconds that the first reading of a set of GPUs waits for the answer, so that the first plan has it.
PATIENCE = 3.0
#: Seconds after which the process that asks is ended.
LIMIT = 60.0
#: Seconds after which it is tried again to start one, on a host that had no room for it.
ROOM = 60.0


@dataclass(slots=True)
class _Inquiry:
    """One process that asks, and the thread that waits for it."""

    #: the GPUs that were well then
    uuids: frozenset[str]
    done: threading.Event = field(default_factory=threading.Event)
    told: Distances | None = None
    started: bool = True

    def run(self) -> None:
        try:
            self.told = distances_apart(self.uuids, LIMIT)
        except OSError:
            self.started = False
        self.done.set()


class Inquirer:
    """Keeps what was told, while the driver runs and the GPUs are the same. Used by one thread."""

    def __init__(self) -> None:
        self._known: Distances = {}
        #: the GPUs that are known as well as they will be, and the driver's version then
        self._asked: frozenset[str] = frozenset()
        self._version: str | None = None
        self._under_way: _Inquiry | None = None
        self._not_before = float("-inf")
        #: whether a reading waits for an answer, and not for the driver
        self.waits = False

    def complete(self, readings: Readings) -> Readings:
        """The readings with the distances between the GPUs."""
        if readings.driver is not Driver.OK or readings.version != self._version:
            self._known, self._asked, self._version = {}, frozenset(), readings.version
        listed = {gpu.uuid for gpu in readings.gpus if gpu.index is not None}
        well = frozenset(gpu.uuid for gpu in readings.gpus if gpu.fault is None)
        self._asked &= listed
        self._take()
        if len(well) > 1 and not well <= self._asked and self._under_way is None:
            self._ask(well)
        return replace(readings, distances=self._known)

    def _ask(self, well: frozenset[str]) -> None:
        if time.monotonic() < self._not_before:
            return
        inquiry = _Inquiry(well)
        try:
            threading.Thread(target=inquiry.run, name="gpu-distances", daemon=True).start()
        except RuntimeError:  # no room for a thread
            self._not_before = time.monotonic() + ROOM
            return
        self._asked, self._under_way = well, inquiry
        self.waits = True
        inquiry.done.wait(PATIENCE)
        self.waits = False
        self._take()

    def _take(self) -> None:
        """Take the answer, if it is there, and the GPUs are still those that were asked about."""
        inquiry = self._under_way
        if inquiry is None or not inquiry.done.is_set():
            return
        self._under_way = None
        if not inquiry.started:
            self._asked, self._not_before = frozenset(), time.monotonic() + ROOM
        elif self._asked and self._asked <= inquiry.uuids:
            self._known = inquiry.told or {}
            if inquiry.told is None:
                log.warning("NVML does not tell how far GPUs are apart", extra={"event": "nvml-distances"})
