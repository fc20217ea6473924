"""`edit` at a real daemon: waiting jobs become what is asked for, all or none, and the planner sees it at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gpuq.errors import ConnectionLost
from gpuq.model import GiB
from tests.daemon.test_queues import HOLD, waits_for
from tests.harness import Box, gone, wait_until


def edit(box: Box, *ids: int, **changes: Any) -> dict[str, Any]:
    return box.request("edit", sel={"ranges": [[n, n] for n in ids]}, changes=changes)


def told(box: Box, job: int) -> list[dict[str, Any]]:
    return [event["data"] for event in box.job(job)["events"] if event["kind"] == "edited"]


def test_everything_that_may_be_edited_is(sim: Box) -> None:
    other = sim.submit("true", gpus=0, hold=True)
    job = sim.submit("true", gpus=1, hold=True, tags=["old"], time_limit=60.0)
    sim.ok("queue", "set", "night")
    line = (
        f"edit {job} --gpus 1:2 --vram 4GiB --cpus 2 --ram 1GiB --gpu-min-memory 2GiB --exclude-gpu 0 --spread "
        f"--time 2h --priority 7 --queue night --after any:{other} --name new --tag a --tag b --begin 3h --group g "
        "--stop-after 4"
    )
    assert sim.ok(*line.split()).split() == [str(job)]
    found = sim.job(job)
    uuid = sim.request("gpus")["gpus"][0]["uuid"]
    assert [found[n] for n in ("gpu_count", "gpu_count_most", "vram_bytes", "cpus", "ram_bytes")] == [
        1,
        2,
        4 * GiB,
        2,
        GiB,
    ]
    assert (found["gpus_excluded"], found["gpu_min_memory_bytes"], found["spread"]) == ([uuid], 2 * GiB, True)
    assert [found[n] for n in ("time_limit_seconds", "priority", "queue", "name", "tags")] == [
        7200,
        7,
        "night",
        "new",
        ["a", "b"],
    ]
    assert (found["after"], found["group"], found["stop_after"], found["state"]) == ([f"any:{other}"], "g", 4, "held")
    assert found["begin_at"] is not None
    [data] = told(sim, job)
    assert data["was"]["priority"] == 0 and data["now"]["priority"] == 7
    assert data["was"]["tag"] == ["old"] and data["now"]["after"] == [f"any:{other}"]
    assert data["now"].keys() == data["was"].keys() and "state" not in data["now"]
    line = "--vram whole --ram none --gpu-min-memory none --exclude-gpu none --no-spread --time none --after none"
    sim.ok(
        "edit",
        str(job),
        *line.split(),
        "--tag",
        "none",
        "--begin",
        "none",
        "--group",
        "none",
        "--gpus",
        "1",
        "--queue",
        "default",
    )
    found = sim.job(job)
    gone_now = (
        "vram_bytes",
        "ram_bytes",
        "gpu_min_memory_bytes",
        "time_limit_seconds",
        "begin_at",
        "group",
        "stop_after",
    )
    assert [found[n] for n in gone_now] == [None] * len(gone_now)
    assert (found["gpus_excluded"], found["spread"], found["after"], found["tags"]) == ([], False, [], [])
    sim.ok("release", str(job))
    assert sim.wait(job)["state"] == "succeeded"


def test_the_planner_sees_it_at_once_and_the_job_keeps_its_age(sim: Box) -> None:
    big = sim.submit(*HOLD, gpus=2)
    sim.wait_state(big, "running")
    a, b, c = sim.submit_many([HOLD] * 3, gpus=2)
    waits_for(sim, a, "Resources", "")
    assert sim.ok("why", str(c)).count("position 3") == 1
    sim.ok("edit", str(c), "--priority", "3")
    assert sim.ok("why", str(c)).count("position 1") == 1
    sim.ok("edit", str(c), "--priority", "0")
    sim.ok("edit", str(a), "--name", "first")
    assert [sim.ok("why", str(n)).count(f"position {k}") for k, n in enumerate((a, b, c), 1)] == [1, 1, 1]
    sim.ok("edit", str(b), "--gpus", "0", "--cpus", "0")
    sim.wait_state(b, "running")
    sim.ok("cancel", "--state", "queued,running")


@pytest.mark.parametrize("state", ["running", "succeeded", "cancelled"])
def test_what_does_not_wait_is_refused_with_its_state_and_all_or_none_are_changed(box: Box, state: str) -> None:
    waits = box.submit("true", hold=True)
    other = box.submit(*(HOLD if state == "running" else ["true"]), hold=state == "cancelled")
    if state == "running":
        box.wait_state(other, "running")
    elif state == "cancelled":
        box.ok("cancel", str(other))
    else:
        box.wait(other)
    said = box.fails(1, "edit", str(waits), str(other), "--priority", "3")
    word = {"running": "is running, and cannot be edited", "succeeded": "already ended: it succeeded"}
    assert f"job {other} {word.get(state, 'already ended: it was cancelled')}" in said and "no job was changed" in said
    assert box.job(waits)["priority"] == 0 and told(box, waits) == []
    assert box.ok("edit", f"{waits}-{other}", "--priority", "3").split() == [str(waits)], "of a range those that wait"
    box.run("cancel", str(other))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpus", "3"], "3 GPUs asked for with --gpus, and this host has 2 GPUs"),
        (["--vram", "40GiB"], "0 of 2 GPUs can hold the 40GiB of --vram"),
        (["--gpus", "2", "--queue", "one"], "queue one has at most 1 GPU at a time, and 2 GPUs are asked for"),
        (["--queue", "nigth"], "there is no queue 'nigth': there are default, one, shut"),
        (["--queue", "shut"], "queue shut is draining, and takes no new jobs"),
        (["--time", "2h", "--queue", "one"], "--time 2h00m is more than queue one allows: 1h00m at most"),
        (["--after", "ok:99"], "there is no job 99"),
        (["--after", "ok:2"], "would wait for itself: 2 -> 2"),
        (["--after", "ok:3"], "would wait for itself: 2 -> 3 -> 2"),
        (["--after", "failed:1"], "--after can never hold"),
        (["--gpus", "4:2"], "upside down"),
        (["--gpu-id", "9"], "there is no GPU 9"),
        (["--gpu-id", "0", "--exclude-gpu", "0"], "--gpu-id and --exclude-gpu both name"),
        (["--cpus", "100000"], "--cpus"),
        (["--ram", "1024TiB"], "asked for with --ram"),
        (["--priority", "5000"], "--priority is 5000"),
        (["--stop-after", "2"], "--stop-after is for several jobs"),
        (["--group", "array:1"], "are those of arrays"),
        (["--name", ""], "--name is empty"),
        ([], "nothing to change"),
    ],
)
def test_an_edit_that_makes_a_job_impossible_changes_nothing(sim: Box, args: list[str], said: str) -> None:
    sim.ok("queue", "set", "one", "--max-gpus", "1", "--max-time", "1h")
    sim.ok("queue", "set", "shut")
    sim.ok("queue", "drain", "shut")
    ended = sim.submit("true", gpus=0)
    sim.wait(ended)
    job = sim.submit("true", gpus=1, hold=True)
    sim.submit("true", gpus=0, hold=True, after=[f"ok:{job}"])
    other = sim.submit("true", gpus=1, hold=True, group="g")
    before = [sim.job(job), sim.job(other)]
    for ids in ([job], [other, job]):
        done = sim.run("edit", *map(str, ids), *args)
        assert done.returncode in (1, 2, 3) and said in done.stderr, done.stderr
    assert [sim.job(job), sim.job(other)] == before


def test_dependencies_are_replaced_and_what_is_met_lets_go(box: Box) -> None:
    a, b = box.submit_many([["true"]] * 2, hold=True)
    job = box.submit("true", after=[f"ok:{a}"])
    waits_for(box, job, "Dependency", f"ok:{a}")
    box.ok("edit", str(job), "--after", f"ok:{b}")
    waits_for(box, job, "Dependency", f"ok:{b}")
    box.ok("release", str(a))
    box.wait(a)
    assert box.job(job)["state"] == "queued"
    box.ok("cancel", str(b))
    assert box.wait(job)["state"] == "skipped"
    other = box.submit("true", after=[f"any:{box.submit('true', hold=True)}"])
    box.ok("edit", str(other), "--after", f"ok:{a}")
    assert box.wait(other)["state"] == "succeeded"
    free = box.submit("true", after=[f"any:{box.submit('true', hold=True)}"])
    box.ok("edit", str(free), "--after", "none")
    assert box.wait(free)["state"] == "succeeded"


def test_what_starts_runs_as_it_was_edited(box: Box) -> None:
    job = box.submit("sleep", "1000", hold=True, time_limit=3600.0)
    box.ok("edit", str(job), "--time", "1s")
    box.ok("release", str(job))
    ended = box.wait(job)
    assert (ended["state"], ended["failure"], ended["time_limit_seconds"]) == ("failed", "timeout", 1.0)


def test_an_early_signal_still_comes_before_the_limit(box: Box) -> None:
    job = box.submit("true", hold=True, time_limit=3600.0, early_signal="USR1@300")
    assert "its signal comes 5m00s before the time limit" in box.fails(2, "edit", str(job), "--time", "4m")
    assert "which would be none" in box.fails(2, "edit", str(job), "--time", "none")
    box.ok("edit", str(job), "--time", "6m")


def test_moving_to_another_queue_takes_its_times(box: Box) -> None:
    box.ok("queue", "set", "night", "--default-time", "2h", "--max-time", "3h")
    free, short = box.submit("true", hold=True), box.submit("true", hold=True, time_limit=60.0)
    box.ok("edit", str(free), str(short), "--queue", "night")
    assert [box.job(n)["time_limit_seconds"] for n in (free, short)] == [7200.0, 60.0]


def test_a_job_that_needs_no_gpu_any_more_counts_as_a_cpu_job(sim: Box) -> None:
    job = sim.submit("true", gpus=1, vram=2**30, hold=True)
    sim.ok("edit", str(job), "--gpus", "0")
    assert [sim.job(job)[name] for name in ("gpu_count", "vram_bytes", "cpus")] == [0, None, 1]
    assert "--vram without GPUs" in sim.fails(2, "edit", str(job), "--vram", "1GiB")
    sim.ok("edit", str(job), "--gpus", "2", "--cpus", "0")
    assert [sim.job(job)[name] for name in ("gpu_count", "vram_bytes", "cpus")] == [2, None, 0]


def test_two_edits_at_once_lose_nothing_of_each_other(box: Box) -> None:
    jobs = box.submit_many([["true"]] * 20, hold=True)
    fields = [{"priority": 4}, {"name": "n"}, {"tags": ["t"]}, {"time_limit": 9.0}, {"group": "g"}]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda changes: edit(box, *jobs, **changes), fields))
    for job in map(box.job, jobs):
        found = [job[n] for n in ("priority", "name", "tags", "time_limit_seconds", "group")]
        assert found == [4, "n", ["t"], 9.0, "g"]


def test_an_edit_and_a_start_at_once_agree(box: Box) -> None:
    """Whatever comes first: a job runs as it is shown, and an edit that came too late says so."""
    for _ in range(10):
        job = box.submit("true", hold=True, cpus=0)
        with ThreadPoolExecutor(2) as pool:
            pool.submit(box.request, "release", sel={"ranges": [[job, job]]})
            edited = pool.submit(edit, box, job, time_limit=50.0)
        ended = box.wait(job)
        assert ended["time_limit_seconds"] == (None if edited.exception() else 50.0)


@pytest.mark.parametrize("point", ["commit-before", "commit-after"])
def test_a_kill_in_the_middle_edits_all_or_none(box: Box, point: str) -> None:
    a, b, c = box.submit_many([["true"]] * 3, hold=True)
    box.ok("daemon", "stop")
    box.setenv(GPUQ_CRASH_AT=f"{point}:3")
    pid = box.daemon_pid()
    with pytest.raises(ConnectionLost):
        edit(box, b, c, priority=9, after=[f"ok:{a}"], name="x")
    wait_until(lambda: gone(pid), "the crash")
    box.setenv(GPUQ_CRASH_AT=None)
    found = {
        (box.job(n)["priority"], tuple(box.job(n)["after"]), box.job(n)["name"], len(told(box, n))) for n in (b, c)
    }
    assert found == ({(9, (f"ok:{a}",), "x", 1)} if point == "commit-after" else {(0, (), "true", 0)})
    box.ok("release", str(b))
    if point == "commit-after":
        waits_for(box, b, "Dependency", f"ok:{a}")


def test_what_was_edited_survives_damage(box: Box) -> None:
    a, b = box.submit_many([["true"]] * 2, hold=True)
    box.ok("queue", "set", "night")
    edit(box, b, priority=9, name="x", time_limit=50.0, after=[f"ok:{a}"], queue="night", group="g", tags=["t"], cpus=2)
    same = (
        "priority",
        "name",
        "time_limit_seconds",
        "after",
        "queue",
        "group",
        "tags",
        "cpus",
        "state",
        "submitted_at",
    )
    before = [box.job(b)[field] for field in same]
    box.kill_daemon()
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        Path(box.state / name).unlink(missing_ok=True)
    (box.state / "queue.db").write_bytes(os.urandom(5000))
    assert [box.job(b)[field] for field in same] == before
    box.ok("release", str(b))
    waits_for(box, b, "Dependency", f"ok:{a}")


def test_too_many_at_once_are_refused(box: Box) -> None:
    box.submit_many([["true"]] * 1001, hold=True)
    assert "at most 1,000 are edited at a time" in box.fails(1, "edit", "1-1001", "--priority", "2")
    assert len(box.ok("edit", "1-1000", "--priority", "2").split()) == 1000
