"""Readings through NVML: the only importer of `pynvml`, and one gate that every call goes through.

What a call may return is in NVIDIA's `nvml.h`. Every reading enumerates afresh, so that GPUs which change their index,
go away or come back are noticed; what was seen once stays in the readings, with a fault, when it can be seen no more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pynvml

from gpuq.model import Driver, GpuProcess, GpuReading, Readings

#: Seconds between two attempts to open NVML again for the sake of a GPU that is lost. A session lists what was there
#: when it was opened, and opening one takes up to seconds per GPU where persistence mode is off.
REOPEN_AFTER = 10.0
#: A list of processes that outgrows pynvml's array while it is read is read again, so many times.
LIST_ATTEMPTS = 3
#: Name of a GPU that would not tell its own.
NAMELESS = "NVIDIA GPU"

#: Either is there while the kernel has the driver.
KERNEL_MODULE = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))


class Trouble(Enum):
    """What it means that a call failed."""

    #: this library, driver or GPU does not have the call
    NOT_SUPPORTED = "not supported"
    #: the GPU is gone or must be reset
    LOST = "lost"
    #: the session or the driver does not work
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gate returns: a value, or the trouble, NVML's return code and a text for people."""

    value: Any = None
    trouble: Trouble | None = None
    code: int = pynvml.NVML_SUCCESS
    text: str = ""


_TROUBLES = {
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: Trouble.NOT_SUPPORTED,
    pynvml.NVML_ERROR_NOT_SUPPORTED: Trouble.NOT_SUPPORTED,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: Trouble.NOT_SUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: Trouble.NOT_SUPPORTED,
    pynvml.NVML_ERROR_GPU_IS_LOST: Trouble.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: Trouble.LOST,
    pynvml.NVML_ERROR_NOT_FOUND: Trouble.LOST,
}

#: Codes of any call after which the whole session is of no use.
_SESSION_OVER = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)

#: What a code means and what to do about it, where NVML's own text does not say so.
_ADVICE = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the nvidia kernel module is not loaded: `sudo modprobe nvidia`, or reboot; "
        "`sudo dmesg | grep -i nvidia` says why it did not load"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver and library versions differ, as after an upgrade: reboot, or reload the nvidia kernel module"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "no permission to talk to the NVIDIA driver: see who may read and write /dev/nvidia*"
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: (
        "libnvidia-ml.so.1 lacks a function that gpuq needs: the driver is too old, or the file is not NVIDIA's"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost (it fell off the bus, or is being reset); see `dmesg`",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset: `sudo nvidia-smi --gpu-reset`, or reboot",
    pynvml.NVML_ERROR_UNKNOWN: "the NVIDIA driver reports an unknown error; see what `nvidia-smi` and `dmesg` say",
}


class Gate:
    """The one way to NVML. Counts calls, and turns every exception of pynvml into an Answer.

    `session_over` is set by a call that says so, and cleared by whoever opens a new session.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.session_over = False

    def call(self, name: str, *arguments: Any) -> Answer:
        """Call the pynvml function of this name. A function that this pynvml lacks is not supported."""
        function = getattr(pynvml, name, None)
        if function is None:
            return Answer(trouble=Trouble.NOT_SUPPORTED, code=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, text=name)
        self.calls += 1
        try:
            value = function(*arguments)
        except UnicodeDecodeError as error:  # pynvml expects UTF-8, and drivers do not promise it
            value = error.object
        except pynvml.NVMLError as error:
            code = error.value
            self.session_over = self.session_over or code in _SESSION_OVER
            return Answer(trouble=_TROUBLES.get(code, Trouble.BROKEN), code=code, text=_explain(error))
        return Answer(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)


def _explain(error: pynvml.NVMLError) -> str:
    code = error.value
    if code in _ADVICE:
        return _ADVICE[code]
    try:
        text = str(error)  # for a code that pynvml does not know, this asks the library
    except UnicodeDecodeError:
        text = "unreadable text"
    return f"NVML says {text!r} (code {code})"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of a GPU since it was last listed; `total` is 0 until it was told."""

    index: int
    name: str | None
    total: int


@dataclass(frozen=True, slots=True)
class _Memory:
    total: int
    used: int


class NvmlSource:
    """All GPUs of the NVIDIA driver. Opens NVML at the first reading, and again after it broke."""

    def __init__(self, reopen_after: float = REOPEN_AFTER, kernel_module: tuple[Path, ...] = KERNEL_MODULE) -> None:
        """`kernel_module` are files of which one is there while the kernel has the driver."""
        self.gate = Gate()
        self._reopen_after = reopen_after
        self._kernel_module = kernel_module
        self._open = False
        self._opened_at = 0.0
        self._version: str | None = None
        self._seen: dict[str, _Seen] = {}

    def read(self) -> Readings:
        """One reading of all GPUs. Blocks while the driver does; raises nothing for what driver and GPUs do."""
        at = time.monotonic()
        failure = None if self._open else self._start(at)
        if failure is not None:
            return failure
        count = self.gate.call("nvmlDeviceGetCount")
        if count.trouble is not None:
            return self._broken(at, count.text)
        gpus, nameless = self._enumerate(count.value)
        self._consider_reopening(at, gpus, nameless)
        return Readings(Driver.OK, at, tuple(gpus), "; ".join(nameless) or None, self._version)

    def close(self) -> None:
        """Close the session. Blocks while the driver does."""
        if self._open:
            self._open = False
            self.gate.call("nvmlShutdown")

    # --- the session ------------------------------------------------------------------------------

    def _start(self, at: float) -> Readings | None:
        """Open NVML; the reading to return where that fails."""
        init = self.gate.call("nvmlInit")
        if init.code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            if not any(path.exists() for path in self._kernel_module):
                return Readings(Driver.NONE, at)
            return self._unavailable(
                at,
                "the nvidia kernel module is there and libnvidia-ml.so.1 cannot be loaded: install the driver's "
                "libraries (in a container, start it with NVIDIA's runtime and the capability `utility`)",
            )
        if init.trouble is not None:
            return self._unavailable(at, init.text)
        self._open = True
        self._opened_at = at
        self.gate.session_over = False
        self._version = self.gate.call("nvmlSystemGetDriverVersion").value
        return None

    def _broken(self, at: float, text: str) -> Readings:
        """The driver answered before and does not now: the next reading opens it again."""
        self.close()
        return self._unavailable(at, text)

    def _unavailable(self, at: float, text: str) -> Readings:
        return Readings(Driver.BROKEN, at, tuple(self._faulty(uuid, text) for uuid in self._seen), text)

    def _consider_reopening(self, at: float, gpus: Iterable[GpuReading], nameless: list[str]) -> None:
        """Close a session that is over; and one with a GPU in trouble, unless it is new and would find the same."""
        trouble = nameless or any(gpu.fault is not None for gpu in gpus)
        if self.gate.session_over or (trouble and at - self._opened_at >= self._reopen_after):
            self.close()

    # --- GPUs -------------------------------------------------------------------------------------

    def _enumerate(self, count: int) -> tuple[list[GpuReading], list[str]]:
        """Every GPU that is listed or was; and a text for each that cannot even be named."""
        read: dict[str, GpuReading] = {}
        failed: dict[int, str] = {}
        for index in range(count):
            handle = self.gate.call("nvmlDeviceGetHandleByIndex", index)
            uuid = handle if handle.trouble else self.gate.call("nvmlDeviceGetUUID", handle.value)
            if uuid.trouble:
                failed[index] = uuid.text
            else:
                read[uuid.value] = self._read_gpu(handle.value, uuid.value, index)
        nameless: list[str] = []
        for index, text in failed.items():
            lost = self._last_at(index)
            if lost is None:
                nameless.append(f"GPU {index}: {text}")
            else:
                read[lost] = self._faulty(lost, text)
        for known in self._seen:
            if known not in read:
                read[known] = self._faulty(known, "no longer listed by the driver")
        return sorted(read.values(), key=lambda gpu: gpu.index), nameless

    def _last_at(self, index: int) -> str | None:
        """The GPU that was last seen at this index; what has been read by now is known at its new one."""
        latest_first = reversed(self._seen.items())
        return next((uuid for uuid, seen in latest_first if seen.index == index), None)

    def _faulty(self, uuid: str, text: str) -> GpuReading:
        seen = self._seen[uuid]
        return GpuReading(uuid, seen.index, seen.name or NAMELESS, seen.total, 0, told=False, fault=text)

    def _read_gpu(self, handle: Any, uuid: str, index: int) -> GpuReading:
        last = self._seen.pop(uuid, None)
        name = (last.name if last else None) or self.gate.call("nvmlDeviceGetName", handle).value
        self._seen[uuid] = _Seen(index, name, last.total if last else 0)
        before = self._processes(handle)
        memory = self._memory(handle)
        if isinstance(memory, str):
            return self._faulty(uuid, memory)
        after = self._processes(handle)
        self._seen[uuid] = _Seen(index, name, memory.total)
        lists = (before, after) if before is not None and after is not None else None
        told = lists is not None and _tells([*lists[0], *lists[1]])
        return GpuReading(uuid, index, name or NAMELESS, memory.total, memory.used, *(lists or ((), ())), told=told)

    def _memory(self, handle: Any) -> _Memory | str:
        """Total without what the driver reserves, and used; or why they cannot be had.

        Version 1 of the call, all that drivers before 510 have, counts what is reserved as used.
        """
        answer = self.gate.call("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2)
        if answer.trouble is None:
            return _Memory(answer.value.total - answer.value.reserved, answer.value.used)
        if answer.trouble is Trouble.NOT_SUPPORTED:
            answer = self.gate.call("nvmlDeviceGetMemoryInfo", handle)
        if answer.trouble is None:
            return _Memory(answer.value.total, answer.value.used)
        if answer.trouble is Trouble.NOT_SUPPORTED:
            return "the driver does not tell how much memory the GPU has"
        return answer.text

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        """Processes on the GPU by pid, None where the driver does not list those that compute.

        Clients of an MPS server are in the list of those that compute.
        """
        compute = self._list(handle, "nvmlDeviceGetComputeRunningProcesses")
        if compute is None:
            return None
        graphics = self._list(handle, "nvmlDeviceGetGraphicsRunningProcesses") or {}
        return tuple(
            GpuProcess(pid, _larger(compute.get(pid), graphics.get(pid)), pid in compute, pid in graphics)
            for pid in sorted({*compute, *graphics})
        )

    def _list(self, handle: Any, name: str) -> dict[int, int | None] | None:
        """Bytes by pid from one list. A pid listed several times (MIG instances) uses their sum."""
        for version in ("_v3", "_v2"):
            answer = self._whole_list(handle, name + version)
            if answer.code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                break
        if answer.trouble is not None:
            return None
        found: dict[int, int | None] = {}
        for process in answer.value:
            known = found.get(process.pid, 0)
            told = known is not None and process.usedGpuMemory is not None
            found[process.pid] = known + process.usedGpuMemory if told else None
        return found

    def _whole_list(self, handle: Any, name: str) -> Answer:
        for _ in range(LIST_ATTEMPTS):
            answer = self.gate.call(name, handle)
            if answer.code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
        return answer


def _tells(processes: Iterable[GpuProcess]) -> bool:
    """Whether the driver says what a compute process uses: not when it says so of none that it lists."""
    uses = [process.used for process in processes if process.compute]
    return not uses or any(used is not None for used in uses)


def _larger(one: int | None, other: int | None) -> int | None:
    """The larger of two uses, None where neither is known."""
    return max((used for used in (one, other) if used is not None), default=None)
