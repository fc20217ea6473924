"""Who waits for news: of a job, or of anything. News is only that something changed; the listener looks it up."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

#: Between two pages of what somebody reads the loop is left to others for so long, in seconds.
REST = 0.02
#: Turns of the loop between two slices of much work: a short request is accepted, read and answered within them.
TURNS = 5


async def let_others() -> None:
    """Serve others between two slices of much work."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class News:
    """What one listener has been told and not yet looked at."""

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._changed: set[int] = set()

    def tell(self, job_id: int | None) -> None:
        if job_id is not None:
            self._changed.add(job_id)
        self._told.set()

    async def wait(self) -> set[int]:
        """Wait until something changed; the jobs that did since the last time."""
        await self._told.wait()
        self._told.clear()
        changed, self._changed = self._changed, set()
        return changed


class Ranges:
    """Inclusive ranges of ids, ascending and apart from each other."""

    def __init__(self, ranges: Iterable[Sequence[int]]) -> None:
        self.spans: list[tuple[int, int]] = []
        for low, high in sorted((low, high) for low, high in ranges):
            if self.spans and low <= self.spans[-1][1] + 1:
                self.spans[-1] = self.spans[-1][0], max(high, self.spans[-1][1])
            elif low <= high:
                self.spans.append((low, high))
        self._lows = [low for low, _ in self.spans]

    def __contains__(self, job_id: int) -> bool:
        at = bisect_right(self._lows, job_id)
        return at > 0 and job_id <= self.spans[at - 1][1]


class Hub:
    """Wakes listeners after a commit. A slow listener misses wake-ups, never news: it reads the store again."""

    def __init__(self) -> None:
        self._by_job: dict[int, set[News]] = {}
        #: those who listen to many, however many these are
        self._wide: dict[News, Ranges] = {}
        self._all: set[News] = set()
        self._resting = asyncio.Lock()

    @contextmanager
    def listen(self, job_ids: Iterable[int] | None = None) -> Iterator[News]:
        """News of a few jobs; None listens to everything."""
        news = News()
        ids = None if job_ids is None else set(job_ids)
        if ids is None:
            self._all.add(news)
        else:
            for job_id in ids:
                self._by_job.setdefault(job_id, set()).add(news)
        try:
            yield news
        finally:
            self._all.discard(news)
            for job_id in ids or ():
                listeners = self._by_job[job_id]
                listeners.discard(news)
                if not listeners:
                    del self._by_job[job_id]

    @contextmanager
    def listen_within(self, ranges: Ranges) -> Iterator[News]:
        """News of every job in these ranges."""
        news = News()
        self._wide[news] = ranges
        try:
            yield news
        finally:
            del self._wide[news]

    def awaited(self) -> list[int]:
        """Jobs that somebody listens to by name."""
        return list(self._by_job)

    def tell(self, job_ids: Iterable[int] = ()) -> None:
        """These jobs, or something that is no job, changed."""
        ids = set(job_ids)
        for job_id in self._by_job.keys() & ids:
            for news in self._by_job[job_id]:
                news.tell(job_id)
        for news, ranges in self._wide.items():
            for job_id in ids:
                if job_id in ranges:
                    news.tell(job_id)
        for news in self._all:
            news.tell(None)

    async def rest(self) -> None:
        """Leave the loop to others before the next page. Of all who read much, one reads a page in that time."""
        async with self._resting:
            await asyncio.sleep(REST)
