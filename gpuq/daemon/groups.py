"""Requests about groups of jobs that stop together."""

from __future__ import annotations

import time

from gpuq.daemon import decisions
from gpuq.daemon.asking import Answer, Daemon, Session
from gpuq.daemon.core import Core
from gpuq.daemon.queues import decide
from gpuq.daemon.views import moment
from gpuq.errors import BadRequest, GpuqError
from gpuq.events import Event, Kind
from gpuq.model import ACTIVE, Group
from gpuq.protocol import Message
from gpuq.store import rules


async def groups(daemon: Daemon, _session: Session, _message: Message) -> Message:
    """Groups in which jobs wait or run, and those of which the last jobs failed."""
    core = daemon.core
    live = rules.live_in_groups(core.store)
    names = sorted({*core.rules.groups, *live})
    return {"groups": [_view(core, name, live.get(name, {})) for name in names]}


async def group(daemon: Daemon, session: Session, message: Message) -> Message:
    """Let a group go on that has stopped. Answered once it is durable."""
    core, name = daemon.core, message.get("name")
    if not isinstance(name, str) or message.get("do") != "resume":
        raise BadRequest("a group has a name, and is resumed")
    live = rules.live_in_groups(core.store)
    found = core.rules.groups.get(name)
    if found is None and not rules.has_jobs(core.store, name):
        there = ", ".join(sorted({*core.rules.groups, *live})) or "none in which jobs wait or run"
        raise GpuqError(f"there is no group {name!r:.60}: there is {there}")
    decisions.asked(session.uid, f"group resume {name}", [], 0)
    changed = found is not None and found.stopped_at is not None
    if found is not None and changed:
        decide(core, gone=[found], events=[Event(time.time(), Kind.GROUP_RESUMED, data={"group": name})])
        daemon.runner.wake()
    return {"group": _view(core, name, live.get(name, {})), "changed": changed}


def _view(core: Core, name: str, live: dict[str, int]) -> Message:
    """A group as `gpuq.groups/1` has it."""
    found = core.rules.groups.get(name, Group(name))
    running = sum(live.get(state, 0) for state in ACTIVE)
    return {
        "name": name,
        "running": running,
        "waiting": sum(live.values()) - running,
        "failures": found.failures,
        "failed": list(found.failed),
        "stopped_at": moment(found.stopped_at),
        "why": core.rules.stopped.get(name),
    }


ANSWERS: dict[str, Answer] = {"groups": groups, "group": group}
