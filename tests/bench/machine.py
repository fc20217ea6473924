"""The machine's own limit: what no queue on it can be faster than, each part of it alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import Measure, timed
from tests.bench.world import World

_STARTS, _COMMITS, _TRIPS = 50, 100, 50


def measures(world: World) -> list[Measure]:
    folder = world.folder / "machine"
    folder.mkdir()
    return [
        _rate("process starts, one after the other", _STARTS, lambda: _starts(1)),
        _rate("process starts, two at a time", _STARTS, lambda: _starts(2)),
        _rate("commits, WAL with synchronous=FULL", _COMMITS, _commits(folder)),
        _rate("a JSON round trip over a new Unix connection", _TRIPS, _round_trips(folder)),
        Measure("machine", "a new file of 4 KiB and its fsync", lambda: timed(lambda: _synced(folder / "synced"))),
    ]


def _rate(name: str, count: int, work: Callable[[], None]) -> Measure:
    return Measure("machine", name, lambda: count / timed(work), unit="/s")


def _starts(lanes: int) -> None:
    """Processes that end at once, so many at a time."""
    program = shutil.which("true") or "/bin/true"
    running: list[int] = []
    for _ in range(_STARTS):
        if len(running) == lanes:
            os.waitpid(running.pop(0), 0)
        running.append(os.posix_spawn(program, ["true"], {}))
    for pid in running:
        os.waitpid(pid, 0)


def _commits(folder: Path) -> Callable[[], None]:
    """One row each, as a queue's results come."""
    database = sqlite3.connect(folder / "commits.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE results (id INTEGER PRIMARY KEY, body TEXT)")

    def take() -> None:
        for _ in range(_COMMITS):
            database.execute("INSERT INTO results (body) VALUES (?)", ("x" * 100,))

    return take


def _round_trips(folder: Path) -> Callable[[], None]:
    """A client's connection, a line each way, both read as JSON. The server is a thread of the bench."""
    address = str(folder / "sock")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()

    def serve() -> None:
        while True:
            connection = listening.accept()[0]
            with connection, connection.makefile("rwb") as lines:
                lines.write(json.dumps({"ok": True, **json.loads(lines.readline())}).encode() + b"\n")

    threading.Thread(target=serve, daemon=True).start()

    def take() -> None:
        for number in range(_TRIPS):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)
                client.sendall(json.dumps({"v": 1, "op": "status", "number": number}).encode() + b"\n")
                with client.makefile("rb") as lines:
                    json.loads(lines.readline())

    return take


def _synced(file: Path) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, bytes(4096))
    os.fsync(fd)
    os.close(fd)
