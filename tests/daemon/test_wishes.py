"""Which GPUs jobs get that choose among them: the command line, a real daemon, and cards of several types."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gpuq.daemon.wishes import Listed
from gpuq.errors import CannotFit, GpuqError, UsageError
from gpuq.model import Driver
from tests.fakenvml import VERSION_MISMATCH, FakeNvml, fake_gpus, fake_uuid
from tests.harness import Box, wait_until

GiB = 1024**3
MiB = 1024**2
#: Product names and memory as the driver tells them.
CARDS = (
    ("NVIDIA GeForce RTX 4090", 24 * GiB),
    ("NVIDIA A100-PCIE-40GB", 40 * GiB),
    ("NVIDIA A100-SXM4-80GB", 80 * GiB),
    ("NVIDIA H100 80GB HBM3", 80 * GiB),
)
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"


@pytest.fixture
def mixed(box: Box, nvml: FakeNvml) -> FakeNvml:
    """One card of each type."""
    box.setenv(GPUQ_READING_INTERVAL="0.1s", GPUQ_FOREIGN_WINDOW="1s", GPUQ_SETTLE="0.2s")
    gpus = fake_gpus(*(size for _, size in CARDS))
    nvml.set(gpus=tuple(replace(gpu, name=name) for gpu, (name, _) in zip(gpus, CARDS, strict=True)))
    return nvml


SHOW = ["sh", "-c", 'echo "$GPUQ_GPU_COUNT $CUDA_VISIBLE_DEVICES"']


CHOSEN: list[tuple[list[str], list[int]]] = [
    ([], [0]),
    (["--gpu-type", "a100"], [1]),
    (["--gpu-type", "H100|SXM4", "--gpus", "2"], [2, 3]),
    (["--gpu-type", "h100", "--gpu-type", "sxm4", "--gpus", "1:4"], [2, 3]),
    (["--gpu-min-memory", "60GiB"], [2]),
    (["--gpu-min-memory", "10GiB", "--vram", "30GiB"], [1]),
    (["--gpu-id", "3"], [3]),
    (["--gpu-id", "3,1", "--gpus", "2"], [1, 3]),
    (["--gpu-id", "0", "--gpu-id", fake_uuid(3).upper(), "--gpu-min-memory", "60G"], [3]),
    (["--exclude-gpu", "0,1", "--gpus", "1:2"], [2, 3]),
    (["--exclude-gpu", fake_uuid(0)], [1]),
    (["--vram", "1GiB", "--spread"], [2]),
    (["--gpus", "1:16"], [0, 1, 2, 3]),
    (["--gpus", "0"], []),
]


def test_a_job_gets_what_it_chose(box: Box, mixed: FakeNvml) -> None:
    for number, (options, indexes) in enumerate(CHOSEN, 1):
        told = box.ok("run", *options, "--", *SHOW)
        job = box.job(number)
        assert job["gpu_indexes"] == indexes, options
        assert job["gpus"] == [mixed.uuid(n) for n in indexes]
        assert told == f"{len(indexes)} {','.join(job['gpus'])}\n"
        assert [claim["gpu"] for claim in job["attempts"][0]["claims"]] == job["gpus"]


WISHES = ["--gpus", "1:3", "--gpu-type", "A100|H100", "--gpu-min-memory", "60GiB", "--gpu-id", "0,2,3"]


def test_what_was_chosen_is_shown_and_outlives_the_daemon(box: Box, mixed: FakeNvml) -> None:
    box.ok("submit", "--hold", *WISHES, "--exclude-gpu", "1", "--spread", "--vram", "8GiB", "--", "true")
    fields = {
        "gpu_count": 1,
        "gpu_count_most": 3,
        "gpu_types": ["A100", "H100"],
        "gpu_min_memory_bytes": 60 * GiB,
        "gpu_ids": [mixed.uuid(0), mixed.uuid(2), mixed.uuid(3)],
        "gpus_excluded": [mixed.uuid(1)],
        "spread": True,
    }
    for _ in range(2):
        (job,) = box.json("show", "1")["jobs"]
        assert {name: job[name] for name in fields} == fields
        box.kill_daemon()
    shown = box.ok("show", "1")
    for said in ("1 to 3 with 8GiB claimed on each", "A100 or H100", "at least 60GiB", mixed.uuid(2)):
        assert said in shown
    assert "1:3 " in box.ok("list")
    box.ok("release", "1")
    assert box.wait(1)["gpu_indexes"] == [2, 3]
    assert "gpu2,3 " in box.ok("list", "--all")
    plain = box.job(box.submit("true", gpus=2, hold=True))
    assert (plain["gpu_count"], plain["gpu_count_most"]) == (2, 2)
    assert [plain[name] for name in list(fields)[2:]] == [[], None, [], [], False]


REFUSED: list[tuple[int, list[str], str]] = [
    (1, ["--gpu-type", "B200"], "0 of 4 GPUs are of type B200: 1 is asked for; there are 1 NVIDIA A100-PCIE-40GB, 1 N"),
    (1, ["--gpu-type", "A100", "--gpus", "3:4"], "2 of 4 GPUs are of type A100: 3 are asked for"),
    (
        1,
        ["--gpu-type", "A100", "--gpu-min-memory", "60GiB", "--gpus", "2"],
        "2 of 4 GPUs are of type A100, 1 of them has at least 60GiB: 2 are asked for",
    ),
    (1, ["--gpu-min-memory", "100G"], "0 of 4 GPUs have at least 100GiB: 1 is asked for; the largest has 80GiB"),
    (1, ["--gpu-id", "0", "--vram", "30GiB"], "0 of them can hold the 30GiB of --vram"),
    (1, ["--gpu-id", "4"], f"--gpu-id 4: there is no GPU 4; there are 0 ({fake_uuid(0)}), 1 ({fake_uuid(1)}), 2 ("),
    (1, ["--exclude-gpu", "GPU-0"], f"--exclude-gpu GPU-0: there is no such GPU; there are 0 ({fake_uuid(0)}), 1 ("),
    (2, ["--gpu-id", "gpu-fa4e"], f"--gpu-id gpu-fa4e is how 4 UUIDs begin: {fake_uuid(0)}, "),
    (2, ["--gpu-id", "1", "--exclude-gpu", "0,1"], f"--gpu-id and --exclude-gpu both name GPU 1 ({fake_uuid(1)})"),
    (2, ["--gpu-id", f"1,{fake_uuid(1)}", "--gpus", "2"], "--gpus asks for 2 GPUs, and --gpu-id names 1"),
    (2, ["--gpus", "0", "--exclude-gpu", "1"], "--exclude-gpu chooses among them"),
    (1, ["--exclude-gpu", "0,1,2,3"], "0 of 4 GPUs are not excluded: 1 is asked for"),
]


@pytest.mark.usefixtures("mixed")
def test_what_cannot_be_is_refused_by_name(box: Box) -> None:
    for code, options, said in REFUSED:
        found = box.fails(code, "submit", *options, "--", "true")
        assert said in found, (options, found)
        assert found.count("\n") == 1
    assert box.json("list", "--all")["jobs"] == []
    box.ok("submit", "--hold", "--gpu-min-memory", "10GiB", "--vram", "20GiB", "--", "true")  # no contradiction


def test_a_range_takes_what_has_room_and_waits_for_its_least(sim: Box) -> None:
    sim.setenv(GPUQ_GPUS="sim:4x24GiB")
    go, end = sim.folder / "go", sim.folder / "end"
    wait = 'echo $GPUQ_GPU_COUNT; while [ ! -e "$0" ]; do sleep 0.02; done'
    first = sim.submit("sh", "-c", wait, str(end), gpus=1, gpu_ids=["1"])
    sim.wait_state(first, "running")
    rest = sim.submit("sh", "-c", wait, str(go), gpus=2, gpus_most=8)
    assert sim.wait_state(rest, "running")["gpu_indexes"] == [0, 2, 3]
    late = sim.submit("sh", "-c", wait, str(end), gpus=1, gpus_most=2)
    assert sim.reason(late) == ("Resources", "asks for 1 to 2 whole GPUs; 0 of 4 GPUs fit now")
    go.touch()
    assert sim.wait_state(late, "running")["gpu_indexes"] == [0, 2]
    end.touch()
    sim.wait(first, rest, late)
    assert [sim.log(job) for job in (first, rest, late)] == ["1\n", "3\n", "2\n"]


def test_cpus_and_host_memory_count_for_gpu_jobs_that_ask_for_them(sim: Box) -> None:
    cpus, ram = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    gate = sim.folder / "go"
    wait = ["sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.02; done']
    sim.wait_state(sim.submit(*wait, gpus=1, vram=GiB, cpus=cpus, ram=ram // 2), "running")
    no_cpu = sim.submit("true", gpus=1, vram=GiB, cpus=1)
    no_ram = sim.submit("true", gpus=1, vram=GiB, ram=ram // 2 + MiB)
    assert sim.reason(no_cpu) == ("Resources", f"asks for 1 CPU, 0 of {cpus} free")
    assert "of host memory" in sim.reason(no_ram)[1]
    assert sim.wait(sim.submit("true", gpus=1, vram=GiB, time_limit=9.0, priority=1))["state"] == "succeeded"
    gate.touch()
    assert sim.wait(no_cpu, no_ram)["state"] == "succeeded"


def test_an_index_is_a_uuid_from_the_submit_on(box: Box, mixed: FakeNvml) -> None:
    """Also where the driver lists its GPUs otherwise since the daemon has read them last."""
    second = box.submit("true", gpus=1, gpu_ids=["1"], hold=True)
    mixed.set(gpus=(mixed.box.gpus[1], mixed.box.gpus[0], *mixed.box.gpus[2:]))
    first = box.submit("true", gpus=1, gpu_ids=["1"])
    assert box.wait(first)["gpus"] == [fake_uuid(0)]
    box.ok("release", str(second))
    found = box.wait(second)
    assert (found["gpus"], found["gpu_indexes"]) == ([fake_uuid(1)], [0])


def test_while_the_driver_does_not_work(box: Box, mixed: FakeNvml) -> None:
    mixed.set(init=VERSION_MISMATCH)
    for option in ("--gpu-id", "--exclude-gpu"):
        said = box.fails(1, "submit", option, "0", "--", "true")
        assert f"{option} 0: which GPUs there are is not known: " in said
        assert "versions differ" in said
    waits = box.submit("true", gpus=1, gpu_types=["H100"])
    assert box.reason(waits)[0] == "GpuUnavailable"
    mixed.set(init=0)
    assert box.wait(waits)["gpu_indexes"] == [3]
    mixed.set(every=VERSION_MISMATCH)
    wait_until(lambda: box.request("gpus")["fault"], "the driver's fault")
    named = box.submit("true", gpus=1, gpu_ids=["2"])  # it had that index when it was last listed
    with pytest.raises(GpuqError, match="0 of 4 GPUs are of type B200"):
        box.submit("true", gpus=1, gpu_types=["B200"])
    mixed.set(every=0)
    assert box.wait(named)["gpu_indexes"] == [2]


@pytest.mark.usefixtures("mixed")
def test_a_claim_grows_as_far_as_the_gpus_that_will_do(box: Box) -> None:
    box.setenv(GPUQ_RETRY_BACKOFF="0.01s")
    job = box.submit(
        "sh", "-c", f"echo '{OOM}'; exit 1", gpus=1, vram=20 * GiB, retry=["vram-oom:9*1.5"], gpu_types=["PCIE", "4090"]
    )
    done = box.wait(job)
    claims = [attempt["claims"][0] for attempt in box.job(job)["attempts"]]
    top = 40 * GiB - 256 * MiB
    assert [(claim["declared_bytes"], claim["index"]) for claim in claims] == [(20 * GiB, 0), (30 * GiB, 1), (top, 1)]
    assert done["note"].endswith("not tried again: its claim cannot grow past the card")


@pytest.mark.usefixtures("mixed")
def test_others_are_told_which_gpus_will_do(box: Box) -> None:
    gate = box.folder / "go"
    wait = ["sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.02; done']
    box.wait_state(box.submit(*wait, gpus=1, gpu_ids=["3"]), "running")
    box.submit("true", gpus=1, gpu_types=["H100"])

    def told(of: Callable[[object], bool]) -> Callable[[], bool]:
        return lambda: any(of(json.loads(path.read_text())["waits"]) for path in Path(box.folder / "claims").iterdir())

    wait_until(told(lambda waits: isinstance(waits, dict) and waits["only"] == [fake_uuid(3)]), "what will do")
    everything = box.submit("true", gpus=4, priority=5)
    wait_until(told(lambda waits: isinstance(waits, dict) and waits["gpus"] == 4 and waits["only"] is None), "all")
    gate.touch()
    box.wait(everything)


LISTED = Listed(Driver.OK, {"GPU-aa11": 0, "GPU-aa22": 1, "GPU-b": 10, "GPU-b2": None})


@pytest.mark.parametrize(
    ("word", "uuid"),
    [
        ("0", "GPU-aa11"),
        ("01", "GPU-aa22"),
        ("10", "GPU-b"),
        ("gpu-AA2", "GPU-aa22"),
        ("GPU-b2", "GPU-b2"),
        ("GPU-b",) * 2,
    ],
)
def test_a_gpu_is_named(word: str, uuid: str) -> None:
    assert LISTED.find(word, "--gpu-id") == uuid


@pytest.mark.parametrize(
    ("listed", "word", "error", "said"),
    [
        (
            LISTED,
            "2",
            CannotFit,
            "--gpu-id 2: there is no GPU 2; there are 0 (GPU-aa11), 1 (GPU-aa22), 10 (GPU-b), GPU-b2",
        ),
        (LISTED, "9" * 5000, CannotFit, "there is no GPU 99"),
        (LISTED, "GPU-c", CannotFit, "--gpu-id GPU-c: there is no such GPU; there are 0 (GPU-aa11)"),
        (LISTED, "²", CannotFit, "there is no such GPU"),
        (LISTED, "GPU-aa", UsageError, "--gpu-id GPU-aa is how 2 UUIDs begin: GPU-aa11, GPU-aa22"),
        (Listed(Driver.OK, {}), "0", CannotFit, "--gpu-id 0: this host has no GPUs"),
        (Listed(Driver.NONE, {}), "GPU-a", CannotFit, "--gpu-id GPU-a: this host has no GPUs"),
        (
            Listed(None, {}),
            "0",
            CannotFit,
            "--gpu-id 0: which GPUs there are is not known: they have not been read yet",
        ),
        (Listed(Driver.BROKEN, {}, "it broke"), "0", CannotFit, "which GPUs there are is not known: it broke"),
        (
            Listed(Driver.BROKEN, {"GPU-a": None}, "it broke"),
            "0",
            CannotFit,
            "--gpu-id 0: which GPU has that index is not known: it broke; name its UUID: there is GPU-a",
        ),
        (Listed(Driver.OK, {f"GPU-{n}": n for n in range(40)}), "40", CannotFit, "15 (GPU-15), and 24 more"),
    ],
)
def test_a_gpu_that_cannot_be_named(listed: Listed, word: str, error: type[GpuqError], said: str) -> None:
    with pytest.raises(error) as found:
        listed.find(word, "--gpu-id")
    assert said in found.value.message
    assert len(found.value.message) < 1000
