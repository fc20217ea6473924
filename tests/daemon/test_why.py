"""What `why`, `list --start` and `stats` tell of a queue that is known."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.harness import Box, wait_until


def explained(box: Box, job_id: int) -> dict[str, Any]:
    found: dict[str, Any] = box.json("why", str(job_id))["explanations"][0]
    return found


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture
def busy(sim: Box) -> Box:
    """Job 1 has GPU 0 for 600 s, job 2 has 20 GiB of GPU 1 for 1200 s; job 3 waits for both."""
    sim.submit("sleep", "600", gpus=1, time_limit=600.0)
    sim.submit("sleep", "600", gpus=1, vram=20 * 2**30, time_limit=1200.0)
    sim.submit("true", gpus=2, time_limit=3600.0)
    for job_id in (1, 2):
        sim.wait_begun(job_id)
    return sim


def test_the_first_that_cannot_start_has_a_reservation(busy: Box) -> None:
    told = explained(busy, 3)
    assert (told["reason"], told["position"]) == ("Resources", 1)
    limit = epoch(busy.job(2)["started_at"]) + 1200 + 10
    assert epoch(told["reservation"]["at"]) == pytest.approx(limit, abs=0.1)
    assert told["reservation"]["places"] == ["GPU 0", "GPU 1"]
    assert told["estimate"]["latest"] == told["reservation"]["at"]
    assert [(one["condition"], one["count"]) for one in told["conditions"]] == [
        ("on this host", 2),
        ("not taken by others", 2),
        ("with room beside our running jobs", 0),
    ]


def test_what_would_delay_it_waits_and_is_told_what_helps(busy: Box) -> None:
    long = busy.submit("true", gpus=1, vram=2 * 2**30, time_limit=7200.0)
    told = explained(busy, long)
    assert told["reason"] == "Reservation" and "delay job 3" in told["text"]
    assert [gpu["reserved_for"] for gpu in told["gpus"]] == [3, 3]
    option = next(change for change in told["changes"] if change.startswith("--time"))
    short = int(busy.ok("submit", "--vram", "2GiB", *option.split(), "--", "true"))
    assert busy.wait(short)["state"] == "succeeded"
    assert "passed job 3" in busy.ok("why", str(short))
    assert epoch(told["estimate"]["latest"]) > epoch(explained(busy, 3)["reservation"]["at"])


def test_what_fits_less_is_told_and_never_less_than_was_used(busy: Box) -> None:
    large = busy.submit("true", gpus=1, vram=8 * 2**30, time_limit=60.0)
    told = explained(busy, large)
    assert told["reason"] == "Resources"
    option = next(change for change in told["changes"] if change.startswith("--vram"))
    small = int(busy.ok("submit", *option.split(), "--time", "1m", "--", "true"))
    assert busy.wait(small)["state"] == "succeeded"


def test_without_limits_nobody_can_say_when(sim: Box) -> None:
    sim.submit("sleep", "600", gpus=2)
    sim.wait_begun(1)
    waits = sim.submit("true", gpus=1)
    assert explained(sim, waits)["estimate"] == {"earliest": None, "latest": None, "later_than": None}
    assert "nobody can say when" in sim.ok("why", str(waits))
    assert [row.split()[6] for row in sim.ok("list", "--start").splitlines() if row.startswith("2 ")] == ["Resources"]


def test_gpus_that_a_job_may_not_have_say_so(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB=A100,1x24GiB=H100")
    box.submit("sleep", "600", gpus=1, gpu_types=["a100"])
    box.wait_begun(1)
    waits = int(box.ok("submit", "--gpu-type", "A100", "--", "true"))
    told = explained(box, waits)
    assert [gpu["verdict"] for gpu in told["gpus"]] == ["claimed by job 1", "not of type A100"]
    assert [(one["condition"], one["gpus"]) for one in told["conditions"]][1] == ("of type A100", ["GPU 0"])
    assert "--gpu-type none" in told["changes"]


def test_list_start_tells_the_same(busy: Box) -> None:
    job = next(job for job in busy.json("list", "--start")["jobs"] if job["id"] == 3)
    assert job["estimate"]["latest"] == explained(busy, 3)["estimate"]["latest"]
    assert busy.ok("list", "--start").splitlines()[0].split() == "ID NAME STATE GPUS VRAM START REASON COMMAND".split()


def test_why_of_a_job_that_runs_or_has_ended(busy: Box) -> None:
    assert "2 GPUs had room, and of these it got GPU 0" in busy.ok("why", "1")
    assert "GPU 1 had room, and no other GPU" in busy.ok("why", "2")
    busy.request("cancel", sel={"ranges": [[1, 2]]})
    busy.wait(3)
    assert "its kind waited before: asks for 2 whole GPUs" in busy.ok("why", "3")


def test_stats(busy: Box) -> None:
    busy.request("cancel", sel={"ranges": [[1, 2]]})
    busy.wait(1, 2, 3)
    busy.wait(busy.submit("sh", "-c", "exit 3", gpus=0))
    found = busy.json("stats")
    assert found["jobs"] == {"cancelled": 2, "failed": 1, "succeeded": 1}
    assert found["failures"] == {"exit": 1}
    assert found["wait_seconds"]["count"] == 4
    # it was said by the limit of job 2, or, where a plan was made before it had ended, by its grace period
    early = found["start_estimates"].pop("median_early_seconds")
    assert early == pytest.approx(5, abs=5) or early == pytest.approx(1205, abs=5)
    assert found["start_estimates"] == {"jobs": 1, "late": 0, "max_late_seconds": None}
    assert "1 reservations, none later than said" in busy.ok("stats", "--since", "1d")
    wait_until(lambda: busy.json("stats", "--since", "1s")["jobs"] == {}, "a second")
    busy.fails(2, "stats", "--since", "7")
