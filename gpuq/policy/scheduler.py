"""The planner: which waiting jobs start now and where, and why each group of the others waits. Pure.

Highest priority first, then oldest; a job that does not fit lets later ones pass. The cost grows with distinct
requests, GPUs and starts, not with the length of the queue.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpuq.model import Claim, Host, Reason, Request
from gpuq.policy.explain import Verdict, why_not
from gpuq.policy.ledger import GpuState
from gpuq.policy.waiting import GroupKey


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that planning depends on apart from the GPUs. Groups hold the ids of their jobs, oldest first."""

    groups: Mapping[GroupKey, Sequence[int]]
    host: Host
    #: CPUs and bytes of host memory given to running jobs
    cpus_used: int = 0
    ram_used: int = 0
    #: running members by array id
    array_running: Mapping[int, int] = field(default_factory=dict)
    #: what is wrong with the driver as a whole
    gpu_fault: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    job_id: int
    request: Request
    gpus: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    starts: tuple[Start, ...]
    #: why each group with jobs left waits; groups that were not looked at are not in it
    verdicts: Mapping[GroupKey, Verdict]


@dataclass(slots=True)
class _Books:
    """What is left while the plan is made."""

    gpus: list[GpuState]
    cpus_used: int
    ram_used: int
    array_running: dict[int, int]


def plan(snapshot: Snapshot, gpus: Sequence[GpuState] | None) -> Plan:
    """Starts in order, and a verdict for each group that must wait on.

    `gpus` is None while no reading is at hand: jobs that ask for GPUs are then left as they are.
    """
    books = _Books(list(gpus or ()), snapshot.cpus_used, snapshot.ram_used, dict(snapshot.array_running))
    starts: list[Start] = []
    verdicts: dict[GroupKey, Verdict] = {}
    # (−priority, id of the head, tie-breaker): the next job in order over all groups
    order: list[tuple[int, int, int, GroupKey]] = []
    for number, (key, ids) in enumerate(snapshot.groups.items()):
        if gpus is not None or not key.request.gpus:
            order.append((-key.priority, ids[0], number, key))
    heapq.heapify(order)
    position = dict.fromkeys(snapshot.groups, 0)
    while order:
        _, job_id, number, key = heapq.heappop(order)
        chosen = _fit(key, books, snapshot)
        if isinstance(chosen, Verdict):
            verdicts[key] = chosen
            continue
        starts.append(Start(job_id, key.request, chosen))
        _book(key, job_id, chosen, books)
        position[key] += 1
        ids = snapshot.groups[key]
        if position[key] < len(ids):
            heapq.heappush(order, (-key.priority, ids[position[key]], number, key))
    return Plan(tuple(starts), verdicts)


def _fit(key: GroupKey, books: _Books, snapshot: Snapshot) -> tuple[str, ...] | Verdict:
    """GPUs for one job of the group, or why it cannot start."""
    request, host = key.request, snapshot.host
    if key.array is not None:
        array_id, limit = key.array
        running = books.array_running.get(array_id, 0)
        if running >= limit:
            return Verdict(Reason.LIMIT, f"{running} of at most {limit} jobs of array {array_id} run")
    enough = (request.cpus <= host.cpus - books.cpus_used or not request.cpus) and (
        request.ram <= host.ram - books.ram_used or not request.ram
    )
    chosen = place(request, books.gpus) if enough else None
    if chosen is None:
        return why_not(request, books.gpus, host, books.cpus_used, books.ram_used, snapshot.gpu_fault)
    return chosen


def _book(key: GroupKey, job_id: int, chosen: Sequence[str], books: _Books) -> None:
    request = key.request
    books.cpus_used += request.cpus
    books.ram_used += request.ram
    if key.array is not None:
        books.array_running[key.array[0]] = books.array_running.get(key.array[0], 0) + 1
    for number, gpu in enumerate(books.gpus):
        if gpu.uuid in chosen:
            books.gpus[number] = gpu.with_claim(Claim(job_id, 0, gpu.uuid, request.vram))


def place(request: Request, gpus: Sequence[GpuState]) -> tuple[str, ...] | None:
    """GPUs for a request in the order of their indexes, None when it does not fit now.

    Sharing jobs take the GPU with the least headroom that is enough, so that big holes stay whole; whole-GPU jobs
    prefer GPUs without a desktop.
    """
    if request.gpus == 0:
        return ()
    if request.vram is None:
        fitting = [gpu for gpu in gpus if gpu.whole_free]
        fitting.sort(key=lambda gpu: (gpu.draws, gpu.order))
    else:
        fitting = [gpu for gpu in gpus if gpu.fault is None and gpu.headroom >= request.vram]
        fitting.sort(key=lambda gpu: (gpu.headroom, gpu.order))
    if len(fitting) < request.gpus:
        return None
    chosen = sorted(fitting[: request.gpus], key=lambda gpu: gpu.order)
    return tuple(gpu.uuid for gpu in chosen)
