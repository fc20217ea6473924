"""Two daemons on one card: who was told what, and that nothing collides, whatever becomes of either of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gpuq.daemon.claimsfile import Published, encode, parse
from gpuq.daemon.neighbours import LAUNCH_PATIENCE
from gpuq.launch.identity import read_stat
from tests.fakenvml import FakeNvml, fake_gpus
from tests.harness import Box, wait_until

GiB = 1024**3
MARGIN = 256 * 1024**2


class Pair:
    """The box's daemon, and another one of the same user with a state folder of its own."""

    def __init__(self, box: Box, card: FakeNvml) -> None:
        self.box, self.card = box, card
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
def pair(box: Box, card: FakeNvml) -> Iterator[Pair]:
    made = Pair(box, card)
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
        text = waits_for(other, second, "'s gpuq claims 16GiB on GPU 0 that it has not allocated yet")
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


@pytest.mark.parametrize("point", ["tell-before", "tell-after"])
def test_a_daemon_that_was_stopped_while_it_planned_starts_nothing_by_an_old_plan(pair: Pair, point: str) -> None:
    """It holds the lock for longer than others wait for it."""
    box, gates = pair.box, [pair.box.folder / name for name in ("one", "two")]
    box.setenv(GPUQ_CRASH_AT=f"stop@{point}")
    pid = box.daemon_pid()
    box.setenv(GPUQ_CRASH_AT=None)
    try:
        first = share(box, 16, *sleeps(gates[0]))
        wait_until(lambda: (found := read_stat(pid)) and found.state == "T", "the stop")
        with pair.other() as other:
            second = share(other, 16, *sleeps(gates[1]))
            if point == "tell-before":
                other.wait_state(second, "running")
            else:
                waits_for(other, second, "claims 16GiB")
    finally:
        os.kill(pid, signal.SIGCONT)
    if point == "tell-before":
        waits_for(box, first, "claims 16GiB on GPU 0")
        assert box.job(first)["attempt"] == 0
    for gate in gates:
        gate.touch()
    ended = box.wait(first)
    with pair.other() as other:
        second_ended = other.wait(second)
    both = sorted((ended, second_ended), key=lambda job: str(job["started_at"]))
    assert instant(both[0]["ended_at"]) <= instant(both[1]["started_at"])


def test_a_whole_gpu_is_not_shared_with_a_neighbour_nor_taken_from_one(pair: Pair) -> None:
    box, gates = pair.box, [pair.box.folder / name for name in ("one", "two")]
    whole = box.submit(*sleeps(gates[0]), gpus=1)
    box.wait_state(whole, "running")
    with pair.other() as other:
        small = share(other, 1, *sleeps(gates[1]))
        waits_for(other, small, "'s gpuq claims the whole GPU 0")
        assert (gpu(other)["headroom_bytes"], gpu(other)["neighbours_bytes"]) == (0, 24 * GiB)
    second = box.submit("true", gpus=1)
    assert box.reason(second)[0] == "Resources"
    gates[0].touch()
    box.wait(whole)
    with pair.other() as other:
        other.wait_state(small, "running")
    wait_until(lambda: box.reason(second)[0] == "ForeignUse", "the neighbour's turn")
    assert gpu(box)["neighbours_bytes"] == GiB
    gates[1].touch()
    assert box.wait(second)["state"] == "succeeded"


def supervised(pair: Pair) -> tuple[Path, Published]:
    """The only file of claims, and what is in it once that names the supervisor of the first."""
    said = wait_until(
        lambda: next(
            (told for file in pair.files() if (told := parse(file.read_bytes())).claims and told.claims[0].supervisor),
            None,
        ),
        "the supervisor",
    )
    (file,) = pair.files()
    assert said is not None
    return file, said


def test_a_daemon_that_was_killed_before_its_job_allocates(pair: Pair, card: FakeNvml) -> None:
    box = pair.box
    allocate, gate = box.folder / "allocate", box.folder / "go"
    first = share(box, 16, *card.allocate("16GiB", after=allocate, until=gate))
    supervised(pair)
    box.kill_daemon()
    with pair.other() as other:
        second = share(other, 16, *card.allocate("16GiB"))
        waits_for(other, second, "claims 16GiB on GPU 0 that it has not allocated yet")
        allocate.touch()
        wait_until(lambda: gpu(other)["foreign_bytes"] == 16 * GiB, "the allocation")
        seen = gpu(other)
        assert (seen["neighbours_bytes"], seen["neighbours"][0]["used_bytes"]) == (0, 16 * GiB)
        assert other.job(second)["state"] == "queued"
        gate.touch()
        assert other.wait(second)["state"] == "succeeded"
    assert box.wait(first)["state"] == "succeeded"  # by a new daemon
    assert instant(ended_of(pair, second)) > instant(box.job(first)["ended_at"])


def ended_of(pair: Pair, job: int) -> str:
    with pair.other() as other:
        ended = other.job(job)["ended_at"]
    assert isinstance(ended, str)
    return ended


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_daemon_that_was_killed_while_it_started_a_job(pair: Pair) -> None:
    """It had told the claim, and not yet which process is the supervisor: that can be found."""
    box, gate = pair.box, pair.box.folder / "go"
    first = share(box, 16, *sleeps(gate))
    box.wait_begun(first)
    file, said = supervised(pair)
    box.kill_daemon()
    file.write_bytes(encode(replace(said, claims=(replace(said.claims[0], supervisor=None),))))
    with pair.other() as other:
        second = share(other, 16, "true")
        waits_for(other, second, "claims 16GiB")
        begun = time.monotonic()
        while time.monotonic() < begun + LAUNCH_PATIENCE + 1:  # it is looked for meanwhile
            assert other.reason(second)[0] == "ForeignUse"
        gate.touch()
        assert other.wait(second)["state"] == "succeeded"
    # one that was never started does not count
    file.write_bytes(encode(replace(said, claims=(replace(said.claims[0], supervisor=None, run="0" * 32),))))
    with pair.other() as other:
        third = share(other, 16, "true")
        assert other.wait(third)["state"] == "succeeded"


def test_a_new_daemon_tells_what_it_takes_back_and_removes_what_was_left(pair: Pair) -> None:
    box, gate = pair.box, pair.box.folder / "go"
    first = share(box, 16, *sleeps(gate))
    box.wait_begun(first)
    left, before = supervised(pair)
    box.kill_daemon()
    half = pair.claims / f"gpuq-claims.{os.geteuid()}.{'a' * 32}.new"
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    box.request("status")
    (file,) = wait_until(lambda: found if len(found := pair.files()) == 1 else [], "the removal")
    after = parse(file.read_bytes())
    assert file != left
    assert after.pid == box.daemon_pid() != before.pid
    assert after.claims[0].supervisor == before.claims[0].supervisor
    # a daemon that stops and leaves its jobs running leaves their claims
    box.ok("daemon", "stop")
    assert pair.files() == [file]
    with pair.other() as other:
        waits_for(other, share(other, 16, "true"), "claims 16GiB")


def test_a_file_that_was_cleaned_away_is_written_again(pair: Pair) -> None:
    box, gate = pair.box, pair.box.folder / "go"
    box.wait_state(share(box, 16, *sleeps(gate)), "running")
    file, _ = supervised(pair)
    said = file.read_bytes()
    file.unlink()
    (again,) = wait_until(pair.files, "the file")
    assert again.read_bytes() == said
    assert again != file, "others may have noted meanwhile that somebody else's file had that name"


def test_simulated_gpus_are_each_daemons_own(sim: Box) -> None:
    sim.wait_state(share(sim, 16, "sleep", "60"), "running")
    assert list((sim.folder / "claims").iterdir()) == []


def test_a_folder_in_which_others_can_remove_files_is_not_used(pair: Pair) -> None:
    box, gate = pair.box, pair.box.folder / "go"
    pair.claims.chmod(0o777)
    box.wait_state(share(box, 16, *sleeps(gate)), "running")
    assert pair.files() == []
    assert "is not sticky (mode 777)" in box.request("gpus")["note"]
    assert "not sticky" in box.run("doctor").stdout
    pair.claims.chmod(0o1777)
    wait_until(pair.files, "the claims, once the folder is right")
    wait_until(lambda: box.request("gpus")["note"] is None, "the end of the note")
    assert "tell each other their claims" in box.run("doctor").stdout
