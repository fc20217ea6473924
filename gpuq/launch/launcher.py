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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.abc import InspectLoader
from pathlib import Path
from typing import cast

from gpuq import crash
from gpuq.errors import LaunchError, StoreBusy, StoreError
from gpuq.launch import cgroup, keptlog, outcome, runfolder, shim
from gpuq.launch.identity import MARKER, alive, find_supervisor, is_supervisor, leftover, look_for_left, read_stat
from gpuq.launch.parts import files, keeper, leaf, memory, processes, watch
from gpuq.launch.parts import start as start_of_job
from gpuq.launch.runfolder import BUSY, IDENTITY, LOCK, RESULT, launch_failure, unreadable, valid_text
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
#: Between rounds of KILL, in seconds; a further round is for what was forked meanwhile.
_KILL_ROUND = 0.1
#: Files that a start has open at a time (lock, orders, Popen's pipe, /dev/null, folder, pidfd), and one for a client.
_FILES_AT_START = 8
#: Leftovers that are waited for at once: each takes a file descriptor, and any one end wakes us.
_WAITED_FOR = 64


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
    """The supervisor vanished after the job may have begun; see `end_leftovers`.

    `identity` is the supervisor's, or, where the job removed what told it, that of a process that it left behind.
    """

    identity: Identity
    complaint: str | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """The run folder itself is missing, so that nothing tells whether the job began, and no supervisor of it lives."""


Found = Running | Starting | Ended | NeverStarted | Lost | Gone


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
        if (begun := _read_identity(launch.run_dir)) is not None:
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


def how_ended(status: int | None) -> str | None:
    """What a supervisor's own end, as `reap` returned it, says of an attempt that has no result."""
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


# --- what an earlier daemon started ---------------------------------------------------------------


def adopt(run_dir: Path) -> Found:
    """What became of the attempt in `run_dir`.

    Raises StoreError for files that cannot be read or make no sense, once no supervisor of the attempt lives, and
    StoreBusy where the host is so short of files or memory that nothing could be looked at: ask again.
    """
    try:
        return _running(run_dir) or _after(run_dir)
    except OSError as error:
        raise unreadable(str(run_dir), error) from None


def _running(run_dir: Path) -> Running | Starting | Ended | None:
    """What the lock says; where it says anything else than that the attempt ended well, /proc is asked too.

    The job may have removed or replaced every file, and must neither be run beside itself nor be called lost.
    """
    held = _held(run_dir)
    if held:
        supervisor = _named_supervisor(run_dir)
        if supervisor is not None:
            return Running(supervisor)
    elif held is False and _has_true_result(run_dir):
        return Ended()
    identity = find_supervisor(run_dir)
    supervisor = None if identity is None else _supervisor(identity, run_dir)
    if supervisor is not None:
        return Running(supervisor)
    return Starting(run_dir / LOCK) if held and _held(run_dir) else None


def _has_true_result(run_dir: Path) -> bool:
    """False also for one that is damaged, which `_after` looks into."""
    try:
        return outcome.read_result(run_dir) is not None
    except StoreBusy:
        raise
    except StoreError:
        return False


def _held(run_dir: Path) -> bool | None:
    """As `locked`; None also for a lock that is none, which `_after` complains about."""
    try:
        return runfolder.locked(run_dir)
    except StoreBusy:
        raise
    except StoreError:
        return None


def _after(run_dir: Path) -> Ended | Lost | NeverStarted | Gone:
    """What is there to be read when no supervisor lives. Where it is damaged, what was left is still to be ended."""
    try:
        return _read(run_dir)
    except StoreBusy:
        raise
    except StoreError as error:
        identity = _named(run_dir) or leftover(run_dir)
        if identity is None:
            raise
        return Lost(identity, error.message)


def _read(run_dir: Path) -> Ended | Lost | NeverStarted | Gone:
    """The same. Raises StoreError for what makes no sense."""
    if runfolder.has_result(run_dir):
        outcome.read_result(run_dir)
        return Ended()
    if (identity := _read_identity(run_dir)) is not None:
        return Lost(identity, runfolder.complaint(run_dir))
    there = runfolder.is_there(run_dir)
    if (identity := leftover(run_dir)) is not None:
        return Lost(identity, "its supervisor and its files are gone" if there else "its run folder is gone")
    # Whatever stands in place of these: a job made it, so one did begin. Reading it raises.
    runfolder.read_file(run_dir / RESULT)
    runfolder.locked(run_dir)
    return NeverStarted(runfolder.complaint(run_dir)) if there else Gone()


def wait_unlocked(run_dir: Path) -> None:
    """Block until the supervisor has ended. For `Starting`, which is rare and seldom lasts; then `adopt` again."""
    runfolder.wait_unlocked(run_dir)


def end_leftovers(supervisor: Identity, grace: float, run_dir: Path | None = None) -> None:
    """End what is left of an attempt whose supervisor is gone: TERM, `grace` seconds, KILL. Blocks until then.

    With `run_dir` also what left the supervisor's session, see `look_for_left`, and what is in the attempt's cgroup.
    """
    group = None if run_dir is None else _leaf(run_dir)
    if group is not None:
        group.thaw()
    asked: set[Identity] = set()
    killed: set[Identity] = set()
    kill_at = time.monotonic() + grace
    while True:
        try:
            left, groups = look_for_left(supervisor, run_dir, set() if group is None else group.members())
            if not left and (group is None or group.remove()):
                if run_dir is not None:
                    runfolder.drop_drafts(run_dir)
                return
            if time.monotonic() < kill_at:
                _signal_each(set(left) - asked, (signal.SIGTERM, signal.SIGCONT))
                asked.update(left)
                _wait_for_any(left, kill_at - time.monotonic())
                continue
            if group is not None:
                group.kill()
            for number in groups:
                _kill_group(number)
            _signal_each(left, (signal.SIGKILL,))
            # what was forked meanwhile is looked for at once; what was killed needs a moment to go
            if killed.issuperset(left):
                _wait_for_any(left, _KILL_ROUND)
            killed.update(left)
        except OSError as error:
            if error.errno not in BUSY:
                raise
            time.sleep(_KILL_ROUND)  # the host has no room to look: try again until it has


def _leaf(run_dir: Path) -> leaf.Leaf | None:
    """The attempt's cgroup, if its supervisor made one and nobody has written another name there."""
    try:
        path = Path(str(json.loads(runfolder.read_file(run_dir / IDENTITY) or b"{}")["cgroup"]))
        return leaf.Leaf(os.fsencode(path)) if cgroup.is_leaf_of(path, run_dir) else None
    except (StoreError, ValueError, KeyError, TypeError, RecursionError, OSError):
        return None


def _kill_group(group: int) -> None:
    """A fork cannot escape a signal to its group, as it can a look at /proc (fork(2) starts again after one)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or a set-user-id program
        os.killpg(group, signal.SIGKILL)


def _signal_each(processes: Iterable[Identity], numbers: tuple[int, ...]) -> None:
    for identity in processes:
        pidfd = _pidfd(identity)
        if pidfd is None:
            continue
        try:
            for number in numbers:
                signal.pidfd_send_signal(pidfd, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended, or became a set-user-id program; the caller looks again
        finally:
            os.close(pidfd)


def _wait_for_any(processes: list[Identity], timeout: float) -> None:
    """Until one of the processes has ended, or `timeout` seconds."""
    poll = select.poll()
    pidfds: list[int] = []
    try:
        for identity in processes[:_WAITED_FOR]:
            pidfd = _pidfd(identity)
            if pidfd is None:
                return  # one has ended
            pidfds.append(pidfd)
            poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, timeout) * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _named_supervisor(run_dir: Path) -> Supervisor | None:
    """The supervisor that the identity file names, if it lives and is one: the job may have written that file."""
    identity = _named(run_dir)
    return None if identity is None else _supervisor(identity, run_dir)


def _named(run_dir: Path) -> Identity | None:
    """Whom the identity file names, None also where it is damaged."""
    try:
        return _read_identity(run_dir)
    except StoreBusy:
        raise
    except StoreError:
        return None


def _supervisor(identity: Identity, run_dir: Path) -> Supervisor | None:
    pidfd = _pidfd(identity)
    if pidfd is None:
        return None
    try:
        ours = is_supervisor(identity.pid, run_dir)
    except OSError:
        os.close(pidfd)
        raise
    if not ours:
        os.close(pidfd)
        return None
    return Supervisor(identity.pid, pidfd)


def _pidfd(identity: Identity) -> int | None:
    """A pidfd of this very process, None if it has ended: looked at once more when the number can no longer change.

    Raises OSError where there is no room for it.
    """
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    try:
        lives = alive(identity)
    except OSError:
        os.close(pidfd)
        raise
    if not lives:
        os.close(pidfd)
        return None
    return pidfd


def _read_identity(run_dir: Path) -> Identity | None:
    """None before the supervisor wrote it. It is renamed into place, so half a file is damage: raises StoreError."""
    data = runfolder.read_file(run_dir / IDENTITY)
    if data is None:
        return None
    try:
        fields = json.loads(data)
        identity = Identity(int(fields["pid"]), int(fields["start_time"]), str(fields["boot_id"]))
        if not 0 < identity.pid < 2**31:
            raise ValueError("no process has such a number")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise StoreError(valid_text(f"{run_dir / IDENTITY} is damaged: it does not name a process")) from None
    return identity
