"""On a real NVIDIA GPU: `pytest -m gpu`. Memory is allocated with the CUDA driver API, so no framework is needed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuq.gpus.nvml import NvmlSource
from gpuq.model import Driver, GiB, GpuReading

ALLOC = Path(__file__).with_name("alloc.py")
SIZE = GiB

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="this host has no NVIDIA GPU"),
]


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NvmlSource]:
    """NVML, for one test of this run at a time: their memory would be in each other's readings."""
    with open(tmp_path_factory.getbasetemp().parent / "gpu.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield from opened()


def opened() -> Iterator[NvmlSource]:
    source = NvmlSource()
    yield source
    source.close()


def gpu_with_room(source: NvmlSource) -> GpuReading:
    """A healthy GPU with room for what a test claims, and the margin."""
    readings = source.read()
    assert readings.driver is Driver.OK, readings.fault
    free = [gpu for gpu in readings.gpus if gpu.fault is None and gpu.total - gpu.used >= 3 * SIZE]
    if not free:
        pytest.skip("no GPU here has 3 GiB free")
    return free[0]


def test_every_gpu_is_read(source: NvmlSource) -> None:
    readings = source.read()
    assert (readings.driver, readings.fault) == (Driver.OK, None)
    assert readings.version
    assert readings.gpus
    for gpu in readings.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert gpu.name != "NVIDIA GPU"
        assert 0 <= gpu.used <= gpu.total
    assert [gpu.uuid for gpu in source.read().gpus] == [gpu.uuid for gpu in readings.gpus]


def allocate_on(gpu: GpuReading, source: NvmlSource) -> tuple[GpuReading, int]:
    """The reading of a GPU while a process of ours holds SIZE of it, and that process's pid."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu.uuid}
    command = [sys.executable, str(ALLOC), str(SIZE)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "allocated\n"
        return next(g for g in source.read().gpus if g.uuid == gpu.uuid), process.pid


def told_use(reading: GpuReading, pid: int) -> int | None:
    """What NVML says that a process uses; None where it does not, or calls the process by another number."""
    return next((process.used for process in reading.after if process.pid == pid), None)


def test_real_memory_of_a_real_process_is_seen(source: NvmlSource) -> None:
    gpu = gpu_with_room(source)
    reading, pid = allocate_on(gpu, source)
    assert reading.fault is None
    assert reading.used >= gpu.used + SIZE
    used = told_use(reading, pid)
    if used is None:  # only in a container or under WSL
        assert not reading.told or pid not in [process.pid for process in reading.after]
    else:
        assert used >= SIZE


def gpuq(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("gpuq", path=str(Path(sys.executable).parent)) or "gpuq"
    env = {key: value for key, value in os.environ.items() if not key.startswith("GPUQ_")}
    env |= {"GPUQ_STATE_DIR": str(state)}
    return subprocess.run([command, *arguments], env=env, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "state"
    yield folder
    gpuq(folder, "daemon", "stop", "--jobs")


def test_a_job_runs_on_a_real_gpu_and_its_peak_is_kept(state: Path, source: NvmlSource) -> None:
    gpu = gpu_with_room(source)
    alloc = [sys.executable, str(ALLOC), str(SIZE), "--seconds", "5"]
    ran = gpuq(state, "run", "--gpus", "1", "--vram", "2GiB", "--", *alloc)
    assert (ran.returncode, ran.stdout) == (0, "allocated\n"), ran.stderr
    shown = gpuq(state, "show", "--json", "@last")
    assert shown.returncode == 0, shown.stderr
    job: dict[str, Any] = json.loads(shown.stdout)["jobs"][0]
    assert (job["state"], job["exit_code"], len(job["gpus"])) == ("succeeded", 0, 1)
    if told_use(*allocate_on(gpu, source)) is not None:  # else nobody can know
        assert job["peak_vram_bytes"] >= SIZE
