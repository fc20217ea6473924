"""NVML in a process of its own: a driver's library that crashes ends that process, and nobody else's.

`python -m gpuq.gpus.apart PARENT readings` makes one reading and prints it as a line of JSON, or the signal by which
the reader died; `distances UUID…` prints how far these GPUs are apart. It ends with its parent, whatever the driver
does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from gpuq.model import Distances, Driver, GpuProcess, GpuReading, Readings

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def read_apart(patience: float | None = None) -> Readings | int | None:
    """One reading; the number of the signal by which the reader died; None where it does not answer within
    `patience` seconds, or somebody ended it."""
    at = time.monotonic()
    try:
        found = _ask(["readings"], patience)
    except OSError as error:
        return Readings(Driver.BROKEN, at, fault=f"no process to read the GPUs with can be started: {error.strerror}")
    return unpacked(found) if isinstance(found, dict) else found


def distances_apart(uuids: Iterable[str], patience: float) -> Distances | None:
    """How far these GPUs are apart; None where the process died, or does not answer within so many seconds.

    Raises OSError where none can be started.
    """
    found = _ask(["distances", *uuids], patience)
    return {(one, other): distance for one, other, distance in found} if isinstance(found, list) else None


def _ask(what: list[str], patience: float | None) -> Any:
    """What such a process prints; None where it prints nothing. Raises OSError where none can be started."""
    command = [sys.executable, "-P", "-X", "utf8", "-m", "gpuq.gpus.apart", str(os.getpid()), *what]
    asked = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
    )
    try:
        said, _ = asked.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.returncode = -signal.SIGKILL  # one that hangs in the driver may never end: nobody waits for it
        if asked.stdout is not None:
            asked.stdout.close()
        return None
    try:
        return json.loads(said)
    except ValueError:
        return None


def crash_text(number: int) -> str:
    """What is said of a library whose reader died by this signal."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"the driver's library crashed ({name}); does `nvidia-smi` work? reboot, or install the driver anew"


def packed(readings: Readings) -> dict[str, Any]:
    """The record as JSON has it."""
    return {**asdict(readings), "distances": _listed(readings.distances)}


def _listed(distances: Distances) -> list[tuple[str, str, int]]:
    return [(*pair, distance) for pair, distance in distances.items()]


def unpacked(data: dict[str, Any]) -> Readings:
    """The record that `packed` took apart."""
    gpus = tuple(
        GpuReading(**{**gpu, "before": _processes(gpu["before"]), "after": _processes(gpu["after"])})
        for gpu in data["gpus"]
    )
    distances = {(one, other): distance for one, other, distance in data["distances"]}
    return Readings(**{**data, "driver": Driver(data["driver"]), "gpus": gpus, "distances": distances})


def _processes(listed: list[dict[str, Any]]) -> tuple[GpuProcess, ...]:
    return tuple(GpuProcess(**{**process, "lineage": tuple(process["lineage"])}) for process in listed)


def main() -> None:
    _end_with(int(sys.argv[1]))
    me = os.getpid()
    reader = os.fork()
    if reader == 0:
        _end_with(me)
        line = json.dumps(_readings() if sys.argv[2] == "readings" else _distances())
        os.write(1, line.encode())  # at once, also where it is longer than a pipe holds: nobody else writes
        os._exit(0)
    _, status = os.waitpid(reader, 0)
    if os.WIFSIGNALED(status):
        print(os.WTERMSIG(status))


def _readings() -> dict[str, Any]:
    from gpuq.gpus.nvml import NvmlSource

    return packed(NvmlSource().read())


def _distances() -> list[tuple[str, str, int]]:
    from gpuq.gpus.nvml import Gate
    from gpuq.gpus.topology import read_distances

    return _listed(read_distances(Gate(), sys.argv[3:]))


def _end_with(parent: int) -> None:
    """Die when the parent does (prctl(2)), or has by now."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
