"""Why a job is where it is: what `why` answers, with the numbers behind it, what will be, and what would help.

What is run ahead, and tried, takes bounded time, and others are served meanwhile.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from gpuq.daemon.core import Core
from gpuq.daemon.hub import let_others
from gpuq.daemon.views import View, ending_times, gpu_view, moment, who
from gpuq.events import Kind
from gpuq.model import ENDED, WAITING, Ending, Job, Reason, State
from gpuq.policy import scheduler
from gpuq.policy.advice import Case, advice
from gpuq.policy.dependencies import ended_words
from gpuq.policy.explain import asked, gpu_verdict, neighbour_lines, sieve
from gpuq.policy.forecast import forecast
from gpuq.policy.ledger import GpuState
from gpuq.policy.reserve import Reservation
from gpuq.policy.scheduler import PLAIN, Snapshot
from gpuq.policy.waiting import GroupKey
from gpuq.protocol import Selection
from gpuq.units import format_size

#: Clauses of dependencies that are told.
MOST_CLAUSES = 20
#: Foreign processes of a GPU that are named, the largest.
MOST_STRANGERS = 5
#: Seconds that an answer takes at most, and the parts of it for each look ahead.
PATIENCE, AHEAD = 0.18, 0.3
#: Jobs of each kind for whose starts `list --start` looks ahead.
MOST_ESTIMATES = 500
#: Changes that are told.
MOST_CHANGES = 4
#: Jobs that are explained between two turns of others, and at a time.
SLICE, MOST = 10, 1000


async def explanations(core: Core, jobs: Sequence[Job]) -> list[View]:
    """One for each job, in their order, all of the same moment. What is looked ahead, and tried, is for all together:
    the first of many are told what would help, as far as time goes."""
    deadline = time.monotonic() + PATIENCE
    now = _Now.of(core, jobs)
    found = []
    for number, job in enumerate(jobs):
        if number % SLICE == SLICE - 1:
            await let_others()
        found.append(_explanation(core, now, job))
    wanted = now.keys.keys()
    if not wanted:
        return found
    earliest, latest, end = await _look_ahead(now, wanted, PATIENCE * AHEAD)
    for job, view in zip(jobs, found, strict=True):
        if job.id in wanted:
            view["estimate"] = _range(earliest.get(job.id), latest.get(job.id), end)
            if time.monotonic() < deadline:
                view["changes"] = await _changes(core, now, job, deadline)
    return found


def _explanation(core: Core, now: _Now, job: Job) -> View:
    """Of one job, but for what will be and what would help."""
    verdict = core.reason(job)
    view: View = {
        "job": job.id,
        "name": job.name,
        "state": str(job.state),
        "reason": str(verdict.reason) if verdict else None,
        "text": verdict.text if verdict else _told(core, job),
        "lines": [],
        "position": None,
        "gpus": [],
        "conditions": [],
        "reservation": None,
        "estimate": None,
        "changes": [],
    }
    if verdict is None:
        view["lines"] = _why_then(core, job)
        return view
    if verdict.reason is Reason.DEPENDENCY:
        view["lines"] = awaited(core, job)
    key = now.keys.get(job.id)
    if key is None:
        return view
    view["position"] = scheduler.position(now.snapshot, key, job.id)
    view["lines"] = _resources(now, job)
    if job.request.gpus:
        view |= _gpus(now, job, key)
    view["reservation"] = next((_reservation(now, r) for r in now.snapshot.reserved if r.job_id == job.id), None)
    return view


@dataclass(frozen=True, slots=True)
class _Now:
    """The queue and the GPUs as they are."""

    snapshot: Snapshot
    gpus: Sequence[GpuState]
    #: of the jobs in question, those that may start
    keys: Mapping[int, GroupKey]

    @classmethod
    def of(cls, core: Core, jobs: Iterable[Job]) -> _Now:
        """What happens meanwhile does not change it: for jobs that may start it has lines of its own."""
        snapshot = core.snapshot()
        found = ((job.id, core.waiting.key(job.id)) for job in jobs if job.state in WAITING)
        keys = {job_id: key for job_id, key in found if key is not None}
        return cls(_apart(snapshot) if keys else snapshot, core.gpu_states(), keys)

    @classmethod
    def of_all(cls, core: Core) -> _Now:
        """The same where no job in particular is in question."""
        return cls(_apart(core.snapshot()), core.gpu_states(), {})

    def place(self, uuid: str) -> str:
        return next((gpu.place for gpu in self.gpus if gpu.uuid == uuid), uuid)


def _apart(snapshot: Snapshot) -> Snapshot:
    """With lines of its own."""
    return replace(snapshot, groups={key: line.copy() for key, line in snapshot.groups.items()})


def _gpus(now: _Now, job: Job, key: GroupKey) -> View:
    """Each GPU with what it says to the request, and how many pass each condition."""
    reserved = {uuid: one for one in now.snapshot.reserved if one.job_id != job.id for uuid in one.gpus}
    queue = now.snapshot.queues.get(key.queue, PLAIN)
    conditions = list(sieve(job.request, now.gpus, queue))
    if reserved:
        conditions.append(("not reserved for others", [g for g in conditions[-1][1] if g.uuid not in reserved]))
    return {
        "gpus": [
            {
                **_numbers(gpu),
                "verdict": gpu_verdict(job.request, gpu, queue),
                "reserved_for": reserved[gpu.uuid].job_id if gpu.uuid in reserved else None,
                "reserved_at": _finite(reserved[gpu.uuid].at) if gpu.uuid in reserved else None,
            }
            for gpu in now.gpus
        ],
        "conditions": [
            {"condition": text, "count": len(left), "gpus": [gpu.place for gpu in left]} for text, left in conditions
        ],
    }


def _finite(at: float) -> str | None:
    return None if at == float("inf") else moment(at)


def _reservation(now: _Now, one: Reservation) -> View:
    return {"at": _finite(one.at), "gpus": list(one.gpus), "places": [now.place(uuid) for uuid in one.gpus]}


async def estimates(core: Core) -> list[View]:
    """When each job that may start does, as far as a look ahead of a moment goes. Others nothing can be said of."""
    wanted = {job_id for line in core.waiting.groups.values() for job_id in line.head(MOST_ESTIMATES)}
    now = _Now.of_all(core)
    earliest, latest, end = await _look_ahead(now, wanted, PATIENCE / 2)
    return [
        {"job": job_id, **_range(earliest.get(job_id), latest.get(job_id), end)}
        for job_id in sorted(wanted)
        if job_id in latest or job_id in earliest or end is not None
    ]


async def _look_ahead(
    now: _Now, wanted: Set[int], seconds: float
) -> tuple[dict[int, float], dict[int, float], float | None]:
    """When these jobs probably start, when at the latest, and up to when that was looked at, if it was not far enough.

    `seconds` are for each of the two.
    """
    latest, end = await _starts(now, wanted, seconds, likely=False)
    if not now.snapshot.predictions:
        return latest, latest, end  # what is likely is what is longest
    earliest, _ = await _starts(now, wanted, seconds, likely=True)
    return earliest, latest, end


def _range(earliest: float | None, latest: float | None, end: float | None) -> View:
    """When a job starts: as it is likely, and at the latest; None where nobody can say.

    `later_than` is set where that was not found out in time. `end` is up to when it was looked ahead, None where there
    was nothing more to see.
    """
    if latest is not None:
        # planning is no monotone function of run times (Graham, Bounds on Multiprocessing Timing Anomalies, 1969)
        earliest = latest if earliest is None else min(earliest, latest)
        end = None
    return {"earliest": moment(earliest), "latest": moment(latest), "later_than": moment(end)}


async def _starts(
    now: _Now, wanted: Set[int], seconds: float, *, likely: bool
) -> tuple[dict[int, float], float | None]:
    """When these jobs start, and up to when it was looked ahead, where that was not far enough for all."""
    deadline = time.monotonic() + seconds
    found: dict[int, float] = {}
    for one in forecast(now.snapshot, now.gpus, likely=likely):
        found |= dict.fromkeys(one.started & wanted, one.at)
        if len(found) == len(wanted) or one.last:
            return found, None
        if time.monotonic() > deadline:
            return found, one.at
        await let_others()
    return found, None


async def _changes(core: Core, now: _Now, job: Job, deadline: float) -> list[str]:
    """Options with which it would start now, as they are typed."""
    peak = max((claim.peak for attempt in core.store.attempts(job.id) for claim in attempt.claims), default=0)
    found: list[str] = []
    early = job.early_signal.before if job.early_signal is not None else 0.0
    for options in advice(Case(now.snapshot, now.gpus, now.keys[job.id], job.id, peak, core.grace(job), early)):
        if options is not None:
            found.append(" ".join(options))
        if len(found) >= MOST_CHANGES or time.monotonic() > deadline:
            break
        await let_others()
    return found


def _why_then(core: Core, job: Job) -> list[str]:
    """Of a job that has started: why there and then, as it was noted when it did."""
    if job.attempt == 0:
        return []
    events = core.store.events(0, Selection(ranges=((job.id, job.id),)), None)
    started = [event for event in events if event.kind is Kind.STARTED and event.attempt == job.attempt]
    if not started:
        return []
    return [str(line) for line in started[-1].data.get("why", ())] or ["it did not wait: nothing was in its way"]


def awaited(core: Core, job: Job) -> list[str]:
    """Of each clause that does not hold yet, how the job of each alternative stands."""
    open_ = core.store.open_clauses(job.id)
    lines = []
    for number, clause in itertools.islice(open_.items(), MOST_CLAUSES):
        whole = job.after[number] if number < len(job.after) else clause
        stands = [
            f"job {wanted.job_id} {_stands(core.store.state_of(wanted.job_id), wanted in clause.alternatives)}"
            for wanted in whole.alternatives
        ]
        lines.append(f"{whole}: {'; '.join(stands)}")
    if len(open_) > MOST_CLAUSES:
        lines.append(f"and {len(open_) - MOST_CLAUSES:,} more")
    return lines


def _stands(state: State | None, still: bool) -> str:
    """How a job stands for one that waits on it; `still` says that it may yet come to what is waited for."""
    if state is None:
        return "is gone"
    return ended_words(state) if state in ENDED else f"is {state}" if still else f"is {state} again"


def _numbers(gpu: GpuState) -> View:
    view = gpu_view(gpu)
    wanted = (
        "index",
        "uuid",
        "name",
        "total_bytes",
        "margin_bytes",
        "foreign_bytes",
        "neighbours_bytes",
        "claimed_bytes",
        "headroom_bytes",
    )
    return {name: view[name] for name in (*wanted, "jobs", "available", "processes")}


def _resources(now: _Now, job: Job) -> list[str]:
    """What a job that may start asks for, and what stands against it besides GPUs."""
    snapshot, request = now.snapshot, job.request
    lines = [f"asks for {asked(request)}, priority {job.priority}"]
    if request.cpus:
        lines.append(f"CPUs: asks for {request.cpus}, {snapshot.cpus_used} of {snapshot.host.cpus} are given to jobs")
    if request.ram:
        given, has = format_size(snapshot.ram_used), format_size(snapshot.host.ram)
        lines.append(f"host memory: asks for {format_size(request.ram)}, {given} of {has} are given to jobs")
    for gpu in now.gpus if request.gpus else ():
        for p in sorted(gpu.strangers, key=lambda p: -(p.used or 0))[:MOST_STRANGERS]:
            seen, uses = who(p.pid), "some memory" if p.used is None else format_size(p.used)
            name = f"{seen['program']} of {seen['owner']}" if seen["program"] else "a program that cannot be seen"
            lines.append(f"{gpu.place}: foreign process {p.pid}, {name}, uses {uses}")
        lines += neighbour_lines(gpu)
    return lines


def _told(core: Core, job: Job) -> str:
    """What there is to say of a job that does not wait."""
    where = ", ".join(core.gpu_place(uuid) for uuid in job.gpus) or "no GPU"
    if job.id in core.running:
        if job.ending is not None:
            return _ending_text(core, job, where)
        if job.state is State.SUSPENDED:
            since = moment(job.suspended_at)
            return f"suspended since {since}, and keeps {where}; `gpuq resume {job.id}` lets it go on"
        return f"runs on {where} since {moment(job.started_at)}"
    said = f"ended {moment(job.ended_at)}: {job.failure or job.state}"
    return f"{said} ({job.note})" if job.note else said


def _ending_text(core: Core, job: Job, where: str) -> str:
    what = "cancelling" if job.ending is Ending.CANCEL else f"ending: {job.ending}"
    since, kill_at = ending_times(core, job)
    then = f" since {moment(since)}; KILL follows at {moment(kill_at)}" if since is not None else ""
    return f"{what}{then}" + (f"; until it has ended it keeps {where}" if job.gpus else "")
