"""GPUs, drivers and hosts that break under running jobs: what becomes of the jobs, and when the GPU is used again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.test_gpus import gpu_events, gpus, held, quick, wait_reason
from tests.fakenvml import GPU_IS_LOST, FakeNvml, fake_gpus
from tests.harness import PATIENCE, Box, gone, wait_until

__all__ = ["quick"]  # the fixture

GiB = 1024**3
READING = "nvmlDeviceGetCount_v2"
RESET = 1  # NVML_GPU_RECOVERY_ACTION_GPU_RESET


def ends_with(gate: Path, code: int) -> list[str]:
    """A command that exits with this code once a file is there."""
    return ["sh", "-c", f'until [ -e "{gate}" ]; do sleep 0.02; done; exit {code}']


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


# --- a GPU breaks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": GPU_IS_LOST}, "the GPU is lost"),
        ({"handle": 999}, "unknown error"),
        ({"recovery": RESET}, "must be reset"),
    ],
    ids=["off the bus", "unknown error", "to be reset"],
)
def test_a_gpu_breaks_under_its_jobs(box: Box, quick: FakeNvml, changes: dict[str, int], said: str) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    gate = box.folder / "gate"
    dies = box.submit(*ends_with(gate, 1), gpus=1)
    survives = box.submit(*ends_with(gate, 0), gpus=2, vram=4 * GiB, hold=True)
    well = box.submit(*ends_with(gate, 1), gpus=1)
    assert [box.wait_state(job, "running")["gpu_indexes"] for job in (dies, well)] == [[0], [1]]
    quick.change(0, **changes)
    wait_until(lambda: gpu_events(box) == [("gpu-lost", quick.uuid(0))], "the loss")
    assert said in str(box.job(dies)["note"]), "whoever looks at the running job is told"
    gate.touch()
    ended = box.wait(dies)
    assert (ended["state"], ended["failure"], ended["exit_code"]) == ("failed", "gpu-lost", 1)
    assert ended["note"].startswith("NVML says of GPU 0: ") and said in ended["note"]
    assert f"NVML says of GPU 0: {ended['note'][20:50]}" in " ".join(box.ok("show", str(dies)).split())
    assert (box.wait(well)["failure"], box.job(well)["note"]) == ("exit", None), "it had the other GPU"
    assert box.wait(box.submit("true", gpus=1))["gpus"] == [quick.uuid(1)], "nothing starts on a broken GPU"
    box.request("release", sel={"ranges": [[survives, survives]]})
    assert said in wait_reason(box, survives, "GpuUnavailable")
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert box.wait(survives)["state"] == "succeeded"


def test_a_job_that_outlives_its_gpu_and_exits_0_succeeded(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    job = box.submit(*ends_with(gate, 0), gpus=1)
    box.wait_state(job, "running")
    quick.change(0, memory=GPU_IS_LOST)
    wait_until(lambda: box.job(job)["note"], "the note")
    gate.touch()
    ended = box.wait(job)
    assert (ended["state"], ended["failure"], ended["note"]) == ("succeeded", None, None)


def test_a_gpu_that_broke_a_moment_before_the_end_is_asked_for(box: Box, nvml: FakeNvml) -> None:
    """No reading is due for an hour: the job's end asks for one."""
    box.setenv(GPUQ_READING_INTERVAL="1h")
    nvml.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    job = box.submit(*ends_with(gate, 9), gpus=1)
    box.wait_state(job, "running")
    nvml.change(0, memory=GPU_IS_LOST)
    gate.touch()
    assert (box.wait(job)["failure"], box.job(job)["exit_code"]) == ("gpu-lost", 9)


def test_a_gpu_that_came_back_before_the_end_had_lost_its_job_all_the_same(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    job = box.submit(*ends_with(gate, 1), gpus=1)
    box.wait_state(job, "running")
    quick.change(0, memory=GPU_IS_LOST)
    wait_until(lambda: gpu_events(box), "the loss")
    quick.change(0, memory=0)
    wait_until(lambda: len(gpu_events(box)) == 2, "its return")
    gate.touch()
    assert box.wait(job)["failure"] == "gpu-lost"


def test_a_job_that_still_holds_memory_of_its_gpu_had_not_lost_it(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    holds = " ".join(quick.allocate("3GiB", until=gate))
    job = box.submit("sh", "-c", f"{holds}; exit 4", gpus=1)
    wait_until(lambda: box.job(job)["used_vram_bytes"], "its allocation")
    quick.change(0, memory=999)  # one call that went wrong
    wait_until(lambda: box.job(job)["note"], "the note")
    quick.change(0, memory=0)
    wait_until(lambda: not box.job(job)["note"], "its end")
    gate.touch()
    assert (box.wait(job)["failure"], box.job(job)["exit_code"]) == ("exit", 4)


def test_a_gpu_is_gone_when_a_restarted_daemon_looks(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    gate = box.folder / "gate"
    job = box.submit(*ends_with(gate, 1), gpus=2, vram=GiB)
    box.wait_begun(job)
    box.kill_daemon()
    quick.set(gpus=quick.box.gpus[:1])
    gate.touch()
    ended = box.wait(job)
    assert ended["failure"] == "gpu-lost"
    assert "not listed by the driver" in ended["note"]


def test_cancelled_and_timed_out_stay_what_they_are(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    limit, gate = box.folder / "limit", box.folder / "gate"
    command, _ = held(box, "never")
    lingers = ["sh", "-c", f'trap "touch {limit}" TERM; until [ -e "{gate}" ]; do sleep 0.02; done']
    cancelled, late = box.submit(*command, gpus=1), box.submit(*lingers, gpus=1, time_limit=0.5)
    for job in (cancelled, late):
        box.wait_state(job, "running")
    wait_until(limit.exists, "the time limit")
    quick.change(0, memory=GPU_IS_LOST)
    quick.change(1, memory=GPU_IS_LOST)
    gate.touch()
    ended = box.wait(late)
    assert ended["failure"] == "timeout"
    assert "the GPU is lost" in ended["note"]
    box.request("cancel", sel={"ranges": [[cancelled, cancelled]]})
    assert (box.wait(cancelled)["state"], box.job(cancelled)["failure"]) == ("cancelled", None)


@pytest.mark.parametrize("ended", ["cancelled", "succeeded"])
def test_an_end_that_needs_no_proof_does_not_wait_for_the_driver(box: Box, nvml: FakeNvml, ended: str) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="1h", GPUQ_READING_INTERVAL="0.1s")
    nvml.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    job = box.submit(*ends_with(gate, 0), gpus=1)
    box.wait_state(job, "running")
    nvml.set(hang=1e9)
    if ended == "cancelled":
        box.request("cancel", sel={"ranges": [[job, job]]})
    else:
        gate.touch()
    assert box.wait(job)["state"] == ended


# --- the driver breaks ----------------------------------------------------------------------------


def test_a_driver_is_upgraded_under_the_daemon(box: Box, quick: FakeNvml) -> None:
    quick.upgrade_library("560.35.03")
    quick.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    runs = box.submit(*ends_with(gate, 3), gpus=1, vram=10 * GiB)
    box.wait_state(runs, "running")
    daemon = box.daemon_pid()
    quick.set(driver="570.86")
    waits = box.submit("true", gpus=1, vram=10 * GiB)
    assert "versions differ" in wait_reason(box, waits, "GpuUnavailable")
    assert "versions differ" in box.run("doctor").stdout
    gate.touch()
    assert (box.wait(runs)["failure"], box.job(runs)["exit_code"]) == ("exit", 3), "no GPU of its own broke"
    quick.upgrade_library("570.86")
    assert box.wait(waits)["state"] == "succeeded"
    assert box.request("gpus")["version"] == "570.86"
    assert box.daemon_pid() == daemon


def test_a_driver_that_never_answers_again_costs_nothing_but_gpus(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="0.3s")
    quick.set(gpus=fake_gpus(24 * GiB))
    gate = box.folder / "gate"
    runs = box.submit(*ends_with(gate, 1), gpus=1, vram=4 * GiB)
    box.wait_state(runs, "running")
    quick.set(hang=1e9)
    waits = [box.submit("true", gpus=1, vram=4 * GiB) for _ in range(5)]
    assert "NVML has not answered" in wait_reason(box, waits[0], "GpuUnavailable")
    daemon = box.daemon_pid()
    before, calls = threads(daemon), quick.calls().count(READING)
    for number in range(5):
        assert box.wait(box.submit("true", gpus=0))["state"] == "succeeded"
        assert box.reason(waits[number])[0] == "GpuUnavailable"
        box.request("gpus")
        box.request("cancel", sel={"ranges": [[waits[number], waits[number]]]})
    gate.touch()
    ended = box.wait(runs)
    assert (ended["failure"], ended["exit_code"]) == ("exit", 1)
    assert "NVML has not answered" in ended["note"], "nobody knows whether its GPU broke, and it says so"
    assert threads(daemon) <= before, "a thread per question would pile up"
    assert quick.calls().count(READING) == calls
    assert {box.job(job)["state"] for job in waits} == {"cancelled"}
    box.ok("daemon", "restart")
    assert box.daemon_pid() != daemon


def test_a_slow_driver_is_not_a_silent_one(box: Box, quick: FakeNvml) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="2s")
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB), slow=0.12)  # a reading of 20 calls takes longer than the patience
    assert box.wait(box.submit("true", gpus=1), box.submit("true", gpus=2))["state"] == "succeeded"
    assert "has not answered" not in (box.state / "daemon.log").read_text()


def test_how_long_a_driver_is_silent_is_told_as_it_is_now_and_without_a_gpu_too(box: Box, quick: FakeNvml) -> None:
    """Looked at after 0.3 s, 0.6 s, 1.2 s, 2.4 s and 4.8 s."""
    box.setenv(GPUQ_NVML_PATIENCE="0.3s")
    quick.set(gpus=fake_gpus(24 * GiB), hang=1e9)
    waits = box.submit("true")
    between = {f"NVML has not answered for {seconds}s" for seconds in (3, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18)}
    wait_until(lambda: box.request("gpus")["fault"] in between, "a second between two looks")
    assert "has not answered for" in box.reason(waits)[1]
    assert box.run("gpus").stderr.startswith("gpuq: NVML has not answered for")


def test_what_can_never_fit_is_refused_while_the_driver_is_down_too(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert len(gpus(box)) == 2
    quick.set(count_error=999)
    assert box.request("gpus")["driver"] == "broken"
    assert "0 of 2 GPUs can hold the 30GiB of --vram" in box.fails(1, "submit", "--vram", "30GiB", "--", "true")
    assert "this host has 2 GPUs" in box.fails(1, "submit", "--gpus", "3", "--", "true")
    box.submit("true", gpus=2)


def test_a_gpu_that_is_out_of_order_does_not_say_what_the_others_tell(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    quick.change(0, memory=GPU_IS_LOST)
    assert [gpu["available"] for gpu in gpus(box)] == [False, True]
    assert box.request("gpus")["note"] is None


def test_a_gpu_that_is_gone_has_no_index_and_doctor_tells_of_it(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    first, second = quick.box.gpus
    gate = box.folder / "gate"
    lost, well = (box.submit(*ends_with(gate, 0), gpus=1) for _ in range(2))
    assert [box.wait_state(job, "running")["gpu_indexes"] for job in (lost, well)] == [[0], [1]]
    quick.set(gpus=(second,))
    wait_until(lambda: not all(gpu["available"] for gpu in gpus(box)), "the loss")
    assert [(gpu["uuid"], gpu["index"]) for gpu in gpus(box)] == [(second.uuid, 0), (first.uuid, None)]
    assert [box.job(job)["gpu_indexes"] for job in (lost, well)] == [[None], [0]]
    rows = [line.split()[0] for line in box.ok("gpus").splitlines()[1:3]]
    assert rows == ["0", "-"]
    told = box.run("doctor")
    assert told.returncode == 1
    assert f"GPU {first.uuid}: {first.name!s}: no longer listed by the driver; the daemon has seen it" in told.stdout
    quick.set(gpus=())
    assert "it lists no GPU" in box.run("doctor").stdout
    gate.touch()
    assert {box.wait(job)["state"] for job in (lost, well)} == {"succeeded"}
    quick.set(gpus=(first, second))
    wait_until(lambda: [gpu["index"] for gpu in gpus(box)] == [0, 1], "their return")


def test_a_driver_that_talks_nonsense_is_broken_for_as_long(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    assert len(gpus(box)) == 2
    for nonsense in ({"total": 2**63}, {"total": 0}, {"used": 2**63}, {"reserved": 2**60}):
        quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
        quick.change(0, **nonsense)
        wait_until(lambda: not gpus(box)[0]["available"], str(nonsense))
        assert "no sense" in gpus(box)[0]["fault"]
        assert box.wait(box.submit("true", gpus=1))["gpus"] == [quick.uuid(1)]
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB), count=2**32 - 1)
    waits = box.submit("true", gpus=2)
    assert "no sense" in wait_reason(box, waits, "GpuUnavailable")
    quick.set(count=0)
    assert box.wait(waits)["state"] == "succeeded"


def test_indexes_change_and_a_gpu_is_added_under_a_running_job(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 40 * GiB))
    gate = box.folder / "gate"
    job = box.submit(*ends_with(gate, 1), gpus=1, vram=30 * GiB)
    assert box.wait_state(job, "running")["gpu_indexes"] == [1]
    small, large = quick.box.gpus
    (added,) = fake_gpus(80 * GiB)
    quick.set(gpus=(large, type(added)("GPU-added", 80 * GiB), small))
    wait_until(lambda: len(gpus(box)) == 3, "the new GPU")
    assert box.job(job)["gpu_indexes"] == [0]
    assert box.wait(box.submit("true", gpus=1, vram=70 * GiB))["gpus"] == ["GPU-added"]
    gate.touch()
    assert box.wait(job)["failure"] == "exit"


def test_doctor_does_not_wait_for_a_driver_that_hangs(box: Box, nvml: FakeNvml) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB), hang=1e9)
    box.setenv(GPUQ_NVML_PATIENCE="0.5s")
    told = box.run("doctor")
    assert told.returncode == 1
    assert "NVML has not answered for" in " ".join(told.stdout.split())


def test_a_library_that_crashes_takes_no_cpu_job_with_it(box: Box, quick: FakeNvml) -> None:
    quick.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    gate = box.folder / "gate"
    runs = box.submit(*ends_with(gate, 3), gpus=1, vram=GiB)
    box.wait_state(runs, "running")
    first = box.daemon_pid()
    quick.change(0, crash=signal.SIGSEGV)
    wait_until(lambda: gone(first), "the crash")
    waits = box.submit("true", gpus=1, vram=GiB)
    assert "the driver's library crashed (SIGSEGV)" in wait_reason(box, waits, "GpuUnavailable")
    daemon = box.daemon_pid()
    assert box.wait(box.submit("true", gpus=0))["state"] == "succeeded"
    assert "crashed (SIGSEGV)" in box.ok("gpus", "--json")
    done = box.run("doctor")
    assert done.returncode == 1 and "the driver's library crashed (SIGSEGV)" in done.stdout
    gate.touch()
    assert (box.wait(runs)["failure"], box.job(runs)["exit_code"]) == ("exit", 3)
    assert box.daemon_pid() == daemon, "it does not call the library itself"
    quick.change(0, crash=0)
    assert box.wait(waits)["state"] == "succeeded"
    assert box.daemon_pid() == daemon
    assert [gpu["available"] for gpu in gpus(box)] == [True, True]
    # what crashes here again and works elsewhere is read elsewhere for a while, and a restart has it tried at once
    quick.change(0, crash=signal.SIGBUS)
    wait_until(lambda: box.run("gpus").returncode == 0 and gone(daemon), "the second crash")
    quick.change(0, crash=0)
    wait_until(lambda: all(gpu["available"] for gpu in gpus(box)), "readings of another process")
    assert maps_nvml(box.daemon_pid()) is False
    box.ok("daemon", "restart")
    assert all(gpu["available"] for gpu in gpus(box))
    assert maps_nvml(box.daemon_pid()) is True


def maps_nvml(pid: int) -> bool:
    return "libnvidia-ml" in Path(f"/proc/{pid}/maps").read_text()


def test_wait_keeps_its_time_where_no_daemon_can_be_started(box: Box) -> None:
    """What the daemon needs to start is held by somebody: every command that wants one waits."""
    job = box.submit("sleep", "60")
    box.wait_begun(job)
    box.kill_daemon()
    with (box.state / "start.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert box.run("wait", str(job), "--timeout", "1s").returncode == 124


# --- the host has no room -------------------------------------------------------------------------

#: Run gpuq with little of something: the commands of a list, in turn, by a process that has set its limits.
LIMITED = """
import json, os, resource, subprocess, sys, time
name, most, commands = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
resource.setrlimit(getattr(resource, name), (most, most))
while commands:
    try:
        done = subprocess.run([sys.executable, "-m", "gpuq", *commands[0]], capture_output=True, text=True)
    except BlockingIOError:  # a daemon that starts has one process more for a moment
        time.sleep(0.02)
        continue
    print(json.dumps([done.returncode, done.stdout, done.stderr]))
    del commands[0]
"""


def another_user() -> list[str]:
    """The beginning of a command by a user whom nobody else is, and who may read this Python all the same.

    The kernel counts processes by real user, and not those of one who may exceed every limit (getrlimit(2)).
    """
    uid = str(100_000 + int.from_bytes(os.urandom(3), "big"))
    caps = "+dac_override,+dac_read_search"
    return ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps", caps, "--ambient-caps", caps]


def limited(name: str, most: int, *commands: list[str], user: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, output and messages of each command."""
    words = [*user, sys.executable, "-c", LIMITED, name, str(most), json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "Traceback" not in done.stdout
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture
def nobody(box: Box) -> Iterator[list[str]]:
    """Another user, with a state folder that is reached without passing through pytest's, which is root's."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root to be another user")
    user = another_user()
    with tempfile.TemporaryDirectory(prefix="gpuq-test-") as folder:
        os.chown(folder, int(user[2]), int(user[2]))
        box.state = Path(folder) / "state"
        box.setenv(GPUQ_STATE_DIR=str(box.state))
        yield user
        for pid in box.processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not box.processes(), "the end of what the test left behind")
        box.state = box.folder / "state"
        box.setenv(GPUQ_STATE_DIR=str(box.state))


def test_no_room_for_a_single_thread_is_said_in_plain_words(nobody: list[str]) -> None:
    ((code, out, said),) = limited("RLIMIT_NPROC", 3, ["submit", "--", "true"], user=nobody)
    assert (code, out) == (5, "")
    assert "ulimit -u" in said and "RuntimeError" not in said


def test_no_room_for_processes_makes_jobs_wait(nobody: list[str]) -> None:
    """Those who keep the queue fit, and one job with its supervisor does: the others wait for its end."""
    submit = ["submit", "-q", "--cpus", "0", "--array", "0-2", "--", "sleep", "0.3"]
    told = limited("RLIMIT_NPROC", 7, submit, ["wait", "1-3"], ["list", "--all", "--json"], user=nobody)
    assert [code for code, _, _ in told] == [0, 0, 0], told
    jobs = json.loads(told[-1][1])["jobs"]
    assert [job["state"] for job in jobs] == ["succeeded"] * 3
    assert max(job["attempt"] for job in jobs) > 1, "there was room for all of them"
    limited("RLIMIT_NPROC", 50, ["daemon", "stop"], user=nobody)


def test_a_daemon_with_few_descriptors_starts_what_it_has_room_for(box: Box) -> None:
    """One job after another: an end makes room, and what there is no room for is not claimed to begin with."""
    (started,) = limited("RLIMIT_NOFILE", 32, ["daemon", "start"], user=[])
    assert started[0] == 0, started
    jobs = box.submit_many([["true"]] * 20, cpus=0)
    box.wait(*jobs)
    assert {(box.job(job)["state"], box.job(job)["attempt"]) for job in jobs} == {("succeeded", 1)}
    assert "Too many open files" in (box.state / "daemon.log").read_text(), "it had room for all"
