"""Every crash point once: each daemon is armed with the next one, while a client keeps it busy."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpuq import crash
from gpuq.client import Client
from gpuq.errors import DaemonUnreachable
from tests.chaos.clients import Waiters
from tests.chaos.world import PATIENCE, World, until
from tests.fakenvml import GiB

#: The first one or two commits are the daemon's own; then come those of a submit, a claim and an end. After a claim and
#: an end come points of their own.
TIMES = {"commit-before": (1, 2, 3, 4), "commit-after": (1, 2, 3)}
#: A daemon that has not come to its point after so many rounds does not come there.
ROUNDS = 16
#: An answer that takes longer, in seconds, will not come.
ANSWER = 60.0
#: Only one of these fits at a time: a second one that starts is an over-claim.
LARGE = 12 * GiB

#: Kind of job, its argument, and what it asks for. One after the other, again and again.
JOBS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("exit", "3", {}),
    ("gpu", str(LARGE), {"gpus": 1, "vram": LARGE}),
    ("signal", "9", {}),
    ("ok", "0.05", {}),
    ("gpu", str(LARGE), {"gpus": 1, "vram": LARGE}),
    ("parricide", "", {}),
    ("background", "", {}),
    ("signal", "11", {}),
    ("oom", "", {}),
)


def stops() -> list[tuple[str, int]]:
    return [(name, time) for name in crash.POINTS for time in TIMES.get(name, (1,))]


def tour(world: World, waiters: Waiters, seed: int) -> tuple[list[str], int]:
    """What broke, with the points that were not reached, and how many were."""
    return _Tour(world, waiters, seed).travel()


class _Tour:
    def __init__(self, world: World, waiters: Waiters, seed: int) -> None:
        self._world, self._waiters = world, waiters
        self._todo = random.Random(seed).sample(stops(), len(stops()))
        self._broken: list[str] = []
        self._jobs = self._rounds = 0
        self._open: list[int] = []

    def travel(self) -> tuple[list[str], int]:
        count = len(self._todo)
        self._a_claim_outlives_the_daemon()
        while self._todo and not self._broken:
            here = self._todo[0]
            if here[0].startswith("commit") and here[1] > 1:
                self._come_to_rest()  # then its commits are known by their number
            self._arm()
            for _ in range(ROUNDS):
                if self._todo[:1] == [here] and not self._broken:
                    self._round()
            if self._todo[:1] == [here]:
                self._broken.append(f"crash point {here[0]}:{here[1]} was not reached")
        while self._open and not self._broken:
            self._wait()
        return self._broken, count - len(self._todo)

    # --- the daemon -------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have the next daemon armed with the point that comes next, and end one that is not."""
        if not self._todo:
            os.environ.pop(crash.VARIABLE, None)
            return
        name, when = self._todo[0]
        os.environ[crash.VARIABLE] = f"{name}:{when}"
        mark = os.fsencode(f"{crash.VARIABLE}={name}:{when}")
        with suppress(FileNotFoundError, ProcessLookupError):
            strangers = [
                pid
                for pid in self._world.daemons()
                if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ]
            self._world.kill(strangers)

    def _look(self) -> None:
        """Go on to the next point once a daemon has come to this one."""
        met = self._world.note_points()
        if self._todo and self._todo[0][0] in met:
            del self._todo[0]
            self._arm()

    def _insist(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask until there is an answer; daemons die meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with Client.connect() as client:
                    client.socket.settimeout(ANSWER)
                    return client.request(op, **fields)
            except DaemonUnreachable as error:
                if time.monotonic() > deadline or "has not answered" in error.message:
                    self._broken.append(f"{op} {fields.get('sel')}: {error.message}")
                    return {}
            finally:
                self._look()

    def _a_claim_outlives_the_daemon(self) -> None:
        """The next daemon knows what a job has claimed that has allocated nothing yet, and starts no other there."""
        first, second = (self._submit("gate", "", {"gpus": 1, "vram": LARGE}) for _ in range(2))
        until(lambda: first in self._in_state("running"), "the start of a job")
        waits = self._command("wait", first)
        until(lambda: _has_a_socket(waits.pid), "a connection")
        self._world.kill(self._world.daemons())
        self._insist("gpus")  # a reading, and a look at who can start
        if self._in_state("queued") != [second] and not self._broken:
            self._broken.append(f"job {second} does not wait for job {first}, which has the card")
        self._world.trace.with_name("trace.open").touch()

    def _come_to_rest(self) -> None:
        os.environ.pop(crash.VARIABLE, None)
        self._world.kill(self._world.daemons())
        while self._open and not self._broken:
            self._wait()

    def _in_state(self, state: str) -> list[int]:
        reply = self._insist("list", sel={"states": [state]})
        return [job["id"] for job in reply.get("jobs", [])]

    # --- what keeps it busy -----------------------------------------------------------------------

    def _round(self) -> None:
        self._arm()
        self._rounds += 1
        job_id = self._submit(*JOBS[self._rounds % len(JOBS)])
        if self._rounds % 4 == 1:
            self._command("wait", job_id)
        if self._rounds % 2:
            self._change_one_that_is_held()
        while len(self._open) > 4 and not self._broken:
            self._wait()

    def _submit(self, kind: str, argument: str, asked: dict[str, Any], *, held: bool = False) -> int:
        self._jobs += 1
        key, tag = os.urandom(16).hex(), f"t.{self._jobs}"
        note: Callable[..., None] = self._world.journal.note
        note("submit", key=key, kind=kind, tags=[tag], count=1, held=held, after=[], retry=[])
        reply = self._insist(
            "submit",
            key=key,
            template={"cwd": str(self._world.folder), "gpus": 0, "cpus": 0, "hold": held, **asked},
            commands=[self._world.command(kind, tag, argument)],
            env={name: os.environ[name] for name in ("PATH", "FAKE_NVML", "LD_LIBRARY_PATH")},
            last=True,
        )
        if not reply:
            return 0
        note("submitted", key=key, ids=reply["ids"])
        if not held:
            self._open.append(reply["ids"][0])
        return int(reply["ids"][0])

    def _change_one_that_is_held(self) -> None:
        """Cancel one, which then never runs, and say so only once."""
        job_id = self._submit("ok", "0", {}, held=True)
        key = os.urandom(8).hex()
        self._world.journal.note("change", op="cancel", ids=[job_id], key=key)
        with suppress(DaemonUnreachable), Client.connect() as client:
            done = client.request("cancel", sel={"ranges": [[job_id, job_id]]})["done"]
            self._world.journal.note("changed", op="cancel", ids=done, key=key)
        self._look()

    def _wait(self) -> None:
        job_id = self._open.pop(0)
        self._insist("wait", sel={"ranges": [[job_id, job_id]]})

    def _command(self, verb: str, job_id: int) -> subprocess.Popen[bytes]:
        """As a process, which lives through all of it."""
        key = os.urandom(8).hex()
        self._world.journal.note(verb, id=job_id, key=key)

        def answered(code: int, _out: str, err: str) -> None:
            self._world.journal.note("waited", key=key, code=code, err=err)

        env = {name: value for name, value in os.environ.items() if name != crash.VARIABLE}
        return self._waiters.start([verb, str(job_id)], answered, env=env)


def _has_a_socket(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return any(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd"))
    return False
