"""Before the job runs: who the supervisor is, the log, and the process that becomes the job's program."""

import _ctypes
import errno
import marshal
import posix as os
import resource

from gpuq.launch.parts.files import slurp, to_json, write_durably
from gpuq.launch.parts.keeper import Keeper
from gpuq.launch.parts.leaf import Leaf
from gpuq.launch.parts.memory import offer_first, take_back
from gpuq.launch.parts.processes import read_stat

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    from gpuq.launch.shim import Spec

    #: each with its soft and its hard value
    Limits = list[tuple[int, tuple[int, int]]]

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
#: None: looked for in the interpreter itself, dlopen(3).
PRCTL = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
#: The supervisor's own standard input.
NULL = 0
#: What a program would inherit as ignored, as Python ignores SIGPIPE; handlers it loses (execve(2)).
IGNORED = [number for number in _signal.valid_signals() if _signal.getsignal(number) == _signal.SIG_IGN]
#: Where a program is looked for when the job has no PATH, as execvp(3) does.
DEFAULT_PATH = b"/bin:/usr/bin"


class StartError(Exception):
    """The job could not be started: at which step, the errno, and a sentence for its owner."""

    def __init__(self, step: str, number: int, text: str) -> None:
        super().__init__(text)
        self.step, self.number, self.text = step, number, text


def become_subreaper(wanted: int = 1) -> None:
    """Descendants of the job whose parent died become our children, whatever they do (prctl(2)); with 0 no longer."""
    if _ctypes.call_cdeclfunction(PRCTL, (PR_SET_CHILD_SUBREAPER, wanted, 0, 0, 0)) != 0:
        raise StartError("identity", 0, "the kernel does not let a supervisor adopt what its job leaves behind")


def leaf_of(spec: "Spec") -> Leaf | None:
    """The attempt's cgroup, if it is to have one and it could be made."""
    path = spec["cgroup"]
    if path is None:
        return None
    leaf = Leaf(path)
    if not leaf.make():
        return None
    if spec["ram"] is not None:
        leaf.limit(spec["ram"])
    return leaf


def write_identity(folder: int, leaf: Leaf | None) -> None:
    """Before the job starts: without this file, it never did."""
    own = read_stat(os.getpid())
    assert own is not None
    boot_id = slurp("/proc/sys/kernel/random/boot_id").strip()
    identity = {"pid": os.getpid(), "start_time": own.start_time, "boot_id": boot_id.decode("utf-8")}
    if leaf is not None:
        identity["cgroup"] = leaf.path.decode("utf-8", "surrogateescape")
    text = to_json(identity)
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


def keeper_of(spec: "Spec", log: int) -> Keeper | None:
    """Who keeps the log within its limit, at work already: a thread is to be had before the job runs or not at all."""
    limit = spec["log_limit"]
    if limit is None or os.fstat(log).st_mode & 0o170000 != 0o100000:  # S_IFMT, S_IFREG: inode(7)
        return None
    try:
        keeper = Keeper(log, limit)
        keeper.start()
    except RuntimeError:
        raise StartError("fork", errno.EAGAIN, "no thread could be made for the job's log") from None
    except OSError as error:
        number = error.errno or 0
        text = f"the log {shown(spec['log_path'])} cannot be kept within a limit: {os.strerror(number)}"
        raise StartError("log", number, text) from None
    return keeper


def start(spec: "Spec", log: int, leaf: Leaf | None) -> tuple[int, int]:
    """The job's pid, and the end of the pipe on which its process complains if it cannot become its program, or -1.

    Raises StartError.
    """
    limits = limits_to_set(spec["limits"])
    if leaf is None and not limits:
        return spawn(spec, log), -1
    return fork(spec, log, leaf, limits)


def spawn(spec: "Spec", log: int) -> int:
    """Start the program without a copy of this process in between: half of what a start costs (posix_spawn(3)).

    What posix_spawn cannot do in the job's process is done in this one, and taken back.
    """
    argv, env = marshal.loads(spec["program"])
    into = [(os.POSIX_SPAWN_DUP2, NULL, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]

    def execute(path: bytes) -> int:
        return os.posix_spawn(path, argv, env, file_actions=into, setpgroup=0, setsigmask=(), setsigdef=IGNORED)

    enter(spec["cwd"])
    own_umask = os.umask(spec["umask"])
    offered = offer_first()
    try:
        return find_program(argv, env, execute)
    finally:
        take_back(offered)
        os.umask(own_umask)
        os.chdir(b"/")  # so that nobody's folder is held


def fork(spec: "Spec", log: int, leaf: Leaf | None, limits: "Limits") -> tuple[int, int]:
    """Start the program in a process that has first entered the cgroup and set its limits."""
    try:
        read_end, write_end = os.pipe()  # closed on exec (PEP 446)
        pid = os.fork()
    except OSError as error:
        raise no_process(error) from None
    if pid == 0:
        try:
            become_job(spec, log, leaf, limits)
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


def no_process(error: OSError) -> StartError:
    number = error.errno or 0
    return StartError("fork", number, f"no process could be made for the job: {os.strerror(number)}")


def complain(pipe: int, error: StartError) -> None:
    os.write(pipe, f"{error.step}\0{error.number}\0{error.text}".encode("utf-8", "surrogateescape"))


def complaint(pipe: int) -> StartError | None:
    """What the job's process said instead of becoming its program. It has ended, so this does not block."""
    if pipe < 0:
        return None
    data = os.read(pipe, 65536)
    os.close(pipe)
    if not data:
        return None
    step, number, text = data.split(b"\0", 2)
    return StartError(step.decode("ascii"), int(number), text.decode("utf-8", "surrogateescape"))


def become_job(spec: "Spec", log: int, leaf: Leaf | None, limits: "Limits") -> "NoReturn":
    """In the forked child: leave nothing of the supervisor, then become the program. Raises StartError."""
    os.setpgid(0, 0)
    if leaf is not None:
        leaf.enter()
    offer_first()
    for number in IGNORED:
        _signal.signal(number, _signal.SIG_DFL)
    os.umask(spec["umask"])
    os.dup2(NULL, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    enter(spec["cwd"])
    for limit, values in limits:
        set_limit(limit, values)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    argv, env = marshal.loads(spec["program"])

    def execute(path: bytes) -> "NoReturn":
        os.execve(path, argv, env)

    find_program(argv, env, execute)
    raise AssertionError  # a program that was executed does not come back


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


def limits_to_set(wanted: list[tuple[int, int]]) -> "Limits":
    """The submitter's soft limits that are not ours already, as far as the hard ones allow, with these."""
    endless = resource.RLIM_INFINITY
    found = []
    for limit, soft in wanted:
        try:
            own, hard = resource.getrlimit(limit)
        except (OSError, ValueError, OverflowError):
            continue  # this kernel does not know it
        if hard != endless and (soft == endless or soft > hard):
            soft = hard
        if soft != own:
            found.append((limit, (soft, hard)))
    return found


def set_limit(limit: int, values: tuple[int, int]) -> None:
    try:  # noqa: SIM105 (contextlib would have to be imported)
        resource.setrlimit(limit, values)
    except (OSError, ValueError, OverflowError):
        pass


def find_program(argv: list[bytes], env: dict[bytes, bytes], execute: "Callable[[bytes], int]") -> int:
    """Execute the program, looked for as execvp(3) does, except that a script without `#!` is not handed to a shell.

    What `execute` returns, if it does. Raises StartError.
    """
    name = argv[0] if argv else b""
    if not name:
        raise StartError("exec", errno.ENOENT, "the command is empty")
    folders = env.get(b"PATH", DEFAULT_PATH).split(b":")
    paths = [name] if b"/" in name else [(folder or b".") + b"/" + name for folder in folders]
    number, culprit = errno.ENOENT, name
    for path in paths:
        if path is not paths[-1] and not exists(path):
            continue
        try:
            return execute(path)
        except OSError as error:
            found = error.errno or 0
            if found in (errno.ENOENT, errno.ENOTDIR) and not exists(path):
                continue
            if found in (errno.EAGAIN, errno.ENOMEM):
                raise no_process(error) from None
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
