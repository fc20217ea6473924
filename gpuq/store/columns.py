"""Whether what stands in a column is of the kind that the schema gives it: SQLite itself keeps anything anywhere."""

from __future__ import annotations

import sqlite3

#: What gpuq puts into a column of each type, in the words of typeof() (https://sqlite.org/datatype3.html, section 3).
_STORED = {
    "INTEGER": "'integer'",
    "TEXT": "'text'",
    "REAL": "'real'",
    "FLOAT": "'real'",
    "BLOB": "'blob'",
}


def misfit(conn: sqlite3.Connection, table: str) -> str:
    """An SQL condition: that a row of the table has a value which gpuq cannot have put there."""
    wrong = []
    for column in conn.execute(f"PRAGMA table_info({table})").fetchall():
        allowed = _STORED[column["type"]] + ("" if column["notnull"] else ",'null'")
        wrong.append(f"typeof({column['name']}) NOT IN ({allowed})")
    return "(" + " OR ".join(wrong) + ")"
