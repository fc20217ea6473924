"""The wall clock is set forward and back by a day, and the host sleeps: nothing begins wrongly, nothing is held up."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.daemon.clock import Change, Clocks, WallClock, compare
from gpuq.daemon.views import moment
from gpuq.model import Reason
from gpuq.policy.waiting import Waiting
from tests.fakeclock import FakeClock
from tests.harness import Box, wait_until
from tests.policy.build import make_job

DAY = 86400


# --- pure -----------------------------------------------------------------------------------------


@given(st.floats(0, 253402300798), st.sampled_from((0.0, 0.9999995, 0.0009999, 0.0005, 0.9994999)))
def test_moments_are_told_as_the_standard_library_tells_them(seconds: float, part: float) -> None:
    for at in (seconds, int(seconds) + part):
        told = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        assert moment(at) == told.replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("wall", "monotonic", "boot", "expected"),
    [
        (10, 10, 10, (0, 0)),
        (10.3, 10, 10, (0, 0)),  # the clocks are not read at one moment, and are slewed
        (DAY + 10, 10, 10, (DAY, 0)),
        (10 - DAY, 10, 10, (-DAY, 0)),
        (10, 1, 10, (0, 9)),  # suspended for 9 s
        (10 + DAY, 1, 10, (DAY, 9)),
        (3601, 1, 3601, (0, 3600)),
    ],
)
def test_what_happened_to_the_clock(wall: float, monotonic: float, boot: float, expected: tuple[float, float]) -> None:
    before = Clocks(1e9, 500.0, 700.0)
    assert compare(before, Clocks(1e9 + wall, 500.0 + monotonic, 700.0 + boot)) == Change(*expected)


def test_a_begin_time_that_had_come_may_lie_ahead_again() -> None:
    waiting = Waiting()
    jobs = {n: make_job(n, begin_at=float(begin)) for n, begin in ((1, 100), (2, 200), (3, 300))}
    jobs[4] = make_job(4)
    for job in jobs.values():
        waiting.put(job, 0, 250.0)
    assert [waiting.blocked(n) for n in jobs] == [None, None, Reason.BEGIN_TIME, None]
    for now, expected in ((150.0, [1, 4]), (50.0, [4]), (400.0, [1, 2, 3, 4])):
        for n in waiting.clock_set():
            waiting.put(jobs[n], 0, now)
        assert [n for n in jobs if waiting.blocked(n) is None] == expected
        assert sorted(n for ids in waiting.groups.values() for n in ids) == expected
        ahead = [begin for job in jobs.values() if (begin := job.begin_at or 0) > now]
        assert waiting.next_begin() == min(ahead, default=None)


@given(
    begins=st.lists(st.none() | st.integers(0, 50), max_size=8),
    nows=st.lists(st.integers(0, 50), min_size=1, max_size=8),
)
def test_whatever_the_clock_does_who_may_start_is_who_is_due_now(begins: list[int | None], nows: list[int]) -> None:
    jobs = {n: make_job(n, begin_at=begin) for n, begin in enumerate(begins, 1)}
    waiting = Waiting()
    for job in jobs.values():
        waiting.put(job, 0, nows[0])
    before = nows[0]
    for now in nows:
        again = waiting.clock_set() if now < before else waiting.due(now)
        for n in again:
            waiting.put(jobs[n], 0, now)
        before = now
        due = {n for n, job in jobs.items() if job.begin_at is None or job.begin_at <= now}
        assert {n for ids in waiting.groups.values() for n in ids} == due


def test_a_retry_is_not_put_off_by_the_step_of_a_clock() -> None:
    waiting = Waiting(longest_pause=600.0)
    waiting.put(make_job(1, attempt=1, begin_at=1000.0 + DAY), 0, 1000.0)
    waiting.put(make_job(2, attempt=0, begin_at=1000.0 + DAY), 0, 1000.0)
    assert waiting.next_begin() == 1600.0
    assert waiting.due(1601.0) == [1]


def test_the_alarm_rings_at_its_moment_and_at_once_when_that_has_passed() -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        rang = asyncio.Event()
        clock = WallClock(loop, rang.set, lambda: None)
        for away in (0.05, 0.0, -5.0, -time.time()):
            moment = time.time() + away
            clock.set(moment)
            await asyncio.wait_for(rang.wait(), 30)
            assert time.time() >= moment
            rang.clear()
        clock.set(time.time() + 3600)
        clock.set(None)
        await asyncio.sleep(0)
        assert not rang.is_set()
        clock.close()

    asyncio.run(live())


# --- a real daemon --------------------------------------------------------------------------------


@pytest.fixture
def clock(box: Box, tmp_path: Path) -> FakeClock:
    """The clock of the box's daemon, which runs."""
    made = FakeClock(tmp_path)
    box.ok("daemon", "start", env=made.env)
    return made


def told(box: Box, event: str) -> list[str]:
    lines = map(json.loads, (box.state / "daemon.log").read_text().splitlines())
    return [line["message"] for line in lines if line.get("event") == event]


def steps_told(box: Box, count: int) -> bool:
    return len(told(box, "clock")) == count


def test_set_forward_a_day_what_is_due_begins_at_once(box: Box, clock: FakeClock) -> None:
    tomorrow, later = (box.submit("true", begin_at=time.time() + hours * 3600) for hours in (20, 30))
    assert box.reason(tomorrow)[0] == "BeginTime"
    clock.set_by(DAY)
    assert box.wait(tomorrow)["state"] == "succeeded"
    assert box.reason(later)[0] == "BeginTime"
    assert told(box, "clock") == ["the wall clock was set forward by 1d"]


def test_set_back_a_day_what_had_come_waits_again_and_nothing_else_does(box: Box, clock: FakeClock) -> None:
    gate, begun = box.folder / "gate", box.folder / "begun"
    everything = len(os.sched_getaffinity(0))
    script = f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done'
    box.submit("sh", "-c", script, cpus=everything)
    wait_until(begun.exists, "the job")
    clock.set_by(DAY)
    wait_until(lambda: told(box, "clock"), "the word of the kernel")
    dated = box.submit("true", begin_at=time.time() + 3600, cpus=1)
    assert box.reason(dated)[0] == "Resources"
    clock.set_by(0)
    wait_until(lambda: box.reason(dated)[0] == "BeginTime", "the begin time to lie ahead again")
    gate.touch()
    assert box.wait(box.submit("true", cpus=everything))["state"] == "succeeded"
    assert box.job(dated)["state"] == "queued"
    assert told(box, "clock")[1:] == ["the wall clock was set back by 1d"]


def test_no_time_that_is_shown_is_negative(box: Box, clock: FakeClock) -> None:
    gate, begun = box.folder / "gate", box.folder / "begun"
    clock.set_by(DAY)
    wait_until(partial(steps_told, box, 1), "the first step")
    script = f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done'
    job = box.submit("sh", "-c", script, cpus=0, time_limit=3600.0)
    waiting = box.submit("true", begin_at=time.time() + 2 * DAY)
    wait_until(begun.exists, "the job")
    for step, now in enumerate((0, -DAY), 2):
        clock.set_by(now)
        wait_until(partial(steps_told, box, step), "the step")
        for words in (["list"], ["show", str(job), str(waiting)], ["why", str(waiting)], ["list", "--json"]):
            text = box.ok(*words)
            assert not re.search(r"(?<![\w-])-\d", text), text
    gate.touch()
    ended = box.wait(job)
    assert ended["state"] == "succeeded", "its time limit has not passed, whatever the clock says"
    for words in (["list", "--all"], ["show", str(job)]):
        text = box.ok(*words)
        assert not re.search(r"(?<![\w-])-\d", text), text
    events = box.request("events")["events"]
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    kinds = [event["kind"] for event in events if event["job"] == job]
    assert kinds == ["submitted", "started", "succeeded"]


def test_a_time_limit_passes_although_the_clock_is_set_back(box: Box, clock: FakeClock) -> None:
    job = box.submit("sleep", "600", time_limit=1.5)
    box.wait_state(job, "running")
    clock.set_by(-DAY)
    assert box.wait(job)["failure"] == "timeout"
