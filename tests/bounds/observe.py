"""A daemon whose calls and SQL statements are counted from outside, by the library and by SQLite."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.bench.kernel import children
from tests.harness import Box

_HERE = Path(__file__).parent
#: Calls that wait for the disk.
DURABLE = ("fsync", "fdatasync")


@functools.cache
def _library() -> bytes:
    """`calls.c`, compiled once per process."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "calls.so"
        strict = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
        subprocess.run(["cc", *strict, "-o", str(target), str(_HERE / "calls.c"), "-ldl"], check=True)
        return target.read_bytes()


@dataclass(frozen=True)
class Counts:
    """How often each thing was done: calls by the daemon, by all others together, and SQL statements."""

    daemon: Counter[str]
    others: Counter[str]
    sql: Counter[str]
    #: system calls that read and write (syscr and syscw of /proc/PID/io, proc(5)) of the daemon, its children, and all
    #: that these have reaped; those that count are left out
    transfers: int

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(
            self.daemon - earlier.daemon,
            self.others - earlier.others,
            self.sql - earlier.sql,
            self.transfers - earlier.transfers,
        )

    @property
    def durable(self) -> tuple[int, int]:
        """Times that the daemon, and all others, waited for the disk."""
        return sum(self.daemon[name] for name in DURABLE), sum(self.others[name] for name in DURABLE)


class Observed:
    """Starts the box's daemon, and what that starts is observed with it; its jobs are not."""

    def __init__(self, box: Box) -> None:
        folder = box.folder / "observed"
        folder.mkdir()
        library = folder / "calls.so"
        library.write_bytes(_library())
        self._calls, self._sql = folder / "calls", folder / "sql"
        path = os.environ.get("PYTHONPATH")
        box.setenv(
            LD_PRELOAD=str(library),
            GPUQ_TEST_CALLS=str(self._calls),
            GPUQ_TEST_SQL=str(self._sql),
            PYTHONPATH=":".join(filter(None, [str(_HERE / "traced"), path])),
        )
        self.pid = box.daemon_pid()
        box.setenv(LD_PRELOAD=None, GPUQ_TEST_CALLS=None, GPUQ_TEST_SQL=None, PYTHONPATH=path)

    def counts(self) -> Counts:
        lines = self._calls.read_text().splitlines()
        told = [(int(pid), name) for pid, _, name in (line.partition(" ") for line in lines)]
        daemon = Counter(name for pid, name in told if pid == self.pid)
        others = Counter(name for pid, name in told if pid != self.pid)
        sql = Counter(line.split()[1] for line in self._sql.read_text().splitlines())
        counting = len(lines) + sum(sql.values())  # a write for each line
        return Counts(daemon, others, sql, sum(map(_transfers, (self.pid, *children(self.pid)))) - counting)


def _transfers(pid: int) -> int:
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(io["syscr"]) + int(io["syscw"])
