"""What happened, as a row that is kept: each transition writes one in its own transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    SUBMITTED = "submitted"
    HELD = "held"
    RELEASED = "released"
    #: a dependency was met, and none is left
    READY = "ready"
    STARTED = "started"
    #: `cancel`, the settings or a job of higher priority asked a running attempt to end
    ENDING = "ending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    #: an attempt failed, and the job was queued again by its own rules
    RETRYING = "retrying"
    #: a preemptible attempt gave way to a job of higher priority, and its job was queued again
    PREEMPTED = "preempted"
    #: an ended job was queued again by its owner
    RETRIED = "retried"
    #: an attempt that never started was queued again
    REQUEUED = "requeued"
    #: an attempt used more GPU memory than it claimed
    OVER_CLAIM = "over-claim"
    #: a GPU went away, or came back; these name no job
    GPU_LOST = "gpu-lost"
    GPU_BACK = "gpu-back"
    #: what is known of a job, or of the queue, comes from run folders or out of a damaged database
    RECOVERED = "recovered"
    #: the database is damaged, or was removed or replaced; these name no job
    DAMAGED = "damaged"
    #: ended jobs were removed: `ids` are ranges
    PRUNED = "pruned"
    #: a submission was given up before anybody saw a job of it: `ids` are ranges, and of no job
    WITHDRAWN = "withdrawn"
    #: what holds for a queue was changed, or it was removed; these name no job
    QUEUE_SET = "queue-set"
    QUEUE_REMOVED = "queue-removed"
    #: a GPU takes no new job until it is enabled
    GPU_DISABLED = "gpu-disabled"
    GPU_ENABLED = "gpu-enabled"
    #: so many jobs of a group failed in a row that nothing more of it starts, until somebody lets it go on
    GROUP_STOPPED = "group-stopped"
    GROUP_RESUMED = "group-resumed"
    #: its owner changed what a waiting job asks for
    EDITED = "edited"
    DAEMON_STARTED = "daemon-started"
    DAEMON_STOPPED = "daemon-stopped"


@dataclass(frozen=True, slots=True)
class Event:
    """`id` is 0 until the store has given one. `at` is seconds since the epoch."""

    at: float
    kind: Kind
    job_id: int | None = None
    attempt: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
