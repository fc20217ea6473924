"""What the judge reads: the database, the jobs' trace and logs, the clients' journals, and /proc.

It imports nothing of gpuq.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections import defaultdict
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Attempt = tuple[int, int]
#: Pid and attempt of processes.
Living = list[tuple[int, Attempt]]
ENDED = frozenset({"succeeded", "failed", "cancelled", "skipped"})


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

    def has_gpus(self, key: Attempt) -> bool:
        return bool(self._claimed.get(key))

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
