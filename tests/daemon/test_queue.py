"""The queue from outside: what happens to jobs, told by a real daemon with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import time
from datetime import datetime
from pathlib import Path

import pytest

from gpuq.cli import fields
from gpuq.client import Client
from gpuq.daemon.handlers import SLICE
from gpuq.errors import CannotFit, GpuqError, NoSuchJob, UsageError
from tests.harness import Box, gone, wait_until


def blocker(box: Box, name: str = "go") -> tuple[list[str], Path]:
    """A command that runs until a file appears."""
    gate = box.folder / name
    return ["sh", "-c", f'while [ ! -e "{gate}" ]; do sleep 0.02; done'], gate


@pytest.fixture
def single(box: Box) -> Box:
    """A box whose daemon may use one CPU, so that one CPU job runs at a time."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    box.request("status")
    os.sched_setaffinity(0, cpus)
    return box


def test_a_job_runs_and_its_truth_is_kept(box: Box) -> None:
    job = box.submit("sh", "-c", "echo out; echo err >&2; exit 7", name="two streams")
    ended = box.wait(job)
    assert (ended["state"], ended["failure"], ended["exit_code"], ended["signal"]) == ("failed", "exit", 7, None)
    assert box.log(job) == "out\nerr\n"
    assert ended["owner"] and ended["uid"] == os.getuid()
    assert ended["submitted_at"] <= ended["started_at"] <= ended["ended_at"]
    assert [event["kind"] for event in box.job(job)["events"]] == ["submitted", "started", "failed"]


def test_a_signal_is_told_as_a_signal(box: Box) -> None:
    ended = box.wait(box.submit("sh", "-c", "kill -SEGV $$"))
    assert (ended["failure"], ended["exit_code"], ended["signal"]) == ("signal", None, signal.SIGSEGV)


def test_a_program_that_is_not_there_is_a_launch_failure(box: Box) -> None:
    ended = box.wait(box.submit("no-such-program-here"))
    assert (ended["state"], ended["failure"], ended["exit_code"]) == ("failed", "launch", None)
    assert "no-such-program-here" in ended["note"]


def test_the_time_limit_ends_a_job(box: Box) -> None:
    ended = box.wait(box.submit("sleep", "100", time_limit=0.2))
    assert (ended["state"], ended["failure"], ended["signal"]) == ("failed", "timeout", signal.SIGTERM)


def test_cancel_of_a_running_job_leaves_no_process(box: Box) -> None:
    pids = box.folder / "pids"
    job = box.submit("sh", "-c", f'sleep 1000 & echo $$ $! > "{pids}.new"; mv "{pids}.new" "{pids}"; wait')
    wait_until(pids.exists, "the job's pids")
    found = pids.read_text().split()
    assert box.request("cancel", sel={"ranges": [[job, job]]})["done"] == [job]
    ended = box.wait(job)
    assert (ended["state"], ended["failure"]) == ("cancelled", None)
    assert all(gone(int(pid)) for pid in found)


def test_a_cancel_after_the_time_limit_gives_no_more_time(box: Box) -> None:
    told, gate = box.folder / "told", box.folder / "gate"
    script = f'trap ": > {told}" TERM; until [ -e {gate} ]; do sleep 0.05; done; exit 3'
    job = box.submit("sh", "-c", script, gpus=0, time_limit=1.0, grace=1000)
    wait_until(told.exists, "the time limit")
    box.ok("cancel", str(job))
    found = box.job(job)
    started, asked, killed = (
        datetime.fromisoformat(found[name]).timestamp() for name in ("started_at", "ending_at", "kill_at")
    )
    assert killed == pytest.approx(started + 1 + 1000, abs=0.01) and killed < asked + 1000
    gate.touch()
    assert box.wait(job)["failure"] == "timeout"


@pytest.mark.parametrize("state", ["running", "suspended"])
def test_a_job_that_takes_its_time_to_end_says_so(box: Box, state: str) -> None:
    begun, gate = box.folder / "begun", box.folder / "gate"
    script = f'trap "" TERM; touch {begun}; until [ -e {gate} ]; do sleep 0.05; done'
    job = box.submit("sh", "-c", script, gpus=0, grace=1000)
    wait_until(begun.exists, "the job")
    if state == "suspended":
        box.ok("suspend", str(job))
    assert "ancelling" not in box.ok("list") + box.ok("why", str(job)) + box.ok("show", str(job))
    box.ok("cancel", str(job))
    found = box.job(job)
    assert (found["state"], found["ending"]) == (state, "cancel")
    asked, killed = (datetime.fromisoformat(found[name]).timestamp() for name in ("ending_at", "kill_at"))
    assert killed == pytest.approx(asked + 1000, abs=0.01)
    box.ok("cancel", str(job))
    assert box.job(job)["kill_at"] == found["kill_at"], "asked again, it has no more time"
    row = box.ok("list").splitlines()[1].split()
    assert state in row and "cancelling" in row
    since, kill_at = (fields.local_time(found[name]) for name in ("ending_at", "kill_at"))
    assert f"cancelling since {since}; KILL follows at {kill_at}" in box.ok("why", str(job))
    shown = next(line for line in box.ok("show", str(job)).splitlines() if line.startswith("state"))
    assert f"{state}, cancelling since" in shown and "; KILL follows at" in shown
    gate.touch()
    ended = box.wait(job)
    assert (ended["state"], ended["ending"], ended["ending_at"], ended["kill_at"]) == ("cancelled", None, None, None)


def test_hold_release_and_cancel_of_a_waiting_job(single: Box) -> None:
    command, gate = blocker(single)
    first = single.submit(*command)
    single.wait_state(first, "running")
    held = single.submit("true", hold=True)
    queued = single.submit("true")
    doomed = single.submit("true")
    assert single.reason(held) == ("Held", f"held; `gpuq release {held}` lets it go")
    assert single.reason(queued) == ("Resources", "asks for 1 CPU, 0 of 1 free")
    assert single.request("hold", sel={"ranges": [[queued, queued]]})["done"] == [queued]
    assert single.request("cancel", sel={"ranges": [[doomed, doomed]]})["done"] == [doomed]
    gate.touch()
    assert single.wait(first, doomed)["state"] == "succeeded"
    assert single.job(doomed)["state"] == "cancelled"
    assert single.job(doomed)["attempts"] == []
    assert [single.job(n)["state"] for n in (held, queued)] == ["held", "held"]
    single.request("release", sel={"ranges": [[held, queued]]})
    assert single.wait(held, queued)["state"] == "succeeded"


@pytest.mark.parametrize("removed", [False, True])
def test_the_next_job_finds_its_folder_made(single: Box, removed: bool) -> None:
    command, gate = blocker(single)
    first = single.submit(*command)
    single.wait_begun(first)
    job = single.submit("sh", "-c", 'cd "$GPUQ_JOB_DIR" && pwd')
    folder = Path(single.job(first)["attempts"][0]["run_dir"]).parents[1] / str(job) / "1"
    wait_until((folder / "work").is_dir, "the folder of a job that waits")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    if removed:
        shutil.rmtree(folder.parent)
    gate.touch()
    assert single.wait(job)["exit_code"] == 0
    assert single.log(job) == f"{folder}/work\n"


def test_priority_beats_age(single: Box) -> None:
    command, gate = blocker(single)
    first = single.submit(*command)
    low = single.submit("true", priority=-1)
    middle = single.submit("true")
    high = single.submit("true", priority=9)
    gate.touch()
    single.wait(first, low, middle, high)
    order = sorted((low, middle, high), key=lambda n: single.job(n)["started_at"])
    assert order == [high, middle, low]


def test_dependencies_start_skip_and_cascade(box: Box) -> None:
    command, gate = blocker(box)
    root = box.submit(*command)
    after_ok = box.submit("true", after=[f"ok:{root}"])
    after_failed = box.submit("true", after=[f"failed:{root}"])
    after_any = box.submit("true", after=[f"any:{root}"])
    cascade = box.submit("true", after=[f"ok:{after_failed}"])
    content = box.submit("true", after=[f"any:{after_failed}", f"ok:{after_ok}"])
    assert box.reason(after_ok) == ("Dependency", f"waits for ok:{root}")
    gate.touch()
    box.wait(root, after_ok, after_failed, after_any, cascade, content)
    states = {n: box.job(n)["state"] for n in (after_ok, after_failed, after_any, cascade, content)}
    assert states == {
        after_ok: "succeeded",
        after_failed: "skipped",
        after_any: "succeeded",
        cascade: "skipped",
        content: "succeeded",
    }
    assert box.job(after_failed)["note"] == f"depends on failed:{root}, which succeeded"
    assert box.job(after_ok)["started_at"] >= box.job(root)["ended_at"]


def test_a_dependency_that_can_never_hold_skips_whenever_it_is_submitted(box: Box) -> None:
    failed = box.submit("false")
    box.wait(failed)
    late = box.submit("true", after=[f"ok:{failed}"])
    ended = box.wait(late)
    assert (ended["state"], ended["note"]) == ("skipped", f"depends on ok:{failed}, which failed")
    assert [event["kind"] for event in box.job(late)["events"]] == ["submitted", "skipped"]
    chained = box.submit("true", after=[f"any:{late}", f"failed:{failed}"])
    assert box.wait(chained)["state"] == "succeeded"


def test_unknown_dependencies_are_refused(box: Box) -> None:
    with pytest.raises(NoSuchJob, match="there is no job 99"):
        box.submit("true", after=["99"])
    with pytest.raises(NoSuchJob, match="there is no job 1"):
        box.submit("true", after=["1"])  # itself
    assert box.request("list", sel={}, all=True)["total"] == 0


def test_a_chain_is_cancelled_in_one_go(box: Box) -> None:
    first = box.submit("true", hold=True)
    second = box.submit("true", after=[str(first)])
    third = box.submit("true", after=[str(second)])
    other = box.submit("true", hold=True)
    assert box.request("cancel", sel={"ranges": [[1, 99]]})["done"] == [first, second, third, other]
    assert {box.job(n)["state"] for n in (first, second, third, other)} == {"cancelled"}


def test_an_array_keeps_its_limit_and_knows_its_indexes(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB")
    command = ["sh", "-c", 'echo "$GPUQ_ARRAY_ID $GPUQ_ARRAY_INDEX"']
    jobs = box.submit_many([command], array={"indexes": [3, 5, 8, 9], "limit": 2}, gpus=1, vram=2**30)
    box.wait(*jobs)
    assert [box.log(n).split() for n in jobs] == [[str(jobs[0]), str(i)] for i in (3, 5, 8, 9)]
    spans = [(box.job(n)["started_at"], box.job(n)["ended_at"]) for n in jobs]
    for start, _ in spans:
        assert sum(begun <= start < end for begun, end in spans) <= 2


def test_the_array_limit_is_a_reason(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB")
    command, gate = blocker(box)
    jobs = box.submit_many([command], array={"indexes": [0, 1], "limit": 1}, gpus=1, vram=2**30)
    box.wait_state(jobs[0], "running")
    assert box.reason(jobs[1]) == ("Limit", f"1 of at most 1 jobs of array {jobs[0]} run")
    gate.touch()
    box.wait(*jobs)


def test_begin_waits_for_its_time(box: Box) -> None:
    box.request("status")
    begin = time.time() + 2.0
    job = box.submit("date", "+%s.%N", begin_at=begin)
    assert box.reason(job)[0] == "BeginTime"
    box.wait(job)
    assert float(box.log(job)) >= begin - 0.01


def test_retry_runs_again_and_keeps_both_attempts(box: Box) -> None:
    flag = box.folder / "flag"
    job = box.submit("sh", "-c", f'echo "$GPUQ_ATTEMPT"; [ -e "{flag}" ]')
    dependent = box.submit("true", after=[str(job)])
    assert box.wait(job)["state"] == "failed"
    assert box.wait(dependent)["state"] == "skipped"
    flag.touch()
    box.request("retry", sel={"ranges": [[job, job]]})
    assert box.wait(job)["state"] == "succeeded"
    shown = box.job(job)
    assert shown["attempt"] == 2
    assert [(a["attempt"], a["exit_code"]) for a in shown["attempts"]] == [(1, 1), (2, 0)]
    assert [Path(a["log_path"]).read_text() for a in shown["attempts"]] == ["1\n", "2\n"]
    assert box.job(dependent)["state"] == "skipped"


def test_the_same_key_submits_once(box: Box) -> None:
    first = box.submit("true", key="0123456789abcdef")
    assert box.submit("true", key="0123456789abcdef") == first
    assert box.request("list", sel={}, all=True)["total"] == 1


def test_what_never_fits_is_refused_and_leaves_nothing(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:2x24GiB")
    cases = [
        ({"gpus": 3}, "3 GPUs asked for with --gpus, and this host has 2 GPUs"),
        ({"gpus": 1, "vram": 24 * 2**30}, "at most 23.8GiB can be claimed on a GPU"),
        ({"cpus": 5000}, "5000 CPUs asked for with --cpus"),
        ({"ram": 2**49}, "512TiB asked for with --ram"),
    ]
    for template, message in cases:
        with pytest.raises(CannotFit, match=message):
            box.submit("true", **template)
    assert box.request("list", sel={}, all=True)["total"] == 0


BAD_TEMPLATES: list[tuple[dict[str, object], str]] = [
    ({"gpus": -1}, "--gpus is -1"),
    ({"gpus": True}, "--gpus must be a whole number"),
    ({"gpus": 0, "vram": 2**30}, "--vram without GPUs"),
    ({"vram": 0}, "--vram is 0"),
    ({"gpus": 4, "gpus_most": 1}, "--gpus 4:1 is upside down: write 1:4"),
    ({"gpus": 0, "gpus_most": 4}, "a range begins with 1"),
    ({"gpus_most": 4}, "a range begins with 1"),
    ({"gpus": 1, "gpus_most": 2000}, "--gpus is 2000"),
    ({"gpus": 0, "gpu_types": ["A100"]}, "--gpus 0 is a job without GPUs, and --gpu-type chooses among them"),
    ({"gpus": 0, "gpu_min_memory": 1}, "--gpu-min-memory chooses among them"),
    ({"gpus": 0, "spread": True}, "--spread chooses among them"),
    ({"gpu_types": ["A100", " "]}, "--gpu-type holds an empty word"),
    ({"gpu_types": "A100"}, "gpu_types is a list"),
    ({"gpu_min_memory": "40GiB"}, "--gpu-min-memory must be a whole number"),
    ({"gpu_min_memory": 0}, "--gpu-min-memory is 0"),
    ({"gpu_ids": [0]}, "--gpu-id must be text"),
    ({"gpu_ids": ["0"]}, "--gpu-id 0: this host has no GPUs"),
    ({"gpus_excluded": ["GPU-1"]}, "--exclude-gpu GPU-1: this host has no GPUs"),
    ({"gpu_types": ["A100"]}, "this host has no GPUs"),
    ({"spread": 1}, "--spread is given or not"),
    ({"time_limit": 0}, "--time is 0"),
    ({"time_limit": float("nan")}, "--time is nan"),
    ({"time_limit": -5}, "--time is -5"),
    ({"priority": 10**9}, "--priority is 1000000000"),
    ({"cwd": "relative"}, "not an absolute path"),
    ({"cwd": "/no/such/folder"}, "No such file or directory"),
    ({"cwd": "/etc/passwd"}, "not a folder"),
    ({"after": ["best:1"]}, "is none of ok, any, failed"),
    ({"after": ["ok:x"]}, "names no job"),
    ({"name": "x" * 5000}, "--name has 5000 characters"),
    ({"tags": [""]}, "--tag is empty"),
    ({"output": ""}, "--output is empty"),
    ({"umask": 0o7777}, "the umask is 4095"),
    ({"env": {"A=B": "x"}}, "the environment variable 'A=B'"),
    ({"env": {"A": "x\0y"}}, "the environment variable 'A'"),
]


def test_templates_that_make_no_sense_are_refused(box: Box) -> None:
    for template, message in BAD_TEMPLATES:
        with pytest.raises(GpuqError) as error:
            box.submit("true", **template)
        assert message in str(error.value), template
        assert "x\0y" not in str(error.value)
    assert box.request("list", sel={}, all=True)["total"] == 0


BAD_COMMANDS: list[tuple[object, str]] = [
    ([], "the command is empty"),
    ([""], "the command is empty"),
    (["a\0b"], "NUL"),
    (["echo", "x" * 131072], "131,072 bytes"),
    (["echo", *["x" * 100_000] * 6], "600,004 bytes"),
    ([7], "a list of strings"),
    ("true", "a list of strings"),
]


def test_commands_that_no_program_can_be_given_are_refused(box: Box) -> None:
    for command, message in BAD_COMMANDS:
        with pytest.raises(UsageError) as error:
            box.submit_many([["true"], command])  # type: ignore[list-item]
        assert message in str(error.value), command
    assert box.request("list", sel={}, all=True)["total"] == 0


def test_names_that_would_move_a_terminal_are_kept_and_environment_values_are_not_shown(box: Box) -> None:
    name = "a\nb\x1b[31m🚀"
    job = box.submit("true", name=name, env={"PATH": os.environ["PATH"], "TOKEN": "s3cret-value"})
    box.wait(job)
    assert box.job(job)["name"] == name
    assert "s3cret-value" not in str(box.job(job))
    assert b"s3cret-value" not in (box.state / "daemon.log").read_bytes()


def test_a_job_sees_its_submitters_environment_and_no_other(box: Box) -> None:
    box.setenv(DAEMON_ONLY="yes")
    box.request("status")
    env = {"PATH": os.environ["PATH"], "MINE": "1", "CUDA_VISIBLE_DEVICES": "7", "GPUQ_ARRAY_INDEX": "9"}
    job = box.submit("env", env=env, umask=0o027)
    box.wait(job)
    seen = dict(line.split("=", 1) for line in box.log(job).splitlines())
    run_dir = box.state / "jobs" / str(job) / "1"
    expected = {
        "PATH": os.environ["PATH"],
        "MINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONUNBUFFERED": "1",
        "GPUQ_JOB_ID": str(job),
        "GPUQ_ATTEMPT": "1",
        "GPUQ_JOB_DIR": str(run_dir / "work"),
        "GPUQ_METRICS": str(run_dir / "metrics.jsonl"),
        "GPUQ_GPU_COUNT": "0",
        "GPUQ_STATE_DIR": str(box.state),
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert set(seen) - set(expected) <= {"PWD"}


def test_output_goes_where_it_should(box: Box) -> None:
    jobs = box.submit_many(
        [["sh", "-c", "echo $GPUQ_JOB_ID"]], array={"indexes": [4], "limit": 0}, output="%x-%A-%a-%j-%%.log", name="n/m"
    )
    box.wait(*jobs)
    assert (box.folder / f"n_m-{jobs[0]}-4-{jobs[0]}-%.log").read_text() == f"{jobs[0]}\n"
    missing = box.submit("true", output="no/such/folder/log")
    assert box.wait(missing)["failure"] == "launch"


def test_a_log_whose_folder_is_not_there_is_told_of_and_taken(box: Box) -> None:
    def said(path: str) -> str:
        done = box.run("submit", "--hold", "--cwd", str(box.folder), "--output", path, "--", "true")
        assert (done.returncode, done.stdout.strip().isdigit()) == (0, True)
        return done.stderr

    assert f"the folder {box.folder}/logs/1 does not exist" in said("logs/%j/log")
    (box.folder / "logs").mkdir()
    assert "--output" not in said("logs/%j")


def test_state_is_private(box: Box) -> None:
    job = box.submit("true", umask=0o022)
    box.wait(job)
    for path in [box.state, *box.state.rglob("*")]:
        mode = path.lstat().st_mode & 0o777
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_retrying_a_chain_keeps_its_order(box: Box) -> None:
    flag = box.folder / "flag"
    first = box.submit("sh", "-c", f'[ -e "{flag}" ]')
    second = box.submit("true", after=[str(first)])
    box.wait(first, second)
    flag.touch()
    box.request("retry", sel={"ranges": [[first, second]]})
    box.wait(first, second)
    assert [box.job(n)["state"] for n in (first, second)] == ["succeeded", "succeeded"]
    assert box.job(second)["started_at"] >= box.job(first)["ended_at"]


def test_a_retried_job_still_waits_for_what_runs(box: Box) -> None:
    command, gate = blocker(box)
    running = box.submit(*command)
    dependent = box.submit("true", after=[str(running)])
    box.request("cancel", sel={"ranges": [[dependent, dependent]]})
    box.request("retry", sel={"ranges": [[dependent, dependent]]})
    assert box.reason(dependent)[0] == "Dependency"
    gate.touch()
    assert box.wait(dependent, running)["state"] == "succeeded"
    kinds = [event["kind"] for event in box.job(dependent)["events"]]
    assert kinds == ["submitted", "cancelled", "retried", "ready", "started", "succeeded"]


def test_many_that_are_released_start_in_the_order_of_their_ages(box: Box) -> None:
    """They are changed in slices, and planning goes on meanwhile: who was submitted last has the newest ids."""
    ids = box.submit_many([["true"]] * (12 * SLICE), gpus=0, hold=True)
    with Client.connect() as releasing:
        releasing.send("release", sel={"ranges": [[ids[0], ids[-1]]]})
        others = [box.submit("true", gpus=0) for _ in range(5)]
        releasing.receive()
    box.wait(ids[0], *others)
    started = [event["job"] for event in box.json("events", "-n", "0")["events"] if event["kind"] == "started"]
    assert next(job for job in started if job not in others) == ids[0]
    box.request("cancel", sel={"ranges": [[ids[0], ids[-1]]]})
