"""Turns between daemons: who waits for longer comes first, and nobody can be kept waiting for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.model import Claim, GiB, Reason, Request
from gpuq.policy.courtesy import NONE, OFFENCE, PATIENCE, Courtesy, NeighbourWait, give_way
from gpuq.policy.explain import why_not
from gpuq.policy.fleet import Fleet
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import place
from tests.policy.build import HOST, make_gpu


def wait(
    since: float, size: int | None, gpus: int = 1, uid: int = 1001, only: tuple[str, ...] | None = None
) -> NeighbourWait:
    return NeighbourWait(uid, f"user{uid}", int(since * 1000), gpus, None if size is None else size * GiB, only)


def share(size: int, gpus: int = 1) -> Request:
    return Request(gpus, size * GiB, 0, 0)


def left(gpus: list[GpuState], *waits: NeighbourWait, ours: float = 100.0) -> list[GpuState]:
    return list(give_way(gpus, waits, ours, NONE, ours)[0])


def test_what_one_that_waits_for_longer_could_take_is_left_to_it() -> None:
    (gpu,) = left([make_gpu(0)], wait(50, 20))
    assert place(share(10), [gpu]) is None
    assert place(share(3), [gpu]) == ("GPU-0",)
    verdict = why_not(share(10), Fleet([gpu]), HOST, 0, 0, None)
    assert verdict.reason is Reason.FOREIGN_USE
    assert "user1001's gpuq waits for longer, and it is its turn on GPU 0" in verdict.text
    assert "claims" not in verdict.text
    (whole,) = left([make_gpu(0)], wait(50, None))
    assert place(share(1), [whole]) is None


def test_who_waits_for_less_long_or_could_not_start_is_no_hindrance() -> None:
    full = make_gpu(0, claims=(Claim(1, 1, "GPU-0", 10 * GiB),))
    for waits in (wait(100, 20), wait(150, 20)), (wait(50, 20), wait(50, None), wait(50, 5, gpus=2)):
        assert left([full], *waits) == [full]


def test_nothing_is_left_to_one_on_gpus_that_will_not_do_for_it() -> None:
    zero, one = left([make_gpu(0), make_gpu(1)], wait(50, 20, only=("GPU-1",)))
    assert place(share(10), [zero]) == ("GPU-0",)
    assert place(share(10), [one]) is None
    assert left([make_gpu(0)], wait(50, 20, only=("GPU-1",))) == [make_gpu(0)]


def test_several_are_left_their_places_the_longest_first() -> None:
    gpus = [make_gpu(0), make_gpu(1)]
    zero, one = left(gpus, wait(60, None, uid=1002), wait(50, None), wait(70, None, uid=1003))
    assert [use.owner for gpu in (zero, one) for use in gpu.neighbours] == ["user1001", "user1002"]


def test_who_does_not_take_it_is_not_waited_for() -> None:
    gpus, waits = [make_gpu(0)], [wait(50, 20)]
    past, now = NONE, 100.0
    states, past = give_way(gpus, waits, now, past, now)
    assert place(share(10), states) is None
    states, past = give_way(gpus, waits, now, past, now + PATIENCE + 0.1)
    assert place(share(10), states) == ("GPU-0",)
    other_claim = [wait(51, 10), wait(52, None)]  # as often as it likes, with whatever it likes
    states, past = give_way(gpus, other_claim, now, past, now + PATIENCE + 1)
    assert states == tuple(gpus)
    states, past = give_way(gpus, waits, now, past, now + PATIENCE + OFFENCE + 1)
    assert place(share(10), states) is None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.one_of(st.none(), st.integers(0, 30)), st.integers(1, 3)), max_size=5),
    st.lists(st.integers(8, 80), max_size=3),
)
def test_whatever_others_say_we_wait_for_a_moment_only(
    said: list[tuple[int, int | None, int]], totals: list[int]
) -> None:
    """With turns that change all the time, too: we are kept from GPUs for a small part of it."""
    gpus = [make_gpu(n, total=total * GiB) for n, total in enumerate(totals)]
    past: Courtesy = NONE
    kept = 0
    for second in range(1000, 1200):
        waits = [wait(since + second % 7, size, count) for since, size, count in said]
        states, past = give_way(gpus, waits, second, past, second)
        kept += list(states) != gpus
    assert kept <= 7 * (PATIENCE + 2)  # once in each 30 s or so
