"""Simulated GPUs, the jobs that use them, and the choice that GPUQ_GPUS makes."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuq.errors import UsageError
from gpuq.gpus.simulated import NAME, Card, SimulatedGpus, parse_spec
from gpuq.gpus.source import NoGpus, open_source
from gpuq.launch.identity import identity_of
from gpuq.model import Driver, GiB, MiB
from tests.harness import Box, wait_until

JOB = "import sys; from gpuq.gpus.simjob import run; sys.exit(run(int(sys.argv[1]), *map(float, sys.argv[2:])))"
LONG = 600.0

SimJob = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def sim_job(tmp_path: Path) -> Iterator[SimJob]:
    """Start a job on the simulated GPUs of `tmp_path`; it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(size: int, ramp: float = 0, duration: float = LONG, visible: str | None = None) -> subprocess.Popen[str]:
        env = {**os.environ, "GPUQ_STATE_DIR": str(tmp_path)}
        env.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        command = [sys.executable, "-c", JOB, str(size), str(ramp), str(duration)]
        job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(job)
        return job

    yield start
    for job in started:
        job.kill()
        job.communicate()


def error_of(job: subprocess.Popen[str]) -> str:
    """What a job that ends by itself wrote to stderr. Raises TimeoutExpired."""
    return job.communicate(timeout=60)[1]


def cards(tmp_path: Path, spec: str) -> SimulatedGpus:
    return SimulatedGpus(spec, tmp_path / "sim")


def used(source: SimulatedGpus) -> list[int]:
    return [gpu.used for gpu in source.read().gpus]


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "cards"),
    [
        ("sim:2x24GiB", (Card(24 * GiB, NAME, 0), Card(24 * GiB, NAME, 0))),
        ("sim:2x24GiB,1x80G", (Card(24 * GiB, NAME, 0), Card(24 * GiB, NAME, 0), Card(80 * GiB, NAME, 1))),
        ("sim:1x512M, 1x1GiB", (Card(512 * MiB, NAME, 0), Card(GiB, NAME, 1))),
        ("sim:0x1GiB,1x2GiB=RTX 4090", (Card(2 * GiB, "RTX 4090", 1),)),
        ("sim:1x1GiB= H100 ,1x1GiB=" + "é" * 64, (Card(GiB, "H100", 0), Card(GiB, "é" * 64, 1))),
    ],
)
def test_spec(spec: str, cards: tuple[Card, ...]) -> None:
    assert parse_spec(spec) == cards


@pytest.mark.parametrize(
    "spec", ["sim:", "sim:24GiB", "sim:2x", "sim:2x24", "sim:0x24GiB", "sim:65x1GiB", "sim:-1x24GiB", "sim:1x24GiB,"]
)
def test_bad_spec_is_named(spec: str) -> None:
    with pytest.raises(UsageError, match=f"GPUQ_GPUS='{spec}'"):
        parse_spec(spec)


@pytest.mark.parametrize(
    "group", ["1x1GiB=", "1x1GiB= ", "1x1GiB=A=B", "1x1GiB=A\tB", "1x1GiB=" + "x" * 65, "1x=H100", "=H"]
)
def test_of_a_bad_spec_the_group_is_named(group: str) -> None:
    for spec in (f"sim:2x24GiB,{group}", f"sim:{group},2x24GiB=A100"):
        with pytest.raises(UsageError) as error:
            parse_spec(spec)
        assert f"GPUQ_GPUS={spec!r}" in str(error.value) and repr(group) in str(error.value)


def test_a_daemon_on_a_bad_spec_is_wrong_usage(box: Box) -> None:
    message = box.fails(2, "daemon", "start", env={"GPUQ_GPUS": "sim:1x24GiB,1x80GiB="})
    assert "'1x80GiB='" in message and "=H100" in message


def test_groups_have_names_and_are_closer_among_themselves(tmp_path: Path) -> None:
    readings = cards(tmp_path, "sim:2x24GiB=RTX 4090,2x80GiB=H100,1x80GiB=H100").read()
    assert [gpu.name for gpu in readings.gpus] == ["RTX 4090"] * 2 + ["H100"] * 3
    uuids = [gpu.uuid for gpu in readings.gpus]
    close = {pair for pair, distance in readings.distances.items() if distance == 110}
    far = {pair for pair, distance in readings.distances.items() if distance == 150}
    assert close == {(uuids[0], uuids[1]), (uuids[2], uuids[3])}
    assert close | far == set(itertools.combinations(sorted(uuids), 2))


def test_open_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUQ_STATE_DIR", str(tmp_path))
    none = open_source("none")
    assert isinstance(none, NoGpus)
    assert (none.read().driver, none.read().gpus) == (Driver.NONE, ())
    assert [gpu.total for gpu in open_source("sim:1x24GiB,1x8GiB").read().gpus] == [24 * GiB, 8 * GiB]
    assert (tmp_path / "sim" / "gpus.json").exists()
    for spec in (None, ""):
        assert type(open_source(spec)).__name__ == "WaryNvml"
    with pytest.raises(UsageError, match="GPUQ_GPUS='0,1'"):
        open_source("0,1")


# --- readings -------------------------------------------------------------------------------------


def test_empty_cards(tmp_path: Path) -> None:
    before = time.monotonic()
    readings = cards(tmp_path, "sim:2x24GiB").read()
    assert readings.driver is Driver.OK
    assert before <= readings.at <= time.monotonic()
    assert [(g.index, g.total, g.used, g.after, g.told, g.fault) for g in readings.gpus] == [
        (index, 24 * GiB, 0, (), True, None) for index in (0, 1)
    ]
    assert len({gpu.uuid for gpu in readings.gpus}) == 2
    assert all(gpu.uuid.startswith("GPU-sim") for gpu in readings.gpus)


def test_folders_and_files_are_the_owners_alone(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:1x24GiB")
    sim_job(GiB)
    wait_until(lambda: used(source) == [GiB], "the job allocates")
    made = [tmp_path / "sim", *(tmp_path / "sim").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    files = [path for path in made if path.is_file()]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_job_holds_memory_under_its_pid_until_it_dies(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:2x24GiB")
    uuid = source.read().gpus[1].uuid
    job = sim_job(10 * GiB, visible=uuid)
    wait_until(lambda: used(source) == [0, 10 * GiB], "the job allocates all it was told to")
    gpu = source.read().gpus[1]
    assert [(p.pid, p.used, p.compute, p.graphics) for p in gpu.before] == [(job.pid, 10 * GiB, True, False)]
    assert gpu.before == gpu.after
    job.kill()
    wait_until(lambda: used(source) == [0, 0], "a killed job that nobody has waited for holds nothing")
    assert not (tmp_path / "sim" / uuid / str(job.pid)).exists()


def test_what_living_jobs_hold_survives_a_restart(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:1x24GiB")
    sim_job(GiB)
    wait_until(lambda: used(source) == [GiB], "the job allocates")
    assert used(cards(tmp_path, "sim:1x24GiB")) == [GiB]


def test_a_pid_that_was_used_again_holds_nothing(tmp_path: Path) -> None:
    source = cards(tmp_path, "sim:1x24GiB")
    me = identity_of(os.getpid())
    assert me is not None
    mine = tmp_path / "sim" / source.read().gpus[0].uuid / str(me.pid)
    mine.write_text(f"{me.start_time} {me.boot_id} {GiB}\n")
    assert used(source) == [GiB]
    mine.write_text(f"{me.start_time - 1} {me.boot_id} {GiB}\n")
    assert used(source) == [0]
    assert not mine.exists()


def test_a_card_that_cannot_be_read_is_at_fault(tmp_path: Path) -> None:
    source = cards(tmp_path, "sim:2x24GiB")
    card = tmp_path / "sim" / source.read().gpus[0].uuid
    card.rmdir()
    card.touch()
    broken, well = source.read().gpus
    assert broken.fault is not None and "Not a directory" in broken.fault
    assert well.fault is None


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    source = cards(tmp_path, "sim:2x24GiB")
    shutil.rmtree(tmp_path / "sim")
    assert [gpu.fault for gpu in source.read().gpus] == [None, None]


# --- jobs -----------------------------------------------------------------------------------------


def test_memory_comes_late_and_bit_by_bit(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:1x24GiB")
    sim_job(10 * GiB, ramp=LONG)
    wait_until(lambda: used(source) > [0], "the first step")
    first = used(source)[0]
    wait_until(lambda: used(source)[0] > first, "the next step")
    assert used(source)[0] < 10 * GiB


def test_a_job_that_has_held_long_enough_gives_everything_back(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:2x24GiB")
    job = sim_job(GiB, ramp=0.3, duration=0.5, visible="0,1")
    assert error_of(job) == ""
    assert job.returncode == 0
    assert not list((tmp_path / "sim").glob("GPU-*/*"))
    assert used(source) == [0, 0]


@pytest.mark.parametrize(("visible", "expected"), [(None, [GiB, 0, 0]), ("2", [0, 0, GiB]), ("2,0", [GiB, 0, GiB])])
def test_which_cards_a_job_uses(tmp_path: Path, sim_job: SimJob, visible: str | None, expected: list[int]) -> None:
    source = cards(tmp_path, "sim:3x24GiB")
    sim_job(GiB, visible=visible)
    wait_until(lambda: used(source) == expected, f"{visible} is used")


def test_a_full_card_ends_a_job_as_cuda_does(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:1x8GiB")
    sim_job(6 * GiB)
    wait_until(lambda: used(source) == [6 * GiB], "the first job allocates")
    late = sim_job(4 * GiB)
    err = error_of(late)
    assert late.returncode == 1
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total " in err
    assert "capacity of 8.00 GiB of which 2.00 GiB is free" in err
    assert "Traceback" not in err
    assert used(source) == [6 * GiB], "the neighbour keeps its memory and the dead job has none"


def test_jobs_that_race_for_a_card_never_share_the_same_memory(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:1x8GiB")
    jobs = [sim_job(3 * GiB) for _ in range(5)]
    wait_until(lambda: sum(job.poll() is not None for job in jobs) == 3, "three of five find the card full")
    wait_until(lambda: used(source) == [6 * GiB], "two hold theirs")
    assert sorted(str(job.poll()) for job in jobs) == ["1", "1", "1", "None", "None"]


def test_a_job_waits_for_its_turn_to_allocate(tmp_path: Path, sim_job: SimJob) -> None:
    source = cards(tmp_path, "sim:1x8GiB")
    with open(tmp_path / "sim" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sim_job(GiB)
        blocked = re.compile(rf"-> FLOCK .*:{os.fstat(lock.fileno()).st_ino} ")  # proc(5), /proc/locks
        wait_until(lambda: bool(blocked.search(Path("/proc/locks").read_text())), "the job blocks in flock(2)")
    wait_until(lambda: used(source) == [GiB], "the job allocates")


def test_no_visible_gpu(tmp_path: Path, sim_job: SimJob) -> None:
    cards(tmp_path, "sim:1x8GiB")
    job = sim_job(GiB, visible="")
    err = error_of(job)
    assert job.returncode == 1
    assert "no GPU is visible" in err


def test_a_visible_gpu_that_is_not_simulated(tmp_path: Path, sim_job: SimJob) -> None:
    cards(tmp_path, "sim:1x8GiB")
    job = sim_job(GiB, visible="GPU-1234")
    err = error_of(job)
    assert "UsageError" in err and "'GPU-1234'" in err and "GPUQ_GPUS=sim:2x24GiB" in err


def test_no_simulated_gpus(sim_job: SimJob) -> None:
    job = sim_job(GiB)
    err = error_of(job)
    assert "UsageError" in err and "GPUQ_GPUS=sim:2x24GiB" in err
