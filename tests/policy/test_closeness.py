"""The GPUs that are closest to each other, against every choice there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import FARTHEST
from gpuq.policy import ledger
from gpuq.policy.closeness import EXACT, closest
from gpuq.policy.ledger import GpuState
from tests.policy.build import HOST, SETTINGS, make_gpu, reading, readings

Pairs = Mapping[tuple[int, int], int]


def host(size: int, pairs: Pairs) -> list[GpuState]:
    """GPUs 0 to size − 1 with these distances; what is not said is not told."""
    near: list[dict[str, int]] = [{} for _ in range(size)]
    for (one, other), distance in pairs.items():
        near[one][f"GPU-{other}"] = near[other][f"GPU-{one}"] = distance
    return [make_gpu(index, near=near[index]) for index in range(size)]


def chosen(gpus: Sequence[GpuState], count: int) -> list[int | None] | None:
    found = closest(gpus, count)
    return None if found is None else [gpu.index for gpu in found]


def apart(gpus: Sequence[GpuState]) -> int:
    return sum(one.near.get(other.uuid, FARTHEST) for one, other in itertools.combinations(gpus, 2))


@st.composite
def hosts(draw: st.DrawFn, least: int, most: int) -> list[GpuState]:
    """GPUs in any order of preference, with few different distances, so that there are ties, and pairs not told."""
    size = draw(st.integers(least, most))
    distance = st.one_of(st.none(), st.sampled_from([88, 96, 98, 100, 110, 140, 150]), st.integers(64, 150))
    told = {pair: draw(distance) for pair in itertools.combinations(range(size), 2)}
    gpus = host(size, {pair: distance for pair, distance in told.items() if distance is not None})
    return draw(st.permutations(gpus))


@given(hosts(0, 8), st.integers(0, 9))
def test_it_is_the_first_of_the_best_of_all_choices(gpus: list[GpuState], count: int) -> None:
    choices = list(itertools.combinations(gpus, count))  # the order of preference, best first
    assert closest(gpus, count) == min(choices, key=apart, default=None)


@given(hosts(16, 18), st.integers(7, 9))
def test_many_are_chosen_greedily_and_no_worse_than_from_the_first_one_on(gpus: list[GpuState], count: int) -> None:
    assert math.comb(len(gpus), count) > EXACT
    found = closest(gpus, count)
    assert found is not None and len(found) == count
    assert list(found) == [gpu for gpu in gpus if gpu in found], "in the order given"
    seed = gpus[:1]
    while len(seed) < count:
        rest = [gpu for gpu in gpus if gpu not in seed]
        seed.append(min(rest, key=lambda gpu: apart([gpu, *seed]) - apart(seed)))
    assert apart(found) <= apart(seed)


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("distance", [None, 82, 140])
def test_where_nothing_is_told_or_all_are_equally_near_the_first_ones_are_chosen(
    size: int, distance: int | None
) -> None:
    pairs = {} if distance is None else dict.fromkeys(itertools.combinations(range(size), 2), distance)
    gpus = host(size, pairs)[::-1]
    for count in range(size + 1):
        assert closest(gpus, count) == tuple(gpus[:count])
    assert closest(gpus, size + 1) is None


def test_a_pair_joined_by_nvlink_comes_before_those_that_are_preferred() -> None:
    gpus = host(4, {(0, 1): 140, (2, 3): 96, (0, 2): 150, (0, 3): 150, (1, 2): 150, (1, 3): 150})
    assert chosen(gpus, 1) == [0]
    assert chosen(gpus, 2) == [2, 3]
    assert chosen(gpus, 3) == [0, 2, 3], "as near as 1, 2, 3"
    assert chosen([gpus[3], gpus[1], gpus[0], gpus[2]], 3) == [3, 1, 2]


def test_two_boards_of_eight() -> None:
    """16 GPUs of which each half is joined: more choices than are looked at, and the half is found."""
    pairs = {(a, b): 88 if a % 2 == b % 2 else 150 for a, b in itertools.combinations(range(16), 2)}
    gpus = host(16, pairs)
    assert chosen(gpus, 8) == list(range(0, 16, 2))
    assert chosen(gpus[1:], 8) == list(range(1, 16, 2))
    assert chosen(gpus, 4) == [0, 2, 4, 6]


def test_a_pair_that_is_not_told_counts_as_the_farthest() -> None:
    assert chosen(host(3, {(0, 1): FARTHEST, (0, 2): 149}), 2) == [0, 2]
    assert chosen(host(3, {(0, 2): FARTHEST}), 2) == [0, 1], "and no farther"


def test_gpus_know_of_each_other_what_the_reading_tells() -> None:
    distances = {("GPU-0", "GPU-1"): 96, ("GPU-1", "GPU-2"): 150}
    told = replace(readings(reading(0), reading(1), reading(2)), distances=distances)
    states = ledger.gpu_states(told, {}, {}, SETTINGS, HOST)
    assert [dict(gpu.near) for gpu in states] == [{"GPU-1": 96}, {"GPU-0": 96, "GPU-2": 150}, {"GPU-1": 150}]
