"""The supervisor of one attempt: a process of its own, which outlives the daemon.

It starts the job, holds it to its time limit, ends what the job left behind and writes down how it went. It imports
nothing of gpuq and little else, because each import comes between a submission and the job's first instruction:

* `posix` is what `os` wraps, without the 2 ms of the wrapping;
* `_signal` is what `signal` wraps, without `enum` (8 ms);
* `_ctypes` is what `ctypes` wraps; one call of prctl(2) is not worth the other 4 ms.

All are the same modules of CPython since 3.3 or before. The code arrives compiled, with its orders, on standard
input (see `launcher`); `supervise` is apart from `main` so that a process which is already there can call it.
"""

import _ctypes
import errno
import posix as os
import resource
import time

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from collections.abc import Iterable, Mapping
    from typing import NoReturn, NotRequired, TypedDict

    class Spec(TypedDict):
        """The orders. Durations in seconds."""

        run_dir: bytes
        lock_fd: int
        argv: list[bytes]
        cwd: bytes
        env: dict[bytes, bytes]
        log_path: bytes
        private_log: bool
        umask: int
        limits: list[tuple[int, int]]
        time_limit: float | None
        grace: float
        #: for tests: before or after which step whom to kill, a pid or 0 for ourselves (`gpuq.crash`)
        crash: NotRequired[tuple[str, int]]


PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
#: Where a program is looked for when the job has no PATH, as execvp(3) does.
DEFAULT_PATH = b"/bin:/usr/bin"
#: Between rounds of KILL, in seconds. Exits wake the supervisor; a further round is for what was forked meanwhile.
KILL_ROUND = 0.1
#: Most scans in one round of KILL, so that a job which forks without end does not keep us from reaping it.
MAX_SCANS = 32
#: Most of the dead that are taken at once: those that fork all the time die as fast as they can be taken.
MAX_REAPED = 64
#: Most repairs of a run folder for one file of ours in it.
MAX_REPAIRS = 8
#: Writing fails with these for a while, not for good.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENFILE)
HANDLED = (_signal.SIGCHLD, _signal.SIGTERM)


class StartError(Exception):
    """The job could not be started: at which step, the errno, and a sentence for its owner."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(text)
        self.step, self.number, self.text = step, number, text


def main(spec: "Spec") -> "NoReturn":
    supervise(spec, spec["lock_fd"])
    os._exit(0)  # nothing is left to flush, and taking the interpreter down would cost milliseconds


def supervise(spec: "Spec", lock_fd: int) -> None:
    """Run the attempt to its end. The caller has made this process the leader of a session of its own."""
    os.set_inheritable(lock_fd, False)
    # An inherited SIG_IGN for SIGCHLD would make the kernel reap the job, and its status would be lost (wait(2)).
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    # Blocked signals stay pending: those in HANDLED are taken by sigtimedwait(2), the others never.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)  # drops the orders, and the environment in them
    folder = os.open(spec["run_dir"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    started_at = time.time()
    log = -1
    log_start = 0
    watch: Watch | None = None
    failure: StartError | None = None
    try:
        become_subreaper()
        crash_point(spec, "identity-before")
        write_identity(folder)
        crash_point(spec, "identity-after")
        log = open_log(spec)
        log_start = os.fstat(log).st_size
        started_at = time.time()
        job, complaints = spawn(spec, log, null)
        watch = Watch(job, spec["time_limit"], spec["grace"])
        watch.until_nothing_is_left()
        failure = complaint(complaints)
    except StartError as error:
        failure = error
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = {
        "wait_status": watch.status if watch is not None and failure is None else None,
        "start_failure": None
        if failure is None
        else {"step": failure.step, "errno": failure.number, "text": failure.text},
        "timed_out": watch is not None and watch.timed_out,
        "ended": watch is not None and watch.ended,
        "leftovers": 0 if watch is None else watch.leftovers,
        "log_start": log_start,
        "log_end": log_start if log < 0 else os.fstat(log).st_size,
        "started_at": started_at,
        "ended_at": time.time(),
        "user_seconds": usage.ru_utime,
        "system_seconds": usage.ru_stime,
        "max_rss_bytes": usage.ru_maxrss * 1024,
    }
    crash_point(spec, "result-before")
    write_result(folder, to_json(report).encode("ascii") + b"\n")
    crash_point(spec, "result-after")


def crash_point(spec: "Spec", name: str) -> None:
    """Only tests order it. The daemon is killed only while it is still our parent: its number may be another's."""
    at = spec.get("crash")
    if at is not None and at[0] == name and at[1] in (0, os.getppid()):
        os.kill(at[1] or os.getpid(), _signal.SIGKILL)


# --- before the job -------------------------------------------------------------------------------


def become_subreaper() -> None:
    """Descendants of the job whose parent died become our children, whatever they do (prctl(2))."""
    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None: the interpreter itself, dlopen(3)
    prctl = _ctypes.dlsym(program, "prctl")
    if _ctypes.call_cdeclfunction(prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) != 0:
        raise StartError("identity", 0, "the kernel does not let a supervisor adopt what its job leaves behind")


def write_identity(folder: int) -> None:
    """Before the job starts: without this file, it never did."""
    own = read_stat(os.getpid())
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    assert own is not None
    text = to_json({"pid": os.getpid(), "start_time": own.start_time, "boot_id": boot_id})
    try:
        write_durably(folder, "identity", text.encode("ascii") + b"\n")
    except OSError as error:
        number = error.errno or 0
        raise StartError("identity", number, f"the run folder cannot be written: {os.strerror(number)}") from None


def open_log(spec: "Spec") -> int:
    """A log of our own is private; one that the user named gets the modes that the user's umask allows.

    Not blocking, because opening a FIFO would; without becoming a terminal's session (open(2), O_NOCTTY).
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    path, private = spec["log_path"], spec["private_log"]
    os.umask(0o077 if private else spec["umask"])
    try:
        log = os.open(path, flags, 0o600 if private else 0o666)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        why = {
            errno.ELOOP: "is a symbolic link, which is not followed",
            errno.ENOENT: "is in a folder that does not exist",
            errno.ENXIO: "is a pipe or device that nobody reads",
        }.get(number, f"cannot be opened: {os.strerror(number)}")
        raise StartError("log", number, f"the log {shown(path)} {why}") from None
    os.umask(0o077)
    os.set_blocking(log, True)
    return log


def spawn(spec: "Spec", log: int, null: int) -> tuple[int, int]:
    """The job's pid, and the end of the pipe on which it complains if it cannot become its program."""
    try:
        read_end, write_end = os.pipe()  # closed on exec (PEP 446)
        pid = os.fork()
    except OSError as error:
        number = error.errno or 0
        raise StartError("fork", number, f"no process could be made for the job: {os.strerror(number)}") from None
    if pid == 0:
        try:
            become_job(spec, log, null)
        except StartError as error:
            complain(write_end, error)
        except BaseException as error:  # noqa: BLE001 (a second process must not go on as the supervisor)
            complain(write_end, StartError("fork", 0, f"the job's process broke: {error!r}"))
        finally:
            os._exit(127)
    os.close(write_end)
    # Both sides do it, so that the group exists whoever runs first (setpgid(2)).
    try:  # noqa: SIM105 (contextlib would have to be imported)
        os.setpgid(pid, pid)
    except OSError:
        pass  # it has become its program already, having done it itself
    return pid, read_end


def complain(pipe: int, error: StartError) -> None:
    os.write(pipe, f"{error.step}\0{error.number}\0{error.text}".encode("utf-8", "surrogateescape"))


def complaint(pipe: int) -> StartError | None:
    """What the job's process said instead of becoming its program. It has ended, so this does not block."""
    data = os.read(pipe, 65536)
    os.close(pipe)
    if not data:
        return None
    step, number, text = data.split(b"\0", 2)
    return StartError(step.decode("ascii"), int(number), text.decode("utf-8", "surrogateescape"))


def become_job(spec: "Spec", log: int, null: int) -> "NoReturn":
    """In the forked child: leave nothing of the supervisor, then become the program. Raises StartError."""
    os.setpgid(0, 0)
    for number in _signal.valid_signals():
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
    os.umask(spec["umask"])
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    enter(spec["cwd"])
    for limit, soft in spec["limits"]:
        set_soft_limit(limit, soft)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    execute(spec["argv"], spec["env"])


def enter(cwd: bytes) -> None:
    try:
        os.chdir(cwd)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        why = {
            errno.ENOENT: "is gone",
            errno.ENOTDIR: "is not a folder",
            errno.EACCES: "may not be entered",
        }.get(number, f"cannot be entered: {os.strerror(number)}")
        raise StartError("chdir", number, f"the folder {shown(cwd)} {why}") from None


def set_soft_limit(limit: int, soft: int) -> None:
    """The submitter's soft limit, as far as the hard one allows. One that this kernel does not know is left alone."""
    try:
        hard = resource.getrlimit(limit)[1]
        endless = resource.RLIM_INFINITY
        if hard != endless and (soft == endless or soft > hard):
            soft = hard
        resource.setrlimit(limit, (soft, hard))
    except (OSError, ValueError, OverflowError):
        pass


def execute(argv: list[bytes], env: dict[bytes, bytes]) -> "NoReturn":
    """As execvp(3), except that a script without `#!` is not handed to a shell. Raises StartError."""
    name = argv[0] if argv else b""
    if not name:
        raise StartError("exec", errno.ENOENT, "the command is empty")
    folders = env.get(b"PATH", DEFAULT_PATH).split(b":")
    paths = [name] if b"/" in name else [(folder or b".") + b"/" + name for folder in folders]
    number, culprit = errno.ENOENT, name
    for path in paths:
        try:
            os.execve(path, argv, env)
        except OSError as error:
            found = error.errno or 0
            if found in (errno.ENOENT, errno.ENOTDIR) and not exists(path):
                continue
            number, culprit = found, path
            if found != errno.EACCES:
                break
        except ValueError as error:
            text = f"{shown(name)} cannot be started: {error}"
            raise StartError("exec", errno.EINVAL, text) from None
    raise StartError("exec", number, explain_exec(number, culprit))


def explain_exec(number: int, path: bytes) -> str:
    file = shown(path)
    if number == errno.ENOENT and exists(path):
        return f"the interpreter that the first line of {file} names does not exist"
    if number in (errno.ENOENT, errno.ENOTDIR):
        hint = "; quotes make one word of a command and its arguments" if b" " in path else ""
        return f"no such file: {file}" + ("" if b"/" in path else " (looked in PATH)") + hint
    if number == errno.EACCES and is_folder(path):
        return f"not a program but a folder: {file}"
    if number == errno.EACCES:
        return f"not executable: {file}"
    if number == errno.ENOEXEC:
        return f"not a program: {file} neither begins with #! nor is a binary of this machine"
    if number == errno.E2BIG:
        return f"arguments and environment of {file} are together longer than the kernel allows"
    return f"{file} cannot be started: {os.strerror(number)}"


def exists(path: bytes) -> bool:
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def is_folder(path: bytes) -> bool:
    try:
        return os.stat(path).st_mode & 0o170000 == 0o040000  # S_IFMT, S_IFDIR: inode(7)
    except OSError:
        return False


def shown(path: bytes) -> str:
    return path[:1000].decode("utf-8", "surrogateescape")


# --- while the job runs ---------------------------------------------------------------------------


class Watch:
    """Waits for the job, ends it when it must end, and then whatever it left behind."""

    def __init__(self, main: int, time_limit: float | None, grace: float) -> None:
        self.main = main
        self.grace = grace
        #: raw wait status of the main process once it has ended
        self.status: int | None = None
        self.timed_out = False
        self.ended = False
        self.leftovers = 0
        #: monotonic; None without a limit
        self._limit_at = None if time_limit is None else time.monotonic() + time_limit
        #: when the next round of KILL is due; None while nothing is being ended
        self._kill_at: float | None = None
        self._swept = False
        #: the last look did not take all of the dead, and the signal that tells of them may have been taken
        self._more_dead = False

    def until_nothing_is_left(self) -> None:
        while self._reap():
            now = time.monotonic()
            if self.status is not None:
                self._sweep(now)
            elif self._kill_at is None and self._limit_at is not None and now >= self._limit_at:
                self.timed_out = True
                self._end_group(now)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill()
                self._kill_at = now + KILL_ROUND
            self._sleep(now)

    def _reap(self) -> bool:
        """Whether any process of the job is left; a sub-reaper's descendants become its children in the end."""
        for _ in range(MAX_REAPED):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                self._more_dead = False
                return True
            if pid == self.main:
                self.status = status
        self._more_dead = True
        return True

    def _sleep(self, now: float) -> None:
        """Until a child ends, somebody asks for the end, or the time has come for something."""
        due = now if self._more_dead else self._kill_at
        if due is None and self.status is None:
            due = self._limit_at
        if due is None:
            info = _signal.sigwaitinfo(HANDLED)
        else:
            taken = _signal.sigtimedwait(HANDLED, max(0.0, due - now))
            if taken is None:
                return
            info = taken
        # Asking twice does not give the job its grace period twice.
        if info.si_signo == _signal.SIGTERM and self.status is None and self._kill_at is None:
            self.ended = True
            self._end_group(time.monotonic())

    def _end_group(self, now: float) -> None:
        """TERM, and CONT so that a stopped process gets to see it. The main process is not reaped: the number holds."""
        self._kill_at = now + self.grace
        signal_group(self.main, (_signal.SIGTERM, _signal.SIGCONT))

    def _sweep(self, now: float) -> None:
        """The main process has ended: ask the rest to. Those in a group that was asked already are not asked again."""
        if self._swept:
            return
        self._swept = True
        left = [stat for stat in descendants() if not stat.gone]
        self.leftovers = len(left)
        asked = self._kill_at is not None
        signal_each(
            (stat for stat in left if not (asked and stat.group == self.main)),
            (_signal.SIGTERM, _signal.SIGCONT),
        )
        if self._kill_at is None:
            self._kill_at = now + self.grace

    def _kill(self) -> None:
        """KILL to all that is left, and at once to what was forked between looking and killing."""
        known: set[tuple[int, int]] = set()
        for _ in range(MAX_SCANS):
            left = descendants()
            found = {(stat.pid, stat.start_time) for stat in left if not stat.gone}
            if found <= known:
                return
            known |= found
            kill_all(left)
            for _ in range(MAX_SCANS):
                if not self._reap():  # the dead would make the next look slower
                    return
                kill_children()


class Stat:
    """Fields of /proc/PID/stat, as proc(5) numbers them. `launch.identity` has the same for those who may import it."""

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.start_time = int(fields[19])
        #: a zombie; a leader that left its threads behind shows the same state, with a thread count above one
        self.gone = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def read_stat(pid: int) -> Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Stat(pid, fields) if len(fields) >= 20 else None


def descendants() -> list[Stat]:
    """Every process below this one, zombies included."""
    children: dict[int, list[Stat]] = {}
    for name in os.listdir("/proc"):
        stat = read_stat(int(name)) if name.isdigit() else None
        if stat is not None:
            children.setdefault(stat.parent, []).append(stat)
    found: list[Stat] = []
    pending = children.pop(os.getpid(), [])
    while pending:
        stat = pending.pop()
        found.append(stat)
        pending.extend(children.pop(stat.pid, ()))
    return found


def kill_all(left: list[Stat]) -> None:
    """KILL by process group, because a fork escapes a scan but not a signal to its group (fork(2) starts again then).

    Groups do not span sessions (setpgid(2)), and every session of a descendant is ours or was made below us. So a
    group with a descendant in it, zombies included, holds descendants only, unless it is our own.
    """
    own = os.getpgrp()
    # the newest first, because they are those that may be gone in a moment
    for group in sorted({stat.group for stat in left if stat.group not in (own, 0)}, reverse=True):
        signal_group(group, (_signal.SIGKILL,))
    signal_each((stat for stat in left if stat.group == own and not stat.gone), (_signal.SIGKILL,))


def kill_children() -> None:
    """KILL to our children and their groups: a look that costs a hundredth of one at all of /proc.

    It catches what forks and leaves its group all the time, for an orphan is our child at once. A child that was not
    waited for keeps its number. Without the file (a kernel without CONFIG_PROC_CHILDREN) looking at all must do.
    """
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            children = [int(word) for word in file.read().split()]
        own = os.getpgrp()
        for pid in reversed(children):
            os.kill(pid, _signal.SIGKILL)
            group = os.getpgid(pid)
            if group != own:
                signal_group(group, (_signal.SIGKILL,))
    except OSError:
        pass  # no such file, or a set-user-id program


def signal_each(processes: "Iterable[Stat]", signals: tuple[int, ...]) -> None:
    """Through a pidfd, looked at once more after it is open: the number may be somebody else's by now."""
    for stat in processes:
        try:
            pidfd = os.pidfd_open(stat.pid)
        except OSError:
            continue  # gone
        try:
            again = read_stat(stat.pid)
            if again is not None and again.start_time == stat.start_time:
                for number in signals:
                    _signal.pidfd_send_signal(pidfd, number)
        except OSError:
            pass  # gone, or no longer ours to signal (a set-user-id program); the next round tries again
        finally:
            os.close(pidfd)


def signal_group(group: int, signals: tuple[int, ...]) -> None:
    try:
        for number in signals:
            os.killpg(group, number)
    except OSError:
        pass  # no process is left in it, or none that may be signalled


# --- files ----------------------------------------------------------------------------------------


def write_durably(folder: int, name: str, data: bytes) -> None:
    """The whole file or none, also after a power cut, in spite of what the job did to the folder. Raises OSError."""
    for _ in range(MAX_REPAIRS):
        try:
            write_once(folder, name, data)
            return
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                os.fchmod(folder, 0o700)
            elif error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                # A folder stands where the file belongs: it is kept, under another name.
                os.rename(name, f"{name}.{random_name()}.moved", src_dir_fd=folder, dst_dir_fd=folder)
            else:
                raise
    write_once(folder, name, data)


def write_once(folder: int, name: str, data: bytes) -> None:
    """By a temporary name that nobody can have taken before, fsync and rename(2). Raises OSError."""
    temporary = f"{name}.{random_name()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        try:
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def random_name() -> str:
    return os.urandom(8).hex()


def write_result(folder: int, data: bytes) -> None:
    """A full disk is waited out: the result exists nowhere else. The kernel tells nobody when there is room again."""
    while True:
        try:
            write_durably(folder, "result", data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            time.sleep(1.0)
        else:
            return


def to_json(value: "Mapping[str, object] | object") -> str:
    """For the few types that occur here. Text is escaped to ASCII; a lone surrogate stays one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{to_json(key)}:{to_json(item)}" for key, item in value.items()) + "}"
    text = str(value).encode("utf-16-be", "surrogatepass")
    units = [int.from_bytes(text[i : i + 2], "big") for i in range(0, len(text), 2)]
    return '"' + "".join(chr(u) if 32 <= u < 127 and u not in (34, 92) else f"\\u{u:04x}" for u in units) + '"'
