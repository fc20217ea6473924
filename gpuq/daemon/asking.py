"""What every request comes with: the daemon, who asks, and which jobs are meant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuq import protocol
from gpuq.daemon.core import Core
from gpuq.daemon.owners import owner_name
from gpuq.daemon.runner import Runner
from gpuq.daemon.upkeep import Upkeep
from gpuq.errors import BadRequest, NoSuchJob, NotAllowed, UsageError
from gpuq.model import Job, State
from gpuq.protocol import Message, Selection

if TYPE_CHECKING:
    from gpuq.daemon.submitting import Intake


@dataclass(slots=True)
class Session:
    """One connection: who is there, and the submission of which not every part has come."""

    uid: int
    #: whether the client has closed it
    gone: Callable[[], bool]
    intake: Intake | None = None

    async def give_up(self) -> None:
        """What has come of a submission counts for nothing."""
        intake, self.intake = self.intake, None
        if intake is not None:
            await intake.give_up()


@dataclass(slots=True)
class Daemon:
    """What handlers work with."""

    core: Core
    runner: Runner
    started_at: float
    #: ends the daemon; True for a restart
    stop: asyncio.Future[bool]
    #: the systemd unit that it runs as
    unit: str | None = None
    #: looks after the database
    upkeep: Upkeep | None = None
    #: it begins anew in its own place when it has ended
    anew: bool = False

    def begin_anew(self) -> None:
        """End the daemon, which begins anew: who waits comes again."""
        self.anew = not self.stop.done() or self.anew
        self.end(True)

    def end(self, restart: bool) -> None:
        """End the daemon, once."""
        if not self.stop.done():
            self.stop.set_result(restart)


#: an object, or one line in parts
Answer = Callable[[Daemon, Session, Message], Awaitable[Message | AsyncIterator[bytes]]]
Stream = Callable[[Daemon, Session, Message], AsyncIterator[Message]]


def check_selection(core: Core, session: Session, message: Message, upto: int = protocol.MAX_ID) -> Selection:
    """The selection of a message, with `@last` made an id: the last of those up to that one."""
    selection = Selection.from_json(message.get("sel", {}))
    for state in selection.states:
        if state not in State.__members__.values():
            raise UsageError(f"there is no state {state!r}: known are {', '.join(State)}")
    if not selection.last:
        return selection
    last = core.store.last_job(session.uid, upto)
    if last is None:
        raise NoSuchJob("@last: you have submitted no job yet")
    return selection._replace(ranges=(*selection.ranges, (last, last)), last=False)


def selected(core: Core, session: Session, message: Message) -> list[Job]:
    """The selected jobs. Raises NoSuchJob if an id that was named, or all of a range, does not exist."""
    selection = chosen(core, session, message)
    return core.store.jobs(core.store.select(selection))


def chosen(core: Core, session: Session, message: Message) -> Selection:
    """The selection of a message that has to choose something. Raises NoSuchJob as `selected`."""
    selection = check_selection(core, session, message)
    if selection.empty:
        raise UsageError("which jobs? write ids (12, 12-20, @last), --state, --tag or --group")
    unknown = core.store.unknown(selection.ranges)
    missing = [low for low, high in unknown if low == high]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise NoSuchJob(f"there is no job {missing[0]}{more}")
    for low, high in unknown:
        raise NoSuchJob(f"there is no job from {low} to {high}")
    return selection


def check_owner(session: Session, job: Job) -> None:
    if job.owner != session.uid:
        raise NotAllowed(f"job {job.id} belongs to {owner_name(job.owner)}")


def count(message: Message, name: str) -> int | None:
    """A field that counts something, None where it is not given."""
    value = message.get(name)
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= protocol.MAX_ID
    ):
        raise BadRequest(f"{name} is a count, not {value!r:.60}")
    return value
