"""What other daemons of this host claim, as their files in a sticky folder tell. Nothing in that folder is trusted.

A file counts where its name is ours to expect, its owner is the user that the name says, and its content is valid in
every field. A claim in it counts while its daemon or its supervisor lives. Whatever else is there is passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpuq import config
from gpuq.daemon.claimnames import Names
from gpuq.daemon.claimsfile import MAX_BYTES, Published, PublishedClaim, hashed, parse
from gpuq.daemon.owners import owner_name
from gpuq.launch.identity import boot_id, read_stat, still_runs, supervisors_of
from gpuq.policy.courtesy import NeighbourWait
from gpuq.policy.neighbours import NeighbourClaim

log = logging.getLogger("gpuq.neighbours")

#: Files that are looked at in all.
MAX_FILES = 1024
#: A change within this many seconds before a look may share its time stamp with one after it: look again then.
STAMP_PATIENCE = 1.0
#: Seconds after which a supervisor that a dead daemon was about to start has shown itself, or was not started.
LAUNCH_PATIENCE = 2.0

#: An open file as it was, by which one is known to be unchanged: device, inode, size, times.
Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as it was read."""

    stamp: Stamp
    #: whether any change since then shows in the stamp
    settled: bool
    #: None for one that is not valid
    said: Published | None


class Others(NamedTuple):
    """What other daemons claim, by GPU, and what they wait for."""

    claims: Mapping[str, tuple[NeighbourClaim, ...]]
    waits: tuple[NeighbourWait, ...]


NOBODY = Others({}, ())


class _File(NamedTuple):
    name: str
    uid: int
    changed_at: float
    said: Published


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """The folder's descriptor while the block runs. Raises OSError where it is not fit to share claims in."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fault = config.folder_fault(folder, os.fstat(fd))
        if fault is not None:
            raise OSError(fault)
        yield fd
    finally:
        os.close(fd)


def pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


class Neighbours:
    """Reads what others claim; what has not changed is read once. Usable from several threads."""

    def __init__(self, folder: Path, state: str) -> None:
        """`state` is the hash of our own state folder, whose files are not others'."""
        self._folder = folder
        self._state = state
        self._mutex = threading.Lock()
        self._names = Names()
        self._read: dict[str, _Read] = {}
        #: claims without a supervisor whose daemon is dead: since when, then what was found
        self._orphans: dict[tuple[int, str], float | tuple[int, int] | None] = {}
        self._told: set[int] = set()

    def read(self) -> Others:
        """What others claim and wait for. Raises OSError where the folder cannot be used."""
        with self._mutex, opened(self._folder) as folder:
            waits: list[NeighbourWait] = []
            found: dict[str, list[NeighbourClaim]] = {}
            orphans: dict[tuple[int, str], float | tuple[int, int] | None] = {}
            for file, lives in self._current(folder):
                if lives and (wait := file.said.waits) is not None:
                    name = owner_name(file.uid)
                    waits.append(NeighbourWait(file.uid, name, wait.since, wait.gpus, wait.bytes, wait.only))
                for claim in file.said.claims:
                    counted = self._counted(file, claim, lives, orphans)
                    if counted is not None:
                        found.setdefault(claim.gpu, []).append(counted)
            self._orphans = orphans
            return Others({uuid: tuple(claims) for uuid, claims in found.items()}, tuple(waits))

    def leftovers(self) -> list[str]:
        """Names of files of our own user that say nothing any more, or speak for our state folder."""
        with self._mutex, opened(self._folder) as folder:
            mine = [file for file in self._files(folder) if file.uid == os.geteuid()]
            return [file.name for file in mine if self._is_left(folder, file)]

    # --- files ------------------------------------------------------------------------------------

    def _current(self, folder: int) -> Iterator[tuple[_File, bool]]:
        """The files that speak for others, and whether their daemons live. One for each state folder: a link to an
        older one, or what a crash left, says nothing beside it."""
        best: dict[tuple[int, str], tuple[bool, float, _File]] = {}
        for file in self._files(folder):
            if file.said.boot_id != boot_id() or (file.uid == os.geteuid() and file.said.state == self._state):
                continue
            place, lives = (file.uid, file.said.state), _daemon_lives(folder, file)
            if place not in best or (lives, file.changed_at) > best[place][:2]:
                best[place] = (lives, file.changed_at, file)
        for lives, _, file in best.values():
            yield file, lives

    def _files(self, folder: int) -> Iterator[_File]:
        """Every valid file, the newest of each user first."""
        kept: dict[str, _Read] = {}
        rows = sorted(self._names.current(folder), key=lambda row: (row[0], -row[2].st_mtime_ns, row[1]))
        for uid, name, seen in rows[:MAX_FILES]:
            now = self._read.get(name)
            if now is None or not now.settled or now.stamp != _stamp(seen):
                now = self._open(folder, name, uid)
            kept[name] = now
            if now.said is not None:
                yield _File(name, uid, seen.st_mtime, now.said)
        self._read = kept

    def _open(self, folder: int, name: str, uid: int) -> _Read:
        """Read a file. A link is not followed, and a FIFO or a device not waited for."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            return _Read((), False, None)
        try:
            found, settled = _looked_at(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != uid:
                return _Read((), False, None)
            said = parse(_content(fd))
        except (OSError, ValueError) as error:
            if uid not in self._told:
                self._told.add(uid)
                log.warning("what %s's file %s says is passed over: %s", owner_name(uid), name, error)
            said = None
        finally:
            os.close(fd)
        return _Read(_stamp(found), settled, said)

    # --- who lives --------------------------------------------------------------------------------

    def _counted(
        self,
        file: _File,
        claim: PublishedClaim,
        lives: bool,
        orphans: dict[tuple[int, str], float | tuple[int, int] | None],
    ) -> NeighbourClaim | None:
        """The claim if it counts: while its daemon lives, or its supervisor, for jobs outlive daemons."""
        here = file.said.pid_ns == pid_namespace()
        supervisor = claim.supervisor
        if not lives:
            if not here:
                return None
            if supervisor is None:
                key = (file.uid, claim.run)
                orphans[key] = found = self._orphan(key)
                supervisor = found if isinstance(found, tuple) else None
                if found is None:
                    return None
            if supervisor is not None and still_runs(*supervisor, file.uid) is False:
                return None
        return NeighbourClaim(
            file.uid,
            owner_name(file.uid),
            claim.gpu,
            claim.bytes,
            supervisor[0] if supervisor and here else None,
            frozenset(claim.pids) if here else frozenset(),
            traceable=here,
        )

    def _orphan(self, key: tuple[int, str]) -> float | tuple[int, int] | None:
        """What became of a supervisor whose daemon died before it said which process that is.

        For a moment it counts as there. Then it is looked for once, among its user's processes.
        """
        since = self._orphans.get(key, time.monotonic())
        if not isinstance(since, float) or time.monotonic() - since < LAUNCH_PATIENCE:
            return since
        for run_dir, pid in supervisors_of(key[0]).items():
            if hashed(run_dir) == key[1] and (found := read_stat(pid)) is not None:
                return pid, found.start_time
        return None

    def _is_left(self, folder: int, file: _File) -> bool:
        if file.said.state == self._state or file.said.boot_id != boot_id():
            return True
        if _daemon_lives(folder, file) or file.said.pid_ns != pid_namespace():
            return False
        return all(c.supervisor and still_runs(*c.supervisor, file.uid) is False for c in file.said.claims)


def _daemon_lives(folder: int, file: _File) -> bool:
    """By pid and start time; by its lock on the file only where these cannot be seen, as anybody may lock a file that
    he can read (flock(2))."""
    if file.said.pid_ns == pid_namespace():
        told = still_runs(file.said.pid, file.said.start_time, file.uid)
        if told is not None:
            return told
    try:
        fd = os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _content(fd: int) -> bytes:
    parts, size = [], 0
    while size <= MAX_BYTES and (part := os.read(fd, MAX_BYTES + 1 - size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _stamp(found: os.stat_result) -> Stamp:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _looked_at(fd: int) -> tuple[os.stat_result, bool]:
    """An open file's status, and whether any change from now on will show in it: time stamps are coarse."""
    now, found = time.time(), os.fstat(fd)
    return found, now - max(found.st_mtime, found.st_ctime) > STAMP_PATIENCE
