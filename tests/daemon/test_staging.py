"""Large submissions at a real daemon: all or none, whoever dies or goes away in the middle, and others are served."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from gpuq.client import Client
from gpuq.errors import BadRequest, GpuqError
from gpuq.store.staging import SLICE
from tests.harness import Box, wait_until

MANY = 3 * SLICE + 50

Making = Callable[..., "Submitter"]


def commands(start: int, count: int = MANY) -> list[list[str]]:
    return [["echo", str(n)] for n in range(start, start + count)]


class Submitter:
    """A client that sends a submission part by part."""

    def __init__(self, box: Box, count: int | None = 2 * MANY, **template: Any) -> None:
        self.client = Client.connect()
        template = {"cwd": str(box.folder), "gpus": 0, "hold": True, **template}
        self.head: dict[str, Any] = {"key": os.urandom(16).hex(), "template": template, "env": {}, "count": count}
        self.sent = 0

    def part(self, count: int = MANY, *, last: bool = False) -> dict[str, Any]:
        head, self.head = self.head, {"key": self.head["key"]}
        self.sent += count
        return self.client.request("submit", **head, commands=commands(self.sent - count, count), last=last)


@pytest.fixture
def submitter(box: Box) -> Iterator[Making]:
    """Makes clients, which all hang up when the test ends."""
    with ExitStack() as connections:

        def make(count: int | None = 2 * MANY, **template: Any) -> Submitter:
            made = Submitter(box, count, **template)
            connections.enter_context(made.client)
            return made

        yield make


def ids(box: Box) -> list[int]:
    found = box.request("list", sel={}, all=True, limit=None)
    assert found["total"] == len(found["jobs"])
    return sorted(job["id"] for job in found["jobs"])


def count(box: Box, table: str) -> int:
    with closing(sqlite3.connect(f"file:{box.state / 'queue.db'}?mode=ro", uri=True)) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.mark.parametrize("told", [True, False], ids=["count", "an older client, which does not say how many"])
def test_nothing_is_seen_before_the_last_part(box: Box, submitter: Making, told: bool) -> None:
    one = submitter(2 * MANY if told else None)
    assert one.part() == {"ok": True}
    assert ids(box) == [] and box.request("status")["jobs"] == {}
    assert box.json("events")["events"][-1]["kind"] == "daemon-started"
    assert one.part(last=True)["ids"] == [1, 2 * MANY]
    assert ids(box) == list(range(1, 2 * MANY + 1))
    for job_id in (1, SLICE, SLICE + 1, MANY, MANY + 1, 2 * MANY):
        job = box.job(job_id)
        assert job["command"] == ["echo", str(job_id - 1)] and job["name"] == "echo"
        assert [(event["kind"], event["data"]) for event in job["events"]] == [
            ("submitted", {"name": "echo", "held": True})
        ]


def test_two_at_once(box: Box, submitter: Making) -> None:
    one, two = submitter(), submitter()
    one.part()
    two.part()
    assert box.submit("true", gpus=0, hold=True) == 4 * MANY + 1
    assert two.part(last=True)["ids"] == [2 * MANY + 1, 4 * MANY]
    assert one.part(last=True)["ids"] == [1, 2 * MANY]
    assert ids(box) == list(range(1, 4 * MANY + 2))
    assert box.job(2 * MANY + 1)["command"] == ["echo", "0"]


def test_they_run_in_order_whichever_was_seen_first(box: Box, submitter: Making) -> None:
    one, two = submitter(2, hold=False, cpus=10**4), submitter(2, hold=False)
    with pytest.raises(GpuqError, match="CPUs"):
        one.part(1)
    one = submitter(SLICE + 1, hold=False)
    one.part(1)
    assert two.part(2, last=True)["ids"] == [SLICE + 2, SLICE + 3]
    assert one.part(SLICE, last=True)["ids"] == [1, SLICE + 1]
    assert box.wait(*range(1, SLICE + 4))["state"] == "succeeded"


def test_a_client_that_goes_away_leaves_nothing(box: Box, submitter: Making) -> None:
    one = submitter()
    one.part()
    assert count(box, "jobs") == MANY
    one.client.socket.close()
    wait_until(lambda: count(box, "jobs") == 0, "the removal")
    wait_until(lambda: count(box, "submissions") == 0, "the removal")
    assert box.submit("true", gpus=0, hold=True) == 1


def test_ids_of_nobody_are_told(box: Box, submitter: Making) -> None:
    one = submitter()
    one.part()
    assert box.submit("true", gpus=0, hold=True) == 2 * MANY + 1
    one.client.socket.close()
    wait_until(lambda: count(box, "jobs") == 1, "the removal")
    wait_until(lambda: box.json("events")["events"][-1]["kind"] == "withdrawn", "the event")
    assert box.json("events")["events"][-1]["data"] == {"ids": [[1, 2 * MANY]]}
    assert box.submit("true", gpus=0, hold=True) == 2 * MANY + 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(MANY, False), (MANY - 1, True)], "1,300 commands was announced, and 1,299"),
        ([(MANY, False), (MANY + 1, True)], "1,300 commands was announced, and 1,301"),
    ],
)
def test_a_count_that_is_wrong_queues_nothing(
    box: Box, submitter: Making, parts: list[tuple[int, bool]], message: str
) -> None:
    one = submitter()
    with pytest.raises(BadRequest, match=message):
        for size, last in parts:
            one.part(size, last=last)
    wait_until(lambda: count(box, "jobs") == 0, "the removal")
    assert box.submit("true", gpus=0, hold=True) == 1


def test_a_part_that_is_refused_takes_the_others_along(box: Box, submitter: Making) -> None:
    one = submitter()
    one.part()
    with pytest.raises(GpuqError, match="NUL"):
        one.client.request("submit", key=one.head["key"], commands=[["echo", "\0"]], last=True)
    assert count(box, "jobs") == 0
    assert submitter(1).part(1, last=True)["ids"] == [1, 1]


def test_the_same_key_twice_at_once_is_queued_once(box: Box, submitter: Making) -> None:
    one, two = submitter(), submitter()
    two.head["key"] = one.head["key"]
    one.part()
    two.part()
    first = two.part(last=True)["ids"]
    assert one.part(last=True)["ids"] == first == [2 * MANY + 1, 4 * MANY]
    assert ids(box) == list(range(2 * MANY + 1, 4 * MANY + 1))
    assert count(box, "jobs") == 2 * MANY


def test_a_daemon_that_dies_in_the_middle(box: Box) -> None:
    """Whichever of its transactions the daemon dies at, the client's next try counts, and only that."""
    text = "".join(f"echo {n}\n" for n in range(MANY))
    died = 0
    for times, point in enumerate(
        [*(f"commit-{side}:{n}" for n in (3, 5, 7) for side in ("before", "after")), "reply-before"]
    ):
        box.setenv(GPUQ_CRASH_AT=point)
        pid = box.daemon_pid()
        box.setenv(GPUQ_CRASH_AT=None)
        found = box.ok("submit", "--gpus", "0", "--hold", "--from", "-", stdin=text).split()
        assert [int(word) for word in found] == list(range(times * MANY + 1, (times + 1) * MANY + 1))
        assert len(ids(box)) == (times + 1) * MANY == count(box, "jobs")
        died += box.daemon_pid() != pid
        box.kill_daemon()
    assert died >= 6, "the last commit may come before the seventh"


@pytest.mark.parametrize("condition", ["ok", "any", "failed"])
def test_what_it_depends_on_ends_meanwhile(box: Box, submitter: Making, condition: str) -> None:
    gate = box.folder / "gate"
    waited = box.submit("sh", "-c", f'until [ -e "{gate}" ]; do sleep 0.02; done', gpus=0)
    open_ = box.submit("true", gpus=0, hold=True)
    one = submitter(hold=False, after=[f"{condition}:{waited}", f"any:{open_}"])
    one.part()
    gate.touch()
    assert box.wait(waited)["state"] == "succeeded"
    first, last = one.part(last=True)["ids"]
    states = box.request("status")["jobs"]
    if condition == "failed":
        assert states == {"held": 1}
        assert [event["kind"] for event in box.job(last)["events"]] == ["submitted", "skipped"]
        assert box.job(first)["note"] == box.job(last)["note"] != None  # noqa: E711
    else:
        assert states == {"held": 1, "queued": 2 * MANY}
        assert box.reason(last) == ("Dependency", f"waits for any:{open_}")


def test_a_large_array(box: Box) -> None:
    indexes = list(range(5, 5 + MANY))
    found = box.submit_many([["echo", "x"]], gpus=0, hold=True, array={"indexes": indexes, "limit": 2})
    assert found == list(range(1, MANY + 1))
    jobs = box.request("list", sel={}, all=True, limit=None)["jobs"]
    assert sorted((job["id"], job["array"]["index"]) for job in jobs) == [
        (n + 1, index) for n, index in enumerate(indexes)
    ]
    assert {job["array"]["id"] for job in jobs} == {1}


def test_a_submission_that_was_not_acknowledged_does_not_run_though_its_row_is_lost(
    box: Box, submitter: Making
) -> None:
    acknowledged = box.submit("true", gpus=0, hold=True)
    submitter(hold=False).part()
    box.kill_daemon()
    with closing(sqlite3.connect(box.state / "queue.db")) as base, base:
        assert base.execute("DELETE FROM submissions WHERE unfinished").rowcount == 1
        assert base.execute("SELECT count(*) FROM jobs").fetchone()[0] > 1
    assert box.ok("list", "--all", "-q").split() == [str(acknowledged)]
    assert box.request("status")["jobs"] == {"held": 1}
    assert [event["kind"] for event in box.request("events")["events"] if event["job"] is not None] == ["submitted"]
