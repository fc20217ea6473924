"""Sizes and durations as people write them. Pure.

A bare number is refused for both: `--vram 10` and `--time 90` mean different things to different people.
"""

from __future__ import annotations

import re

from gpuq.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", re.ASCII | re.IGNORECASE)
_FACTOR = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SPAN = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "wdhms"), re.ASCII)
_SECONDS = (7 * 86400, 86400, 3600, 60, 1)
_CLOCK = re.compile(r"(\d+):([0-5]\d):([0-5]\d)", re.ASCII)

#: Larger than any host; keeps sums inside SQLite's 64-bit integers.
MAX_SIZE = 1024**5
#: Ten years, in seconds.
MAX_TIME = 3660 * 86400.0


def parse_size(text: str, what: str = "size") -> int:
    """Bytes from `10GiB`, `10G` (GiB), `512M`, `1.5GiB`. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} {text!r} is not a size: write a number and a unit, as in 10GiB, 10G or 512M")
    size = int(float(match[1]) * _FACTOR[match[2].upper()]) if len(match[1]) < 20 else MAX_SIZE + 1
    if size <= 0:
        raise UsageError(f"{what} {text!r} must be more than zero")
    if size > MAX_SIZE:
        raise UsageError(f"{what} {text!r} is larger than any host ({format_size(MAX_SIZE)})")
    return size


def parse_duration(text: str, what: str = "time") -> float:
    """Seconds from `90s`, `30m`, `1.5h`, `1d`, `1w`, `1h30m`, `H:MM:SS`. Raises UsageError."""
    word = text.strip()
    clock, span = _CLOCK.fullmatch(word), _SPAN.fullmatch(word)
    if not word or (clock is None and span is None):
        raise UsageError(f"{what} {text!r} is not a time: write 90s, 30m, 2h, 1d, 1w, 1.5h, 1h30m or H:MM:SS")
    if len(word) > 30:
        raise UsageError(f"{what} {text!r} is longer than ten years")
    if clock is not None:
        seconds = int(clock[1]) * 3600.0 + int(clock[2]) * 60 + int(clock[3])
    else:
        assert span is not None
        seconds = sum(float(number or 0) * unit for number, unit in zip(span.groups(), _SECONDS, strict=True))
    if seconds <= 0:
        raise UsageError(f"{what} {text!r} must be more than zero")
    if seconds > MAX_TIME:
        raise UsageError(f"{what} {text!r} is longer than ten years")
    return seconds


def format_size(size: int) -> str:
    """`10GiB`, `9.5GiB`, `512MiB`: at most one decimal, the largest unit that keeps the number at 1 or more."""
    for unit, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(size) >= factor:
            number = f"{size / factor:.1f}".removesuffix(".0")
            return f"{number}{unit}"
    return f"{size}B"


def format_duration(seconds: float) -> str:
    """`45s`, `12m05s`, `3h07m`, `2d04h`: two units, the larger first. Whole seconds, rounded down."""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d{hours:02}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes:02}m"
    if minutes:
        return f"{minutes}m{secs:02}s"
    return f"{secs}s"


def format_short_duration(seconds: float) -> str:
    """As `format_duration`, with tenths below a minute where they matter: `0.4s`, `45s`."""
    if 0 <= seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    return format_duration(seconds)


def printable(text: str, *, newline: bool = False) -> str:
    """Text that a terminal shows and never obeys: control and bidi characters, newlines, lone surrogates escaped.

    Escapes are Python's (`\\n`, `\\x1b`, `\\u202e`); emoji and other printable text stay. `newline` keeps line breaks.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = {" ", "\u200d", "\ufe0f"}  # space; the joiner and selector inside emoji
    if newline:
        kept.add("\n")
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)
