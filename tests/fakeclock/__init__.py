"""A wall clock for one program that a test may set, while the machine's own is left alone.

clock = FakeClock(tmp_path)
box.ok("daemon", "start", env=clock.env)
clock.set_by(-86400)
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "clock.c"


class FakeClock:
    """Seconds by which the clock of every program with `env` is ahead of the true one."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._file.write_bytes(struct.pack("q", 0))
        library = folder / "fakeclock.so"
        strict = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE")
        subprocess.run(["cc", *strict, "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        self.env = {"LD_PRELOAD": str(library), "FAKECLOCK": str(self._file)}

    def set_by(self, seconds: int) -> None:
        """From now on the clock is ahead by this much."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(struct.pack("q", seconds))
