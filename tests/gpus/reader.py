"""A process that reads GPUs through `NvmlSource`, or as a daemon does, when told to: one line in, one line of JSON out.

A process of its own, because a library that the dynamic loader has found once stays loaded.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuq.gpus.apart import packed, unpacked
from gpuq.gpus.nvml import NvmlSource
from gpuq.gpus.wary import WaryNvml
from gpuq.model import Driver, GpuProcess, GpuReading, Readings
from tests.fakenvml import FakeNvml

#: The call that a test may let hang, or look for among those that were made.
MEMORY = "nvmlDeviceGetMemoryInfo_v2"


def main() -> None:
    if sys.argv[1] == "wary":
        source: NvmlSource | WaryNvml = WaryNvml(Path(sys.argv[2]))
    else:
        source = NvmlSource(float(sys.argv[1]), (Path(sys.argv[2]),))
    for line in sys.stdin:
        if line == "read\n":
            print(json.dumps(packed(source.read())), flush=True)
        elif line == "calls\n" and isinstance(source, NvmlSource):
            print(json.dumps(source.gate.calls), flush=True)
        else:
            source.close()
            print("null", flush=True)


class Reader:
    """The parent's side. Use as a context manager."""

    def __init__(self, fake: FakeNvml, reopen_after: float | None) -> None:
        """`reopen_after` as `NvmlSource` has it; None reads as a daemon does."""
        how = ["wary", str(fake.folder)] if reopen_after is None else [str(reopen_after), str(fake.kernel_module)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpus.reader", *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **fake.env},
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def send(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")

    def answered(self) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def receive(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def calls(self) -> int:
        """How many calls went through the gate."""
        self.send("calls")
        found = self.receive()
        assert isinstance(found, int)
        return found

    def close(self) -> None:
        self.send("close")
        self.receive()

    def read(self) -> Readings:
        self.send("read")
        return unpacked(self.receive())


#: Makes a fake driver with GPUs of these sizes, and a process that reads it.
Start = Callable[..., tuple[FakeNvml, Reader]]
#: Makes a fake driver with so many GPUs and these pairs, and a process that reads it as a daemon does.
StartWary = Callable[..., tuple[FakeNvml, Reader]]


# --- what tests say of readings ---------------------------------------------------------------------


def only(readings: Readings) -> GpuReading:
    """The one GPU, which is well."""
    (gpu,) = readings.gpus
    assert readings.driver is Driver.OK
    assert gpu.fault is None
    return gpu


def compute(pid: int, used: int | None) -> GpuProcess:
    return GpuProcess(pid, used, compute=True, graphics=False)


def faults(readings: Readings) -> list[str | None]:
    return [gpu.fault for gpu in readings.gpus]


if __name__ == "__main__":
    main()
