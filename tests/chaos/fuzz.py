"""Fuzzing: `python -m tests.chaos.fuzz --minutes 10` tries each target in turn, a daemon's socket too, and counts."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from gpuq import errors
from gpuq.client import Client
from tests.chaos import inputs
from tests.chaos.targets import TARGETS, Target

#: Longest that the daemon may take for an answer, in seconds.
PATIENCE = 30.0


def hammer(target: Target, examples: int, start: int | None = None) -> int:
    """Try so many inputs; how many there were. Raises what the target raises, with the smallest input that does it."""
    tried = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(target.inputs)
    def one(value: Any) -> None:
        nonlocal tried
        tried += 1
        target.run(value)

    (one if start is None else seed(start)(one))()
    return tried


# --- the socket -----------------------------------------------------------------------------------


class Wire:
    """A daemon's socket, and what must hold of whatever is said there."""

    def __init__(self, state: Path) -> None:
        self._path = str(state / "sock")
        self._log = state / "daemon.log"
        self.pid = self._status()["pid"]
        self.descriptors = self._open_descriptors()
        self.kinds: Counter[str] = Counter()
        self._random = random.Random(1)

    @staticmethod
    def _status() -> dict[str, Any]:
        with Client.connect() as client:
            return client.request("status")

    def _open_descriptors(self) -> int:
        """Without the two of each supervisor: its pidfd, and the channel to it."""
        names = os.listdir(f"/proc/{self.pid}/fd")
        count = len(names)
        for name in names:
            with suppress(FileNotFoundError):
                count -= 2 * (os.readlink(f"/proc/{self.pid}/fd/{name}") == "anon_inode:[pidfd]")
        return count

    def say(self, data: bytes) -> None:
        """On one connection: whole, in pieces, or without waiting for an answer; then judge the answers."""
        how = self._random.random()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(self._path)
            try:
                if how < 0.1:
                    for at in range(min(len(data), 40)):
                        connection.sendall(data[at : at + 1])
                    connection.sendall(data[40:])
                else:
                    connection.sendall(data)
                if how > 0.95:
                    return  # rude, and allowed
                connection.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all of it was said
            self._judge(data, self._read(connection))

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        answers = b""
        try:
            while chunk := connection.recv(1 << 16):
                answers += chunk
        except ConnectionResetError:
            pass  # it closed while there was still something to be read
        return answers

    def _judge(self, data: bytes, answers: bytes) -> None:
        for line in answers.splitlines():
            answer = json.loads(line)
            if answer.get("ok") is True:
                self.kinds["ok"] += 1
                continue
            error = answer["error"]
            assert error["kind"] in errors.all_errors() and error["message"], f"{data[:500]!r} is answered {line!r}"
            assert error["kind"] != "GpuqError", f"{data[:500]!r} is answered {line!r}"
            self.kinds[error["kind"]] += 1

    @contextmanager
    def guarded(self) -> Iterator[Wire]:
        """Look after the block at what `check` looks at."""
        yield self
        self.check()

    def check(self) -> None:
        """The daemon is the same, holds no connection any more, and never met what it did not expect."""
        assert self._status()["pid"] == self.pid, "the daemon died"
        deadline = time.monotonic() + PATIENCE
        while self._open_descriptors() > self.descriptors:
            assert time.monotonic() < deadline, f"{self._open_descriptors()} descriptors, {self.descriptors} before"
            time.sleep(0.02)
        assert b'"trace":' not in self._log.read_bytes(), "there is a traceback in the daemon's log"


def wire_target(wire: Wire) -> Target:
    return Target("the socket", inputs.lines(), wire.say)


# --- the command ----------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    begin = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="gpuq-fuzz-"))
    for name in list(os.environ):
        if name.startswith(("GPUQ_", "XDG_")):
            del os.environ[name]
    os.environ.update(GPUQ_STATE_DIR=str(folder / "state"), GPUQ_GPUS="sim:2x24GiB", HOME=str(folder))
    os.environ.update(GPUQ_CLAIMS_DIR=str(folder), TMPDIR=str(folder))
    tempfile.tempdir = str(folder)
    wire = Wire(folder / "state")
    try:
        tried = rounds(wire, begin, time.monotonic() + options.minutes * 60)
    finally:
        with Client.connect() as client:
            list(client.stream("stop", jobs=True))
        shutil.rmtree(folder, ignore_errors=True)
    for name, count in tried.items():
        print(f"{name:24} {count:>10,}")
    print(f"{'all':24} {tried.total():>10,}   seed {begin}")
    print("answers on the socket:", dict(wire.kinds))
    return 0


def rounds(wire: Wire, begin: int, deadline: float) -> Counter[str]:
    """Each target for a while, until the time is up; the inputs tried, by target."""
    tried: Counter[str] = Counter()
    turn = 0
    while time.monotonic() < deadline:
        turn += 1
        for target in (*TARGETS, wire_target(wire)):
            tried[target.name] += hammer(target, 400, begin + turn)
        wire.check()
    return tried


if __name__ == "__main__":
    sys.exit(main())
