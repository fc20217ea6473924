"""What the kernel says of processes."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
#: How the process calls itself that a daemon's supervisors are forked from.
ZYGOTE = b"gpuq zygote"


def memory(pid: int) -> tuple[int, int]:
    """Bytes: what is the process's alone (USS, Private_* of /proc/PID/smaps_rollup, proc(5)), and all it has (RSS).

    Pages of programs and libraries that another Python on this machine also has mapped are in the second only.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = [(words[0], int(words[1]) * 1024) for line in text.splitlines()[1:] if (words := line.split())]
    private = sum(size for name, size in sizes if name.startswith("Private_"))
    return private, dict(sizes)["Rss:"]


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads. In nanoseconds, where utime and stime have ticks: clock_getcpuclockid(3)."""
    clock = ctypes.c_int()
    error = _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def wakeups(pid: int) -> int:
    """How often the process's threads have gone to sleep of their own will, and so woken up (proc(5))."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        found += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return found


def zygotes(daemon: int) -> list[int]:
    """The children of a daemon that its supervisors are forked from: none, or one."""
    return [pid for pid in children(daemon) if command_line(pid).replace(b"\0", b" ").startswith(ZYGOTE)]


def children(pid: int) -> list[int]:
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, listed.read_text().split())
    return found


def command_line(pid: int) -> bytes:
    """Empty where the process has gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def processes_of(folder: Path) -> list[int]:
    """Every process whose environment names the folder: what was started for it, and what that started."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it ended meanwhile, or is somebody else's
            if f"={folder}/".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


def uss(pids: Iterable[int]) -> float:
    return float(sum(memory(pid)[0] for pid in pids))
