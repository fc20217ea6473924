"""A planning pass alone, as after each reading: the policy is pure, so no daemon is needed to time it."""

from __future__ import annotations

from gpuq.model import Claim, GiB, Host, MiB, Request
from gpuq.policy.reserve import Ongoing
from gpuq.policy.scheduler import RESERVATIONS, Policy, Snapshot, plan
from gpuq.policy.waiting import Waiting
from tests.bench.measure import Measure, timed
from tests.bench.report import Goal
from tests.bench.world import World
from tests.policy.build import make_gpu, make_job

_GPUS, _RUNNING, _REQUESTS = 16, 64, 200


def measures(_: World) -> list[Measure]:
    return [_pass(1000, None), _pass(100_000, Goal(0.005))]


def _pass(count: int, goal: Goal | None) -> Measure:
    """Nothing of what waits fits, but for one small job: it starts, and all others are told why not, and the first of
    them have reservations behind running jobs with limits."""
    waiting = Waiting()
    for number in range(count):
        request = Request(1, 8 * GiB + (number % _REQUESTS) * MiB, 0, 0)
        waiting.put(make_job(1000 + number, request=request), 0, 0.0)
    waiting.put(make_job(1, request=Request(1, GiB, 0, 0)), 0, 0.0)
    claims = [Claim(2 + number, 1, f"GPU-{number % _GPUS}", 4 * GiB) for number in range(_RUNNING)]
    gpus = tuple(
        make_gpu(index, used=16 * GiB, claims=tuple(claim for claim in claims if claim.uuid == f"GPU-{index}"))
        for index in range(_GPUS)
    )
    snapshot = Snapshot(
        waiting.groups,
        Host(cpus=64, ram=512 * GiB),
        now=1000.0,
        policy=Policy(ageing=3600.0, reservations=RESERVATIONS),
        ongoing=[Ongoing(claim.job_id, ends=2000.0 + claim.job_id, gpus=1) for claim in claims],
    )
    if len(plan(snapshot, gpus).starts) != 1:
        raise RuntimeError("the pass that is timed is not the one that was meant")
    return Measure("plan", f"{count:,} wait", lambda: timed(lambda: plan(snapshot, gpus)), goal)
