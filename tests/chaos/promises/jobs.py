"""Promises about jobs: what was acknowledged is there, their histories are legal, and nothing starts too early."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.evidence import ENDED, Evidence

#: What each event makes of a job, and from which states it may come. None keeps the state.
LEGAL: dict[str, tuple[frozenset[str], str | None]] = {
    "held": (frozenset({"queued"}), "held"),
    "released": (frozenset({"held"}), "queued"),
    "ready": (frozenset({"queued", "held"}), None),
    "started": (frozenset({"queued"}), "running"),
    "ending": (frozenset({"running", "suspended"}), None),
    "over-claim": (frozenset({"running", "suspended"}), None),
    "succeeded": (frozenset({"running", "suspended"}), "succeeded"),
    "failed": (frozenset({"running", "suspended"}), "failed"),
    "cancelled": (frozenset({"running", "suspended", "queued", "held"}), "cancelled"),
    "skipped": (frozenset({"queued", "held"}), "skipped"),
    "retried": (ENDED, "queued"),
    "requeued": (frozenset({"running", "suspended"}), "queued"),
    "retrying": (frozenset({"running", "suspended"}), "queued"),
    "suspended": (frozenset({"running"}), "suspended"),
    "resumed": (frozenset({"suspended"}), "running"),
}
#: The events that show that what was asked of a job was done.
MADE_OF = {
    "cancel": {"cancelled", "ending"},
    "hold": {"held"},
    "release": {"released"},
    "retry": {"retried"},
    "suspend": {"suspended"},
    "resume": {"resumed"},
}
#: With which events of a job a dependency on it is content.
CONTENT = {"ok": {"succeeded"}, "failed": {"failed"}, "any": ENDED, "started": {"started"}}


def acknowledged_submits_exist_once(e: Evidence) -> Iterator[str]:
    acknowledged = {line["key"]: line["ids"] for line in e.noted("submitted")}
    for line in e.noted("submit"):
        ids = sorted(job_id for tag in line["tags"] for job_id in e.by_tag.get(tag, ()))
        if line["key"] in acknowledged:
            first, last = acknowledged[line["key"]]
            if ids != list(range(first, last + 1)) or len(ids) != line["count"]:
                yield f"submit {line['tags']} was acknowledged as {first}-{last}, and there are {ids}"
        elif len(ids) not in (0, line["count"]):
            yield f"submit {line['tags']} was not acknowledged, and {len(ids)} of {line['count']} jobs are there: {ids}"
    for key, (first, last) in acknowledged.items():
        if key in e.submissions and e.submissions[key] != (first, last):
            yield f"submission {key} is {e.submissions[key]}, and {first}-{last} was acknowledged"


def acknowledged_changes_were_made(e: Evidence) -> Iterator[str]:
    """What was acknowledged had been written down before: its event lies between question and answer."""
    asked = {line["key"]: line["t"] for line in e.noted("change")}
    for line in e.noted("changed"):
        for job_id in line["ids"]:
            events = [row for row in e.events.get(job_id, ()) if row["kind"] in MADE_OF[line["op"]]]
            if not any(asked[line["key"]] <= row["at"] <= line["t"] for row in events):
                yield f"{line['op']} of job {job_id} was acknowledged, and nothing was written: {line}"


def states_agree(e: Evidence) -> Iterator[str]:
    for job_id, job in e.jobs.items():
        numbers = sorted(number for owner, number in e.attempts if owner == job_id)
        if numbers != list(range(1, job["attempt"] + 1)):
            yield f"job {job_id} is at attempt {job['attempt']}, and has attempts {numbers}"
            continue
        last = e.attempts.get((job_id, job["attempt"]))
        if last is not None and (job["state"] in ("running", "suspended")) != (last["ended_at"] is None):
            yield f"job {job_id} is {job['state']}, and its last attempt ended at {last['ended_at']}"
        if (job["state"] in ENDED) != (job["ended_at"] is not None):
            yield f"job {job_id} is {job['state']}, and ended at {job['ended_at']}"
        if job["state"] == "succeeded" and (last is None or (last["exit_code"], last["failure"]) != (0, None)):
            yield f"job {job_id} succeeded, and its last attempt is {last}"
        if job["state"] == "failed" and (last is None or not job["failure"] or job["failure"] != last["failure"]):
            yield f"job {job_id} failed as {job['failure']}, and its last attempt is {last}"
        if job["state"] == "cancelled" and not e.asked(job_id, "cancel"):
            yield f"job {job_id} is cancelled, and nobody asked for it"


def histories_are_legal(e: Evidence) -> Iterator[str]:
    for job_id, job in e.jobs.items():
        history = e.events.get(job_id, [])
        kinds = [row["kind"] for row in history]
        if not kinds or kinds[0] != "submitted":
            yield f"job {job_id} begins with {kinds[:1]}"
            continue
        state = "held" if json.loads(history[0]["data"]).get("held") else "queued"
        for kind in kinds[1:]:
            if kind not in LEGAL or state not in LEGAL[kind][0]:
                yield f"job {job_id}: {kind} while it was {state}; its history is {kinds}"
                break
            state = LEGAL[kind][1] or state
        else:
            if state != job["state"]:
                yield f"job {job_id} is {job['state']}, and by its history {state}: {kinds}"
            if kinds.count("started") != job["attempt"]:
                yield f"job {job_id} is at attempt {job['attempt']}, and was started {kinds.count('started')} times"


def dependencies_hold(e: Evidence) -> Iterator[str]:
    for line in e.noted("submit"):
        for job_id in (job_id for tag in line["tags"] for job_id in e.by_tag.get(tag, ())):
            first = e.begun.get((job_id, 1))
            if first is None or any(row["kind"] == "retried" for row in e.events.get(job_id, ())):
                continue
            for clause in line["after"]:
                wanted = [text.partition(":") for text in clause.split("|")]
                came = [
                    row["at"]
                    for condition, _, on in wanted
                    for row in e.events.get(int(on), ())
                    if row["kind"] in CONTENT[condition]
                ]
                if not any(at <= first[0]["t"] for at in came):
                    yield f"job {job_id} began before {clause} held"


def arrays_keep_their_limit(e: Evidence) -> Iterator[str]:
    changes: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for (job_id, _), row in e.attempts.items():
        job = e.jobs[job_id]
        if job["array_limit"]:
            changes[job["array_id"]].append((row["started_at"], 1))
            if row["ended_at"] is not None:
                changes[job["array_id"]].append((row["ended_at"], -1))
    for array_id, steps in changes.items():
        running = 0
        for at, step in sorted(steps):
            running += step
            if running > e.jobs[array_id]["array_limit"]:
                yield f"array {array_id}: {running} ran at {at}, and {e.jobs[array_id]['array_limit']} may"


def what_is_held_or_cancelled_does_not_start(e: Evidence) -> Iterator[str]:
    held = {tag: line["t"] for line in e.noted("submit") if line["held"] for tag in line["tags"]}
    for (job_id, number), row in e.attempts.items():
        stopped = "held at submit" if e.tag(job_id) in held else None
        for line in e.changes.get(job_id, ()):
            if line["t"] >= row["started_at"]:
                break
            if line["e"] == "change" and line["op"] in ("release", "retry"):
                stopped = None  # asked for; it may have been done, answered or not
            elif line["e"] == "changed" and line["op"] in ("hold", "cancel"):
                stopped = f"{line['op']} was acknowledged at {line['t']}"
        if stopped is not None:
            yield f"job {job_id} attempt {number} started at {row['started_at']}, though {stopped}"


def everything_ended(e: Evidence) -> Iterator[str]:
    for job_id, job in e.jobs.items():
        if job["state"] not in ENDED:
            yield f"job {job_id} ({e.kind(job_id)}) is still {job['state']}"
