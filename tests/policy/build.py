"""Builders: a record with everything that a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuq.model import (
    Claim,
    Clause,
    Condition,
    Dependency,
    Driver,
    GiB,
    GpuProcess,
    GpuReading,
    Host,
    Job,
    MiB,
    Readings,
    Request,
    Settings,
    State,
)
from gpuq.policy import ledger
from gpuq.policy.dependencies import Numbered
from gpuq.policy.ledger import GpuState

SETTINGS = Settings()
HOST = Host(cpus=8, ram=64 * GiB)


def make_job(job_id: int = 1, state: State = State.QUEUED, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "name": "job",
        "owner": 1000,
        "command": ("true",),
        "cwd": "/",
        "request": Request(0, None, 1, 0),
        "env_hash": "x",
        "submitted_at": 0.0,
    }
    return Job(id=job_id, state=state, **(fields | changes))


def clauses(*words: str) -> tuple[Clause, ...]:
    """What a job waits for, as `ok:1|failed:2` each."""
    return tuple(Clause(tuple(map(_dependency, word.split("|")))) for word in words)


def _dependency(word: str) -> Dependency:
    condition, _, job_id = word.partition(":")
    return Dependency(Condition(condition), int(job_id))


def numbered(after: Sequence[Clause]) -> frozenset[Numbered]:
    """Every alternative, as where all are open."""
    return frozenset((n, wanted) for n, clause in enumerate(after) for wanted in clause.alternatives)


def make_gpu(index: int = 0, **changes: Any) -> GpuState:
    fields: dict[str, Any] = {
        "uuid": f"GPU-{index}",
        "index": index,
        "name": "card",
        "total": 24 * GiB,
        "used": 0,
        "margin": 256 * MiB,
        "foreign": 0,
        "foreign_besides": 0,
        "tolerated": int(24 * GiB * 0.05),
    }
    return GpuState(**(fields | changes))


def reading(index: int = 0, *processes: GpuProcess, **changes: Any) -> GpuReading:
    """A GPU whose `used` is what its processes use, unless told otherwise."""
    fields: dict[str, Any] = {
        "uuid": f"GPU-{index}",
        "index": index,
        "name": "card",
        "total": 24 * GiB,
        "used": sum(p.used or 0 for p in processes),
        "before": processes,
        "after": processes,
    }
    return GpuReading(**(fields | changes))


def mine(job_id: int, used: int | None, pid: int = 0) -> GpuProcess:
    return GpuProcess(pid or 1000 + job_id, used, compute=True, graphics=False, job_id=job_id)


def stranger(used: int | None, *, pid: int = 7, compute: bool = True, graphics: bool = False) -> GpuProcess:
    return GpuProcess(pid, used, compute=compute, graphics=graphics)


def readings(*gpus: GpuReading, at: float = 0.0) -> Readings:
    return Readings(Driver.OK, at, gpus)


class Card:
    """A ledger over time: readings go in, the state of the first GPU comes out."""

    def __init__(self, *claims: Claim, settings: Settings = SETTINGS, host: Host = HOST) -> None:
        self.claims = list(claims)
        self.settings = settings
        self.host = host
        self.history: ledger.History = {}
        self.neighbours: ledger.Neighbours = {}

    def _claims(self) -> dict[str, list[Claim]]:
        found: dict[str, list[Claim]] = {}
        for claim in self.claims:
            found.setdefault(claim.uuid, []).append(claim)
        return found

    def disturb(self, at: float) -> None:
        self.history = ledger.disturb(self.history, ["GPU-0"], at)

    def see(self, gpu: GpuReading, at: float) -> GpuState:
        now = readings(gpu, at=at)
        claims, others = self._claims(), self.neighbours
        self.history = ledger.observe(self.history, now, claims, self.settings, self.host, others)
        return ledger.gpu_states(now, self.history, claims, self.settings, self.host, others)[0]
