"""Starts supervisors (`shim.py`), and tells them what their jobs are to do.

The lock in an attempt's run folder is the truth about it. It is taken before the supervisor starts, inherited by it
through flock(2)'s open file description, and so held until the supervisor ends, whatever becomes of the daemon.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import marshal
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuq import crash
from gpuq.errors import HostBusy, LaunchError
from gpuq.launch import keptlog, shim
from gpuq.launch.identity import MARKER, boot_id, read_stat
from gpuq.launch.parts import circumstances, files, fork, keeper, leaf, memory, processes, rehearse, serve, watch
from gpuq.launch.parts import start as start_of_job
from gpuq.launch.runfolder import LOCK, launch_failure, valid_text
from gpuq.launch.supervisors import SPARE, Began, Key, News, NotBegun, Supervisor, Supervisors
from gpuq.launch.zygote import Zygote
from gpuq.model import Identity

#: What the zygote is made of, each part after those that it imports.
_PARTS = (
    files,
    memory,
    circumstances,
    processes,
    leaf,
    keptlog,
    keeper,
    start_of_job,
    watch,
    shim,
    serve,
    rehearse,
    fork,
)
#: The exit code of a supervisor that began nothing, because nothing could be written down.
DISK_FULL = shim.DISK_FULL
#: Files that a start has open for a moment (lock, orders, the other end of a channel, one in the run folder), and one
#: for a client.
_FILES_AT_START = 5
#: Where fewer than so many could be opened, no supervisor is kept ready.
_FILES_FOR_SPARE = 24
#: Most starts that are under way at a time: two processors are busy with fewer.
_AT_ONCE = 32


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


class Launcher:
    """Starts attempts. `fileno` is readable when `news` has something to tell.

    Not for several threads. Close it with `close`; what was started runs on.
    """

    def __init__(self, spare: int = SPARE) -> None:
        """At most `spare` supervisors are kept ready; with 0 each sees to one attempt."""
        self._supervisors = Supervisors(Zygote(_PARTS), spare, _explain)
        #: the run folders of attempts that were ordered and have not begun yet
        self._ordered: dict[Key, Path] = {}
        self.fileno = self._supervisors.fileno
        self.watch = self._supervisors.watch
        self.pids = self._supervisors.pids
        self.close = self._supervisors.close

    @property
    def zygote(self) -> int | None:
        """The pid of what supervisors are forked from, a child of ours; None while there is none."""
        return self._supervisors.zygote.pid

    def begin(self) -> None:
        """Have everything ready for the first start. Raises LaunchError."""
        try:
            self._supervisors.begin()
        except OSError as error:
            raise launch_failure(_explain(error), error) from None
        self.settle()

    def room(self, wanted: int) -> int:
        """How many of so many starts there is room for now; `news` tells when there may be more.

        Raises HostBusy where the files that a start needs could not be opened: then nothing is claimed.
        """
        most = min(wanted, _AT_ONCE - self._supervisors.under_way)
        if most <= 0:
            return 0
        free = _free_files(_FILES_AT_START + self._supervisors.files_of(most)) - _FILES_AT_START
        while free < self._supervisors.files_of(most):
            most -= 1
            if most == 0:
                error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                raise launch_failure(_explain(error), error)
        return most

    def settle(self) -> None:
        """When all that can start has been started: let go what is too much, and have the next start made ready."""
        self._supervisors.let_go()
        if self._supervisors.lacks_spare and _free_files(_FILES_FOR_SPARE) == _FILES_FOR_SPARE:
            self._supervisors.make_ready()

    def start(self, launch: Launch) -> None:
        """Have the attempt's supervisor told what to do. An attempt's run folder is started in once only.

        `news` tells later what became of it. Raises LaunchError, with nothing running; HostBusy where the same may
        succeed later, in the same folder.
        """
        try:
            lock = _take_lock(launch.run_dir)
        except FileExistsError:
            raise LaunchError(valid_text(f"an attempt was already started in {launch.run_dir}")) from None
        except OSError as error:
            text = f"the run folder {launch.run_dir} cannot be made: {error.strerror}"
            raise launch_failure(text, error) from None
        try:
            self._order(launch, lock)
        except UnicodeEncodeError as error:
            (launch.run_dir / LOCK).unlink()
            raise LaunchError(
                f"the command or its environment holds text that no program can be given: {error.reason}"
            ) from None
        except ConnectionError:
            (launch.run_dir / LOCK).unlink()
            raise HostBusy("the process that supervisors are forked from has just ended") from None
        except OSError as error:
            (launch.run_dir / LOCK).unlink()
            raise launch_failure(_explain(error), error) from None
        finally:
            os.close(lock)
        self._ordered[launch.job_id, launch.attempt] = launch.run_dir

    def _order(self, launch: Launch, lock: int) -> None:
        orders = _orders(launch)
        try:
            # By the folder an attempt's supervisor is found even if the job removed all files, see `find_supervisor`.
            words = [MARKER, b"job=%d" % launch.job_id, b"attempt=%d" % launch.attempt, os.fsencode(launch.run_dir)]
            self._supervisors.order((launch.job_id, launch.attempt), b"\0".join(words), lock, orders)
        finally:
            os.close(orders)

    def news(self) -> list[News]:
        """What happened since the last call."""
        found = self._supervisors.news()
        for one in found:
            if not isinstance(one, Began | NotBegun):
                continue
            run_dir = self._ordered.pop(one.key)
            if isinstance(one, NotBegun) and one.failure is not None:
                (run_dir / LOCK).unlink(missing_ok=True)
        return found


def _free_files(most: int) -> int:
    """How many files more could be opened now, up to so many."""
    held: list[int] = []
    try:
        for _ in range(most):
            held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        pass
    finally:
        for file in held:
            os.close(file)
    return len(held)


def _take_lock(run_dir: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    path = f"{run_dir}/{LOCK}"
    try:
        lock = os.open(path, flags, 0o600)
    except FileNotFoundError:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.unlink(path)
        os.close(lock)
        raise
    return lock


#: Most names and values of one environment are in the next one, too.
_encoded = functools.lru_cache(maxsize=1024)(os.fsencode)


def _orders(launch: Launch) -> int:
    """What to do, in a file that has no name, so that no environment value touches a disk (memfd_create(2))."""
    spec: shim.Spec = {
        "run_dir": os.fsencode(launch.run_dir),
        "program": marshal.dumps(
            (
                [os.fsencode(word) for word in launch.argv],
                {_encoded(name): _encoded(value) for name, value in launch.env.items()},
            )
        ),
        "cwd": os.fsencode(launch.cwd),
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
    data = memoryview(marshal.dumps(dict(spec)))
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


def how_ended(status: int | None, identity: Identity) -> str | None:
    """What a supervisor's own end, as `Died` tells it, or its boot, says of an attempt that has no result."""
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
    supervisor.signal(signal.SIGTERM)
    supervisor.signal(signal.SIGCONT)  # its job may have stopped it


def suspend(supervisor: Supervisor) -> None:
    """Stop every process of the job, and its time limit's clock. Asking again changes nothing."""
    stat = read_stat(supervisor.pid)
    if stat is not None and stat.state == "T":  # by its job: CONT later would take the request back
        supervisor.signal(signal.SIGCONT)
    supervisor.signal(watch.SUSPEND)


def resume(supervisor: Supervisor) -> None:
    """Let a suspended job go on. Asking again, or of one that runs, changes nothing."""
    supervisor.signal(watch.RESUME)
