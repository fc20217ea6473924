"""Fixtures for everything that needs a daemon. The pure parts need none of this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakenvml import FakeNvml
from tests.harness import Box


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A state folder of its own, for CPU jobs; the daemon starts with the first request."""
    made = Box(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def nvml(tmp_path: Path, box: Box) -> FakeNvml:
    """A fake driver in front of the box's daemon; give it GPUs before the first request."""
    fake = FakeNvml(tmp_path / "nvml")
    box.setenv(GPUQ_GPUS=None, **fake.env)
    return fake


@pytest.fixture
def sim(box: Box) -> Box:
    """A box with two simulated GPUs of 24 GiB."""
    box.setenv(GPUQ_GPUS="sim:2x24GiB")
    return box
