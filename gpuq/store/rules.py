"""What holds for many jobs until somebody changes it: queues, disabled GPUs, and how the jobs of groups have fared.

Small tables, whose rows are written as a whole. Each is told to the file of changes, and comes back from there where
the database is damaged. Every write is in a transaction of the caller's, with its event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpuq.model import DEFAULT_QUEUE, LIVE, DisabledGpu, Group, Queue
from gpuq.store.rows import clean, dump, request_of

if TYPE_CHECKING:
    from gpuq.model import Request
    from gpuq.store.queries import Queries
    from gpuq.store.store import Store

#: The tables, and the column that names a row.
KEYS: Mapping[str, str] = {"queues": "name", "disabled_gpus": "uuid", "job_groups": "name"}
Rule = Queue | DisabledGpu | Group
_LIVE = ",".join(f"'{state}'" for state in sorted(LIVE))


def put(store: Store, rule: Rule) -> None:
    """Write a rule, new or changed."""
    match rule:
        case Queue():
            put_row(store, "queues", _queue_values(rule))
        case DisabledGpu(uuid, why, at):
            put_row(store, "disabled_gpus", {"uuid": uuid, "why": clean(why), "at": at})
        case Group(name, failures, failed, stopped_at):
            values = {"name": name, "failures": failures, "failed": dump(failed), "stopped_at": stopped_at}
            put_row(store, "job_groups", values)


def remove(store: Store, rule: Rule) -> None:
    table = {Queue: "queues", DisabledGpu: "disabled_gpus", Group: "job_groups"}[type(rule)]
    remove_row(store, table, rule.uuid if isinstance(rule, DisabledGpu) else rule.name)


def put_row(store: Store, table: str, values: Mapping[str, Any]) -> None:
    """Write a row as it stands in the table. Raises sqlite3.Error for one that cannot stand there."""
    marks = ",".join(f":{column}" for column in values)
    store.conn.execute(f"INSERT OR REPLACE INTO {table} ({','.join(values)}) VALUES ({marks})", dict(values))
    if store.changes is not None:
        store.changes.rule(table, values[KEYS[table]], values)


def remove_row(store: Store, table: str, key: str) -> None:
    store.conn.execute(f"DELETE FROM {table} WHERE {KEYS[table]} = ?", (key,))
    if store.changes is not None:
        store.changes.rule(table, key, None)


def rows(store: Queries) -> Iterable[tuple[str, dict[str, Any]]]:
    """Every row, with its table."""
    for table, key in KEYS.items():
        for row in store.conn.execute(f"SELECT * FROM {table} ORDER BY {key}"):
            yield table, dict(row)


def read(store: Queries) -> list[Rule]:
    """Every rule. Raises StoreDamaged for a row that makes no sense."""
    return [
        store.made(f"the row {row[KEYS[table]]!r:.60} of {table}", lambda t=table, r=row: READERS[t](r))  # type: ignore[misc]
        for table, row in rows(store)
    ]


def _queue_values(queue: Queue) -> dict[str, Any]:
    return {
        "name": queue.name,
        "priority": queue.priority,
        "gpus": None if queue.gpus is None else dump(sorted(queue.gpus)),
        "default_time": queue.default_time,
        "max_time": queue.max_time,
        "max_jobs": queue.max_jobs,
        "max_gpus": queue.max_gpus,
        "paused": int(queue.paused),
        "draining": int(queue.draining),
        "why": clean(queue.why),
    }


def _queue(row: Mapping[str, Any]) -> Queue:
    gpus = None if row["gpus"] is None else frozenset(_texts(row["gpus"]))
    plain = ("name", "priority", "default_time", "max_time", "max_jobs", "max_gpus", "why")
    return Queue(
        **{name: row[name] for name in plain}, gpus=gpus, paused=bool(row["paused"]), draining=bool(row["draining"])
    )


def _texts(text: str) -> list[str]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{text!r:.60} is no list of texts")
    return found


def _group(row: Mapping[str, Any]) -> Group:
    failed = tuple(json.loads(row["failed"]))
    if not all(isinstance(job_id, int) for job_id in failed):
        raise ValueError(f"{row['failed']!r:.60} is no list of ids")
    return Group(row["name"], row["failures"], failed, row["stopped_at"])


#: What each row must make sense to.
READERS = {
    "queues": _queue,
    "disabled_gpus": lambda row: DisabledGpu(row["uuid"], row["why"], row["at"]),
    "job_groups": _group,
}


# --- jobs of a queue or a group -------------------------------------------------------------------


def live_in(store: Queries, queue: str | None = None) -> dict[tuple[str, str], int]:
    """How many jobs that have not ended are in each queue, or in that one, by queue and state."""
    one = "" if queue is None else " AND queue = ?"
    found = store.conn.execute(
        f"""SELECT queue, state, count(*) FROM jobs
            WHERE state IN ({_LIVE}) AND ended_at IS NULL AND {store.seen}{one} GROUP BY queue, state""",
        () if queue is None else (queue,),
    )
    return {(row[0], row[1]): row[2] for row in found}


def live_in_groups(store: Queries) -> dict[str, dict[str, int]]:
    """How many jobs that have not ended are in each group, by state."""
    found: dict[str, dict[str, int]] = {}
    for row in store.conn.execute(
        f"""SELECT job_group, state, count(*) FROM jobs WHERE job_group IS NOT NULL
            AND state IN ({_LIVE}) AND ended_at IS NULL AND {store.seen} GROUP BY job_group, state"""
    ):
        found.setdefault(row[0], {})[row[1]] = row[2]
    return found


def unseen_in(store: Queries, queue: str) -> int:
    """How many jobs of submissions that nobody sees yet are to be in the queue."""
    return sum(
        store.conn.execute(
            "SELECT count(*) FROM jobs WHERE id BETWEEN ? AND ? AND queue = ?", (one.first, one.last, queue)
        ).fetchone()[0]
        for one in store.unseen
    )


def requests_in(store: Queries, queue: str) -> dict[Request, int]:
    """What the jobs that wait in a queue ask for, and how many ask for it."""
    found = store.conn.execute(
        f"""SELECT gpus_asked, vram, cpus, ram, most_gpus, which_gpus, count(*) FROM jobs
            WHERE state IN ('held', 'queued') AND ended_at IS NULL AND {store.seen} AND queue = ?
            GROUP BY 1, 2, 3, 4, 5, 6""",
        (queue,),
    )
    return {request_of(*tuple(row)[:6]): row[6] for row in found}


def asking(store: Queries, queue: str, request: Request, most: int) -> list[int]:
    """The first ids of the jobs that wait in a queue and ask for that."""
    found = store.conn.execute(
        f"""SELECT id, gpus_asked, vram, cpus, ram, most_gpus, which_gpus FROM jobs
            WHERE state IN ('held', 'queued') AND ended_at IS NULL AND {store.seen} AND queue = ?
            AND (gpus_asked, cpus, ram, most_gpus) = (?, ?, ?, ?) AND vram IS ? ORDER BY id""",
        (queue, request.gpus, request.cpus, request.ram, request.most, request.vram),
    )
    ids = (row["id"] for row in found if request_of(*tuple(row)[1:7]) == request)
    return [job_id for job_id, _ in zip(ids, range(most), strict=False)]


def has_jobs(store: Queries, group: str) -> bool:
    """Whether there is a job of that group, ended or not."""
    return store.conn.execute("SELECT 1 FROM jobs WHERE job_group = ? LIMIT 1", (group,)).fetchone() is not None


def lost_queues(store: Queries) -> list[str]:
    """Queues that jobs are in which have not ended, and of which there is no row."""
    known = {row["name"] for row in store.conn.execute("SELECT name FROM queues")} | {DEFAULT_QUEUE}
    return sorted({queue for queue, _ in live_in(store)} - known)
