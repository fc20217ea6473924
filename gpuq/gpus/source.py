"""Where readings of GPUs come from: one protocol, and the choice that `GPUQ_GPUS` makes."""

from __future__ import annotations

import time
from typing import Protocol

from gpuq import config
from gpuq.errors import UsageError
from gpuq.model import Driver, Readings


class Source(Protocol):
    """Reads all GPUs of this host. Used by one thread at a time."""

    #: whether other daemons of this host see the same GPUs
    shared: bool

    @property
    def answered_at(self) -> float:
        """Monotonic time of the last answer of the driver, whatever it was; a reading takes many."""
        ...

    def read(self) -> Readings:
        """One reading; `at` is when it began. May block for as long as a sick driver blocks.

        Never raises for what a GPU or driver does: that is `Readings.fault` or `GpuReading.fault`.
        """
        ...

    def close(self) -> None:
        """Nothing more will be read. Does not wait for the driver."""
        ...


class NoGpus:
    """`GPUQ_GPUS=none`: this host is used for CPU jobs only."""

    shared = False
    answered_at = float("-inf")

    def read(self) -> Readings:
        return Readings(Driver.NONE, time.monotonic())

    def close(self) -> None:
        return None


def open_source(spec: str | None, *, look_only: bool = False) -> Source:
    """The source that the value of GPUQ_GPUS names: NVML for none or an empty one, `sim:2x24GiB`, `none`.

    `look_only`: for whoever is not the daemon, and must not write into the state folder, which may not be one yet.
    Only the module in question is imported. Raises UsageError for any other value.
    """
    if not spec:
        from gpuq.gpus.wary import WaryNvml

        return WaryNvml(config.state_dir())
    if spec == "none":
        return NoGpus()
    if spec.startswith("sim:"):
        from gpuq.gpus.simulated import SimulatedGpus

        return SimulatedGpus(spec, config.state_dir() / "sim", look_only=look_only)
    raise UsageError(
        f"GPUQ_GPUS={spec!r} names no source of GPUs: leave it unset for NVML, "
        "or write none, or sim:2x24GiB for simulated ones"
    )
