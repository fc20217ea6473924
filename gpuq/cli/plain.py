"""Text for programs, logs and pipes: aligned columns, nothing cut off, no colours."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

#: Rows whose columns are aligned with each other, whatever comes after them.
BLOCK = 1000


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines with two spaces between columns; an empty cell is `-`; the last column is not padded."""
    return "".join(lines(header, rows))


def lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The same line by line, of rows that are taken a block at a time: a column may become wider with a later block."""
    rows = iter(rows)
    widths = [0] * len(header)
    table = [[name.upper() for name in header], *_block(rows)]
    while table:
        widths = [max(width, *(len(row[i]) for row in table)) for i, width in enumerate(widths)]
        widths[-1] = 0
        for row in table:
            yield "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() + "\n"
        table = _block(rows)


def _block(rows: Iterator[Sequence[str]]) -> list[list[str]]:
    return [[cell or "-" for cell in row] for row in islice(rows, BLOCK)]


def pairs(rows: Iterable[tuple[str, str]], indent: str = "", screen: int | None = None) -> str:
    """`label  value` lines, the values aligned; those without a value are left out.

    On a `screen` of so many columns long values go on below themselves.
    """
    kept = [(label, value) for label, value in rows if value]
    width = max((len(label) for label, _ in kept), default=0)
    return "".join(wrapped(f"{indent}{label:<{width}}  ", value, screen) for label, value in kept)


def cut(line: str, screen: int | None) -> str:
    """The line, on a `screen` of so many columns cut to them."""
    return line if screen is None or len(line) <= screen else line[: max(1, screen - 1)] + "…"


def wrapped(head: str, text: str, screen: int | None, *, least: int = 20) -> str:
    """`head` and `text` as lines of at most `screen` columns, the text below itself; one line where that is None.

    The text has `least` columns, whatever the head takes.
    A word that is longer, as a path may be, is left whole: a cut one could not be copied. So is a `command`.
    """
    if screen is None or len(head) + len(text) <= screen:
        return f"{head}{text}".rstrip() + "\n"
    import textwrap

    room = max(least, screen - len(head))
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, room, break_long_words=False, break_on_hyphens=False) or [""]
    found = (line.replace("\0", " ") for line in lines)
    return "".join(f"{(' ' * len(head)) if i else head}{line}\n" for i, line in enumerate(found))
