"""What a supervisor does for one attempt, in a process of its own, which outlives the daemon.

It starts the job, holds it to its time limit, ends what the job left behind and writes down how it went. It and its
parts import nothing else of gpuq and little besides, for each import comes between a submission and the job's start:

* `posix` is what `os` wraps, without the 2 ms of the wrapping;
* `_signal` is what `signal` wraps, without `enum` (8 ms);
* `_ctypes` is what `ctypes` wraps; one call of prctl(2) is not worth the other 4 ms.

All are the same modules of CPython since 3.3 or before. `parts/fork.py` makes the process, in which
`parts/serve.py` calls `supervise`.
"""

import posix as os
import time

from gpuq.launch.parts.files import reserve, to_json, write_result
from gpuq.launch.parts.keeper import Keeper
from gpuq.launch.parts.leaf import Leaf
from gpuq.launch.parts.memory import kills_since, oom_kills
from gpuq.launch.parts.start import (
    StartError,
    become_subreaper,
    complaint,
    keeper_of,
    leaf_of,
    open_log,
    start,
    write_identity,
)
from gpuq.launch.parts.watch import Limit, Watch

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from typing import NotRequired, Protocol, TypedDict

    class Tell(Protocol):
        def __call__(self, report: bytes, *, quiet: bool) -> None: ...

    class Spec(TypedDict):
        """The orders. Durations in seconds."""

        run_dir: bytes
        #: arguments and environment, marshalled: only the job's process unpacks them
        program: bytes
        cwd: bytes
        log_path: bytes
        private_log: bool
        umask: int
        limits: list[tuple[int, int]]
        time_limit: float | None
        grace: float
        #: a signal, and how long before the time limit it is sent to those of the job's processes that handle it
        warn: tuple[int, float] | None
        #: bytes; None keeps all of the log
        log_limit: int | None
        #: where the attempt's cgroup is to be made, and the bytes of memory that it may have
        cgroup: bytes | None
        ram: int | None
        #: for tests: before or after which step whom to kill, a pid or 0 for ourselves (`gpuq.crash`)
        crash: NotRequired[tuple[str, int]]


#: The exit code of a supervisor that began nothing and could write nothing, because the disk is full.
DISK_FULL = 75  # EX_TEMPFAIL, sysexits.h


def supervise(spec: "Spec", lock_fd: int, tell: "Tell") -> int:
    """Run the attempt to its end; 0, or the exit code with which this process is to end.

    The caller has made this process the leader of its own session, with all signals blocked, so that they stay
    pending: those in HANDLED are taken by sigtimedwait(2), the others never. `tell` is called once, as soon as nothing
    of the job is left and before that is on the disk.
    """
    os.set_inheritable(lock_fd, False)
    folder = os.open(spec["run_dir"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            draft = reserve(folder)
        except OSError:
            return DISK_FULL
        report, quiet = run(spec, folder)
        crash_point(spec, "report-before")
        tell(report, quiet=quiet)
        crash_point(spec, "report-after")
        crash_point(spec, "result-before")
        write_result(folder, report, draft)
        crash_point(spec, "result-after")
    finally:
        os.close(folder)
    return 0


def run(spec: "Spec", folder: int) -> tuple[bytes, bool]:
    """Run the job; what the result is to say, and whether nobody had to do anything about it."""
    started_at = time.time()
    log = -1
    log_start = 0
    watch: Watch | None = None
    failure: StartError | None = None
    keeper: Keeper | None = None
    killed_before: int | None = None
    leaf = leaf_of(spec)
    try:
        become_subreaper()
        crash_point(spec, "identity-before")
        write_identity(folder, leaf)
        crash_point(spec, "identity-after")
        log = open_log(spec)
        log_start = os.fstat(log).st_size
        started_at = time.time()
        keeper = keeper_of(spec, log)
        killed_before = oom_kills()
        job, complaints = start(spec, log if keeper is None else keeper.into, leaf)
        if keeper is not None:
            keeper.leave_to_job()
        watch = Watch(job, Limit(spec["time_limit"], spec["warn"]), spec["grace"], leaf)
        watch.until_nothing_is_left()
        failure = complaint(complaints)
    except StartError as error:
        failure = error
    if keeper is not None:
        keeper.finish()
    report = {
        "start_failure": None
        if failure is None
        else {"step": failure.step, "errno": failure.number, "text": failure.text},
        **watched(watch, failed=failure is not None),
        "log_start": log_start,
        "log_end": log_start if log < 0 else os.fstat(log).st_size,
        "started_at": started_at,
        "ended_at": time.time(),
        **used(watch, leaf),
        "host_oom_kills": kills_since(killed_before),
    }
    if log >= 0:
        os.close(log)
    if leaf is not None:
        leaf.close()
    quiet = watch is not None and watch.quiet and keeper is None and leaf is None
    return to_json(report).encode("ascii") + b"\n", quiet


def watched(watch: Watch | None, *, failed: bool) -> "dict[str, object]":
    """What the result says of the job's life; `failed` if its process did not become its program."""
    return {
        "wait_status": watch.status if watch is not None and not failed else None,
        "timed_out": watch is not None and watch.timed_out,
        "ended": watch is not None and watch.ended,
        "warned": 0 if watch is None else watch.warned,
        "warned_processes": 0 if watch is None else watch.warned_processes,
        "suspended_seconds": 0.0 if watch is None else watch.limit.stood(time.monotonic()),
        "leftovers": 0 if watch is None else watch.leftovers,
    }


def used(watch: Watch | None, leaf: Leaf | None) -> "dict[str, object]":
    """What the result says of the job's use of the host, once nothing of it is left."""
    return {
        "user_seconds": 0.0 if watch is None else watch.user_seconds,
        "system_seconds": 0.0 if watch is None else watch.system_seconds,
        "max_rss_bytes": 0 if watch is None else watch.max_rss * 1024,
        "memory_peak_bytes": 0 if leaf is None else leaf.memory_peak(),
        "oom_kills": 0 if leaf is None else leaf.oom_kills(),
    }


def crash_point(spec: "Spec", name: str) -> None:
    """Only tests order it. The daemon is killed only while it is still our parent: its number may be another's."""
    at = spec.get("crash")
    if at is not None and at[0] == name and at[1] in (0, os.getppid()):
        os.kill(at[1] or os.getpid(), _signal.SIGKILL)
