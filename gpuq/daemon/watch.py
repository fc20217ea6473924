"""The thread that reads GPUs: a sick driver may block it, never the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from gpuq.gpus.source import open_source
from gpuq.launch.identity import job_of, read_stat
from gpuq.model import Driver, GpuProcess, GpuReading, Readings

log = logging.getLogger("gpuq.watch")


class Watcher:
    """One reading at a time, on request. `deliver` runs on the loop with each reading.

    `shims` maps supervisors' pids to jobs; the loop changes it, the thread looks pids up in it as they are then.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, shims: Mapping[int, int], deliver: Callable[[Readings], None]
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._wanted = threading.Event()
        self._shims = shims
        self._source = open_source(os.environ.get("GPUQ_GPUS"))
        #: monotonic time of the oldest request that was not answered, or a little earlier; None when all were
        self.asked_at: float | None = None
        self._newest = float("-inf")
        #: jobs by pid, as of the last reading
        self._known: dict[int, int] = {}
        # a daemon thread: a hanging driver must not keep the process from ending
        threading.Thread(target=self._run, name="gpu-watch", daemon=True).start()

    def request(self) -> None:
        """Ask for a reading that begins after now."""
        self._newest = time.monotonic()
        if self.asked_at is None:
            self.asked_at = self._newest
        self._wanted.set()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            readings = self._read()
            try:
                self._loop.call_soon_threadsafe(self._answer, readings)
            except RuntimeError:
                return  # the loop is closed: the daemon stops

    def _read(self) -> Readings:
        began = time.monotonic()
        try:
            readings = self._source.read()
            readings = replace(readings, gpus=tuple(map(self._attributed, readings.gpus)))
        except Exception as error:
            log.exception("reading the GPUs failed")
            return Readings(Driver.BROKEN, began, fault=f"reading the GPUs failed: {error}")
        listed = [p for gpu in readings.gpus for p in (*gpu.before, *gpu.after)]
        self._known = {p.pid: p.job_id for p in listed if p.job_id is not None}
        return readings

    def _attributed(self, gpu: GpuReading) -> GpuReading:
        """The reading with each process's job."""

        def whose(processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
            return tuple(replace(p, job_id=self._job(p.pid)) for p in processes)

        return replace(gpu, before=whose(gpu.before), after=whose(gpu.after))

    def _job(self, pid: int) -> int | None:
        job_id = job_of(pid, self._shims)
        if job_id is None and read_stat(pid) is None:
            # it ended since NVML listed it, and /proc tells no more: it was no stranger if it was none before
            known = self._known.get(pid)
            return known if known in list(self._shims.values()) else None
        return job_id

    def _answer(self, readings: Readings) -> None:
        if readings.at >= self._newest:
            self.asked_at = None
        elif self.asked_at is not None:
            # asked again while this one was under way, so that the next one is by now
            self.asked_at = max(self.asked_at, readings.at)
        self._deliver(readings)
