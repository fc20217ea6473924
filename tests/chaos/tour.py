"""Every crash point once: a daemon is armed with it, a job is submitted, run and waited for, and goes its way."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from typing import Any

from gpuq import crash
from gpuq.client import Client
from gpuq.errors import DaemonUnreachable
from tests.chaos.clients import Waiters
from tests.chaos.world import PATIENCE, World

#: The first commit is the daemon's own start; the others are of a submit, a claim and an end.
TIMES = {"commit-before": (1, 2, 3, 4), "commit-after": (1, 2, 3, 4)}


def stops() -> list[tuple[str, int]]:
    return [(name, time) for name in crash.POINTS for time in TIMES.get(name, (1,))]


def tour(world: World, waiters: Waiters, seed: int) -> tuple[list[str], int]:
    """Points that were not reached, and how many were."""
    broken = []
    reached = 0
    for number, (name, when) in enumerate(random.Random(seed).sample(stops(), len(stops()))):
        world.kill(world.daemons())
        os.environ[crash.VARIABLE] = f"{name}:{when}"
        with suppress(DaemonUnreachable):  # where the point is in the start
            Client.connect().socket.close()
        armed = world.daemons()
        del os.environ[crash.VARIABLE]
        job_id = _submit(world, f"t.{number}", ("exit", "3") if number % 2 else ("ok", "0.05"))
        if number % 4 == 0:
            _wait(world, waiters, job_id)
        _insist("wait", sel={"ranges": [[job_id, job_id]]})
        waiters.finish(PATIENCE)  # one that still waits would start the next daemon
        seen = world.note_points()
        if name not in seen or (armed and name in crash.DAEMON_POINTS and set(armed) & set(world.daemons())):
            broken.append(f"crash point {name}:{when} was not reached: {seen}")
        reached += name in seen
    return broken, reached


def _submit(world: World, tag: str, what: tuple[str, str]) -> int:
    key = os.urandom(16).hex()
    facts: dict[str, Any] = {"tags": [tag], "count": 1, "held": False, "after": [], "retry": 0}
    world.journal.note("submit", key=key, kind=what[0], **facts)
    ids = _insist(
        "submit",
        key=key,
        template={"cwd": str(world.folder), "gpus": 0},
        commands=[world.command(what[0], tag, what[1])],
        env={"PATH": os.environ["PATH"]},
        last=True,
    )["ids"]
    world.journal.note("submitted", key=key, ids=ids)
    return int(ids[0])


def _wait(world: World, waiters: Waiters, job_id: int) -> None:
    """As a command, which starts the next daemon if it is the first to notice."""
    key = os.urandom(8).hex()
    world.journal.note("wait", id=job_id, key=key)

    def answered(code: int, _out: str, err: str) -> None:
        world.journal.note("waited", key=key, code=code, err=err)

    waiters.start(["wait", str(job_id)], answered)


def _insist(op: str, **fields: Any) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with Client.connect() as client:
                return client.request(op, **fields)
        except DaemonUnreachable:
            if time.monotonic() > deadline:
                raise
