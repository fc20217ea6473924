"""Starts supervisors (`shim.py`), finds those that an earlier daemon started, and ends them.

The lock in an attempt's run folder is the truth about it. It is taken before the supervisor starts, inherited by it
through flock(2)'s open file description, and so held until the supervisor ends, whatever becomes of the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.abc import InspectLoader
from pathlib import Path
from typing import cast

from gpuq.errors import LaunchError, StoreError
from gpuq.launch import shim
from gpuq.launch.identity import alive, members
from gpuq.model import Identity

LOCK = "lock"
IDENTITY = "identity"
RESULT = "result"

#: The supervisor's code travels with its orders, compiled: a script would be compiled at each start, which takes longer
#: than what it does before the job runs, and an upgrade on disk must not change the code under a running daemon.
_CODE = cast(InspectLoader, shim.__loader__).get_code(shim.__name__)
_BOOTSTRAP = "import marshal; code, spec = marshal.load(open(0, 'rb', closefd=False)); exec(code); main(spec)"
#: Longest complaint of a broken supervisor that is read, in bytes.
_COMPLAINT = 64 * 1024
#: Between rounds of KILL, in seconds; a further round is for what was forked meanwhile.
_KILL_ROUND = 0.1


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything a supervisor needs to know. Durations in seconds."""

    job_id: int
    attempt: int
    run_dir: Path
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    log_path: str
    #: True makes a new log 0600; False leaves it to the umask
    private_log: bool
    umask: int
    #: soft limits by RLIMIT number
    limits: tuple[tuple[int, int], ...]
    time_limit: float | None
    #: between TERM and KILL
    grace: float


@dataclass(frozen=True, slots=True)
class Supervisor:
    """A supervisor that runs. The pidfd is readable once it has ended; whoever holds this closes it with `reap`."""

    pid: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Running:
    supervisor: Supervisor


@dataclass(frozen=True, slots=True)
class Starting:
    """The supervisor lives and has not said yet who it is; see `wait_unlocked`."""

    lock: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """There is a result: see `outcome.read_result`."""


@dataclass(frozen=True, slots=True)
class NeverStarted:
    """The job did not begin. `complaint` is what a broken supervisor said last, if it did."""

    complaint: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The supervisor vanished after the job may have begun; see `end_leftovers`."""

    identity: Identity
    complaint: str | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The run folder itself is missing, so that nothing tells whether the job began, and no supervisor of it lives."""


Found = Running | Starting | Ended | NeverStarted | Lost | Gone


def start(launch: Launch) -> Supervisor:
    """Start the attempt's supervisor, which starts the job. An attempt's run folder is started in once only.

    Raises LaunchError, with nothing running.
    """
    try:
        lock = _take_lock(launch.run_dir)
    except FileExistsError:
        raise LaunchError(f"an attempt was already started in {launch.run_dir}") from None
    except OSError as error:
        raise LaunchError(f"the run folder {launch.run_dir} cannot be made: {error.strerror}") from None
    try:
        supervisor = _spawn(launch, lock)
    except UnicodeEncodeError as error:
        (launch.run_dir / LOCK).unlink()
        raise LaunchError(
            f"the command or its environment holds text that no program can be given: {error.reason}"
        ) from None
    except OSError as error:
        (launch.run_dir / LOCK).unlink()
        raise LaunchError(_explain(error)) from None
    finally:
        os.close(lock)
    return supervisor


def _take_lock(run_dir: Path) -> int:
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(run_dir / LOCK, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _spawn(launch: Launch, lock: int) -> Supervisor:
    """A new interpreter in a session of its own. What it says when it breaks goes into the lock file."""
    orders = _orders(launch, lock)
    argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, f"job={launch.job_id}", f"attempt={launch.attempt}"]
    # A request to end that comes before the supervisor can take it stays pending: the mask is inherited (execve(2)).
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = subprocess.Popen(
            argv,
            stdin=orders,
            stdout=subprocess.DEVNULL,
            stderr=lock,
            pass_fds=(lock,),
            cwd="/",
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(orders)
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # `reap` waits for it; without this, Popen would complain that nobody did
    return Supervisor(process.pid, pidfd)


def _orders(launch: Launch, lock: int) -> int:
    """Code and orders in a file that has no name, so that no environment value touches a disk (memfd_create(2))."""
    spec: shim.Spec = {
        "run_dir": os.fsencode(launch.run_dir),
        "lock_fd": lock,
        "argv": [os.fsencode(word) for word in launch.argv],
        "cwd": os.fsencode(launch.cwd),
        "env": {os.fsencode(name): os.fsencode(value) for name, value in launch.env.items()},
        "log_path": os.fsencode(launch.log_path),
        "private_log": launch.private_log,
        "umask": launch.umask,
        "limits": list(launch.limits),
        "time_limit": launch.time_limit,
        "grace": launch.grace,
    }
    data = memoryview(marshal.dumps((_CODE, dict(spec))))
    orders = os.memfd_create("gpuq-orders")
    try:
        while data:
            data = data[os.write(orders, data) :]
        os.lseek(orders, 0, os.SEEK_SET)
    except OSError:
        os.close(orders)
        raise
    return orders


def _explain(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return f"no process could be made ({reason}): end some, or raise the limit that `ulimit -u` shows"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"no process could be made ({reason}): raise the limit that `ulimit -n` shows, then `gpuq daemon restart`"
        )
    if error.errno == errno.ENOENT:
        return (
            f"the Python that runs the daemon, {sys.executable}, is gone: install it again, then `gpuq daemon restart`"
        )
    return f"no process could be made: {reason}"


def reap(supervisor: Supervisor) -> None:
    """Close the pidfd of a supervisor that has ended, and let the kernel forget it if it was our child."""
    try:
        os.waitid(os.P_PIDFD, supervisor.pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        pass  # an earlier daemon's child
    finally:
        os.close(supervisor.pidfd)


def end(supervisor: Supervisor) -> None:
    """Ask the supervisor to end its job: TERM, the attempt's grace period, KILL. Asking again changes nothing."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        signal.pidfd_send_signal(supervisor.pidfd, signal.SIGTERM)


# --- what an earlier daemon started ---------------------------------------------------------------


def adopt(run_dir: Path) -> Found:
    """What became of the attempt in `run_dir`. Raises StoreError for files that cannot be read or make no sense."""
    if _locked(run_dir):
        identity = _read_identity(run_dir)
        supervisor = None if identity is None else _supervisor(identity)
        if supervisor is not None:
            return Running(supervisor)
        if _locked(run_dir):
            return Starting(run_dir / LOCK)
    if (run_dir / RESULT).exists():
        return Ended()
    identity = _read_identity(run_dir)
    if identity is not None:
        return Lost(identity, _complaint(run_dir))
    if not run_dir.is_dir():
        return Gone()
    return NeverStarted(_complaint(run_dir))


def wait_unlocked(run_dir: Path) -> None:
    """Block until the supervisor has ended. For `Starting`, which is rare and seldom lasts; then `adopt` again."""
    try:
        lock = os.open(run_dir / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def end_leftovers(supervisor: Identity, grace: float) -> None:
    """End what is left of an attempt whose supervisor is gone: TERM, `grace` seconds, KILL. Blocks until then."""
    asked: set[Identity] = set()
    kill_at = time.monotonic() + grace
    while left := members(supervisor):
        killing = time.monotonic() >= kill_at
        pidfds: list[int] = []
        for identity in left:
            pidfd = _pidfd(identity)
            if pidfd is None:
                continue
            pidfds.append(pidfd)
            if killing:
                _send(pidfd, signal.SIGKILL)
            elif identity not in asked:
                asked.add(identity)
                _send(pidfd, signal.SIGTERM)
                _send(pidfd, signal.SIGCONT)  # a stopped process does not see the TERM before
        _wait_for_any(pidfds, _KILL_ROUND if killing else kill_at - time.monotonic())


def _wait_for_any(pidfds: list[int], timeout: float) -> None:
    """Until one of the processes has ended, or `timeout` seconds. Closes the pidfds."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    try:
        if pidfds:
            poll.poll(max(0.0, timeout) * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _supervisor(identity: Identity) -> Supervisor | None:
    pidfd = _pidfd(identity)
    return None if pidfd is None else Supervisor(identity.pid, pidfd)


def _send(pidfd: int, number: int) -> None:
    # It has ended, or became a set-user-id program; the caller looks again.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)


def _pidfd(identity: Identity) -> int | None:
    """A pidfd of this very process, None if it has ended: looked at once more when the number can no longer change."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if not alive(identity):
        os.close(pidfd)
        return None
    return pidfd


def _locked(run_dir: Path) -> bool:
    """Whether a supervisor lives. Shared, so that two who look do not take each other for one."""
    try:
        lock = os.open(run_dir / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"{run_dir / LOCK} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _read_identity(run_dir: Path) -> Identity | None:
    """None before the supervisor wrote it. It is renamed into place, so half a file is damage: raises StoreError."""
    path = run_dir / IDENTITY
    try:
        fields = json.loads(path.read_bytes())
        return Identity(int(fields["pid"]), int(fields["start_time"]), str(fields["boot_id"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{path} is damaged: it does not name a process") from None


def _complaint(run_dir: Path) -> str | None:
    """The last line that a broken supervisor printed."""
    try:
        with open(run_dir / LOCK, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _COMPLAINT))
            lines = file.read(_COMPLAINT).decode("utf-8", "replace").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else None
