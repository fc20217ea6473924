"""How far GPUs are apart, as a real daemon tells it; and what becomes of jobs while the driver does not say."""

from __future__ import annotations

import signal
from itertools import combinations
from typing import Any

import pytest

from gpuq.model import GiB
from tests.fakenvml import FakeNvml, FakePair, Fate, fake_gpus, fake_uuid
from tests.harness import Box, wait_until

STATE = "nvmlDeviceGetNvLinkState"


def near(box: Box) -> list[dict[str, Any]]:
    return [gpu["near"] for gpu in box.request("gpus")["gpus"]]


def test_gpus_tell_who_is_near(box: Box, nvml: FakeNvml) -> None:
    nvml.set(
        gpus=fake_gpus(24 * GiB, 24 * GiB, 24 * GiB),
        pairs=(FakePair(0, 1, links=4), FakePair(1, 2, level=50)),
    )
    first, second, third = (fake_uuid(number) for number in range(3))
    wait_until(lambda: near(box) == [{second: 96}, {first: 96, third: 150}, {second: 150}], "they are told")


def test_simulated_groups_are_near_each_other(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:2x24GiB,2x80GiB=H100")
    found = box.request("gpus")["gpus"]
    assert [gpu["name"] for gpu in found] == ["Simulated GPU"] * 2 + ["H100"] * 2
    within = {(0, 1), (2, 3)}
    for one, other in combinations(range(4), 2):
        assert found[one]["near"][found[other]["uuid"]] == (110 if (one, other) in within else 150)


@pytest.mark.parametrize("vram", [None, GiB])
def test_a_job_on_several_gpus_gets_those_that_nvlink_joins(box: Box, nvml: FakeNvml, vram: int | None) -> None:
    pairs = [FakePair(a, b, links=4 if (a, b) == (1, 3) else 0, level=50) for a, b in combinations(range(4), 2)]
    nvml.set(gpus=fake_gpus(*[24 * GiB] * 4), pairs=tuple(pairs))
    job = box.submit("true", gpus=2, vram=vram)
    assert wait_until(lambda: box.job(job)["gpus"], "its start") == [fake_uuid(1), fake_uuid(3)]


def test_a_job_on_several_simulated_gpus_gets_those_of_a_group(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB,2x24GiB")
    job = box.submit("true", gpus=2)
    assert wait_until(lambda: box.job(job)["gpu_indexes"] or [], "its start") == [1, 2]


@pytest.mark.parametrize("fate", [Fate(STATE, hang=True), Fate(STATE, crash=signal.SIGSEGV)], ids=["hangs", "crashes"])
def test_jobs_run_on_gpus_that_do_not_tell(box: Box, nvml: FakeNvml, fate: Fate) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB, 24 * GiB), pairs=(FakePair(0, 1, level=10),), fates=(fate,))
    pid = box.daemon_pid()
    job = box.submit("true", gpus=2)
    wait_until(lambda: box.job(job)["state"] == "succeeded", "the job")
    assert near(box) == [{}, {}]
    assert box.daemon_pid() == pid, "the daemon lives"
    assert nvml.calls().count(STATE) == 1
