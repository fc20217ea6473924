"""While the job runs: its time limit, its end, and what it leaves behind."""

import posix as os
import time

from gpuq.launch.parts.processes import MAX_SCANS, descendants, kill_all, kill_children, signal_each, signal_group

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal

#: Between rounds of KILL, in seconds. Exits wake the supervisor; a further round is for what was forked meanwhile.
KILL_ROUND = 0.1
#: Most of the dead that are taken at once: those that fork all the time die as fast as they can be taken.
MAX_REAPED = 64
HANDLED = (_signal.SIGCHLD, _signal.SIGTERM)


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
