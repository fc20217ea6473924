"""Whether what stands in a column is of the kind that the schema gives it: SQLite itself keeps anything anywhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

#: What gpuq puts into a column of each type, in the words of typeof() (https://sqlite.org/datatype3.html, section 3).
_STORED = {"INTEGER": "integer", "TEXT": "text", "REAL": "real", "FLOAT": "real", "BLOB": "blob"}


#: What may be less than zero.
_SIGNED = frozenset({"priority", "exit_code"})
#: Times are before the year 10000, in seconds since the epoch.
_LATEST = 253402300800
#: What a start reads of each table: the jobs that live and what is theirs.
_LIVE_JOBS = "(SELECT id FROM jobs WHERE ended_at IS NULL)"
_ACTIVE_JOBS = "(SELECT id FROM jobs WHERE ended_at IS NULL AND state IN ('running', 'suspended'))"
READ_AT_STARTS = {
    "jobs": "ended_at IS NULL",
    "attempts": "ended_at IS NULL",
    "claims": f"job_id IN {_ACTIVE_JOBS}",
    "dependencies": f"job_id IN {_LIVE_JOBS}",
    "environments": "EXISTS (SELECT 1 FROM jobs WHERE env_hash = hash AND ended_at IS NULL)",
    "submissions": "rowid > (SELECT max(rowid) - 1000 FROM submissions)",
    **dict.fromkeys(("queues", "disabled_gpus", "job_groups"), "1"),
}


def misfit(conn: sqlite3.Connection, table: str) -> str:
    """An SQL condition, NULL or 0 where it does not hold: that a row has a value which gpuq cannot have put there."""
    wrong = []
    for column in conn.execute(f"PRAGMA table_info({table})").fetchall():
        name = column["name"]
        # most columns of most rows are NULL, which is the cheapest of all tests
        where_any = "" if column["notnull"] else f"{name} IS NOT NULL AND "
        wrong.append(f"{where_any}typeof({name}) != '{_STORED[column['type']]}'")
        if column["type"] not in ("TEXT", "BLOB") and name not in _SIGNED:
            wrong.append(f"{name} < 0")
        if name == "at" or name.endswith("_at"):
            wrong.append(f"{name} >= {_LATEST}")
    return "(" + " OR ".join(f"({test})" for test in wrong) + ")"


def misfits(conn: sqlite3.Connection, where: Mapping[str, str]) -> Iterator[str]:
    """Such a row, in words, of each table where there is one; `where` says of each which rows are looked at."""
    for table, looked_at in where.items():
        row = conn.execute(f"SELECT rowid FROM {table} WHERE {looked_at} AND {misfit(conn, table)} LIMIT 1").fetchone()
        if row is not None:
            yield f"row {row[0]} of the table {table} has a value that makes no sense"
