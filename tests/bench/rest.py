"""Memory, CPU and wake-ups of what has nothing to do, or only to watch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from tests.bench.bed import Bed
from tests.bench.kernel import cpu_seconds, processes_of, uss, wakeups, zygotes
from tests.bench.report import Goal, Row
from tests.bench.world import World
from tests.fakenvml import FakeNvml, FakeProcess, GiB

_WATCHED_GPUS = 8
_CALLS = """\
import ctypes, time
library, said = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(96)
library.nvmlInit_v2()
began = time.process_time()
for _ in range(500):
    library.nvmlSystemGetDriverVersion(said, 96)
print((time.process_time() - began) / 500)
"""


def rows(world: World) -> list[Row]:
    idle, gpus, full = world.bed("idle"), world.gpus(), world.full()
    nvml = world.nvml("watch", _WATCHED_GPUS)
    watch = world.bed("watch", nvml)
    jobs = _occupy(watch, nvml, world.scale.watched)
    assert full.runs is not None
    supervisor = full.supervisor(full.runs)
    time.sleep(world.scale.settle)  # so that what was started is at rest
    watching = f"watching {_WATCHED_GPUS} fake GPUs, {world.scale.watched} jobs"
    parties: dict[str, list[int]] = {
        "idle daemon": _with_zygote(idle),
        "idle daemon, two fake GPUs": _with_zygote(gpus),
        f"daemon, {world.scale.waiting:,} wait": _with_zygote(full),
        "supervisor of a running job": [supervisor],
        watching: _with_zygote(watch),
    }
    before = len(nvml.calls())
    shares, woken = _over(world.scale.seconds, parties)
    calls = len(nvml.calls()) - before
    goals = {"idle daemon": Goal(40e6), "supervisor of a running job": Goal(1e6)}
    found = []
    for name, pids in parties.items():
        still = name != watching
        found += [
            Row("rest", f"{name}: USS", "bytes", (uss(pids),), goals.get(name)),
            Row("rest", f"{name}: wake-ups per second", "wake-ups", (woken[name],), Goal(0) if still else None),
            Row("rest", f"{name}: share of a core", "cores", (shares[name],), Goal(0.0001) if still else None),
        ]
    fake = calls * _fake_call(nvml) / world.scale.seconds
    each = [uss([watch.supervisor(job)]) for job in jobs[:8]]
    return [
        *found,
        Row("rest", "the same without the fake driver's own work", "cores", (shares[watching] - fake,), Goal(0.01)),
        Row("rest", "NVML calls per second while watching", "calls", (calls / world.scale.seconds,)),
        Row("rest", "supervisors of the watched jobs: USS of each", "bytes", tuple(each), Goal(1e6)),
        *_of_peers(world),
    ]


def _fake_call(nvml: FakeNvml) -> float:
    """CPU seconds that the fake driver takes for a call, whichever: it reads its description, and keeps a log."""
    done = subprocess.run(
        [sys.executable, "-c", _CALLS], env={**os.environ, **nvml.env}, capture_output=True, check=True
    )
    return float(done.stdout)


def _with_zygote(bed: Bed) -> list[int]:
    return [bed.pid, *zygotes(bed.pid)]


def _over(seconds: float, parties: dict[str, list[int]]) -> tuple[dict[str, float], dict[str, float]]:
    """Share of a core, and wake-ups per second, of each over the same time."""

    def read(what: Callable[[int], float]) -> dict[str, float]:
        return {name: sum(what(pid) for pid in pids) for name, pids in parties.items()}

    began, cpu, woken = time.monotonic(), read(cpu_seconds), read(wakeups)
    time.sleep(seconds)  # the window that is measured
    lasted, cpu_after, woken_after = time.monotonic() - began, read(cpu_seconds), read(wakeups)
    return (
        {name: (cpu_after[name] - cpu[name]) / lasted for name in parties},
        {name: (woken_after[name] - woken[name]) / lasted for name in parties},
    )


def _occupy(bed: Bed, nvml: FakeNvml, count: int) -> list[int]:
    """Jobs that run on all GPUs, each of whose processes NVML lists there; their ids."""
    last, _ = bed.submit([["sleep", "86400"]] * count, gpus=1, vram=2 * GiB)
    ids = list(range(last - count + 1, last + 1))
    held: dict[str, list[FakeProcess]] = {}
    for job in ids:
        uuid, pid = bed.running_on(job)
        held.setdefault(uuid, []).append(FakeProcess(pid, GiB))
    nvml.set(gpus=tuple(replace(gpu, running=tuple(held.get(gpu.uuid, ()))) for gpu in nvml.box.gpus))
    return ids


def _of_peers(world: World) -> list[Row]:
    """Servers of the others, which have nothing to do now either."""
    found = []
    for peer in world.peers:
        pids = processes_of(peer.folder)
        if pids:
            found.append(Row("rest", f"{peer.name}, idle: USS", "bytes", (uss(pids),)))
    return found
