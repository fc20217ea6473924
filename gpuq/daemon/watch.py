"""The thread that reads GPUs: a sick driver may block it, never the daemon."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypedDict

from gpuq.daemon import threads
from gpuq.daemon.core import CLAIMS_FOLDER, NVML
from gpuq.daemon.sharing import Sharing
from gpuq.gpus.source import Source
from gpuq.launch.identity import belonging, owner_of, read_stat
from gpuq.model import Driver, GpuProcess, Readings
from gpuq.policy.ledger import Neighbours

log = logging.getLogger("gpuq.watch")


class _Whose(TypedDict, total=False):
    """The fields of a GpuProcess that say whose it is."""

    job_id: int
    uid: int | None
    lineage: tuple[int, ...]


class Watcher:
    """One reading at a time, on request. `deliver` runs on the loop with each reading, and with what other daemons
    claim: looked at after the GPUs, so that whatever is in the reading under a claim finds it.

    `shims` maps supervisors' pids to jobs; the loop changes it, the thread looks pids up in it as they are then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: Source,
        sharing: Sharing | None,
        shims: Mapping[int, int],
    ) -> None:
        self._loop = loop
        self._deliver: Callable[[Readings, Neighbours], None]
        self._wanted = threading.Event()
        self._shims = shims
        self._source = source
        self._sharing = sharing
        #: monotonic time of the oldest request that was not answered, or a little earlier; None when all were
        self.asked_at: float | None = None
        self._newest = float("-inf")
        #: since when the others' claims are being read, None while they are not
        self._claims_since: float | None = None
        #: jobs by pid, as of the last reading
        self._known: dict[int, int] = {}

    def begin(self, deliver: Callable[[Readings, Neighbours], None]) -> None:
        """From now on there are readings. Raises HostBusy."""
        self._deliver = deliver
        threads.begin(self._run, "gpu-watch")

    def waits(self) -> tuple[str, float] | None:
        """For whom a request has been waiting, and since which monotonic time without a sign; None for none."""
        if self.asked_at is None:
            return None
        if self._claims_since is not None:
            return CLAIMS_FOLDER, max(self.asked_at, self._claims_since)
        return NVML, max(self.asked_at, self._source.answered_at)

    def request(self) -> None:
        """Ask for a reading that begins after now."""
        self._newest = time.monotonic()
        if self.asked_at is None:
            self.asked_at = self._newest
        self._wanted.set()

    def close(self) -> None:
        """The daemon ends. A reading that is under way is not waited for."""
        self._source.close()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            readings = self._read()
            self._claims_since = time.monotonic()
            neighbours = self._sharing.read().claims if self._sharing is not None else {}
            self._claims_since = None
            try:
                self._loop.call_soon_threadsafe(self._answer, readings, neighbours)
            except RuntimeError:
                return  # the loop is closed: the daemon stops

    def _read(self) -> Readings:
        began = time.monotonic()
        try:
            readings = self._source.read()
            readings = self._attributed(readings)
        except Exception as error:
            log.exception("reading the GPUs failed")
            return Readings(Driver.BROKEN, began, fault=f"reading the GPUs failed: {error}")
        listed = [p for gpu in readings.gpus for p in (*gpu.before, *gpu.after)]
        self._known = {p.pid: p.job_id for p in listed if p.job_id is not None}
        return readings

    def _attributed(self, readings: Readings) -> Readings:
        """The readings with each process's job; most are listed twice for a GPU, and looked up once."""
        found: dict[int, _Whose] = {}

        def whose(processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
            for process in processes:
                if process.pid not in found:
                    found[process.pid] = self._whose(process.pid)
            return tuple(replace(process, **found[process.pid]) for process in processes)

        gpus = (replace(gpu, before=whose(gpu.before), after=whose(gpu.after)) for gpu in readings.gpus)
        return replace(readings, gpus=tuple(gpus))

    def _whose(self, pid: int) -> _Whose:
        """The process's job, or, of a foreign one, what tells whose it is."""
        job_id, family = belonging(pid, self._shims)
        if job_id is None and read_stat(pid) is None:
            # it ended since NVML listed it, and /proc tells no more: it was no stranger if it was none before
            known = self._known.get(pid)
            job_id = known if known in list(self._shims.values()) else None
        if job_id is not None:
            return {"job_id": job_id}
        return {"uid": owner_of(pid), "lineage": family}

    def _answer(self, readings: Readings, neighbours: Neighbours) -> None:
        if readings.at >= self._newest:
            self.asked_at = None
        elif self.asked_at is not None:
            # asked again while this one was under way, so that the next one is by now
            self.asked_at = max(self.asked_at, readings.at)
        self._deliver(readings, neighbours)
