"""Simulated GPUs: their memory is a folder of small files that `gpuq sim-job` writes. For trying out and for demos.

The folder holds `gpus.json` (what there is, written by the daemon), `lock`, and per GPU a folder with a file for each
process that holds memory: its name is the pid, its content the process's start time, its boot id and the bytes. A file
counts while that very process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuq.errors import GpuqError, UsageError
from gpuq.launch.identity import alive
from gpuq.model import Driver, GpuProcess, GpuReading, Identity, Readings
from gpuq.units import format_size, parse_size

EXAMPLE = "sim:2x24GiB"
MAX_GPUS = 64

_GROUP = re.compile(r"(\d{1,4})x(.+)", re.ASCII)


def parse_spec(spec: str) -> tuple[int, ...]:
    """Bytes of each GPU of `sim:2x24GiB` or `sim:2x24GiB,1x80GiB`. Raises UsageError."""
    totals: list[int] = []
    for group in spec.removeprefix("sim:").split(","):
        match = _GROUP.fullmatch(group.strip())
        if match is None:
            raise UsageError(f"GPUQ_GPUS={spec!r}: {group!r} is not a count and a size; write {EXAMPLE}")
        size = parse_size(match[2], f"GPUQ_GPUS={spec!r}: the size")
        totals += [size] * int(match[1])
    if not 1 <= len(totals) <= MAX_GPUS:
        raise UsageError(f"GPUQ_GPUS={spec!r} makes {len(totals)} GPUs, and 1 to {MAX_GPUS} can be simulated")
    return tuple(totals)


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


class SimulatedGpus:
    """The source of `GPUQ_GPUS=sim:…`: GPUs of this daemon's own, or, with `look_only`, those that it would have."""

    shared = False
    answered_at = float("-inf")

    def __init__(self, spec: str, folder: Path, *, look_only: bool = False) -> None:
        """Raises UsageError for the spec, OSError where the folder cannot be written."""
        self._look_only = look_only
        self._cards = (Cards.of if look_only else Cards.create)(folder, parse_spec(spec))

    def read(self) -> Readings:
        """One reading of all GPUs."""
        at = time.monotonic()
        gpus = tuple(self._read_gpu(index, uuid) for index, uuid in enumerate(self._cards.totals))
        return Readings(Driver.OK, at, gpus, version="simulated")

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
        total = self._cards.totals[uuid]
        try:
            held = self._held(uuid)
        except (OSError, ValueError) as error:
            return GpuReading(uuid, index, "Simulated GPU", total, 0, told=False, fault=f"cannot be read: {error}")
        processes = tuple(GpuProcess(pid, used, True, False) for pid, used in sorted(held.items()))
        return GpuReading(uuid, index, "Simulated GPU", total, sum(held.values()), processes, processes)
