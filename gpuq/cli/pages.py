"""Jobs of the queue one after the other, however many: a page at a time is asked for, and no more is held."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from gpuq.cli.common import on_terminal
from gpuq.client import request
from gpuq.protocol import Message, Seen, Selection, spans

Job = dict[str, Any]

#: Jobs that are asked for by their ids in one go.
BY_ID = 500


class Jobs:
    """The jobs of a selection as `list` has them, each once, as it was when its page was read. To be gone through once.

    `everything` has ended jobs too; with `ids` there is nothing but their ids. A page whose daemon dies is asked for
    again. Raises what the daemon says, and DaemonUnreachable, also in the middle.
    """

    def __init__(self, selection: Selection, *, everything: bool, limit: int | None = None, ids: bool = False) -> None:
        self._fields: dict[str, Any] = {"sel": selection.to_json(), "all": everything, **({"ids": True} if ids else {})}
        self._limit = limit
        #: how many there are, where there is a limit and the first page has come
        self.total = 0

    def __iter__(self) -> Iterator[Job]:
        seen, left = Seen(), self._limit
        page = self._page(None, left)
        self.total = page.get("total", 0)
        while True:
            fresh = [job for job in page.pop("jobs") if seen.add(job["id"])][:left]
            left = None if left is None else left - len(fresh)
            after = page.get("next")  # a daemon that is older than pages has none
            if after is None or left == 0:
                yield from fresh
                return
            ahead = _Ahead(partial(self._page, after, left))
            yield from fresh
            page = ahead.result()

    def _page(self, after: object, left: int | None) -> Message:
        return request("list", after=after, limit=left, **self._fields)


class _Ahead:
    """Work that is done while the caller does something else, even where that waits: the daemon gets rid of a page."""

    def __init__(self, work: Callable[[], Message]) -> None:
        from threading import Thread  # not needed for a short list

        self._work = work
        self._done: Message | BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done = self._work()
        except BaseException as error:  # noqa: BLE001 (it is raised in the thread that asks for the result)
            self._done = error

    def result(self) -> Message:
        self._thread.join()
        done = self._done
        if isinstance(done, BaseException):
            raise done
        assert done is not None
        return done


def by_id(ids: Sequence[int]) -> Iterator[Job]:
    """Jobs in the order of their ids, which ascend; without those that are no more."""
    for start in range(0, len(ids), BY_ID):
        some = Selection(tuple((low, high) for low, high in spans(ids[start : start + BY_ID])))
        yield from sorted(Jobs(some, everything=True), key=lambda job: int(job["id"]))


def print_jobs(jobs: Iterable[Job]) -> None:
    """What `print_json` prints for the schema `gpuq.jobs/1`, written as the jobs come."""
    indent = on_terminal()
    encode = json.JSONEncoder(indent=2 if indent else None, check_circular=False).encode
    begin, between, margin, end = ("\n    ", ",\n    ", "\n    ", "\n  ]\n}\n") if indent else ("", ", ", "", "]}\n")
    sys.stdout.write('{\n  "schema": "gpuq.jobs/1",\n  "jobs": [' if indent else '{"schema": "gpuq.jobs/1", "jobs": [')
    before = begin
    for job in jobs:
        text = encode(job)
        sys.stdout.write(before + (text.replace("\n", margin) if indent else text))
        before = between
    sys.stdout.write(end if before is not begin or not indent else "]\n}\n")
