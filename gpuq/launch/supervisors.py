"""The daemon's supervisors: each a child with a channel of its own, on which it gets orders and tells what happens.

`parts/serve.py` is the other end. One that is done with a job that was soon over waits for the next orders, and one
more than that is always ready, so that a start does not wait for a fork.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from gpuq.errors import LaunchError
from gpuq.launch.identity import read_stat
from gpuq.launch.parts.serve import LONGEST, READY, REFUSED, REPORT, TAKEN, WORD
from gpuq.launch.runfolder import MAX_FILE, launch_failure
from gpuq.launch.zygote import Zygote

log = logging.getLogger("gpuq.supervisors")

#: Most that wait for orders while nothing else is to be started.
SPARE = 2

#: Its channel, both ends, what it says, and its code.
_FILES_OF_ZYGOTE = 4

#: (job id, number of the attempt)
Key = tuple[int, int]


@dataclass(slots=True)
class Supervisor:
    """A supervisor that runs, until it is waited for."""

    pid: int
    #: readable once it has ended; -1 once it was waited for, because the number may be another file's then
    pidfd: int
    #: clock ticks since boot
    start_time: int

    def signal(self, number: int) -> None:
        """Send it a signal; nothing to one that has ended."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


@dataclass(frozen=True, slots=True)
class Began:
    """It has its orders; from now on it can be asked to do things."""

    key: Key
    supervisor: Supervisor


@dataclass(frozen=True, slots=True)
class NotBegun:
    """No supervisor sees to the attempt."""

    key: Key
    #: HostBusy where the same may succeed later, in the same folder; None where only the run folder tells what happened
    failure: LaunchError | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """The attempt is over and nothing of it is left: this is what the result will say once it is on the disk."""

    key: Key
    report: bytes


@dataclass(frozen=True, slots=True)
class Died:
    """A supervisor has ended without having said how its attempt did."""

    key: Key
    #: exit code, or the number of the signal that ended it as a negative number; None for an earlier daemon's child
    status: int | None


@dataclass(frozen=True, slots=True)
class ZygoteEnded:
    """What supervisors are forked from has ended. The next start makes another one."""


News = ZygoteEnded | Began | NotBegun | Reported | Died


class _Seat:
    """One supervisor, from the wish for it to its end."""

    def __init__(self, channel: socket.socket | None) -> None:
        #: None once it has ended or is to end, and for an earlier daemon's
        self.channel = channel
        self.process: Supervisor | None = None
        #: what it was told to see to
        self.key: Key | None = None
        self.taken = False


class Supervisors:
    """Not for several threads. `fileno` is readable when `news` has something to tell. Close it with `close`."""

    def __init__(self, zygote: Zygote, spare: int, explain: Callable[[OSError], str]) -> None:
        self.zygote = zygote
        self._spare = spare
        self._explain = explain
        self._poll = select.epoll()
        #: by each of its descriptors
        self._seats: dict[int, _Seat] = {}
        #: those that wait for orders, the one that has waited longest first
        self._idle: deque[_Seat] = deque()
        #: by the number of the wish, those of which the zygote has not said yet whether they could be made
        self._wished: dict[int, _Seat] = {}
        self._zygote_heard: int | None = None
        #: how many have orders that they have not taken yet
        self.under_way = 0

    def fileno(self) -> int:
        return self._poll.fileno()

    def begin(self) -> None:
        """Have everything ready for the first start. Raises OSError."""
        self.zygote.begin()
        self._hear_zygote()

    def pids(self) -> set[int]:
        """Those of all that are waited for here, and of what they are forked from."""
        found = {seat.process.pid for seat in self._seats.values() if seat.process is not None}
        return found if self.zygote.pid is None else found | {self.zygote.pid}

    # --- orders -----------------------------------------------------------------------------------

    def order(self, key: Key, words: bytes, lock: int, orders: int) -> None:
        """Give a supervisor orders; `news` says whether it took them. Raises OSError."""
        if len(words) > LONGEST:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [lock, orders]))]
        while True:
            seat = self._idle.popleft() if self._idle else self._wish()
            assert seat.channel is not None
            try:
                seat.channel.sendmsg([words], rights)
                break
            except (BrokenPipeError, ConnectionResetError):
                self._close_channel(seat)  # it has ended, and is still to be taken note of
        seat.key, seat.taken = key, False
        self.under_way += 1

    def _wish(self) -> _Seat:
        """Ask for another one. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        seat = _Seat(ours)
        try:
            self.zygote.begin()
            self._hear_zygote()
            number = self.zygote.fork(theirs.fileno())
            self._poll.register(ours.fileno(), select.EPOLLIN)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._seats[ours.fileno()] = self._wished[number] = seat
        return seat

    def _hear_zygote(self) -> None:
        channel = self.zygote.channel
        if channel is not None and channel != self._zygote_heard:
            self._poll.register(channel, select.EPOLLIN)
            self._zygote_heard = channel

    def files_of(self, starts: int) -> int:
        """How many files so many starts would have open as long as their supervisors live, and what lives already
        would yet open: a channel and a pidfd each, and what a new zygote takes."""
        unknown = sum(seat.process is None for seat in self._seats.values())
        return unknown + 2 * max(0, starts - len(self._idle)) + (0 if self.zygote.pid else _FILES_OF_ZYGOTE)

    def let_go(self) -> None:
        """Let those end that wait for orders and are too many."""
        while len(self._idle) > self._spare:
            self._close_channel(self._idle[0])  # it ends when it finds that nobody will give it orders any more

    @property
    def lacks_spare(self) -> bool:
        """Whether a start would have to wait for a fork, and need not."""
        return bool(self._spare) and not self._idle

    def make_ready(self) -> None:
        """Have one made that waits for orders."""
        with suppress(OSError):  # it is tried again when one is needed, and said then why it fails
            self._idle.append(self._wish())

    def watch(self, key: Key, supervisor: Supervisor) -> None:
        """Take over what an earlier daemon started; `Died` tells of its end."""
        seat = _Seat(None)
        seat.key, seat.taken, seat.process = key, True, supervisor
        self._seats[supervisor.pidfd] = seat
        self._poll.register(supervisor.pidfd, select.EPOLLIN)

    def close(self) -> None:
        """Start nothing more. What has its orders goes on."""
        for seat in list(self._seats.values()):
            self._close_channel(seat)
        self.zygote.close()
        self._poll.close()

    # --- news -------------------------------------------------------------------------------------

    def news(self) -> list[News]:
        """What happened since the last call."""
        found: list[News] = []
        ready = [(fd, self._seats.get(fd)) for fd, _ in self._poll.poll(0)]
        for fd, seat in ready:
            if fd == self._zygote_heard:
                found += self._of_zygote()
            elif seat is not None and self._seats.get(fd) is seat:  # no other's, of a number that was free meanwhile
                found += self._of(seat)
                if seat.process is not None and fd == seat.process.pidfd:
                    found += self._ended(seat, seat.process)
        return found

    def _of_zygote(self) -> Iterator[News]:
        for number, failed in self.zygote.replies():
            seat = self._wished.pop(number, None)
            if seat is not None and failed:
                error = OSError(failed, os.strerror(failed))
                yield from self._lost(seat, launch_failure(self._explain(error), error))
        if self.zygote.channel is None:  # it is closed, and with it our interest in it (epoll(7))
            self._zygote_heard = None
            self._wished.clear()  # of those that were not forked the end of their channel tells
            yield ZygoteEnded()

    def _of(self, seat: _Seat) -> Iterator[News]:
        """What a supervisor has said."""
        while seat.channel is not None:
            try:
                said = seat.channel.recv(1 + MAX_FILE)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it left orders unread (unix(7))
                said = b""
            if not said:
                if seat.process is None:  # it was never there, or ended before it said so
                    yield from self._lost(seat, None)
                self._close_channel(seat)
            elif said[:1] == READY:
                yield from self._ready(seat, said)
            elif said[:1] == TAKEN:
                yield from self._taken(seat)
            elif said[:1] == REFUSED:
                number = int.from_bytes(said[1:], "little")
                yield from self._refused(seat, OSError(number, os.strerror(number)))
            else:
                yield from self._reported(seat, said)

    def _ready(self, seat: _Seat, said: bytes) -> Iterator[News]:
        pid, start_time = (int.from_bytes(said[at : at + WORD], "little") for at in (1, 1 + WORD))
        try:
            pidfd = _pidfd_of(pid, start_time)
        except OSError as error:
            log.error("supervisor %d cannot be watched and is ended: %s", pid, error)
            _end_child(pid)
            pidfd = None
        if pidfd is None:
            yield from self._lost(seat, None)
            return
        seat.process = Supervisor(pid, pidfd, start_time)
        self._seats[pidfd] = seat
        self._poll.register(pidfd, select.EPOLLIN)

    def _taken(self, seat: _Seat) -> Iterator[News]:
        if seat.key is not None and seat.process is not None:
            self._under_way_no_more(seat)
            yield Began(seat.key, seat.process)

    def _refused(self, seat: _Seat, error: OSError) -> Iterator[News]:
        if seat.key is not None:
            self._under_way_no_more(seat)
            yield NotBegun(seat.key, launch_failure(self._explain(error), error))
            seat.key = None
        self._close_channel(seat)  # another one may have what this one lacks

    def _reported(self, seat: _Seat, said: bytes) -> Iterator[News]:
        if seat.key is None:
            return
        key, seat.key = seat.key, None
        yield Reported(key, said[1:])
        if said[:1] == REPORT:
            self._idle.append(seat)
        else:
            self._close_channel(seat)

    def _ended(self, seat: _Seat, process: Supervisor) -> Iterator[News]:
        """Its pidfd is readable: it is waited for, and forgotten."""
        self._close_channel(seat)
        del self._seats[process.pidfd]
        status = reap(process)
        if seat.key is not None:
            yield Died(seat.key, status) if seat.taken else NotBegun(seat.key)
            self._under_way_no_more(seat)
            seat.key = None

    def _lost(self, seat: _Seat, failure: LaunchError | None) -> Iterator[News]:
        """No such supervisor was made, or it cannot be watched."""
        self._close_channel(seat)
        if seat.key is not None:
            self._under_way_no_more(seat)
            yield NotBegun(seat.key, failure)
            seat.key = None

    def _under_way_no_more(self, seat: _Seat) -> None:
        if not seat.taken:
            seat.taken = True
            self.under_way -= 1

    def _close_channel(self, seat: _Seat) -> None:
        if seat.channel is not None:
            del self._seats[seat.channel.fileno()]
            seat.channel.close()
            seat.channel = None
        if seat in self._idle:
            self._idle.remove(seat)


def _pidfd_of(pid: int, start_time: int) -> int | None:
    """None if somebody else has waited for it: the number may be another's then. Raises OSError."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        stat = read_stat(pid)
    except OSError:
        os.close(pidfd)
        raise
    if stat is None or stat.start_time != start_time:
        os.close(pidfd)
        return None
    return pidfd


def _end_child(pid: int) -> None:
    """Kill a child of ours, unless it was waited for already: the number may be another's then."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def reap(supervisor: Supervisor) -> int | None:
    """Close the pidfd of a supervisor that has ended, and let the kernel forget it if it was our child.

    Returns its exit code, the number of the signal that ended it as a negative number, or None for nobody's child.
    """
    pidfd, supervisor.pidfd = supervisor.pidfd, -1
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    finally:
        os.close(pidfd)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
