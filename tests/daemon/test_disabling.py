"""GPUs that are taken out of use: nothing new starts there, what runs goes on, and it is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpuq.errors import ConnectionLost
from tests.daemon.test_queues import HOLD, waits_for
from tests.fakenvml import GPU_IS_LOST, FakeNvml, fake_gpus
from tests.harness import Box, gone, wait_until


def gpu(box: Box, index: int) -> dict[str, Any]:
    found = next(one for one in box.request("gpus")["gpus"] if one["index"] == index)
    assert isinstance(found, dict)
    return found


def test_a_disabled_gpu_takes_no_new_job_and_keeps_what_runs(sim: Box) -> None:
    first = sim.submit(*HOLD, gpus=1, vram=2**30)
    where = sim.wait_state(first, "running")["gpu_indexes"][0]
    sim.ok("gpus", "disable", str(where), "--why", "fan is broken")
    found = gpu(sim, where)
    assert (found["available"], found["fault"], found["jobs"]) == (False, "disabled: fan is broken", [first])
    assert "disabled: fan is broken" in sim.ok("gpus")
    second = sim.submit("true", gpus=1, vram=2**30)
    assert sim.wait(second)["gpu_indexes"] == [1 - where], "sharing would have packed them on one"
    both = sim.submit("true", gpus=2, vram=2**30)
    waits_for(sim, both, "GpuUnavailable", f"GPU {where}: disabled: fan is broken")
    assert sim.job(first)["state"] == "running"
    sim.ok("gpus", "enable", str(where))
    assert sim.wait(both)["state"] == "succeeded"
    assert gpu(sim, where)["available"] is True
    told = [event for event in sim.json("events")["events"] if event["kind"].startswith("gpu-")]
    assert [event["kind"] for event in told] == ["gpu-disabled", "gpu-enabled"]
    assert told[0]["data"] == {"gpu": found["uuid"], "why": "fan is broken"}
    sim.ok("cancel", str(first))


def test_it_is_kept_over_a_kill_and_named_by_its_uuid(sim: Box) -> None:
    uuid = gpu(sim, 1)["uuid"]
    sim.ok("gpus", "disable", uuid)
    sim.kill_daemon()
    job = sim.submit("true", gpus=2)
    waits_for(sim, job, "GpuUnavailable", "GPU 1: disabled: no reason given")
    sim.ok("daemon", "restart")
    assert "GPU 1 is disabled already" in sim.run("gpus", "disable", "1").stderr
    sim.ok("gpus", "disable", "0", "1", "--why", "moved")
    assert [one["fault"] for one in sim.request("gpus")["gpus"]] == ["disabled: moved"] * 2
    done = sim.run("gpus", "enable", "0", uuid, "--json")
    assert done.returncode == 0 and '"disabled' not in done.stdout
    assert sim.wait(job)["state"] == "succeeded"
    assert "GPU 0 is enabled already" in sim.run("gpus", "enable", "0").stderr


def test_gpus_that_do_not_exist_are_refused_and_nothing_is_changed(sim: Box) -> None:
    for verb in ("disable", "enable"):
        said = sim.fails(1, "gpus", verb, "0", "7")
        assert "there is no GPU 7; there are 0 (" in said and "1 (" in said
    assert gpu(sim, 0)["available"] is True
    assert "--why is one line" in sim.fails(2, "gpus", "disable", "0", "--why", "a\tb")
    assert "is missing" in sim.fails(2, "gpus", "disable")
    assert "there is no verb 'break'" in sim.fails(2, "gpus", "break", "0")


def test_a_disabled_gpu_counts_as_there_at_submit_and_a_lost_one_keeps_its_fault(nvml: FakeNvml, box: Box) -> None:
    box.setenv(GPUQ_READING_INTERVAL="0.1s")
    nvml.set(gpus=fake_gpus(24 * 2**30))
    box.ok("gpus", "disable", "0", "--why", "dust")
    job = box.submit("true", gpus=1)
    waits_for(box, job, "GpuUnavailable", "disabled: dust")
    nvml.change(0, memory=GPU_IS_LOST)
    wait_until(lambda: "disabled" not in gpu(box, 0)["fault"], "the driver's own word")
    box.ok("gpus", "enable", nvml.uuid(0))
    assert gpu(box, 0)["available"] is False
    box.ok("cancel", str(job))


@pytest.mark.parametrize("point", ["commit-before", "commit-after"])
def test_a_kill_in_the_middle_disables_all_or_none(sim: Box, point: str) -> None:
    sim.request("status")
    sim.ok("daemon", "stop")
    sim.setenv(GPUQ_CRASH_AT=f"{point}:3")
    pid = sim.daemon_pid()
    with pytest.raises(ConnectionLost):
        sim.request("gpus-switch", do="disable", gpus=["0", "1"], why="x")
    wait_until(lambda: gone(pid), "the crash")
    sim.setenv(GPUQ_CRASH_AT=None)
    faults = {one["fault"] for one in sim.request("gpus")["gpus"]}
    assert faults == ({"disabled: x"} if point == "commit-after" else {None})


def test_damage_loses_no_disabled_gpu(sim: Box) -> None:
    sim.ok("gpus", "disable", "1", "--why", "x")
    sim.submit("true", gpus=0, hold=True)
    sim.kill_daemon()
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        Path(sim.state / name).unlink(missing_ok=True)
    (sim.state / "queue.db").write_bytes(os.urandom(5000))
    assert gpu(sim, 1)["fault"] == "disabled: x"
    assert len(sim.request("list", sel={}, all=True)["jobs"]) == 1
