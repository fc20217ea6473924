"""Prints a job's log while it grows, until the job has ended: the same for `logs -f` and `run`.

Nothing is polled: inotify tells that the log grew, the daemon's stream that the job changed, and signals arrive
through a descriptor, so that one select waits for all three.
"""

import ctypes
import errno
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from gpuq.cli.common import tell, write_some
from gpuq.cli.link import Retries, ask
from gpuq.client import Client
from gpuq.errors import ConnectionLost, GpuqError
from gpuq.launch.keptlog import MARK_SIZE, MOVED, end_size, head_size, mark, read_mark
from gpuq.model import ENDED, WAITING

#: inotify(7), <sys/inotify.h>
IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_CLOEXEC = os.O_CLOEXEC
IN_NONBLOCK = os.O_NONBLOCK

BLOCK = 1 << 16
#: A wait shorter than this many seconds is not worth a word.
MOMENT = 1.0
#: A pipe that select calls writable takes this much without blocking (PIPE_BUF, pipe(7)).
ATOMIC = select.PIPE_BUF

#: Signals that ask nobody to end. A window whose edge is dragged sends many.
PASSING = frozenset({signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT})

Job = dict[str, Any]


class Detached(Exception):
    """The person wants to go on without waiting; the argument is the exit code."""


class Signals:
    """Turns signals into numbers on a descriptor that select can wait for, while the block runs.

    Where nobody takes them, because a request hangs, the third that asks to end raises KeyboardInterrupt.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._former: dict[signal.Signals, Any] = {}
        self._former_fd = -1
        self._unheard = 0
        self.fd, self._write = -1, -1

    def __enter__(self) -> "Signals":
        self.fd, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._former_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in self._numbers:
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(self._former_fd)
        os.close(self.fd)
        os.close(self._write)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (as signal(2) calls it)
        """Python has written the number to the wakeup descriptor already."""
        self._unheard += number not in PASSING
        if self._unheard > 2:
            raise KeyboardInterrupt

    def take(self) -> list[int]:
        """The signals that came since the last call."""
        self._unheard = 0
        try:
            return list(os.read(self.fd, 64))
        except BlockingIOError:
            return []


class Watch:
    """Readable whenever the watched file was written to, or, while there is none, when it may have been made."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._add = libc.inotify_add_watch
        self._remove = libc.inotify_rm_watch
        self._current = -1
        self.fd: int = libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK)
        if self.fd < 0:
            raise GpuqError(f"the log cannot be watched: {os.strerror(ctypes.get_errno())} (inotify)")

    def file(self, fd: int, mask: int = IN_MODIFY) -> None:
        """Watch the open file, and nothing else."""
        self._replace(f"/proc/self/fd/{fd}", mask)

    def coming(self, path: str) -> None:
        """Watch the nearest folder above the path that exists for what is made in it."""
        folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
        self._replace(str(folder), IN_CREATE | IN_MOVED_TO)

    def _replace(self, path: str, mask: int) -> None:
        watched = self._add(self.fd, os.fsencode(path), mask)
        if watched < 0:
            raise GpuqError(f"the log cannot be watched: {os.strerror(ctypes.get_errno())} (inotify)")
        if self._current not in (-1, watched):
            self._remove(self.fd, self._current)  # told as an event: to watch the same again must not do it
        self._current = watched

    def drain(self) -> None:
        """Forget what was told so far."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.fd)


class Log:
    """The log of one attempt, read from where the last read ended."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = open_log(path)
        self._position = 0

    def skip_to_last(self, lines: int) -> None:
        """Start at the last so many lines of what is there."""
        self._position = tail_position(self.fd, lines)

    def read(self) -> bytes:
        """What was appended since, at most a block; from the start again if the file was cut."""
        if os.fstat(self.fd).st_size < self._position:
            self._position = 0
        data = os.pread(self.fd, BLOCK, self._position)
        self._position += len(data)
        return data

    def unread(self, count: int) -> None:
        """The next read begins so many bytes earlier."""
        self._position -= count

    def close(self) -> None:
        os.close(self.fd)


class KeptLog(Log):
    """A log with a limit, which is rewritten in place behind its first half; see `launch.keptlog`.

    The position counts what the job printed. So what is left out behind it was printed already, and what is left out
    before it was missed, which is said. The mark is looked at before and after: where it has changed, what was read
    is not what it seems. In a log that was not empty the mark is elsewhere; there a cut is followed by the end.
    """

    def __init__(self, path: str, limit: int) -> None:
        super().__init__(path)
        self._head, self._end = head_size(limit), end_size(limit)

    def skip_to_last(self, lines: int) -> None:
        left_out = self._left_out()
        place = tail_position(self.fd, lines)
        if left_out is None:
            self._position = place
        elif place < self._head + MARK_SIZE or left_out == MOVED:
            self._position = min(place, self._head)
        else:
            self._position = place - MARK_SIZE + left_out

    def read(self) -> bytes:
        """What the job printed since, at most a block. Nothing while the end is being moved: more news will come."""
        while True:
            left_out = self._left_out()
            data, position = self._after(left_out)
            if self._left_out() == left_out:
                self._position = position
                return data

    def _after(self, left_out: int | None) -> tuple[bytes, int]:
        """What comes next and the position behind it, as long as this much is left out."""
        at, size = self._position, BLOCK
        if left_out == MOVED:
            return b"", at
        if left_out is None:
            end = os.fstat(self.fd).st_size
            at = place = at if at <= end else max(0, end - self._end)
        elif at < self._head:
            place, size = at, min(BLOCK, self._head - at)
        elif (missed := self._head + left_out - at) > 0:
            return mark(missed), at + missed
        else:
            place = at - left_out + MARK_SIZE
        data = os.pread(self.fd, size, place)
        return data, at + len(data)

    def _left_out(self) -> int | None:
        return read_mark(os.pread(self.fd, MARK_SIZE, self._head))


def open_log(path: str) -> int:
    """A descriptor. Raises FileNotFoundError, and for all else GpuqError naming the file."""
    try:
        # a FIFO must not hang us, and a link is none that a supervisor has written through
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a symbolic link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        raise GpuqError(f"the log {path} cannot be read: {why}") from None


def tail_position(fd: int, lines: int) -> int:
    """Where the last `lines` lines of the file begin, read from its end."""
    end = os.fstat(fd).st_size
    position = end
    if lines <= 0:
        return end
    found = 0
    while position > 0:
        start = max(0, position - BLOCK)
        block = os.pread(fd, position - start, start)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            if start + at == end - 1:
                continue  # the newline that ends the last line
            found += 1
            if found == lines:
                return start + at + 1
        position = start
    return 0


class Waiting:
    """Says to a person, once for each time a job waits for more than a moment, why nothing is printed."""

    def __init__(self, job_id: int) -> None:
        self._id = job_id
        #: on the monotonic clock; None while there is nothing to say
        self._due: float | None = None

    def changed(self, job: Job) -> None:
        """The job is in a state now."""
        if job["state"] not in WAITING or not sys.stderr.isatty():
            self._due = None
        elif self._due is None:
            self._due = time.monotonic() + MOMENT

    def left(self) -> float | None:
        """Seconds until there is something to say, None for never."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def tell(self) -> None:
        """Say it, if it is time."""
        if self.left() != 0.0:
            return
        self._due = math.inf
        found = ask("why", sel={"ranges": [[self._id, self._id]]})["explanations"][0]
        if found["state"] in WAITING:
            tell(f"job {self._id} waits: {found['text']}")


class Follower:
    """Follows one job. `on_signal` is called with each signal; it may raise Detached."""

    def __init__(
        self,
        job_id: int,
        *,
        lines: int | None = None,
        signals: Signals | None = None,
        on_signal: Callable[[int], None] | None = None,
    ) -> None:
        self._id = job_id
        self._lines = lines
        self._signals = signals
        self._on_signal = on_signal
        self._waiting = Waiting(job_id)
        self._watch = Watch()
        self._log: Log | None = None
        self._attempt = 0
        self._path = ""
        self._limit: int | None = None

    def run(self) -> Job:
        """Print until the job has ended; the ended job. Raises GpuqError, Detached, BrokenPipeError."""
        retries = Retries()
        try:
            while True:
                try:
                    with retries.connect() as client:
                        return self._follow(client)
                except ConnectionLost as error:
                    retries.lost(error)
        finally:
            self._watch.close()
            if self._log is not None:
                self._log.close()

    def _follow(self, client: Client) -> Job:
        client.send("follow", id=self._id)
        while True:
            job = self._next(client)
            if job is None:
                self._look()
                continue
            self._waiting.changed(job)
            if job["attempt"] != self._attempt and job["log_path"] and job["state"] not in WAITING:
                self._begin(job["attempt"], job["log_path"], job.get("log_limit_bytes"))
            elif job["state"] in ENDED:
                self._look()
            if job["state"] in ENDED:
                return job

    def _next(self, client: Client) -> Job | None:
        """The job once it changed, None when its log did."""
        while not client.buffered():
            ready = self._wait([self._watch.fd, client.socket.fileno()])
            if self._watch.fd in ready:
                self._watch.drain()
                return None
            if ready:
                break
        return client.receive().get("job")

    def _begin(self, attempt: int, path: str, limit: int | None) -> None:
        """An attempt is new: print its log from now on."""
        self._look()
        if self._log is not None:
            self._log.close()
            self._log = None
        self._attempt, self._path, self._limit = attempt, path, limit
        self._look()

    def _look(self) -> None:
        """Print what is new; open the log if it was not there before."""
        if self._log is None and self._path and not self._open():
            self._watch.coming(self._path)
            self._open()  # it may have been made in between
        self._print_new()

    def _open(self) -> bool:
        try:
            self._log = Log(self._path) if self._limit is None else KeptLog(self._path, self._limit)
        except FileNotFoundError:
            return False
        if self._lines is not None:
            self._log.skip_to_last(self._lines)
            self._lines = None
        self._watch.file(self._log.fd)
        return True

    def _print_new(self) -> None:
        while self._log is not None and (data := self._log.read()):
            self._write(data)

    def _write(self, data: bytes) -> None:
        """To stdout, so that a signal is heard although nobody reads what we print."""
        view = memoryview(data)
        while view:
            _, writable, _ = select.select(self._signal_fds(), [1], [])
            self._handle_signals()
            if writable:
                view = view[write_some(view[:ATOMIC]) :]

    def _wait(self, fds: list[int]) -> list[int]:
        left = self._waiting.left()
        patience = None if left is None or left == math.inf else left
        ready, _, _ = select.select([*fds, *self._signal_fds()], [], [], patience)
        self._handle_signals()
        self._waiting.tell()
        return ready

    def _signal_fds(self) -> list[int]:
        return [self._signals.fd] if self._signals is not None else []

    def _handle_signals(self) -> None:
        if self._signals is not None and self._on_signal is not None:
            for number in self._signals.take():
                self._on_signal(number)
