"""Jobs say themselves when they run: their times come out of a FIFO, so that nobody's bookkeeping is believed."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path

from tests.bench.measure import Unfit

SOURCE = Path(__file__).with_name("stamp.c")
#: Longest wait for a job of a queue that is well, in seconds.
PATIENCE = 30.0


def compiled(folder: Path) -> Path:
    """The program of `stamp.c`, static where there is a libc.a, else with the dynamic linker's time in it."""
    program = folder / "stamp"
    compiler = ["cc", "-O1", "-o", str(program), str(SOURCE)]
    if subprocess.run([*compiler, "-static"], stderr=subprocess.DEVNULL).returncode != 0:
        subprocess.run(compiler, check=True)
    return program


class Stamps:
    """Where the jobs of one queue write to: `job` and `gated` are their commands."""

    def __init__(self, program: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._gate = folder / "stamps", folder / "gate"
        os.mkfifo(self._file)
        os.mkfifo(self._gate)
        self._read = os.open(self._file, os.O_RDWR | os.O_NONBLOCK)  # also for writing: it never ends
        self._buffer = b""
        self.job = [str(program), str(self._file)]
        self.gated = [*self.job, str(self._gate)]

    def next(self) -> float:
        """The next job's time on the monotonic clock. Raises Unfit where none comes."""
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Unfit(f"no job ran within {PATIENCE:.0f} s")
            self._buffer += os.read(self._read, 4096)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return int(line) / 1e9

    def open_gate(self) -> None:
        """Let the gated job end, which must have been submitted. Raises Unfit where it does not run."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                gate = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:  # ENXIO: it is not at the gate yet (fifo(7))
                if time.monotonic() > deadline:
                    raise Unfit(f"the job at the gate did not run within {PATIENCE:.0f} s") from None
                time.sleep(0.002)
        time.sleep(0.05)  # so that what its start and the other's submission made the queue do is over
        os.write(gate, b".")
        os.close(gate)
