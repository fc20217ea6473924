"""Waiting jobs that are alike, by id: a sorted list in chunks, in which a short job is found quickly. Pure.

To add or remove one costs the size of a chunk; to find the next one that is over soon enough, the number of chunks,
each of which knows its shortest. So nothing that planning asks costs by the length of the queue.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from math import inf

#: Most jobs in a chunk.
CHUNK = 1024


class _Chunk:
    """Parallel columns, ascending by id."""

    __slots__ = ("_longest", "_shortest", "ids", "lengths", "since")

    def __init__(self, ids: Iterable[int], since: Iterable[float], lengths: Iterable[float]) -> None:
        self.ids = array("q", ids)
        self.since = array("d", since)
        self.lengths = array("d", lengths)
        self._shortest: float | None = None
        self._longest: float | None = None

    def insert(self, at: int, job_id: int, since: float, length: float) -> None:
        self.ids.insert(at, job_id)
        self.since.insert(at, since)
        self.lengths.insert(at, length)
        if self._shortest is not None:
            self._shortest = min(self._shortest, length)
        if self._longest is not None:
            self._longest = max(self._longest, length)

    def delete(self, start: int, end: int) -> None:
        gone = self.lengths[start:end]
        if self._shortest in gone:
            self._shortest = None
        if self._longest in gone:
            self._longest = None
        for column in (self.ids, self.since, self.lengths):
            del column[start:end]

    def next_within(self, job_id: int, longest: float, endless: bool) -> int | None:
        at = bisect_right(self.ids, job_id)
        if longest == inf:
            return self.ids[at] if at < len(self.ids) else None
        if self.shortest > longest and not (endless and self.longest == inf):
            return None
        for n in range(at, len(self.ids)):
            if self.lengths[n] <= longest or (endless and self.lengths[n] == inf):
                return self.ids[n]
        return None

    @property
    def shortest(self) -> float:
        if self._shortest is None:
            self._shortest = min(self.lengths)
        return self._shortest

    @property
    def longest(self) -> float:
        if self._longest is None:
            self._longest = max(self.lengths)
        return self._longest


class Line:
    """Each job has the time since which it waits, in seconds since the epoch, and the longest that it may run for, in
    seconds; infinity where nothing says so."""

    __slots__ = ("_chunks", "_firsts", "_size")

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._firsts: list[int] = []
        self._size = 0

    @classmethod
    def of(cls, ids: Sequence[int], since: float = 0.0, length: float = inf) -> Line:
        """Jobs, ascending, that have waited, and may run, for the same time."""
        line = cls()
        line.extend(ids, repeat(since), repeat(length))
        return line

    def copy(self) -> Line:
        """The same jobs; what is done to one is not done to the other."""
        line = Line()
        line._chunks = [_Chunk(chunk.ids, chunk.since, chunk.lengths) for chunk in self._chunks]
        line._firsts = self._firsts[:]
        line._size = self._size
        return line

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(chunk.ids for chunk in self._chunks)

    def __contains__(self, job_id: int) -> bool:
        return self._found(job_id) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Line) and list(self._rows()) == list(other._rows())

    __hash__ = None  # type: ignore[assignment]

    def _rows(self) -> Iterator[tuple[int, float, float]]:
        for chunk in self._chunks:
            yield from zip(chunk.ids, chunk.since, chunk.lengths, strict=True)

    @property
    def first(self) -> int:
        """The oldest. Raises IndexError where there is none."""
        return self._firsts[0]

    def head(self, most: int) -> list[int]:
        """The oldest, so many at most."""
        return list(islice(self, most))

    def since(self, job_id: int) -> float:
        """Raises KeyError for a job that is not here."""
        if self._firsts and job_id == self._firsts[0]:  # as it mostly is
            return self._chunks[0].since[0]
        chunk, at = self._place(job_id)
        return chunk.since[at]

    def length(self, job_id: int) -> float:
        """Raises KeyError for a job that is not here."""
        chunk, at = self._place(job_id)
        return chunk.lengths[at]

    def before(self, job_id: int) -> int:
        """How many are older."""
        number = bisect_right(self._firsts, job_id) - 1
        if number < 0:
            return 0
        return sum(len(chunk.ids) for chunk in self._chunks[:number]) + bisect_left(self._chunks[number].ids, job_id)

    def older(self, since: float, job_id: int) -> int:
        """How many have waited longer than a job of another line; of two that came at once, the smaller id has.

        Ids and times are taken to ascend together, as they do where ids are given out one after the other.
        """
        count = 0
        for chunk in self._chunks:
            if (chunk.since[0], chunk.ids[0]) > (since, job_id):
                break
            if (chunk.since[-1], chunk.ids[-1]) < (since, job_id):
                count += len(chunk.ids)
                continue
            low, high = bisect_left(chunk.since, since), bisect_right(chunk.since, since)
            count += min(max(bisect_left(chunk.ids, job_id), low), high)
        return count

    def after(self, job_id: int, longest: float = inf, *, endless: bool = False) -> int | None:
        """The next after this one, which need not be here, that runs for no longer than `longest`; None for none.

        With `endless`, those of which nothing says how long they run count as well.
        """
        for chunk in self._chunks[max(0, bisect_right(self._firsts, job_id) - 1) :]:
            found = chunk.next_within(job_id, longest, endless)
            if found is not None:
                return found
        return None

    def add(self, job_id: int, since: float, length: float) -> None:
        """A job that is not here yet."""
        number = max(0, bisect_right(self._firsts, job_id) - 1)
        at_the_end = number == len(self._chunks) - 1 and job_id > self._chunks[number].ids[-1]
        if at_the_end and len(self._chunks[number].ids) >= CHUNK:  # most come there: full chunks stay full
            number += 1
        if number == len(self._chunks):
            self._chunks.append(_Chunk([job_id], [since], [length]))
            self._firsts.append(job_id)
        else:
            chunk = self._chunks[number]
            chunk.insert(bisect_left(chunk.ids, job_id), job_id, since, length)
            self._firsts[number] = chunk.ids[0]
            if len(chunk.ids) > CHUNK:
                self._split(number)
        self._size += 1

    def extend(self, ids: Sequence[int], since: Iterable[float], lengths: Iterable[float]) -> None:
        """Jobs, ascending, that are not here yet."""
        if self._chunks and ids and ids[0] < self._chunks[-1].ids[-1]:  # some that are younger have come before
            for job in zip(ids, since, lengths, strict=False):
                self.add(*job)
            return
        since, lengths = iter(since), iter(lengths)
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            self._chunks.append(_Chunk(some, islice(since, len(some)), islice(lengths, len(some))))
            self._firsts.append(some[0])
        self._size += len(ids)

    def remove(self, job_id: int) -> None:
        """Raises KeyError for a job that is not here."""
        self.remove_all([job_id])

    def remove_all(self, ids: Sequence[int]) -> None:
        """Ascending. Raises KeyError for one that is not here."""
        done = 0
        while done < len(ids):
            number = bisect_right(self._firsts, ids[done]) - 1
            chunk, start = self._place(ids[done])
            end = start  # those that follow each other here as there go at once
            while end < len(chunk.ids) and done < len(ids) and chunk.ids[end] == ids[done]:
                end, done = end + 1, done + 1
            chunk.delete(start, end)
            self._size -= end - start
            if chunk.ids:
                self._firsts[number] = chunk.ids[0]
            else:
                del self._chunks[number], self._firsts[number]

    def _place(self, job_id: int) -> tuple[_Chunk, int]:
        found = self._found(job_id)
        if found is None:
            raise KeyError(job_id)
        return found

    def _found(self, job_id: int) -> tuple[_Chunk, int] | None:
        number = bisect_right(self._firsts, job_id) - 1
        if number < 0:
            return None
        chunk = self._chunks[number]
        at = bisect_left(chunk.ids, job_id)
        return (chunk, at) if at < len(chunk.ids) and chunk.ids[at] == job_id else None

    def _split(self, number: int) -> None:
        chunk = self._chunks[number]
        half = len(chunk.ids) // 2
        upper = _Chunk(chunk.ids[half:], chunk.since[half:], chunk.lengths[half:])
        chunk.delete(half, len(chunk.ids))
        self._chunks.insert(number + 1, upper)
        self._firsts.insert(number + 1, upper.ids[0])
