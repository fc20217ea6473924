"""Who waits for news: of a job, or of anything. News is only that something changed; the listener looks it up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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


class Hub:
    """Wakes listeners after a commit. A slow listener misses wake-ups, never news: it reads the store again."""

    def __init__(self) -> None:
        self._by_job: dict[int, set[News]] = {}
        self._all: set[News] = set()

    @contextmanager
    def listen(self, job_ids: Iterable[int] | None = None) -> Iterator[News]:
        """News of some jobs; None listens to everything."""
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

    def awaited(self) -> list[int]:
        """Jobs that somebody listens to."""
        return list(self._by_job)

    def tell(self, job_ids: Iterable[int] = ()) -> None:
        """These jobs, or something that is no job, changed."""
        for job_id in job_ids:
            for news in self._by_job.get(job_id, ()):
                news.tell(job_id)
        for news in self._all:
            news.tell(None)
