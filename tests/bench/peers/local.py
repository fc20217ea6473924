"""GPU queues of one host: gq-local and gflow. Both ask NVML what there is, so they are given the tests' fake one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.bench.peers.base import Peer, ran
from tests.bench.stamps import Stamps
from tests.fakenvml import FakeNvml, GiB, fake_gpus


class _OnFakeGpus(Peer):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.env |= FakeNvml(folder / "nvml", fake_gpus(24 * GiB, 24 * GiB)).env


class GqLocal(_OnFakeGpus):
    name, program, package = "gq-local", "gq", "PyPI: gq-local"

    def start(self) -> None:
        self.env |= {
            "GQ_DATA_DIR": str(self.folder / "data"),
            "GQ_RUNTIME_DIR": str(self.folder / "run"),
            "GQ_ALLOW_ROOT": "1",
        }
        self.execute(["gq", "daemon", "start"])

    def stop(self) -> None:
        self.execute(["gq", "daemon", "stop"])

    def submit(self, argv: list[str]) -> list[str]:
        return ["gq", "run", "-g", "1", "--", *argv]

    def submit_whole(self, argv: list[str]) -> list[str]:
        return ["gq", "run", "-g", "2", "--", *argv]

    def listing(self) -> list[str]:
        return ["gq", "ps"]

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:
        def work(count: int) -> None:
            for _ in range(count):
                self.execute(self.submit(stamps.job))
            ran(stamps, count)

        return {"gq-local, a command each, results kept": (40, work)}


class Gflow(_OnFakeGpus):
    """Its jobs are CPU jobs here: those with GPUs wait until NVML shows them."""

    name, program, package = "gflow", "gflowd", "PyPI: runqd; it needs tmux"

    def start(self) -> None:
        self.env |= {"TMUX_TMPDIR": str(self.folder), "SHELL": "/bin/bash"}
        profile = self.folder / "home" / ".bash_profile"  # its jobs run in login shells
        profile.write_text(f"export PATH='{os.environ['PATH']}'\n")
        self.execute(["gflowd", "init", "--yes", "--port", str(free_port())])
        self.execute(["gflowd", "start"])

    def stop(self) -> None:
        self.execute(["gflowd", "stop"])

    def submit(self, argv: list[str]) -> list[str]:
        return ["gbatch", "--auto-close", *argv]

    def listing(self) -> list[str]:
        return ["gqueue"]

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:
        def work(count: int) -> None:
            limits = ["--array", f"1-{count}", "--max-concurrent", "2"]
            self.execute(["gbatch", "--auto-close", *limits, *stamps.job])
            ran(stamps, count)

        return {"gflow --array": (6, work)}


def free_port() -> int:
    """A TCP port of this host that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
