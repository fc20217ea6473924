"""NvmlSource through the real pynvml, on a fake libnvidia-ml.so.1 that the tests edit while it is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuq.model import Driver, GiB, GpuProcess, GpuReading, MiB, Readings
from tests import fakenvml
from tests.fakenvml import FakeNvml, FakeProcess, fake_gpus, fake_uuid
from tests.gpus.reader import Reader

MEMORY = "nvmlDeviceGetMemoryInfo_v2"

Start = Callable[..., tuple[FakeNvml, Reader]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Make a fake driver with GPUs of these sizes, and a process that reads it."""
    with ExitStack() as stack:

        def make(
            *totals: int, without: tuple[str, ...] = (), reopen_after: float = 0, **every: Any
        ) -> tuple[FakeNvml, Reader]:
            fake = FakeNvml(tmp_path / "nvml", fake_gpus(*totals, **every), without)
            return fake, stack.enter_context(Reader(fake, reopen_after))

        yield make


def only(readings: Readings) -> GpuReading:
    """The one GPU, which is well."""
    (gpu,) = readings.gpus
    assert readings.driver is Driver.OK
    assert gpu.fault is None
    return gpu


def compute(pid: int, used: int | None) -> GpuProcess:
    return GpuProcess(pid, used, compute=True, graphics=False)


def faults(readings: Readings) -> list[str | None]:
    return [gpu.fault for gpu in readings.gpus]


# --- healthy boxes --------------------------------------------------------------------------------


def test_two_gpus_of_different_size(start: Start) -> None:
    _, reader = start(24 * GiB, 80 * GiB)
    readings = reader.read()
    assert (readings.driver, readings.fault, readings.version) == (Driver.OK, None, "560.35.03")
    assert readings.gpus == (
        GpuReading(fake_uuid(0), 0, "NVIDIA GeForce RTX 4090", 24 * GiB, 0),
        GpuReading(fake_uuid(1), 1, "NVIDIA GeForce RTX 4090", 80 * GiB, 0),
    )


def test_eight_gpus(start: Start) -> None:
    sizes = [size * GiB for size in (80, 80, 40, 24, 24, 16, 11, 8)]
    _, reader = start(*sizes)
    assert [(gpu.index, gpu.uuid, gpu.total) for gpu in reader.read().gpus] == [
        (index, fake_uuid(index), size) for index, size in enumerate(sizes)
    ]


def test_a_driver_without_gpus_is_well(start: Start) -> None:
    _, reader = start()
    readings = reader.read()
    assert (readings.driver, readings.gpus, readings.fault) == (Driver.OK, (), None)


def test_memory_that_the_driver_keeps_is_not_for_jobs(start: Start) -> None:
    _, reader = start(24 * GiB, reserved=400 * MiB, used_extra=1 * GiB)
    gpu = only(reader.read())
    assert (gpu.total, gpu.used) == (24 * GiB - 400 * MiB, 1 * GiB)


def test_the_session_is_opened_once_and_closed(start: Start) -> None:
    fake, reader = start(24 * GiB)
    assert fake.calls() == []
    reader.read()
    reader.read()
    reader.close()
    calls = fake.calls()
    assert calls.count("nvmlInitWithFlags") == calls.count("nvmlShutdown") == 1
    assert calls[-1] == "nvmlShutdown"
    assert calls.count("nvmlDeviceGetName") == calls.count("nvmlSystemGetDriverVersion") == 1
    assert only(reader.read()).uuid == fake_uuid(0), "a closed source opens again"


def test_every_call_is_counted_by_the_gate(start: Start) -> None:
    fake, reader = start(24 * GiB, 24 * GiB)
    reader.read()
    assert reader.calls() == len(fake.calls()), "with no process each call of pynvml is one of the library"


def test_processes_are_listed_before_and_after_memory(start: Start) -> None:
    fake, reader = start(24 * GiB)
    reader.read()
    calls = [call for call in fake.calls() if "Memory" in call or "ComputeRunning" in call]
    listing = "nvmlDeviceGetComputeRunningProcesses_v3"
    assert calls == [listing, MEMORY, listing]


def test_before_and_after_are_two_moments(start: Start) -> None:
    """A process that ends while memory is read is in the first list only."""
    fake, reader = start(24 * GiB, running=(FakeProcess(4242, GiB),), hang=600)
    reader.send("read")
    fake.wait_for_call(MEMORY)
    fake.change(0, running=(FakeProcess(4243, 2 * GiB),), hang=0)
    reader.send("read")
    data = reader.receive()["gpus"][0]
    assert [[p["pid"] for p in data[name]] for name in ("before", "after")] == [[4242], [4243]]
    assert data["used"] == 2 * GiB


# --- processes ------------------------------------------------------------------------------------


def test_a_foreign_process_arrives_and_leaves(start: Start) -> None:
    fake, reader = start(24 * GiB, 24 * GiB)
    assert reader.read().gpus[1].after == ()
    fake.add_process(1, FakeProcess(4242, 3 * GiB))
    first, second = reader.read().gpus
    assert (first.used, first.before, first.after) == (0, (), ())
    assert second.used == 3 * GiB
    assert second.before == second.after == (compute(4242, 3 * GiB),)
    fake.remove_process(1, 4242)
    assert (reader.read().gpus[1].used, reader.read().gpus[1].after) == (0, ())


def test_memory_that_no_visible_process_uses(start: Start) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(7, GiB),), used_extra=20 * GiB)
    gpu = only(reader.read())
    assert gpu.used == 21 * GiB
    assert gpu.after == (compute(7, GiB),)
    assert gpu.told


def test_per_process_memory_not_available(start: Start) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(7, GiB), FakeProcess(8, GiB)), tell=False)
    gpu = only(reader.read())
    assert gpu.after == (compute(7, None), compute(8, None))
    assert gpu.used == 2 * GiB
    assert not gpu.told


def test_one_process_of_unknown_use_among_others(start: Start) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(7, GiB), FakeProcess(8, None)))
    gpu = only(reader.read())
    assert gpu.after == (compute(7, GiB), compute(8, None))
    assert gpu.told


@pytest.mark.parametrize("code", [fakenvml.NOT_SUPPORTED, fakenvml.NO_PERMISSION, fakenvml.UNKNOWN])
def test_compute_processes_not_listed(start: Start, code: int) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(7, GiB, "CG"),), processes=code)
    gpu = only(reader.read())
    assert (gpu.told, gpu.before, gpu.after, gpu.used) == (False, (), (), GiB)


def test_a_desktop_and_a_process_that_does_both(start: Start) -> None:
    desktop, both = FakeProcess(7, 300 * MiB, "G"), FakeProcess(8, GiB, "CG")
    _, reader = start(24 * GiB, running=(desktop, both))
    gpu = only(reader.read())
    assert gpu.after == (
        GpuProcess(7, 300 * MiB, compute=False, graphics=True),
        GpuProcess(8, GiB, compute=True, graphics=True),
    )
    assert gpu.used == GiB + 300 * MiB


def test_lists_that_differ_about_a_process_count_with_the_larger(start: Start) -> None:
    lists = (FakeProcess(8, GiB, "C"), FakeProcess(8, 2 * GiB, "G"), FakeProcess(9, None, "C"), FakeProcess(9, 5, "G"))
    _, reader = start(24 * GiB, running=lists)
    gpu = only(reader.read())
    assert gpu.after == (
        GpuProcess(8, 2 * GiB, compute=True, graphics=True),
        GpuProcess(9, 5, compute=True, graphics=True),
    )


def test_a_process_listed_once_per_instance_counts_with_the_sum(start: Start) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(8, GiB), FakeProcess(8, 2 * GiB)))
    assert only(reader.read()).after == (compute(8, 3 * GiB),)


def test_graphics_not_listed_hides_no_compute(start: Start) -> None:
    processes = (FakeProcess(7, GiB, "G"), FakeProcess(8, GiB, "C"))
    _, reader = start(24 * GiB, running=processes, graphics=fakenvml.NOT_SUPPORTED)
    gpu = only(reader.read())
    assert gpu.after == (compute(8, GiB),)
    assert gpu.told


def test_twenty_five_processes(start: Start) -> None:
    processes = tuple(FakeProcess(pid, pid * MiB) for pid in range(1, 26))
    _, reader = start(24 * GiB, running=processes)
    assert only(reader.read()).after == tuple(compute(pid, pid * MiB) for pid in range(1, 26))


# --- libraries that lack functions ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "every"),
    [((fakenvml.MEMORY_V2,), {})]
    + [((), {"memory_v2": code}) for code in (fakenvml.NOT_SUPPORTED, fakenvml.INVALID_ARGUMENT, 25)],
)
def test_memory_call_of_version_1(start: Start, without: tuple[str, ...], every: dict[str, int]) -> None:
    _, reader = start(24 * GiB, without=without, reserved=400 * MiB, used_extra=GiB, **every)
    gpu = only(reader.read())
    assert (gpu.total, gpu.used) == (24 * GiB, GiB + 400 * MiB), "version 1 counts what is reserved as used"


@pytest.mark.parametrize("lacking", [fakenvml.PROCESSES_V3, fakenvml.PROCESSES_V2])
def test_process_lists_of_one_version_only(start: Start, lacking: str) -> None:
    processes = (FakeProcess(7, GiB, "C"), FakeProcess(8, MiB, "G"))
    _, reader = start(24 * GiB, without=(lacking,), running=processes)
    gpu = only(reader.read())
    assert gpu.after == (compute(7, GiB), GpuProcess(8, MiB, compute=False, graphics=True))
    assert gpu.told


def test_no_process_lists_at_all(start: Start) -> None:
    lacking = (fakenvml.PROCESSES_V3, fakenvml.PROCESSES_V2, fakenvml.GRAPHICS)
    _, reader = start(24 * GiB, without=lacking, running=(FakeProcess(7, GiB),))
    gpu = only(reader.read())
    assert (gpu.told, gpu.after, gpu.used) == (False, (), GiB)


def test_no_field_values(start: Start) -> None:
    fake, reader = start(24 * GiB, without=(fakenvml.FIELDS,))
    assert only(reader.read()).told and only(reader.read()).told
    calls = reader.calls()
    reader.read()
    assert reader.calls() - calls == 8, "what a library lacks is not asked for at every reading"
    assert "nvmlDeviceGetFieldValues" not in fake.calls()


def test_no_graphics_list(start: Start) -> None:
    _, reader = start(24 * GiB, without=(fakenvml.GRAPHICS,), running=(FakeProcess(7, GiB),))
    gpu = only(reader.read())
    assert (gpu.told, gpu.after) == (True, (compute(7, GiB),))


# --- names ----------------------------------------------------------------------------------------


def test_a_name_that_is_not_utf8(start: Start) -> None:
    _, reader = start(24 * GiB, name=b"G\xe9Force")
    assert only(reader.read()).name == "G�Force"


def test_a_gpu_that_does_not_tell_its_name(start: Start) -> None:
    fake, reader = start(24 * GiB, name_error=fakenvml.UNKNOWN)
    assert only(reader.read()).name == "NVIDIA GPU"
    fake.change(0, name_error=0)
    assert only(reader.read()).name == "NVIDIA GeForce RTX 4090"


# --- GPUs in trouble ------------------------------------------------------------------------------


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


def test_a_process_that_uses_more_than_there_is_tells_nothing(start: Start) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(7, 2**63), FakeProcess(8, GiB)), used=GiB)
    assert only(reader.read()).after == (compute(7, None), compute(8, GiB))


def test_a_driver_is_upgraded_under_an_open_session(start: Start) -> None:
    """As a package manager and an administrator do it: library first, kernel module later, or the other way round."""
    fake, reader = start(24 * GiB)
    fake.upgrade_library("560.35.03")
    assert only(reader.read()).total == 24 * GiB
    fake.set(driver="570.1")  # the module was loaded again, and the library is to come
    assert "versions differ" in (reader.read().fault or "")
    assert "versions differ" in (reader.read().fault or "")
    fake.upgrade_library("570.1")
    readings = reader.read()
    assert (only(readings).total, readings.version) == (24 * GiB, "570.1")
    fake.upgrade_library("575.2")  # the library first: the one that is loaded still fits
    assert reader.read().version == "570.1"
    fake.set(driver="575.2")
    reader.read()
    assert reader.read().version == "575.2"
    assert reader.read().driver is Driver.OK


def test_a_library_that_is_half_installed_is_tried_again(start: Start) -> None:
    fake, reader = start(24 * GiB)
    fake.upgrade_library("560.35.03")
    reader.read()
    fake.set(driver="570.1")
    fake.break_library()
    assert "versions differ" in (reader.read().fault or "")
    assert "versions differ" in (reader.read().fault or "")
    fake.upgrade_library("570.1")
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
        second.uuid: (1, 40 * GiB, gone),
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


# --- drivers in trouble ---------------------------------------------------------------------------


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


def test_a_new_driver_version_is_told_after_the_session_was_opened_again(start: Start) -> None:
    fake, reader = start(24 * GiB)
    assert reader.read().version == "560.35.03"
    fake.set(driver="570.10", every=fakenvml.UNINITIALIZED)
    reader.read()
    fake.set(every=0)
    assert reader.read().version == "570.10"


def test_no_library_and_no_driver(start: Start) -> None:
    fake, reader = start(24 * GiB)
    fake.break_library()
    readings = reader.read()
    assert (readings.driver, readings.gpus, readings.fault) == (Driver.NONE, (), None)
    fake.repair_library()
    assert only(reader.read()).total == 24 * GiB, "a driver that is installed later is found"


def test_no_library_for_a_driver_that_the_kernel_has(start: Start) -> None:
    fake, reader = start(24 * GiB)
    fake.break_library()
    fake.kernel_module.touch()
    readings = reader.read()
    assert (readings.driver, readings.gpus) == (Driver.BROKEN, ())
    assert readings.fault is not None and "libnvidia-ml.so.1 cannot be loaded" in readings.fault


# --- a call that blocks ---------------------------------------------------------------------------


def test_a_call_that_hangs_blocks_the_reading_until_it_returns(start: Start) -> None:
    fake, reader = start(24 * GiB, hang=600)
    reader.send("read")
    fake.wait_for_call(MEMORY)
    assert not reader.answered()
    fake.change(0, hang=0, used_extra=5 * GiB)
    assert reader.receive()["gpus"][0]["used"] == 5 * GiB, "what was there when the call returned"
    assert only(reader.read()).used == 5 * GiB
