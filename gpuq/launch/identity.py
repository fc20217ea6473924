"""Processes, as /proc tells of them (proc(5)): who one is beyond doubt, and which attempt it belongs to."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import NamedTuple

from gpuq.model import Identity

#: Longest parent chain that is followed. PIDs can be used again while a chain is read, so a loop is possible.
MAX_ANCESTORS = 512


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that matter here."""

    pid: int
    state: str
    parent: int
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
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 2, the name, may itself hold blanks and brackets: fields are counted from the last `)`.
    fields = line.rpartition(b")")[2].split()
    if len(fields) < 20:
        return None
    return Stat(pid, fields[0].decode("ascii"), int(fields[1]), int(fields[3]), int(fields[17]), int(fields[19]))


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


def job_of(pid: int, shims: Mapping[int, int]) -> int | None:
    """The job that a process belongs to; `shims` maps each supervisor's pid to its job's id.

    A supervisor is a sub-reaper (prctl(2)), so whatever a job leaves behind stays below it. Where the supervisor
    itself is gone, the session that it led still names the attempt.
    """
    session: int | None = None
    current = pid
    for _ in range(MAX_ANCESTORS):
        if current in shims:
            return shims[current]
        stat = read_stat(current)
        if stat is None:
            break
        if session is None:
            session = stat.session
        if stat.parent <= 1:
            break
        current = stat.parent
    return None if session is None else shims.get(session)


def members(supervisor: Identity) -> list[Identity]:
    """What still runs of an attempt whose supervisor is gone: its session, and all descendants of that.

    The kernel does not give a pid away while a session of that number has members. So a process that has the pid
    and is not the supervisor proves that nothing is left.
    """
    if supervisor.boot_id != boot_id():
        return []
    processes = all_processes()
    heir = processes.get(supervisor.pid)
    if heir is not None and heir.start_time != supervisor.start_time:
        return []
    children: dict[int, list[Stat]] = {}
    for stat in processes.values():
        children.setdefault(stat.parent, []).append(stat)
    found: dict[int, Stat] = {}
    pending = [stat for stat in processes.values() if stat.session == supervisor.pid]
    while pending:
        stat = pending.pop()
        if stat.pid not in found:
            found[stat.pid] = stat
            pending.extend(children.get(stat.pid, ()))
    found.pop(supervisor.pid, None)
    return [Identity(stat.pid, stat.start_time, boot_id()) for stat in found.values() if not stat.gone]


def all_processes() -> dict[int, Stat]:
    """Every process that can be seen, by pid. Not one moment: processes come and go while it is read."""
    found: dict[int, Stat] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := read_stat(int(name))) is not None:
            found[stat.pid] = stat
    return found
