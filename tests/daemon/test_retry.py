"""Jobs that are tried again by their own rules, with a real daemon."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpuq.model import Failure
from tests.fakenvml import FakeNvml, fake_gpus
from tests.harness import Box, wait_until

GiB = 1024**3
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
#: Says which attempt it is, and succeeds on the third.
THIRD = 'echo "this is attempt $GPUQ_ATTEMPT"; test "$GPUQ_ATTEMPT" = 3 || exit "$GPUQ_ATTEMPT"'


@pytest.fixture
def quick(box: Box) -> Box:
    box.setenv(GPUQ_RETRY_BACKOFF="0.05s", GPUQ_GRACE="1s")
    return box


@pytest.fixture
def slow(box: Box) -> Box:
    """Once a retry is due here, the test is over."""
    box.setenv(GPUQ_RETRY_BACKOFF="1h")
    return box


def kinds(box: Box, job: int) -> list[str]:
    return [event["kind"] for event in box.job(job)["events"]]


def retries(box: Box, job: int) -> list[dict[str, Any]]:
    return [event["data"] for event in box.job(job)["events"] if event["kind"] == "retrying"]


def waits_for_retry(box: Box, job: int) -> dict[str, Any]:
    return wait_until(lambda: (found := box.job(job))["retries"] == 1 and found, "the first failure")


def test_each_attempt_keeps_its_own_log_and_result(quick: Box) -> None:
    job = quick.submit("sh", "-c", THIRD, retry=["2"])
    dependent = quick.submit("true", after=[str(job)])
    done = quick.wait(job, dependent)
    assert (done["state"], done["attempt"], done["retries"], done["failure"]) == ("succeeded", 3, 2, None)
    assert quick.job(dependent)["state"] == "succeeded", "the first failure was not the end of what it depends on"
    attempts = quick.job(job)["attempts"]
    assert [(a["exit_code"], a["failure"]) for a in attempts] == [(1, "exit"), (2, "exit"), (0, None)]
    assert [Path(a["log_path"]).read_text() for a in attempts] == [f"this is attempt {n}\n" for n in (1, 2, 3)]
    assert kinds(quick, job) == ["submitted", "started", "retrying", "started", "retrying", "started", "succeeded"]
    first, second = retries(quick, job)
    assert (first["failure"], first["note"]) == ("exit", "retry 1 of 2 after exit")
    assert second["in"] == pytest.approx(2 * first["in"], abs=0.01)


def test_it_fails_when_its_retries_are_spent_and_a_person_may_begin_anew(quick: Box) -> None:
    job = quick.submit("false", retry=["exit:2"])
    assert (quick.wait(job)["failure"], quick.job(job)["attempt"]) == ("exit", 3)
    quick.ok("retry", str(job))
    assert (quick.wait(job)["failure"], quick.job(job)["attempt"]) == ("exit", 6)


def test_run_prints_every_attempt_and_exits_with_the_last_code(quick: Box) -> None:
    done = quick.run("run", "--gpus", "0", "--retry", "2", "--", "sh", "-c", THIRD)
    assert (done.returncode, done.stdout) == (0, "".join(f"this is attempt {n}\n" for n in (1, 2, 3)))
    assert quick.run("run", "--gpus", "0", "--retry", "1", "--", "sh", "-c", THIRD).returncode == 2


def test_what_is_tried_again_later_says_so_and_can_be_stopped(slow: Box) -> None:
    cancelled, held = slow.submit("false", retry=["5"]), slow.submit("false", retry=["5"])
    for job in (cancelled, held):
        found = waits_for_retry(slow, job)
        assert (found["state"], found["reason"], found["note"]) == ("queued", "BeginTime", "retry 1 of 5 after exit")
        assert found["reason_text"].endswith(": retry 1 of 5 after exit")
    slow.kill_daemon()
    assert slow.job(held)["reason"] == "BeginTime", "a pause outlives the daemon"
    slow.ok("cancel", str(cancelled))
    assert slow.wait(cancelled)["state"] == "cancelled"
    slow.ok("hold", str(held))
    slow.ok("release", str(held))
    assert slow.job(held)["reason"] == "BeginTime"
    assert slow.job(held)["attempt"] == 1


def test_what_its_owner_ended_is_not_tried_again(quick: Box) -> None:
    job = quick.submit("sleep", "1000", retry=["5", "signal:5", "lost:5"])
    quick.wait_state(job, "running")
    quick.ok("cancel", str(job))
    done = quick.wait(job)
    assert (done["state"], done["attempt"], done["retries"]) == ("cancelled", 1, 0)


def test_a_claim_that_ran_out_grows_up_to_the_card(quick: Box, nvml: FakeNvml) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    job = quick.submit("sh", "-c", f"echo '{OOM}'; exit 1", gpus=1, vram=10 * GiB, retry=["vram-oom:9*1.5"])
    done = quick.wait(job)
    top = 24 * GiB - 256 * 1024**2
    claims = [attempt["claims"][0]["declared_bytes"] for attempt in quick.job(job)["attempts"]]
    assert claims == [10 * GiB, 15 * GiB, 23040 * 1024**2, top]
    assert (done["failure"], done["vram_bytes"]) == ("vram-oom", top)
    assert done["note"] == f"{OOM}; not tried again: its claim cannot grow past the card"
    assert quick.job(job)["attempts"][-1]["note"] == quick.job(job)["events"][-1]["data"]["note"] == done["note"]
    assert [data.get("vram") for data in retries(quick, job)] == claims[1:]


def kill_supervisor(box: Box, job: int) -> None:
    identity = Path(box.job(job)["attempts"][-1]["run_dir"]) / "identity"
    wait_until(identity.exists)
    os.kill(json.loads(identity.read_text())["pid"], signal.SIGKILL)


def kill_all(box: Box) -> list[int]:
    """KILL to all that runs; who that was."""
    found = box.processes()
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def test_lost_work_is_repeated_only_with_requeue(quick: Box) -> None:
    gate = quick.folder / "go"
    script = f'test "$GPUQ_ATTEMPT" = 2 && exit 0; while [ ! -e "{gate}" ]; do sleep 0.02; done'
    plain = quick.submit("sh", "-c", script, retry=["5"], cpus=0)
    again = quick.submit("sh", "-c", script, retry=["lost:1"], cpus=0)
    for job in (plain, again):
        quick.wait_state(job, "running")
        kill_supervisor(quick, job)
    assert quick.wait(plain)["failure"] == "lost"
    done = quick.wait(again)
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    assert [a["failure"] for a in quick.job(again)["attempts"]] == ["lost", None]


def test_after_a_reboot_jobs_are_lost_or_run_again_as_they_asked(quick: Box) -> None:
    """A reboot: everything ended at once, and another boot id than the one written down."""
    script = 'echo "$GPUQ_ATTEMPT" >> ran; test "$GPUQ_ATTEMPT" = 2 || sleep 1000'
    requeue = ["submit", "--gpus", "0", "--cpus", "0", "--requeue", "--", "sh", "-c", script]
    again, plain = int(quick.ok(*requeue)), quick.submit("sleep", "1000", cpus=0)
    waiting = quick.submit("true", after=[f"any:{plain}"])
    for job in (again, plain):
        quick.wait_begun(job)
    wait_until((quick.folder / "ran").exists)
    wait_until((quick.state / "jobs" / str(plain) / "1" / "identity").exists)  # it runs, and is not only claimed
    quick.kill_daemon()
    wait_until(lambda: not kill_all(quick), "the end of everything")
    for identity in quick.state.glob("jobs/*/*/identity"):
        fields = json.loads(identity.read_text())
        identity.write_text(json.dumps({**fields, "boot_id": "00000000-0000-0000-0000-000000000000"}))
    lost = quick.wait(plain)
    assert (lost["failure"], lost["note"]) == ("lost", "the host went down while it ran")
    assert (quick.wait(again)["state"], quick.job(again)["attempt"]) == ("succeeded", 2)
    assert quick.wait(waiting)["state"] == "succeeded"
    assert (quick.folder / "ran").read_text() == "1\n2\n"


def test_what_a_shutdown_ends_is_lost_and_runs_again_as_it_asked(quick: Box) -> None:
    """An orderly shutdown, or a logout that ends a session: TERM to everything at once, supervisors included."""
    script = 'echo "$GPUQ_ATTEMPT" >> ran; test "$GPUQ_ATTEMPT" = 2 && exit; trap "exit 0" TERM; touch up; sleep 1000'
    again = quick.submit("sh", "-c", script, retry=["lost:1"], cpus=0)
    plain = quick.submit("sleep", "1000", retry=["2"], cpus=0)
    for job in (again, plain):
        quick.wait_state(job, "running")
    wait_until((quick.folder / "up").exists)
    wait_until((quick.state / "jobs" / str(plain) / "1" / "identity").exists)
    for pid in quick.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not quick.processes(), "the end of everything")
    lost = quick.wait(plain)
    assert (lost["failure"], lost["signal"]) == ("lost", signal.SIGTERM)
    assert "as at a logout or shutdown" in lost["note"]
    assert (quick.wait(again)["state"], quick.job(again)["attempt"]) == ("succeeded", 2)
    assert (quick.folder / "ran").read_text() == "1\n2\n"


SENSELESS: list[tuple[list[str], str]] = [
    (["--retry", "often"], "--retry 'often' is not a rule"),
    (["--retry", "vram_oom:2"], "did you mean vram-oom?"),
    (["--signal", "USR1@300"], "give --time"),
    (["--signal", "USR1@300", "--time", "5m"], "before the job begins"),
    (["--signal", "NOPE@3", "--time", "5m"], "there is no signal 'NOPE'"),
    (["--signal", "KILL@3", "--time", "5m"], "no program can answer"),
    (["--signal", "USR1", "--time", "5m"], "write the signal and how long"),
    (["--signal", "USR1@soon", "--time", "5m"], "a bare number is seconds, as in USR1@300"),
    (["--retry", "1", "--retry", "2"], "both cover any failure"),
    (["--retry", "lost:1", "--retry", "exit,lost:2", "--requeue"], "both name lost"),
    (["--grace", "5"], "--grace '5' is not a time"),
    (["--log-limit", "1K"], "--log-limit is 1KiB, and at least 64KiB"),
    (["--log-limit", "much"], "is not a size"),
]


def test_what_makes_no_sense_is_refused(box: Box) -> None:
    for options, said in SENSELESS:
        assert said in box.fails(2, "submit", "--gpus", "0", *options, "--", "true")
        assert box.request("list", all=True, sel={})["total"] == 0, options


def test_requeue_beside_a_rule_for_lost_adds_nothing(slow: Box) -> None:
    rules = [["--retry", "lost,exit:2"], ["--retry", "2"]]
    ids = [int(slow.ok("submit", "--hold", "--gpus", "0", "--requeue", *rule, "--", "true")) for rule in rules]
    assert [slow.job(job)["retry"] for job in ids] == [["lost,exit:2"], ["2", "lost:10"]]


def test_the_help_names_every_failure_that_can_be_tried_again(box: Box) -> None:
    text = " ".join(box.ok("submit", "--help").split())
    names = text.partition("Failures: ")[2].partition(".")[0].split(", ")
    assert sorted(names) == sorted(set(Failure) - {Failure.PREEMPTED}), "one that gave way goes on without a rule"
    box.fails(2, "submit", "--retry", "preempted:2", "--", "true")


def test_a_cancelled_job_whose_supervisor_dies_is_not_tried_again(quick: Box) -> None:
    """The answer to `cancel` was that it ends, and that is what it does, by whatever it ends."""
    stubborn = "trap '' TERM; echo $$ up; while :; do sleep 0.05; done"
    job = quick.submit("sh", "-c", stubborn, retry=["lost:3"], grace=600.0)
    log = quick.state / "jobs" / str(job) / "1" / "log"
    wait_until(lambda: log.exists() and "up" in log.read_text())
    quick.ok("cancel", str(job))
    kill_supervisor(quick, job)
    os.kill(int(log.read_text().split()[0]), signal.SIGKILL)  # long before its grace is over
    done = quick.wait(job)
    assert (done["state"], done["failure"], done["attempt"], done["retries"]) == ("cancelled", None, 1, 0)
    assert "SIGKILL" in done["note"]
