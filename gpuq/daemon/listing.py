"""`list`: the queue a page at a time. Where the next page begins is all that goes on, and the client has it.

A page is read at one moment, and between two of them jobs move: one that waited runs when the running ones have been
sent, and so on. A job to which nothing happens keeps its key, and is sent where it is due. What may have been missed is
therefore among the jobs that an event names since the list began, and these come at the end, in the order of those
events. A reader leaves out what it has had before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpuq import protocol
from gpuq.daemon import views
from gpuq.daemon.asking import Daemon, Session, check_selection, count
from gpuq.daemon.core import Core
from gpuq.daemon.hub import let_others
from gpuq.errors import BadRequest
from gpuq.model import ACTIVE, ENDED, WAITING, State
from gpuq.protocol import Message, Seen, Selection
from gpuq.store.lists import Key, Order

#: Jobs of a page, and ids of one that has nothing else.
PAGE, PAGE_OF_IDS = 500, 5000
#: What is long in the jobs of a page may be so many characters, but for the last job's.
PAGE_TEXT = 1 << 20
#: Characters of a dependency.
LONGEST_DEPENDENCY = 30
#: Jobs are listed state by state, each in an order of its own.
_SECTIONS: tuple[tuple[frozenset[State], Order], ...] = (
    (ACTIVE, Order.AGE),
    (WAITING, Order.URGENCY),
    (ENDED, Order.NEWEST),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a list goes on."""

    #: the newest event when the list began, and the largest id that had been given out
    since: int
    upto: int
    #: which of the sections, and after which key; behind the last one the keys are (event, last event)
    section: int = 0
    key: Key | None = None

    def to_json(self) -> Message:
        key = None if self.key is None else list(self.key)
        return {"since": self.since, "upto": self.upto, "section": self.section, "key": key}

    @classmethod
    def from_json(cls, value: object) -> Place:
        """Raises BadRequest for anything that `to_json` cannot have made."""
        if not isinstance(value, dict):
            raise BadRequest(f"a list goes on at the `next` of a page, not at {value!r:.60}")
        counts = [n for name in ("since", "upto", "section") if type(n := value.get(name)) is int]
        key = value.get("key")
        parts = [0, 0] if key is None else key if isinstance(key, list) else []
        numbers = [n for n in parts if type(n) in (int, float) and abs(n) <= protocol.MAX_ID]
        if (
            len(counts) != 3
            or not all(0 <= n <= protocol.MAX_ID for n in counts)
            or len(parts) != 2
            or len(numbers) != 2
        ):
            raise BadRequest(f"a list goes on at the `next` of a page, not at {value!r:.60}")
        return cls(counts[0], counts[1], counts[2], None if key is None else (numbers[0], numbers[1]))


class Found(NamedTuple):
    """A job of a page."""

    job_id: int
    #: where its part of the list began, and its key there
    begun: Place
    key: Key

    @property
    def place(self) -> Place:
        """Where a list goes on after it."""
        return replace(self.begun, key=self.key)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants listed."""

    selection: Selection
    sections: tuple[tuple[frozenset[State], Order], ...]
    limit: int | None
    #: whether their ids will do
    ids: bool

    @property
    def page(self) -> int:
        """Jobs of a page."""
        most = PAGE_OF_IDS if self.ids else PAGE
        return most if self.limit is None else min(most, self.limit)

    @property
    def states(self) -> frozenset[State]:
        return frozenset().union(*(states for states, _ in self.sections))


async def list_(daemon: Daemon, session: Session, message: Message) -> Message | AsyncIterator[bytes]:
    """Running jobs first, then waiting ones in the order they are looked at, then ended ones, newest first."""
    core = daemon.core
    paged = "after" in message
    place = Place.from_json(message["after"]) if paged and message["after"] is not None else None
    selection = check_selection(core, session, message, core.store.next_id() - 1 if place is None else place.upto)
    everything = message.get("all") is True or bool(selection.ranges or selection.states)
    sections = _SECTIONS if everything else _SECTIONS[:-1]
    asked = Asked(selection, sections, count(message, "limit"), paged and message.get("ids") is True)
    told: Message = {}
    if place is None and (asked.limit is not None or not paged):
        told["total"] = sum(core.store.count(selection, states) for states, _ in sections)
    if place is None:
        told["counts"] = core.store.counts()
    found, place = _page(core, asked, place)
    if not paged:
        return _whole(core, asked, told, found, place)
    if asked.ids:
        jobs: list[Message] = [{"id": one.job_id} for one in found]
    else:
        jobs, place = _views(core, found, place)
    return {**told, "jobs": jobs, "next": None if place is None else place.to_json()}


def _views(core: Core, found: list[Found], after: Place | None) -> tuple[list[Message], Place | None]:
    """The jobs as clients see them, and where the next page begins: earlier where these would be too long for one."""
    jobs: list[Message] = []
    size = 0
    for job, one in zip(core.store.each(one.job_id for one in found), found, strict=True):
        jobs.append(views.current_view(core, job))
        size += sum(map(len, job.command)) + sum(map(len, job.tags)) + LONGEST_DEPENDENCY * len(job.after)
        if size > PAGE_TEXT and len(jobs) < len(found):
            return jobs, one.place
    return jobs, after


def _page(core: Core, asked: Asked, place: Place | None) -> tuple[list[Found], Place | None]:
    """What one page may have, and where the next one begins; None where there is no more."""
    first = place is None
    if place is None:
        place = Place(core.store.last_event(), core.store.next_id() - 1)
    found: list[Found] = []
    while place.section < len(asked.sections):
        states, order = asked.sections[place.section]
        part = core.store.walk(asked.selection, states, order, asked.page - len(found), place.key, place.upto)
        found += [Found(job_id, place, key) for job_id, key in part.found]
        place = replace(place, key=part.last, section=place.section + (part.last is None))
        if part.last is not None or len(found) == asked.page:
            return found, place
    return (found, None) if first else (found, place) if found else _moved(core, asked, place)


def _moved(core: Core, asked: Asked, place: Place) -> tuple[list[Found], Place | None]:
    """What moved while the list was read, and may have been missed."""
    done, until = (int(n) for n in place.key or (place.since, core.store.last_event()))
    moved, done = core.store.moved(done, until, place.upto, asked.page)
    fit = set(core.store.among(asked.selection, asked.states, moved))
    found = [Found(job_id, place, (event, until)) for job_id, event in moved.items() if job_id in fit]
    return found, None if done >= until else replace(place, key=(done, until))


async def _whole(
    core: Core, asked: Asked, told: Message, found: list[Found], place: Place | None
) -> AsyncIterator[bytes]:
    """All pages as one line, for a gpuq that knows of none. It is sent as it is made."""
    head = protocol.encode({"ok": True, **told})[:-2] + b',"jobs":['
    seen, sent, comma = Seen(), 0, b""
    while True:
        jobs, place = _views(core, found, place)
        fresh = [job for job in jobs if seen.add(job["id"])]
        fresh = fresh if asked.limit is None else fresh[: asked.limit - sent]
        sent += len(fresh)
        page = protocol.encode_list(fresh)
        yield head + (comma + page if page else b"")
        head, comma = b"", b"," if page else comma
        if place is None or sent == asked.limit:
            break
        await let_others()
        found, place = _page(core, asked, place)
    yield b"]}\n"
