"""What becomes of jobs when GPUs, their driver or other people's use of them change: a real daemon on a fake NVML."""

from __future__ import annotations

import os
import shlex
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuq.client import Client
from gpuq.errors import CannotFit
from gpuq.gpus.nvml import KERNEL_MODULE
from tests.fakenvml import GPU_IS_LOST, NOT_SUPPORTED, VERSION_MISMATCH, FakeGpu, FakeNvml, FakeProcess, fake_gpus
from tests.harness import Box, gone, wait_until

GiB = 1024**3
MiB = 1024**2
#: A pid that is no process here: Linux gives none so large (proc(5), pid_max).
STRANGER = 2**22 + 1
READING = "nvmlDeviceGetCount_v2"


@pytest.fixture
def quick(box: Box, nvml: FakeNvml) -> FakeNvml:
    """The fake driver, and a daemon that reads it often and forgets foreign use soon."""
    box.setenv(GPUQ_READING_INTERVAL="0.1s", GPUQ_FOREIGN_WINDOW="1s", GPUQ_SETTLE="0.2s")
    return nvml


def held(box: Box, name: str) -> tuple[list[str], Path]:
    """A command that runs until a file appears."""
    gate = box.folder / name
    return ["sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.02; done'], gate


def gpus(box: Box) -> list[dict[str, Any]]:
    found = box.request("gpus")["gpus"]
    assert isinstance(found, list)
    return found


def wait_reason(box: Box, job: int, reason: str) -> str:
    """The text of a reason, once the job waits for it."""
    return wait_until(lambda: found[1] if (found := box.reason(job))[0] == reason else "", f"{reason} of job {job}")


def gpu_events(box: Box) -> list[tuple[str, str]]:
    """Kind and UUID of what happened to GPUs."""
    return [(e["kind"], e["data"]["gpu"]) for e in box.request("events")["events"] if e["kind"].startswith("gpu-")]


# --- how many, and how large ----------------------------------------------------------------------


def test_two_gpus_hold_one_whole_job_each_and_the_third_waits_with_numbers(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    command, gate = held(box, "go")
    running = [box.submit(*command, gpus=1) for _ in range(2)]
    assert sorted(box.wait_state(job, "running")["gpus"][0] for job in running) == [quick.uuid(0), quick.uuid(1)]
    third = box.submit("true", gpus=1)
    assert box.reason(third) == ("Resources", "asks for 1 whole GPU; 0 of 2 GPUs fit now")
    assert [gpu["jobs"] for gpu in gpus(box)] == [[running[0]], [running[1]]]
    gate.touch()
    assert box.wait(third, *running)["state"] == "succeeded"


def test_eight_mixed_gpus_each_job_goes_where_it_fits(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(*(size * GiB for size in (80, 8, 24, 8, 48, 24, 80, 24))))
    command, gate = held(box, "go")
    asked = {70: {0}, 40: {4}, 20: {2}, 7: {1}, 60: {6}}
    for size, expected in asked.items():
        job = box.wait_state(box.submit(*command, gpus=1, vram=size * GiB), "running")
        assert set(job["gpu_indexes"]) == expected, f"{size} GiB went to {job['gpu_indexes']}"
    pair = box.wait_state(box.submit(*command, gpus=2, vram=22 * GiB), "running")
    assert pair["gpus"] == [quick.uuid(5), quick.uuid(7)]
    everything = box.submit("sh", "-c", "echo $CUDA_VISIBLE_DEVICES", gpus=8)
    assert box.reason(everything)[0] == "Resources"
    gate.touch()
    assert box.wait(everything)["state"] == "succeeded"
    assert box.log(everything) == ",".join(quick.uuid(index) for index in range(8)) + "\n"


def test_what_no_card_can_hold_is_refused_with_what_the_host_has(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 80 * GiB))
    for request, said in (
        ({"gpus": 1, "vram": 80 * GiB}, "at most 79.8GiB"),
        ({"gpus": 2, "vram": 24 * GiB}, "1 of 2 GPUs can hold the 24GiB of --vram: 2 are asked for"),
        ({"gpus": 3}, "this host has 2 GPUs"),
    ):
        with pytest.raises(CannotFit, match=said):
            box.submit("true", **request)
    assert box.request("list", sel={}, all=True)["total"] == 0
    assert box.wait(box.submit("true", gpus=2, vram=23 * GiB))["state"] == "succeeded"


def test_what_jobs_see_of_gpus(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB, 24 * GiB))
    box.setenv(CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="FASTEST_FIRST")
    script = 'echo "$CUDA_DEVICE_ORDER ${CUDA_VISIBLE_DEVICES-unset}"'
    command, gate = held(box, "go")
    first = box.submit(*command, gpus=1)
    box.wait_state(first, "running")
    two, none = box.submit("sh", "-c", script, gpus=2), box.submit("sh", "-c", script, gpus=0)
    default = box.submit("sh", "-c", script)
    box.wait(two, none, default)
    gate.touch()
    assert box.log(two) == f"PCI_BUS_ID {quick.uuid(1)},{quick.uuid(2)}\n"
    assert box.log(none) == "PCI_BUS_ID \n"
    assert box.job(default)["gpu_count"] == 1
    box.wait(first)


# --- other people's memory ------------------------------------------------------------------------


def test_jobs_wait_for_a_foreign_process_and_start_once_it_has_left(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    quick.add_process(0, FakeProcess(STRANGER, 300 * MiB))
    whole = box.submit("true", gpus=1)
    assert wait_reason(box, whole, "ForeignUse") == (
        "asks for 1 whole GPU; 0 of 1 GPUs fit now, 1 without foreign use (300MiB on GPU 0)"
    )
    explained = box.request("why", sel={"ranges": [[whole, whole]]})["explanations"][0]["gpus"][0]
    assert explained["verdict"] == f"foreign process {STRANGER} computes on it"
    quick.change(0, running=(FakeProcess(STRANGER, 20 * GiB),))
    sharing = box.submit("true", gpus=1, vram=10 * GiB)
    assert "20GiB on GPU 0" in wait_reason(box, sharing, "ForeignUse")
    assert [(gpu["foreign_bytes"], gpu["headroom_bytes"]) for gpu in gpus(box)] == [(20 * GiB, 4 * GiB - 256 * MiB)]
    fits = box.wait(box.submit("true", gpus=1, vram=3 * GiB))
    assert fits["state"] == "succeeded"
    quick.remove_process(0, STRANGER)
    left = datetime.now(UTC)
    box.wait(whole, sharing)
    assert gpus(box)[0]["foreign_bytes"] == 0
    assert all(box.job(job)["state"] == "succeeded" for job in (whole, sharing))
    started = [datetime.fromisoformat(box.job(job)["started_at"]) for job in (whole, sharing)]
    assert min(started) > left - timedelta(milliseconds=1)  # times are shown to the millisecond


def test_foreign_use_counts_as_its_recent_peak(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_FOREIGN_WINDOW="1h")
    quick.set(gpus=fake_gpus(24 * GiB))
    quick.add_process(0, FakeProcess(STRANGER, 20 * GiB))
    job = box.submit("true", gpus=1, vram=10 * GiB)
    wait_reason(box, job, "ForeignUse")
    quick.remove_process(0, STRANGER)
    quick.wait_for_call(READING, quick.calls().count(READING) + 3)
    assert [(gpu["used_bytes"], gpu["foreign_bytes"]) for gpu in gpus(box)] == [(0, 20 * GiB)]
    assert box.reason(job)[0] == "ForeignUse"


def test_a_card_that_is_full_without_a_visible_process_is_full(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    quick.change(0, used_extra=23 * GiB)
    whole, sharing = box.submit("true", gpus=1), box.submit("true", gpus=1, vram=2 * GiB)
    for job in (whole, sharing):
        assert "(23GiB on GPU 0)" in wait_reason(box, job, "ForeignUse")
    assert box.wait(box.submit("true", gpus=1, vram=512 * MiB))["state"] == "succeeded"
    quick.change(0, used_extra=400 * MiB)  # what a driver leaves lying about does not hinder a whole-GPU job
    assert box.wait(whole, sharing)["state"] == "succeeded"


@pytest.mark.parametrize("how", [{"tell": False}, {"processes": NOT_SUPPORTED}], ids=["no-figures", "no-list"])
def test_where_nobody_tells_who_uses_what_the_claims_stand_in(box: Box, quick: FakeNvml, how: dict[str, Any]) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, used_extra=2 * GiB, **how))
    assert gpus(box)[0]["foreign_bytes"] == 2 * GiB
    gate = box.folder / "go"
    first = box.submit(*quick.allocate("10GiB", until=gate), gpus=1, vram=10 * GiB)
    wait_until(lambda: gpus(box)[0]["used_bytes"] == 12 * GiB, "the allocation")
    shown = box.request("gpus")
    (gpu,) = shown["gpus"]
    assert not gpu["per_process_told"]
    assert "claims stand in" in shown["note"]
    assert (gpu["foreign_bytes"], gpu["headroom_bytes"]) == (2 * GiB, 12 * GiB - 256 * MiB)
    waits = box.submit("true", gpus=1, vram=12 * GiB)
    assert box.reason(waits)[0] in ("Resources", "ForeignUse")
    fits = box.submit("true", gpus=1, vram=11 * GiB)
    assert box.wait(fits)["state"] == "succeeded"
    assert box.job(waits)["state"] == "queued"
    gate.touch()
    assert box.wait(first, waits)["peak_vram_bytes"] is None  # nobody saw it, so nobody claims to know


def test_a_desktop_is_avoided_and_does_not_hinder(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    quick.add_process(0, FakeProcess(STRANGER, 900 * MiB, "G"))
    command, gate = held(box, "go")
    first = box.wait_state(box.submit(*command, gpus=1), "running")
    second = box.wait_state(box.submit(*command, gpus=1), "running")
    assert (first["gpu_indexes"], second["gpu_indexes"]) == ([1], [0])
    gate.touch()
    box.wait(first["id"], second["id"])
    assert box.request("gpus")["gpus"][0]["processes"][0]["graphics"]
    # what is not graphics counts against it all the same
    quick.set(gpus=fake_gpus(24 * GiB, running=(FakeProcess(STRANGER, 900 * MiB, "G"),), used_extra=2 * GiB))
    wait_reason(box, box.submit("true", gpus=1), "ForeignUse")


# --- GPUs and drivers that fail -------------------------------------------------------------------


def test_a_call_that_is_not_supported_costs_only_that_gpu(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    quick.change(0, memory_v2=NOT_SUPPORTED, graphics=NOT_SUPPORTED, name_error=NOT_SUPPORTED)  # there are other ways
    quick.change(1, memory=NOT_SUPPORTED)
    good, bad = gpus(box)
    assert (good["available"], good["total_bytes"]) == (True, 24 * GiB)
    assert not bad["available"] and "how much memory" in bad["fault"] and bad["headroom_bytes"] == 0
    assert box.wait(box.submit("true", gpus=1))["gpus"] == [quick.uuid(0)]
    pair = box.submit("true", gpus=2, vram=20 * GiB)  # nobody knows yet whether the other is large enough
    assert "how much memory" in wait_reason(box, pair, "GpuUnavailable")
    quick.change(1, memory=0)
    assert box.wait(box.submit("true", gpus=2), pair)["state"] == "succeeded"


def test_a_gpu_is_lost_while_jobs_run_and_wait_and_comes_back(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    command, gate = held(box, "go")
    runs = box.submit(*command, gpus=2, vram=20 * GiB)
    box.wait_state(runs, "running")
    waits = box.submit("true", gpus=2, vram=10 * GiB)
    assert box.reason(waits)[0] == "Resources"
    quick.change(1, memory=GPU_IS_LOST)
    wait_until(lambda: gpu_events(box) == [("gpu-lost", quick.uuid(1))], "the event")
    assert "GPU 1: the GPU is lost" in wait_reason(box, waits, "GpuUnavailable")
    assert [gpu["available"] for gpu in gpus(box)] == [True, False]
    assert box.wait(box.submit("true", gpus=0))["state"] == "succeeded"
    assert box.job(runs)["state"] == "running"
    gate.touch()
    assert box.wait(runs)["state"] == "succeeded"
    assert box.wait(box.submit("true", gpus=1))["gpus"] == [quick.uuid(0)]
    assert box.reason(waits)[0] == "GpuUnavailable"
    quick.change(1, memory=0)
    assert box.wait(waits)["gpus"] == [quick.uuid(0), quick.uuid(1)]
    assert gpu_events(box) == [("gpu-lost", quick.uuid(1)), ("gpu-back", quick.uuid(1))]


def test_a_driver_mismatch_while_jobs_run_and_its_end(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    command, gate = held(box, "go")
    runs = box.submit(*command, gpus=1, vram=10 * GiB)
    box.wait_state(runs, "running")
    quick.set(every=VERSION_MISMATCH, init=VERSION_MISMATCH)
    waits = box.submit("true", gpus=1, vram=10 * GiB)
    assert "reboot" in wait_reason(box, waits, "GpuUnavailable")
    assert box.wait(box.submit("true", gpus=0))["state"] == "succeeded"
    gate.touch()
    assert box.wait(runs)["state"] == "succeeded"
    quick.set(every=0, init=0)
    assert box.wait(waits)["state"] == "succeeded"
    assert [kind for kind, _ in gpu_events(box)] == ["gpu-lost", "gpu-back"]


def test_a_driver_mismatch_at_the_daemons_start_and_its_healing(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB), init=VERSION_MISMATCH)
    shown = box.request("gpus")
    assert (shown["driver"], shown["gpus"]) == ("broken", [])
    assert "reboot" in shown["fault"]
    # a box whose driver is broken is not a box without GPUs
    default, much = box.submit("true"), box.submit("true", gpus=4)
    assert box.job(default)["gpu_count"] == 1
    assert "reboot" in wait_reason(box, default, "GpuUnavailable")
    assert box.wait(box.submit("true", gpus=0))["state"] == "succeeded"
    quick.set(init=0)
    assert box.wait(default)["gpus"] == [quick.uuid(0)]
    reason, text = box.reason(much)
    assert reason == "GpuUnavailable"
    assert text == "asks for 4 whole GPUs, and this host has 1 GPU now"
    with pytest.raises(CannotFit):
        box.submit("true", gpus=4)


def test_a_driver_that_hangs_when_the_daemon_starts(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="0.5s")
    quick.set(gpus=fake_gpus(24 * GiB), hang=30)
    waits, cpu = box.submit("true"), box.submit("true", gpus=0)
    assert box.job(waits)["gpu_count"] == 1
    assert box.wait(cpu)["state"] == "succeeded"
    assert wait_reason(box, waits, "GpuUnavailable").startswith("NVML has not answered for ")
    assert "NVML has not answered" in box.request("gpus")["fault"]
    listed = box.request("list", sel={})["jobs"]
    assert [(job["id"], job["state"], job["reason"]) for job in listed] == [(waits, "queued", "GpuUnavailable")]
    assert quick.calls().count(READING) == 1  # the daemon did all that while the first call hung
    quick.set(hang=0)
    assert box.wait(waits)["state"] == "succeeded"


def test_a_driver_that_hangs_while_jobs_run(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="0.5s")
    quick.set(gpus=fake_gpus(24 * GiB))
    gpu_command, gpu_gate = held(box, "gpu-go")
    cpu_command, cpu_gate = held(box, "cpu-go")
    gpu_job, cpu_job = box.submit(*gpu_command, gpus=1, vram=4 * GiB), box.submit(*cpu_command, gpus=0)
    box.wait_state(gpu_job, "running")
    box.wait_state(cpu_job, "running")
    quick.change(0, hang=30)
    hung = quick.calls()
    waits = box.submit("true", gpus=1, vram=4 * GiB)
    wait_until(lambda: box.job(waits)["reason"] == "GpuUnavailable", "the silence")
    assert "NVML has not answered" in box.reason(waits)[1]
    gpu_gate.touch()
    cpu_gate.touch()
    assert box.wait(gpu_job)["exit_code"] == box.wait(cpu_job)["exit_code"] == 0
    assert box.wait(box.submit("true", gpus=0))["state"] == "succeeded"
    cancelled = box.submit("true", gpus=1)
    assert box.request("cancel", sel={"ranges": [[cancelled, cancelled]]})["done"] == [cancelled]
    assert [job["id"] for job in box.request("list", sel={})["jobs"]] == [waits]
    assert not gpus(box)[0]["available"]
    assert quick.calls().count(READING) <= hung.count(READING) + 1  # one reading hangs, and none behind it
    quick.change(0, hang=0)
    assert box.wait(waits)["state"] == "succeeded"


def test_what_was_read_before_a_hang_starts_nothing_after_it(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="0.2s")
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    gpus(box)
    quick.change(1, hang=30)
    job = box.submit("true", gpus=1, vram=20 * GiB)
    wait_until(lambda: box.job(job)["reason"] == "GpuUnavailable", "the silence")
    # GPU 0 was read before the hang, and is full now
    everywhere = (FakeProcess(STRANGER, 20 * GiB),)
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB, running=everywhere))
    wait_reason(box, job, "ForeignUse")
    assert box.job(job)["attempt"] == 0


def test_who_asks_is_told_what_is_so_after_the_question(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_READING_INTERVAL="1h", GPUQ_NVML_PATIENCE="1h")
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert len(gpus(box)) == 2
    readings = quick.calls().count(READING)
    quick.change(1, hang=30)
    box.submit("true", gpus=2)  # its reading tells of GPU 0 as it is now, and then hangs
    quick.wait_for_call("nvmlDeviceGetMemoryInfo_v2", 2 * readings + 2)
    quick.change(0, used_extra=5 * GiB)
    with Client.connect() as client:
        client.send("gpus")
        box.request("status")  # whoever comes later is answered: the question has been heard
        quick.change(1, hang=0)
        assert client.receive()["gpus"][0]["used_bytes"] == 5 * GiB


def hangs_at_second(calls: list[str]) -> bool:
    """Whether a reading of two GPUs stands at the memory of the second."""
    memory = "nvmlDeviceGetMemoryInfo_v2"
    return calls[-1] == memory and calls.count(memory) == 2 * calls.count(READING)


def test_a_process_of_a_job_that_ends_while_gpus_are_read_is_no_stranger(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_FOREIGN_WINDOW="1h")
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    gate, child_gate = box.folder / "go", box.folder / "child-go"
    child = shlex.join(quick.allocate("8GiB", until=child_gate))
    job = box.submit("sh", "-c", f'{child}; while [ ! -e "{gate}" ]; do sleep 0.02; done', gpus=1, vram=10 * GiB)
    wait_until(lambda: box.job(job)["peak_vram_bytes"] == 8 * GiB, "the peak")
    wait_until(lambda: gpus(box)[0]["foreign_bytes"] == 0, "a settled reading")
    (holder,) = (quick.folder / "box.d").iterdir()
    pid = int(holder.name)
    quick.change(0, used=8 * GiB)  # the driver takes its time to give it back
    quick.change(1, hang=30)
    wait_until(lambda: hangs_at_second(quick.calls()), "the hang")
    child_gate.touch()
    wait_until(lambda: gone(pid), "the child's end")
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert gpus(box)[0]["foreign_bytes"] == 0
    gate.touch()
    box.wait(job)


def test_gpus_are_who_they_are_and_not_where_they_are(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    zero, one = quick.box.gpus
    command, gate = held(box, "go")
    whole = box.wait_state(box.submit(*command, gpus=1), "running")
    assert whole["gpus"] == [zero.uuid]
    late = box.folder / "late"
    share = box.submit(*quick.allocate("20GiB", after=late, until=gate), gpus=1, vram=20 * GiB)
    assert box.wait_state(share, "running")["gpus"] == [one.uuid]
    quick.set(gpus=(one, zero))
    late.touch()
    wait_until(lambda: box.job(share)["peak_vram_bytes"] == 20 * GiB, "the peak")
    assert [(gpu["uuid"], gpu["jobs"]) for gpu in gpus(box)] == [(one.uuid, [share]), (zero.uuid, [whole["id"]])]
    assert (box.job(share)["gpus"], box.job(share)["gpu_indexes"]) == ([one.uuid], [0])
    small = box.submit("sh", "-c", "echo $CUDA_VISIBLE_DEVICES", gpus=1, vram=3 * GiB)
    box.wait(small)
    assert box.log(small) == f"{one.uuid}\n"
    gate.touch()
    both = box.submit("sh", "-c", "echo $CUDA_VISIBLE_DEVICES", gpus=2)
    box.wait(both)
    assert box.log(both) == f"{one.uuid},{zero.uuid}\n"
    assert gpu_events(box) == []


def test_a_box_that_was_told_to_have_no_gpus_says_so_once(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    box.setenv(GPUQ_GPUS="none")
    said = box.run("submit", "--", "true")
    assert (said.returncode, said.stdout) == (0, "1\n")
    assert "--gpus 0 is the default" in said.stderr
    assert box.wait(1)["gpu_count"] == 0
    assert "--gpus 0" not in box.run("submit", "--", "true").stderr
    assert "this host has no GPUs" in box.fails(1, "submit", "--gpus", "1", "--", "true")
    assert quick.calls() == []


def test_a_cpu_job_is_not_told_that_the_gpus_are_still_unknown(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB), hang=1000)
    said = box.run("submit", "--gpus", "0", "--", "true")
    assert (said.returncode, said.stdout, said.stderr) == (0, "1\n", "")
    quick.set(gpus=fake_gpus(24 * GiB))


def test_a_library_that_cannot_be_loaded(box: Box, quick: FakeNvml) -> None:
    quick.break_library()
    driver = any(path.exists() for path in KERNEL_MODULE)
    said = box.run("submit", "--", "true")
    assert (said.returncode, said.stdout) == (0, "1\n")
    assert ("no NVIDIA driver" in said.stderr) is not driver
    assert box.job(1)["gpu_count"] == (1 if driver else 0)
    assert box.request("gpus")["driver"] == ("broken" if driver else "none")


# --- how often ------------------------------------------------------------------------------------


def test_nvml_is_left_alone_while_nothing_needs_it(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    assert box.wait(box.submit("true", gpus=1))["state"] == "succeeded"
    box.wait(box.submit("sleep", "0.5", gpus=0))  # a reading may still have been due
    before = quick.calls()
    for command in (["true"], ["sleep", "1"]):
        box.wait(box.submit(*command, gpus=0))
    box.submit("true", gpus=1, hold=True)
    box.request("list", sel={}, all=True)
    assert quick.calls() == before
    command, gate = held(box, "go")
    job = box.submit(*command, gpus=1)
    box.wait_state(job, "running")
    # readings go on while it runs, at the interval and not in a loop
    begun, count = time.monotonic(), quick.calls().count(READING)
    quick.wait_for_call(READING, count + 10)
    read = quick.calls().count(READING) - count
    assert read <= (time.monotonic() - begun) / 0.1 + 2
    gate.touch()
    box.wait(job)


def test_someone_else_with_the_same_gpus_is_foreign(box: Box, quick: FakeNvml) -> None:
    """This very process is real and alive, and no job of the daemon's."""
    quick.set(gpus=(FakeGpu("GPU-a", running=(FakeProcess(os.getpid(), 5 * GiB),)),))
    (gpu,) = gpus(box)
    assert gpu["foreign_bytes"] == 5 * GiB
    (process,) = gpu["processes"]
    assert (process["pid"], process["owner"] is not None, process["program"] is not None) == (os.getpid(), True, True)
