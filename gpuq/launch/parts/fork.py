"""The zygote: a process that holds the supervisors' code and nothing else, and forks one of them for each order.

A new interpreter for each attempt would take 11 ms and 2.7 MB; a fork of this one takes 2 ms and shares what it does
not change. It is exec'd by the daemon, of whose lock, socket and database it has nothing, and ends with it.

Every supervisor is forked twice, so that it becomes the daemon's child, as if that had forked it: the daemon is a
sub-reaper (prctl(2)), and learns from the kernel when and how it ended.
"""

import _ctypes
import _socket
import errno
import gc
import marshal
import posix as os
import sys

from gpuq.launch.parts.files import slurp, to_json
from gpuq.launch.parts.memory import kills_since, oom_kills
from gpuq.launch.parts.processes import read_stat
from gpuq.launch.parts.watch import Limit, Watch
from gpuq.launch.shim import supervise, used, watched

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from typing import NoReturn

#: The descriptor on which orders come, each with two descriptors of its own: the lock, and what to do.
CHANNEL = 0
#: An order begins with its number, in so many bytes; the supervisor's arguments follow. A reply is the number, the
#: supervisor's pid, or 0, and an errno, each in as many bytes.
WORD = 8
#: Longest order: a path has at most 4,096 bytes (PATH_MAX).
LONGEST = 8192
#: The zygote's last argument is so long, for the supervisors' arguments are written over its own.
ROOM = 4608
MSG_CMSG_CLOEXEC = 0x40000000  # bits/socket.h


class Address(_ctypes._SimpleCData):  # type: ignore[type-arg]  # what ctypes.c_void_p is
    _type_ = "P"


class Title:
    """The arguments of this process as others see them, which can be written over (proc(5), `cmdline`)."""

    def __init__(self) -> None:
        fields = slurp("/proc/self/stat").rpartition(b")")[2].split()
        self.start = int(fields[45])  # arg_start is field 48, and these begin with the third
        self.room = int(fields[46]) - self.start

    def write(self, title: bytes) -> None:
        """Other words, and nothing after them. What is too long is cut."""
        data = title[: self.room - 1].ljust(self.room, b"\0")
        _ctypes.call_cdeclfunction(_ctypes._memmove_addr, (Address(self.start), data, len(data)))  # type: ignore[attr-defined]


def main() -> "NoReturn":
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())  # a supervisor takes them once it can
    title = Title()
    title.write(b"gpuq zygote")
    channel = _socket.socket(fileno=os.dup(CHANNEL))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, CHANNEL)
    rehearse()
    gc.collect()
    gc.freeze()  # what is here stays, and is shared as long as nobody writes to it
    while True:
        message, rights, flags, _ = channel.recvmsg(LONGEST, _socket.CMSG_SPACE(2 * 4), MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)  # the daemon is gone
        number = message[:WORD]
        files = [int.from_bytes(rights[0][2][at : at + 4], sys.byteorder) for at in (0, 4)] if rights else []
        if flags & _socket.MSG_CTRUNC or len(files) != 2:
            reply(channel, number, 0, errno.EMFILE)
            continue
        fork_twice(channel, number, title, message[WORD:], files)
        for file in files:
            os.close(file)


def rehearse() -> None:
    """What Python makes when it is first used, codecs and caches of methods, is made here once, and shared."""
    watch = Watch(0, Limit(None, None), 1.0, None)
    watch.until_nothing_is_left()
    to_json({**watched(watch, failed=False), **used(None), "kills": kills_since(oom_kills()), "text": "", "none": None})
    read_stat(os.getpid())


def fork_twice(channel: "_socket.socket", number: bytes, title: Title, words: bytes, files: list[int]) -> None:
    try:
        first = os.fork()
    except OSError as error:
        reply(channel, number, 0, error.errno or 0)
        return
    if first == 0:
        between(channel, number)
        begin(channel, title, words, *files)
    _, status = os.waitpid(first, 0)
    if status != 0:  # killed: the daemon looks what became of the order, if it has not heard of it
        reply(channel, number, 0, 0)


def between(channel: "_socket.socket", number: bytes) -> None:
    """In the first child: fork again and end. Returns in the supervisor, once it is the daemon's child."""
    first = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        reply(channel, number, 0, error.errno or 0)
        os._exit(0)
    if pid:
        reply(channel, number, pid, 0)  # before it can end, so that the daemon knows whose end it is told of
        os._exit(0)
    while os.getppid() == first:
        os.sched_yield()


def reply(channel: "_socket.socket", number: bytes, pid: int, failed: int) -> None:
    try:  # noqa: SIM105 (contextlib would have to be imported)
        channel.send(number + pid.to_bytes(WORD, "little") + failed.to_bytes(WORD, "little"))
    except OSError:
        pass  # the daemon is gone: the next one finds the supervisor by its lock


def begin(channel: "_socket.socket", title: Title, words: bytes, lock: int, orders: int) -> "NoReturn":
    """In the supervisor's process: leave nothing of the zygote, then be the supervisor."""
    title.write(words)
    os.setsid()
    os.dup2(lock, 2)  # what it says when it breaks
    channel.close()
    spec = marshal.loads(slurp(orders))
    os._exit(supervise(spec, lock))  # nothing is left to flush
