"""Clients that use the queue while it is being killed, each with a journal of what it did and was told.

Some speak on the socket, some run the command line; both as users do, so that a daemon that is gone is started again.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

from gpuq.client import Client
from gpuq.errors import DaemonUnreachable, GpuqError
from tests.chaos.world import PATIENCE, Journal, World
from tests.fakenvml import GiB

KiB = 1024

#: Jobs that one client lets wait or run at once, so that the machine keeps up.
MOST_OPEN = 12
#: Commands that wait for jobs, at once, of all clients.
MOST_WAITERS = 6

#: Kind, how often it comes, and what its argument may be.
KINDS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("ok", 8, ("0", "0.1", "0.7", "1.5")),
    ("exit", 4, ("1", "3", "77", "255")),
    ("signal", 3, ("6", "9", "11", "15")),
    ("limit", 2, ("",)),
    ("stubborn", 1, ("",)),
    ("background", 3, ("",)),
    ("children", 1, ("",)),
    ("oom", 2, ("",)),
    ("gpu", 6, ("",)),
    ("parricide", 1, ("",)),
    ("warned", 2, ("",)),
    ("chatty", 1, ("",)),
)

#: Rules by which jobs are tried again. `--requeue` is one for `lost`, and so patient that no run could see its end.
RETRIES: tuple[list[str], ...] = ([], [], [], ["1"], ["2"], ["lost:3"], ["vram-oom:2*1.5"], ["vram-oom:1*16", "lost:3"])

#: Options whose values are written as they are, or as times.
WORDS = {"time_limit": "--time", "grace": "--grace", "early_signal": "--signal"}

#: What is asked of jobs, and how often.
CHANGES = {"cancel": 2, "hold": 2, "release": 2, "retry": 1, "suspend": 3, "resume": 3}
#: What is asked of jobs in these states, if there are any: of others it would be refused.
LIVE = {"cancel": ("queued", "running", "suspended"), "suspend": ("running",), "resume": ("suspended",)}


class Waiters:
    """Commands that wait for a job (`wait`, `run`, `logs -f`), and the threads that wait for them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._threads: list[tuple[threading.Thread, subprocess.Popen[bytes]]] = []
        self._guard = threading.Lock()
        self.started = 0

    def room(self) -> bool:
        with self._guard:
            self._threads = [(thread, process) for thread, process in self._threads if thread.is_alive()]
            return len(self._threads) < MOST_WAITERS

    def start(self, args: list[str], answered: Callable[[int, str, str], None], **more: Any) -> subprocess.Popen[bytes]:
        """Run it, and call back with its exit code and what it printed."""
        process = self._world.start_client(args, **more)

        def follow() -> None:
            out, err = process.communicate()
            self._world.client_ended(process)
            answered(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        with self._guard:
            self._threads.append((thread, process))
            self.started += 1
        return process

    def finish(self, patience: float) -> int:
        """Give them so many seconds; how many had to be ended."""
        deadline = time.monotonic() + patience
        left = 0
        for thread, process in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left += 1
                process.kill()
                thread.join()
        self._threads = []
        return left


class ClientThread:
    """One user. Its random numbers, and so what it wants to do, come from the seed; when things happen does not."""

    def __init__(self, world: World, waiters: Waiters, name: str, seed: int, stop: threading.Event) -> None:
        self._world, self._waiters, self._name, self._stop = world, waiters, name, stop
        self._random = random.Random(f"{seed}-{name}")
        self._journal = Journal(world.folder / "journal" / f"{name}.jsonl")
        self._count = 0
        self._mine: list[int] = []
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        actions: list[tuple[Callable[[], None], int]] = [
            (self.submit_here, 30),
            (self.submit_command, 4),
            (self.change, 14),
            (self.wait, 5),
            (self.run, 3),
            (self.follow, 1),
            (self.look, 8),
        ]
        while not self._stop.is_set():
            if len(self._open()) >= MOST_OPEN:
                self._stop.wait(0.3)
                continue
            action = self._random.choices([a for a, _ in actions], [w for _, w in actions])[0]
            try:
                action()
            except GpuqError as error:
                self._journal.note("error", action=action.__name__, kind=type(error).__name__, message=error.message)
            self._stop.wait(self._random.expovariate(1 / 0.15))

    def _open(self, *states: str) -> list[int]:
        """Our jobs that wait or run, as far as anybody tells."""
        try:
            reply = self._ask("list", sel={"ranges": [[n, n] for n in self._mine[-200:]]}) if self._mine else None
        except GpuqError:
            return []
        jobs = reply["jobs"] if reply is not None else []
        return [job["id"] for job in jobs if job["state"] in (states or ("queued", "running", "suspended"))]

    # --- asking -----------------------------------------------------------------------------------

    def _ask(self, op: str, **fields: Any) -> dict[str, Any] | None:
        """The answer; None where the daemon died before it gave one."""
        try:
            with Client.connect() as client:
                return client.request(op, **fields)
        except DaemonUnreachable as error:
            self._journal.note("unanswered", op=op, message=error.message)
            return None

    def _insist(self, op: str, *, lose: bool = False, **fields: Any) -> dict[str, Any]:
        """Send again until there is an answer; with `lose` the first answer is not waited for."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if lose:
                lose = False
                try:
                    with Client.connect() as client:
                        client.send(op, **fields)
                except DaemonUnreachable:
                    pass
                continue
            reply = self._ask(op, **fields)
            if reply is not None:
                return reply
            if time.monotonic() > deadline:
                raise DaemonUnreachable(f"no daemon answered {op} for {PATIENCE:.0f} s")

    # --- submitting -------------------------------------------------------------------------------

    def _tag(self) -> str:
        self._count += 1
        return f"{self._name}.{self._count}"

    def _kind(self) -> tuple[str, str, dict[str, Any]]:
        """A kind of job, its argument, and what it asks for."""
        kind, _, arguments = self._random.choices(KINDS, [weight for _, weight, _ in KINDS])[0]
        argument = self._random.choice(arguments)
        asked: dict[str, Any] = {"gpus": 0, "cpus": self._random.choice((0, 0, 0, 1))}
        if kind == "gpu" or self._random.random() < (0.6 if kind == "oom" else 0.1):
            size = self._random.choice((1, 2, 3, 5)) * GiB
            asked |= {"gpus": self._random.choice((1, 1, 1, 2)), "cpus": 0}
            if self._random.random() < 0.85:
                asked["vram"] = size
            if kind == "gpu":
                argument = str(size)
        if kind in ("limit", "stubborn"):
            asked |= {"time_limit": self._random.choice((1.0, 1.5)), "grace": self._random.choice((0.2, 0.5))}
        elif kind == "warned":
            asked |= {"time_limit": 3.0, "early_signal": "USR1@2"}
        elif kind == "chatty":
            asked["log_limit"] = 64 * KiB
        return kind, argument, asked

    def _clause(self) -> str:
        """What a job waits for: one of one or two things."""
        return "|".join(
            f"{self._random.choice(('ok', 'any', 'failed', 'started'))}:{self._random.choice(self._mine[-8:])}"
            for _ in range(self._random.choice((1, 1, 2)))
        )

    def submit_here(self) -> None:
        """One job, an array or several commands over the socket."""
        kind, argument, template = self._kind()
        shape = self._random.choices(("one", "array", "several"), (8, 1, 1))[0]
        count = 1 if shape == "one" else self._random.randint(2, 5)
        tags = [self._tag() for _ in range(1 if shape == "array" else count)]
        commands = [self._world.command(kind, tag, argument) for tag in tags]
        template |= {"cwd": str(self._world.folder), "priority": self._random.randint(-2, 2)}
        if self._random.random() < 0.1:
            template["hold"] = True
        if self._mine and self._random.random() < 0.2:
            template["after"] = [self._clause() for _ in range(self._random.choice((1, 1, 2)))]
        array = {"indexes": list(range(count)), "limit": self._random.choice((0, 1, 2))} if shape == "array" else None
        key = os.urandom(16).hex()
        template["retry"] = self._random.choice(RETRIES)
        what = {"tags": tags, "count": count, "held": template.get("hold", False), "after": template.get("after", [])}
        what["retry"] = template["retry"]
        self._journal.note("submit", key=key, kind=kind, **what)
        reply = self._insist(
            "submit",
            lose=self._random.random() < 0.15,
            key=key,
            template=template,
            commands=commands,
            env=self._environment(),
            array=array,
            last=True,
        )
        self._submitted(key, *reply["ids"])

    def _environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in ("PATH", "HOME", "FAKE_NVML", "LD_LIBRARY_PATH")}

    def _submitted(self, key: str, first: int, last: int) -> None:
        self._journal.note("submitted", key=key, ids=[first, last])
        self._mine += range(first, last + 1)

    def submit_command(self) -> None:
        """The same through `gpuq submit`, and `--from`."""
        kind, argument, asked = self._kind()
        rules = self._random.choice(RETRIES)
        options = self._options(asked) + [word for rule in rules for word in ("--retry", rule)]
        key = os.urandom(16).hex()
        shape = self._random.choice(("one", "array", "from"))
        count = 1 if shape == "one" else self._random.randint(2, 4)
        tags = [self._tag() for _ in range(count if shape == "from" else 1)]
        commands = [self._world.command(kind, tag, argument) for tag in tags]
        self._journal.note("submit", key=key, kind=kind, tags=tags, count=count, held=False, after=[], retry=rules)
        if shape == "from":
            path = self._world.folder / f"commands-{self._name}"
            path.write_text("# a comment\n\n" + "".join("exec " + " ".join(c) + "\n" for c in commands))
            code, out, err = self._gpuq("submit", *options, "--from", str(path))
        elif shape == "array":
            code, out, err = self._gpuq("submit", *options, "--array", f"0-{count - 1}", "--", *commands[0])
        else:
            code, out, err = self._gpuq("submit", *options, "--", *commands[0])
        if code == 0:
            ids = [int(word) for word in out.split()]
            self._submitted(key, ids[0], ids[-1])
        else:
            self._journal.note("unanswered", op="gpuq submit", code=code, message=err)

    @staticmethod
    def _options(asked: dict[str, Any]) -> list[str]:
        options = ["--gpus", str(asked["gpus"]), "--cpus", str(asked["cpus"])]
        if "vram" in asked:
            options += ["--vram", f"{asked['vram'] // 1024**2}M"]
        if "log_limit" in asked:
            options += ["--log-limit", f"{asked['log_limit'] // KiB}K"]
        for name, option in WORDS.items():
            if name in asked:
                options += [option, f"{asked[name]:g}s" if isinstance(asked[name], float) else str(asked[name])]
        return options

    def _gpuq(self, *args: str) -> tuple[int, str, str]:
        process = self._world.start_client(list(args))
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self._journal.note("hangs", args=list(args))
            return -1, "", "it hangs"
        finally:
            self._world.client_ended(process)
        if b"Traceback" in err:
            self._journal.note("traceback", args=list(args), text=err.decode(errors="replace"))
        return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")

    # --- changing ---------------------------------------------------------------------------------

    def change(self) -> None:
        """Cancel, hold, suspend and so on one or two of our jobs."""
        if not self._mine:
            return
        op = self._random.choices(tuple(CHANGES), tuple(CHANGES.values()))[0]
        pool = self._mine[-5:] if op in ("cancel", "hold", "suspend") else self._mine[-30:]
        if op in LIVE:
            pool = self._open(*LIVE[op]) or pool
        ids = sorted({self._random.choice(pool) for _ in range(self._random.choice((1, 1, 2)))})
        key = os.urandom(8).hex()
        self._journal.note("change", op=op, ids=ids, key=key)
        if self._random.random() < 0.1:
            code, _, err = self._gpuq(op, *map(str, ids))
            done = ids if code == 0 else None
            if code not in (0, 1, 5):
                self._journal.note("error", action=op, kind="exit", message=f"{code}: {err}")
        else:
            reply = self._ask(op, sel={"ranges": [[n, n] for n in ids]})
            done = None if reply is None else reply["done"]
        if done is not None:
            self._journal.note("changed", op=op, ids=done, key=key)

    # --- waiting ----------------------------------------------------------------------------------

    def wait(self) -> None:
        """`gpuq wait` on a job that will end, and what it answers."""
        open_ = self._open()
        if not open_ or not self._waiters.room():
            return
        job_id = self._random.choice(open_)
        self._journal.note("wait", id=job_id, key=(key := os.urandom(8).hex()))

        def answered(code: int, _out: str, err: str) -> None:
            self._journal.note("waited", key=key, code=code, err=err)

        self._waiters.start(["wait", str(job_id)], answered)

    def run(self) -> None:
        """`gpuq run`: what it prints and how it exits."""
        if not self._waiters.room():
            return
        kind, argument, asked = self._kind()
        tag, key = self._tag(), os.urandom(8).hex()
        self._journal.note("submit", key=key, kind=kind, tags=[tag], count=1, held=False, after=[], retry=[])
        self._journal.note("run", key=key, tag=tag)

        def answered(code: int, out: str, err: str) -> None:
            self._journal.note("ran", key=key, code=code, out=out, err=err)

        args = ["run", *self._options(asked), "--", *self._world.command(kind, tag, argument)]
        self._waiters.start(args, answered)

    def follow(self) -> None:
        """`gpuq logs -f`: it ends when the job does."""
        open_ = self._open()
        if not open_ or not self._waiters.room():
            return
        job_id = self._random.choice(open_)
        self._journal.note("follow", id=job_id, key=(key := os.urandom(8).hex()))

        def answered(code: int, _out: str, err: str) -> None:
            self._journal.note("followed", key=key, code=code, err=err)

        self._waiters.start(["logs", "-f", str(job_id)], answered)

    def look(self) -> None:
        """Whatever people look at."""
        op = self._random.choice(("list", "status", "gpus", "why", "show"))
        if op in ("why", "show"):
            if self._mine:
                job_id = self._random.choice(self._mine)
                self._ask(op, sel={"ranges": [[job_id, job_id]]})
        elif self._random.random() < 0.1:
            self._gpuq("list", "--all")
        else:
            self._ask(op, **({"sel": {}, "all": True, "limit": 20} if op == "list" else {}))


def drain(journal: Journal) -> str | None:
    """Let all that is queued or runs come to its end, and cancel what is held. What is stuck, None if nothing is."""
    deadline = time.monotonic() + PATIENCE
    jobs: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        try:
            with Client.connect() as client:
                jobs = client.request("list", sel={}, all=False, limit=None)["jobs"]
                if not jobs:
                    return None
                for state, op in (("held", "cancel"), ("suspended", "resume")):
                    ids = [job["id"] for job in jobs if job["state"] == state]
                    if ids:
                        journal.note("change", op=op, ids=ids, key=(key := os.urandom(8).hex()))
                        done = client.request(op, sel={"ranges": [[n, n] for n in ids]})["done"]
                        journal.note("changed", op=op, ids=done, key=key)
        except DaemonUnreachable as error:
            journal.note("unanswered", op="drain", message=error.message)
        time.sleep(0.1)
    return ", ".join(f"job {j['id']} is {j['state']} ({j.get('reason')}: {j.get('reason_text')})" for j in jobs[:20])


def make_clients(world: World, waiters: Waiters, count: int, seed: int, stop: threading.Event) -> list[ClientThread]:
    return [ClientThread(world, waiters, f"c{n}", seed, stop) for n in range(count)]
