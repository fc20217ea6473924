"""Requests that take GPUs out of use and back: what runs there goes on, and nothing new starts."""

from __future__ import annotations

import time

from gpuq.daemon import decisions
from gpuq.daemon.asking import Answer, Daemon, Session
from gpuq.daemon.queues import FIRST_READING, check_why, decide, named_gpus
from gpuq.errors import BadRequest
from gpuq.events import Event, Kind
from gpuq.model import DisabledGpu
from gpuq.protocol import Message


async def gpus_switch(daemon: Daemon, session: Session, message: Message) -> Message:
    """Disable GPUs, or enable them; all of them or none. Answered once it is durable."""
    core, do = daemon.core, message.get("do")
    if do not in ("disable", "enable"):
        raise BadRequest(f"GPUs are disabled or enabled, and not {do!r:.60}")
    why = check_why(message.get("why"))
    await daemon.runner.gpus.known(FIRST_READING)
    found = named_gpus(core, message.get("gpus"), "GPU")
    # from here on nothing else happens meanwhile
    rules, now = core.rules, time.time()
    put: list[DisabledGpu] = []
    if do == "disable":
        named = [DisabledGpu(uuid, why or "no reason given", now) for uuid in found]
        put = [one for one in named if (was := rules.disabled.get(one.uuid)) is None or was.why != one.why]
    gone = [rules.disabled[uuid] for uuid in found if uuid in rules.disabled] if do == "enable" else []
    decisions.asked(session.uid, f"gpus {do} {' '.join(found)}", [], 0)
    if put or gone:
        events = [
            *(Event(now, Kind.GPU_DISABLED, data={"gpu": one.uuid, "why": one.why}) for one in put),
            *(Event(now, Kind.GPU_ENABLED, data={"gpu": one.uuid}) for one in gone),
        ]
        decide(core, [*put], [*gone], events=events)
        daemon.runner.wake()
    changed = [one.uuid for one in (*put, *gone)]
    return {"gpus": [{"uuid": uuid, "index": core.gpu_index(uuid), "changed": uuid in changed} for uuid in found]}


ANSWERS: dict[str, Answer] = {"gpus-switch": gpus_switch}
