"""A log that keeps the beginning and the end of what a job prints, and never holds more than its limit.

The job prints into a pipe, which a thread of the supervisor empties. A thread is no process that the job's end could
hit or that could be taken for one of the job's, and it costs a job without a limit nothing.
"""

import _thread
import fcntl
import posix as os
import select

from gpuq.launch.keptlog import MARK_SIZE, end_size, head_size, mark

#: Read and copied at once, in bytes; also asked for as the pipe's size (fcntl(2), F_SETPIPE_SZ).
BLOCK = 1 << 20


class Keeper:
    """Copies what comes out of a pipe into a log, until nobody can write to it, or `finish`. Raises OSError."""

    def __init__(self, log: int, limit: int) -> None:
        self._log = log
        #: the same file, to be written anywhere: with O_APPEND even pwrite(2) appends
        self._file = os.open(f"/proc/self/fd/{log}", os.O_RDWR | os.O_CLOEXEC)
        self._head, self._end = head_size(limit), end_size(limit)
        #: most bytes of ours in the file: so many that the end can be moved without overlapping itself
        self._most = self._head + MARK_SIZE + 2 * self._end
        #: where our part of the file begins, how long it is, and how much of the job's output that stands for
        self._base, self._size, self._total = os.fstat(log).st_size, 0, 0
        #: what could not be written, and why
        self._lost, self._why = 0, ""
        self._given_up = False
        self._pipe, self.into = os.pipe()
        try:  # noqa: SIM105 (contextlib would have to be imported)
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, BLOCK)
        except OSError:
            pass  # above what this user may have: it is slower then
        self._stop, self._told = os.pipe()
        self._done = _thread.allocate_lock()

    def start(self) -> None:
        """Begin to copy. Raises RuntimeError where no thread can be had."""
        self._done.acquire()
        _thread.start_new_thread(self._run, ())

    def leave_to_job(self) -> None:
        """Close our own end of the pipe, so that its end is seen."""
        os.close(self.into)

    def finish(self) -> None:
        """When no process of the job is left: take what is still in the pipe, whoever else may hold it open."""
        os.close(self._told)
        self._done.acquire()

    def _run(self) -> None:
        try:
            self._copy()
            self._tell_of_loss()
        finally:
            os.close(self._pipe)  # so that a job is not stuck with a full pipe, whatever went wrong here
            self._done.release()

    def _tell_of_loss(self) -> None:
        if self._lost:
            lost = self._lost
            self._append(memoryview(b"\n[gpuq: %d bytes are not in this log: %b]\n" % (lost, self._why.encode())))

    def _copy(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        left = BLOCK  # nothing of the job's is behind what fits into the pipe
        while left > 0:
            ready = {fd for fd, _ in poll.poll()}
            if self._pipe not in ready:
                return
            data = os.read(self._pipe, BLOCK)
            if not data:
                return
            self._put(memoryview(data))
            if self._stop in ready:
                left -= len(data)

    def _put(self, data: memoryview) -> None:
        while data:
            if self._given_up:
                self._lost += len(data)
                return
            room = self._most - self._size
            if room > 0:
                part, data = data[:room], data[room:]
                self._append(part)
            elif not self._is_ours():
                self._given_up, self._why = True, "something else writes to this log"
            elif self._size == self._most:
                data = self._make_room(data)

    def _append(self, data: memoryview) -> None:
        """What cannot be written is lost, so that a full disk does not stop the job."""
        while data:
            try:
                written = os.write(self._log, data)
            except OSError as error:
                self._lost, self._why = self._lost + len(data), os.strerror(error.errno or 0)
                return
            self._size += written
            self._total += written
            data = data[written:]

    def _is_ours(self) -> bool:
        """Whether the file is what we made it. Cut by its owner it is a new beginning."""
        size = os.fstat(self._log).st_size
        if size < self._base + self._size:
            self._base, self._size, self._total = 0, size, size
        return size <= self._base + self._size

    def _make_room(self, data: memoryview) -> memoryview:
        """Drop the older half of the end, or all of it for data that is enough for a new one; what is to be appended.

        Whoever reads meanwhile sees in the mark that the end is being moved.
        """
        middle, end = self._base + self._head, self._base + self._head + MARK_SIZE
        fresh = data[-2 * self._end :] if len(data) >= self._end else None
        kept = self._end if fresh is None else len(fresh)
        try:
            self._write_at(middle, memoryview(mark(None)))
            if fresh is None:
                self._move(self._base + self._size - kept, end)
            else:
                self._write_at(end, fresh)
                self._total += len(data)
                data = data[:0]
            os.ftruncate(self._file, end + kept)
            self._write_at(middle, memoryview(mark(self._total - self._head - kept)))
            self._size = self._head + MARK_SIZE + kept
        except OSError as error:
            self._given_up, self._why = True, os.strerror(error.errno or 0)
        return data

    def _move(self, source: int, target: int) -> None:
        moved = 0
        while moved < self._end:
            data = os.pread(self._file, min(BLOCK, self._end - moved), source + moved)
            if not data:
                return
            self._write_at(target + moved, memoryview(data))
            moved += len(data)

    def _write_at(self, offset: int, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            offset, data = offset + written, data[written:]
