"""How far GPUs are apart, through the real pynvml on a fake driver: what is told, and whom it may keep."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

from gpuq.gpus import distances as distances_module
from gpuq.gpus.apart import distances_apart, packed, unpacked
from gpuq.gpus.distances import Inquirer
from gpuq.model import Driver, GiB, GpuReading, Readings
from tests import fakenvml
from tests.fakenvml import FakeNvml, FakePair, Fate, fake_gpus, fake_uuid
from tests.gpus.reader import StartWary
from tests.harness import wait_until

STATE = "nvmlDeviceGetNvLinkState"
REMOTE = "nvmlDeviceGetNvLinkRemotePciInfo_v2"
TYPE = "nvmlDeviceGetNvLinkRemoteDeviceType"
P2P = "nvmlDeviceGetP2PStatus"
ANCESTOR = "nvmlDeviceGetTopologyCommonAncestor"
ADDRESS = "nvmlDeviceGetPciInfo_v3"
#: far more than any of these tests takes
LONG = 120.0

Found = dict[tuple[int, int], int] | None
Ask = Callable[..., tuple[FakeNvml, Callable[[], Found]]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A fake driver with so many GPUs, and the question how far they are apart, by their places."""

    def make(count: int, *pairs: FakePair, without: tuple[str, ...] = ()) -> tuple[FakeNvml, Callable[[], Found]]:
        fake = FakeNvml(tmp_path / "nvml", fake_gpus(*[24 * GiB] * count), without)
        fake.set(pairs=pairs)
        for name, value in fake.env.items():
            monkeypatch.setenv(name, value)
        place = {fake_uuid(number): number for number in range(count)}

        def found() -> Found:
            told = distances_apart(place, LONG)
            return None if told is None else {(place[a], place[b]): distance for (a, b), distance in told.items()}

        return fake, found

    return make


# --- what is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "distance"), [(0, 100), (10, 110), (20, 120), (30, 130), (40, 140), (50, 150), (51, None), (None, None)]
)
def test_levels_of_pci_express(ask: Ask, level: int | None, distance: int | None) -> None:
    _, found = ask(3, FakePair(0, 2, level=level), FakePair(0, 1, level=30))
    assert found() == {(0, 1): 130} | ({} if distance is None else {(0, 2): distance})


def test_more_nvlinks_are_closer_and_any_is_closer_than_a_common_board(ask: Ask) -> None:
    pairs = FakePair(0, 1, 4, 50), FakePair(2, 3, 2, 50), FakePair(1, 2, 1), FakePair(3, 0, level=0)
    _, found = ask(4, *pairs)
    assert found() == {(0, 1): 96, (2, 3): 98, (1, 2): 99, (0, 3): 100}


def test_links_that_are_down_join_nothing(ask: Ask) -> None:
    fake, found = ask(2, FakePair(0, 1, 4, 40))
    fake.set(links_down=True)
    assert found() == {(0, 1): 140}


@pytest.mark.parametrize("p2p", [None, 0])
def test_all_gpus_on_switches_are_equally_near(ask: Ask, p2p: int | None) -> None:
    fake, found = ask(4, *(FakePair(a, b, level=50, p2p=p2p) for a, b in combinations(range(4), 2)))
    for index in range(3):
        fake.change(index, switched=12)
    near = dict.fromkeys(combinations(range(3), 2), 88)
    far = {(index, 3): 150 if p2p is None else 99 for index in range(3)}
    assert found() == near | far, "one that has no link to them is not among them, unless the driver says so"


def test_switches_that_pass_nothing_on_join_nothing(ask: Ask) -> None:
    fake, found = ask(2, FakePair(0, 1, level=40, p2p=3))
    fake.set(gpus=fake_gpus(24 * GiB, 24 * GiB, switched=18))
    assert found() == {(0, 1): 140}


def test_two_that_reach_each_other_by_links_which_are_not_told_have_one(ask: Ask) -> None:
    _, found = ask(3, FakePair(0, 1, level=10, p2p=0), FakePair(1, 2, level=10, p2p=1), without=(fakenvml.LINKS,))
    assert found() == {(0, 1): 99, (1, 2): 110}


@pytest.mark.parametrize(
    ("lacking", "distance"),
    [
        ((fakenvml.LINKS,), 140),
        ((fakenvml.LINK_TYPES,), 96),
        ((fakenvml.P2P,), 96),
        ((fakenvml.TOPOLOGY,), 96),
        ((fakenvml.LINKS, fakenvml.P2P, fakenvml.TOPOLOGY), None),
    ],
)
def test_an_old_library(ask: Ask, lacking: tuple[str, ...], distance: int | None) -> None:
    _, found = ask(2, FakePair(0, 1, 4, 40), without=lacking)
    assert found() == ({} if distance is None else {(0, 1): distance})


@pytest.mark.parametrize(
    "code", [fakenvml.NOT_SUPPORTED, fakenvml.INVALID_ARGUMENT, fakenvml.GPU_IS_LOST, fakenvml.UNKNOWN, 777]
)
@pytest.mark.parametrize(
    ("function", "distance"), [(STATE, 140), (REMOTE, 140), (TYPE, 96), (P2P, 96), (ADDRESS, 140), (ANCESTOR, 96)]
)
def test_a_call_that_fails_has_told_nothing(ask: Ask, function: str, distance: int, code: int) -> None:
    fake, found = ask(2, FakePair(0, 1, 4, 40))
    fake.set(fates=(Fate(function, code),))
    assert found() == {(0, 1): distance}
    fake.set(fates=(Fate(function, code), Fate(ANCESTOR, code)))
    assert found() == ({(0, 1): 96} if distance == 96 else {})


def test_a_gpu_that_cannot_be_asked_leaves_the_others(ask: Ask) -> None:
    fake, found = ask(3, FakePair(0, 1, 4), FakePair(0, 2, 4), FakePair(1, 2, 2))
    fake.change(0, handle=fakenvml.GPU_IS_LOST)
    assert found() == {(1, 2): 98}
    assert fake.calls().count(ADDRESS) == 2, "nothing is asked of one that is not there"
    fake.set(init=fakenvml.VERSION_MISMATCH)
    assert found() == {}


def test_a_library_that_crashes_tells_nothing(ask: Ask) -> None:
    fake, found = ask(2, FakePair(0, 1, 4))
    fake.set(fates=(Fate(REMOTE, crash=signal.SIGSEGV),))
    assert found() is None


def test_one_that_never_answers_is_given_up(ask: Ask) -> None:
    fake, _ = ask(2, FakePair(0, 1, 4))
    fake.set(fates=(Fate(STATE, hang=True),))
    assert distances_apart([fake_uuid(0), fake_uuid(1)], 0.01) is None


def test_a_host_without_room_for_a_process_is_asked_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(2, FakePair(0, 1, 4))
    well = tuple(GpuReading(fake_uuid(number), number, "card", 24 * GiB, 0) for number in range(2))
    readings, inquirer = Readings(Driver.OK, 0.0, well), Inquirer()
    with monkeypatch.context() as full:
        full.setattr(sys, "executable", "/nowhere/python")
        assert inquirer.complete(readings).distances == {}
    assert inquirer.complete(readings).distances == {}, "not at once"
    monkeypatch.setattr(distances_module, "ROOM", 0.0)
    inquirer = Inquirer()
    with monkeypatch.context() as full:
        full.setattr(sys, "executable", "/nowhere/python")
        assert inquirer.complete(readings).distances == {}
    assert inquirer.complete(readings).distances == {(fake_uuid(0), fake_uuid(1)): 96}


def test_many_gpus(ask: Ask) -> None:
    pairs = [FakePair(a, b, level=10 if a // 4 == b // 4 else 50) for a, b in combinations(range(16), 2)]
    _, found = ask(16, *pairs)
    assert found() == {(a, b): 110 if a // 4 == b // 4 else 150 for a, b in combinations(range(16), 2)}


def test_readings_come_through_json_as_they_were(start_wary: StartWary) -> None:
    _, reader = start_wary(2, FakePair(0, 1, 4))
    readings = reader.read()
    assert readings.distances == {(fake_uuid(0), fake_uuid(1)): 96}
    assert unpacked(json.loads(json.dumps(packed(readings)))) == readings


# --- once per set of GPUs ---------------------------------------------------------------------------


def distances(readings: Readings) -> dict[tuple[int, int], int]:
    """By the numbers in the UUIDs; every GPU is well."""
    assert readings.driver is Driver.OK and all(gpu.fault is None for gpu in readings.gpus)
    return {(int(a[-2:]), int(b[-2:])): distance for (a, b), distance in readings.distances.items()}


def test_it_is_asked_once_and_again_when_a_gpu_has_come(start_wary: StartWary) -> None:
    fake, reader = start_wary(3, FakePair(0, 1, 4), FakePair(0, 2, level=50))
    told = {(0, 1): 96, (0, 2): 150}
    asked = [fake.calls().count(ADDRESS) for _ in range(3) if distances(reader.read()) == told]
    assert asked == [3, 3, 3]
    all_three = fake.box.gpus
    fake.set(gpus=all_three[:2], pairs=(FakePair(0, 1, 2),))
    assert reader.read().distances == reader.read().distances
    assert fake.calls().count(ADDRESS) == 3, "those that are left are as far apart as they were"
    fake.set(gpus=all_three)
    assert distances(reader.read()) == {(0, 1): 98}
    assert fake.calls().count(ADDRESS) == 6


def test_a_gpu_that_was_sick_when_it_was_asked_is_asked_about_when_it_is_well(start_wary: StartWary) -> None:
    fake, reader = start_wary(3, FakePair(0, 1, 4), FakePair(0, 2, 2))
    fake.change(2, handle=fakenvml.GPU_IS_LOST)
    assert set(reader.read().distances.values()) == {96}
    fake.change(2, handle=0)
    assert distances(reader.read()) == {(0, 1): 96, (0, 2): 98}
    for code in (fakenvml.UNKNOWN, 0) * 3:
        fake.change(2, memory=code)
        reader.read()
    assert fake.calls().count(ADDRESS) == 5, "nor is it asked each time that a call went wrong"


@pytest.mark.parametrize("fates", [(), (Fate("nvmlSystemGetDriverVersion", fakenvml.NOT_SUPPORTED),)])
def test_a_driver_that_was_loaded_anew_is_asked_again(start_wary: StartWary, fates: tuple[Fate, ...]) -> None:
    fake, reader = start_wary(2, FakePair(0, 1, 4))
    fake.set(fates=fates)
    assert distances(reader.read()) == {(0, 1): 96}
    fake.set(every=fakenvml.UNINITIALIZED, pairs=(FakePair(0, 1, 2),))
    assert reader.read().distances == {}
    fake.set(every=0)
    assert distances(reader.read()) == {(0, 1): 98}


def test_a_driver_of_another_version_is_asked_again(start_wary: StartWary) -> None:
    fake, reader = start_wary(2, FakePair(0, 1, 4))
    assert distances(reader.read()) == {(0, 1): 96}
    fake.change(0, memory=fakenvml.UNINITIALIZED)  # the session is over, and nothing is said of the driver
    reader.read()
    fake.change(0, memory=0)
    fake.set(driver="570.1", pairs=(FakePair(0, 1, 2),))
    assert distances(reader.read()) == {(0, 1): 98}


def test_one_gpu_is_far_from_nothing(start_wary: StartWary) -> None:
    fake, reader = start_wary(1)
    assert distances(reader.read()) == {}
    assert fake.calls().count("nvmlInitWithFlags") == 1, "and nobody is asked"


def test_a_call_that_hangs_keeps_no_reading_for_long(start_wary: StartWary) -> None:
    fake, reader = start_wary(2, FakePair(0, 1, level=10))
    fake.set(fates=(Fate(STATE, hang=True),))
    assert distances(reader.read()) == {} == distances(reader.read())
    fake.set(gpus=fake_gpus(*[24 * GiB] * 3))
    assert distances(reader.read()) == {}
    assert fake.calls().count("nvmlInitWithFlags") == 2, "one process asks, however long"
    fake.set(fates=(), pairs=(FakePair(0, 1, level=10), FakePair(1, 2, level=50)))
    wait_until(lambda: distances(reader.read()) == {(0, 1): 110, (1, 2): 150}, "what it says in the end is heard")


def test_a_crash_of_these_calls_harms_no_gpu(start_wary: StartWary) -> None:
    fake, reader = start_wary(2, FakePair(0, 1, 4))
    fake.set(fates=(Fate(STATE, crash=signal.SIGSEGV),))
    assert distances(reader.read()) == {} == distances(reader.read())
    assert fake.calls().count("nvmlInitWithFlags") == 2
