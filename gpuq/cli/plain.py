"""Text for programs, logs and pipes: aligned columns, nothing cut off, no colours."""

from collections.abc import Iterable, Sequence


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines with two spaces between columns; an empty cell is `-`; the last column is not padded."""
    table = [[name.upper() for name in header], *([cell or "-" for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    widths[-1] = 0
    return "".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in table)


def pairs(rows: Iterable[tuple[str, str]], indent: str = "") -> str:
    """`label  value` lines, the values aligned; those without a value are left out."""
    kept = [(label, value) for label, value in rows if value]
    width = max((len(label) for label, _ in kept), default=0)
    return "".join(f"{indent}{label:<{width}}  {value}\n" for label, value in kept)
