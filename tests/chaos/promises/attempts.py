"""Promises about attempts: each runs once, ends as it says, under its name, and is tried again as the rules say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.chaos.evidence import Evidence, Living

#: How an attempt of each kind of job fails when nobody interferes.
FAILURE = {
    "ok": None,
    "background": None,
    "gpu": None,
    "exit": "exit",
    "children": "exit",
    "signal": "signal",
    "oom": "vram-oom",
    "limit": "timeout",
    "stubborn": "timeout",
    "parricide": "lost",
    "warned": "exit",
    "chatty": None,
    "gate": None,
}
#: Bytes that a log of a `chatty` job may have, with the line that tells of what is left out.
LOG_LIMIT = 64 * 1024 + 200


def attempts_begin_once(e: Evidence) -> Iterator[str]:
    for key, lines in e.begun.items():
        if len(lines) > 1:
            yield f"job {key[0]} attempt {key[1]} began {len(lines)} times: {lines}"
        row = e.attempts.get(key)
        if row is None:
            yield f"job {key[0]} attempt {key[1]} began, and the database does not know it: {lines[0]}"
        elif row["note"] == "never started":
            yield f"job {key[0]} attempt {key[1]} began, and is recorded as never started: {lines[0]}"
        elif lines[0]["tag"] != e.tag(key[0]):
            yield f"job {key[0]} is {e.tag(key[0])}, and {lines[0]['tag']} ran as it"
    places: dict[tuple[str, Any], int] = {}
    for key, lines in e.begun.items():
        other = places.setdefault((lines[0]["tag"], lines[0]["index"]), key[0])
        if other != key[0]:
            yield f"{lines[0]['tag']} ran as job {other} and as job {key[0]}"


def every_status_is_true(e: Evidence) -> Iterator[str]:
    for key, row in e.attempts.items():
        if row["ended_at"] is None:
            continue
        name = f"job {key[0]} attempt {key[1]} ({e.kind(key[0])})"
        begun, said = e.begun.get(key), e.said.get(key)
        status = (row["exit_code"], row["signal"])
        if row["failure"] == "lost":
            if not e.may_be_lost(key):
                yield f"{name} is lost, though nobody killed its supervisor: {row['note']}"
        elif status == (None, None) and row["failure"] is None and e.asked(key[0], "cancel") and e.may_be_lost(key):
            continue  # it was being cancelled when its supervisor was killed
        elif said is not None and status != (said[0].get("exit"), said[0].get("signal")):
            yield f"{name} said {said[0]}, and exit code and signal are recorded as {status}"
        elif said is None and row["exit_code"] is not None:
            yield f"{name} did not come to its end, and exit code {row['exit_code']} is recorded"
        elif begun is not None and status == (None, None):
            yield f"{name} began, and ended without exit code and signal: {row['failure']}, {row['note']}"


def every_failure_is_named(e: Evidence) -> Iterator[str]:
    for key, row in e.attempts.items():
        if row["ended_at"] is None or row["note"] == "never started":
            continue
        allowed = {FAILURE[e.kind(key[0])]} if e.kind(key[0]) in FAILURE else {row["failure"]}
        if allowed == {"vram-oom"} and not e.has_gpus(key):
            allowed = {"exit"}  # a line of its log proves nothing
        if e.asked(key[0], "cancel"):
            allowed.add(None)
        if e.may_be_lost(key):
            allowed |= {"lost"} if key in e.begun else {"lost", "launch"}
        if row["failure"] not in allowed:
            name = f"job {key[0]} attempt {key[1]} ({e.kind(key[0])})"
            yield f"{name} has failure {row['failure']}, and not one of {allowed}: {row['note']}"


def retries_follow_the_rules(e: Evidence) -> Iterator[str]:
    """A job is tried again as often as its rules say, one after a reboot only if they name `lost`; claims grow so."""
    for line in e.noted("submit"):
        for job_id in (job_id for tag in line["tags"] for job_id in e.by_tag.get(tag, ())):
            yield from _retries_of(e, job_id, [_rule(text) for text in line["retry"]])


def _rule(text: str) -> tuple[set[str], int, float]:
    """Failures, how often, and by how much the claim grows, of `2`, `lost:3`, `vram-oom:2*1.5`."""
    names, _, rest = text.rpartition(":")
    times, _, growth = rest.partition("*")
    return {name for name in names.split(",") if name}, int(times), float(growth or 1)


def _retries_of(e: Evidence, job_id: int, rules: list[tuple[set[str], int, float]]) -> Iterator[str]:
    spent = [0] * len(rules)
    number = 0
    cancelled = False
    for row in e.events.get(job_id, ()):
        if row["kind"] == "started":
            number, cancelled = number + 1, False
        if row["kind"] == "ending":
            cancelled |= json.loads(row["data"]).get("why") == "cancel"
        if row["kind"] == "retried":
            spent = [0] * len(rules)  # its owner's wish begins the count anew
        if row["kind"] not in ("failed", "retrying"):
            continue
        failure = json.loads(row["data"]).get("failure")
        named = [n for n, rule in enumerate(rules) if failure in rule[0]]
        left = [
            n
            for n in named or [n for n, rule in enumerate(rules) if not rule[0] and failure != "lost"]
            if spent[n] < rules[n][1]
        ]
        growth = rules[left[0]][2] if left else 1.0
        now, most = e.claimed(job_id, number), e.largest_claim(job_id, number)
        if cancelled or (growth > 1 and (now is None or now >= most)):
            left = []  # nobody wants it any more, or it cannot grow any more
        if bool(left) != (row["kind"] == "retrying"):
            yield f"job {job_id} attempt {number} {row['kind']} as {failure}, with {spent} of the rules {rules} spent"
            return
        after = e.claimed(job_id, number + 1)
        if left and now is not None and after is not None:
            wanted = now if growth == 1 else min(most, -(-int(now * growth) // 2**20) * 2**20)
            if after != wanted:
                yield f"job {job_id} claims {after} bytes after {now} and {failure}, and not {wanted}"
        for n in left[:1]:
            spent[n] += 1


def a_reboot_loses_what_ran_and_nothing_else(e: Evidence) -> Iterator[str]:
    """What had begun and not come to its end is lost; what had begun and ended is what it is."""
    for reboot in e.noted("reboot"):
        for key, lines in e.begun.items():
            row = e.attempts.get(key)
            if row is None or row["ended_at"] is None or key in e.said or key in e.orphaned:
                continue
            alive = lines[0]["t"] < reboot["since"] and row["ended_at"] > reboot["t"]
            if alive and row["failure"] != "lost" and not e.asked(key[0], "cancel"):
                yield f"job {key[0]} attempt {key[1]} ran when the host was rebooted, and is {row['failure']}"


def no_process_outlives_its_attempt(e: Evidence, alive: Living, *, final: bool) -> Iterator[str]:
    for pid, key in alive:
        row = e.attempts.get(key)
        if final or row is None or row["ended_at"] is not None:
            yield f"process {pid} of job {key[0]} attempt {key[1]} lives; the attempt is {row}"


def long_logs_keep_beginning_and_end(e: Evidence) -> Iterator[str]:
    for key, log in e.logs.items():
        tag = e.tag(key[0]).encode()
        if len(log) > LOG_LIMIT:
            yield f"the log of job {key[0]} attempt {key[1]} has {len(log)} bytes"
        whole = log.startswith(b"begin " + tag + b"\n") and log.endswith(b"end " + tag + b"\n")
        if key in e.said and not e.may_be_lost(key) and not whole:
            yield f"the log of job {key[0]} attempt {key[1]} begins {log[:40]!r} and ends {log[-40:]!r}"
