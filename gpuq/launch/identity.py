"""Processes, as /proc tells of them (proc(5)): who one is beyond doubt, and which attempt it belongs to."""

from __future__ import annotations

import functools
import os
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gpuq.model import Identity

#: Longest parent chain that is followed. PIDs can be used again while a chain is read, so a loop is possible.
MAX_ANCESTORS = 512
#: How the first of a supervisor's last four arguments ends, by which it is known.
MARKER = b"gpuq supervisor"


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that matter here."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    threads: int
    #: clock ticks since boot
    start_time: int

    @property
    def gone(self) -> bool:
        """A zombie, whose parent has only not looked yet. A leader that left its threads behind also shows Z."""
        return self.state in ("Z", "X", "x") and self.threads <= 1


def read_stat(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or hidden from us (hidepid=1, proc(5)): then it is nobody of ours
    # Field 2, the name, may itself hold blanks and brackets: fields are counted from the last `)`.
    fields = line.rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    parent, group, session, threads, start_time = (int(fields[i]) for i in (1, 2, 3, 17, 19))
    return Stat(pid, fields[0].decode("ascii"), parent, group, session, threads, start_time)


@functools.cache
def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def identity_of(pid: int) -> Identity | None:
    """The identity of a running process, or of a zombie; None if there is no such process."""
    stat = read_stat(pid)
    return None if stat is None else Identity(pid, stat.start_time, boot_id())


def alive(identity: Identity) -> bool:
    """Whether this very process still runs; a zombie does not."""
    if identity.boot_id != boot_id():
        return False
    stat = read_stat(identity.pid)
    return stat is not None and stat.start_time == identity.start_time and not stat.gone


def pidfd_of(identity: Identity) -> int | None:
    """A pidfd of this very process, None if it has ended: looked at once more when the number can no longer change.

    Raises OSError where there is no room for it.
    """
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    try:
        lives = alive(identity)
    except OSError:
        os.close(pidfd)
        raise
    if not lives:
        os.close(pidfd)
        return None
    return pidfd


def job_of(pid: int, shims: Mapping[int, int]) -> int | None:
    """The job that a process belongs to; `shims` maps each supervisor's pid to its job's id."""
    return belonging(pid, shims)[0]


def belonging(pid: int, shims: Mapping[int, int]) -> tuple[int | None, tuple[int, ...]]:
    """The job that a process belongs to, and the part of its lineage that had to be looked at to know: all where None.

    A supervisor is a sub-reaper (prctl(2)), so whatever a job leaves behind stays below it. Where the supervisor
    itself is gone, the session that it led still names the attempt.
    """
    seen: list[int] = []
    for one in lineage(pid):
        seen.append(one)
        job_id = shims.get(one)
        if job_id is not None:
            return job_id, tuple(seen)
    return None, tuple(seen)


def lineage(pid: int) -> Iterator[int]:
    """The pid, those of its ancestors from the nearest on, without init, and last that of its session.

    Each is looked up when it is asked for. Only the pid itself where there is no such process, or it is hidden from us.
    """
    session: int | None = None
    current = pid
    for _ in range(MAX_ANCESTORS):
        yield current
        stat = read_stat(current)
        if stat is None:
            break
        session = stat.session if session is None else session
        if stat.parent <= 1:
            break
        current = stat.parent
    if session is not None:
        yield session


def owner_of(pid: int) -> int | None:
    """The effective user of a process (proc(5)); None if there is none, or it is hidden from us."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def still_runs(pid: int, start_time: int, uid: int) -> bool | None:
    """Whether a process that another user told us of still runs and is that user's. None where a process has the pid
    and all else is hidden (hidepid, proc(5))."""
    stat = read_stat(pid)
    if stat is not None:
        return stat.start_time == start_time and not stat.gone and owner_of(pid) == uid
    try:
        os.kill(pid, 0)  # kill(2): tells only whether there is one
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


class Left(NamedTuple):
    """What still runs of an attempt whose supervisor is gone."""

    processes: list[Identity]
    #: process groups in which nobody else is
    groups: set[int]


def members(supervisor: Identity, run_dir: Path | None = None) -> list[Identity]:
    """The processes of `look_for_left`."""
    return look_for_left(supervisor, run_dir).processes


def look_for_left(
    supervisor: Identity, run_dir: Path | None = None, also: Container[int] = (), *, orphans: bool = False
) -> Left:
    """What still runs of an attempt whose supervisor is gone: its session, and all descendants of that.

    With `run_dir` also whoever was given that folder in its environment, which a process that left the session and
    lost its parent still has; the processes whose pids are in `also`; and with `orphans` our own children that are no
    supervisors, for where we are a sub-reaper they are what outlived one. The kernel does not give a pid away while a
    session of that number has members. So a process that has the pid and is not the supervisor proves that nothing is
    left of the session.
    """
    if supervisor.boot_id != boot_id():
        return Left([], set())
    processes, named = _with_folder(run_dir)
    pending = [stat for stat in processes.values() if stat.pid in named or stat.pid in also]
    if orphans:
        pending += [stat for stat in processes.values() if stat.parent == os.getpid() and _is_orphan(stat)]
    heir = processes.get(supervisor.pid)
    if heir is None or heir.start_time == supervisor.start_time:
        pending += [stat for stat in processes.values() if stat.session == supervisor.pid]
    children: dict[int, list[Stat]] = {}
    for stat in processes.values():
        children.setdefault(stat.parent, []).append(stat)
    found: dict[int, Stat] = {}
    while pending:
        stat = pending.pop()
        if stat.pid not in found and stat.pid != os.getpid():
            found[stat.pid] = stat
            pending.extend(children.get(stat.pid, ()))
    if supervisor.pid not in named:
        found.pop(supervisor.pid, None)
    left = [stat for stat in found.values() if not stat.gone]
    groups = {stat.group for stat in found.values()}  # of the dead, too: what they forked may not have been seen
    # what ended while we looked, as those that fork all the time do, is nobody that a signal could hit
    for pid in processes.keys() - found.keys():
        if processes[pid].group in groups and (now := read_stat(pid)) is not None and not now.gone:
            groups.discard(processes[pid].group)
    return Left([Identity(stat.pid, stat.start_time, boot_id()) for stat in left], groups)


def _is_orphan(stat: Stat) -> bool:
    """Whether a child of ours is no supervisor, none that is just being started (which still shows our name), and no
    helper of our own: only those are in our session, which nobody can enter (setsid(2))."""
    if stat.session == os.getsid(0):
        return False
    try:
        words = Path(f"/proc/{stat.pid}/cmdline").read_bytes()
        return MARKER not in words and words != Path("/proc/self/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def leftover(run_dir: Path) -> Identity | None:
    """Any one process that the attempt in `run_dir` left behind, known by its environment."""
    processes, named = _with_folder(run_dir)
    for stat in (processes[pid] for pid in named):
        if not stat.gone:
            return Identity(stat.pid, stat.start_time, boot_id())
    return None


def _with_folder(run_dir: Path | None) -> tuple[dict[int, Stat], set[int]]:
    """Every process, and the pids of those whose environment names the attempt's folder.

    Supervisors are not among these, for they have the daemon's environment, and neither are we.
    """
    processes: dict[int, Stat] = {}
    named: set[int] = set()
    entry = None if run_dir is None else b"GPUQ_JOB_DIR=" + os.fsencode(run_dir) + b"/work"
    for stat in _each_process():
        processes[stat.pid] = stat
        if entry is None or stat.pid == os.getpid() or entry not in _words(stat.pid, "environ"):
            continue
        if not _marked(_words(stat.pid, "cmdline")):
            named.add(stat.pid)
    return processes, named


def is_supervisor(pid: int, run_dir: Path) -> bool:
    """Whether the process was started as the supervisor of the attempt in `run_dir`, or was just forked by it."""
    words = _words(pid, "cmdline")
    return _marked(words) and words[-1] == os.fsencode(run_dir)


def find_supervisor(run_dir: Path) -> Identity | None:
    """The living supervisor of the attempt in `run_dir`, whatever became of its files. Raises OSError."""
    for name in os.listdir("/proc"):
        if name.isdigit() and is_supervisor(int(name), run_dir):
            stat = read_stat(int(name))
            # a supervisor leads its session; a process that it forked and that is no program yet does not
            if stat is not None and not stat.gone and stat.session == stat.pid:
                return Identity(stat.pid, stat.start_time, boot_id())
    return None


def supervisors_of(uid: int) -> dict[bytes, int]:
    """The pids of a user's supervisors by run folder, as their arguments tell, which everybody may read (proc(5))."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and owner_of(int(name)) == uid and _marked(words := _read_words(int(name), "cmdline")):
            found[words[-1]] = int(name)
    return found


def _marked(words: list[bytes]) -> bool:
    """Whether these are a supervisor's arguments: `gpuq supervisor`, `job=N`, `attempt=M`, RUN_DIR."""
    return len(words) > 3 and words[-4].endswith(MARKER) and words[-3].startswith(b"job=")


def _words(pid: int, name: str) -> list[bytes]:
    """The arguments or the environment of a process of our own user; none of anybody else's, or of one that ended."""
    return _read_words(pid, name) if owner_of(pid) == os.geteuid() else []


def _read_words(pid: int, name: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read().rstrip(b"\0").split(b"\0")  # what follows a supervisor's words are zeros
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # gone, or a set-user-id program


def all_processes() -> dict[int, Stat]:
    """Every process that can be seen, by pid. Not one moment: processes come and go while it is read."""
    return {stat.pid: stat for stat in _each_process()}


def _each_process() -> Iterator[Stat]:
    for name in reversed(os.listdir("/proc")):  # the newest first: they may be gone in a moment
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            yield stat
