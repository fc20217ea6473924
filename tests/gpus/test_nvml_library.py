"""NvmlSource on libraries that lack functions, are missing, or are replaced while they are in use."""

from __future__ import annotations

import pytest

from gpuq.model import Driver, GiB, GpuProcess, MiB
from tests import fakenvml
from tests.fakenvml import FakeProcess
from tests.gpus.reader import Start, compute, only


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


def test_a_library_that_has_only_the_older_call_to_begin_with(start: Start) -> None:
    _, reader = start(24 * GiB, without=(fakenvml.INIT_FLAGS,))
    assert only(reader.read()).total == 24 * GiB
    reader.close()
    assert only(reader.read()).total == 24 * GiB
