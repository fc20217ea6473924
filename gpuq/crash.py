"""Crash points: moments at which a test lets the daemon, or a supervisor, die as by `kill -9`.

`GPUQ_CRASH_AT=NAME` in the daemon's environment ends the process when it gets there, `NAME:3` the third time, and
`stop@NAME` stops it there instead, as SIGSTOP does, until somebody sends SIGCONT. Without the variable a point costs
one comparison.
"""

from __future__ import annotations

import logging
import os
import signal

from gpuq.errors import UsageError

log = logging.getLogger("gpuq.crash")

VARIABLE = "GPUQ_CRASH_AT"
#: Before a name: stop there instead.
_STOP = "stop@"

#: Where the daemon can die: each before and after.
_STEPS = {
    "commit": "of a transaction, with all its rows written",
    "tell": "other daemons are told of the claims of planned attempts",
    "claim": "an attempt and its GPU memory are written down",
    "spawn": "a supervisor is started",
    "result": "what became of an attempt is read",
    "record": "the end of an attempt is written down",
    "transition": "jobs change in the store and in memory",
    "reply": "a submit is answered",
}
#: What a supervisor does; there the daemon can die by its hand, or it itself.
_SUPERVISOR_STEPS = {
    "identity": "it writes down who it is",
    "report": "it tells the daemon how the job ended",
    "result": "it writes down how the job ended",
}

DAEMON_POINTS = {f"{step}-{side}": f"{side} {what}" for step, what in _STEPS.items() for side in ("before", "after")}
SUPERVISOR_POINTS = {
    f"{who}-at-{step}-{side}": f"the {who} dies {side} {what}, for a supervisor"
    for who in ("daemon", "supervisor")
    for step, what in _SUPERVISOR_STEPS.items()
    for side in ("before", "after")
}
POINTS = DAEMON_POINTS | SUPERVISOR_POINTS


class _Armed:
    """Where to die, or to stop, and how often that place is still to be passed."""

    def __init__(self, name: str, left: int, stops: bool) -> None:
        self.name, self.left, self.stops = name, left, stops

    def here(self, name: str) -> bool:
        """Whether this is the place and the time."""
        if name != self.name:
            return False
        self.left -= 1
        return self.left == 0


_armed: _Armed | None = None


def arm(text: str | None) -> None:
    """Die at the point that the variable's text names; None disarms. Raises UsageError for a name that is none."""
    global _armed
    _armed = None
    if not text:
        return
    name, colon, count = text.removeprefix(_STOP).partition(":")
    stops = text.startswith(_STOP)
    if name not in (DAEMON_POINTS if stops else POINTS):
        raise UsageError(f"{VARIABLE} names {name!r}, and the crash points are {', '.join(POINTS)}")
    if colon and not (count.isascii() and count.isdigit() and 0 < len(count) < 10 and int(count) > 0):
        raise UsageError(f"{VARIABLE}={text}: after the colon comes which time it is, from 1 on")
    _armed = _Armed(name, int(count) if colon else 1, stops)


def point(name: str) -> None:
    """The daemon is at a crash point."""
    if _armed is not None and _armed.here(name):
        log.warning("crash point %s: the daemon %s itself", name, "stops" if _armed.stops else "kills")
        os.kill(os.getpid(), signal.SIGSTOP if _armed.stops else signal.SIGKILL)


def in_supervisor(job_id: int, attempt: int) -> tuple[str, int] | None:
    """For the orders of the supervisor that is about to start: a step with its side, and whom to kill there.

    That is the daemon's pid, or 0 for the supervisor itself. None for nearly all of them.
    """
    if _armed is None or _armed.name not in SUPERVISOR_POINTS or not _armed.here(_armed.name):
        return None
    who, _, step = _armed.name.partition("-at-")
    log.warning("crash point %s: told to the supervisor of %d %d", _armed.name, job_id, attempt)
    return step, os.getpid() if who == "daemon" else 0
