"""Imported by every interpreter that finds it (site, Python's library): has SQLite tell each statement.

Appends `PID FIRST-WORD` to the file $GPUQ_TEST_SQL. What SQLite tells is the library's own account
(https://sqlite.org/c3ref/trace_v2.html), whatever the program believes to do.
"""

import os
import sqlite3
from typing import Any

_LOG = os.environ.get("GPUQ_TEST_SQL")
_connect = sqlite3.connect


def _told(*args: Any, **more: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = _connect(*args, **more)
    file = os.open(_LOG or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    connection.set_trace_callback(lambda sql: os.write(file, b"%d %s\n" % (os.getpid(), sql.split()[0].encode())))
    return connection


if _LOG:
    sqlite3.connect = _told  # type: ignore[assignment]
