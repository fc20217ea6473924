"""A fake `libnvidia-ml.so.1` and the file that tells it what to say.

    fake = FakeNvml(tmp_path / "nvml", fake_gpus(24 * GiB, 80 * GiB))
    subprocess.Popen([...], env={**os.environ, **fake.env})      # any unmodified program that uses NVML
    fake.add_process(0, FakeProcess(4242, 3 * GiB))              # somebody else's process, from the next call on
    fake.change(0, memory=GPU_IS_LOST)
    fake.allocate("2GiB", until=tmp_path / "go")                 # argv of a job that really holds memory of its GPUs

The description is one line per thing, `driver 560.35.03`, `init CODE`, `count_error CODE`, `every CODE`,
`count N` (a lie), `hang SECONDS` (of the count), `gpu UUID key=value…`, `proc UUID pid= used=BYTES|na type=C|G|CG`,
`pair UUID UUID links=N level=N p2p=N`, `links_down`, `fate FUNCTION code=CODE crash=SIGNAL hang=1`,
where CODE is what the NVML function returns (0 is success). It is replaced as a whole, by rename, so no call sees
half of it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("nvml.c")
ALLOC = Path(__file__).with_name("alloc.py")

GiB = 1024**3

# Return codes of nvml.h that tests give to the fake.
UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
UNKNOWN = 999

#: Functions that the library can be built without.
MEMORY_V2 = "NO_MEMORY_V2"
PROCESSES_V3 = "NO_PROCESSES_V3"
PROCESSES_V2 = "NO_PROCESSES_V2"
GRAPHICS = "NO_GRAPHICS"
FIELDS = "NO_FIELDS"
INIT_FLAGS = "NO_INIT_FLAGS"
LINKS = "NO_LINKS"
LINK_TYPES = "NO_LINK_TYPES"
P2P = "NO_P2P"
TOPOLOGY = "NO_TOPOLOGY"


@dataclass(frozen=True)
class FakeProcess:
    """A process on a GPU, alive or not: it is listed until it is removed."""

    pid: int
    #: bytes, None where the driver says that it cannot tell
    used: int | None = 0
    #: lists that it is in: compute `C`, graphics `G`, or both
    type: str = "C"


@dataclass(frozen=True)
class FakeGpu:
    """A GPU. Codes are returned by the function they name; `memory` by both versions of the memory call."""

    uuid: str
    total: int = 24 * GiB
    name: str | bytes = "NVIDIA GeForce RTX 4090"
    #: part of the total that the driver keeps for itself
    reserved: int = 0
    #: bytes in use; None for what the processes use, and `used_extra` that no process shows
    used: int | None = None
    used_extra: int = 0
    #: False: processes are listed, and how much each uses is not
    tell: bool = True
    handle: int = 0
    uuid_error: int = 0
    name_error: int = 0
    memory: int = 0
    memory_v2: int = 0
    processes: int = 0
    graphics: int = 0
    #: what the driver wants done about the GPU: nvmlDeviceGpuRecoveryAction_t
    recovery: int = 0
    #: NVLinks to switches
    switched: int = 0
    #: the memory call ends the process by this signal
    crash: int = 0
    #: the memory call blocks for so many seconds, or until this is taken back
    hang: float = 0
    running: tuple[FakeProcess, ...] = ()

    def lines(self) -> list[bytes]:
        name = self.name if isinstance(self.name, bytes) else self.name.encode()
        words = [b"gpu", self.uuid.encode(), b'name="' + name + b'"']
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in ("uuid", "name", "running") and value is not None:
                words.append(f"{item.name}={value:d}".encode() if item.name != "hang" else f"hang={value}".encode())
        found = [b" ".join(words)]
        for process in self.running:
            used = "na" if process.used is None else process.used
            found.append(f"proc {self.uuid} pid={process.pid} used={used} type={process.type}".encode())
        return found


@dataclass(frozen=True)
class FakePair:
    """What is between the GPUs at two places; None for what the driver does not tell."""

    one: int
    other: int
    #: NVLinks from one to the other
    links: int = 0
    #: nvmlGpuTopologyLevel_t
    level: int | None = None
    #: nvmlGpuP2PStatus_t over NVLink, 0 for reached
    p2p: int | None = None

    def line(self, gpus: Sequence[FakeGpu]) -> bytes:
        told = {"links": self.links, "level": self.level, "p2p": self.p2p}
        words = [f"{name}={value}" for name, value in told.items() if value is not None]
        return " ".join(["pair", gpus[self.one].uuid, gpus[self.other].uuid, *words]).encode()


@dataclass(frozen=True)
class Fate:
    """What befalls every call of an NVML function."""

    function: str
    code: int = 0
    #: it ends the process by this signal
    crash: int = 0
    #: it blocks until this is taken back
    hang: bool = False

    def line(self) -> bytes:
        return f"fate {self.function} code={self.code} crash={self.crash} hang={self.hang:d}".encode()


def fake_uuid(number: int) -> str:
    return f"GPU-fa4e0000-0000-0000-0000-{number:012}"


def fake_gpus(*totals: int, **every: Any) -> tuple[FakeGpu, ...]:
    """A healthy GPU of each size in bytes, with a UUID after its place; `every` sets fields of all of them."""
    return tuple(FakeGpu(fake_uuid(number), total, **every) for number, total in enumerate(totals))


@dataclass(frozen=True)
class Box:
    """All that the fake says."""

    gpus: tuple[FakeGpu, ...] = ()
    driver: str = "560.35.03"
    init: int = 0
    count_error: int = 0
    #: code that every call after init returns
    every: int = 0
    #: how many GPUs are counted, instead of the truth; 0 is the truth
    count: int = 0
    #: seconds that counting the GPUs blocks
    hang: float = 0
    #: seconds that every call takes
    slow: float = 0
    pairs: tuple[FakePair, ...] = ()
    #: no NVLink is up
    links_down: bool = False
    fates: tuple[Fate, ...] = ()

    def text(self) -> bytes:
        lines = [f"driver {self.driver}".encode(), b"init %d" % self.init, b"every %d" % self.every]
        lines += [b"count %d" % self.count] if self.count else []
        lines += [b"count_error %d" % self.count_error, f"hang {self.hang}".encode(), f"slow {self.slow}".encode()]
        for gpu in self.gpus:
            lines += gpu.lines()
        lines += [pair.line(self.gpus) for pair in self.pairs] + [fate.line() for fate in self.fates]
        lines += [b"links_down"] if self.links_down else []
        return b"\n".join(lines) + b"\n"


@functools.cache
def _library(without: frozenset[str], version: str | None) -> bytes:
    """The shared library, compiled once per process: each fake writes its own copy, so none outlives its test."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "libnvidia-ml.so.1"
        strict = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
        shared = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
        left_out = [f"-D{name}" for name in sorted(without)] + ([f'-DVERSION="{version}"'] if version else [])
        subprocess.run(["cc", *strict, *shared, *left_out, "-o", str(target), str(SOURCE)], check=True)
        return target.read_bytes()


@dataclass
class FakeNvml:
    """A fake driver in a folder of its own. Every change is there for the next NVML call of any process."""

    folder: Path
    gpus: Iterable[FakeGpu] = ()
    #: functions that the library lacks
    without: Iterable[str] = ()
    #: the only driver that the library works with; None for any
    version: str | None = None
    box: Box = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "lib").mkdir(parents=True)
        (self.folder / "box.d").mkdir()
        self.repair_library()
        self.box = Box(tuple(self.gpus))
        self.write()

    @property
    def description(self) -> Path:
        return self.folder / "box"

    @property
    def kernel_module(self) -> Path:
        """A file to look for instead of the kernel's sign that it has the driver; not there unless a test makes it."""
        return self.folder / "nvidiactl"

    @property
    def env(self) -> dict[str, str]:
        """What a program needs to meet this driver instead of a real one."""
        paths = [str(self.folder / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
            "FAKE_NVML": str(self.description),
            "FAKE_NVML_LOG": str(self.folder / "calls"),
        }

    def calls(self) -> list[str]:
        """Names of the NVML functions called so far, in order."""
        log = self.folder / "calls"
        return log.read_text().split() if log.exists() else []

    def wait_for_call(self, function: str, times: int = 1, patience: float = 60) -> None:
        """Until some program has called an NVML function so often. Raises TimeoutError after `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.calls().count(function) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{function} was called {self.calls().count(function)} times, not {times}")
            time.sleep(0.01)

    def write(self) -> None:
        temporary = self.description.with_suffix(".new")
        temporary.write_bytes(self.box.text())
        temporary.rename(self.description)

    def set(self, **changes: Any) -> None:
        """Change fields of the whole, of the `Box`."""
        self.box = replace(self.box, **changes)
        self.write()

    def change(self, index: int, **changes: Any) -> None:
        """Change fields of the GPU that is at this index now."""
        gpus = list(self.box.gpus)
        gpus[index] = replace(gpus[index], **changes)
        self.set(gpus=tuple(gpus))

    def add_process(self, index: int, process: FakeProcess) -> None:
        self.change(index, running=(*self.box.gpus[index].running, process))

    def remove_process(self, index: int, pid: int) -> None:
        self.change(index, running=tuple(p for p in self.box.gpus[index].running if p.pid != pid))

    def uuid(self, index: int) -> str:
        return self.box.gpus[index].uuid

    def total_of(self, index: int) -> int:
        """Bytes that jobs can use: without what the driver keeps."""
        gpu = self.box.gpus[index]
        return gpu.total - gpu.reserved

    def break_library(self) -> None:
        """Leave a file that cannot be loaded; one that is missing would make way for a real driver's."""
        self._put_library(b"not a library")

    def repair_library(self) -> None:
        self._put_library(_library(frozenset(self.without), self.version))

    def upgrade_library(self, version: str) -> None:
        """Put the library of another driver in its place, as a package manager does."""
        self.version = version
        self.repair_library()

    def _put_library(self, content: bytes) -> None:
        library = self.folder / "lib" / "libnvidia-ml.so.1"
        temporary = library.with_suffix(".new")
        temporary.write_bytes(content)
        temporary.rename(library)  # a process that has the former one loaded keeps it

    def allocate(
        self, size: str, *, where: str = "first-visible", until: Path | None = None, after: Path | None = None
    ) -> list[str]:
        """A command that holds `size` (`3GiB`) of a fake GPU under its own pid.

        `where` is `first-visible`, `all-visible` (of CUDA_VISIBLE_DEVICES) or a UUID. It allocates once the file
        `after` is there, and ends well once `until` is there, or at once. It needs FAKE_NVML in its environment.
        """
        command = [sys.executable, str(ALLOC), where, size]
        if after is not None:
            command += ["--after", str(after)]
        if until is not None:
            command += ["--until", str(until)]
        return command
