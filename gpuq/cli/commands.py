"""The commands of one submission, in parts: one that was typed, or a file of them, of which only a part is in memory.

A file is read twice: to see that every line can be queued, and to send them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

from gpuq.errors import UsageError
from gpuq.protocol import MAX_JOBS

#: A part of a submission, in commands and in bytes of them.
PART_COMMANDS = 2000
PART_BYTES = 1024 * 1024
#: MAX_ARG_STRLEN of Linux: 32 pages for one argument with its NUL (execve(2)).
MAX_SHELL_LINE = 128 * 1024 - 1

Command = list[str]


class Typed:
    """One command, as it stood on the command line."""

    count = 1

    def __init__(self, command: Command) -> None:
        self._command = command

    def parts(self) -> Iterator[list[Command]]:
        yield [self._command]


class Lines:
    """A `/bin/sh -c` command per line of a file; blank and `#` lines are skipped. A context manager.

    Raises UsageError, naming file and line, for what cannot be queued. What can be read only once is kept in a
    temporary file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._name = "standard input" if path == "-" else path
        self._open = ExitStack()
        self._file: BinaryIO
        self._start = 0
        #: how many commands there are
        self.count = 0

    def __enter__(self) -> "Lines":
        with self._open as files:
            self._file = self._opened(files)
            self._start = self._file.tell()  # of standard input, somebody may have read the beginning
            self.count = sum(1 for _ in self._commands())
            if not self.count:
                raise UsageError(f"{self._name}: holds no command (blank and # lines are none); nothing was queued")
            self._open = files.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _opened(self, files: ExitStack) -> BinaryIO:
        try:
            if self.path == "-":
                file: BinaryIO = sys.stdin.buffer
            else:
                file = files.enter_context(open(self.path, "rb"))  # noqa: SIM115
            if file.seekable():
                return file
            import shutil  # slow to import, as is tempfile, and seldom needed
            import tempfile

            kept = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            shutil.copyfileobj(file, kept, PART_BYTES)
            kept.seek(0)
            return kept
        except OSError as error:
            raise self._unreadable(error) from None

    def parts(self) -> Iterator[list[Command]]:
        """All commands, from the beginning each time."""
        part: list[Command] = []
        size = 0
        for command in self._commands():
            part.append(command)
            size += len(command[2])
            if len(part) >= PART_COMMANDS or size >= PART_BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part

    def _commands(self) -> Iterator[Command]:
        try:
            self._file.seek(self._start)
            yield from read_lines(self._file, self._name)
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> UsageError:
        return UsageError(f"--from {self.path!r} cannot be read: {error.strerror}")


def read_lines(file: BinaryIO, where: str) -> Iterator[Command]:
    """A shell command per line; blank and `#` lines are skipped. Raises UsageError, OSError."""
    number = found = 0
    while line := file.readline(MAX_SHELL_LINE + 3):  # room for the line's end, and one byte to see that it is too long
        number += 1
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
        if b"\0" in text:
            raise UsageError(f"{where}, line {number}: holds a NUL byte; nothing was queued")
        if len(text) > MAX_SHELL_LINE:
            raise UsageError(
                f"{where}, line {number}: longer than {MAX_SHELL_LINE:,} bytes, which is more than Linux "
                "passes to a shell; nothing was queued"
            )
        if not text.strip() or text.lstrip().startswith(b"#"):
            continue
        found += 1
        if found > MAX_JOBS:
            raise UsageError(f"{where}: more than {MAX_JOBS:,} commands; nothing was queued")
        yield ["/bin/sh", "-c", os.fsdecode(text)]
