"""`stats`: figures of the jobs that ended in a span of time. Read a part at a time, so that others are served."""

from __future__ import annotations

import time
from dataclasses import asdict
from statistics import median

from gpuq.daemon.asking import Daemon, Session
from gpuq.daemon.hub import let_others
from gpuq.daemon.views import View, moment
from gpuq.errors import BadRequest
from gpuq.policy.figures import Figures, Spread, spread
from gpuq.protocol import Message
from gpuq.store import ended

#: Jobs that are read in one go.
PART = 500


async def stats(daemon: Daemon, _session: Session, message: Message) -> Message:
    """Of all jobs that ended within the last `seconds`, which are all that are kept where that is null."""
    seconds = message.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0):
        raise BadRequest("seconds is how far to look back, and more than zero")
    now = time.time()
    since = 0.0 if seconds is None else max(0.0, now - seconds)
    figures = Figures()
    place: ended.Place = (since, 0)
    first: float | None = None
    while True:
        some, place = ended.part(daemon.core.store, place, now, PART)
        for one in some:
            first = one.submitted_at if first is None else min(first, one.submitted_at)
            figures.add(one)
        if len(some) < PART:
            break
        await let_others()
    begin = max(since, first) if first is not None else now
    gpus = len(daemon.core.host.capacities)
    return {"stats": {"since": moment(begin), "until": moment(now), "gpus": gpus, **_view(figures, begin, now, gpus)}}


def _view(figures: Figures, begin: float, now: float, gpus: int) -> View:
    available, used = (now - begin) * gpus, figures.gpu_seconds(begin)
    ratios = sorted(figures.ratios)
    return {
        "jobs": dict(sorted(figures.states.items())),
        "failures": dict(sorted(figures.failures.items())),
        "wait_seconds": _spread(spread(figures.waits)),
        "run_seconds": _spread(spread(figures.runs)),
        "gpu_hours": used / 3600,
        # what runs now, and what was used before, are left out
        "utilisation": min(1.0, used / available) if available > 0 else None,
        "run_estimates": {
            "runs": len(ratios),
            "good": figures.good,
            "within_longest": figures.within_longest,
            "median_ratio": median(ratios) if ratios else None,
        },
        "start_estimates": {
            "jobs": len(figures.early) + len(figures.late),
            "late": len(figures.late),
            "median_early_seconds": median(figures.early) if figures.early else None,
            "max_late_seconds": max(figures.late) if figures.late else None,
        },
    }


def _spread(found: Spread | None) -> View | None:
    return None if found is None else asdict(found)
