"""What sleeps costs nothing: no wake-up of a daemon that waits, and little memory for a job that runs."""

from __future__ import annotations

import json
import os
import statistics
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tests.bench.kernel import children, memory, wakeups, zygotes
from tests.bounds.observe import Observed
from tests.fakenvml import FakeNvml, FakeProcess, GiB, fake_gpus
from tests.harness import PATIENCE, Box, wait_until

#: For this long nothing may wake up, in seconds.
WINDOW = 2.0
#: NVML's call with which each reading begins.
FIRST = "nvmlDeviceGetCount_v2"


def supervisor(box: Box, job_id: int) -> int:
    """Pid of a running job's supervisor, once it has begun the job."""
    identity = Path(box.wait_state(job_id, "running")["log_path"]).with_name("identity")
    wait_until(identity.exists, "the identity")
    return int(json.loads(identity.read_bytes())["pid"])


def child(pid: int) -> int:
    """The first child of a process, once it has one."""
    return wait_until(lambda: children(pid), "the child")[0]


def sleeps(*pids: int) -> bool:
    """Whether nobody of these wakes up for WINDOW; tried again while what was begun before may still go on."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / WINDOW / 2)):
        before = [wakeups(pid) for pid in pids]
        pause.wait(WINDOW)  # what is tested is that nothing happens
        if [wakeups(pid) for pid in pids] == before:
            return True
    return False


def test_an_empty_queue_wakes_nobody(box: Box) -> None:
    box.wait(box.submit("true", gpus=0))
    daemon = box.daemon_pid()
    assert sleeps(daemon, *zygotes(daemon))


def test_gpus_that_nobody_wants_are_not_looked_at(box: Box, nvml: FakeNvml) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    box.wait(box.submit("true", gpus=1, vram=GiB))
    daemon = box.daemon_pid()
    assert sleeps(daemon, *zygotes(daemon))


def test_a_job_that_runs_and_one_that_waits_wake_nobody(box: Box) -> None:
    """Nothing is polled: not the job, its log, its time limit, nor its slot."""
    running = box.submit("sleep", "600", gpus=0, cpus=1, time_limit=500.0)
    box.submit("true", gpus=0, hold=True)
    box.submit("true", gpus=0, after=[f"any:{running}"])
    daemon, own = box.daemon_pid(), supervisor(box, running)
    assert sleeps(daemon, *zygotes(daemon), own)


def test_nvml_calls_of_a_reading(box: Box, nvml: FakeNvml) -> None:
    """Each call may take milliseconds on a real driver, and a GPU that is read wakes up."""
    nvml.set(gpus=fake_gpus(*[24 * GiB] * 8))
    box.wait_state(box.submit("sleep", "600", gpus=1, vram=GiB), "running")
    nvml.wait_for_call(FIRST, nvml.calls().count(FIRST) + 4)
    calls = nvml.calls()
    begins = [place for place, name in enumerate(calls) if name == FIRST][-4:]
    each = [after - before for before, after in pairwise(begins)]
    # for each GPU: handle, UUID, two lists of processes before the memory and two after it, what the driver wants done
    assert max(each) <= 1 + 8 * 8, each


def test_processes_of_a_reading_are_looked_up_once(box: Box, nvml: FakeNvml) -> None:
    """Sixty-four jobs on eight GPUs are looked at every second or two: each of /proc's files takes 20 µs."""
    gpus = fake_gpus(*[24 * GiB] * 8)
    nvml.set(gpus=gpus)
    observed = Observed(box)
    jobs = box.submit_many([["sleep", "600"]] * 16, gpus=1, vram=GiB)
    pids = [child(supervisor(box, job)) for job in jobs]
    held = tuple(FakeProcess(pid, GiB // 2) for pid in pids)
    nvml.set(gpus=(replace(gpus[0], running=held), *gpus[1:]))
    nvml.wait_for_call(FIRST, nvml.calls().count(FIRST) + 2)
    before, readings = observed.counts(), nvml.calls().count(FIRST)
    nvml.wait_for_call(FIRST, readings + 4)
    opened = (observed.counts() - before).daemon["open"] / 4
    # the job's own `stat`, in which its supervisor's number stands; and a few of the reading's
    assert opened <= 16 * 1.3 + 6


def test_memory_of_jobs_that_run(box: Box) -> None:
    """A hundred jobs that run at once cost a hundred supervisors, and what the daemon keeps of them."""
    box.wait(*[box.submit("true", gpus=0) for _ in range(4)])
    daemon = box.daemon_pid()
    before = memory(daemon)[0]
    jobs = box.submit_many([["sleep", "600"]] * 10, gpus=0, cpus=0)
    each = sorted(memory(supervisor(box, job))[0] for job in jobs)
    grown = (memory(daemon)[0] - before) / len(jobs)
    assert statistics.median(each) <= 930_000, each
    assert max(each) <= 1_000_000, each  # of those that have seen to another job before
    assert grown <= 30_000


def test_a_zygote_has_rehearsed_and_left_nothing(box: Box) -> None:
    killed = Path(f"/dev/shm/gpuq-{1 << 30}-{os.urandom(8).hex()}")  # no process has such a number (proc(5), pid_max)
    killed.mkdir(mode=0o700)
    (killed / "log").touch()
    box.wait(box.submit("true", gpus=0))
    (zygote,) = zygotes(box.daemon_pid())
    assert not list(Path("/dev/shm").glob(f"gpuq-{zygote}-*"))
    assert not children(zygote)
    assert not killed.exists()
