"""Every error that gpuq shows a person: what was wrong, with which value, and what to do.

Each class has an exit code, which is part of the command line's contract (see README, "Exit codes").
An error crosses the socket as its class name and message, and is raised again as the same class.
"""

from __future__ import annotations


class GpuqError(Exception):
    """The operation failed."""

    exit_code = 1

    @property
    def message(self) -> str:
        return str(self)


class UsageError(GpuqError):
    """A value or combination of options that can never be right."""

    exit_code = 2


class DependencyCycle(UsageError):
    """Jobs would wait for each other, so that none of them ever started."""


class BadRequest(UsageError):
    """The daemon could not make sense of a message."""


class CannotFit(GpuqError):
    """A request that this host can never satisfy, refused at submit."""


class NoSuchJob(GpuqError):
    """No job has the given id."""

    exit_code = 3


class NoSuchQueue(GpuqError):
    """No queue has the given name."""


class NotAllowed(GpuqError):
    """The kernel says that the caller is somebody who may not do this."""

    exit_code = 4


class DaemonUnreachable(GpuqError):
    """The daemon does not run, could not be started, or does not answer."""

    exit_code = 5


class NoDaemon(DaemonUnreachable):
    """No daemon runs for this state folder, and none was to be started."""


class ConnectionLost(DaemonUnreachable):
    """The connection ended in the middle: the daemon crashed or restarts. Nothing that it said itself."""


class StateFolderError(DaemonUnreachable):
    """The state folder cannot be used: not ours, not writable, not a folder."""


class ProtocolMismatch(DaemonUnreachable):
    """Client and daemon are of versions that do not understand each other."""


class OutputFailed(GpuqError):
    """What was to be printed could not be written."""


class IllegalTransition(GpuqError):
    """A job is in a state from which the operation is not possible."""


class StoreError(GpuqError):
    """The database could not be read or written."""


class StoreBusy(StoreError):
    """The host has no room to look now, so that nothing is known; what was asked may be asked again."""


class StoreDamaged(StoreError):
    """The database is damaged, or is none; the next start of the daemon sets it aside and recovers what it can."""


class DiskFull(StoreError):
    """The disk that holds the state folder has no room; what only adds to the queue is refused until it has."""


class LaunchError(GpuqError):
    """A supervisor process could not be started."""


class HostBusy(LaunchError):
    """The host has no room for another process or file now; the job waits and is tried again."""


def all_errors() -> dict[str, type[GpuqError]]:
    """Every error class by name, for raising on one side of the socket what happened on the other."""
    found: dict[str, type[GpuqError]] = {}
    pending: list[type[GpuqError]] = [GpuqError]
    while pending:
        cls = pending.pop()
        found[cls.__name__] = cls
        pending.extend(cls.__subclasses__())
    return found
