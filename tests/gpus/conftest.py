"""A fake driver, and a process that reads it through the real pynvml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpuq.model import GiB
from tests.fakenvml import FakeNvml, FakePair, fake_gpus
from tests.gpus.reader import Reader, Start, StartWary


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Make a fake driver with GPUs of these sizes, and a process that reads it."""
    with ExitStack() as stack:

        def make(
            *totals: int, without: tuple[str, ...] = (), reopen_after: float = 0, **every: Any
        ) -> tuple[FakeNvml, Reader]:
            fake = FakeNvml(tmp_path / "nvml", fake_gpus(*totals, **every), without)
            return fake, stack.enter_context(Reader(fake, reopen_after))

        yield make


@pytest.fixture
def start_wary(tmp_path: Path) -> Iterator[StartWary]:
    """Make a fake driver with so many GPUs and what is between them, and a process that reads it as a daemon does."""
    with ExitStack() as stack:

        def make(count: int, *pairs: FakePair) -> tuple[FakeNvml, Reader]:
            fake = FakeNvml(tmp_path / "nvml", fake_gpus(*[24 * GiB] * count))
            fake.set(pairs=pairs)
            return fake, stack.enter_context(Reader(fake, None))

        yield make
