"""What the daemon's log says of each decision: who asked for what, what happened to which job, what began where, why.

Fields of a line, beside those of every line (see `journal.py`): `event`, and where they apply `job attempt uid jobs
gpus`; what else an event's own data says is in `data`.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from gpuq import __version__
from gpuq.events import Event, Kind
from gpuq.model import Host, Job, Settings
from gpuq.policy import explain
from gpuq.policy.dependencies import listed
from gpuq.policy.ledger import GpuState
from gpuq.protocol import spans
from gpuq.units import format_duration, format_size

log = logging.getLogger("gpuq.decisions")

#: Events that somebody may want to look into.
WORTH_A_LOOK = frozenset({Kind.FAILED, Kind.OVER_CLAIM, Kind.GPU_LOST, Kind.REQUEUED})
#: A stranger who knocks again and again is told of this often, in seconds.
STRANGER_EVERY = 3600.0

_strangers: dict[int, float] = {}


def began(settings: Settings, host: Host, state_dir: str) -> None:
    """The daemon starts: what it is, and the settings in force, in bytes and seconds."""
    log.info(
        "gpuq %s begins: pid %d, uid %d, %d CPUs, %s of memory",
        *(__version__, os.getpid(), os.geteuid(), host.cpus, format_size(host.ram)),
        extra={
            "event": "begin",
            "pid": os.getpid(),
            "uid": os.geteuid(),
            "version": __version__,
            "python": platform.python_version(),
            "state_dir": state_dir,
            "settings": asdict(settings),
        },
    )


def submitted(job: Job, first: int, last: int) -> None:
    """Jobs of one submission are queued, which all ask for the same as this one."""
    uid = job.owner
    asked = [explain.asked(job.request)]
    if job.request.gpus and job.request.cpus:
        asked.append(f"{job.request.cpus} CPUs")
    if job.begin_at is not None:
        asked.append(f"not before {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(job.begin_at))}")
    if job.after:
        asked.append("after " + listed(dict(enumerate(job.after))))
    ids = [[first, last]]
    log.info(
        "uid %d submitted %s: %s, %s",
        *(uid, named(ids), job.state, ", ".join(asked)),
        extra={"event": "submit", "uid": uid, "jobs": ids},
    )


def asked(uid: int, verb: str, ids: Sequence[int], refused: int) -> None:
    """Somebody asked for a change, of these jobs."""
    chosen = spans(ids)
    left = f"; {refused} refused" if refused else ""
    about = f" of {named(chosen)}" if chosen else ""
    log.info(
        "uid %d asks for %s%s%s",
        *(uid, verb, about, left),
        extra={"event": "asked", "verb": verb, "uid": uid, "jobs": chosen},
    )


def refused(uid: int, op: str, why: str) -> None:
    log.info("uid %d: %s is refused: %s", uid, op, why, extra={"event": "refused", "uid": uid, "op": op})


def stranger(uid: int, pid: int) -> None:
    """Somebody else is at the socket. Told now and then: who knocks for ever must not fill the log."""
    now = time.monotonic()
    if now - _strangers.get(uid, float("-inf")) >= STRANGER_EVERY:
        _strangers[uid] = now
        log.warning(
            "uid %d (pid %d) is refused: this daemon is not theirs", uid, pid, extra={"event": "stranger", "uid": uid}
        )


def started(job: Job, gpus: Iterable[GpuState]) -> None:
    """An attempt is claimed; `gpus` are its GPUs as they are with that claim."""
    places = [
        f"{gpu.place} ({'whole' if gpu.taken else f'{format_size(max(0, gpu.headroom))} headroom left'})"
        for gpu in gpus
    ]
    log.info(
        "job %d attempt %d starts on %s",
        *(job.id, job.attempt, ", ".join(places) or "no GPU"),
        extra={"event": "start", "job": job.id, "attempt": job.attempt, "gpus": list(job.gpus)},
    )


def adopted(job_id: int, attempt: int, found: str) -> None:
    """What a restarted daemon found of an attempt that an earlier one had begun."""
    log.info(
        "job %d attempt %d is found %s",
        *(job_id, attempt, found),
        extra={"event": "adopt", "job": job_id, "attempt": attempt, "found": found},
    )


def happened(events: Iterable[Event]) -> None:
    """What the queue's own history says, as it was committed."""
    for event in events:
        level = logging.WARNING if event.kind in WORTH_A_LOOK else logging.INFO
        attempt = f" attempt {event.attempt}" if event.attempt else ""
        about = f"job {event.job_id}{attempt}: " if event.job_id is not None else ""
        fields: dict[str, object] = {"event": str(event.kind)}
        if event.job_id is not None:
            fields |= {"job": event.job_id, "attempt": event.attempt}
        log.log(level, "%s%s%s", about, event.kind, _more(event), extra=fields | _data(event))


def happened_alike(event: Event, ids: Sequence[int]) -> None:
    """The same happened to these jobs at once: one line."""
    if len(ids) == 1:
        happened([replace(event, job_id=ids[0])])
        return
    chosen = spans(ids)
    fields: dict[str, object] = {"event": str(event.kind), "jobs": chosen}
    log.info("%s: %s%s", named(chosen), event.kind, _more(event), extra=fields | _data(event))


def _more(event: Event) -> str:
    more = ", ".join(f"{key} {value}" for key, value in event.data.items() if value not in ("", [], None))
    return f" ({more})" if more else ""


def _data(event: Event) -> dict[str, object]:
    return {"data": dict(event.data)} if event.data else {}


def clock_set(by: float) -> None:
    """The wall clock was set by so many seconds."""
    way = "forward" if by > 0 else "back"
    log.warning(
        "the wall clock was set %s by %s", way, format_duration(round(abs(by))), extra={"event": "clock", "by": by}
    )


def slept(seconds: float) -> None:
    """The host was suspended for so many seconds."""
    log.info(
        "the host was suspended for %s", format_duration(round(seconds)), extra={"event": "slept", "seconds": seconds}
    )


def named(spans: Iterable[Sequence[int]]) -> str:
    """`jobs 3, 5-9`."""
    words = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    return f"job{'' if len(words) == 1 and '-' not in words[0] else 's'} {', '.join(words)}"
