"""Two daemons on one card: who was told what, and that nothing collides, whatever becomes of either of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakenvml import FakeNvml, fake_gpus
from tests.harness import Box, wait_until

GiB = 1024**3
MARGIN = 256 * 1024**2


class Pair:
    """The box's daemon, and another one of the same user with a state folder of its own."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.claims = box.folder / "claims"
        self._states = (box.state, box.folder / "other")

    @contextmanager
    def other(self) -> Iterator[Box]:
        """The box speaks to the other daemon while the block runs."""
        self._turn_to(self._states[1])
        try:
            yield self.box
        finally:
            self._turn_to(self._states[0])

    def _turn_to(self, state: Path) -> None:
        self.box.state = state
        self.box.setenv(GPUQ_STATE_DIR=str(state))

    def files(self) -> list[Path]:
        return sorted(self.claims.iterdir())


@pytest.fixture
def card(box: Box, nvml: FakeNvml) -> FakeNvml:
    """One GPU of 24 GiB, read often; foreign use is soon forgotten."""
    box.setenv(GPUQ_READING_INTERVAL="0.1s", GPUQ_FOREIGN_WINDOW="1s", GPUQ_SETTLE="0.2s")
    nvml.set(gpus=fake_gpus(24 * GiB))
    return nvml


@pytest.fixture
def pair(box: Box) -> Iterator[Pair]:
    made = Pair(box)
    yield made
    with made.other() as other:
        other.close()


def gpu(box: Box) -> dict[str, Any]:
    found = box.request("gpus")["gpus"][0]
    assert isinstance(found, dict)
    return found


def share(box: Box, size: int, *command: str, **more: Any) -> int:
    return box.submit(*command, gpus=1, vram=size * GiB, **more)


def sleeps(gate: Path) -> list[str]:
    return ["sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.02; done']


def waits_for(box: Box, job: int, text: str) -> str:
    """Wait until the other's claim is why the job waits."""
    return wait_until(
        lambda: found[1] if (found := box.reason(job))[0] == "ForeignUse" and text in found[1] else "", f"{text!r}"
    )


def test_a_late_allocation_of_a_neighbour_cannot_collide(pair: Pair, card: FakeNvml) -> None:
    box = pair.box
    allocate, gate = box.folder / "allocate", box.folder / "go"
    first = share(box, 16, *card.allocate("16GiB", after=allocate, until=gate))
    box.wait_state(first, "running")
    with pair.other() as other:
        second = share(other, 16, *card.allocate("16GiB"))
        text = waits_for(other, second, "root's gpuq claims 16GiB on GPU 0 that it has not allocated yet")
        assert text.startswith("asks for 1 GPU with 16GiB; 0 of 1 GPUs fit now, 1 without foreign use;")
        seen = gpu(other)
        assert (seen["neighbours_bytes"], seen["foreign_bytes"]) == (16 * GiB, 0)
        assert seen["headroom_bytes"] == 8 * GiB - MARGIN
        assert [(n["claimed_bytes"], n["used_bytes"]) for n in seen["neighbours"]] == [(16 * GiB, 0)]
        said = other.ok("why", str(second))
        assert "claims 16GiB on GPU 0" in said
        allocate.touch()
        wait_until(lambda: gpu(other)["foreign_bytes"] == 16 * GiB, "the allocation")
        seen = gpu(other)
        assert (seen["neighbours_bytes"], seen["headroom_bytes"]) == (0, 8 * GiB - MARGIN)
        small = share(other, 7, "true")  # what is left can be used all the same
        assert other.wait(small)["state"] == "succeeded"
    gate.touch()
    ended = box.wait(first)
    with pair.other() as other:
        assert other.wait(second)["started_at"] >= ended["ended_at"]
    wait_until(lambda: not pair.files(), "the end of what was told")
