"""Lists in order, a part at a time: where one part ended the next one goes on, by key, however long the list is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gpuq.model import ENDED, State
from gpuq.protocol import MAX_ID, MAX_JOBS

#: Of a job in a list: what sorts upwards, and is no other job's.
Key = tuple[float, int]
#: A row that is looked at: its key, its id, and whether it has the tags that are asked for.
Row = tuple[float, int, int, int]
#: An SQL condition, with `{}` where its value is bound, and that value.
Fits = tuple[str, int | str]
_TAGGED = "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = {})"
#: Rows that are looked at for one part, where not all of them may be wanted.
LOOK = 5000
#: True of jobs that have not ended, and what the partial index on them asks for.
LIVING = "ended_at IS NULL"


class Order(Enum):
    """Of a list: in SQL as the index of the state has it, the same as a key, and what comes after a key (a, b)."""

    AGE = ("id", "id, 0", ("+id > :a",))
    # two conditions, for the index ends and begins anew with each priority
    URGENCY = ("priority DESC, id", "-priority, id", ("priority = -:a AND id > :b", "priority < -:a"))
    NEWEST = ("ended_at DESC, id DESC", "-ended_at, -id", ("(ended_at, id) < (-:a, -:b)",))


@dataclass(frozen=True, slots=True)
class Part:
    """Of a list: some ids with their keys, and the key after which it goes on; None where there is no more."""

    found: list[tuple[int, Key]]
    last: Key | None

    @property
    def ids(self) -> list[int]:
        return [job_id for job_id, _ in self.found]


@dataclass(frozen=True, slots=True)
class Walk:
    """Through jobs in order, after a key: the first `most` of each state, among which are the first of all."""

    order: Order
    most: int
    after: Key | None = None
    #: no job with a larger id
    upto: int = MAX_ID
    #: conditions on each job, as `fitting` has them
    fits: tuple[Fits, ...] = ()

    def statements(self, states: Iterable[State], seen: str) -> list[tuple[str, dict[str, Any]]]:
        """SQL and its values; `seen` is a condition of jobs that may be seen."""
        ordered, key, later = self.order.value
        values: dict[str, Any] = {"upto": self.upto, "most": self.most}
        if self.after is not None:
            values |= {"a": self.after[0], "b": self.after[1]}
        values |= {f"fits{n}": value for n, (_, value) in enumerate(self.fits)}
        fits = " AND ".join(sql.format(f":fits{n}") for n, (sql, _) in enumerate(self.fits)) or "1"
        return [
            (
                f"SELECT {key}, id, {fits} FROM jobs WHERE {in_states([state])} AND {seen} AND +id <= :upto "
                f"AND {condition} ORDER BY {ordered} LIMIT :most",
                values,
            )
            for state in states
            for condition in (later if self.after is not None else ("1",))
        ]


def fitting(tags: Iterable[str], groups: Iterable[str]) -> tuple[Fits, ...]:
    """The conditions of jobs with these tags, and in these groups."""
    return (*((_TAGGED, tag) for tag in tags), *map(_in_group, groups))


def _in_group(group: str) -> Fits:
    array = group.removeprefix("array:")
    if array != group and array.isascii() and array.isdigit() and len(array) <= 18:
        first = int(array)  # the ids of an array follow each other
        return f"(array_id = {{}} AND id BETWEEN {first} AND {min(MAX_ID, first + MAX_JOBS)})", first
    return "job_group = {}", group


def in_states(states: Iterable[State]) -> str:
    """An SQL condition, with what the partial indexes ask for."""
    chosen = frozenset(states)
    listed = "state IN (" + ",".join(f"'{state.value}'" for state in sorted(chosen)) + ")"
    if not chosen & ENDED:
        return f"{listed} AND {LIVING}"
    return f"{listed} AND ended_at IS NOT NULL" if chosen <= ENDED else listed


def part_of(rows: list[Row], looked: int | None, most: int, fits: Callable[[int], bool]) -> Part:
    """The first `most` that fit of rows in order, of which there may be more than the `looked` that were read."""
    found: list[tuple[int, Key]] = []
    for a, b, job_id, has_tags in rows:
        if has_tags and fits(job_id):
            found.append((job_id, (a, b)))
            if len(found) == most:
                return Part(found, (a, b))
    return Part(found, rows[-1][:2] if looked is not None and len(rows) == looked else None)


def inside(ranges: Sequence[tuple[int, int]]) -> Callable[[int], bool]:
    """Whether an id is in one of the inclusive ranges; in any id, where there are none."""
    if not ranges:
        return lambda _: True
    lows: list[int] = []
    highs: list[int] = []
    for low, high in sorted(ranges):
        if highs and low <= highs[-1]:
            highs[-1] = max(high, highs[-1])
        else:
            lows.append(low)
            highs.append(high)

    def contains(job_id: int) -> bool:
        at = bisect_right(lows, job_id)
        return at > 0 and job_id <= highs[at - 1]

    return contains


def width(ranges: Sequence[tuple[int, int]]) -> int:
    """How many ids the ranges name, counted as often as they do."""
    return sum(high - low + 1 for low, high in ranges)
