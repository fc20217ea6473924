"""The processes below the supervisor, as /proc tells of them, and signals that reach them and nobody else."""

import posix as os
import time

from gpuq.launch.parts.files import slurp

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal
else:
    import signal as _signal
    from collections.abc import Iterable

#: Most scans in one round, so that a job which forks without end does not keep us from reaping it.
MAX_SCANS = 32
#: A look at /proc that began longer ago, in seconds, may name groups that are gone, and whose numbers are another's by
#: now: 32,768 forks are enough for that (pid_max, proc(5)). Processes are told apart by start time, groups are not.
STALE = 1.0


class Stat:
    """Fields of /proc/PID/stat, as proc(5) numbers them. `launch.identity` has the same for those who may import it."""

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.start_time = int(fields[19])
        #: by a signal or a debugger
        self.stopped = fields[0] in (b"T", b"t")
        #: what tells it from a later process of the same number
        self.key = (pid, self.start_time)
        #: a zombie; a leader that left its threads behind shows the same state, with a thread count above one
        self.gone = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def read_stat(pid: int) -> Stat | None:
    try:
        fields = slurp(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    return Stat(pid, fields) if len(fields) >= 20 else None


def descendants() -> list[Stat]:
    """Every process below this one, zombies included."""
    children: dict[int, list[Stat]] = {}
    for name in reversed(os.listdir("/proc")):  # the newest first: they may be gone in a moment
        stat = read_stat(int(name)) if name.isdigit() else None
        if stat is not None:
            children.setdefault(stat.parent, []).append(stat)
    found: list[Stat] = []
    pending = children.pop(os.getpid(), [])
    while pending:
        stat = pending.pop()
        found.append(stat)
        pending.extend(children.pop(stat.pid, ()))
    return found


class Stopped:
    """Descendants that were stopped, all of them and what they fork, until they are released."""

    def __init__(self) -> None:
        #: those that were stopped before by somebody else, and must stay so
        self._before = {stat.key for stat in descendants() if stat.stopped}
        self._asked: set[tuple[int, int]] = set()
        self._groups: set[int] = set()

    def extend(self, frozen: set[int]) -> bool:
        """STOP to all that still run and are not frozen. False if they are more each time we look: try again."""
        own = os.getpgrp()
        asked: set[tuple[int, int]] = set()
        for _ in range(MAX_SCANS):
            # first those that fork away all the time: a look may find them dead, and they have gone on
            for _ in range(MAX_SCANS):
                self._groups |= signal_children(_signal.SIGSTOP)
            seen_at = time.monotonic()
            running = [stat for stat in descendants() if not stat.gone and not stat.stopped and stat.pid not in frozen]
            fresh = [stat for stat in running if stat.key not in asked]
            if not fresh:
                return True  # what was asked stops before it does anything else
            # A fork does not escape a signal to its group, as it can a look at /proc; see `signal_all`.
            groups = {stat.group for stat in fresh if stat.group not in (own, 0)}
            signal_groups(groups, seen_at, (_signal.SIGSTOP,))
            signal_each(fresh, (_signal.SIGSTOP,))
            asked |= {stat.key for stat in fresh}
            self._asked |= asked
            self._groups |= groups
        return False

    def release(self) -> None:
        """CONT to what was stopped, or is about to be, but not to what was stopped before."""
        left = (stat for stat in descendants() if not stat.gone and stat.key not in self._before)
        stopped = (s for s in left if s.stopped or s.key in self._asked or s.group in self._groups)
        signal_each(stopped, (_signal.SIGCONT,))


def signal_all(left: list[Stat], seen_at: float, number: int) -> None:
    """To processes and their groups: a fork escapes a scan but not a signal to its group (fork(2) starts again then).

    Groups do not span sessions (setpgid(2)), and every session of a descendant is ours or was made below us. So a
    group with a descendant in it, zombies included, holds descendants only, unless it is our own. `seen_at` is when the
    look began that found them, on the monotonic clock.
    """
    own = os.getpgrp()
    signal_groups({stat.group for stat in left if stat.group not in (own, 0)}, seen_at, (number,))
    signal_each((stat for stat in left if not stat.gone), (number,))


def signal_children(number: int) -> set[int]:
    """A signal to our children and their groups, which are returned: a hundredth of the cost of a look at all of /proc.

    It catches what forks and leaves its group all the time, for an orphan is our child at once. A child that was not
    waited for keeps its number. Without the file (a kernel without CONFIG_PROC_CHILDREN) looking at all must do.
    """
    groups: set[int] = set()
    try:
        children = [int(word) for word in slurp(f"/proc/self/task/{os.getpid()}/children").split()]
        own = os.getpgrp()
        for pid in reversed(children):
            os.kill(pid, number)
            group = os.getpgid(pid)
            if group != own:
                groups.add(group)
                signal_group(group, (number,))
    except OSError:
        pass  # no such file, or a set-user-id program
    return groups


def signal_handlers(number: int) -> int:
    """The signal to those descendants that catch it or wait for it, whatever group they are in; how many those are.

    Who has not said what is to happen would die of it, a wrapper's shell for one, and is left alone.
    """
    return signal_each((s for s in descendants() if not s.gone and handles(s.pid, number)), (number,))


def handles(pid: int, number: int) -> bool:
    """Whether the process catches the signal, or keeps it blocked in all of its threads, as sigwait(3) asks for."""
    masks = read_masks(f"/proc/{pid}")
    if masks.get(b"SigCgt", 0) >> (number - 1) & 1:
        return True
    if not masks.get(b"SigBlk", 0) >> (number - 1) & 1:
        return False
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False  # gone
    return all(read_masks(f"/proc/{pid}/task/{name}").get(b"SigBlk", 0) >> (number - 1) & 1 for name in threads)


def read_masks(folder: str) -> dict[bytes, int]:
    """SigBlk, of one thread, SigIgn and SigCgt of its process (proc(5)); nothing for one that is gone."""
    try:
        lines = slurp(f"{folder}/status").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines if line.startswith(b"Sig")]
    return {name.rstrip(b":"): int(value, 16) for name, value in words if name != b"SigQ:"}


def signal_each(processes: "Iterable[Stat]", signals: tuple[int, ...]) -> int:
    """Through a pidfd, looked at once more after it is open: the number may be somebody else's by now.

    How many were signalled.
    """
    reached = 0
    for stat in processes:
        try:
            pidfd = os.pidfd_open(stat.pid)
        except OSError:
            continue  # gone
        try:
            again = read_stat(stat.pid)
            if again is not None and again.start_time == stat.start_time:
                for number in signals:
                    _signal.pidfd_send_signal(pidfd, number)
                reached += 1
        except OSError:
            pass  # gone, or no longer ours to signal (a set-user-id program); the next round tries again
        finally:
            os.close(pidfd)
    return reached


def signal_groups(groups: set[int], seen_at: float, signals: tuple[int, ...]) -> None:
    """The newest first, because they are those that may be gone in a moment; none that may have become another's."""
    for group in sorted(groups, reverse=True):
        if time.monotonic() - seen_at > STALE:
            return
        signal_group(group, signals)


def signal_group(group: int, signals: tuple[int, ...]) -> None:
    try:
        for number in signals:
            os.killpg(group, number)
    except OSError:
        pass  # no process is left in it, or none that may be signalled
