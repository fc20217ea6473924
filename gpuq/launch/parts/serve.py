"""A supervisor's end of its channel to the daemon: on it come orders, and it tells how the job ended.

After a job that was soon over it takes the next orders: then neither fork nor exit comes between two jobs, nor do the
pages that a fork shares have to be copied again.
"""

import _ctypes
import _socket
import errno
import marshal
import posix as os
import time

from gpuq.launch.parts.circumstances import circumstances
from gpuq.launch.parts.files import slurp
from gpuq.launch.parts.processes import read_stat
from gpuq.launch.shim import supervise

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from typing import NoReturn

    from gpuq.launch.parts.circumstances import Circumstances

#: What stands for no file, and is a supervisor's standard input.
NULL = 0
#: Bytes of a number in a message.
WORD = 8
#: What a supervisor says first in each message: that it is there, with its pid and start time; that it has taken its
#: orders, from when on it can be signalled; that it could not, with an errno; how the job ended, and that it waits for
#: more orders, or that it ends.
READY, TAKEN, REFUSED, REPORT, LAST_REPORT = b"i", b"t", b"f", b"r", b"e"
#: Longest order: a path has at most 4,096 bytes (PATH_MAX). With it come two descriptors, the lock and what to do.
LONGEST = 4352
ALL_SIGNALS = _signal.valid_signals()
MSG_CMSG_CLOEXEC = 0x40000000  # bits/socket.h
#: What a supervisor without orders is called; `launch.identity` knows it by that.
IDLE = b"gpuq supervisor\0idle"
#: After a job that took longer, in seconds, a supervisor ends: what a fork costs does not matter then.
BRIEF = 1.0
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
    files = memoryview(data[: len(data) // 4 * 4]).cast("i").tolist()
    if flags & _socket.MSG_CTRUNC or len(files) != count:
        for file in files:
            os.close(file)
        files = []
    return message, files, bool(files)


def is_alone(channel: "_socket.socket") -> bool:
    """Whether the other end of the channel is closed."""
    try:
        return channel.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def say(channel: "_socket.socket", message: bytes) -> None:
    try:  # noqa: SIM105 (contextlib would have to be imported)
        channel.send(message)
    except OSError:
        pass  # the daemon is gone: the next one finds what it must know in the run folder


def wait_for_adoption(parent: int) -> None:
    while os.getppid() == parent:
        os.sched_yield()


def serve(channel: "_socket.socket", title: Title) -> "NoReturn":
    """In a supervisor's process: leave nothing of the zygote, then see to one job after the other."""
    title.write(IDLE)  # before it leaves the daemon's session, outside of which it would be taken for an orphan
    os.setsid()
    os.dup2(NULL, 2)
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
    while _signal.sigtimedwait(ALL_SIGNALS, 0) is not None:
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
    os.dup2(NULL, 2)
    os.close(lock)
    return None
