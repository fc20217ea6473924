"""A daemon in a folder of its own, and what the kernel says of a process. Nothing of it is left afterwards."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpuq.client import Client
from tests.bench.kernel import children

#: Longest wait for a daemon to end, in seconds.
PATIENCE = 30


def program() -> list[str]:
    """`gpuq` as this interpreter's environment has it installed, else as a module."""
    script = Path(sys.executable).with_name("gpuq")
    return [str(script)] if script.exists() else [sys.executable, "-m", "gpuq"]


class Bed:
    """One state folder with its daemon. Commands see `env`: a home of its own, and nothing of the caller's gpuq."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        (folder / "home").mkdir(parents=True)
        ours = ("GPUQ_", "XDG_", "CUDA_", "PYTHONDONTWRITEBYTECODE")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"HOME": str(folder / "home"), "GPUQ_STATE_DIR": str(self.state), "NO_COLOR": "1", **env}
        #: the job that takes all CPUs, None while there is none
        self.runs: int | None = None

    def __enter__(self) -> Bed:
        self.call("daemon", "start")
        self.pid = int(self.request("status")["pid"])
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the daemon and its jobs, by force if it must be."""
        pidfd = os.pidfd_open(self.pid)
        try:
            self.call("daemon", "stop", "--jobs")
            if not select.select([pidfd], [], [], PATIENCE)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)

    def call(self, *args: str) -> None:
        """A command, its output dropped. Raises CalledProcessError."""
        self.execute([*program(), *args])

    def execute(self, argv: list[str]) -> None:
        null = subprocess.DEVNULL
        subprocess.run(argv, stdin=null, stdout=null, stderr=null, env=self.env, cwd=self.folder, check=True)

    def client(self) -> Client:
        os.environ["GPUQ_STATE_DIR"] = str(self.state)  # where the client looks; there are several beds
        client = Client.connect(start=False)
        client.socket.settimeout(None)  # however long: it is measured
        return client

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        with self.client() as client:
            return client.request(op, **fields)

    def submit(self, commands: list[list[str]], **template: Any) -> tuple[int, float]:
        """Submit CPU jobs over the socket; the last id, and the monotonic time at which the reply was there."""
        fields = {"cwd": str(self.folder), "gpus": 0, **template}
        with self.client() as client:
            reply = client.request(
                "submit", key=os.urandom(16).hex(), template=fields, commands=commands, env=self.env, last=True
            )
            accepted = time.monotonic()
        return int(reply["ids"][1]), accepted

    def fill(self, count: int) -> None:
        """One job that takes all CPUs, and `count` jobs that wait for it."""
        self.runs, _ = self.submit([["sleep", "86400"]], cpus=len(os.sched_getaffinity(0)))
        for left in range(count, 0, -1000):
            self.submit([["true"]] * min(left, 1000), name="waits")

    def wait(self, first: int, last: int | None = None) -> dict[str, Any]:
        """The first of these jobs, once all have ended."""
        with self.client() as client:
            found = client.request("wait", sel={"ranges": [[first, last or first]]})["jobs"][0]
        assert isinstance(found, dict)
        return found

    def last(self) -> int:
        """Id of the job that was submitted last."""
        return int(self.request("show", sel={"last": True})["jobs"][0]["id"])

    def supervisor(self, job_id: int) -> int:
        """Pid of a running job's supervisor, from the file in which it says who it is."""
        deadline = time.monotonic() + PATIENCE
        while not (identity := self._run_dir(job_id) / "identity").exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{identity} did not appear")
            time.sleep(0.01)
        return int(json.loads(identity.read_bytes())["pid"])

    def _run_dir(self, job_id: int) -> Path:
        """Of its newest attempt; before the first one the folder of none."""
        attempts = self.request("show", sel={"ranges": [[job_id, job_id]]})["jobs"][0]["attempts"]
        return Path(attempts[-1]["run_dir"]) if attempts else self.folder / "none"

    def running_on(self, job_id: int) -> tuple[str, int]:
        """UUID of the GPU of a job that has one, and the job's pid, once it runs."""
        supervisor = self.supervisor(job_id)
        deadline = time.monotonic() + PATIENCE
        while not (pids := children(supervisor)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} did not begin")
            time.sleep(0.01)
        job = self.request("show", sel={"ranges": [[job_id, job_id]]})["jobs"][0]
        return str(job["gpus"][0]), pids[0]
