"""The daemon's children, as SIGCHLD tells of them: supervisors that were stopped, and what outlived its supervisor.

How a supervisor ends is told by its pidfd; see `runner`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable, Container
from pathlib import Path

from gpuq.launch.identity import read_stat

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


#: SIGCHLD of so many seconds is answered at once: a job that forks all the time may send thousands.
TOGETHER = 0.01


def take_orphans() -> None:
    """What outlives its supervisor becomes our child (prctl(2)), and can be found, whatever it did to hide."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def attend(loop: asyncio.AbstractEventLoop, ours: Callable[[], Container[int]]) -> None:
    """Look after the children whenever the kernel tells of one; `ours` are the pids of those that are waited for.

    Called after all other signals have their handlers.
    """
    waiting: list[asyncio.TimerHandle] = []

    def look() -> None:
        waiting.clear()
        look_after(ours())

    def told() -> None:
        if not waiting:
            waiting.append(loop.call_later(TOGETHER, look))

    loop.add_signal_handler(signal.SIGCHLD, told)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # who started us may have blocked it
    # Where signals come faster than the loop reads, CPython 3.11 would warn, and take a lock for that within the
    # signal's handler, which it may hold already: the process would hang.
    signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)


def leave(loop: asyncio.AbstractEventLoop) -> None:
    """Look after them no more. What ends from now on, as idle supervisors do, must not reach a loop that is closed."""
    loop.remove_signal_handler(signal.SIGCHLD)


def look_after(ours: Container[int]) -> None:
    """One of ours that a job stopped goes on; an orphan that ended is forgotten. `ours` are pids."""
    try:
        while (stopped := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG)) is not None:
            if stopped.si_pid in ours:
                os.kill(stopped.si_pid, signal.SIGCONT)  # it was not waited for, so that the number is its own
    except ChildProcessError:
        return
    for pid in _children():
        stat = None if pid in ours else read_stat(pid)
        if stat is not None and stat.gone:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _children() -> list[int]:
    """Without the file (a kernel without CONFIG_PROC_CHILDREN) none: the dead then stay until the daemon ends."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found
