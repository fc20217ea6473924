"""NvmlSource on healthy boxes, through the real pynvml on a fake libnvidia-ml.so.1."""

from __future__ import annotations

from gpuq.model import Driver, GiB, GpuReading, MiB
from tests import fakenvml
from tests.fakenvml import FakeProcess, fake_uuid
from tests.gpus.reader import MEMORY, Start, only


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


def test_a_name_that_is_not_utf8(start: Start) -> None:
    _, reader = start(24 * GiB, name=b"G\xe9Force")
    assert only(reader.read()).name == "G�Force"


def test_a_gpu_that_does_not_tell_its_name(start: Start) -> None:
    fake, reader = start(24 * GiB, name_error=fakenvml.UNKNOWN)
    assert only(reader.read()).name == "NVIDIA GPU"
    fake.change(0, name_error=0)
    assert only(reader.read()).name == "NVIDIA GeForce RTX 4090"
