"""Readings through NVML, and one gate that every call goes through.

What a call may return is in NVIDIA's `nvml.h`. Every reading enumerates afresh, so that GPUs which change their index,
go away or come back are noticed; what was seen once stays in the readings, with a fault, when it can be seen no more.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pynvml

from gpuq.gpus.library import Library
from gpuq.model import Driver, GpuProcess, GpuReading, Readings

#: Seconds between two attempts to open NVML again for the sake of a GPU that is lost. A session lists what was there
#: when it was opened, and opening one takes up to seconds per GPU where persistence mode is off.
REOPEN_AFTER = 10.0
#: A list of processes that outgrows pynvml's array while it is read is read again, so many times.
LIST_ATTEMPTS = 3
#: More GPUs than this are none that a host has: the driver talks nonsense.
MOST_GPUS = 1024
#: More bytes than this (1 PiB) are no GPU's memory.
MOST_BYTES = 2**50
#: What may be handed to a job in CUDA_VISIBLE_DEVICES, whose words are separated by commas.
UUID = re.compile(r"[A-Za-z0-9-]{1,96}", re.ASCII)
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
    pynvml.NVML_ERROR_GPU_NOT_FOUND: Trouble.LOST,
}

#: Codes by which a GPU is gone or broken, which a driver that does not work as a whole does not give. One that fell
#: off the bus is "lost" to some calls and "unknown error" to others.
_GONE = frozenset({*(c for c, trouble in _TROUBLES.items() if trouble is Trouble.LOST), pynvml.NVML_ERROR_UNKNOWN})

#: What the driver says must be done about a GPU before it is of use again (nvml.h, nvmlDeviceGpuRecoveryAction_t;
#: drivers since 570). Those left out concern its links to other GPUs.
_RECOVERY = {
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "be reset: `sudo nvidia-smi --gpu-reset`, or reboot",
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "be recovered by a reboot of the host",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "run empty and then be reset: `sudo nvidia-smi --gpu-reset`",
    pynvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: "be reset with its bus: reboot",
    pynvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: "be recovered by a reboot of the system",
}

#: Codes of any call after which the whole session is of no use.
_SESSION_OVER = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)

#: What pynvml raises over an answer that it cannot be: a count larger than the array, a size beyond all memory.
_NONSENSE = (ValueError, TypeError, IndexError, OverflowError, MemoryError, OSError, ctypes.ArgumentError)

#: What a code means and what to do about it, where NVML's own text does not say so.
_ADVICE = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the nvidia kernel module is not loaded: `sudo modprobe nvidia`, or reboot; "
        "`sudo dmesg | grep -i nvidia` says why it did not load"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "driver and library versions differ, as after an upgrade: reboot, or reload the nvidia kernel module, "
        "which gpuq notices by itself"
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
        #: monotonic time of the last answer, whatever it was
        self.answered_at = float("-inf")

    def init(self) -> Answer:
        """Open a session, by the older call where the library has no other."""
        answer = self.call("nvmlInit")
        return self.call("nvmlInit_v2") if answer.code == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND else answer

    def call(self, name: str, *arguments: Any) -> Answer:
        """Call the pynvml function of this name. A function that this pynvml lacks is not supported."""
        function = _init_v2 if name == "nvmlInit_v2" else getattr(pynvml, name, None)
        if function is None:
            return Answer(trouble=Trouble.NOT_SUPPORTED, code=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, text=name)
        self.calls += 1
        try:
            return self._answer(name, function, arguments)
        finally:
            self.answered_at = time.monotonic()

    def _answer(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Answer:
        try:
            value = function(*arguments)
        except UnicodeDecodeError as error:  # pynvml expects UTF-8, and drivers do not promise it
            value = error.object
        except pynvml.NVMLError as error:
            code = error.value
            self.session_over = self.session_over or code in _SESSION_OVER
            return Answer(trouble=_TROUBLES.get(code, Trouble.BROKEN), code=code, text=_explain(error))
        except _NONSENSE as error:
            text = f"NVML's answer to {name} makes no sense ({type(error).__name__}: {error})"
            return Answer(trouble=Trouble.BROKEN, text=text)
        return Answer(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)


def _init_v2() -> None:
    """What pynvml does not call: all that libraries have which lack nvmlInitWithFlags."""
    pynvml._nvmlCheckReturn(pynvml._nvmlGetFunctionPointer("nvmlInit_v2")())


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

    shared = True

    def __init__(self, reopen_after: float = REOPEN_AFTER, kernel_module: tuple[Path, ...] = KERNEL_MODULE) -> None:
        """`kernel_module` are files of which one is there while the kernel has the driver."""
        self.gate = Gate()
        self._reopen_after = reopen_after
        self._kernel_module = kernel_module
        self._open = False
        self._opened_at = 0.0
        self._version: str | None = None
        self._seen: dict[str, _Seen] = {}
        #: those of them that are not listed any more
        self._unlisted: set[str] = set()
        self._library = Library()
        #: False once the driver has said that it does not tell the action by which a GPU recovers
        self._tells_recovery = True

    def read(self) -> Readings:
        """One reading of all GPUs. Blocks while the driver does; raises nothing for what driver and GPUs do."""
        at = time.monotonic()
        failure = None if self._open else self._start(at)
        if failure is not None:
            return failure
        count = self.gate.call("nvmlDeviceGetCount")
        if count.trouble is not None:
            return self._broken(at, count)
        if not 0 <= count.value <= MOST_GPUS:
            return self._broken(at, Answer(text=f"NVML makes no sense: it counts {count.value} GPUs"))
        gpus, nameless = self._enumerate(count.value)
        self._consider_reopening(at, gpus, nameless)
        return Readings(Driver.OK, at, tuple(gpus), "; ".join(nameless) or None, self._version)

    @property
    def answered_at(self) -> float:
        """Monotonic time of the last answer of the driver."""
        return self.gate.answered_at

    def close(self) -> None:
        """Close the session. Blocks while the driver does."""
        if self._open:
            self._open = False
            self.gate.call("nvmlShutdown")

    # --- the session ------------------------------------------------------------------------------

    def _start(self, at: float) -> Readings | None:
        """Open NVML; the reading to return where that fails."""
        self._load()
        init = self.gate.init()
        self._library.note_loaded()
        if init.code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            if not any(path.exists() for path in self._kernel_module):
                return Readings(Driver.NONE, at)
            text = (
                "the nvidia kernel module is there and libnvidia-ml.so.1 cannot be loaded: install the driver's "
                "libraries (in a container, start it with NVIDIA's runtime and the capability `utility`)"
            )
            return self._unavailable(at, Answer(trouble=Trouble.BROKEN, code=init.code, text=text))
        if init.trouble is not None:
            return self._unavailable(at, init)
        self._open = True
        self._tells_recovery = True
        self._opened_at = at
        self.gate.session_over = False
        self._version = self.gate.call("nvmlSystemGetDriverVersion").value
        return None

    def _load(self) -> None:
        """Use the library that has replaced the loaded one: without it, an upgrade would need a new daemon.

        The old one stays loaded, a few megabytes: a thread of its own may still run in it.
        """
        replacement = self._library.replacement()
        if replacement is not None:
            pynvml.nvmlLib = replacement
            pynvml._nvmlGetFunctionPointer_cache.clear()

    def _broken(self, at: float, answer: Answer) -> Readings:
        """The driver answered before and does not now: the next reading opens it again."""
        self.close()
        return self._unavailable(at, answer)

    def _unavailable(self, at: float, answer: Answer) -> Readings:
        return Readings(Driver.BROKEN, at, tuple(self._faulty(uuid, answer) for uuid in self._seen), answer.text)

    def _consider_reopening(self, at: float, gpus: Iterable[GpuReading], nameless: list[str]) -> None:
        """Close a session that is over; and one with a GPU in trouble, unless it is new and would find the same."""
        trouble = nameless or any(gpu.fault is not None for gpu in gpus)
        if self.gate.session_over or (trouble and at - self._opened_at >= self._reopen_after):
            self.close()

    # --- GPUs -------------------------------------------------------------------------------------

    def _enumerate(self, count: int) -> tuple[list[GpuReading], list[str]]:
        """Every GPU that is listed or was; and a text for each that cannot even be named."""
        read: dict[str, GpuReading] = {}
        failed: dict[int, Answer] = {}
        for index in range(count):
            handle = self.gate.call("nvmlDeviceGetHandleByIndex", index)
            uuid = handle if handle.trouble else self.gate.call("nvmlDeviceGetUUID", handle.value)
            if uuid.trouble:
                failed[index] = uuid
            elif not UUID.fullmatch(uuid.value):
                text = f"the driver gives it the UUID {uuid.value!r:.120}, by which no job can be given it"
                name = f"unnamed-{index}"
                read[name] = GpuReading(name, index, NAMELESS, 0, 0, told=False, fault=text)
            elif uuid.value in read:
                text = f"the driver gives GPU {read[uuid.value].index} and GPU {index} the same UUID"
                read[uuid.value] = replace(read[uuid.value], fault=text)
            else:
                read[uuid.value] = self._read_gpu(handle.value, uuid.value, index)
        nameless: list[str] = []
        for index, answer in failed.items():
            lost = self._last_at(index)
            if lost is None:
                nameless.append(f"GPU {index}: {answer.text}")
            else:
                self._unlisted.discard(lost)
                read[lost] = self._faulty(lost, answer)
        self._unlisted = self._seen.keys() - read.keys()
        for known in self._unlisted:
            read[known] = self._faulty(known, _NOT_LISTED)
        return sorted(read.values(), key=lambda gpu: gpu.order), nameless

    def _last_at(self, index: int) -> str | None:
        """The GPU that was last seen at this index; what has been read by now is known at its new one."""
        latest_first = reversed(self._seen.items())
        return next((uuid for uuid, seen in latest_first if seen.index == index), None)

    def _faulty(self, uuid: str, why: Answer) -> GpuReading:
        seen = self._seen[uuid]
        name, lost = seen.name or NAMELESS, why.code in _GONE
        index = None if uuid in self._unlisted else seen.index
        return GpuReading(uuid, index, name, seen.total, 0, told=False, fault=why.text, lost=lost)

    def _read_gpu(self, handle: Any, uuid: str, index: int) -> GpuReading:
        self._unlisted.discard(uuid)
        last = self._seen.pop(uuid, None)
        name = (last.name if last else None) or self.gate.call("nvmlDeviceGetName", handle).value
        self._seen[uuid] = _Seen(index, name, last.total if last else 0)
        before = self._processes(handle)
        memory = self._memory(handle)
        if isinstance(memory, Answer):
            return self._faulty(uuid, memory)
        after = self._processes(handle)
        self._seen[uuid] = _Seen(index, name, memory.total)
        for answer in (before, after, self._health(handle)):
            if isinstance(answer, Answer) and answer.trouble is Trouble.LOST:
                return self._faulty(uuid, answer)
        reading = GpuReading(uuid, index, name or NAMELESS, memory.total, memory.used, told=False)
        if isinstance(before, Answer) or isinstance(after, Answer):
            return reading
        before, after = _sane(before), _sane(after)
        return replace(reading, before=before, after=after, told=_tells([*before, *after]))

    def _memory(self, handle: Any) -> _Memory | Answer:
        """Total without what the driver reserves, and used; or why they cannot be had.

        Version 1 of the call, all that drivers before 510 have, counts what is reserved as used.
        """
        answer = self.gate.call("nvmlDeviceGetMemoryInfo", handle, pynvml.nvmlMemory_v2)
        reserved = answer.value.reserved if answer.trouble is None else 0
        if answer.trouble is Trouble.NOT_SUPPORTED:
            answer = self.gate.call("nvmlDeviceGetMemoryInfo", handle)
        if answer.trouble is Trouble.NOT_SUPPORTED:
            return replace(answer, text="the driver does not tell how much memory the GPU has")
        if answer.trouble is not None:
            return answer
        total, used = answer.value.total - reserved, answer.value.used
        if not 0 < total <= MOST_BYTES or used > MOST_BYTES:
            text = f"the driver makes no sense: {answer.value.total} bytes of memory, {reserved} reserved, {used} used"
            return Answer(trouble=Trouble.BROKEN, text=text)
        return _Memory(total, used)

    def _health(self, handle: Any) -> Answer | None:
        """What the driver wants done about the GPU before it is used; None where it wants nothing or does not tell."""
        if not self._tells_recovery:
            return None
        field = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        answer = self.gate.call("nvmlDeviceGetFieldValues", handle, [field])
        if answer.trouble is not None or answer.value[0].nvmlReturn != pynvml.NVML_SUCCESS:
            self._tells_recovery = answer.trouble is None
            return None
        action = answer.value[0].value.uiVal
        if action not in _RECOVERY:
            return None
        broken = action != pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET
        code = pynvml.NVML_ERROR_RESET_REQUIRED if broken else pynvml.NVML_SUCCESS
        return Answer(trouble=Trouble.LOST, code=code, text=f"the driver says that the GPU must {_RECOVERY[action]}")

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | Answer:
        """Processes on the GPU by pid; why not, where the driver does not list those that compute.

        Clients of an MPS server are in the list of those that compute.
        """
        compute = self._list(handle, "nvmlDeviceGetComputeRunningProcesses")
        if isinstance(compute, Answer):
            return compute
        listed = self._list(handle, "nvmlDeviceGetGraphicsRunningProcesses")
        graphics = {} if isinstance(listed, Answer) else listed
        return tuple(
            GpuProcess(pid, _larger(compute.get(pid), graphics.get(pid)), pid in compute, pid in graphics)
            for pid in sorted({*compute, *graphics})
        )

    def _list(self, handle: Any, name: str) -> dict[int, int | None] | Answer:
        """Bytes by pid from one list, or why not. A pid listed several times (MIG instances) uses their sum."""
        for version in ("_v3", "_v2"):
            answer = self._whole_list(handle, name + version)
            if answer.code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                break
        if answer.trouble is not None:
            return answer
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


_NOT_LISTED = Answer(trouble=Trouble.LOST, code=pynvml.NVML_ERROR_NOT_FOUND, text="no longer listed by the driver")


def _sane(processes: tuple[GpuProcess, ...]) -> tuple[GpuProcess, ...]:
    """A use that no GPU has room for is none that is told."""
    return tuple(replace(p, used=None) if (p.used or 0) > MOST_BYTES else p for p in processes)


def _tells(processes: Iterable[GpuProcess]) -> bool:
    """Whether the driver says what a compute process uses: not when it says so of none that it lists."""
    uses = [process.used for process in processes if process.compute]
    return not uses or any(used is not None for used in uses)


def _larger(one: int | None, other: int | None) -> int | None:
    """The larger of two uses, None where neither is known."""
    return max((used for used in (one, other) if used is not None), default=None)
