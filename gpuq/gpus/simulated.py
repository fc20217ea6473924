"""Simulated GPUs: their memory is a folder of small files that `gpuq sim-job` writes. For trying out and for demos.

The folder holds `gpus.json` (what there is, written by the daemon), `lock`, and per GPU a folder with a file for each
process that holds memory: its name is the pid, its content the process's start time, its boot id and the bytes. A file
counts while that very process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuq.errors import GpuqError, UsageError
from gpuq.launch.identity import alive
from gpuq.model import FARTHEST, ON_ONE_BOARD, Distances, Driver, GpuProcess, GpuReading, Identity, Readings
from gpuq.units import format_size, parse_size

EXAMPLE = "sim:2x24GiB"
NAMED_EXAMPLE = "sim:2x24GiB,2x80GiB=H100"
MAX_GPUS = 64
NAME = "Simulated GPU"
LONGEST_NAME = 64

#: Distance of two GPUs of one group, as behind one PCIe switch, and of two groups, as on two processors.
WITHIN = ON_ONE_BOARD + 10
BETWEEN = FARTHEST

_GROUP = re.compile(r"(\d{1,4})x([^=]+)(?:=(.*))?", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as the spec describes it."""

    total: int
    name: str
    #: which group of the spec it is in, from 0
    group: int


def parse_spec(spec: str) -> tuple[Card, ...]:
    """The GPUs of `sim:2x24GiB` or `sim:2x24GiB,2x80GiB=H100`: groups of a count, a size and, if need be, a name.

    Raises UsageError, which names the group that is wrong.
    """
    cards: list[Card] = []
    for number, group in enumerate(spec.removeprefix("sim:").split(",")):
        match = _GROUP.fullmatch(group.strip())
        if match is None:
            raise UsageError(f"GPUQ_GPUS={spec!r}: {group!r} is not a count and a size; write {EXAMPLE}")
        size = parse_size(match[2], f"GPUQ_GPUS={spec!r}: the size")
        cards += [Card(size, _name(spec, group, match[3]), number)] * int(match[1])
    if not 1 <= len(cards) <= MAX_GPUS:
        raise UsageError(f"GPUQ_GPUS={spec!r} makes {len(cards)} GPUs, and 1 to {MAX_GPUS} can be simulated")
    return tuple(cards)


def _name(spec: str, group: str, given: str | None) -> str:
    if given is None:
        return NAME
    name = given.strip()
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or "=" in name:
        raise UsageError(
            f"GPUQ_GPUS={spec!r}: {group!r} gives no name of 1 to {LONGEST_NAME} printable characters without = "
            f"after the size; write {NAMED_EXAMPLE}"
        )
    return name


def uuid_of(index: int) -> str:
    return f"GPU-sim{index:05}-0000-0000-0000-000000000000"


class OutOfMemory(GpuqError):
    """A simulated GPU has less free memory than was asked for."""

    def __init__(self, total: int, free: int) -> None:
        super().__init__(f"{format_size(free)} of {format_size(total)} are free")
        self.total = total
        self.free = free


@dataclass(frozen=True)
class Cards:
    """The memory of the simulated GPUs in a folder: bytes by UUID, and who holds them."""

    folder: Path
    totals: dict[str, int]

    @classmethod
    def of(cls, folder: Path, totals: tuple[int, ...]) -> Cards:
        """The GPUs of these sizes, whether they were created or not."""
        return cls(folder, {uuid_of(index): total for index, total in enumerate(totals)})

    @classmethod
    def create(cls, folder: Path, totals: tuple[int, ...]) -> Cards:
        """Say which GPUs there are. What living processes hold on them stays. Raises OSError."""
        cards = cls.of(folder, totals)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for uuid in cards.totals:
            (folder / uuid).mkdir(mode=0o700, exist_ok=True)
        with cards._locked():
            told = json.dumps(cards.totals)
            with contextlib.suppress(OSError, ValueError):
                if (folder / "gpus.json").read_text() == told:
                    return cards  # a full disk is no reason not to start
            _write(folder / "gpus.json", told)
        return cards

    @classmethod
    def load(cls, folder: Path) -> Cards:
        """The GPUs that a daemon made here. Raises UsageError where none did."""
        try:
            return cls(folder, json.loads((folder / "gpus.json").read_text()))
        except FileNotFoundError:
            raise UsageError(
                f"there are no simulated GPUs here: start the daemon with GPUQ_GPUS={EXAMPLE} in its environment, "
                "as in `gpuq daemon stop; GPUQ_GPUS=" + EXAMPLE + " gpuq daemon start`"
            ) from None

    def held(self, uuid: str) -> dict[int, int]:
        """Bytes by pid of living processes. Removes what dead ones left."""
        with self._locked():
            return self._held(uuid)

    def allocate(self, uuid: str, me: Identity, size: int) -> None:
        """Make `size` all that a process holds of a GPU. Raises OutOfMemory, and changes nothing then."""
        with self._locked():
            others = sum(used for other, used in self._held(uuid).items() if other != me.pid)
            free = self.totals[uuid] - others
            if size > free:
                raise OutOfMemory(self.totals[uuid], max(0, free))
            _write(self.folder / uuid / str(me.pid), f"{me.start_time} {me.boot_id} {size}\n")

    def release(self, uuid: str, pid: int) -> None:
        with self._locked():
            (self.folder / uuid / str(pid)).unlink(missing_ok=True)

    def _held(self, uuid: str) -> dict[int, int]:
        held: dict[int, int] = {}
        for path in (self.folder / uuid).iterdir():
            if not path.name.isdigit():
                continue
            started, boot_id, size = path.read_text().split()
            if alive(Identity(int(path.name), int(started), boot_id)):
                held[int(path.name)] = int(size)
            else:
                path.unlink()
        return held

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(self.folder / "lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole; call with the lock held."""
    temporary = path.with_name(f"{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
    temporary.rename(path)


def _distances(cards: tuple[Card, ...]) -> Distances:
    """GPUs of one group are closer than those of two."""
    return {
        (uuid_of(one), uuid_of(other)): WITHIN if cards[one].group == cards[other].group else BETWEEN
        for one, other in itertools.combinations(range(len(cards)), 2)
    }


class SimulatedGpus:
    """The source of `GPUQ_GPUS=sim:…`: GPUs of this daemon's own, or, with `look_only`, those that it would have."""

    shared = False
    answered_at = float("-inf")

    def __init__(self, spec: str, folder: Path, *, look_only: bool = False) -> None:
        """Raises UsageError for the spec, OSError where the folder cannot be written."""
        self._look_only = look_only
        self._described = parse_spec(spec)
        totals = tuple(card.total for card in self._described)
        self._cards = (Cards.of if look_only else Cards.create)(folder, totals)
        self._distances = _distances(self._described)

    def read(self) -> Readings:
        """One reading of all GPUs."""
        at = time.monotonic()
        gpus = tuple(self._read_gpu(index, uuid) for index, uuid in enumerate(self._cards.totals))
        return Readings(Driver.OK, at, gpus, version="simulated", distances=self._distances)

    def close(self) -> None:
        return None

    def _held(self, uuid: str) -> dict[int, int]:
        try:
            return self._cards.held(uuid)
        except FileNotFoundError:  # somebody removed the folder, and with it what was held
            if self._look_only:
                return {}
            self._cards = Cards.create(self._cards.folder, tuple(self._cards.totals.values()))
            return self._cards.held(uuid)

    def _read_gpu(self, index: int, uuid: str) -> GpuReading:
        total, name = self._cards.totals[uuid], self._described[index].name
        try:
            held = self._held(uuid)
        except (OSError, ValueError) as error:
            return GpuReading(uuid, index, name, total, 0, told=False, fault=f"cannot be read: {error}")
        processes = tuple(GpuProcess(pid, used, True, False) for pid, used in sorted(held.items()))
        return GpuReading(uuid, index, name, total, sum(held.values()), processes, processes)
