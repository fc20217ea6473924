"""What the bench asks of another queue: to run in a folder of its own, and to be gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from tests.bench.kernel import processes_of
from tests.bench.measure import Unfit
from tests.bench.stamps import Stamps

#: Longest that a peer may take for one thing, in seconds.
PATIENCE = 60.0


class Peer:
    """A queue with two slots. Commands of it see `env`: a home and temporary files of its own."""

    #: what it is called here, the program that is looked for, and what to install
    name: ClassVar[str]
    program: ClassVar[str]
    package: ClassVar[str]
    #: exit codes of `listing` that are no failure
    listing_codes: ClassVar[tuple[int, ...]] = (0,)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("home", "tmp"):
            (folder / name).mkdir(parents=True)
        ours = ("GPUQ_", "XDG_", "CUDA_", "PYTHONDONTWRITEBYTECODE", "TMUX")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "BENCH_PEER": f"{folder}/"}

    @classmethod
    def lacks(cls) -> str | None:
        """Why it cannot be measured here, None where it can."""
        return None if shutil.which(cls.program) else f"{cls.program} is not installed ({cls.package})"

    def __enter__(self) -> Peer:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and end whatever is left of it."""
        with suppress(OSError, subprocess.SubprocessError):
            self.stop()
        for pid in processes_of(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        """Begin what it needs to run. Raises what is wrong."""

    def stop(self) -> None:
        """End what `start` began."""

    # --- what is measured; None where it has no such thing ---------------------------------------------

    def submit(self, argv: list[str]) -> list[str] | None:  # noqa: ARG002
        """The command that queues a job."""
        return None

    def submit_whole(self, argv: list[str]) -> list[str] | None:  # noqa: ARG002
        """The command that queues a job which needs all there is, so that the next one waits for it."""
        return None

    def listing(self) -> list[str] | None:
        """The command that shows the queue."""
        return None

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:  # noqa: ARG002
        """Ways to run so many jobs to their end, two at a time, by their names in the table, with the most jobs.

        What takes a second for each is not asked for thousands. The jobs are `true`, or `stamps.job` where the peer
        has no way to wait for all of them.
        """
        return {}

    # --- for those that implement it -----------------------------------------------------------------

    def execute(self, argv: list[str], codes: tuple[int, ...] = (0,)) -> None:
        """A command, its output dropped. Raises Unfit, TimeoutExpired."""
        null = subprocess.DEVNULL
        done = subprocess.run(
            argv,
            stdin=null,
            stdout=null,
            stderr=subprocess.PIPE,
            env=self.env,
            cwd=self.folder,
            timeout=PATIENCE,
        )
        if done.returncode not in codes:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Unfit(f"{argv[0]} exited with {done.returncode}: {said[-1] if said else ''}"[:200])

    def shell(self, script: str, *words: str) -> None:
        self.execute(["/bin/sh", "-c", script, "sh", *words])


def ran(stamps: Stamps, count: int) -> None:
    """Until so many jobs have said that they run. Raises Unfit."""
    for _ in range(count):
        stamps.next()
