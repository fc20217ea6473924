"""The command line as a person has it: its output line by line, and a pseudo-terminal to type at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from types import TracebackType
from typing import IO, Any

from tests.harness import GPUQ, PATIENCE

#: Colours, cursor movements and modes (ECMA-48 control sequences).
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[=>()][0B]?|\x1b\][^\x07]*\x07")


def read_line(process: subprocess.Popen[str], stream: IO[str] | None = None) -> str:
    """The next line of its standard output, or of the given stream; empty if there is none within PATIENCE."""
    chosen = stream or process.stdout
    assert chosen is not None
    giving_up = threading.Timer(PATIENCE, process.kill)
    giving_up.start()
    try:
        return chosen.readline()
    finally:
        giving_up.cancel()
        giving_up.join()


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The rest of its output and its messages, once it has ended."""
    out, err = process.communicate(timeout=PATIENCE)
    return out, err


class Terminal:
    """A command whose standard streams are a terminal of the given size."""

    def __init__(
        self,
        *args: str,
        columns: int = 80,
        rows: int = 24,
        program: list[str] | None = None,
        term: str = "xterm-256color",
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [*(program or GPUQ), *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": term},
        )
        self.raw = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    @property
    def text(self) -> str:
        """What was shown so far, without colours."""
        return ESCAPES.sub("", self.raw).replace("\r", "")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def mode(self) -> list[object]:
        """The terminal's settings now."""
        return termios.tcgetattr(self._slave)

    def set_mode(self, mode: list[Any]) -> None:
        termios.tcsetattr(self._slave, termios.TCSANOW, mode)

    def read_until(self, wanted: str, times: int = 1) -> str:
        """All that was shown, once the wanted text was, so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.text.count(wanted) < times:
            assert time.monotonic() < deadline, f"{wanted!r} was not shown:\n{self.text}"
            if select.select([self._master], [], [], 0.05)[0]:
                self.raw += os.read(self._master, 65536).decode(errors="replace")
        return self.text

    def finish(self) -> tuple[int, str]:
        """Exit code and all that was shown."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None  # before the last look
            if select.select([self._master], [], [], 0.05)[0]:
                self.raw += os.read(self._master, 65536).decode(errors="replace")
            elif ended:
                return self.process.returncode, self.text
            assert time.monotonic() < deadline, f"it did not end:\n{self.text}"


def shown(*args: str, columns: int = 80) -> str:
    """What a command that must succeed shows on a terminal."""
    with Terminal(*args, columns=columns) as terminal:
        code, text = terminal.finish()
    assert code == 0, text
    return text
