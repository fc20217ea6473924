"""Groups that stop after failures in a row, at a real daemon: a broken sweep must not burn the night."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpuq.protocol import Selection
from tests.daemon.test_queues import waits_for
from tests.harness import Box, gone, wait_until


def runs(box: Box) -> list[str]:
    """Which jobs have begun, in that order."""
    path = box.folder / "runs"
    return path.read_text().split() if path.exists() else []


def script(box: Box, code: int | str) -> list[str]:
    return ["sh", "-c", f'echo "$GPUQ_JOB_ID" >> "{box.folder}/runs"; exit {code}']


@pytest.fixture
def single(box: Box) -> Box:
    """One CPU job at a time."""
    box.ok("queue", "set", "default", "--max-jobs", "1")
    return box


def group_of(box: Box, name: str) -> dict[str, Any]:
    found = {one["name"]: one for one in box.request("groups")["groups"]}
    one = found[name]
    assert isinstance(one, dict)
    return one


def test_nothing_more_starts_after_failures_in_a_row(single: Box) -> None:
    ids = single.submit_many([script(single, n) for n in (0, 1, 0, 1, 2, 3, 0, 0)], group="night", stop_after=3)
    single.wait(*ids[:6])
    text = "group night stopped after 3 failures in a row (jobs 4, 5, 6); `gpuq group resume night` lets it go on"
    waits_for(single, 7, "Limit", text)
    other = single.submit(*script(single, 0))
    single.wait(other)
    assert runs(single) == ["1", "2", "3", "4", "5", "6", str(other)]
    assert single.job(7)["reason"] == "Limit"
    [told] = [event for event in single.json("events")["events"] if event["kind"] == "group-stopped"]
    assert told["data"] == {"group": "night", "failures": 3, "jobs": [4, 5, 6]}
    view = group_of(single, "night")
    assert (view["failures"], view["failed"], view["waiting"], view["why"]) == (3, [4, 5, 6], 2, text)
    late = single.run("submit", "--group", "night", "--gpus", "0", "--", "true")
    assert text in late.stderr, "who submits into it is told"
    single.ok("group", "resume", "night")
    assert single.wait(7, 8, int(late.stdout))["state"] == "succeeded"
    assert single.request("groups")["groups"] == []
    assert "has not stopped" in single.run("group", "resume", "night").stderr


def test_what_starts_in_the_place_of_the_last_failure_is_none_of_the_group(box: Box) -> None:
    """Jobs that start in the very transaction that records the failure."""
    box.ok("queue", "set", "default", "--max-jobs", "1")
    for _ in range(5):
        (box.folder / "runs").unlink(missing_ok=True)
        ids = box.submit_many([script(box, 1)] * 3, group="g", stop_after=1)
        box.wait(ids[0])
        waits_for(box, ids[1], "Limit", "group g stopped after 1 failure")
        assert runs(box) == [str(ids[0])]
        box.ok("cancel", *map(str, ids[1:]))
        box.ok("group", "resume", "g")


def test_a_failure_counts_once_its_retries_are_used_up(single: Box) -> None:
    ids = single.submit_many([script(single, 1)] * 3, group="g", stop_after=2, retry=["1"])
    single.wait(*ids[:2])
    waits_for(single, ids[2], "Limit", f"(jobs {ids[0]}, {ids[1]})")
    found = runs(single)  # the third may have begun once before the second failed for good, and waits to be tried again
    assert [found.count(str(n)) for n in ids[:2]] == [2, 2] and found.count(str(ids[2])) <= 1


def test_what_was_cancelled_or_skipped_does_not_count(single: Box) -> None:
    a = single.submit(*script(single, 1), group="g", stop_after=2)
    single.wait(a)
    held = single.submit("true", group="g", stop_after=2, hold=True)
    single.ok("cancel", str(held))
    single.submit("true", group="g", stop_after=2, after=[f"ok:{a}"])
    b = single.submit(*script(single, 0), group="g", stop_after=2)
    assert single.wait(b)["state"] == "succeeded"
    assert single.request("groups")["groups"] == []


def test_an_array_is_a_group_of_its_own(single: Box) -> None:
    single.ok("submit", "--array", "0-5", "--stop-after", "2", "--gpus", "0", "--", "false")
    single.wait(1, 2)
    waits_for(single, 3, "Limit", "group array:1 stopped after 2 failures in a row (jobs 1, 2)")
    assert single.job(3)["group"] == "array:1"
    plain = single.submit_many([["false"]], array={"indexes": [0, 1], "limit": 0})
    single.wait(*plain)
    assert single.job(plain[0])["group"] is None
    listed = single.ok("group", "list").splitlines()
    assert listed[1].split()[:6] == ["array:1", "stopped", "0", "4", "2", "1,2"]
    single.ok("group", "resume", "array:1")
    single.wait(3, 4)
    waits_for(single, 5, "Limit", "(jobs 3, 4)")


def test_a_large_array_is_one_too(box: Box) -> None:
    """Written in slices, of which the first does not know the template with its ids."""
    first, *_, last = box.submit_many(
        [["true"]], array={"indexes": list(range(500)), "limit": 0}, stop_after=3, hold=True
    )
    assert {box.job(n)["group"] for n in (first, last)} == {f"array:{first}"}


def test_jobs_are_chosen_by_group(box: Box) -> None:
    night = box.submit_many([["true"]] * 3, group="night", hold=True)
    day = box.submit_many([["true"]] * 2, group="day of days", hold=True, tags=["t"])
    array = box.submit_many([["true"]], array={"indexes": [1, 2, 3], "limit": 0}, hold=True)
    other = box.submit_many([["true"]], array={"indexes": [1, 2], "limit": 0}, hold=True, group="night")
    named = {"night": [*night, *other], "day of days": day, f"array:{array[0]}": array, f"array:{other[0]}": other}
    for name, ids in named.items():
        assert box.ok("list", "-q", "--group", name).split() == list(map(str, ids)), name
        assert [job["id"] for job in box.json("show", "--group", name)["jobs"]] == ids
        assert box.json("events", "--group", name)["events"][0]["job"] == ids[0]
        for number in ("0", "1"):
            assert (
                box.ok("list", "-q", "--all", "-n", number, "--group", name).split()
                == list(map(str, ids))[: int(number) or None]
            )
    for name in ("nigth", "array:2", "array:x", f"array:{2**62}", ""):
        assert box.ok("list", "-q", "--group", name) == ""
    assert box.ok("list", "-q", "--group", "night", "--tag", "t") == ""
    assert box.ok("release", "--group", "night", "--state", "held", f"1-{night[-1]}").split() == list(map(str, night))
    assert box.run("wait", "--group", "day of days", "--timeout", "0.1s").returncode == 124
    assert box.ok("cancel", "--group", "day of days").split() == list(map(str, day))
    assert box.run("wait", "--group", "day of days", "-q").returncode == 1
    assert box.ok("cancel", "--group", f"array:{array[0]}").split() == list(map(str, array))
    assert {box.job(n)["state"] for n in other} == {"held"}
    box.wait(*night)
    assert box.ok("retry", "--group", "day of days").split() == list(map(str, day))
    assert "--group" in box.fails(2, "cancel")


def test_a_daemon_that_knows_no_groups_takes_a_choice_by_group_for_no_job() -> None:
    """It reads states and tags, and leaves out what it does not know."""
    sent = Selection(states=("queued",), tags=("a",), groups=("g",)).to_json()
    assert Selection.from_json(sent) == Selection(states=("queued",), tags=("a",), groups=("g",))
    older = Selection.from_json({name: value for name, value in sent.items() if name != "groups"})
    assert len(older.tags) == 2 and "\0" in older.tags[1], "no job has such a tag: --tag refuses it"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["submit", "--stop-after", "2", "--", "true"], "--stop-after is for several jobs: name their --group"),
        (["submit", "--group", "g", "--stop-after", "0", "--", "true"], "--stop-after 0 is not from 1 to"),
        (["submit", "--group", "array:3", "--", "true"], "are those of arrays"),
        (["submit", "--group", "", "--", "true"], "--group is empty"),
        (["group", "resume", "nigth"], "there is no group 'nigth'"),
    ],
)
def test_bad_input(box: Box, args: list[str], said: str) -> None:
    done = box.run(*args)
    assert done.returncode in (1, 2) and said in done.stderr, done.stderr
    assert not box.request("list", sel={}, all=True)["jobs"]


def test_a_stop_survives_a_kill_a_restart_and_damage(single: Box) -> None:
    ids = single.submit_many([script(single, 1)] * 3, group="g", stop_after=2)
    single.wait(*ids[:2])
    waits_for(single, ids[2], "Limit", "group g stopped")
    single.kill_daemon()
    waits_for(single, ids[2], "Limit", "group g stopped after 2 failures in a row (jobs 1, 2)")
    single.kill_daemon()
    for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
        Path(single.state / name).unlink(missing_ok=True)
    (single.state / "queue.db").write_bytes(os.urandom(5000))
    waits_for(single, ids[2], "Limit", "group g stopped after 2 failures in a row (jobs 1, 2)")
    assert runs(single) == ["1", "2"]


@pytest.mark.parametrize(
    "point", ["record-before", "commit-before", "commit-after", "transition-after", "record-after"]
)
def test_whatever_the_daemon_dies_at_the_count_is_that_of_the_failures(single: Box, point: str) -> None:
    """The end of the second job is recorded with the count, or neither is; the next daemon goes on the same."""
    gate = single.folder / "gate"
    first = single.submit(*script(single, 1), group="g", stop_after=2)
    single.wait(first)
    wait_for_it = f'until [ -e "{gate}" ]; do sleep 0.02; done; echo "$GPUQ_JOB_ID" >> "{single.folder}/runs"; exit 1'
    second = single.submit("sh", "-c", wait_for_it, group="g", stop_after=2)
    single.wait_begun(second)
    third = single.submit(*script(single, 0), group="g", stop_after=2)
    single.kill_daemon()
    # while it takes back what runs: the start itself, and what it erases, are two commits
    single.setenv(GPUQ_CRASH_AT=f"{point}:3" if point.startswith("commit") else point)
    pid = single.daemon_pid()
    gate.touch()
    wait_until(lambda: gone(pid), "the crash")
    single.setenv(GPUQ_CRASH_AT=None)
    waits_for(single, third, "Limit", f"group g stopped after 2 failures in a row (jobs {first}, {second})")
    assert runs(single) == [str(first), str(second)]


def test_a_group_of_which_all_jobs_are_removed_is_forgotten(single: Box) -> None:
    ids = single.submit_many([["false"]] * 2, group="g", stop_after=2)
    single.wait(*ids)
    assert group_of(single, "g")["stopped_at"]
    single.ok("prune", "--all")
    assert single.request("groups")["groups"] == []
    single.ok("daemon", "restart")
    assert single.wait(single.submit("true", group="g", stop_after=2))["state"] == "succeeded"
