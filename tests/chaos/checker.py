"""The judge: reads the database, the jobs' trace, the clients' journals and /proc, and says which promises are broken.

It imports nothing of gpuq and shares no rule with it. `python -m tests.chaos.checker FOLDER` judges kept evidence.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Attempt = tuple[int, int]
#: Pid and attempt of processes.
Living = list[tuple[int, Attempt]]

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
ENDED = frozenset({"succeeded", "failed", "cancelled", "skipped"})
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
#: Which ends of a job a dependency is content with.
CONTENT = {"ok": {"succeeded"}, "failed": {"failed"}, "any": ENDED}


@dataclass
class Evidence:
    """Everything that was written down."""

    jobs: dict[int, Row]
    attempts: dict[Attempt, Row]
    claims: list[Row]
    events: dict[int, list[Row]]
    submissions: dict[str, tuple[int, int]]
    trace: list[Row]
    journal: list[Row]
    damage: list[str] = field(default_factory=list)
    #: of the jobs that write more than they may
    logs: dict[Attempt, bytes] = field(default_factory=dict)

    @cached_property
    def begun(self) -> dict[Attempt, list[Row]]:
        return self._trace("begin")

    @cached_property
    def said(self) -> dict[Attempt, list[Row]]:
        """How attempts said that they end."""
        return self._trace("end")

    def _trace(self, event: str) -> dict[Attempt, list[Row]]:
        found: dict[Attempt, list[Row]] = defaultdict(list)
        for line in self.trace:
            if line["e"] == event:
                found[line["job"], line["attempt"]].append(line)
        return found

    def noted(self, event: str) -> list[Row]:
        return [line for line in self.journal if line["e"] == event]

    @cached_property
    def by_tag(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for job_id in self.jobs:
            found[self.tag(job_id)].append(job_id)
        return found

    def tag(self, job_id: int) -> str:
        """The mark that the client gave the command."""
        match = re.search(r"\btag=(\S+)", " ".join(json.loads(self.jobs[job_id]["command"])))
        return match[1] if match else ""

    def kind(self, job_id: int) -> str:
        match = re.search(r"(\S+) tag=", " ".join(json.loads(self.jobs[job_id]["command"])))
        return match[1] if match else ""

    @cached_property
    def changes(self) -> dict[int, list[Row]]:
        """What was asked of each job, and what was acknowledged, in the order of time."""
        found: dict[int, list[Row]] = defaultdict(list)
        for line in self.journal:
            if line["e"] in ("change", "changed"):
                for job_id in line["ids"]:
                    found[job_id].append(line)
        for lines in found.values():
            lines.sort(key=lambda line: float(line["t"]))
        return found

    def ends(self, job_id: int) -> list[Row]:
        """The events with which a job ended."""
        return [row for row in self.events.get(job_id, ()) if row["kind"] in ENDED]

    def claimed(self, job_id: int, number: int) -> int | None:
        """Bytes that an attempt claimed on each of its GPUs, None for none or all of them."""
        found = self._claimed.get((job_id, number), ())
        return found[0] if found else None

    def largest_claim(self, job_id: int, number: int) -> int:
        """The most that as many GPUs as the attempt has can give at the same time."""
        cards = self.noted("cards")[0]
        sizes = sorted(cards["totals"].values(), reverse=True)
        return int(sizes[len(self._claimed.get((job_id, number), [0])) - 1]) - int(cards["margin"])

    @cached_property
    def _claimed(self) -> dict[Attempt, list[int | None]]:
        found: dict[Attempt, list[int | None]] = defaultdict(list)
        for claim in self.claims:
            found[claim["job_id"], claim["attempt"]].append(claim["bytes"])
        return found

    def asked(self, job_id: int, *ops: str) -> bool:
        return any(line["op"] in ops for line in self.changes.get(job_id, ()))

    @cached_property
    def orphaned(self) -> set[Attempt]:
        """Attempts whose supervisor was killed."""
        found = {(line["job"], line["attempt"]) for line in self.noted("kill-supervisor")}
        found |= {(line["attempt"][0], line["attempt"][1]) for line in self.noted("point") if line["attempt"]}
        return found | {(line["job"], line["attempt"]) for line in self.trace if line["e"] == "kills-supervisor"}

    def may_be_lost(self, key: Attempt) -> bool:
        """Whether its supervisor, or everything, was killed while it ran."""
        row = self.attempts[key]
        ended = row["ended_at"] or float("inf")
        return key in self.orphaned or any(
            row["started_at"] <= reboot["t"] and ended >= reboot["since"] for reboot in self.noted("reboot")
        )


# --- reading --------------------------------------------------------------------------------------


def read(folder: Path) -> Evidence:
    """The evidence in a folder that nobody writes to any more."""
    damage: list[str] = []
    journal: list[Row] = []
    for path in sorted((folder / "journal").glob("*.jsonl")):
        journal += _lines(path, damage)
    trace = _lines(folder / "trace", damage)
    with closing(sqlite3.connect(folder / "state" / "queue.db")) as db:
        db.row_factory = sqlite3.Row
        damage += [f"the database: {row[0]}" for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        made = db.execute("PRAGMA user_version").fetchone()[0] > 0

        def table(name: str) -> list[Row]:
            return [dict(row) for row in db.execute(f"SELECT * FROM {name} ORDER BY rowid")] if made else []

        events: dict[int, list[Row]] = defaultdict(list)
        for row in table("events"):
            events[row["job_id"]].append(row)
        found = Evidence(
            jobs={row["id"]: row for row in table("jobs")},
            attempts={(row["job_id"], row["number"]): row for row in table("attempts")},
            claims=table("claims"),
            events=events,
            submissions={row["key"]: (row["first_id"], row["last_id"]) for row in table("submissions")},
            trace=trace,
            journal=journal,
            damage=damage,
        )
    for key, row in found.attempts.items():
        if found.kind(key[0]) == "chatty" and row["ended_at"] is not None:
            with suppress(FileNotFoundError):
                found.logs[key] = Path(row["log_path"]).read_bytes()
    return found


def _lines(path: Path, damage: list[str]) -> list[Row]:
    """JSON lines; the last one may still be being written."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if line.endswith(b"\n"):
                damage.append(f"{path.name}, line {number}, is no JSON")
    return found


def living(state: Path) -> Living:
    """Pid and attempt of every process that carries a job's environment of this state folder."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, KeyError, ValueError):
                words = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                env = dict(word.split(b"=", 1) for word in words if b"=" in word)
                if env[b"GPUQ_STATE_DIR"] == os.fsencode(state):
                    found.append((int(name), (int(env[b"GPUQ_JOB_ID"]), int(env[b"GPUQ_ATTEMPT"]))))
    return found


# --- the promises ---------------------------------------------------------------------------------


def evidence_is_whole(e: Evidence) -> Iterator[str]:
    yield from e.damage


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
        if cancelled or (growth > 1 and now is not None and now >= most):
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


def no_card_is_over_claimed(e: Evidence) -> Iterator[str]:
    yield from over_claims([e])
    totals = e.noted("cards")[0]["totals"]
    for line in e.trace:
        if line["e"] == "card" and line["used"] > totals[line["uuid"]]:
            yield f"{line['used']} bytes of {line['uuid']} were in use: {line}"


def over_claims(boxes: list[Evidence]) -> Iterator[str]:
    """More claimed of a card at one time than there is, by one daemon or several.

    Among several a claim of which no process lives any more is nobody's, before its own daemon comes back to say so.
    """
    cards = boxes[0].noted("cards")[0]
    changes: dict[str, list[tuple[float, int, str, int]]] = defaultdict(list)
    for number, e in enumerate(boxes):
        for claim in e.claims:
            key = (claim["job_id"], claim["attempt"])
            row = e.attempts[key]
            if len(boxes) > 1 and (key in e.orphaned or row["failure"] == "lost" or row["note"] == "never started"):
                continue
            room = cards["totals"][claim["uuid"]] - cards["margin"]
            size = room if claim["bytes"] is None else claim["bytes"]
            name = f"job {key[0]} attempt {key[1]}" + (f" of box {number}" if len(boxes) > 1 else "")
            changes[claim["uuid"]].append((row["started_at"], 1, name, size))
            if row["ended_at"] is not None:
                # one that ended and one that starts at the same instant do not meet
                changes[claim["uuid"]].append((row["ended_at"], 0, name, -size))
    for uuid, steps in changes.items():
        claimed, live = 0, set[str]()
        for at, begins, name, size in sorted(steps):
            claimed += size
            (live.add if begins else live.discard)(name)
            if claimed > cards["totals"][uuid] - cards["margin"]:
                yield f"at {at} {claimed} bytes of {uuid} were claimed by {sorted(live)}"


def dependencies_hold(e: Evidence) -> Iterator[str]:
    for line in e.noted("submit"):
        for job_id in (job_id for tag in line["tags"] for job_id in e.by_tag.get(tag, ())):
            first = e.begun.get((job_id, 1))
            if first is None or any(row["kind"] == "retried" for row in e.events.get(job_id, ())):
                continue
            for condition, _, on in (text.partition(":") for text in line["after"]):
                ends = [row for row in e.ends(int(on)) if row["kind"] in CONTENT[condition]]
                if not any(row["at"] <= first[0]["t"] for row in ends):
                    yield f"job {job_id} began before job {on} was {condition}"


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


def only_the_expected_was_said(e: Evidence) -> Iterator[str]:
    for line in e.journal:
        if line["e"] in ("error", "hangs", "traceback"):
            yield str(line)


def no_process_outlives_its_attempt(e: Evidence, alive: Living, *, final: bool) -> Iterator[str]:
    for pid, key in alive:
        row = e.attempts.get(key)
        if final or row is None or row["ended_at"] is not None:
            yield f"process {pid} of job {key[0]} attempt {key[1]} lives; the attempt is {row}"


def everything_ended(e: Evidence) -> Iterator[str]:
    for job_id, job in e.jobs.items():
        if job["state"] not in ENDED:
            yield f"job {job_id} ({e.kind(job_id)}) is still {job['state']}"


def every_wait_was_answered(e: Evidence) -> Iterator[str]:
    answers = {line["key"]: line for line in e.journal if line["e"] in ("waited", "ran", "followed")}
    for line in e.journal:
        if line["e"] not in ("wait", "run", "follow"):
            continue
        answer = answers.get(line["key"])
        ids = [line["id"]] if "id" in line else e.by_tag.get(line["tag"], [])
        if answer is None:
            yield f"{line} has no answer"
        elif line["e"] == "follow":
            if answer["code"] != (0 if e.jobs.get(line["id"], {}).get("log_path") else 1):
                yield f"logs -f {line['id']} exited with {answer['code']}: {answer['err']}"
        elif not ids:
            if answer["code"] != 5:
                yield f"run {line['tag']} exited with {answer['code']}, and there is no such job"
        elif answer["code"] not in (codes := {code for job_id in ids for code in _codes(e, job_id)}):
            yield f"{line} of job {ids} was answered with {answer['code']}, and not one of {codes}: {answer['err']}"
        elif line["e"] == "run":
            yield from _printed(e, ids[0], line["tag"], answer["out"])


def _codes(e: Evidence, job_id: int) -> Iterator[int]:
    """The exit codes that `wait` may have given, by the ends in the job's history."""
    for row in e.ends(job_id):
        data = json.loads(row["data"])
        code, number = data.get("exit_code"), data.get("signal")
        if row["kind"] == "succeeded":
            yield 0
        elif data.get("failure") == "timeout":
            yield 128 + (number or 15)
        else:
            yield code or (128 + number if number else 1)


def _printed(e: Evidence, job_id: int, tag: str, out: str) -> Iterator[str]:
    """What `run` printed is all that the job did, if its last attempt was let come to its end."""
    last = (job_id, e.jobs[job_id]["attempt"])
    if last in e.said and f"begin {tag}\n" not in out + "\n":
        yield f"run {tag} (job {job_id}) printed no beginning: {out!r}"
    if last in e.said and f"end {tag}\n" not in out:
        yield f"run {tag} (job {job_id}) printed no end: {out!r}"


def long_logs_keep_beginning_and_end(e: Evidence) -> Iterator[str]:
    for key, log in e.logs.items():
        tag = e.tag(key[0]).encode()
        if len(log) > LOG_LIMIT:
            yield f"the log of job {key[0]} attempt {key[1]} has {len(log)} bytes"
        whole = log.startswith(b"begin " + tag + b"\n") and log.endswith(b"end " + tag + b"\n")
        if key in e.said and not e.may_be_lost(key) and not whole:
            yield f"the log of job {key[0]} attempt {key[1]} begins {log[:40]!r} and ends {log[-40:]!r}"


PROMISES: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    evidence_is_whole,
    acknowledged_submits_exist_once,
    attempts_begin_once,
    every_status_is_true,
    every_failure_is_named,
    retries_follow_the_rules,
    a_reboot_loses_what_ran_and_nothing_else,
    acknowledged_changes_were_made,
    states_agree,
    histories_are_legal,
    no_card_is_over_claimed,
    dependencies_hold,
    arrays_keep_their_limit,
    what_is_held_or_cancelled_does_not_start,
    long_logs_keep_beginning_and_end,
    only_the_expected_was_said,
)
AT_THE_END: tuple[Callable[[Evidence], Iterator[str]], ...] = (everything_ended, every_wait_was_answered)


def check(e: Evidence, alive: Living, *, final: bool) -> list[str]:
    """What is broken, each with the promise that it breaks; `final` when all should have come to its end."""
    broken = [f"{p.__name__}: {text}" for p in PROMISES + (AT_THE_END if final else ()) for text in p(e)]
    name = no_process_outlives_its_attempt.__name__
    return broken + [f"{name}: {text}" for text in no_process_outlives_its_attempt(e, alive, final=final)]


def figures(e: Evidence) -> dict[str, Any]:
    """How much was looked at."""
    lost = sum(row["failure"] == "lost" for row in e.attempts.values())
    points = {line["name"] for line in e.noted("point")}
    return {
        "jobs": len(e.jobs),
        "attempts": len(e.attempts),
        "begun": len(e.begun),
        "lost_by_killed_supervisors_or_reboots": lost,
        "acknowledged_submits": len(e.noted("submitted")),
        "requests_unanswered": len(e.noted("unanswered")),
        "retries": sum(row["kind"] == "retrying" for rows in e.events.values() for row in rows),
        "suspended": sum(row["kind"] == "suspended" for rows in e.events.values() for row in rows),
        "requeued": sum(row["kind"] == "requeued" for rows in e.events.values() for row in rows),
        "crash_points": len(points),
    }


def main() -> int:
    folder = Path(sys.argv[1])
    broken = check(read(folder), living(folder / "state"), final=True)
    print("\n".join(broken) or "no promise is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
