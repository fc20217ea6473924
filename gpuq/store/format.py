"""SQLite's file format, read without SQLite, which gives up at the first page that it cannot use.

After https://sqlite.org/fileformat2.html: section 1.6 (pages of b-trees), 2.1 (records), 4 (the write-ahead log).
Every number in a damaged file may be wrong, so that each is checked, and what makes no sense is left out.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"SQLite format 3\0"
#: What SQLite gives a new database, and gpuq has never changed.
PAGE_SIZE = 4096
HEADER = 100
WAL_HEADER, FRAME_HEADER = 32, 24
#: The two magic numbers of a log: checksums over little- and over big-endian words.
_WAL_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
_TABLE_INTERIOR, _TABLE_LEAF = 5, 13
#: Longest record that is put together from overflow pages, in bytes.
_MAX_RECORD = 64 << 20

Value = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Row:
    rowid: int
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The first 100 bytes of a database."""

    page_size: int
    #: pages that the file has by its own account
    pages: int
    freelist: int
    user_version: int


def read_header(data: bytes) -> Header | None:
    """None for what is not the beginning of a database."""
    if len(data) < HEADER or not data.startswith(MAGIC):
        return None
    size = int.from_bytes(data[16:18])
    size = 65536 if size == 1 else size
    if size < 512 or size & (size - 1):
        return None
    # versions for writing and reading, then what never changes; the format of the schema, and UTF-8
    if not {data[18], data[19]} <= {1, 2} or data[20:24] != b"\0\x40\x20\x20":
        return None
    if int.from_bytes(data[44:48]) not in range(5) or int.from_bytes(data[56:60]) not in (0, 1):
        return None
    pages, freelist = struct.unpack_from(">II", data, 28)
    return Header(size, pages, freelist, struct.unpack_from(">I", data, 60)[0])


@dataclass(frozen=True, slots=True)
class Log:
    """A write-ahead log. `frames` has where in the file the newest committed copy of each page lies."""

    frames: dict[int, int]
    #: pages of the database after the newest commit, 0 where nothing was committed
    pages: int
    page_size: int
    #: what is wrong with it; None also for the torn end that a crash leaves
    damage: str | None = None


def read_log(path: Path) -> Log | None:
    """The log of a database, None where there is none or it is empty. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data:
        return None
    if len(data) < WAL_HEADER:
        return Log({}, 0, 0)  # a crash while the first bytes were written: nothing was committed yet
    order = _WAL_MAGIC.get(int.from_bytes(data[:4]))
    size = int.from_bytes(data[8:12])
    sums = struct.unpack_from(">II", data, 24)
    if order is None or size != PAGE_SIZE or _checksum(data[:24], order, (0, 0)) != sums:
        return _orphaned(data)
    return _frames(data, order, sums, data[16:24], strict=True)


def _orphaned(data: bytes) -> Log:
    """A log whose header is gone: the first frame tells the salts, and each frame vouches for the next."""
    salts = data[WAL_HEADER + 8 : WAL_HEADER + 16]
    best = Log({}, 0, PAGE_SIZE)
    for order in _WAL_MAGIC.values():
        found = _frames(data, order, None, salts, strict=False)
        if len(found.frames) > len(best.frames):
            best = found
    return Log(best.frames, best.pages, PAGE_SIZE, "the header of its write-ahead log is damaged")


def _frames(data: bytes, order: str, sums: tuple[int, int] | None, salts: bytes, *, strict: bool) -> Log:
    """The frames up to the last commit. Where one is broken, those after it that hold together count as well,
    and are told of as damage: SQLite itself would forget them without a word.
    """
    step = FRAME_HEADER + PAGE_SIZE
    committed: dict[int, int] = {}
    pending: dict[int, int] = {}
    pages, broken, beyond = 0, False, False
    for start in range(WAL_HEADER, len(data) - step + 1, step):
        number, total = struct.unpack_from(">II", data, start)
        told = struct.unpack_from(">II", data, start + 16)
        if data[start + 8 : start + 16] != salts or not number:
            broken, sums = True, None
            continue  # of an earlier round, or no frame
        page = start + FRAME_HEADER
        if sums is not None:
            good = _vouched(data, start, order, sums)
        else:  # nothing vouches for the first without a header, but that the second follows it
            good = not strict and start == WAL_HEADER and _vouched(data, start + step, order, told)
        sums = told
        if not good:
            broken = True
            continue
        pending[number] = page
        if total:
            beyond = beyond or broken
            committed.update(pending)
            pending.clear()
            pages = total
    return Log(committed, pages, PAGE_SIZE, "its write-ahead log is damaged in the middle" if beyond else None)


def _vouched(data: bytes, start: int, order: str, sums: tuple[int, int]) -> bool:
    """Whether the frame at `start` has the checksum that follows from that of the one before."""
    page = start + FRAME_HEADER
    if len(data) < page + PAGE_SIZE:
        return False
    summed = _checksum(data[start : start + 8], order, sums)
    return _checksum(data[page : page + PAGE_SIZE], order, summed) == struct.unpack_from(">II", data, start + 16)


def _checksum(data: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    """Section 4.2: two sums over pairs of 32-bit words."""
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for n in range(0, len(words), 2):
        first = (first + words[n] + second) & 0xFFFFFFFF
        second = (second + words[n + 1] + first) & 0xFFFFFFFF
    return first, second


class Image:
    """The pages of a database file with those of its log over them. A page that is cut off ends in zeros."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self._log_file = -1
        self.log = read_log(path.with_name(path.name + "-wal")) or Log({}, 0, 0)
        if self.log.frames:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._log_file = os.open(path.with_name(path.name + "-wal"), flags)
        self.header = read_header(os.pread(self._file, HEADER, 0))
        if 1 in self.log.frames:
            self.header = read_header(os.pread(self._log_file, HEADER, self.log.frames[1])) or self.header
        self.page_size = self.header.page_size if self.header else PAGE_SIZE
        self._size = os.fstat(self._file).st_size
        self.pages = max(-(-self._size // self.page_size), self.log.pages)

    @property
    def present(self) -> int:
        """How many pages are there as a whole, in the file or in the log."""
        held = self._size // self.page_size
        return held + sum(1 for number in self.log.frames if number > held)

    def numbers(self) -> Iterator[int]:
        """The pages after the first that are there, also in part, whatever anything says of how many there are."""
        held = -(-self._size // self.page_size)
        yield from range(2, held + 1)
        yield from sorted(number for number in self.log.frames if number > held)

    def close(self) -> None:
        os.close(self._file)
        if self._log_file >= 0:
            os.close(self._log_file)

    def page(self, number: int) -> bytes:
        """A whole page; zeros where there is nothing."""
        if number in self.log.frames:
            data = os.pread(self._log_file, self.page_size, self.log.frames[number])
        elif 0 < number <= self.pages:
            data = os.pread(self._file, self.page_size, (number - 1) * self.page_size)
        else:
            data = b""
        return data.ljust(self.page_size, b"\0")

    def unused(self) -> set[int]:
        """Pages that the list of free pages names: what they hold was deleted or has moved."""
        found: set[int] = set()
        first = self.page(1)
        trunk = int.from_bytes(first[32:36]) if self.header else 0
        while 0 < trunk <= self.pages and trunk not in found:
            found.add(trunk)
            page = self.page(trunk)
            trunk, count = struct.unpack_from(">II", page)
            count = min(count, self.page_size // 4 - 2)
            found.update(struct.unpack_from(f">{count}I", page, 8))
        return found

    def leaves(self, root: int) -> Iterator[int]:
        """Leaves of the table b-tree at `root`, as far as it can be walked. Each page is visited once."""
        seen: set[int] = set()
        todo = [root]
        while todo:
            number = todo.pop()
            if number in seen or not 0 < number <= self.pages:
                continue
            seen.add(number)
            page = self.page(number)
            kind = _kind(page, number)
            if kind == _TABLE_LEAF:
                yield number
            elif kind == _TABLE_INTERIOR:
                start = HEADER if number == 1 else 0
                children = [int.from_bytes(page[at : at + 4]) for at in _pointers(page, start, 12)]
                todo += [*reversed(children), int.from_bytes(page[start + 8 : start + 12])]

    def is_leaf(self, number: int) -> bool:
        return _kind(self.page(number), number) == _TABLE_LEAF

    def rows(self, number: int) -> Iterator[Row]:
        """The rows on a leaf of a table that can be read."""
        page, there = self.page(number), self._there(number)
        for at in _pointers(page, HEADER if number == 1 else 0, 8):
            row = self._row(page, at, there)
            if row is not None:
                yield row

    def _there(self, number: int) -> int:
        """Bytes of a page that are there; less than all where the file is cut within it."""
        if number in self.log.frames:
            return self.page_size
        if number < 1:
            return 0
        return max(0, min(self.page_size, self._size - (number - 1) * self.page_size))

    def _row(self, page: bytes, at: int, there: int) -> Row | None:
        try:
            size, at = _varint(page, at)
            rowid, at = _varint(page, at)
            if not 0 < size <= _MAX_RECORD:
                return None
            record = self._payload(page, at, size, there)
            values = None if record is None else _record(record)
        except (IndexError, struct.error, ValueError):
            return None
        return None if values is None else Row(rowid - (1 << 64) if rowid >> 63 else rowid, values)

    def _payload(self, page: bytes, at: int, size: int, there: int) -> bytes | None:
        """A record, with what overflows to other pages (section 1.6, `overflow`)."""
        most = self.page_size - 35
        if size <= most:
            return page[at : at + size] if at + size <= there else None
        least = (self.page_size - 12) * 32 // 255 - 23
        local = least + (size - least) % (self.page_size - 4)
        local = local if local <= most else least
        if at + local + 4 > there:
            return None
        data = bytearray(page[at : at + local])
        following = int.from_bytes(page[at + local : at + local + 4])
        while len(data) < size:
            if self._there(following) < self.page_size:
                return None
            more = self.page(following)
            following = int.from_bytes(more[:4])
            data += more[4 : 4 + size - len(data)]
        return bytes(data)


def _kind(page: bytes, number: int) -> int:
    return page[HEADER if number == 1 else 0]


def _pointers(page: bytes, start: int, header: int) -> list[int]:
    """Where the cells of a page begin."""
    count = int.from_bytes(page[start + 3 : start + 5])
    first = start + header
    count = min(count, (len(page) - first) // 2)
    found = struct.unpack_from(f">{count}H", page, first)
    return [at for at in found if first + 2 * count <= at < len(page) - 3]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends. Raises IndexError."""
    value = 0
    for n in range(8):
        byte = data[at + n]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    return value << 8 | data[at + 8], at + 9


def _record(data: bytes) -> tuple[Value, ...] | None:
    """The columns of a record; None where sizes do not add up, which is seldom true of anything else."""
    end, at = _varint(data, 0)
    kinds = []
    while at < end:
        kind, at = _varint(data, at)
        kinds.append(kind)
    if at != end or not kinds or end + sum(map(_length, kinds)) != len(data):
        return None
    values: list[Value] = []
    for kind in kinds:
        size = _length(kind)
        values.append(_value(kind, data[at : at + size]))
        at += size
    return tuple(values)


def _length(kind: int) -> int:
    if kind in (10, 11):
        raise ValueError("serial types that SQLite keeps to itself")
    return (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2


def _value(kind: int, data: bytes) -> Value:
    """Raises ValueError for text that is not UTF-8."""
    if kind == 0:
        return None
    if kind in (8, 9):
        return kind - 8
    if kind == 7:
        return float(struct.unpack(">d", data)[0])
    if kind < 7:
        return int.from_bytes(data, signed=True)
    return data if kind % 2 == 0 else data.decode("utf-8")
