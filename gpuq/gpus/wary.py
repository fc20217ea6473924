"""NVML where its library may crash: a daemon that died in it reads through another process until that is well.

One byte of a file in the state folder is set while a call may be under way; it outlives the process, not the power.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from gpuq.gpus.apart import crash_text, read_apart
from gpuq.gpus.distances import Inquirer
from gpuq.gpus.nvml import NvmlSource
from gpuq.model import Driver, Readings

log = logging.getLogger("gpuq.nvml")

NAME = "nvml"
#: The byte counts daemons that died in the library, one after the other, and has this bit while one is in it.
_WITHIN = 0x80
_MOST = 0x7F
#: Seconds for which a library must work before what it did is forgotten.
FORGET = 600.0
#: After a crash another process tries the library again after so many seconds, then after twice as many, and so on.
FIRST_PAUSE = 2.0
LONGEST_PAUSE = 600.0
#: One death may have had another cause. After a second one the library must work elsewhere for so many seconds, after
#: a third for twice as many, before this process uses it again.
TRIAL = 60.0
LONGEST_TRIAL = 3600.0


class Mark:
    """The byte. Where the file cannot be made or written, nothing is remembered."""

    def __init__(self, folder: Path) -> None:
        self._fd = -1
        self._done = False
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(folder / NAME, flags, 0o600)

    def read(self) -> int:
        with contextlib.suppress(OSError):
            return (os.pread(self._fd, 1, 0) or b"\0")[0]
        return 0

    def write(self, value: int, *, last: bool = False) -> None:
        """After the last word nothing more is written: a thread may be in the library for as long as it likes."""
        with contextlib.suppress(OSError):
            if not self._done:
                os.pwrite(self._fd, bytes([value]), 0)
        self._done = self._done or last


class WaryNvml:
    """The source of real GPUs for a daemon."""

    shared = True

    def __init__(self, folder: Path) -> None:
        """`folder` is the state folder."""
        self._nvml = NvmlSource()
        self._inquirer = Inquirer()
        self._mark = Mark(folder)
        was = self._mark.read()
        #: daemons that died in the library
        self._deaths = min(_MOST, was + 1 - _WITHIN) if was & _WITHIN else was
        self._mark.write(self._deaths)
        #: whether this process calls the library itself
        self._trusts = not self._deaths
        self._well_since: float | None = None
        self._pause = FIRST_PAUSE
        self._again_at = 0.0
        self._last: Readings | None = None
        self._answered_at = float("-inf")
        if self._deaths:
            log.warning(
                "the last daemon died in the driver's library, or while it waited for that: another process reads the "
                "GPUs until it is known to be well",
                extra={"event": "nvml-apart", "deaths": self._deaths},
            )

    @property
    def answered_at(self) -> float:
        """Monotonic time of the last answer of the driver; now, while it is not the driver that keeps a reading."""
        if self._inquirer.waits:
            return time.monotonic()
        return max(self._answered_at, self._nvml.gate.answered_at)

    def read(self) -> Readings:
        """One reading of all GPUs. Blocks while the driver does."""
        return self._inquirer.complete(self._read())

    def _read(self) -> Readings:
        if not self._trusts:
            return self._read_apart()
        self._mark.write(_WITHIN | self._deaths)
        try:
            readings = self._nvml.read()
        finally:
            self._mark.write(self._deaths)
        if self._deaths and readings.at - (self._well_since or readings.at) > FORGET:
            self._deaths = 0
        return readings

    def close(self) -> None:
        """The daemon ends of its own accord: what is known of crashes is forgotten. Does not wait for the driver."""
        self._mark.write(0, last=True)

    def _read_apart(self) -> Readings:
        now = time.monotonic()
        if self._last is not None and now < self._again_at:
            return replace(self._last, at=now)
        found = read_apart()
        self._answered_at = time.monotonic()
        if found is None:
            return Readings(Driver.BROKEN, now, fault="the process that reads the GPUs was ended; another one will be")
        if isinstance(found, int):
            return self._crashed(now, found)
        self._last, self._pause = None, FIRST_PAUSE
        self._well_since = self._well_since or now
        trial = 0.0 if self._deaths < 2 else min(LONGEST_TRIAL, TRIAL * 2.0 ** (self._deaths - 2))
        self._trusts = now - self._well_since >= trial
        return found

    def _crashed(self, at: float, number: int) -> Readings:
        text = crash_text(number)
        log.error("%s; it is tried again in %.0f s", text, self._pause, extra={"event": "nvml-crash", "signal": number})
        self._well_since = None
        self._again_at = time.monotonic() + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        self._last = Readings(Driver.BROKEN, at, fault=text)
        return self._last
