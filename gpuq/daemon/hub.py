"""Who waits for news: of a job, or of anything. News is only that something changed; the listener looks it up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Hub:
    """Wakes listeners after a commit. A slow listener misses wake-ups, never news: it reads the store again."""

    def __init__(self) -> None:
        self._by_job: dict[int, set[asyncio.Event]] = {}
        self._all: set[asyncio.Event] = set()

    @contextmanager
    def listen(self, job_ids: Iterable[int] | None = None) -> Iterator[asyncio.Event]:
        """An event that is set when one of the jobs (None: anything) changes. The listener clears it."""
        event = asyncio.Event()
        ids = None if job_ids is None else list(job_ids)
        if ids is None:
            self._all.add(event)
        else:
            for job_id in ids:
                self._by_job.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            self._all.discard(event)
            for job_id in ids or ():
                listeners = self._by_job[job_id]
                listeners.discard(event)
                if not listeners:
                    del self._by_job[job_id]

    def tell(self, job_ids: Iterable[int] = ()) -> None:
        """These jobs, or something that is no job, changed."""
        for job_id in job_ids:
            for event in self._by_job.get(job_id, ()):
                event.set()
        for event in self._all:
            event.set()
