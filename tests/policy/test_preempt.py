"""Who gives way: the choice that loses the fewest GPU-hours, and nobody in vain."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations

from hypothesis import assume, given
from hypothesis import strategies as st

from gpuq.model import Claim, GiB, Host, Order, Request
from gpuq.policy import preempt
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.placing import fits
from gpuq.policy.preempt import Preemption, victims
from gpuq.policy.reserve import Ongoing
from gpuq.policy.scheduler import Plan, Policy, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from tests.policy.build import make_gpu

NOW = 10_000.0
HOST = Host(cpus=8, ram=64 * GiB)
WHOLE = Request(1, None, 0, 0)


def cost(chosen: tuple[Ongoing, ...]) -> tuple[float, float, int]:
    return (sum(j.ran * j.gpus for j in chosen), sum(j.ran * j.cpus for j in chosen), len(chosen))


def makes_room(request: Request, gpus: list[GpuState], ongoing: list[Ongoing], ended: tuple[Ongoing, ...]) -> bool:
    gone = {job.job_id for job in ended}
    left = [job for job in ongoing if job.job_id not in gone]
    cpus, ram = sum(job.cpus for job in left), sum(job.ram for job in left)
    if (request.cpus and cpus + request.cpus > HOST.cpus) or (request.ram and ram + request.ram > HOST.ram):
        return False
    states = [replace(gpu, claims=tuple(c for c in gpu.claims if c.job_id not in gone)) for gpu in gpus]
    return sum(fits(request, gpu) for gpu in states) >= request.gpus


JOBS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), max_size=2, unique=True),
        st.sampled_from([None, 6, 12, 20]),
        st.integers(0, 4),
        st.integers(0, 1000),
    ),
    max_size=6,
)
REQUESTS = st.builds(
    Request,
    st.integers(0, 3),
    st.sampled_from([None, 4 * GiB, 16 * GiB]),
    st.integers(0, 8),
    st.sampled_from([0, 40 * GiB]),
)


@given(JOBS, REQUESTS)
def test_the_cheapest_choice_that_makes_room(
    rows: list[tuple[list[int], int | None, int, int]], request: Request
) -> None:
    ongoing, claims = [], dict[int, list[Claim]]()
    for job_id, (on, size, cpus, ran) in enumerate(rows, 1):
        ongoing.append(Ongoing(job_id, cpus, 10 * GiB, gpus=len(on), preemptible=True, ran=float(ran)))
        for index in on:
            claims.setdefault(index, []).append(Claim(job_id, 1, f"GPU-{index}", size and size * GiB))
    gpus = [make_gpu(index, claims=tuple(claims.get(index, ()))) for index in range(3)]
    assume(not makes_room(request, gpus, ongoing, ()))
    choices = chain.from_iterable(combinations(ongoing, n) for n in range(1, len(ongoing) + 1))
    able = [cost(choice) for choice in choices if makes_room(request, gpus, ongoing, choice)]
    chosen = victims(request, gpus, ongoing, HOST, ongoing)
    if chosen is None:
        assert not able
    else:
        assert makes_room(request, gpus, ongoing, chosen)
        assert cost(chosen) == min(able)


def test_where_choices_are_too_many_none_is_in_vain() -> None:
    ongoing = [Ongoing(n, gpus=1, preemptible=True, ran=float(n)) for n in range(1, 41)]
    gpus = [make_gpu(n, claims=(Claim(n, 1, f"GPU-{n}", None),)) for n in range(1, 41)]
    chosen = victims(Request(20, None, 0, 0), gpus, ongoing, HOST, ongoing)
    assert chosen is not None and sorted(job.job_id for job in chosen) == list(range(1, 21))
    assert preempt.MOST_CHOICES < 2**20


def planned(*ongoing: Ongoing, priority: int = 1, gpus: list[GpuState] | None = None, **changes: object) -> Plan:
    key = GroupKey(priority, 1, WHOLE)
    policy = Policy(**{"preempt_after": 300.0, "reserve_after": 600.0, **changes})  # type: ignore[arg-type]
    snapshot = Snapshot({key: Line.of([40], since=NOW)}, HOST, now=NOW, policy=policy, ongoing=ongoing)
    taken = [make_gpu(n, claims=(Claim(job.job_id, 1, f"GPU-{n}", None),)) for n, job in enumerate(ongoing)]
    return plan(snapshot, taken if gpus is None else gpus)


def running(job_id: int, **changes: object) -> Ongoing:
    fields: dict[str, object] = {"gpus": 1, "preemptible": True, "ran": 1000.0, "grace": 10.0}
    return Ongoing(job_id, **(fields | changes))  # type: ignore[arg-type]


def test_the_job_has_a_reservation_for_when_they_have_ended() -> None:
    result = planned(running(1, ran=2000.0), running(2))
    assert result.preemptions == (Preemption(2, 40),)
    assert [(r.job_id, r.at, r.gpus) for r in result.reservations] == [(40, NOW + 10, ("GPU-1",))]
    assert not result.starts


def test_who_does_not_give_way() -> None:
    assert not planned(running(1, preemptible=False)).preemptions
    assert not planned(running(1, ran=299.0)).preemptions, "not yet: nobody is sent away again and again"
    assert not planned(running(1, priority=1)).preemptions, "an equal does not"
    assert not planned(running(1, ends=NOW + 5)).preemptions, "it ends by itself before it could have saved its work"
    assert planned(running(1, ends=NOW + 50)).preemptions
    assert not planned(running(1), order=Order.FIT_FIRST).preemptions
    assert planned(running(1), order=Order.FIFO).preemptions


def test_nobody_gives_way_in_vain() -> None:
    """Where foreign use, or a job that does not give way, would still keep it from starting."""
    foreign = make_gpu(0, claims=(Claim(1, 1, "GPU-0", 4 * GiB),), foreign_besides=20 * GiB, foreign=20 * GiB)
    assert not planned(running(1), gpus=[foreign]).preemptions
    both = make_gpu(0, claims=(Claim(1, 1, "GPU-0", 4 * GiB), Claim(2, 1, "GPU-0", 4 * GiB)))
    assert not planned(running(1), running(2, preemptible=False), gpus=[both]).preemptions
    assert planned(running(1), running(2), gpus=[both]).preemptions == (Preemption(1, 40), Preemption(2, 40))
