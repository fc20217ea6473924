"""Reads a trace: a CSV file (RFC 4180) with a header, a job per row. It is read as a stream, once."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from io import TextIOWrapper
from typing import IO

from gpuq.errors import UsageError
from gpuq.simulate.trace import NO_LIMIT, SECOND, WHOLE, Refusal, Trace, no_jobs
from gpuq.units import MAX_TIME, parse_size

NEEDED = ("job_id", "submit_time", "num_gpu", "duration")
OPTIONAL = ("time_limit", "vram", "priority", "user")
#: Characters of a line.
LONGEST_LINE = 65536
#: Seconds; a clock that counts milliseconds since 1970 is far beyond.
LATEST = 10**10
MAX_PRIORITY = 1000

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,9}", re.ASCII)


def read_file(path: str, refuse: Refusal) -> Trace:
    """The trace in this file; `-` is standard input. `refuse` tells of jobs that the GPUs can never run.

    Raises UsageError, with the line, for anything that cannot be simulated as it stands there.
    """
    where = "standard input" if path == "-" else path
    try:
        if path == "-":
            return read(TextIOWrapper(sys.stdin.buffer, "utf-8-sig", "surrogateescape", newline=""), where, refuse)
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return read(file, where, refuse)
    except OSError as error:
        raise UsageError(f"{path!r} cannot be read: {error.strerror}") from None


def read(file: IO[str], where: str, refuse: Refusal) -> Trace:
    """The same of an open file. Raises UsageError, OSError."""
    rows = _rows(file, where)
    _, header = next(rows, (0, None))
    if header is None:
        raise UsageError(f"{where} is empty: a header belongs there, {','.join(NEEDED)}, and a job per line")
    columns = _columns(header, where)
    trace, seen = Trace(), set[str]()
    for line, row in rows:
        try:
            _add(trace, _cells(row, columns, len(header)), seen, refuse)
        except UsageError as error:
            raise UsageError(f"{where}, line {line}: {error}; nothing was simulated") from None
    if not trace:
        raise no_jobs(where)
    return trace.close()


def _rows(file: IO[str], where: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, with the line on which each begins."""
    lines = csv.reader(_lines(file, where), strict=True)
    while True:
        begins = lines.line_num + 1
        try:
            row = next(lines, None)
        except csv.Error as error:
            raise UsageError(f"{where}, line {begins}: is no CSV: {error}; nothing was simulated") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield begins, row


def _lines(file: IO[str], where: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UsageError(f"{where}, line {number}: is longer than {LONGEST_LINE:,} characters; is this a trace?")
        if "\0" in line:
            raise UsageError(f"{where}, line {number}: holds a NUL byte: a trace is text, in UTF-8")
        yield line


def _columns(header: list[str], where: str) -> dict[str, int]:
    """Where each column is that is read. Raises UsageError."""
    names = [name.strip().lower() for name in header]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        found = ", ".join(names)
        hint = next((f"; columns are separated by commas, not {mark!r}" for mark in ";\t|" if mark in found), "")
        what = f"columns {', '.join(missing)} are" if len(missing) > 1 else f"column {missing[0]} is"
        raise UsageError(f"{where}: {what} missing; the header names {found}{hint}")
    for name in (*NEEDED, *OPTIONAL):
        if names.count(name) > 1:
            raise UsageError(f"{where}: the header names {name} {names.count(name)} times")
    return {name: names.index(name) for name in (*NEEDED, *OPTIONAL) if name in names}


def _cells(row: list[str], columns: dict[str, int], width: int) -> dict[str, str]:
    if any(cell.strip() for cell in row[width:]):
        raise UsageError(f"has {len(row)} fields, and the header {width}")
    cells = {name: row[at].strip() for name, at in columns.items() if at < len(row)}
    for name in NEEDED:
        if not cells.get(name):
            raise UsageError(f"has no {name}")
    return cells


def _add(trace: Trace, cells: dict[str, str], seen: set[str], refuse: Refusal) -> None:
    name = cells["job_id"]
    if name in seen:
        raise UsageError(f"job_id {name!r} is there twice")
    seen.add(name)
    submit = _microseconds("submit_time", cells["submit_time"], LATEST, "are these milliseconds?")
    duration = _microseconds("duration", cells["duration"], int(MAX_TIME), "that is over ten years")
    gpus = _whole_number("num_gpu", cells["num_gpu"])
    if gpus < 1:
        raise UsageError(f"num_gpu {cells['num_gpu']!r}: a job has 1 GPU at least")
    vram = _vram(cells.get("vram", ""))
    refused = refuse(gpus, vram)
    if refused is not None:
        raise UsageError(f"job {name} {refused}")
    trace.add(
        name,
        submit,
        gpus,
        duration,
        limit=_limit(cells.get("time_limit", "")),
        vram=vram,
        priority=_priority(cells.get("priority", "")),
        user=cells.get("user", ""),
    )


def _microseconds(name: str, text: str, most: int, hint: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise UsageError(f"{name} {text!r} is not a number of seconds")
    seconds = Decimal(text)
    if seconds < 0:
        raise UsageError(f"{name} {text!r} is negative")
    if seconds > most:
        raise UsageError(f"{name} {text!r} is more than {most:,} seconds; {hint}")
    return int((seconds * SECOND).to_integral_value(ROUND_HALF_EVEN))


def _limit(text: str) -> int:
    if not text:
        return NO_LIMIT
    limit = _microseconds("time_limit", text, int(MAX_TIME), "that is over ten years")
    if limit == 0:
        raise UsageError(f"time_limit {text!r}: no job can run in that; leave it empty where there is no limit")
    return limit


def _whole_number(name: str, text: str) -> int:
    # a column with gaps comes out of data frames as 2.0
    if not _WHOLE_NUMBER.fullmatch(text.removesuffix(".0")):
        raise UsageError(f"{name} {text!r} is not a whole number")
    return int(text.removesuffix(".0"))


def _priority(text: str) -> int:
    priority = _whole_number("priority", text) if text else 0
    if abs(priority) > MAX_PRIORITY:
        raise UsageError(f"priority {text!r} is not between -{MAX_PRIORITY} and {MAX_PRIORITY}")
    return priority


def _vram(text: str) -> int:
    return parse_size(text, "vram") if text and text != "whole" else WHOLE
