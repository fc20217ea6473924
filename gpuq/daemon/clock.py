"""The wall clock: an alarm at a moment of it, and word from the kernel when somebody sets it or the host wakes up.

Only begin times are moments of the wall clock. All else that the daemon waits for runs on the monotonic clock, which
nobody sets and which stands still while the host is suspended (clock_gettime(2)).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuq.daemon import decisions

log = logging.getLogger("gpuq.clock")

#: timerfd_create(2), <sys/timerfd.h>
TFD_TIMER_ABSTIME = 1
TFD_TIMER_CANCEL_ON_SET = 2
#: Later than any alarm: it only serves to hear of the clock being set. Seconds since the epoch, in the year 2242.
FAR = 2.0**33
#: A step of the clock that is smaller than this is the drift between two looks at it, in seconds.
DRIFT = 0.5


class _Alarm(ctypes.Structure):
    """struct itimerspec: the interval, which stays 0, and the moment."""

    _fields_ = [("interval", ctypes.c_long * 2), ("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


@dataclass(frozen=True, slots=True)
class Clocks:
    """The three clocks at one moment, in seconds."""

    wall: float
    monotonic: float
    #: monotonic, and running on while the host is suspended
    boot: float

    @classmethod
    def now(cls) -> Clocks:
        return cls(time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to the wall clock between two looks, in seconds: 0 where nothing did."""

    set_by: float
    slept: float


def compare(before: Clocks, after: Clocks) -> Change:
    """How far the wall clock was set, beyond the time that passed, and how long the host was suspended."""
    passed = after.boot - before.boot
    set_by = (after.wall - before.wall) - passed
    slept = passed - (after.monotonic - before.monotonic)
    return Change(set_by if abs(set_by) > DRIFT else 0.0, slept if slept > DRIFT else 0.0)


class WallClock:
    """One alarm. `ring` is called when its time has come, `told` when the clock was set or the host has slept."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None], told: Callable[[], None]) -> None:
        """Raises OSError where the kernel gives no timer."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), f"timerfd: {os.strerror(ctypes.get_errno())}")
        self._loop, self._ring, self._told = loop, ring, told
        self._flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
        self._at: float | None = None
        self._seen = Clocks.now()
        self.set(None)
        loop.add_reader(self._fd, self._read)

    def set(self, at: float | None) -> None:
        """Ring at this moment, in seconds since the epoch; None for never. One that has passed rings at once."""
        self._at = at
        moment = FAR if at is None else min(max(at, 1e-9), FAR)  # 0 would turn the timer off
        seconds = math.floor(moment)
        alarm = _Alarm((ctypes.c_long * 2)(0, 0), seconds, min(999_999_999, math.ceil((moment - seconds) * 1e9)))
        if self._libc.timerfd_settime(self._fd, self._flags, ctypes.byref(alarm), None) == 0:
            return
        error = ctypes.get_errno()
        if error == errno.ECANCELED:  # the clock was set meanwhile; the alarm is set all the same
            self._loop.call_soon(self.look)
        elif error == errno.EINVAL and self._flags & TFD_TIMER_CANCEL_ON_SET:
            log.warning("this kernel does not tell when the clock is set; begin times may come late after that")
            self._flags = TFD_TIMER_ABSTIME
            self.set(at)
        else:
            raise OSError(error, f"timerfd: {os.strerror(error)}")

    def _read(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:  # ECANCELED: the clock was set
            self.look()
        else:
            self._ring()

    def look(self) -> None:
        """Find out what happened to the clock, say so, and tell."""
        before, self._seen = self._seen, Clocks.now()
        change = compare(before, self._seen)
        if change.set_by:
            decisions.clock_set(change.set_by)
        if change.slept:
            decisions.slept(change.slept)
        self.set(self._at)
        self._told()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
