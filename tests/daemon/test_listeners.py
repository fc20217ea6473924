"""Who listens to many jobs is told everything, once, whether or not it comes in pages."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.client import Client
from gpuq.daemon import awaiting, looking
from gpuq.daemon.hub import Ranges
from gpuq.protocol import Message
from tests.harness import Box

MANY = 3 * looking.PAGE


def following(client: Client, **fields: object) -> Iterator[Message]:
    """Events as they come, one by one."""
    for message in client.stream("events", follow=True, **fields):
        yield from message.get("events", [message["event"]] if "event" in message else [])


@pytest.mark.parametrize("pages", [True, False])
def test_a_follower_of_many_is_told_each_change_once(box: Box, pages: bool) -> None:
    gate = box.submit("true", hold=True)
    with Client.connect() as client:
        events = following(client, pages=pages, limit=1, sel={"ranges": [[gate, gate + MANY]]})
        next(events)
        ids = box.submit_many([["true"]] * MANY, hold=True)
        other = box.submit("true", hold=True)
        box.request("cancel", sel={"ranges": [[gate, other]]})
        told = [next(events) for _ in range(2 * MANY + 1)]
        box.request("retry", sel={"ranges": [[gate, gate]]})
        assert [next(events)["kind"] for _ in range(2)] == ["retried", "started"]
    assert [event["job"] for event in told[:MANY]] == ids, "one row stands for all of them"
    assert sorted(event["job"] for event in told[MANY:]) == [gate, *ids]
    assert {event["kind"] for event in told[:MANY]} == {"submitted"}


def test_all_events_come_in_pages_and_go_on_within_a_row(box: Box) -> None:
    ids = box.submit_many([["true"]] * MANY, hold=True)
    with Client.connect() as client:
        pages = [message["events"] for message in client.stream("events", pages=True)]
    told = [event for page in pages for event in page]
    assert len(pages) > MANY // looking.PAGE and max(map(len, pages)) <= looking.PAGE
    assert told == box.request("events")["events"]
    submitted = [event for event in told if event["kind"] == "submitted"]
    assert [event["job"] for event in submitted] == ids
    middle = submitted[MANY // 2]
    with Client.connect() as client:
        rest = list(client.stream("events", pages=True, since=middle["id"], since_job=middle["job"]))
    assert [event["job"] for page in rest for event in page["events"]] == ids[MANY // 2 + 1 :]
    assert len(json.loads(box.ok("events", "-n", "0", "--json"))["events"]) == len(told)


def test_a_wait_for_many_ends_with_the_last_and_tells_of_few(box: Box) -> None:
    ids = box.submit_many([["true"]] * 30, hold=True)
    with box.started("wait", f"1-{ids[-1]}") as waiting, box.started("wait", "-q", f"1-{ids[-1] + 100}") as quiet:
        box.request("cancel", sel={"ranges": [[1, 29]]})
        assert waiting.poll() is None
        box.request("release", sel={"ranges": [[30, 30]]})
        out, err = waiting.communicate(timeout=30)
        assert waiting.returncode == 1
        assert quiet.communicate(timeout=30)[0].split() == [str(n) for n in ids]
    assert out == ""
    assert err.splitlines() == [
        *(f"gpuq: job {n} cancelled" for n in range(1, 21)),
        "gpuq: 30 jobs ended: 29 cancelled, 1 succeeded",
    ]
    whole = json.loads(box.run("wait", "--json", "1-30").stdout)
    assert [job["id"] for job in whole["jobs"]] == ids


def test_a_wait_for_any_of_many_is_woken_by_one(box: Box) -> None:
    ids = box.submit_many([["true"]] * 30, hold=True)
    with Client.connect() as client:
        client.send("wait", sel={"ranges": [[1, 30]]}, any=True, brief=True)
        box.request("release", sel={"ranges": [[17, 17]]})
        told = client.receive()
    assert (told["ended"], told["counts"], [job["id"] for job in told["jobs"]]) == ([[17, 17]], {"succeeded": 1}, [17])
    assert box.run("wait", "--any", f"1-{ids[-1]}").returncode == 0


def test_a_wait_by_tag_is_answered_in_pages(box: Box) -> None:
    ids = box.submit_many([["true"]] * MANY, hold=True, tags=["mine"])
    box.submit("true", hold=True)
    with Client.connect() as client:
        client.send("wait", sel={"tags": ["mine"]}, pages=True)
        box.request("cancel", sel={"tags": ["mine"]})
        pages = [client.receive()["jobs"]]
        while len([job for page in pages for job in page]) < MANY:
            pages.append(client.receive()["jobs"])
    assert [job["id"] for page in pages for job in page] == ids
    assert max(map(len, pages)) <= awaiting.PAGE


@given(ranges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))), job_id=st.integers(0, 31))
def test_ranges_hold_what_is_in_one_of_them(ranges: list[tuple[int, int]], job_id: int) -> None:
    made = Ranges(ranges)
    assert (job_id in made) == any(low <= job_id <= high for low, high in ranges)
    assert all(high + 1 < low for (_, high), (low, _) in zip(made.spans, made.spans[1:], strict=False))
