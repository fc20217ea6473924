"""The checker can fail: a true story is accepted, and each lie in it is found out."""

from __future__ import annotations

import copy
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.checker import PROMISES, check
from tests.chaos.evidence import Evidence, living, read

GIB = 1024**3
CARD = "GPU-0"


def job(job_id: int, kind: str, tag: str, state: str, **more: Any) -> dict[str, Any]:
    ended = 100.0 + job_id if state not in ("queued", "held", "running") else None
    command = json.dumps(["python", "job.py", "trace", kind, f"tag={tag}"])
    row = {"id": job_id, "command": command, "state": state, "attempt": 1, "ended_at": ended, "failure": None}
    return row | {"array_id": None, "array_limit": None, "log_path": "log", **more}


def attempt(job_id: int, number: int, start: float, end: float | None, **outcome: Any) -> dict[str, Any]:
    row = {"job_id": job_id, "number": number, "started_at": start, "ended_at": end}
    return row | {"exit_code": None, "signal": None, "failure": None, "note": None, **outcome}


def event(kind: str, at: float, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "at": at, "data": json.dumps(data)}


def began(job_id: int, number: int, tag: str, at: float, index: int | None = None) -> dict[str, Any]:
    return {"e": "begin", "job": job_id, "attempt": number, "tag": tag, "index": index, "t": at}


def said(job_id: int, number: int, tag: str, **how: int) -> dict[str, Any]:
    return {"e": "end", "job": job_id, "attempt": number, "tag": tag, "index": None, "t": 9.0, **how}


def note(event: str, t: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {"e": event, "t": t, **fields}


def submit(key: str, tags: list[str], count: int, **more: Any) -> dict[str, Any]:
    return note("submit", key=key, tags=tags, count=count, **{"held": False, "after": [], "retry": [], **more})


@pytest.fixture
def story() -> Evidence:
    """1 succeeded, after a retry; 2 failed; 3 was cancelled while held; 4 and 5 share a card; 6 is lost; 7 an array."""
    jobs = [
        job(1, "exit", "a.1", "failed", attempt=2, failure="exit"),
        job(2, "signal", "a.2", "failed", failure="signal"),
        job(3, "ok", "a.3", "cancelled", attempt=0, log_path=None),
        job(4, "gpu", "a.4", "succeeded"),
        job(5, "gpu", "a.5", "succeeded"),
        job(6, "parricide", "a.6", "failed", failure="lost"),
        job(7, "ok", "a.7", "succeeded", array_id=7, array_limit=1),
        job(8, "ok", "a.7", "succeeded", array_id=7, array_limit=1),
    ]
    attempts = [
        attempt(1, 1, 1.0, 2.0, exit_code=3, failure="exit"),
        attempt(1, 2, 3.0, 4.0, exit_code=3, failure="exit"),
        attempt(2, 1, 1.0, 2.0, signal=9, failure="signal"),
        attempt(4, 1, 5.0, 8.0, exit_code=0),
        attempt(5, 1, 6.0, 7.0, exit_code=0),
        attempt(6, 1, 1.0, 3.0, failure="lost"),
        attempt(7, 1, 1.0, 2.0, exit_code=0),
        attempt(8, 1, 2.0, 3.0, exit_code=0),
    ]
    good = [event("submitted", 0.0), event("started", 1.0), event("succeeded", 2.0, exit_code=0)]
    events = {
        1: [
            event("submitted", 0.0),
            event("started", 1.0),
            event("retrying", 2.0, failure="exit"),
            event("started", 3.0),
            event("failed", 4.0, failure="exit", exit_code=3),
        ],
        2: [event("submitted", 0.0), event("started", 1.0), event("failed", 2.0, failure="signal", signal=9)],
        3: [event("submitted", 0.0, held=True), event("cancelled", 5.0)],
        4: good,
        5: good,
        6: [event("submitted", 0.0), event("started", 1.0), event("failed", 3.0, failure="lost")],
        7: good,
        8: good,
    }
    trace = [began(n, k, f"a.{n}", 1.5) for n, k in ((1, 1), (1, 2), (2, 1), (4, 1), (6, 1))]
    trace += [began(5, 1, "a.5", 6.1)]
    trace += [began(7, 1, "a.7", 1.5, 0), began(8, 1, "a.7", 2.5, 1)]
    trace += [said(1, 1, "a.1", exit=3), said(1, 2, "a.1", exit=3), said(2, 1, "a.2", signal=9)]
    trace += [said(n, 1, f"a.{n}", exit=0) for n in (4, 5)] + [said(n, 1, "a.7", exit=0) for n in (7, 8)]
    trace += [{"e": "kills-supervisor", "job": 6, "attempt": 1, "tag": "a.6", "index": None, "t": 2.0}]
    trace += [{"e": "card", "job": 4, "attempt": 1, "uuid": CARD, "used": 6 * GIB, "t": 6.5}]
    journal = [
        note("cards", totals={CARD: 8 * GIB}, margin=GIB // 4),
        submit("k1", ["a.1"], 1, retry=["1"]),
        note("submitted", key="k1", ids=[1, 1]),
        submit("k2", ["a.2", "a.3"], 2),
        note("submitted", key="k2", ids=[2, 3]),
        submit("k4", ["a.4"], 1),
        submit("k5", ["a.5"], 1, after=["ok:7"]),
        note("submitted", key="k5", ids=[5, 5]),
        submit("k6", ["a.6"], 1),
        submit("k7", ["a.7"], 2),
        note("submitted", key="k7", ids=[7, 8]),
        note("change", 4.5, op="cancel", ids=[3], key="c"),
        note("changed", 5.0, op="cancel", ids=[3], key="c"),
        note("wait", id=1, key="w1"),
        note("waited", key="w1", code=3, err=""),
        note("run", tag="a.4", key="r4"),
        note("ran", key="r4", code=0, out="begin a.4\nend a.4\n", err=""),
        note("follow", id=3, key="f3"),
        note("followed", key="f3", code=1, err="it never ran"),
    ]
    return Evidence(
        jobs={row["id"]: row for row in jobs},
        attempts={(row["job_id"], row["number"]): row for row in attempts},
        claims=[
            {"job_id": 4, "attempt": 1, "uuid": CARD, "bytes": 4 * GIB},
            {"job_id": 5, "attempt": 1, "uuid": CARD, "bytes": 3 * GIB},
        ],
        events=events,
        submissions={"k1": (1, 1), "k2": (2, 3)},
        trace=trace,
        journal=journal,
    )


def test_a_true_story_is_believed(story: Evidence) -> None:
    assert check(story, [], final=True) == []


def drop(lines: list[dict[str, Any]], **like: Any) -> None:
    """Take away the one line that is like this."""
    found = [line for line in lines if all(line.get(name) == value for name, value in like.items())]
    assert len(found) == 1, found
    lines.remove(found[0])


def forget_job(e: Evidence) -> None:
    del e.jobs[3], e.events[3]


def double_job(e: Evidence) -> None:
    e.jobs[9], e.events[9] = {**e.jobs[3], "id": 9}, e.events[3]


def submit_half(e: Evidence) -> None:
    drop(e.journal, e="submitted", key="k7")
    del e.jobs[8], e.events[8], e.attempts[8, 1]
    drop(e.trace, e="begin", job=8)


def set_attempt(job_id: int, number: int = 1, **fields: Any) -> Callable[[Evidence], None]:
    return lambda e: e.attempts[job_id, number].update(fields)


def set_job(job_id: int, **fields: Any) -> Callable[[Evidence], None]:
    return lambda e: e.jobs[job_id].update(fields)


def add_trace(line: dict[str, Any]) -> Callable[[Evidence], None]:
    return lambda e: e.trace.append(line)


def add_note(line: dict[str, Any]) -> Callable[[Evidence], None]:
    return lambda e: e.journal.append(line)


def add_event(job_id: int, kind: str) -> Callable[[Evidence], None]:
    return lambda e: e.events.update({job_id: [*e.events[job_id], event(kind, 50.0)]})


def set_note(key: str, event: str, **fields: Any) -> Callable[[Evidence], None]:
    def change(e: Evidence) -> None:
        next(line for line in e.journal if line["e"] == event and line.get("key") == key).update(fields)

    return change


def lose_status(e: Evidence) -> None:
    drop(e.trace, e="end", job=2)
    e.attempts[2, 1]["signal"] = None


def lose_attempt(e: Evidence) -> None:
    del e.attempts[1, 1]


def cancel_in_secret(e: Evidence) -> None:
    drop(e.journal, e="change", op="cancel")
    drop(e.journal, e="changed", op="cancel")


def start_what_is_held(e: Evidence) -> None:
    set_note("k1", "submit", held=True)(e)


def start_what_was_cancelled(e: Evidence) -> None:
    e.journal.append(note("changed", 2.5, op="hold", ids=[1], key="h"))


def claim_the_same_again(e: Evidence) -> None:
    """An attempt that ran out of memory, and one that claims as much."""
    set_note("k1", "submit", retry=["vram-oom:1*1.5"])(e)
    for row in (e.jobs[1], e.attempts[1, 1], e.attempts[1, 2]):
        row["failure"] = "vram-oom"
    e.events[1] = [{**row, "data": row["data"].replace('exit"', 'vram-oom"')} for row in e.events[1]]
    e.claims += [{"job_id": 1, "attempt": number, "uuid": CARD, "bytes": GIB} for number in (1, 2)]


def reboot_unnoticed(e: Evidence) -> None:
    drop(e.trace, e="end", job=2)
    e.journal.append(note("reboot", 1.9, since=1.8))


LIES: list[tuple[str, str, Callable[[Evidence], None]]] = [
    ("a job is gone", "acknowledged_submits_exist_once", forget_job),
    ("a job is there twice", "acknowledged_submits_exist_once", double_job),
    ("half of a submission", "acknowledged_submits_exist_once", submit_half),
    ("another answer", "acknowledged_submits_exist_once", lambda e: e.submissions.update(k1=(2, 2))),
    ("an attempt ran twice", "attempts_begin_once", add_trace(began(2, 1, "a.2", 3.0))),
    ("an unknown attempt ran", "attempts_begin_once", add_trace(began(2, 2, "a.2", 3.0))),
    ("a command ran as two jobs", "attempts_begin_once", add_trace(began(3, 1, "a.2", 3.0))),
    ("what ran is called never started", "attempts_begin_once", set_attempt(2, note="never started")),
    ("a wrong exit code", "every_status_is_true", set_attempt(1, exit_code=4)),
    ("a wrong signal", "every_status_is_true", set_attempt(2, signal=15)),
    ("a code from nowhere", "every_status_is_true", lambda e: drop(e.trace, e="end", job=4)),
    ("no status", "every_status_is_true", lose_status),
    ("lost for no reason", "every_status_is_true", lambda e: drop(e.trace, e="kills-supervisor")),
    ("a wrong failure", "every_failure_is_named", set_attempt(2, failure="exit")),
    ("a failure without a name", "every_failure_is_named", set_attempt(2, failure=None)),
    ("one retry too many", "retries_follow_the_rules", set_note("k1", "submit", retry=[])),
    ("one retry too few", "retries_follow_the_rules", set_note("k1", "submit", retry=["2"])),
    ("a retry for another failure", "retries_follow_the_rules", set_note("k1", "submit", retry=["lost:3"])),
    ("a claim that did not grow", "retries_follow_the_rules", claim_the_same_again),
    ("a reboot that lost nothing", "a_reboot_loses_what_ran_and_nothing_else", reboot_unnoticed),
    ("a cancel that was not written", "acknowledged_changes_were_made", set_note("c", "changed", t=4.9)),
    ("a log over its limit", "long_logs_keep_beginning_and_end", lambda e: e.logs.update({(4, 1): b"x" * 70_000})),
    ("a log without its end", "long_logs_keep_beginning_and_end", lambda e: e.logs.update({(4, 1): b"begin a.4\n"})),
    ("an attempt is missing", "states_agree", lose_attempt),
    ("a running job has ended", "states_agree", set_job(2, state="running")),
    ("an ended job runs", "states_agree", set_attempt(2, ended_at=None)),
    ("an end without a time", "states_agree", set_job(2, ended_at=None)),
    ("a failure succeeded", "states_agree", set_job(2, state="succeeded")),
    ("another failure", "states_agree", set_job(2, failure="exit")),
    ("cancelled by nobody", "states_agree", cancel_in_secret),
    ("an impossible event", "histories_are_legal", add_event(4, "resumed")),
    ("an unknown event", "histories_are_legal", add_event(4, "eaten")),
    ("no beginning", "histories_are_legal", lambda e: e.events.update({4: e.events[4][1:]})),
    ("state and history differ", "histories_are_legal", add_event(2, "retried")),
    ("a start is missing", "histories_are_legal", set_job(3, attempt=1)),
    ("too much is claimed", "no_card_is_over_claimed", lambda e: e.claims[1].update(bytes=4 * GIB)),
    ("a whole card is shared", "no_card_is_over_claimed", lambda e: e.claims[1].update(bytes=None)),
    ("too much is used", "no_card_is_over_claimed", lambda e: e.trace[-1].update(used=9 * GIB)),
    ("began too early", "dependencies_hold", set_note("k5", "submit", after=["failed:7"])),
    ("an array over its limit", "arrays_keep_their_limit", set_attempt(8, started_at=1.5)),
    ("what is held started", "what_is_held_or_cancelled_does_not_start", start_what_is_held),
    ("what was held later started", "what_is_held_or_cancelled_does_not_start", start_what_was_cancelled),
    ("a client met an error", "only_the_expected_was_said", add_note(note("error", message="?"))),
    ("a job never ends", "everything_ended", set_job(3, state="held", ended_at=None)),
    ("no answer", "every_wait_was_answered", lambda e: drop(e.journal, e="waited")),
    ("a wrong answer", "every_wait_was_answered", set_note("w1", "waited", code=0)),
    ("run gave up", "every_wait_was_answered", set_note("r4", "ran", code=5)),
    ("run printed half", "every_wait_was_answered", set_note("r4", "ran", out="begin a.4\n")),
    ("logs gave up", "every_wait_was_answered", set_note("f3", "followed", code=5)),
    ("a torn line", "evidence_is_whole", lambda e: e.damage.append("trace, line 3")),
]


@pytest.mark.parametrize(("promise", "lie"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_each_lie_is_found_out(story: Evidence, promise: str, lie: Callable[[Evidence], None]) -> None:
    told = copy.deepcopy(story)
    lie(told)
    assert promise in {line.partition(":")[0] for line in check(told, [], final=True)}


def test_every_promise_was_broken_once() -> None:
    final = {"everything_ended", "every_wait_was_answered"}
    assert {promise for _, promise, _ in LIES} == {promise.__name__ for promise in PROMISES} | final


def test_a_living_process_is_found_out(story: Evidence, tmp_path: Path) -> None:
    """In /proc, by its environment; and only where its attempt has ended, as long as jobs may run."""
    env = {**os.environ, "GPUQ_STATE_DIR": str(tmp_path), "GPUQ_JOB_ID": "4", "GPUQ_ATTEMPT": "1"}
    code = "print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        found = living(tmp_path)
        one.kill()
    assert found == [(one.pid, (4, 1))]
    assert "no_process_outlives_its_attempt" in check(story, found, final=True)[0]
    assert "no_process_outlives_its_attempt" in check(story, found, final=False)[0]
    story.attempts[4, 1]["ended_at"] = None
    assert not any("no_process" in line for line in check(story, found, final=False))


def test_evidence_is_read_from_files_and_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "journal" / "c.jsonl").write_bytes(b'{"e": "cards"}\nnot json\n{"e": "torn')
    (tmp_path / "trace").write_bytes(b'{"e": "begin", "job": 1, "attempt": 1}\n')
    with closing(sqlite3.connect(tmp_path / "state" / "queue.db")) as db:
        for table in ("jobs (id)", "attempts (job_id, number)", "claims (x)", "events (job_id)"):
            db.execute(f"CREATE TABLE {table}")
        db.execute("CREATE TABLE submissions (key, first_id, last_id)")
        db.execute("INSERT INTO jobs VALUES (7)")
        db.execute("INSERT INTO submissions VALUES ('k', 7, 8)")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    found = read(tmp_path)
    assert (list(found.jobs), found.submissions, list(found.begun)) == ([7], {"k": (7, 8)}, [(1, 1)])
    assert found.damage == ["c.jsonl, line 2, is no JSON"]
