"""NvmlSource on GPUs that break, vanish or move, and on drivers that do not open, break or hang."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuq.model import Driver, GiB
from tests import fakenvml
from tests.fakenvml import FakeProcess, fake_gpus, fake_uuid
from tests.gpus.reader import MEMORY, Start, compute, faults, only


@pytest.mark.parametrize("call", ["handle", "uuid_error", "memory"])
@pytest.mark.parametrize(
    ("code", "word"),
    [(fakenvml.GPU_IS_LOST, "lost"), (16, "reset"), (fakenvml.UNKNOWN, "unknown error"), (777, "777")],
)
def test_a_gpu_is_lost_and_comes_back(start: Start, call: str, code: int, word: str) -> None:
    fake, reader = start(24 * GiB, 80 * GiB, running=(FakeProcess(7, GiB),))
    well = reader.read()
    fake.change(0, **{call: code})
    sick, other = reader.read().gpus
    assert sick.fault is not None and word in sick.fault
    assert (sick.uuid, sick.index, sick.name, sick.total) == (fake_uuid(0), 0, well.gpus[0].name, 24 * GiB)
    assert (sick.before, sick.after, sick.told) == ((), (), False)
    assert other == well.gpus[1]
    fake.change(0, **{call: 0})
    assert reader.read().gpus == well.gpus


def test_a_lost_gpu_makes_a_session_be_opened_again(start: Start) -> None:
    fake, reader = start(24 * GiB)
    reader.read()
    fake.change(0, memory=fakenvml.GPU_IS_LOST)
    reader.read()
    reader.read()
    assert fake.calls().count("nvmlInitWithFlags") == 2
    assert fake.calls().count("nvmlShutdown") == 2


def test_a_session_that_is_new_is_not_opened_again_for_a_lost_gpu(start: Start) -> None:
    fake, reader = start(24 * GiB, reopen_after=86400)
    reader.read()
    fake.change(0, memory=fakenvml.GPU_IS_LOST)
    reader.read()
    reader.read()
    assert fake.calls().count("nvmlInitWithFlags") == 1
    fake.change(0, memory=fakenvml.UNINITIALIZED)
    assert None not in faults(reader.read())
    fake.change(0, memory=0)
    assert faults(reader.read()) == [None]
    assert fake.calls().count("nvmlInitWithFlags") == 2, "a session that is over is, however new"


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"memory": fakenvml.GPU_IS_LOST}, True),
        ({"handle": 16}, True),
        ({"uuid_error": 28}, True),
        ({"memory": fakenvml.UNKNOWN}, True),
        ({"processes": fakenvml.GPU_IS_LOST}, True),
        ({"graphics": fakenvml.GPU_IS_LOST}, None),  # some GPUs have no such list, and nobody computes through it
        ({"recovery": 1}, True),
        ({"recovery": 7}, True),
        ({"recovery": 4}, False),  # it works, and wants no new work
        ({"recovery": 3}, None),  # only what it shares with other GPUs
        ({"memory": fakenvml.NOT_SUPPORTED}, False),
        ({"memory": fakenvml.NO_PERMISSION}, False),
        ({"memory": fakenvml.VERSION_MISMATCH}, False),
        ({"total": 2**63}, False),
        ({"total": 0}, False),
        ({"used": 2**63}, False),
    ],
    ids=str,
)
def test_a_gpu_that_is_broken_is_told_from_one_that_is_not_read(
    start: Start, changes: dict[str, int], lost: bool | None
) -> None:
    fake, reader = start(24 * GiB, 24 * GiB)
    well = reader.read().gpus
    fake.change(1, **changes)
    first, second = reader.read().gpus
    assert first == well[0]
    assert (second.fault is None, second.lost) == (lost is None, bool(lost))
    fake.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert reader.read().gpus == well, "one good reading of everything, and it is used again"


def test_a_gpu_that_is_gone_from_the_list_is_lost_and_a_broken_driver_loses_none(start: Start) -> None:
    fake, reader = start(24 * GiB, 24 * GiB)
    reader.read()
    fake.set(gpus=fake.box.gpus[:1])
    assert [gpu.lost for gpu in reader.read().gpus] == [False, True]
    fake.set(gpus=fake_gpus(24 * GiB, 24 * GiB), every=fakenvml.VERSION_MISMATCH)
    assert [(gpu.fault is None, gpu.lost) for gpu in reader.read().gpus] == [(False, False)] * 2


@pytest.mark.parametrize("count", [2**32 - 1, 100_000])
def test_a_driver_that_counts_nonsense_is_broken_and_costs_no_time(start: Start, count: int) -> None:
    fake, reader = start(24 * GiB)
    reader.read()
    calls = reader.calls()
    fake.set(count=count)
    readings = reader.read()
    assert (readings.driver, readings.gpus[0].lost) == (Driver.BROKEN, False)
    assert "no sense" in (readings.fault or "")
    assert reader.calls() - calls < 10
    fake.set(count=0)
    assert only(reader.read()).total == 24 * GiB


@pytest.mark.parametrize("call", ["handle", "uuid_error"])
def test_a_gpu_that_was_never_seen_is_mentioned(start: Start, call: str) -> None:
    fake, reader = start(24 * GiB, 24 * GiB)
    fake.change(1, **{call: fakenvml.GPU_IS_LOST})
    readings = reader.read()
    assert [gpu.uuid for gpu in readings.gpus] == [fake_uuid(0)]
    assert readings.driver is Driver.OK
    assert readings.fault is not None and "GPU 1" in readings.fault and "lost" in readings.fault
    fake.change(1, **{call: 0})
    assert [gpu.uuid for gpu in reader.read().gpus] == [fake_uuid(0), fake_uuid(1)]
    assert reader.read().fault is None


def test_a_gpu_that_never_told_its_memory_is_shown(start: Start) -> None:
    _, reader = start(24 * GiB, memory=fakenvml.NOT_SUPPORTED)
    (gpu,) = reader.read().gpus
    assert (gpu.uuid, gpu.name, gpu.total) == (fake_uuid(0), "NVIDIA GeForce RTX 4090", 0)
    assert gpu.fault is not None and "how much memory" in gpu.fault


def test_fewer_gpus_than_before(start: Start) -> None:
    fake, reader = start(24 * GiB, 40 * GiB, 80 * GiB)
    reader.read()
    first, second, third = fake.box.gpus
    fake.set(gpus=(first, third))
    gone = "no longer listed by the driver"
    found = {gpu.uuid: (gpu.index, gpu.total, gpu.fault) for gpu in reader.read().gpus}
    assert found == {
        first.uuid: (0, 24 * GiB, None),
        second.uuid: (None, 40 * GiB, gone),
        third.uuid: (1, 80 * GiB, None),
    }
    fake.set(gpus=(first, second, third))
    assert faults(reader.read()) == [None, None, None]


def test_a_handle_that_cannot_be_had_is_not_taken_for_a_gpu_that_moved(start: Start) -> None:
    fake, reader = start(24 * GiB, 40 * GiB)
    reader.read()
    first, second = fake.box.gpus
    fake.set(gpus=(replace(second, handle=fakenvml.GPU_IS_LOST), first))
    readings = reader.read()
    assert {gpu.uuid: gpu.fault is None for gpu in readings.gpus} == {first.uuid: True, second.uuid: False}
    assert readings.fault is not None and "GPU 0" in readings.fault


def test_a_handle_that_cannot_be_had_is_of_the_gpu_seen_there_last(start: Start) -> None:
    fake, reader = start(24 * GiB, 40 * GiB)
    reader.read()
    first, second = fake.box.gpus
    fake.set(gpus=(second,))
    reader.read()
    fake.change(0, handle=fakenvml.GPU_IS_LOST)
    found = {gpu.uuid: gpu.fault for gpu in reader.read().gpus}
    assert found[first.uuid] == "no longer listed by the driver"
    assert "the GPU is lost" in (found[second.uuid] or "")


def test_order_of_indexes_changes(start: Start) -> None:
    fake, reader = start(24 * GiB, 80 * GiB)
    fake.add_process(1, FakeProcess(7, GiB))
    reader.read()
    first, second = fake.box.gpus
    fake.set(gpus=(second, first))
    readings = reader.read()
    assert [(g.index, g.uuid, g.total, g.used) for g in readings.gpus] == [
        (0, second.uuid, 80 * GiB, GiB),
        (1, first.uuid, 24 * GiB, 0),
    ]
    assert readings.gpus[0].after == (compute(7, GiB),)
    assert faults(readings) == [None, None]


# --- drivers in trouble ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (fakenvml.VERSION_MISMATCH, "driver and library versions differ"),
        (fakenvml.DRIVER_NOT_LOADED, "modprobe nvidia"),
        (fakenvml.NO_PERMISSION, "/dev/nvidia*"),
        (fakenvml.UNKNOWN, "dmesg"),
        (777, "'Fake NVML error 777' (code 777)"),
    ],
)
def test_a_driver_that_does_not_open_and_is_repaired(start: Start, code: int, word: str) -> None:
    fake, reader = start(24 * GiB)
    fake.set(init=code)
    readings = reader.read()
    assert (readings.driver, readings.gpus, readings.version) == (Driver.BROKEN, (), None)
    assert readings.fault is not None and word in readings.fault
    assert reader.read().driver is Driver.BROKEN
    fake.set(init=0)
    assert only(reader.read()).total == 24 * GiB


@pytest.mark.parametrize("change", ["every", "count_error"])
def test_a_driver_that_breaks_in_use(start: Start, change: str) -> None:
    fake, reader = start(24 * GiB, reopen_after=86400)
    reader.read()
    fake.set(**{change: fakenvml.VERSION_MISMATCH})
    readings = reader.read()
    assert readings.driver is Driver.BROKEN
    assert [(gpu.uuid, gpu.total, gpu.fault) for gpu in readings.gpus] == [(fake_uuid(0), 24 * GiB, readings.fault)]
    assert readings.fault is not None and "versions differ" in readings.fault
    assert reader.read().driver is Driver.BROKEN
    fake.set(**{change: 0})
    assert only(reader.read()).total == 24 * GiB


def test_a_call_that_hangs_blocks_the_reading_until_it_returns(start: Start) -> None:
    fake, reader = start(24 * GiB, hang=600)
    reader.send("read")
    fake.wait_for_call(MEMORY)
    assert not reader.answered()
    fake.change(0, hang=0, used_extra=5 * GiB)
    assert reader.receive()["gpus"][0]["used"] == 5 * GiB, "what was there when the call returned"
    assert only(reader.read()).used == 5 * GiB


@pytest.mark.parametrize("odd", ["", "GPU-1,GPU-2", "GPU;rm", "GPU_1"])
def test_a_gpu_that_no_job_could_be_given_by_its_uuid_is_unavailable(start: Start, odd: str) -> None:
    fake, reader = start(24 * GiB, 24 * GiB)
    good, bad = fake.box.gpus
    fake.set(gpus=(good, replace(bad, uuid=odd)))
    first, second = reader.read().gpus
    assert (first.uuid, first.fault) == (good.uuid, None)
    assert second.index == 1 and second.uuid != odd and second.fault is not None
    assert f"the UUID {odd!r}" in second.fault
    fake.set(gpus=(good, bad))
    assert faults(reader.read()) == [None, None]


def test_of_two_gpus_with_one_uuid_neither_is_used(start: Start) -> None:
    fake, reader = start(24 * GiB, 24 * GiB, 24 * GiB)
    one, two, three = fake.box.gpus
    fake.set(gpus=(one, two, replace(three, uuid=one.uuid)))
    assert faults(reader.read()) == ["the driver gives GPU 0 and GPU 2 the same UUID", None]
