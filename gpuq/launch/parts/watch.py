"""While the job runs: its time limit, its end, and what it leaves behind."""

import posix as os
import time

from gpuq.launch.parts.leaf import Leaf
from gpuq.launch.parts.processes import (
    MAX_SCANS,
    Stopped,
    descendants,
    signal_all,
    signal_children,
    signal_each,
    signal_group,
    signal_handlers,
)

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
#: Between looks for processes that are still to be stopped, in seconds.
STOP_ROUND = 0.05
#: Stops and continues the job. Each of the two takes the other back where it is still pending (kill(2) on Linux
#: discards pending stop signals with CONT, and CONT with them), so that the last word counts.
SUSPEND, RESUME = _signal.SIGTSTP, _signal.SIGCONT
HANDLED = (_signal.SIGCHLD, _signal.SIGTERM, SUSPEND, RESUME)


class Limit:
    """The time limit and the warning before it, on a clock that stands still while the job is suspended."""

    def __init__(self, seconds: float | None, warn: tuple[int, float] | None) -> None:
        now = time.monotonic()
        #: monotonic; None without a limit
        self._at = None if seconds is None else now + seconds
        #: None without a warning, and once it was given
        self._warn_at = None if seconds is None or warn is None else now + max(0.0, seconds - warn[1])
        self._signal = 0 if warn is None else warn[0]
        #: None while the job runs
        self._stopped_at: float | None = None
        self._stood = 0.0

    def due(self) -> float | None:
        """When something is to be done, on the monotonic clock."""
        if self._stopped_at is not None:
            return None
        return self._at if self._warn_at is None else self._warn_at

    def passed(self, now: float) -> bool:
        return self._at is not None and self._stopped_at is None and now >= self._at

    def warning(self, now: float) -> int | None:
        """The signal that is to be sent now, once."""
        if self._warn_at is None or self._stopped_at is not None or now < self._warn_at:
            return None
        self._warn_at = None
        return self._signal

    def stop(self, now: float) -> None:
        if self._stopped_at is None:
            self._stopped_at = now

    def go_on(self, now: float) -> None:
        if self._stopped_at is None:
            return
        stood = now - self._stopped_at
        self._stopped_at = None
        self._stood += stood
        self._at = None if self._at is None else self._at + stood
        self._warn_at = None if self._warn_at is None else self._warn_at + stood

    def stood(self, now: float) -> float:
        """For how long the job was suspended, in seconds."""
        return self._stood + (0.0 if self._stopped_at is None else now - self._stopped_at)


class Watch:
    """Waits for the job, stops it and lets it go on, ends it when it must end, and then whatever it left behind."""

    def __init__(self, main: int, limit: Limit, grace: float, leaf: Leaf | None) -> None:
        self.main = main
        self.leaf = leaf
        self.limit = limit
        self.grace = grace
        #: raw wait status of the main process once it has ended
        self.status: int | None = None
        self.timed_out = False
        self.ended = False
        #: the signal before the time limit, 0 before it was due, and how many processes it went to
        self.warned = 0
        self.warned_processes = 0
        self.leftovers = 0
        #: of all of its processes; KiB
        self.user_seconds = self.system_seconds = 0.0
        self.max_rss = 0
        #: when the next round of KILL is due; None while nothing is being ended
        self._kill_at: float | None = None
        self._swept = False
        #: the last look did not take all of the dead, and the signal that tells of them may have been taken
        self._more_dead = False
        #: what is stopped while the job is suspended
        self._stopped: Stopped | None = None
        #: when to look again for what was forked while we stopped the rest
        self._stop_at: float | None = None

    @property
    def quiet(self) -> bool:
        """Whether the job came and went without anybody having done anything about it."""
        return not (self.timed_out or self.ended or self.warned or self.leftovers or self.limit.stood(0.0))

    def until_nothing_is_left(self) -> None:
        while self._reap():
            now = time.monotonic()
            if self.status is not None:
                self._sweep(now)
            elif self._kill_at is None:
                self._hold_to_limit(now)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill()
                self._kill_at = now + KILL_ROUND
            elif self._stop_at is not None and now >= self._stop_at:
                self._stop(now)
            self._sleep(now)

    def _hold_to_limit(self, now: float) -> None:
        if self.limit.passed(now):
            self.timed_out = True
            self._end_group(now)
        elif (number := self.limit.warning(now)) is not None:
            self.warned, self.warned_processes = number, signal_handlers(number)

    def _reap(self) -> bool:
        """Whether any process of the job is left; a sub-reaper's descendants become its children in the end."""
        for _ in range(MAX_REAPED):
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                self._more_dead = False
                return True
            # with what it had waited for itself (getrusage(2)); the largest of all, not the sum
            self.user_seconds += usage.ru_utime
            self.system_seconds += usage.ru_stime
            self.max_rss = max(self.max_rss, usage.ru_maxrss)
            if pid == self.main:
                self.status = status
        self._more_dead = True
        return True

    def _sleep(self, now: float) -> None:
        """Until a child ends, somebody asks for something, or the time has come for something."""
        due = now if self._more_dead else self._next(self._kill_at, self._stop_at)
        if self.status is None and self._kill_at is None:
            due = self._next(due, self.limit.due())
        if due is None:
            info = _signal.sigwaitinfo(HANDLED)
        else:
            taken = _signal.sigtimedwait(HANDLED, max(0.0, due - now))
            if taken is None:
                return
            info = taken
        # Asking twice does not give the job its grace period twice, and what is to end does not stop.
        if self.status is None and self._kill_at is None:
            self._obey(info.si_signo)

    def _next(self, one: float | None, other: float | None) -> float | None:
        return other if one is None else one if other is None else min(one, other)

    def _obey(self, number: int) -> None:
        now = time.monotonic()
        if number == _signal.SIGTERM:
            self.ended = True
            self._end_group(now)
        elif number == SUSPEND:
            self._stop(now)
        elif number == RESUME:
            self._go_on(now)

    def _stop(self, now: float) -> None:
        """Stop every process of the job, and what they fork meanwhile. Those that were stopped before are left so."""
        self.limit.stop(now)
        if self._stopped is None:
            self._stopped = Stopped()
        frozen: set[int] = set()
        if self.leaf is not None:
            self.leaf.freeze()
            frozen = self.leaf.members()
        self._stop_at = None if self._stopped.extend(frozen) else now + STOP_ROUND

    def _go_on(self, now: float) -> None:
        self.limit.go_on(now)
        self._stop_at = None
        if self._stopped is not None:
            if self.leaf is not None:
                self.leaf.thaw()
            self._stopped.release()
            self._stopped = None

    def _end_group(self, now: float) -> None:
        """TERM, and CONT so that a stopped process gets to see it. The main process is not reaped: the number holds."""
        self._kill_at = now + self.grace
        signal_group(self.main, (_signal.SIGTERM, _signal.SIGCONT))
        self._go_on(now)

    def _sweep(self, now: float) -> None:
        """The main process has ended: ask the rest to. Those in a group that was asked already are not asked again."""
        if self._swept:
            return
        self._swept = True
        self._go_on(now)
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
        """KILL to all that is left.

        They are stopped first: what is killed makes room for another process of its user, and where a job forks all
        the time that place would be taken before we look again.
        """
        if self.leaf is not None:
            self.leaf.kill()
        if self._reach_all(_signal.SIGSTOP):
            self._reach_all(_signal.SIGKILL)

    def _reach_all(self, number: int) -> bool:
        """A signal to all that is left, and to what was forked between look and signal. False if nothing is left."""
        known: set[tuple[int, int]] = set()
        for _ in range(MAX_SCANS):
            seen_at = time.monotonic()
            left = descendants()
            found = {stat.key for stat in left if not stat.gone and not (number == _signal.SIGSTOP and stat.stopped)}
            if not found <= known:
                signal_all(left, seen_at, number)
            # also where a look found nobody alive: those that fork away all the time have gone on meanwhile
            for _ in range(MAX_SCANS):
                if not self._reap():  # the dead would make the next look slower
                    return False
                signal_children(number)
            if found <= known:
                break
            known |= found
        return True
