"""A preemptible job gives way to one of higher priority, and goes on as a new attempt of the same job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import Box, wait_until

SAVES = 'trap "echo saved; exit 0" TERM; echo begun; while :; do sleep 0.05; done'


@pytest.fixture
def quick(box: Box) -> Box:
    """One GPU, on which a job gives way at once."""
    box.setenv(GPUQ_GPUS="sim:1x24GiB", GPUQ_PREEMPT_AFTER="0")
    return box


def begun(box: Box, job_id: int) -> None:
    """Its trap is set."""

    def said() -> bool:
        path = box.job(job_id)["log_path"]
        return path is not None and Path(path).exists() and "begun" in Path(path).read_text()

    wait_until(said, "the trap")


def kinds(box: Box, job_id: int) -> list[str]:
    return [event["kind"] for event in box.json("events", str(job_id))["events"]]


def test_it_saves_its_work_and_goes_on_with_the_same_id(quick: Box) -> None:
    low = quick.submit("sh", "-c", SAVES, gpus=1, preemptible=True, grace=30.0, retry=["1"])
    begun(quick, low)
    high = quick.submit("sh", "-c", "exit 0", gpus=1, priority=1)
    assert quick.wait(high)["exit_code"] == 0
    wait_until(lambda: quick.job(low)["attempt"] == 2, "the second attempt")
    job = quick.json("show", str(low))["jobs"][0]
    first = job["attempts"][0]
    assert (first["failure"], first["note"]) == ("preempted", f"gives way to job {high}")
    assert (job["retries"], job["failure"]) == (0, None), "that is no retry, and the job has not failed"
    assert kinds(quick, low)[-4:] == ["started", "ending", "preempted", "started"]
    quick.request("cancel", sel={"ranges": [[low, low]]})
    assert quick.wait(low)["state"] == "cancelled"


def test_what_is_not_preemptible_or_of_equal_priority_stays(quick: Box) -> None:
    low = quick.submit("sh", "-c", SAVES, gpus=1)
    quick.wait_begun(low)
    high = quick.submit("true", gpus=1, priority=1)
    assert quick.job(high)["state"] == "queued"
    quick.request("cancel", sel={"ranges": [[low, low]]})
    quick.wait(high)
    assert kinds(quick, low) == ["submitted", "started", "ending", "cancelled"]


def test_a_preemption_that_the_daemon_does_not_live_to_see(quick: Box) -> None:
    low = quick.submit(
        "sh", "-c", 'trap "" TERM; echo begun; while :; do sleep 0.05; done', gpus=1, preemptible=True, grace=2.0
    )
    begun(quick, low)
    high = quick.submit("true", gpus=1, priority=1)
    wait_until(lambda: quick.job(low)["ending"] == "preempt", "the word to end")
    quick.kill_daemon()
    assert quick.wait(high)["state"] == "succeeded"
    wait_until(lambda: quick.job(low)["attempt"] == 2, "the second attempt")
    assert kinds(quick, low)[-3:] == ["ending", "preempted", "started"]


def test_who_is_cancelled_while_it_gives_way_is_cancelled(quick: Box) -> None:
    low = quick.submit(
        "sh", "-c", 'trap "" TERM; echo begun; while :; do sleep 0.05; done', gpus=1, preemptible=True, grace=2.0
    )
    begun(quick, low)
    high = quick.submit("true", gpus=1, priority=1)
    wait_until(lambda: quick.job(low)["ending"] == "preempt", "the word to end")
    quick.request("cancel", sel={"ranges": [[low, low]]})
    assert quick.wait(low)["state"] == "cancelled"
    assert quick.wait(high)["state"] == "succeeded"
