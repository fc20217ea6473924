"""`why` wherever a job waits, at a real daemon; and what becomes of one that follows its advice."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

import psutil
import pytest

from gpuq.model import GiB, MiB
from gpuq.units import format_size
from tests.fakenvml import FakeNvml, FakeProcess, fake_gpus
from tests.harness import Box, wait_until

HOLD = ["sleep", "1000"]
#: Seconds between TERM and KILL, as the settings have them.
GRACE = 10.0
#: A pid that is no process here: Linux gives none so large (proc(5), pid_max).
STRANGER = 2**22 + 1


class Waits:
    """A job that waits, and what `why` tells of it."""

    def __init__(self, box: Box, **template: Any) -> None:
        self.box = box
        self._template = template
        self.job = self._submit()
        # what stands against it is told once it has been looked at
        wait_until(lambda: box.reason(self.job)[1] != "about to be looked at", "a plan")
        self.told: dict[str, Any] = box.json("why", str(self.job))["explanations"][0]

    def _submit(self) -> int:
        return self.box.submit(*HOLD, **self._template)

    def because(self, reason: str, *words: str) -> Waits:
        assert self.told["reason"] == reason and self.told["state"] in ("queued", "held"), self.told
        for word in words:
            assert word in self.told["text"], self.told["text"]
        assert self.box.job(self.job)["reason"] == reason, "`show` and `list` say the same"
        text = self.box.ok("why", str(self.job))
        assert text.lower().startswith(f"job {self.job} ({self.told['state']}): {reason.lower()}")
        return self

    def place(self, position: int | None) -> Waits:
        assert self.told["position"] == position
        return self

    def passing(self, *counts: int, last: str = "with room beside our running jobs") -> Waits:
        """How many GPUs each condition leaves, in turn."""
        assert [one["count"] for one in self.told["conditions"]] == list(counts), self.told["conditions"]
        assert self.told["conditions"][-1]["condition"] == last
        assert all(len(one["gpus"]) == one["count"] for one in self.told["conditions"])
        return self

    def starts(self, at: float | None) -> Waits:
        """By then; None where nobody can say."""
        estimate = self.told["estimate"]
        assert estimate["later_than"] is None, estimate
        if at is None:
            assert estimate["latest"] is None, estimate
        else:
            assert epoch(estimate["latest"]) == pytest.approx(at, abs=0.1)
            assert epoch(estimate["earliest"]) <= at + 0.1
        return self

    def reserved(self, at: float | None, *places: str) -> Waits:
        assert self.told["reservation"]["places"] == list(places)
        found = self.told["reservation"]["at"]
        assert (found is None) if at is None else (epoch(found) == pytest.approx(at, abs=0.1)), found
        return self

    def helped_by(self, *changes: str) -> Waits:
        """Follow each piece of advice with a job of its own, which starts at once."""
        found = self.told["changes"]
        assert found == list(changes)
        box = self.box
        for number, change in enumerate(found):
            job = self._submit() if number else self.job
            box.ok("edit", str(job), *change.split())
            box.wait_state(job, "running")
            box.request("cancel", sel={"ranges": [[job, job]]})
            box.wait(job)
        return self

    def gives_up(self) -> None:
        self.box.request("cancel", sel={"ranges": [[self.job, self.job]]})
        self.box.wait(self.job)


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def runs(box: Box, **template: Any) -> tuple[int, float]:
    """A job that runs, and by when it has ended (0 for nobody knows)."""
    job = box.submit(*HOLD, **template)
    box.wait_state(job, "running")
    limit = template.get("time_limit")
    return job, 0.0 if limit is None else epoch(box.job(job)["started_at"]) + limit + GRACE


def end(box: Box, *jobs: int) -> None:
    box.request("cancel", sel={"ranges": [[job, job] for job in jobs]})
    box.wait(*jobs)


# --- room -----------------------------------------------------------------------------------------


def test_too_little_memory(sim: Box) -> None:
    runs(sim, gpus=1, vram=20 * GiB)
    _, at = runs(sim, gpus=1, vram=16 * GiB, time_limit=600.0)
    waits = Waits(sim, gpus=1, vram=12 * GiB)
    waits.because("Resources", "asks for 1 GPU with 12GiB; 0 of 2 GPUs fit now, most headroom 7.8GiB").place(1)
    waits.passing(2, 2, 2, 0).starts(at).reserved(at, "GPU 1").helped_by("--vram 7GiB")


def test_whole_gpus(sim: Box) -> None:
    first, _ = runs(sim, gpus=1)
    two = Waits(sim, gpus=2)
    two.because("Resources", "2 whole GPUs; 1 of 2 GPUs fit now").place(1).passing(2, 2, 1).starts(None)
    two.helped_by("--gpus 1")
    runs(sim, gpus=1)
    one = Waits(sim, gpus=1)
    one.because("Resources", "1 whole GPU; 0 of 2 GPUs fit now").passing(2, 2, 0).starts(None).helped_by()
    assert [gpu["verdict"] for gpu in one.told["gpus"]] == ["claimed by job 1", f"claimed by job {one.job - 1}"]
    sim.ok("suspend", str(first))
    again = Waits(sim, gpus=1)
    again.because("Resources").place(2).starts(None).helped_by()
    end(sim, first)
    assert sim.wait_state(one.job, "running")


def test_two_changes(sim: Box) -> None:
    """Neither fewer GPUs nor less memory will do by itself."""
    runs(sim, gpus=1, vram=14 * GiB)
    runs(sim, gpus=1)
    waits = Waits(sim, gpus=2, vram=12 * GiB)
    waits.because("Resources", "2 GPUs with 12GiB each").passing(2, 2, 2, 0).helped_by("--gpus 1 --vram 9GiB")


def test_cpus_and_host_memory(sim: Box) -> None:
    cpus, ram = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    everything, at = runs(sim, gpus=0, cpus=cpus, time_limit=60.0)
    waits = Waits(sim, gpus=1, cpus=1)
    waits.because("Resources", f"asks for 1 CPU, 0 of {cpus} free").place(1).passing(2, 2, 2).starts(at)
    waits.reserved(at, "GPU 0").helped_by("--cpus 0")
    Waits(sim, gpus=0, cpus=1).because("Resources").starts(at).helped_by().gives_up()
    end(sim, everything)
    most = ram // GiB * GiB - 2 * GiB
    _, at = runs(sim, gpus=0, ram=most, time_limit=60.0)
    left = (ram - most) // GiB
    waits = Waits(sim, gpus=0, cpus=0, ram=(left + 1) * GiB)
    waits.because("Resources", f"asks for {left + 1}GiB of host memory").starts(at).reserved(at)
    assert f"{format_size(most)} of {format_size(ram)} are given to jobs" in "\n".join(waits.told["lines"])
    size = (ram - most) // (256 * MiB) * 256 * MiB
    assert len(waits.told["changes"]) == 1 and size // 2 < _ram(waits.told["changes"][0]) <= ram - most
    waits.helped_by(*waits.told["changes"])


def _ram(change: str) -> float:
    option, size = change.split()
    assert option == "--ram"
    return float(size[:-3]) * (GiB if size.endswith("GiB") else MiB)


# --- order ----------------------------------------------------------------------------------------


def test_a_reservation_with_a_time(sim: Box) -> None:
    _, at = runs(sim, gpus=1, time_limit=1800.0)
    first = Waits(sim, gpus=2, time_limit=3600.0, priority=3)
    first.because("Resources").place(1).passing(2, 2, 1).starts(at).reserved(at, "GPU 0", "GPU 1")
    behind = Waits(sim, gpus=1, time_limit=7200.0)
    delayed = f"fits now, and would delay job {first.job}, for which GPU 0 and GPU 1 are reserved"
    behind.because("Reservation", delayed).place(2).passing(2, 2, 1, 0, last="not reserved for others")
    behind.starts(at + 3600 + GRACE)
    assert [gpu["reserved_for"] for gpu in behind.told["gpus"]] == [first.job] * 2
    assert [epoch(gpu["reserved_at"]) for gpu in behind.told["gpus"]] == pytest.approx([at] * 2, abs=0.1)
    behind.helped_by("--time 29m", "--priority 4")
    Waits(sim, gpus=1, time_limit=7200.0, grace=300.0).because("Reservation").helped_by("--time 24m", "--priority 4")


def test_a_reservation_without_a_time(sim: Box) -> None:
    sim.setenv(GPUQ_RESERVE_AFTER="0.001s")
    runs(sim, gpus=1)
    first = Waits(sim, gpus=2)
    first.because("Resources").starts(None).reserved(None, "GPU 0", "GPU 1")
    assert "kept free for it as they come free: GPU 0 and GPU 1" in sim.ok("why", str(first.job))
    behind = Waits(sim, gpus=1, time_limit=60.0)
    behind.because("Reservation", f"are kept free for job {first.job}").passing(
        2, 2, 1, 0, last="not reserved for others"
    )
    behind.starts(None).helped_by("--priority 1")


def test_strict_order(sim: Box) -> None:
    sim.setenv(GPUQ_ORDER="fifo")
    _, at = runs(sim, gpus=1, time_limit=60.0)
    first = Waits(sim, gpus=2, time_limit=60.0)
    behind = Waits(sim, gpus=1)
    behind.because("Priority", f"jobs start in order, and job {first.job} is first").place(2).passing(2, 2, 1)
    behind.starts(at + 60 + GRACE).helped_by("--priority 1")


def test_a_preemption_under_way(sim: Box) -> None:
    """Whoever is to give way has 60 seconds to save its work, and takes its time."""
    sim.setenv(GPUQ_GPUS="sim:1x24GiB", GPUQ_PREEMPT_AFTER="0")
    begun, saved = sim.folder / "begun", sim.folder / "saved"
    stubborn = f'trap "" TERM; touch "{begun}"; while [ ! -e "{saved}" ]; do sleep 0.02; done'
    low = sim.submit("sh", "-c", stubborn, gpus=1, vram=20 * GiB, preemptible=True, grace=60.0)
    wait_until(begun.exists, "the trap")
    high = Waits(sim, gpus=1, vram=10 * GiB, priority=1)
    wait_until(lambda: sim.job(low).get("ending_at") is not None, "the word to end")
    since = epoch(sim.job(low)["ending_at"])
    high.told = sim.json("why", str(high.job))["explanations"][0]
    high.because("Resources").place(1).passing(1, 1, 1, 0).starts(since + 60).reserved(since + 60, "GPU 0")
    told = sim.ok("why", str(low))
    assert "ending: preempt since" in told and "until it has ended it keeps GPU 0" in told
    high.helped_by("--vram 3840MiB")
    end_of = Waits(sim, gpus=1, vram=10 * GiB, priority=1)
    saved.touch()
    sim.wait_state(end_of.job, "running")


# --- conditions -----------------------------------------------------------------------------------


def test_conditions_on_gpus(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB=A100,1x80GiB=H100,1x24GiB=L40")
    runs(box, gpus=1, gpu_types=["A100"])
    waits = Waits(box, gpus=1, gpu_types=["A100"])
    waits.because("Resources", "asks for 1 whole GPU of type A100").passing(3, 1, 1, 0).helped_by("--gpu-type none")
    assert waits.told["conditions"][1]["gpus"] == ["GPU 0"]
    waits = Waits(box, gpus=1, gpu_ids=["0"])
    waits.because("Resources").passing(3, 1, 1, 0).helped_by("--gpu-id none")
    large, _ = runs(box, gpus=1, gpu_min_memory=60 * GiB)
    waits = Waits(box, gpus=1, gpu_min_memory=60 * GiB)
    waits.because("Resources", "of at least 60GiB").passing(3, 1, 1, 0).helped_by("--gpu-min-memory none")
    waits = Waits(box, gpus=1, gpus_excluded=["2"])
    waits.because("Resources").passing(3, 2, 2, 0).helped_by("--exclude-gpu none")
    waits = Waits(box, gpus=1, gpu_min_memory=20 * GiB, gpus_excluded=["2"], gpu_types=["A100", "H100"])
    waits.passing(3, 2, 2, 2, 2, 0)
    waits.helped_by("--gpu-type none --gpu-min-memory none --exclude-gpu none")
    end(box, large)


def test_a_gpu_that_is_disabled(sim: Box) -> None:
    sim.ok("gpus", "disable", "0", "--why", "fan is broken")
    waits = Waits(sim, gpus=2)
    waits.because("GpuUnavailable", "GPU 0", "fan is broken").place(1).passing(2, 1, 1, 1).starts(None)
    waits.helped_by("--gpus 1")
    sim.ok("gpus", "disable", "1")
    Waits(sim, gpus=1).because("GpuUnavailable").passing(2, 0, 0, 0).starts(None).helped_by()


def test_somebody_else_s_memory(box: Box, nvml: FakeNvml) -> None:
    box.setenv(GPUQ_READING_INTERVAL="0.1s")
    nvml.set(gpus=fake_gpus(24 * GiB))
    nvml.add_process(0, FakeProcess(STRANGER, 10 * GiB))
    waits = Waits(box, gpus=1)
    waits.because("ForeignUse", "1 without foreign use (10GiB on GPU 0)").place(1).passing(1, 0, 0).starts(None)
    assert f"foreign process {STRANGER}" in "\n".join(waits.told["lines"])
    waits.helped_by("--vram 13GiB")
    nvml.change(0, running=(FakeProcess(STRANGER, 24 * GiB),))
    waits = Waits(box, gpus=1, vram=2 * GiB)
    waits.because("ForeignUse").passing(1, 1, 0, 0).starts(None).helped_by()


# --- queues, limits -------------------------------------------------------------------------------


def test_what_a_queue_allows(sim: Box) -> None:
    sim.ok("queue", "set", "one", "--gpus", "0")
    runs(sim, gpus=1, queue="one")
    waits = Waits(sim, gpus=1, queue="one")
    waits.because("Resources", "0 of 1 GPUs fit now").place(1).passing(2, 1, 1, 0).helped_by("--queue default")
    assert waits.told["gpus"][1]["verdict"] == "not of queue one"
    sim.ok("queue", "set", "few", "--max-jobs", "1")
    runs(sim, gpus=0, queue="few")
    waits = Waits(sim, gpus=1, queue="few")
    waits.because("Limit", "1 of at most 1 jobs of queue few run").passing(2, 2, 1).starts(None)
    waits.helped_by("--queue default")
    sim.ok("queue", "set", "small", "--max-gpus", "1")
    runs(sim, gpus=1, vram=2 * GiB, queue="small")
    waits = Waits(sim, gpus=1, vram=2 * GiB, queue="small")
    waits.because("Limit", "queue small has 1 of at most 1 GPUs, and 1 is asked for").passing(2, 2, 2, 1)
    waits.helped_by("--queue default")
    sim.ok("queue", "set", "shut")
    sim.ok("queue", "pause", "shut", "--why", "until nine")
    waits = Waits(sim, gpus=0, queue="shut")
    waits.because("QueuePaused", "queue shut is paused: until nine").place(1).starts(None).helped_by("--queue default")
    sim.ok("queue", "pause", "default")
    sim.ok("queue", "set", "open")
    sim.ok("queue", "drain", "few")
    Waits(sim, gpus=1, vram=GiB).because("QueuePaused").starts(None).helped_by("--queue open")


def test_what_no_option_helps_against(box: Box) -> None:
    fails = box.submit("false", group="sweep", stop_after=1)
    box.wait(fails)
    stopped = Waits(box, group="sweep")
    stopped.because("Limit", "group sweep stopped after 1 failure").place(1).starts(None).helped_by()
    first, second = box.submit_many([HOLD], array={"indexes": [0, 1], "limit": 1}, time_limit=60.0)
    box.wait_state(first, "running")
    wait_until(lambda: box.reason(second)[0] == "Limit", "a plan")
    told = box.json("why", str(second))["explanations"][0]
    assert (told["text"], told["changes"]) == (f"1 of at most 1 jobs of array {first} run", [])
    assert epoch(told["estimate"]["latest"]) == pytest.approx(epoch(box.job(first)["started_at"]) + 60 + GRACE, abs=0.1)
    held = Waits(box, hold=True)
    held.because("Held", f"`gpuq release {held.job}`").place(None)
    waits = Waits(box, after=[f"ok:{first}"])
    waits.because("Dependency", f"ok:{first}").place(None)
    assert waits.told["lines"] == [f"ok:{first}: job {first} is running"]
    later = Waits(box, begin_at=epoch(box.job(first)["started_at"]) + 3600)
    later.because("BeginTime", "begins in 59m").place(None)
    for one in (held, waits, later):
        assert (one.told["estimate"], one.told["reservation"], one.told["changes"]) == (None, None, [])


# --- of jobs that run, or have ended --------------------------------------------------------------


def test_why_it_started_there_and_then(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB=A100,2x80GiB=H100")

    def why(job: int) -> list[str]:
        found: list[str] = box.json("why", str(job))["explanations"][0]["lines"]
        return found

    small, at = runs(box, gpus=1, time_limit=600.0)
    assert why(small) == ["3 GPUs had room, and of these it got GPU 0: the smallest"]
    only, _ = runs(box, gpus=1, gpu_types=["H100"], gpus_excluded=["1"])
    assert why(only) == ["GPU 2 had room, and no other GPU that it may have"]
    first = Waits(box, gpus=3, time_limit=60.0).because("Resources", "1 of 3 GPUs fit now")
    passing, _ = runs(box, gpus=1, vram=GiB, time_limit=at - epoch(box.job(small)["started_at"]) - 60 - GRACE)
    assert why(passing) == ["GPU 1 had room, and no other GPU"], "nobody has a reservation yet"
    end(box, small, only, passing)
    box.wait_state(first.job, "running")
    waited, there = why(first.job)
    assert waited.startswith("its kind waited before: asks for 3 whole GPUs; ")
    assert there == "GPU 0 and GPU 1 and GPU 2 had room, and no other GPUs"
    cpu = box.submit("true", gpus=0)
    box.wait(cpu)
    assert why(cpu) == ["it did not wait: nothing was in its way"]
    assert box.ok("why", str(cpu)).splitlines()[0].startswith(f"job {cpu} (succeeded): ended 20")
    never = box.submit("true", hold=True)
    end(box, never)
    assert why(never) == []


def test_many_at_a_time(sim: Box) -> None:
    """As one by one; and of a queue that nobody would read to the end it says so."""
    runs(sim, gpus=1, vram=20 * GiB, time_limit=600.0)
    runs(sim, gpus=1)
    sim.submit("true", gpus=2, vram=12 * GiB, time_limit=60.0)
    sim.submit_many([["true"]] * 3, gpus=1, vram=12 * GiB)
    sim.submit("true", hold=True)
    together = sim.json("why", "1-7")["explanations"]
    assert [one["job"] for one in together] == list(range(1, 8))
    for one in together:
        assert one == sim.json("why", str(one["job"]))["explanations"][0]
    assert [one["changes"] for one in together[2:]] == [["--gpus 1 --vram 3840MiB"], *[["--vram 3840MiB"]] * 3, []]
    sim.submit_many([["true"]] * 1001, hold=True)
    assert "1,002 jobs are named, and at most 1,000 are explained" in sim.fails(2, "why", "--state", "held")
    assert len(sim.json("why", "8-1007")["explanations"]) == 1000
