"""The GPUs that are simulated: as many as somebody writes, or as a host has, and what if there were others."""

from __future__ import annotations

import re
from itertools import groupby

from gpuq.errors import UsageError
from gpuq.units import format_size, parse_size

#: Most GPUs of a set: a planner for one host is what is tried.
MOST = 1024

_GROUP = re.compile(r"(\d{1,9})(?:x(.+))?", re.ASCII)

#: Bytes of each GPU; 0 where that is not told, and jobs take whole ones.
Cards = tuple[int, ...]


def parse_cards(text: str, option: str = "--gpus") -> Cards:
    """`8`, `8x80GiB`, `2x24GiB,4x80GiB`. Raises UsageError."""
    cards: list[int] = []
    for group in text.split(","):
        match = _GROUP.fullmatch(group.strip())
        if match is None:
            raise UsageError(f"{option} {text!r}: {group!r} is no count of GPUs: write 8, 8x80GiB or 2x24GiB,4x80GiB")
        size = parse_size(match[2], f"{option} {text!r}: the size") if match[2] is not None else 0
        if int(match[1]) > MOST:
            raise UsageError(f"{option} {text!r}: at most {MOST:,} GPUs can be simulated")
        cards += [size] * int(match[1])
    _check(cards, f"{option} {text!r}")
    return tuple(cards)


def parse_what_if(text: str, cards: Cards) -> Cards:
    """The GPUs that there would be: `gpus=+2`, `gpus=-1`, `gpus=8`, `gpus=+2x80GiB`. Raises UsageError.

    A count alone means cards like those that are there, which is clear only where they are all alike.
    """
    option = f"--what-if {text!r}"
    name, equals, value = text.partition("=")
    if name.strip() != "gpus" or not equals or not value.strip():
        raise UsageError(f"{option} is no change that can be tried: write gpus=+2, gpus=-1, gpus=16 or gpus=+2x80GiB")
    value = value.strip()
    sign = value[0] if value[0] in "+-" else ""
    written = value[len(sign) :]
    change = list(parse_cards(written, "--what-if gpus"))
    if "x" not in written:
        if len(set(cards)) > 1:
            raise UsageError(f"{option}: the GPUs differ ({describe(cards)}); say which, as in gpus={sign}2x80GiB")
        change = [cards[0]] * len(change)
    elif not all(cards):
        raise UsageError(f"{option}: the other GPUs have no size; write it with --gpus, as in --gpus 8x80GiB")
    found = change if not sign else [*cards, *change] if sign == "+" else _without(list(cards), change, option)
    _check(found, option)
    return tuple(found)


def _without(cards: list[int], gone: list[int], option: str) -> list[int]:
    for size in gone:
        if size not in cards:
            raise UsageError(
                f"{option}: there are not so many GPUs to take away: {describe(tuple(cards)) or 'none left'}"
            )
        cards.remove(size)
    return cards


def _check(cards: list[int], option: str) -> None:
    if not 1 <= len(cards) <= MOST:
        raise UsageError(f"{option} makes {len(cards):,} GPUs, and 1 to {MOST:,} can be simulated")


def name_of(index: int) -> str:
    """What stands for the UUID of a simulated GPU."""
    return f"gpu{index}"


def describe(cards: Cards) -> str:
    """As `parse_cards` reads it."""
    groups = ((size, len(list(alike))) for size, alike in groupby(cards))
    return ",".join(f"{count}x{format_size(size)}" if size else str(count) for size, count in groups)
