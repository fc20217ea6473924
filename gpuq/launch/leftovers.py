"""Ends what is left of an attempt whose supervisor is gone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from gpuq.errors import StoreError
from gpuq.launch import cgroup, runfolder
from gpuq.launch.identity import alive, look_for_left, pidfd_of
from gpuq.launch.parts import leaf
from gpuq.launch.parts.processes import STALE
from gpuq.launch.runfolder import BUSY, IDENTITY
from gpuq.model import Identity

#: Between rounds of KILL, in seconds; a further round is for what was forked meanwhile.
_KILL_ROUND = 0.1
#: Most looks in a row for what is still to be stopped, before what was found is killed.
_STOP_LOOKS = 32
#: Looks in a row that find nobody alive, before that is believed.
_EMPTY_LOOKS = 2
#: Leftovers that are waited for at once: each takes a file descriptor, and any one end wakes us.
_WAITED_FOR = 64


def end_leftovers(supervisor: Identity, grace: float, run_dir: Path | None = None, *, orphans: bool = False) -> None:
    """End what is left of an attempt whose supervisor is gone: TERM, `grace` seconds, KILL. Blocks until then.

    With `run_dir` also what left the supervisor's session, and what is in the attempt's cgroup; with `orphans` our own
    children, see `look_for_left`.
    """
    group = None if run_dir is None else _leaf(run_dir)
    if group is not None:
        group.thaw()
    asked: set[Identity] = set()
    stopped: set[Identity] = set()
    killed: set[Identity] = set()
    looks = 0
    empties = 0
    kill_at = time.monotonic() + grace
    while True:
        try:
            members = set() if group is None else group.members()
            seen_at = time.monotonic()
            found, groups = look_for_left(supervisor, run_dir, members, orphans=orphans)
            # one whose parent went first is not found any more, and holds what it holds until it is gone
            left = list({*found, *filter(alive, asked | killed)})
            if not left and empties < _EMPTY_LOOKS:
                # those that fork away all the time are seen dead, or not at all: their groups tell of them
                empties += 1
                _signal_groups(groups, seen_at, signal.SIGTERM if time.monotonic() < kill_at else signal.SIGKILL)
                continue
            empties = 0
            if not left and (group is None or group.remove()):
                if run_dir is not None:
                    runfolder.drop_drafts(run_dir)
                return
            if time.monotonic() < kill_at:
                _signal_each(set(left) - asked, (signal.SIGTERM, signal.SIGCONT))
                asked.update(left)
                _wait_for_any(left, kill_at - time.monotonic())
                continue
            if group is not None:
                group.kill()
            if looks < _STOP_LOOKS and not stopped.issuperset(left):
                # what is stopped forks no more, and keeps its place among those that its user may have; what is killed
                # makes room for another, and those that fork all the time would win
                looks += 1
                _signal_groups(groups, seen_at, signal.SIGSTOP)
                _signal_each(set(left) - stopped, (signal.SIGSTOP,))
                stopped.update(left)
                continue
            looks = 0
            _signal_groups(groups, seen_at, signal.SIGKILL)
            _signal_each(left, (signal.SIGKILL,))
            # what was forked meanwhile is looked for at once; what was killed needs a moment to go
            if killed.issuperset(left):
                _wait_for_any(left, _KILL_ROUND)
            killed.update(left)
        except OSError as error:
            if error.errno not in BUSY:
                raise
            time.sleep(_KILL_ROUND)  # the host has no room to look: try again until it has


def _leaf(run_dir: Path) -> leaf.Leaf | None:
    """The attempt's cgroup, if its supervisor made one and nobody has written another name there."""
    try:
        path = Path(str(json.loads(runfolder.read_file(run_dir / IDENTITY) or b"{}")["cgroup"]))
        return leaf.Leaf(os.fsencode(path)) if cgroup.is_leaf_of(path, run_dir) else None
    except (StoreError, ValueError, KeyError, TypeError, RecursionError, OSError):
        return None


def _signal_groups(groups: Iterable[int], seen_at: float, number: int) -> None:
    """A fork cannot escape a signal to its group, as it can a look at /proc (fork(2) starts again after one).

    None that was seen so long ago that its number may be another's.
    """
    for group in groups:
        if time.monotonic() - seen_at > STALE:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or a set-user-id program
            os.killpg(group, number)


def _signal_each(processes: Iterable[Identity], numbers: tuple[int, ...]) -> None:
    for identity in processes:
        pidfd = pidfd_of(identity)
        if pidfd is None:
            continue
        try:
            for number in numbers:
                signal.pidfd_send_signal(pidfd, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended, or became a set-user-id program; the caller looks again
        finally:
            os.close(pidfd)


def _wait_for_any(processes: list[Identity], timeout: float) -> None:
    """Until one of the processes has ended, or `timeout` seconds."""
    poll = select.poll()
    pidfds: list[int] = []
    try:
        for identity in processes[:_WAITED_FOR]:
            pidfd = pidfd_of(identity)
            if pidfd is None:
                return  # one has ended
            pidfds.append(pidfd)
            poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, timeout) * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
