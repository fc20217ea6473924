"""The zygote: a process that holds the supervisors' code and nothing else, and forks one of them when it is asked to.

A new interpreter for each would take 11 ms and 2.7 MB; a fork of this one takes 2 ms and shares what it does not
change. It is exec'd by the daemon, of whose lock, socket and database it has nothing, and ends with it.

Every supervisor is forked twice, so that it becomes the daemon's child, as if that had forked it: the daemon is a
sub-reaper (prctl(2)), and learns from the kernel when and how it ended.

A supervisor has a channel of its own to the daemon, on which it gets its orders and tells how the job ended. After a
job that was soon over it takes the next orders: then neither fork nor exit comes between two jobs, nor do the pages
that a fork shares have to be copied again.
"""

import _ctypes
import _socket
import errno
import gc
import marshal
import posix as os
import sys
import time

from gpuq.launch.parts.circumstances import circumstances
from gpuq.launch.parts.files import slurp
from gpuq.launch.parts.processes import read_stat
from gpuq.launch.parts.start import DEFAULT_PATH, become_subreaper
from gpuq.launch.shim import supervise

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from typing import NoReturn

    from gpuq.launch.parts.circumstances import Circumstances
    from gpuq.launch.shim import Spec

#: The descriptor on which the daemon asks for a supervisor, with the end of the channel that this is to have. It says
#: a number, in so many bytes; the reply is that and an errno, 0 if a supervisor was made, which says the rest itself.
CHANNEL = 0
WORD = 8
#: What a supervisor says first in each message: that it is there, with its pid and start time; that it has taken its
#: orders, from when on it can be signalled; that it could not, with an errno; how the job ended, and that it waits for
#: more orders, or that it ends.
READY, TAKEN, REFUSED, REPORT, LAST_REPORT = b"i", b"t", b"f", b"r", b"e"
#: Longest order: a path has at most 4,096 bytes (PATH_MAX). With it come two descriptors, the lock and what to do.
LONGEST = 4352
#: The zygote's last argument is so long, for the supervisors' arguments are written over its own.
ROOM = 4608
MSG_CMSG_CLOEXEC = 0x40000000  # bits/socket.h
ZYGOTE = b"gpuq zygote"
#: What a supervisor without orders is called; `launch.identity` knows it by that.
IDLE = b"gpuq supervisor\0idle"
#: After a job that took longer, in seconds, a supervisor ends: what a fork costs does not matter then.
BRIEF = 1.0
#: The bytecode of a function begins to adapt to what it is used for with its eighth call (PEP 659).
REHEARSALS = 10
#: Where folders are made that no disk has to be waited for.
MEMORY = "/dev/shm"
#: It ends after so many jobs, whatever they did to its memory.
MOST_JOBS = 1000


class Address(_ctypes._SimpleCData):  # type: ignore[type-arg]  # what ctypes.c_void_p is
    _type_ = "P"


class Title:
    """The arguments of this process as others see them, which can be written over (proc(5), `cmdline`)."""

    def __init__(self) -> None:
        fields = slurp("/proc/self/stat").rpartition(b")")[2].split()
        self.start = int(fields[45])  # arg_start is field 48, and these begin with the third
        self.room = int(fields[46]) - self.start
        #: bytes that are not 0
        self.long = self.room

    def write(self, title: bytes) -> None:
        """Other words, and nothing after them. What is too long is cut."""
        data = title[: self.room - 1].ljust(self.long, b"\0")
        self.long = len(title)
        _ctypes.call_cdeclfunction(_ctypes._memmove_addr, (Address(self.start), data, len(data)))  # type: ignore[attr-defined]


def main() -> "NoReturn":
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # a supervisor takes them once it can
    # An inherited SIG_IGN would make the kernel reap the jobs, and their status would be lost (wait(2)).
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    title = Title()
    title.write(ZYGOTE)
    channel = channel_of(os.dup(CHANNEL))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, CHANNEL)
    rehearse(title)
    gc.collect()
    gc.freeze()  # what is here stays, and is shared as long as nobody writes to it
    while True:
        number, files, _ = receive(channel, 1)
        if not number:
            os._exit(0)  # the daemon is gone
        if not files:
            reply(channel, number, errno.EMFILE)
            continue
        fork_twice(channel, number, title, files[0])
        os.close(files[0])


def channel_of(file: int) -> "_socket.socket":
    return _socket.socket(-1, -1, -1, file)


def receive(channel: "_socket.socket", count: int) -> tuple[bytes, list[int], bool]:
    """A message, empty if the other end is gone, and its descriptors: none where not all could be had."""
    while True:
        try:
            message, rights, flags, _ = channel.recvmsg(LONGEST, _socket.CMSG_SPACE(count * 4), MSG_CMSG_CLOEXEC)
            break
        except ConnectionResetError:
            continue  # the other end is gone and had not read everything; what it sent before is still to be read
    data = rights[0][2] if rights else b""
    files = [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data) // 4 * 4, 4)]
    if flags & _socket.MSG_CTRUNC or len(files) != count:
        for file in files:
            os.close(file)
        files = []
    return message, files, bool(files)


def rehearse(title: Title) -> None:
    """What Python makes when it is first used, caches, parsers of arguments and the bytecode that it adapts, is made
    here and shared, not by each supervisor in pages of its own.

    A supervisor's work is done some times over, with a folder in memory (shm_overview(7)) and a program that there is.
    Where there is no such folder, nothing is made before it is used.
    """
    folder = f"{MEMORY}/gpuq-{os.getpid()}-{os.urandom(8).hex()}"
    said = os.dup(2)
    try:
        os.mkdir(folder, 0o700)
        try:
            see_to_nothing(title, folder.encode())
        finally:
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)
    except OSError:
        pass  # it costs memory, and no job
    become_subreaper(0)
    title.write(ZYGOTE)
    os.dup2(said, 2)
    os.close(said)


def see_to_nothing(title: Title, folder: bytes) -> None:
    """REHEARSALS jobs, one after the other, in this process, which is then a sub-reaper and has another `stderr`."""
    spec: Spec = {
        "run_dir": folder,
        "program": marshal.dumps(([b"true"], {b"PATH": b"/proc:" + DEFAULT_PATH})),
        "cwd": b"/",
        "log_path": folder + b"/log",
        "private_log": True,
        "umask": 0o077,
        "limits": [],
        "time_limit": None,
        "grace": 1.0,
        "warn": None,
        "log_limit": None,
        "cgroup": None,
        "ram": None,
    }
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    own = circumstances()
    for _ in range(REHEARSALS):
        wait_for_adoption(0)
        channel = channel_of(os.dup(theirs.fileno()))
        introduce(channel)
        files = os.dup(CHANNEL), os.memfd_create("gpuq-rehearsal")
        os.pwrite(files[1], marshal.dumps(dict(spec)), 0)
        rights = b"".join(file.to_bytes(4, sys.byteorder) for file in files)
        ours.sendmsg([IDLE], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        for file in files:
            os.close(file)
        take_orders(channel, title, own, last=False)
        channel.close()
    ours.close()
    theirs.close()


def is_alone(channel: "_socket.socket") -> bool:
    """Whether the other end of the channel is closed."""
    try:
        return channel.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def fork_twice(channel: "_socket.socket", number: bytes, title: Title, own: int) -> None:
    try:
        first = os.fork()
    except OSError as error:
        reply(channel, number, error.errno or 0)
        return
    if first == 0:
        between(channel, number)
        channel.close()
        serve(channel_of(own), title)
    os.waitpid(first, 0)  # where it was killed, the end of the channel tells of it


def between(channel: "_socket.socket", number: bytes) -> None:
    """In the first child: fork again and end. Returns in the supervisor, once it is the daemon's child."""
    first = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        reply(channel, number, error.errno or 0)
        os._exit(0)
    if pid:
        reply(channel, number, 0)
        os._exit(0)
    wait_for_adoption(first)


def wait_for_adoption(parent: int) -> None:
    while os.getppid() == parent:
        os.sched_yield()


def reply(channel: "_socket.socket", number: bytes, failed: int) -> None:
    say(channel, number + failed.to_bytes(WORD, "little"))


def say(channel: "_socket.socket", message: bytes) -> None:
    try:  # noqa: SIM105 (contextlib would have to be imported)
        channel.send(message)
    except OSError:
        pass  # the daemon is gone: the next one finds what it must know in the run folder


def serve(channel: "_socket.socket", title: Title) -> "NoReturn":
    """In a supervisor's process: leave nothing of the zygote, then see to one job after the other."""
    title.write(IDLE)  # before it leaves the daemon's session, outside of which it would be taken for an orphan
    os.setsid()
    os.dup2(CHANNEL, 2)
    introduce(channel)
    own = circumstances()
    for left in range(MOST_JOBS - 1, -1, -1):
        code = take_orders(channel, title, own, last=left == 0)
        if code is not None:
            os._exit(code)  # nothing is left to flush
    os._exit(0)


def introduce(channel: "_socket.socket") -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    say(channel, READY + stat.pid.to_bytes(WORD, "little") + stat.start_time.to_bytes(WORD, "little"))


def take_orders(channel: "_socket.socket", title: Title, own: "Circumstances", *, last: bool) -> int | None:
    """Wait for them, and see to one job. The exit code if this process is to end then, else None."""
    words, files, whole = receive(channel, 2)
    # Of a daemon that has gone meanwhile no orders are taken: the next one may take this process for the supervisor
    # of the attempt before, by what that wrote down.
    if not words or is_alone(channel):
        return 0  # no more is wanted, or the daemon is gone
    if not whole:
        say(channel, REFUSED + errno.EMFILE.to_bytes(WORD, "little"))
        return 0
    lock, orders = files
    return attend(channel, title, words, lock, orders, own=own, last=last)


def attend(
    channel: "_socket.socket", title: Title, words: bytes, lock: int, orders: int, *, own: "Circumstances", last: bool
) -> int | None:
    """See to one job. The exit code if this process is to see to no other, because what is its `own` has changed."""
    # what was meant for an earlier job, or for nobody; the daemon signals once it knows that the orders were taken
    while _signal.sigtimedwait(_signal.valid_signals(), 0) is not None:
        pass
    say(channel, TAKEN)
    title.write(words)
    os.dup2(lock, 2)  # what it says when it breaks
    began = time.monotonic()
    ended = False

    def tell(report: bytes, *, quiet: bool) -> None:
        nonlocal ended
        ended = last or not quiet or time.monotonic() - began > BRIEF or circumstances() != own
        say(channel, (LAST_REPORT if ended else REPORT) + report)

    code = supervise(marshal.loads(slurp(orders)), lock, tell)
    if code or ended:
        return code
    title.write(IDLE)
    os.dup2(CHANNEL, 2)
    os.close(lock)
    return None
