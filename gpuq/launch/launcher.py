"""Starts supervisors (`shim.py`), and tells them what their jobs are to do.

The lock in an attempt's run folder is the truth about it. It is taken before the supervisor starts, inherited by it
through flock(2)'s open file description, and so held until the supervisor ends, whatever becomes of the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.abc import InspectLoader
from pathlib import Path
from typing import cast

from gpuq import crash
from gpuq.errors import LaunchError
from gpuq.launch import keptlog, shim
from gpuq.launch.identity import MARKER, boot_id, read_stat
from gpuq.launch.leftovers import end_leftovers
from gpuq.launch.parts import files, keeper, leaf, memory, processes, watch
from gpuq.launch.parts import start as start_of_job
from gpuq.launch.runfolder import LOCK, launch_failure, read_identity, valid_text
from gpuq.model import Identity

#: The supervisor's code travels with its orders, compiled: a script would be compiled at each start, which takes longer
#: than what it does before the job runs, and an upgrade on disk must not change the code under a running daemon.
_PARTS = (files, memory, processes, leaf, keptlog, keeper, start_of_job, watch, shim)
_CODE = tuple((part.__name__, cast(InspectLoader, part.__loader__).get_code(part.__name__)) for part in _PARTS)
#: Each part becomes a module of its name, for those after it to import; the last is run.
_BOOTSTRAP = """\
import marshal, sys
parts, spec = marshal.load(open(0, 'rb', closefd=False))
for name, code in parts:
    part = sys.modules[name] = type(sys)(name)
    exec(code, vars(part))
part.main(spec)
""" + MARKER.decode("ascii")
DISK_FULL = shim.DISK_FULL
#: Files that a start has open at a time (lock, orders, Popen's pipe, /dev/null, folder, pidfd), and one for a client.
_FILES_AT_START = 8


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
    #: a signal's number, and how long before the time limit the job's group gets it
    warn: tuple[int, float] | None = None
    #: bytes of the log that are kept, half of them the beginning; None keeps all
    log_limit: int | None = None
    #: bytes that the job's processes may have together, where a cgroup can hold them to it; None for no limit
    ram: int | None = None
    #: where to make the attempt's cgroup, see `cgroup.Supervision.leaf`; None for none
    cgroup: Path | None = None


@dataclass(frozen=True, slots=True)
class Supervisor:
    """A supervisor that runs. The pidfd is readable once it has ended; whoever holds this closes it with `reap`."""

    pid: int
    pidfd: int


def check_room() -> None:
    """Raises HostBusy where the files that a start needs at a time could not be opened: nothing is claimed then."""
    held: list[int] = []
    try:
        for _ in range(_FILES_AT_START):
            held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise launch_failure(_explain(error), error) from None
    finally:
        for file in held:
            os.close(file)


def start(launch: Launch) -> Supervisor:
    """Start the attempt's supervisor, which starts the job. An attempt's run folder is started in once only.

    Raises LaunchError, with nothing running; HostBusy where the same may succeed later, in the same folder.
    """
    try:
        lock = _take_lock(launch.run_dir)
    except FileExistsError:
        raise LaunchError(valid_text(f"an attempt was already started in {launch.run_dir}")) from None
    except OSError as error:
        text = f"the run folder {launch.run_dir} cannot be made: {error.strerror}"
        raise launch_failure(text, error) from None
    try:
        supervisor = _spawn(launch, lock)
    except UnicodeEncodeError as error:
        (launch.run_dir / LOCK).unlink()
        raise LaunchError(
            f"the command or its environment holds text that no program can be given: {error.reason}"
        ) from None
    except OSError as error:
        (launch.run_dir / LOCK).unlink()
        raise launch_failure(_explain(error), error) from None
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
        (run_dir / LOCK).unlink()
        os.close(lock)
        raise
    return lock


def _spawn(launch: Launch, lock: int) -> Supervisor:
    """A new interpreter in a session of its own. What it says when it breaks goes into the lock file."""
    orders = _orders(launch, lock)
    argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP]
    # By the folder an attempt's supervisor is found even if the job removed all files, see `find_supervisor`.
    argv += [f"job={launch.job_id}", f"attempt={launch.attempt}", str(launch.run_dir)]
    # A request that comes before the supervisor can take it stays pending: the mask is inherited (execve(2)).
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, watch.SUSPEND, watch.RESUME})
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
        if (begun := read_identity(launch.run_dir)) is not None:
            end_leftovers(begun, 0.0, launch.run_dir)
            raise LaunchError("its supervisor could not be watched and was ended, after the job began") from None
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
        "warn": None if launch.warn is None else (int(launch.warn[0]), launch.warn[1]),
        "log_limit": launch.log_limit,
        "cgroup": None if launch.cgroup is None else os.fsencode(launch.cgroup),
        "ram": launch.ram,
    }
    if (at := crash.in_supervisor(launch.job_id, launch.attempt)) is not None:
        spec["crash"] = at
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


def reap(supervisor: Supervisor) -> int | None:
    """Close the pidfd of a supervisor that has ended, and let the kernel forget it if it was our child.

    Returns its exit code, the number of the signal that ended it as a negative number, or None where it was an
    earlier daemon's child. `DISK_FULL` says that nothing was begun, because nothing could be written down.
    """
    try:
        ended = os.waitid(os.P_PIDFD, supervisor.pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    finally:
        os.close(supervisor.pidfd)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def how_ended(status: int | None, identity: Identity) -> str | None:
    """What a supervisor's own end, as `reap` returned it, or its boot, says of an attempt that has no result."""
    if identity.boot_id != boot_id():
        return "the host went down while it ran"
    if status is None or status >= 0:
        return None
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"its supervisor was ended by {name}, which gpuq did not send"


def end(supervisor: Supervisor) -> None:
    """Ask the supervisor to end its job: TERM, the attempt's grace period, KILL. Asking again changes nothing."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        signal.pidfd_send_signal(supervisor.pidfd, signal.SIGTERM)
        signal.pidfd_send_signal(supervisor.pidfd, signal.SIGCONT)  # its job may have stopped it


def suspend(supervisor: Supervisor) -> None:
    """Stop every process of the job, and its time limit's clock. Asking again changes nothing."""
    with contextlib.suppress(ProcessLookupError):
        stat = read_stat(supervisor.pid)
        if stat is not None and stat.state == "T":  # by its job: CONT later would take the request back
            signal.pidfd_send_signal(supervisor.pidfd, signal.SIGCONT)
        signal.pidfd_send_signal(supervisor.pidfd, watch.SUSPEND)


def resume(supervisor: Supervisor) -> None:
    """Let a suspended job go on. Asking again, or of one that runs, changes nothing."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(supervisor.pidfd, watch.RESUME)
