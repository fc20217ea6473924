"""The zygote: a process that holds the supervisors' code and nothing else, and forks one of them when it is asked to.

A new interpreter for each would take 11 ms and 2.7 MB; a fork of this one takes 2 ms and shares what it does not
change. It is exec'd by the daemon, of whose lock, socket and database it has nothing, and ends with it.

Every supervisor is forked twice, so that it becomes the daemon's child, as if that had forked it: the daemon is a
sub-reaper (prctl(2)), and learns from the kernel when and how it ended.
"""

import _socket
import errno
import gc
import posix as os

from gpuq.launch.parts.rehearse import begin_pools, rehearse
from gpuq.launch.parts.serve import ALL_SIGNALS, WORD, Title, channel_of, receive, say, serve, wait_for_adoption

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from typing import NoReturn

#: The descriptor on which the daemon asks for a supervisor, with the end of the channel that this is to have. It says
#: a number of WORD bytes; the reply is that and an errno, 0 if a supervisor was made, which says the rest itself.
CHANNEL = 0
#: The zygote's last argument is so long, for the supervisors' arguments are written over its own.
ROOM = 4608
ZYGOTE = b"gpuq zygote"


def main() -> "NoReturn":
    _signal.pthread_sigmask(_signal.SIG_BLOCK, ALL_SIGNALS)  # a supervisor takes them once it can
    # An inherited SIG_IGN would make the kernel reap the jobs, and their status would be lost (wait(2)).
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    title = Title()
    title.write(ZYGOTE)
    channel = channel_of(os.dup(CHANNEL))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, CHANNEL)
    rehearse(title)
    title.write(ZYGOTE)
    gc.collect()
    fillers = begin_pools()  # noqa: F841 (kept)
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


def reply(channel: "_socket.socket", number: bytes, failed: int) -> None:
    say(channel, number + failed.to_bytes(WORD, "little"))
