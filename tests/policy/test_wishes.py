"""Which GPUs a request may have, which of them it gets, and what is refused because no GPU could ever do."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import Claim, GiB, Host, MiB, Request, Wishes
from gpuq.policy.explain import impossible
from gpuq.policy.ledger import GpuState
from gpuq.policy.placing import permitted, place
from tests.policy.build import HOST, SETTINGS, make_gpu, stranger

A100, A100_BIG, H100 = "NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"


def card(index: int, name: str, size: int, **changes: object) -> GpuState:
    return make_gpu(index, name=name, total=size * GiB, **changes)


#: 0 to 3 are A100 of 40 GiB, 4 and 5 of 80 GiB, 6 and 7 H100.
EIGHT = [card(n, A100 if n < 4 else A100_BIG if n < 6 else H100, 40 if n < 4 else 80) for n in range(8)]


def host(gpus: list[GpuState]) -> Host:
    return replace(HOST, capacities={g.uuid: g.total for g in gpus}, names={g.uuid: g.name for g in gpus})


def ask(gpus: int = 1, vram: int | None = None, most: int = 0, **which: object) -> Request:
    return Request(gpus, None if vram is None else vram * GiB, 0, 0, most, Wishes(**which))  # type: ignore[arg-type]


def uuids(*indexes: int) -> tuple[str, ...]:
    return tuple(f"GPU-{index}" for index in indexes)


# --- which it may have ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (Wishes(), range(8)),
        (Wishes(types=("h100",)), (6, 7)),
        (Wishes(types=("A100-sxm", "H100")), (4, 5, 6, 7)),
        (Wishes(types=("B200",)), ()),
        (Wishes(min_memory=40 * GiB), range(8)),
        (Wishes(min_memory=40 * GiB + 1), (4, 5, 6, 7)),
        (Wishes(only=("GPU-3", "GPU-6")), (3, 6)),
        (Wishes(exclude=("GPU-3", "GPU-6")), (0, 1, 2, 4, 5, 7)),
        (Wishes(("A100",), 80 * GiB, uuids(3, 4, 5, 6), uuids(5)), (4,)),
        (Wishes(spread=True), range(8)),
    ],
)
def test_each_condition_leaves_some(which: Wishes, left: range | tuple[int, ...]) -> None:
    assert [gpu.index for gpu in permitted(Request(1, None, 0, 0, which=which), EIGHT)] == list(left)
    subset = uuids(0, 4, 6)
    assert [gpu.index for gpu in permitted(Request(1, None, 0, 0, which=which), EIGHT, subset)] == [
        index for index in left if index in (0, 4, 6)
    ]


# --- which it gets --------------------------------------------------------------------------------


def test_a_range_gets_as_many_as_have_room() -> None:
    gpus = [make_gpu(n) for n in range(4)]
    busy = [g.with_claim(Claim(9, 1, g.uuid, 20 * GiB)) if g.index in (0, 2) else g for g in gpus]
    assert place(ask(1, 10, most=3), gpus) == uuids(0, 1, 2)
    assert place(ask(1, 10, most=3), busy) == uuids(1, 3)
    assert place(ask(3, 10, most=4), busy) is None
    assert place(ask(2, most=64), busy) == uuids(1, 3)


def test_best_fit_and_spread() -> None:
    gpus = [make_gpu(0), make_gpu(1).with_claim(Claim(9, 1, "GPU-1", 10 * GiB)), card(2, "big", 80)]
    assert place(ask(1, 8), gpus) == uuids(1)
    assert place(ask(1, 16), gpus) == uuids(0)
    assert place(ask(1, 8, spread=True), gpus) == uuids(2)
    assert place(ask(2, 8, spread=True), gpus) == uuids(0, 2)


def test_a_whole_gpu_job_takes_the_smallest_and_leaves_the_desktop() -> None:
    gpus = [card(0, "big", 80), make_gpu(1), make_gpu(2)]
    assert place(ask(1), gpus) == uuids(1)
    assert place(ask(2), gpus) == uuids(1, 2)
    assert place(ask(1, spread=True), gpus) == uuids(0)
    assert place(ask(1, min_memory=48 * GiB), gpus) == uuids(0)
    desktop = [card(0, "big", 80), make_gpu(1, strangers=(stranger(MiB, compute=False, graphics=True),))]
    assert place(ask(1), desktop) == uuids(0)


def apart(*far: tuple[int, int], size: int = 4) -> list[dict[str, int]]:
    """Distances: 10 for these pairs, 50 for all others."""
    return [
        {f"GPU-{other}": 10 if tuple(sorted((one, other))) in far else 50 for other in range(size) if other != one}
        for one in range(size)
    ]


def test_several_gpus_are_the_closest_and_of_equally_close_ones_the_first() -> None:
    near = apart((0, 3), (1, 2))
    gpus = [make_gpu(n, near=near[n]) for n in range(4)]
    for request in (ask(2), ask(2, 10), ask(1, 10, most=2)):
        assert place(request, gpus) == uuids(0, 3)
    used = [g.with_claim(Claim(9, 1, g.uuid, 4 * GiB)) if g.index in (1, 2) else g for g in gpus]
    assert place(ask(2, 10), used) == uuids(1, 2)  # best fit decides between equals
    assert place(ask(2, 10, spread=True), used) == uuids(0, 3)
    lopsided = [g.with_claim(Claim(9, 1, g.uuid, 4 * GiB)) if g.index in (0, 1) else g for g in gpus]
    assert place(ask(2, 10), lopsided) == uuids(0, 3)  # and closeness between holes
    assert place(ask(2, 10, spread=True), lopsided) == uuids(2, 3)  # unless they are to be spread
    assert place(ask(2, exclude=uuids(3)), gpus) == uuids(1, 2)


def test_a_desktop_is_left_alone_by_several_that_can_do_without_it() -> None:
    near = apart((0, 1))
    gpus = [make_gpu(n, near=near[n]) for n in range(4)]
    gpus[1] = replace(gpus[1], strangers=(stranger(MiB, compute=False, graphics=True),))
    assert place(ask(2), gpus) == uuids(0, 2)
    assert place(ask(2, 10), gpus) == uuids(0, 1)  # who shares a GPU does not mind
    assert place(ask(4), gpus) == uuids(0, 1, 2, 3)


# --- what is refused ------------------------------------------------------------------------------

ALL = "2 NVIDIA A100-SXM4-80GB, 2 NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ask(3, types=("H100",)), f"2 of 8 GPUs are of type H100: 3 are asked for; there are 4 {A100}, {ALL}"),
        (ask(1, types=("B200", "B300")), "0 of 8 GPUs are of type B200 or B300: 1 is asked for; there are 4 "),
        (
            ask(3, types=("A100",), min_memory=60 * GiB),
            "6 of 8 GPUs are of type A100, 2 of them have at least 60GiB: 3 are asked for; the largest has 80GiB",
        ),
        (ask(1, min_memory=81 * GiB), "0 of 8 GPUs have at least 81GiB: 1 is asked for; the largest has 80GiB"),
        (
            ask(1, min_memory=80 * GiB + MiB),
            "0 of 8 GPUs have at least 80GiB: 1 is asked for; the largest has 81920MiB",
        ),
        (
            ask(2, types=("H100",), only=uuids(5, 6)),
            "2 of 8 GPUs are of type H100, 1 of them is named by --gpu-id: 2 are asked for",
        ),
        (ask(7, exclude=uuids(0, 1)), "6 of 8 GPUs are not excluded: 7 are asked for"),
        (
            ask(3, 79, only=uuids(0, 4, 5), exclude=uuids(7)),
            "3 of 8 GPUs are named by --gpu-id, 3 of them are not excluded, 2 of them can hold the 79GiB of --vram: "
            "3 are asked for; at most 79.8GiB can be claimed on a GPU (its memory less 256MiB margin)",
        ),
        (ask(9), "9 GPUs asked for with --gpus, and this host has 8 GPUs"),
    ],
)
def test_what_can_never_fit_is_told_by_the_condition_that_leaves_too_few(request_: Request, said: str) -> None:
    found = impossible(request_, host(EIGHT), SETTINGS, gpus_known=True)
    assert found is not None
    assert found.startswith(said)
    assert impossible(request_, HOST, SETTINGS, gpus_known=False) is None


def test_what_can_fit_is_not_refused() -> None:
    for request in (
        ask(1, 10, most=64),
        ask(2, 79, types=("h100",), min_memory=GiB),
        ask(8, exclude=()),
        ask(6, types=("A100",)),
    ):
        assert impossible(request, host(EIGHT), SETTINGS, gpus_known=True) is None
    never_seen = replace(host(EIGHT), capacities={"GPU-0": 40 * GiB, "GPU-9": 0}, names={"GPU-0": A100, "GPU-9": ""})
    unsure = ask(1, 100, types=("B200",), min_memory=200 * GiB)
    assert impossible(unsure, never_seen, SETTINGS, gpus_known=True) is None
    assert impossible(ask(1, exclude=("GPU-0", "GPU-9")), never_seen, SETTINGS, gpus_known=True) is not None


NAMES = st.sampled_from([A100, A100_BIG, H100, "Tesla T4"])
CARDS = st.lists(st.tuples(NAMES, st.sampled_from([16, 40, 80])), min_size=1, max_size=5).map(
    lambda rows: [card(n, name, size) for n, (name, size) in enumerate(rows)]
)
SOME = st.lists(st.integers(0, 4), max_size=3, unique=True).map(lambda some: uuids(*some))
#: What just fits a card, and a byte more, beside any.
CLAIMS = st.builds(
    lambda size, more: size * GiB - SETTINGS.margin + more, st.sampled_from([16, 40, 80]), st.integers(0, 1)
)
ASKS = st.builds(
    Request,
    st.integers(1, 4),
    st.none() | st.integers(1, 90 * GiB) | CLAIMS,
    st.just(0),
    st.just(0),
    st.integers(0, 6),
    st.builds(
        Wishes,
        st.lists(st.sampled_from(["a100", "A100-SXM", "H100", "t4", "B200"]), max_size=2).map(tuple),
        st.sampled_from([0, 16 * GiB, 17 * GiB, 40 * GiB, 80 * GiB, 81 * GiB]),
        SOME,
        SOME,
        st.booleans(),
    ),
)


@given(CARDS, ASKS)
def test_what_is_let_pass_fits_the_empty_host_and_what_is_refused_does_not(gpus: list[GpuState], asks: Request) -> None:
    refused = impossible(asks, host(gpus), SETTINGS, gpus_known=True)
    placed = place(asks, gpus)
    able = [gpu for gpu in gpus if _takes(asks, gpu)]
    assert (refused is None) == (placed is not None) == any(combinations(able, asks.gpus))
    if placed is not None:
        assert len(placed) == min(max(asks.gpus, asks.most), len(able))
        assert set(placed) <= {gpu.uuid for gpu in able}
        assert all(one < other for one, other in pairwise(placed))


def _takes(asks: Request, gpu: GpuState) -> bool:
    """The oracle: whether an empty GPU could take a share, by the options' help."""
    which = asks.which
    if which.only and gpu.uuid not in which.only:
        return False
    if gpu.uuid in which.exclude or gpu.total < which.min_memory:
        return False
    if which.types and not any(part.lower() in gpu.name.lower() for part in which.types):
        return False
    return asks.vram is None or gpu.total - 256 * MiB >= asks.vram
