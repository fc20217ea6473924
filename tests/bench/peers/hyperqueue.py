"""HyperQueue, by its client library in a program that runs already: a command of its own would take 100 ms more."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import Unfit
from tests.bench.peers.base import Peer
from tests.bench.stamps import Stamps

#: A server and a worker with two CPUs in one process; for each number that it reads, so many tasks of one job.
_PROGRAM = """\
import sys
from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=2))
    client = cluster.client()
    print('ready', file=sys.stderr, flush=True)
    for line in sys.stdin:
        job = Job()
        for _ in range(int(line)):
            job.program(['/bin/sh', '-c', 'true'], stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])
        print('done', file=sys.stderr, flush=True)
"""


class HyperQueue(Peer):
    name, program, package = "hyperqueue", "hyperqueue", "PyPI: hyperqueue"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def lacks(cls) -> str | None:
        found = importlib.util.find_spec("hyperqueue")
        return None if found else f"{cls.program} is not installed for {sys.executable} ({cls.package})"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.env, "PATH": os.environ["PATH"]},
            cwd=self.folder,
        )
        self._until("ready")

    def stop(self) -> None:
        if self._process is not None:
            with self._process:
                self._process.kill()

    def _until(self, word: str) -> None:
        assert self._process is not None and self._process.stderr is not None
        for line in self._process.stderr:
            if line.strip() == word:
                return
        raise Unfit(f"it ended before it was {word}")

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:  # noqa: ARG002
        return {"hyperqueue, one job of many tasks, no journal": (5000, self._batch)}

    def _batch(self, count: int) -> None:
        assert self._process is not None and self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        self._until("done")
