"""The verbs that look at and change jobs, and those of the daemon and the machine."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime

import pytest

from gpuq import __version__
from gpuq.config import SETTINGS
from tests.cli.terminal import read_line, shown
from tests.fakenvml import NOT_SUPPORTED, FakeNvml, FakeProcess, GiB, fake_gpus
from tests.harness import Box, gone, wait_until

JOB_FIELDS = (
    "id name state reason failure exit_code signal owner command cwd gpus gpu_count vram_bytes peak_vram_bytes "
    "priority tags after attempt submitted_at started_at ended_at log_path"
).split()
GPU_FIELDS = (
    "index uuid name total_bytes used_bytes foreign_bytes claimed_bytes headroom_bytes jobs available"
).split()


def spaces(text: str) -> str:
    """Text with every run of blanks as one, to compare sentences that stand in columns."""
    return re.sub(" +", " ", text)


# --- list, show, why ------------------------------------------------------------------------------


def test_list_is_running_then_waiting_then_ended(box: Box) -> None:
    ended = box.submit("true", gpus=0)
    box.wait(ended)
    low = box.submit("true", gpus=0, hold=True, priority=-1)
    high = box.submit("true", gpus=0, hold=True, priority=5, tags=["t"])
    running = box.submit("sleep", "1000", gpus=0)
    box.wait_state(running, "running")
    assert box.ok("list", "-q").split() == [str(n) for n in (running, high, low)]
    assert box.ok("list", "-q", "--all").split() == [str(n) for n in (running, high, low, ended)]
    assert box.ok("list", "-q", "--state", "held").split() == [str(high), str(low)]
    assert box.ok("list", "-q", "--tag", "t").split() == [str(high)]
    assert box.ok("list", "-q", "--state", "succeeded").split() == [str(ended)]
    assert box.ok("list", "-q", str(ended), "3-4").split() == [str(n) for n in (running, high, ended)]
    assert box.ok("list", "-q", "--all", "-n", "2").split() == [str(running), str(high)]
    box.ok("cancel", str(running))


def test_an_empty_list_says_so_on_stderr(box: Box) -> None:
    done = box.run("list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "gpuq: no jobs are waiting or running\n")
    assert box.json("list") == {"schema": "gpuq.jobs/1", "jobs": []}
    assert box.run("list", "-q").stdout == ""


def test_json_of_jobs_has_its_fields(box: Box) -> None:
    job = box.submit("sh", "-c", "exit 3", gpus=0, tags=["a"])
    box.wait(job)
    for verb in (["list", "--all"], ["show", "1"], ["wait", "1"], ["retry", "1"]):
        done = box.run(*verb, "--json")
        found = json.loads(done.stdout)
        assert found["schema"] == "gpuq.jobs/1"
        assert set(JOB_FIELDS) <= set(found["jobs"][0]), verb
    box.wait(job)
    found = box.json("show", "1")["jobs"][0]
    assert (found["state"], found["failure"], found["exit_code"], found["attempt"]) == ("failed", "exit", 3, 2)
    assert datetime.fromisoformat(found["ended_at"]).utcoffset() is not None
    assert found["gpus"] == [] and found["command"] == ["sh", "-c", "exit 3"]


def test_show_tells_everything(box: Box) -> None:
    folder = box.folder / "a folder"
    folder.mkdir()
    box.submit("sh", "-c", "exit 3", gpus=0, name="n", tags=["x", "y"], priority=4, time_limit=90, cwd=str(folder))
    box.wait(1)
    text = spaces(box.ok("show", "1"))
    for line in (
        "job 1\n",
        "name n\n",
        "state failed\n",
        "failure exit 3\n",
        "exit code 3\n",
        "command sh -c 'exit 3'\n",
        f"folder {folder}\n",
        "GPUs none\n",
        "priority 4\n",
        "tags x, y\n",
        "time limit 1m30s\n",
        "attempt 1\n",
        "CPU time ",
        "peak host memory ",
        f"log {box.state}/",
        " submitted name=n\n",
        " failed failure=exit exit_code=3",
    ):
        assert line in text, (line, text)
    assert "peak GPU memory" not in text


def test_show_declared_against_used(sim: Box) -> None:
    gpuq = [sys.executable, "-m", "gpuq"]
    sim.submit(*gpuq, "sim-job", "--vram", "3GiB", "--for", "1000s", vram=2 * GiB)
    wait_until(lambda: sim.job(1)["over_claim"], "the over-use")
    assert "3GiB/2GiB!" in sim.ok("list") and "over claim" in sim.ok("list")
    text = spaces(sim.ok("show", "1"))
    assert "GPU 0 claimed 2GiB, used at most 3GiB, more than was claimed\n GPU-sim" in text
    assert "peak GPU memory 3GiB, more than was claimed\n" in text
    assert "over-claim" in sim.ok("events", "1")
    sim.ok("cancel", "1")
    sim.wait(1)


def test_why_gives_reason_and_numbers(sim: Box) -> None:
    sim.submit("sleep", "1000", vram=20 * GiB, gpus=2)
    sim.wait_state(1, "running")
    sim.submit("true", vram=10 * GiB)
    text = spaces(sim.ok("why", "2"))
    assert text.startswith("job 2 (queued): Resources: asks for 1 GPU with 10GiB")
    assert " 0 Simulated GPU 24GiB 256MiB 0B 20GiB 3.8GiB " in text
    found = sim.json("why", "2")
    assert found["schema"] == "gpuq.why/1"
    assert found["explanations"][0]["reason"] == "Resources"
    assert [gpu["claimed_bytes"] for gpu in found["explanations"][0]["gpus"]] == [20 * GiB] * 2
    sim.ok("cancel", "1-2")


# --- cancel, hold, release, retry -----------------------------------------------------------------


def test_hold_release_cancel_retry(box: Box) -> None:
    box.submit_many([["true"]] * 3, gpus=0, begin_at=4e9, tags=["t"])
    assert box.ok("hold", "1-2") == "1\n2\n"
    assert box.ok("release", "--state", "held") == "1\n2\n"
    assert box.ok("cancel", "--tag", "t") == "1\n2\n3\n"
    assert [job["state"] for job in box.json("list", "--all")["jobs"]] == ["cancelled"] * 3
    assert box.ok("retry", "3") == "3\n"


def test_what_cannot_be_done_is_refused(box: Box) -> None:
    box.submit("true", gpus=0)
    box.wait(1)
    box.submit("true", gpus=0, hold=True)
    done = box.run("cancel", "1", "2")
    assert (done.returncode, done.stdout) == (1, "2\n")
    assert done.stderr == "gpuq: job 1 already ended: it succeeded\n"
    assert box.fails(1, "hold", "1") == "gpuq: job 1 already ended: it succeeded\n"
    assert box.fails(1, "release", "2").startswith("gpuq: job 2 already ended")
    box.submit("true", gpus=0, hold=True)
    assert "job 3 is held" in box.fails(1, "retry", "3")


# --- events ---------------------------------------------------------------------------------------


def test_events(box: Box) -> None:
    box.submit("true", gpus=0)
    box.submit("false", gpus=0)
    box.wait(1, 2)
    found = box.json("events", "2")
    assert found["schema"] == "gpuq.events/1"
    assert [event["kind"] for event in found["events"]] == ["submitted", "started", "failed"]
    assert all(event["job"] == 2 for event in found["events"])
    assert len(box.ok("events", "-n", "2").splitlines()) == 2
    assert " daemon-started " in box.ok("events", "-n", "0")


def test_events_are_followed_over_a_crash(box: Box) -> None:
    box.submit("true", gpus=0)
    box.wait(1)
    with box.started("events", "-f", "-n", "0", "--json") as process:
        seen = [json.loads(read_line(process)) for _ in range(4)]
        box.kill_daemon()
        box.submit("true", gpus=0)
        box.wait(2)
        while seen[-1]["kind"] != "succeeded" or seen[-1]["job"] != 2:
            seen.append(json.loads(read_line(process)))
    ids = [event["id"] for event in seen]
    assert ids == list(range(1, len(ids) + 1)), "one is missing, or came twice"


# --- GPUs -----------------------------------------------------------------------------------------


def test_gpus(nvml: FakeNvml, box: Box) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB, 80 * GiB))
    nvml.add_process(0, FakeProcess(os.getpid(), 3 * GiB))
    nvml.change(1, memory=NOT_SUPPORTED)
    found = box.json("gpus")
    assert found["schema"] == "gpuq.gpus/1" and found["driver"] == "ok"
    assert set(GPU_FIELDS) <= set(found["gpus"][0])
    assert [gpu["available"] for gpu in found["gpus"]] == [True, False]
    assert found["gpus"][0]["foreign_bytes"] == 3 * GiB
    header, first, second = box.ok("gpus").splitlines()
    assert header.split()[:3] == ["GPU", "NAME", "TOTAL"]
    assert "3GiB" in first and nvml.uuid(0) in first
    assert "ok" not in second.split()


def test_a_foreign_process_is_named_on_a_terminal(nvml: FakeNvml, box: Box) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    nvml.add_process(0, FakeProcess(os.getpid(), 3 * GiB))
    assert box.json("gpus")["gpus"][0]["processes"][0]["pid"] == os.getpid()
    assert re.search(rf"gpu0: \S+ of \S+, pid {os.getpid()}, uses 3GiB", shown("gpus", columns=120))


def test_a_box_without_gpus_says_so(box: Box) -> None:
    done = box.run("gpus")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no NVIDIA driver" in done.stderr and done.stderr.count("\n") == 1
    assert box.json("gpus")["gpus"] == []


# --- the daemon -----------------------------------------------------------------------------------


def test_status_and_stop_start_none(box: Box) -> None:
    for verb in ("status", "stop"):
        assert "no daemon runs" in box.fails(5, "daemon", verb)
    assert not box.state.exists()


def test_the_life_of_a_daemon(box: Box) -> None:
    assert "the daemon runs: pid" in box.run("daemon", "start").stderr
    pid = box.daemon_pid()
    assert str(pid) in box.run("daemon", "start").stderr, "a second start finds the first daemon"
    status = box.json("daemon", "status")
    assert status["schema"] == "gpuq.daemon/1"
    assert (status["pid"], status["version"], status["state_dir"]) == (pid, __version__, str(box.state))
    assert status["socket"] == str(box.state / "sock") and datetime.fromisoformat(status["started_at"])
    assert f"{pid}\n" in box.ok("daemon", "status")
    done = box.run("daemon", "stop")
    assert gone(pid), "stop returned before the daemon had ended"
    assert done.stderr == "gpuq: the daemon stopped; no job was running\n"
    assert "listens" in box.ok("daemon", "logs")
    assert len(box.ok("daemon", "logs", "-n", "1").splitlines()) == 1


def test_running_jobs_run_on(box: Box) -> None:
    box.submit("sleep", "1000", gpus=0)
    box.wait_state(1, "running")
    pid = box.daemon_pid()
    assert box.run("daemon", "stop").stderr == "gpuq: the daemon stopped; 1 job runs on\n"
    assert box.ok("list", "-q") == "1\n"
    assert box.daemon_pid() != pid
    pid = box.daemon_pid()
    assert "1 job ran on" in box.run("daemon", "restart").stderr
    assert box.daemon_pid() != pid and box.job(1)["state"] == "running"
    assert box.run("daemon", "stop", "--jobs").stderr == "gpuq: the daemon stopped; 1 job cancelled\n"
    assert box.job(1)["state"] == "cancelled"


def test_restart_without_a_daemon_starts_one(box: Box) -> None:
    assert "the daemon runs: pid" in box.run("daemon", "restart").stderr
    assert "there is no" in box.fails(1, "daemon", "logs", env={"GPUQ_STATE_DIR": str(box.folder / "other")})


def test_the_daemons_log_is_followed(box: Box) -> None:
    box.daemon_pid()
    with box.started("daemon", "logs", "-f", "-n", "1") as process:
        assert read_line(process)
        box.submit("true", gpus=0)
        while "job 1" not in (line := read_line(process)):
            assert line, "the log was not followed"


# --- doctor, config, sim-job ----------------------------------------------------------------------


def test_doctor_starts_nothing(box: Box) -> None:
    found = box.json("doctor")
    assert found["schema"] == "gpuq.doctor/1"
    results = {check["name"]: check for check in found["checks"]}
    assert {"python", "gpuq", "settings", "state folder", "file system", "disk", "daemon", "GPUs"} <= set(results)
    assert results["daemon"]["text"] == "does not run; the first job starts it"
    assert not box.state.exists()
    box.daemon_pid()
    assert f"pid {box.daemon_pid()}, version {__version__}" in box.ok("doctor")


def test_doctor_finds_what_is_wrong(nvml: FakeNvml, box: Box) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert box.run("doctor").returncode == 0
    nvml.change(0, tell=False)
    nvml.add_process(0, FakeProcess(os.getpid(), None))
    nvml.change(1, memory=NOT_SUPPORTED)
    done = box.run("doctor")
    assert done.returncode == 1
    assert re.search(r"^warn {2}GPU 0: .*does not tell", done.stdout, re.M)
    assert re.search(r"^fail {2}GPU 1: ", done.stdout, re.M)


@pytest.mark.parametrize("what", ["link", "settings", "dead"])
def test_doctor_and_broken_homes(box: Box, what: str) -> None:
    if what == "link":
        box.state.symlink_to(box.folder / "home")
        expected = "fail  state folder: "
    elif what == "settings":
        config = box.folder / "home" / ".config" / "gpuq" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text("margin = 5\n")
        expected = f"fail  settings: {config}: margin"
    else:
        box.kill_daemon()
        expected = "ok    daemon: does not run"
    done = box.run("doctor")
    assert expected in done.stdout
    assert done.returncode == int(expected.startswith("fail"))
    if what == "link":
        box.state.unlink()


def test_config_show_tells_sources(box: Box) -> None:
    file = box.folder / "home" / ".config" / "gpuq" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('margin = "1GiB"\ngrace = "5s"\n')
    box.setenv(GPUQ_GRACE="7s")
    found = box.json("config", "show")
    assert found["schema"] == "gpuq.config/1" and set(found["settings"]) == set(SETTINGS)
    sources = {key: (one["value"], one["source"]) for key, one in found["settings"].items()}
    assert sources["margin"] == ("1GiB", str(file))
    assert sources["grace"] == ("7s", "GPUQ_GRACE")
    assert sources["settle"] == ("2s", "default")
    text = spaces(box.ok("config", "show"))
    assert f"margin 1GiB {file} " in text and "\ndefault_vram - default " in text
    file.write_text("margn = '1GiB'\n")
    assert "did you mean 'margin'" in box.fails(2, "config", "show")


def test_sim_job(sim: Box) -> None:
    gpuq = [sys.executable, "-m", "gpuq"]
    job = sim.submit(*gpuq, "sim-job", "--vram", "1GiB", "--for", "0.1s", vram=2 * GiB)
    assert sim.wait(job)["state"] == "succeeded"
    assert "is not a size" in sim.fails(2, "sim-job", "--vram", "1")
    too_much = sim.submit(*gpuq, "sim-job", "--vram", "30GiB", "--for", "1s", vram=2 * GiB)
    assert sim.wait(too_much)["failure"] == "vram-oom"
    assert "out of memory" in sim.log(too_much)
