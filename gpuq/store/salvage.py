"""Rows out of a damaged database: every leaf that can be read, whether or not a path still leads to it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuq.store.format import Header, Image, Row, Value
from gpuq.store.migrations import MIGRATIONS, SANE_VERSION, migrate, refuse_newer


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    required: bool
    #: stands for the rowid, and is stored as NULL
    rowid: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """What a row of a table may look like: a row keeps the number of columns that the table had when it was written."""

    columns: tuple[Column, ...]
    #: the first version that had so many columns
    lengths: Mapping[int, int]

    def fits(self, values: tuple[Value, ...]) -> bool:
        return len(values) in self.lengths and all(map(_allowed, self.columns, values))


_TYPES: Mapping[str, tuple[type, ...]] = {"INTEGER": (int,), "REAL": (int, float), "TEXT": (str,), "BLOB": (bytes,)}


def _allowed(column: Column, value: Value) -> bool:
    if value is None:
        return column.rowid or not column.required
    return isinstance(value, _TYPES[column.type])


@dataclass(slots=True)
class Found:
    """What could be read, by table and rowid."""

    #: the schema that the rows are of
    version: int
    rows: dict[str, dict[int, tuple[Value, ...]]]
    #: largest id that the database says it gave out
    last_id: int = 0
    #: whether the beginning of the file is that of a database
    header: bool = False
    #: pages that it had, that are there, and rows that no path led to any more
    pages_told: int = 0
    pages: int = 0
    orphans: int = 0
    notes: list[str] = field(default_factory=list)


def shapes() -> dict[str, Shape]:
    """Every table of ours, as it was in each version."""
    columns: dict[str, tuple[Column, ...]] = {}
    lengths: dict[str, dict[int, int]] = {}
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for version in range(1, len(MIGRATIONS) + 1):
            migrate(db, to=version)
            for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                columns[table] = _columns(db, table)
                lengths.setdefault(table, {}).setdefault(len(columns[table]), version)
    del columns["sqlite_sequence"]
    return {table: Shape(found, lengths[table]) for table, found in columns.items()}


def _columns(db: sqlite3.Connection, table: str) -> tuple[Column, ...]:
    info = db.execute(f"PRAGMA table_info({table})").fetchall()
    alone = sum(1 for row in info if row[5]) == 1
    return tuple(
        Column(name, kind, bool(required), alone and bool(key) and kind == "INTEGER")
        for _, name, kind, required, _, key in info
    )


def read(path: Path) -> Found:
    """Everything that can be read from a database and its log. Raises OSError; StoreError for a newer gpuq's."""
    image = Image(path)
    try:
        version = _version(image.header)
        known = shapes()
        found = Found(version, {table: {} for table in known}, header=image.header is not None, pages=image.present)
        if image.header is not None:
            found.pages_told = image.log.pages or image.header.pages
        if image.log.damage is not None:
            found.notes.append(image.log.damage)
        reached = _reachable(image, known, found)
        _orphaned(image, known, found, reached | image.unused())
        found.version = max(version, _seen_version(known, found))
        return found
    finally:
        image.close()


def _seen_version(known: Mapping[str, Shape], found: Found) -> int:
    """The version that the widest rows are of: what the header says may be damage, too."""
    seen = (known[table].lengths[len(row)] for table, rows in found.rows.items() for row in rows.values())
    return max(seen, default=0)


def refuse_newer_file(path: Path) -> None:
    """Raises StoreError for a database, damaged or not, that a newer gpuq wrote; OSError."""
    image = Image(path)
    try:
        _version(image.header)
    finally:
        image.close()


def _version(header: Header | None) -> int:
    if header is None or header.user_version > SANE_VERSION or header.user_version == 0:
        return len(MIGRATIONS)
    refuse_newer(header.user_version)
    return header.user_version


def _reachable(image: Image, known: Mapping[str, Shape], found: Found) -> set[int]:
    """Rows of the leaves that a path from their table's root leads to; the pages that were visited."""
    reached: set[int] = {1}
    for table, root in _roots(image).items():
        for number in image.leaves(root):
            reached.add(number)
            if table == "sqlite_sequence":
                _sequence(image.rows(number), found)
            elif table in known:
                shape, rows = known[table], found.rows[table]
                rows.update((row.rowid, row.values) for row in image.rows(number) if shape.fits(row.values))
    return reached


def _roots(image: Image) -> dict[str, int]:
    """Root pages of the tables, as the schema on the first page tells them."""
    roots: dict[str, int] = {}
    for number in image.leaves(1):
        for row in image.rows(number):
            match row.values:
                case ("table", str(name), str(), int(root), _):
                    roots[name] = root
    return roots


def _sequence(rows: Iterable[Row], found: Found) -> None:
    for row in rows:
        match row.values:
            case ("jobs", int(last)):
                found.last_id = max(found.last_id, last)


def _orphaned(image: Image, known: Mapping[str, Shape], found: Found, done: set[int]) -> None:
    """Rows of all other leaves, by their looks. Where a path led to a row of that id, that row counts."""
    fresh: dict[str, dict[int, tuple[Value, ...]]] = {table: {} for table in known}
    for number in image.numbers():
        if number in done or not image.is_leaf(number):
            continue
        for row in image.rows(number):
            if row.values[:1] == ("jobs",) and len(row.values) == 2:
                _sequence([row], found)
            tables = [table for table, shape in known.items() if shape.fits(row.values)]
            if len(tables) == 1 and row.rowid not in found.rows[tables[0]]:
                rows = fresh[tables[0]]
                rows[row.rowid] = _newer(tables[0], known, rows.get(row.rowid), row.values)
    for table, rows in fresh.items():
        found.rows[table].update(rows)
        found.orphans += len(rows)


def _newer(
    table: str, known: Mapping[str, Shape], one: tuple[Value, ...] | None, other: tuple[Value, ...]
) -> tuple[Value, ...]:
    """Of two rows with one id the one that tells of more: a page that was split leaves an old copy behind."""
    if one is None or table not in ("jobs", "attempts"):
        return other if one is None else one
    names = [column.name for column in known[table].columns]

    def progress(values: tuple[Value, ...]) -> tuple[object, ...]:
        row = dict(zip(names, values, strict=False))
        attempt = row.get("attempt", 0)
        return (attempt if isinstance(attempt, int) else 0, row.get("ended_at") is not None)

    return other if progress(other) > progress(one) else one


def insert(conn: sqlite3.Connection, found: Found) -> None:
    """Put the rows into an empty database of their version; what breaks one of its rules is left out."""
    known = shapes()
    present = {row[0] for row in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    for table, rows in found.rows.items():
        if table not in present:
            continue
        width = len(_columns(conn, table))
        alias = next((n for n, column in enumerate(known[table].columns) if column.rowid), None)
        for rowid in sorted(rows):
            values = list(rows[rowid][:width])
            if alias is not None:
                values[alias] = rowid
            names = ",".join(column.name for column in known[table].columns[: len(values)])
            marks = ",".join("?" * len(values))
            conn.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", values)
