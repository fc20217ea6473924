"""`daemon logs`: the daemon's own log, for people or as it is, across the files that were put aside."""

import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpuq import config
from gpuq.cli.common import on_terminal, tell, write_raw
from gpuq.cli.fields import local_time
from gpuq.cli.follow import Log, Watch
from gpuq.errors import GpuqError
from gpuq.units import printable

#: A file that is put aside is renamed, one that somebody removes loses its name: inotify(7).
IN_ATTRIB = 0x4
IN_MODIFY = 0x2
IN_MOVE_SELF = 0x800

#: Lines that are shown on a terminal where nobody said how many.
SCREENFULS = 200

Show = Callable[[bytes], None]


def print_log(folder: Path, *, lines: int | None, follow: bool, raw: bool) -> None:
    """Print it, or its last lines, and with `follow` what comes. Raises GpuqError if there is none."""
    paths = [path for path in config.log_files(folder) if path.exists()]
    if not paths:
        raise GpuqError(f"there is no {config.log_files(folder)[-1]}: no daemon has run here yet")
    show = write_raw if raw else _shower()
    log = _print_past(paths, lines, show)
    if not follow:
        log.close()
        return
    sys.stdout.flush()
    _follow(folder, log, show)


def _print_past(paths: list[Path], lines: int | None, show: Show) -> Log:
    """Everything so far; the newest file, open where its last whole line ends."""
    wanted = SCREENFULS if lines is None and on_terminal() and show is not write_raw else lines
    skip = 0 if wanted is None else max(0, sum(map(_count, paths)) - wanted)
    if skip and lines is None:
        tell(f"{skip:,} lines before these are not shown; -n shows more")
    for path in paths:
        log = _open(path)
        for line in _whole_lines(log):
            if skip:
                skip -= 1
            else:
                show(line)
        if path != paths[-1]:
            log.close()
    return log


def _count(path: Path) -> int:
    log = _open(path)
    try:
        return sum(1 for _ in _whole_lines(log))
    finally:
        log.close()


def _open(path: Path) -> Log:
    try:
        return Log(str(path))
    except FileNotFoundError:
        raise GpuqError(f"the log {path} was put aside or removed just now: try again") from None


def _whole_lines(log: Log) -> Iterator[bytes]:
    """Lines that end, from where the log was read to; half of one is left for the next time."""
    rest = b""
    while data := log.read():
        *whole, rest = (rest + data).split(b"\n")
        yield from (line + b"\n" for line in whole)
    log.unread(len(rest))


def _follow(folder: Path, log: Log, show: Show) -> None:
    """Show what is appended, until a signal ends us; when the file is put aside, go on in those that came after."""
    path = config.log_files(folder)[-1]
    watch = Watch()
    try:
        while True:
            watch.file(log.fd, IN_MODIFY | IN_MOVE_SELF | IN_ATTRIB)
            for line in _whole_lines(log):
                show(line)
            newer = _newer(folder, log)
            if newer is None and not path.exists():
                watch.coming(str(path))
                newer = _newer(folder, log)
            if newer is not None:
                log.close()
                log = newer
                continue
            sys.stdout.flush()
            select.select([watch.fd], [], [])
            watch.drain()
    finally:
        watch.close()
        log.close()


def _newer(folder: Path, log: Log) -> Log | None:
    """The file that was begun after this one, None while this is the one that grows, or the next is not there yet."""
    found = os.fstat(log.fd)
    own = found.st_dev, found.st_ino
    files = config.log_files(folder)
    names = [_identity(path) for path in files]
    # one that has no name any more was removed, by somebody or as the oldest
    for path in files[names.index(own) + 1 :] if own in names else files[-1:]:
        try:
            return Log(str(path))
        except FileNotFoundError:
            continue
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _shower() -> Show:
    """How a line is shown to a person: with colours on a terminal."""
    if on_terminal():
        from gpuq.cli.render import log_printer

        show = log_printer()
        return lambda line: show(*parts(line))

    def plain(line: bytes) -> None:
        at, level, text = parts(line)
        sys.stdout.write(f"{at}  {level:<7}  {text}\n")

    return plain


def parts(line: bytes) -> tuple[str, str, str]:
    """Local time, level and message of a line, the trace of an exception below it; a line that is none, as it is."""
    try:
        told: Any = json.loads(line)
        at = local_time(told["at"])
        level, message = str(told["level"]), str(told["message"])
        trace = str(told.get("trace") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return "-", "-", printable(line.decode("utf-8", "replace").rstrip("\n"))
    below = "".join(f"\n    {printable(one)}" for one in trace.splitlines())
    return at, level, printable(message) + below
