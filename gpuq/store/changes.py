"""The file `changes`: what each commit made of jobs, a line each, beside the database and independent of it.

Its last line tells a database that is older than what was acknowledged, and its lines bring back jobs whose rows are
lost. It is not synced: after a power cut the database is the truth. When it has grown it is written anew, with the jobs
that live. Only the daemon's store appends to it.

A line is a JSON object with `e`, the last event of the commit, and any of `jobs` (rows; columns that several share
stand in `common`), `set` (columns that changed, of an `id` or alike of the ranges `ids`), `submissions` (key, first and
last id), `environments`, `removed` (ids), `rules` (table, key, row or null). Rows in `staged`, `of` a submission that
is written in slices, count once a later line names it in `shown`.
"""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gpuq.protocol import spans
from gpuq.store.rows import dump

log = logging.getLogger("gpuq.changes")

NAME = "changes"
#: A file that is found with more bytes than this, and PER_JOB for each job that lives, is written anew; then again once
#: it has this and as much again, so that no more is rewritten than was added.
LARGE = 8 * 1024 * 1024
PER_JOB = 3 * 1024
#: Jobs of one submission on one line.
PER_LINE = 100

Values = dict[str, Any]


class Changes:
    """Collects what a transaction changes; `commit` appends it, `rollback` forgets it. Nothing here raises."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: dict[str, list[Any]] = {}
        self._fd = -1
        self._size = 0
        self._limit = LARGE
        #: something could not be written: the file has to be written anew
        self.behind = True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def open(self, live: int) -> None:
        """Go on with the file that is there; `live` jobs have to have room in it."""
        self._limit = LARGE + PER_JOB * live
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            if not stat.S_ISREG(os.lstat(self._path).st_mode):
                return
            self._fd = os.open(self._path, flags)
            self._size = os.fstat(self._fd).st_size
            ends = self._size == 0 or os.pread(self._fd, 1, self._size - 1) == b"\n"
        except OSError:
            return
        self.behind = not ends or self._size > self._limit

    # --- while a transaction goes on --------------------------------------------------------------

    def jobs(self, common: Values, rows: Sequence[Values], staged: str | None = None) -> None:
        """Jobs that are new, or are written as a whole: the columns that they share, and those of each. With `staged`
        they are of a submission that is not shown yet. So many to a line that damage to one does not cost them all.
        """
        kind, of = ("jobs", {}) if staged is None else ("staged", {"of": staged})
        for start in range(0, len(rows), PER_LINE):
            self._add(kind, {**of, "common": common, "rows": rows[start : start + PER_LINE]})
        if staged is not None:
            self._limit += PER_JOB * len(rows)  # many that live: the file may be larger by them

    def shown(self, staged: str) -> None:
        """What was staged under this name counts."""
        self._add("shown", staged)

    def set(self, job_id: int, values: Values) -> None:
        self._add("set", {"id": job_id, **values})

    def set_alike(self, job_ids: Sequence[int], values: Values) -> None:
        self._add("set", {"ids": spans(job_ids), **values})

    def submission(self, key: str, first: int, last: int) -> None:
        self._add("submissions", [key, first, last])

    def environment(self, digest: str, body: bytes) -> None:
        self._add("environments", [digest, base64.b64encode(body).decode("ascii")])

    def rule(self, table: str, key: str, row: Mapping[str, Any] | None) -> None:
        """What a queue, a disabled GPU or a group is now; None for one that is no more."""
        self._add("rules", [table, key, row])

    def removed(self, ids: Iterable[int]) -> None:
        self._add("removed", list(ids))

    def _add(self, kind: str, item: Any) -> None:
        self._pending.setdefault(kind, []).append(item)

    def rollback(self) -> None:
        self._pending = {}

    def commit(self, last_event: int) -> None:
        """Append what the transaction changed."""
        pending, self._pending = self._pending, {}
        if not pending or self.behind:
            return
        groups = [{kind: [group]} for kind in ("jobs", "staged") for group in pending.pop(kind, [])]
        lines = [*groups[:-1], {**(groups[-1] if groups else {}), **pending}]
        data = memoryview(b"".join(_line({"e": last_event, **fields}) for fields in lines))
        try:
            while data:
                done = os.write(self._fd, data)
                self._size += done
                data = data[done:]
        except OSError as error:
            log.warning("the changes of a commit could not be kept beside the database: %s", error)
            self.behind = True
        if self._size > self._limit:
            self.behind = True

    def rewrite(self, lines: Iterable[Values], live: int) -> None:
        """Write the file anew: one line per object."""
        unfinished = self._path.with_name(f"{self._path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(unfinished, flags, 0o600), "wb") as file:
                file.writelines(map(_line, lines))
            unfinished.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
            return
        self.close()
        self.open(live)
        self.behind = self._fd < 0
        self._limit = max(self._limit, LARGE + 2 * self._size)


def groups(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[Values]:
    """Rows with these columns, as `jobs` has them: what those of a line share stands once."""
    rows = iter(rows)
    while some := list(islice(rows, PER_LINE)):
        yield _group(names, some)


def _group(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Values:
    # by column, where a comparison of all rows is one call
    columns = list(zip(*rows, strict=True))
    alike = [len(rows) > 1 and column.count(column[0]) == len(column) for column in columns]
    own = [number for number, same in enumerate(alike) if not same]
    return {
        "common": {name: rows[0][number] for number, name in enumerate(names) if alike[number]},
        "rows": [{names[number]: row[number] for number in own} for row in rows],
    }


def _line(fields: Values) -> bytes:
    return dump(fields).encode("ascii") + b"\n"


@dataclass(slots=True)
class Told:
    """What the file tells: the newest row of each job in it, with the event up to which it is true."""

    last_event: int = 0
    rows: dict[int, tuple[int, Values]] = field(default_factory=dict)
    environments: dict[str, bytes] = field(default_factory=dict)
    #: first and last id by the client's key
    submissions: dict[str, tuple[int, int]] = field(default_factory=dict)
    last_id: int = 0
    #: whether every line of it could be read, and there is one
    whole: bool = True
    #: ids of jobs that were pruned
    removed: set[int] = field(default_factory=set)
    #: rows of `rules` by table and key, None for one that is no more, with the event up to which that is true
    rules: dict[tuple[str, str], tuple[int, Values | None]] = field(default_factory=dict)


def last_event(path: Path) -> int:
    """The last event that the file knows of; 0 where it tells none. Reads only its end."""
    try:
        file = _open(path)
    except OSError:
        return 0
    try:
        size, step = os.fstat(file).st_size, 1 << 16
        data = b""
        while len(data) < size and data.count(b"\n") < 3:
            start = max(0, size - len(data) - step)
            data = os.pread(file, size - len(data) - start, start) + data
            step *= 4
        lines = data.split(b"\n")[:-1]
        return max((fields["e"] for line in lines if (fields := _fields(line)) is not None), default=0)
    except OSError:
        return 0
    finally:
        os.close(file)


def read(path: Path) -> Told:
    """Everything in the file; lines that make no sense are left out, and so is a file that cannot be read."""
    told = Told()
    staged: dict[str, dict[int, tuple[int, Values]]] = {}
    for fields in _all(path):
        if fields is None:
            told.whole = False
            continue
        event = fields["e"]
        told.last_event = max(told.last_event, event)
        try:
            for group in fields.get("jobs", ()):
                _add_rows(told.rows, event, group)
            for group in fields.get("staged", ()):
                _add_rows(staged.setdefault(str(group["of"]), {}), event, group)
            for name in fields.get("shown", ()):
                shown = staged.pop(str(name), {})
                told.rows |= {job_id: (event, values) for job_id, (_, values) in shown.items()}
            for values in fields.get("set", ()):
                for job_id in _set_of(values):
                    told.rows[job_id] = (event, {**told.rows.get(job_id, (0, {}))[1], **values, "id": job_id})
            for key, first, last in fields.get("submissions", ()):
                told.submissions[str(key)] = (int(first), int(last))
            for digest, body in fields.get("environments", ()):
                told.environments[str(digest)] = base64.b64decode(body)
            for table, key, row in fields.get("rules", ()):
                told.rules[str(table), str(key)] = (event, None if row is None else dict(row))
            for ids in fields.get("removed", ()):
                for job_id in ids:
                    told.rows.pop(job_id, None)
                    told.removed.add(int(job_id))
            told.last_id = max(told.last_id, int(fields.get("last", 0)))
        except (ValueError, KeyError, TypeError, AttributeError):
            told.whole = False
    told.whole = told.whole and told.last_event > 0
    told.last_id = max([told.last_id, *told.rows, *told.removed])
    return told


def _add_rows(rows: dict[int, tuple[int, Values]], event: int, group: Values) -> None:
    """A job may come again, with columns that have changed."""
    for row in group["rows"]:
        job_id = int(row["id"])
        rows[job_id] = (event, {**rows.get(job_id, (0, {}))[1], **group["common"], **row})


def _set_of(values: Values) -> Iterable[int]:
    """The ids that the change is of, taken out of it."""
    if "ids" not in values:
        return [int(values["id"])]
    return [job_id for first, last in values.pop("ids") for job_id in range(int(first), int(last) + 1)]


def _all(path: Path) -> Iterator[Values | None]:
    """Its lines; None for one that makes no sense."""
    try:
        file = open(_open(path), "rb")  # noqa: SIM115
    except FileNotFoundError:
        return
    except OSError as error:  # a symlink, say: nothing is followed
        log.error("%s cannot be read: %s", path, error.strerror, extra={"event": "changes-unreadable"})
        return
    with file:
        for line in file:
            yield _fields(line)


def _open(path: Path) -> int:
    """Raises OSError, also for what is no file: a device may have no end."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def _fields(line: bytes) -> Values | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("e"), int) else None
