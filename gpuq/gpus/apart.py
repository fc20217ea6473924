"""Readings of NVML by a process of its own: a driver's library that crashes ends that process, and nobody else's.

`python -m gpuq.gpus.apart PARENT` makes one reading and prints it as a line of JSON, or the signal by which the reader
died. It ends with its parent, whatever the driver does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from gpuq.model import Driver, GpuProcess, GpuReading, Readings

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def read_apart(patience: float | None = None) -> Readings | int | None:
    """One reading; the number of the signal by which the reader died; None where it does not answer within
    `patience` seconds, or somebody ended it."""
    command = [sys.executable, "-P", "-X", "utf8", "-m", "gpuq.gpus.apart", str(os.getpid())]
    at = time.monotonic()
    try:
        reader = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
        )
    except OSError as error:
        return Readings(Driver.BROKEN, at, fault=f"no process to read the GPUs with can be started: {error.strerror}")
    try:
        said, _ = reader.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        reader.kill()
        reader.returncode = -signal.SIGKILL  # one that hangs in the driver may never end: nobody waits for it
        return None
    try:
        found = json.loads(said)
    except ValueError:
        return None
    return found if isinstance(found, int) else _readings(found)


def crash_text(number: int) -> str:
    """What is said of a library whose reader died by this signal."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"the driver's library crashed ({name}); does `nvidia-smi` work? reboot, or install the driver anew"


def _readings(data: dict[str, Any]) -> Readings:
    """The record that `asdict` took apart."""
    gpus = tuple(
        GpuReading(**{**gpu, "before": _processes(gpu["before"]), "after": _processes(gpu["after"])})
        for gpu in data["gpus"]
    )
    return Readings(**{**data, "driver": Driver(data["driver"]), "gpus": gpus})


def _processes(listed: list[dict[str, Any]]) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(**{**process, "lineage": tuple(process["lineage"])}) for process in listed)


def main() -> None:
    _end_with(int(sys.argv[1]))
    me = os.getpid()
    reader = os.fork()
    if reader == 0:
        _end_with(me)
        from gpuq.gpus.nvml import NvmlSource

        line = json.dumps(asdict(NvmlSource().read()))
        os.write(1, line.encode())  # at once, also where it is longer than a pipe holds: nobody else writes
        os._exit(0)
    _, status = os.waitpid(reader, 0)
    if os.WIFSIGNALED(status):
        print(os.WTERMSIG(status))


def _end_with(parent: int) -> None:
    """Die when the parent does (prctl(2)), or has by now."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
