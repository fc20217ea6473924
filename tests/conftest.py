"""Fixtures for everything that needs a daemon. The pure parts need none of this."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.fakenvml import FakeNvml
from tests.harness import Box

# no test asserts a time: the machine may be busy
settings.register_profile("gpuq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gpuq")

#: Where the many interpreters that tests start keep compiled code, if they may not beside the source (python(1)).
_COMPILED = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Where Python is told to write no compiled code, each of thousands of processes would compile all of gpuq."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        folder = config.stash[_COMPILED] = tempfile.TemporaryDirectory(prefix="gpuq-compiled-")
        os.environ["PYTHONPYCACHEPREFIX"] = folder.name


def pytest_xdist_auto_num_workers() -> int | None:
    """What `-n auto` means: half as many again as there are cores, for tests wait a third of their time.

    They wait for disks, time limits and processes' ends.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # as xdist has it
    cores = len(os.sched_getaffinity(0))
    return cores + cores // 2


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(_COMPILED, None)
    if folder is not None:
        folder.cleanup()


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
