"""What a job may have changed of its parent, and all that this starts later would inherit."""

import _ctypes
import posix as os
import resource

from gpuq.launch.parts.files import slurp
from gpuq.launch.parts.memory import SCORE

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    Circumstances = tuple[object, ...]

#: The number of ioprio_get(2), which no library wraps, by machine.
IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31, "ppc64le": 274}.get(os.uname().machine)
IOPRIO_WHO_PROCESS = 1  # linux/ioprio.h
SYSCALL = _ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall")  # type: ignore[arg-type]
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


def circumstances() -> "Circumstances":
    """Those of this process: priorities, processors, limits, cgroup, and how soon the kernel kills it for memory."""
    return (
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
        os.sched_getaffinity(0),
        None if IOPRIO_GET is None else _ctypes.call_cdeclfunction(SYSCALL, (IOPRIO_GET, IOPRIO_WHO_PROCESS, 0)),
        list(map(resource.getrlimit, LIMITS)),
        told(SCORE),
        told("/proc/self/cgroup"),
    )


def told(path: str) -> bytes:
    """Nothing where the kernel tells nothing."""
    try:
        return slurp(path)
    except OSError:
        return b""
