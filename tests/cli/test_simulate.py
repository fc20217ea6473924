"""`gpuq simulate` as one types it: tables, JSON, the picture, history, and what it says of what cannot be simulated."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import Terminal
from tests.harness import GPUQ, Box, gone, wait_until

HEAD = "job_id,num_gpu,submit_time,iterations,duration\n"
ROWS = "0,1,0,606,10\n1,2,1,133,10\n2,1,2,157,5\n"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "jobs.csv"
    path.write_text(HEAD + ROWS)
    return str(path)


def simulated(box: Box, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.ok("simulate", *args, "--json"))
    assert found["schema"] == "gpuq.simulation/1"
    return found


def test_policies_side_by_side(box: Box, trace: str) -> None:
    shown = box.ok("simulate", trace, "--gpus", "2").splitlines()
    assert shown[0] == "3 jobs on 2 GPUs, times since the first submission"
    assert shown[2].split() == ["fifo", "fit-first", "easy", "sjf"]
    told = {line[:20].strip(): line[20:].split() for line in shown[3:]}
    assert told["wait mean"] == ["9s", "3s", "3s", "3s"]
    assert told["wait max"] == ["18s", "9s", "9s", "9s"]
    assert told["completion median"] == ["19s", "10s", "10s", "10s"]
    assert told["makespan"] == ["25s", "20s", "20s", "20s"]
    assert told["utilisation"] == ["70.0%", "87.5%", "87.5%", "87.5%"]
    assert max(map(len, shown)) <= 80
    assert not box.state.exists(), "a trace needs no daemon"


def test_json_with_its_jobs(box: Box, trace: str) -> None:
    found = simulated(box, trace, "--gpus", "2x24GiB", "--policy", "fifo,easy", "--jobs")
    assert (found["source"], found["jobs"], found["cut_by_limit"], found["was_sorted"]) == (trace, 3, 0, False)
    assert found["left_out"] == {}
    fifo, easy = found["runs"]
    assert (fifo["policy"], fifo["what_if"], fifo["gpu_count"], fifo["gpu_bytes"]) == (
        "fifo",
        None,
        2,
        [24 * 2**30] * 2,
    )
    assert fifo["wait_seconds"] == {"mean": 9.0, "median": 9.0, "p95": pytest.approx(17.1), "max": 18.0}
    assert fifo["completion_seconds"]["max"] == 23
    assert (fifo["makespan_seconds"], fifo["utilisation"]) == (25, 0.7)
    assert fifo["jobs"][0] == {"id": "0", "user": None, "submit": 0.0, "start": 0.0, "end": 10.0, "gpus": [0]}
    assert [(job["start"], job["gpus"]) for job in fifo["jobs"]] == [(0, [0]), (10, [0, 1]), (20, [0])]
    assert [(job["start"], job["gpus"]) for job in easy["jobs"]] == [(0, [0]), (10, [0, 1]), (2, [1])]
    assert "jobs" not in simulated(box, trace, "--gpus", "2")["runs"][0]


def test_what_if_stands_beside_what_is(box: Box, trace: str) -> None:
    args = ["simulate", trace, "--gpus", "2", "--what-if", "gpus=+1", "--policy"]
    shown = box.ok(*args, "fifo").splitlines()
    assert [line[20:].split() for line in shown[2:6]] == [
        ["fifo", "fifo"],
        ["as", "it", "is", "gpus=+1"],
        ["2", "3"],
        ["9s", "2.7s"],
    ]
    both = box.ok(*args, "fifo,fit-first,easy,sjf").splitlines()
    assert [line.split() for line in both if "fi" in line or "easy" in line][1:] == [
        ["fifo", "fifo", "fit-first", "fit-first"],
        ["easy", "easy", "sjf", "sjf"],
    ]
    assert max(map(len, both)) <= 80
    found = simulated(box, *args[1:-1], "--what-if", "gpus=8", "--policy", "easy")
    assert [(run["what_if"], run["gpu_count"]) for run in found["runs"]] == [(None, 2), ("gpus=+1", 3), ("gpus=8", 8)]


def test_standard_input(box: Box) -> None:
    done = subprocess.run(
        [*GPUQ, "simulate", "-", "-g", "2", "--json"], input=HEAD + ROWS, capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)["source"] == "-"
    assert not box.state.exists()


@pytest.mark.usefixtures("box")
def test_what_a_trace_needs_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("job_id,submit_time,num_gpu,duration,time_limit\nb,5,1,100,10\na,0,1,5,\n")
    done = subprocess.run([*GPUQ, "simulate", str(path), "--gpus", "1"], capture_output=True, text=True, check=True)
    assert done.stderr == (
        "gpuq: the trace was not in the order of submit_time, and was sorted\n"
        "gpuq: 1 job would take longer than the time limit, which ends them\n"
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{trace}"], "how many GPUs are to run the trace? write --gpus 8"),
        (
            ["{trace}", "--gpus", "1"],
            "jobs.csv, line 3: job 1 asks for 2 GPUs, and 1 are simulated; nothing was simulated",
        ),
        (["{trace}", "--gpus", "2", "--what-if", "gpus=-1"], "asks for 2 GPUs, and 1 are simulated"),
        (["{trace}", "--gpus", "0"], "makes 0 GPUs"),
        (["{trace}", "--gpus", "two"], "is no count of GPUs"),
        (
            ["{trace}", "--gpus", "2", "--policy", "srtf"],
            "there is no policy 'srtf': write some of fifo,fit-first,easy,sjf",
        ),
        (["{trace}", "--gpus", "2", "--policy", ""], "there is no policy ''"),
        (["{trace}", "--gpus", "2", "--json", "--gantt"], "exclude each other"),
        (["{trace}", "--gpus", "2", "--jobs"], "--jobs goes with --json"),
        (["{trace}", "--gpus", "2", "--since", "1d"], "a trace is simulated as a whole"),
        (["{trace}.gone", "--gpus", "2"], "cannot be read: No such file or directory"),
        (["/", "--gpus", "2"], "'/' cannot be read: Is a directory"),
        (["--since", "yesterday"], "--since 'yesterday' is not a time"),
        (["--since", "1h", "--until", "2h"], "is not before --until"),
        (["--until", "2026-13-01"], "--until '2026-13-01' is not a time"),
    ],
)
def test_bad_input(box: Box, trace: str, args: list[str], says: str) -> None:
    assert says in box.fails(2, "simulate", *(word.format(trace=trace) for word in args))


def test_history_is_replayed_as_it_was_asked_for(sim: Box) -> None:
    ids = [sim.submit("sh", "-c", "sleep 0.1", vram=10 * 2**30, time=3600.0, priority=n) for n in range(3)]
    ids += [sim.submit("true", gpus=2), sim.submit("true", gpus=0)]
    for job in ids:
        sim.wait(job)
    held = sim.submit("true", hold=True)
    found = simulated(sim, "--jobs")
    assert (found["source"], found["jobs"]) == ("history", 4)
    assert found["left_out"] == {"without GPUs": 1, "not ended yet": 1}
    assert [run["policy"] for run in found["runs"]] == ["fifo", "fit-first", "easy", "sjf", "current"]
    now = simulated(sim, "--policy", "current", "--what-if", "gpus=+2", "--jobs", "--since", "1h")["runs"]
    assert [run["gpu_count"] for run in now] == [2, 4]
    assert [job["id"] for job in now[0]["jobs"]] == [str(job) for job in ids[:4]]
    assert [len(job["gpus"]) for job in now[0]["jobs"]] == [1, 1, 1, 2]
    jobs = {job["id"]: job for job in json.loads(sim.ok("list", "--all", "--json"))["jobs"]}
    for one in now[0]["jobs"]:
        took = one["end"] - one["start"]
        from_list = jobs[int(one["id"])]
        assert took == pytest.approx(moment(from_list["ended_at"]) - moment(from_list["started_at"]), abs=0.002)
        assert one["user"] == from_list["owner"]
    assert "nothing of this host's history can be simulated" in sim.fails(1, "simulate", "--until", "1d")
    assert sim.job(held)["state"] == "held", "nothing was changed"


def test_current_has_the_limits_of_the_hosts_queues(sim: Box) -> None:
    sim.ok("queue", "set", "night", "--max-jobs", "4")
    for job in [sim.submit("sh", "-c", "sleep 0.2", vram=2**30, queue="night") for _ in range(4)]:
        sim.wait(job)
    sim.ok("queue", "set", "night", "--max-jobs", "1", "--gpus", "1")
    sim.ok("queue", "pause", "night")
    easy, now = simulated(sim, "--policy", "easy,current", "--jobs")["runs"]
    spans = sorted((job["start"], job["end"]) for job in now["jobs"])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "one at a time"
    assert {tuple(job["gpus"]) for job in now["jobs"]} == {(1,)}
    assert easy["completion_seconds"]["max"] < now["completion_seconds"]["max"]
    sim.wait(sim.submit("true", gpus=2))
    sim.ok("queue", "set", "default", "--max-gpus", "1")
    assert simulated(sim)["left_out"] == {"larger than the simulated GPUs, or than its queue allows": 1}
    assert not simulated(sim, "--policy", "easy")["left_out"]


def moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_a_host_without_gpus_or_history(box: Box) -> None:
    assert "say on which to simulate" in box.fails(1, "simulate")
    assert "nothing of this host's history" in box.fails(1, "simulate", "--gpus", "2")


def test_the_picture_off_a_terminal(box: Box, trace: str) -> None:
    shown = box.ok("simulate", trace, "--gpus", "2", "--policy", "easy", "--gantt", env={"COLUMNS": "31"})
    assert shown.splitlines()[-5:] == [
        "easy on 2 GPUs",
        "gpu0 |0----------|1-----------",
        "gpu1 ..|2-----...|1-----------",
        "     |0s         |9.6s",
        "a column is 0.8s, | and an id is a start",
    ]


@pytest.mark.usefixtures("box")
def test_the_picture_on_a_terminal(trace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Terminal("simulate", trace, "--gpus", "2", "--policy", "easy", "--gantt") as terminal:
        code, text = terminal.finish()
        assert code == 0
        assert "\x1b[30;42m|0-" in terminal.raw, "a job has a colour"
    assert "gpu1 .......|2" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_what_takes_long_shows_how_far_it_is_and_leaves_nothing_behind(how: int, code: int, tmp_path: Path) -> None:
    dice = random.Random(0)
    rows = (f"{n},{dice.choice((1, 2, 8))},{n},0,{dice.randint(1, 99)}\n" for n in range(30_000))
    path = tmp_path / "long.csv"
    path.write_text(HEAD + "".join(rows))
    with Terminal("simulate", str(path), "--gpus", "8", "--policy", "easy,fifo,sjf") as terminal:
        terminal.read_until("simulating")
        pid = terminal.process.pid
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert len(children) == (3 if len(os.sched_getaffinity(0)) > 1 else 0)
        os.killpg(pid, how) if how == signal.SIGINT else os.kill(pid, how)
        assert terminal.finish()[0] == code
        assert "Traceback" not in terminal.text
    wait_until(lambda: all(map(gone, children)), "the simulations' end")


def test_it_imports_what_it_needs_alone(trace: str) -> None:
    program = (
        "import sys\n"
        "from gpuq.cli.app import invoke\n"
        "code = invoke(sys.argv[1:])\n"
        "heavy = {'asyncio', 'sqlite3', 'sqlite_utils', 'psutil', 'pynvml', 'rich', 'filelock', 'gpuq.daemon'}\n"
        "print('imported', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    args = [sys.executable, "-c", program, "simulate", trace, "--gpus", "2", "--gantt"]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert "imported []" in done.stderr
