"""Who uses a GPU, as NvmlSource tells it: lists that differ, that are not to be had, that make no sense."""

from __future__ import annotations

import pytest

from gpuq.model import GiB, GpuProcess, MiB
from tests import fakenvml
from tests.fakenvml import FakeProcess
from tests.gpus.reader import Start, compute, only


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


def test_a_process_that_uses_more_than_there_is_tells_nothing(start: Start) -> None:
    _, reader = start(24 * GiB, running=(FakeProcess(7, 2**63), FakeProcess(8, GiB)), used=GiB)
    assert only(reader.read()).after == (compute(7, None), compute(8, GiB))
