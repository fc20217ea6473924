"""Every class of failure, brought about by a real program under a real daemon, with the evidence that `show` gives."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakenvml import FakeNvml, fake_gpus
from tests.harness import Box, wait_until

GiB = 1024**3
MiB = 1024**2
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def failed(box: Box, *command: str, **request: Any) -> dict[str, Any]:
    """A job that is run and fails."""
    return told(box, box.submit(*command, **{"gpus": 0, "cpus": 0, **request}))


def told(box: Box, job_id: int) -> dict[str, Any]:
    """A job that failed, as `show --json` has it; the class and the evidence are in what `show` prints, too."""
    job = box.wait(job_id)
    assert job["state"] == "failed", job
    shown = " ".join(box.ok("show", str(job["id"])).split())
    attempt = box.job(job["id"])["attempts"][-1]
    assert (attempt["failure"], attempt["note"]) == (job["failure"], job["note"])
    evidence = (job["note"] or f"exit code {job['exit_code']}").split()
    assert " ".join(evidence[-6:]) in shown
    return job


# --- exit and signal ------------------------------------------------------------------------------


def test_exit(box: Box) -> None:
    for code in (1, 3, 126, 127, 137, 255):
        job = failed(box, "sh", "-c", f"exit {code}")
        assert (job["failure"], job["exit_code"], job["signal"], job["note"]) == ("exit", code, None, None)


def test_an_exception_is_an_exit(box: Box) -> None:
    job = failed(box, *python("import json; json.loads('{')"))
    assert (job["failure"], job["exit_code"], job["note"]) == ("exit", 1, None)


def test_host_memory_that_was_refused_is_an_exit_with_a_hint(box: Box) -> None:
    refused = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); b'x' * 2**30"
    job = failed(box, *python(refused))
    assert (job["failure"], job["exit_code"]) == ("exit", 1)
    assert job["note"] == "an allocation of host memory was refused, its log says: MemoryError"


SIGNALS = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ SYS".split()


def test_signals(box: Box) -> None:
    for name in SIGNALS:
        number = signal.Signals[f"SIG{name}"]
        script = f"ulimit -c unlimited; kill -{number.value} $$"
        job = failed(box, "sh", "-c", script)
        assert (job["failure"], job["exit_code"], job["signal"]) == ("signal", None, number)
        alone = subprocess.Popen(["sh", "-c", script], cwd=box.folder, stderr=subprocess.DEVNULL)
        _, status = os.waitpid(alone.pid, 0)
        alone.returncode = 0
        dumped = ", core dumped" if os.WCOREDUMP(status) else ""
        assert job["note"].startswith(f"{number.name}{dumped}"), name
        assert ("which gpuq did not send" in job["note"]) == (name == "KILL"), name


def test_a_crash_is_a_signal(box: Box) -> None:
    job = failed(box, *python("import ctypes; ctypes.string_at(0)"))
    assert (job["failure"], job["signal"]) == ("signal", signal.SIGSEGV)


# --- timeout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [
        ("exec sleep 1000", None, signal.SIGTERM),
        ("trap 'exit 0' TERM; touch begun; while :; do sleep 0.05; done", 0, None),
        ("trap '' TERM; while :; do sleep 0.05; done", None, signal.SIGKILL),
    ],
    ids=["dies of TERM", "exits 0 on TERM", "must be killed"],
)
def test_timeout(box: Box, script: str, code: int | None, number: int | None) -> None:
    box.setenv(GPUQ_GRACE="0.5s")
    job = box.wait(box.submit("sh", "-c", script, gpus=0, time_limit=1))
    assert (job["state"], job["failure"], job["exit_code"], job["signal"]) == ("failed", "timeout", code, number)
    assert "timeout after 1s" in box.ok("show", str(job["id"]))


def test_a_warning_before_the_limit_is_told_in_the_end(box: Box) -> None:
    job = failed(box, "sh", "-c", "sleep 1000; true", time_limit=1, early_signal="USR1@0.5s", grace=60)
    assert (job["failure"], job["note"]) == ("timeout", "no process handled the SIGUSR1 before it")
    saves = "import os, signal, time; signal.signal(10, lambda *a: os._exit(3)); time.sleep(1000)"
    job = failed(box, sys.executable, "-ISc", saves, time_limit=1000, early_signal="USR1@998s")
    assert (job["failure"], job["exit_code"], job["note"]) == ("exit", 3, None)
    assert "warned=SIGUSR1 to 1 process" in box.ok("show", str(job["id"]))


# --- GPU memory -----------------------------------------------------------------------------------

#: What PyTorch raises, as Python prints it: the name of module and class, and the message of version 2.5.
TORCH = """
class OutOfMemoryError(RuntimeError):
    pass

def train():
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB")
"""
SAID = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB"
)


@pytest.fixture
def torch(box: Box) -> str:
    """The beginning of a program that can `torch.train()`."""
    (box.folder / "torch.py").write_text(TORCH)
    return f"import sys; sys.path.insert(0, {str(box.folder)!r}); import torch\n"


def test_gpu_memory_ran_out(box: Box, nvml: FakeNvml, torch: str) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    job = failed(box, *python(torch + "torch.train()"), gpus=1)
    assert (job["failure"], job["exit_code"], job["note"]) == ("vram-oom", 1, SAID)
    # a launcher that names its child's failure last, and a program that aborts
    job = failed(box, "sh", "-c", f"{shlex.join(python(torch + 'torch.train()'))}; echo rank 0 failed; exit 3", gpus=1)
    assert (job["failure"], job["exit_code"], job["note"]) == ("vram-oom", 3, SAID)
    dies = "import os, traceback\ntry: torch.train()\nexcept Exception: traceback.print_exc(); os.abort()"
    job = failed(box, *python(torch + dies), gpus=1)
    assert (job["failure"], job["signal"], job["note"]) == ("vram-oom", signal.SIGABRT, SAID)


def test_no_line_of_a_cpu_jobs_log_tells_of_gpu_memory(box: Box, torch: str) -> None:
    job = failed(box, *python(torch + "torch.train()"), retry=["vram-oom:5"])
    hint = f"it was given no GPU, and its log says: {SAID}"
    assert (job["failure"], job["exit_code"], job["note"], job["attempt"]) == ("exit", 1, hint, 1)


def test_gpu_memory_ran_out_and_it_went_on(box: Box, nvml: FakeNvml, torch: str) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    caught = torch + "import traceback\ntry: torch.train()\nexcept RuntimeError: traceback.print_exc()\n"
    went_well = box.wait(box.submit(*python(caught), gpus=1))
    assert (went_well["state"], went_well["failure"], went_well["note"]) == ("succeeded", None, None)
    long_after = caught + "sys.stdout.write('epoch 7: going on with a smaller batch\\n' * 60_000)\nraise SystemExit(1)"
    assert failed(box, *python(long_after), gpus=1)["failure"] == "exit"
    # no time to do anything else: what came last was most likely brought about by it
    assert failed(box, *python(caught + "raise ValueError('no batch left')"), gpus=1)["failure"] == "vram-oom"


def test_an_earlier_attempts_line_is_not_evidence(box: Box, nvml: FakeNvml) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    script = f'[ "$GPUQ_ATTEMPT" = 2 ] || echo {shlex.quote(SAID)}; exit 1'
    job = failed(box, "sh", "-c", script, output=str(box.folder / "log"), gpus=1)
    assert job["failure"] == "vram-oom"
    box.request("retry", sel={"ranges": [[job["id"], job["id"]]]})
    wait_until(lambda: box.job(job["id"])["attempt"] == 2 and box.job(job["id"])["state"] == "failed")
    assert [attempt["failure"] for attempt in box.job(job["id"])["attempts"]] == ["vram-oom", "exit"]


def test_more_gpu_memory_than_claimed_where_the_settings_say_kill(box: Box, nvml: FakeNvml) -> None:
    box.setenv(GPUQ_OVER_CLAIM="kill", GPUQ_READING_INTERVAL="0.1s", GPUQ_GRACE="1s")
    nvml.set(gpus=fake_gpus(24 * GiB))
    never = box.folder / "never"
    job = failed(box, *nvml.allocate("6GiB", until=never), gpus=1, vram=2 * GiB)
    assert (job["failure"], job["signal"]) == ("over-memory", signal.SIGTERM)
    assert job["note"] == "used 6GiB of the 2GiB it claimed on GPU 0"


def test_a_gpu_that_broke_as_the_program_says(box: Box, nvml: FakeNvml) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    said = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
    job = failed(box, *python("raise RuntimeError('CUDA error: uncorrectable ECC error encountered')"), gpus=1)
    assert (job["failure"], job["exit_code"], job["note"]) == ("gpu-lost", 1, said)


# --- host memory ----------------------------------------------------------------------------------


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 64 MiB for a job to enter; the kernel's OOM killer rules in it."""
    folder = MEMORY_CGROUPS / f"gpuq-test-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(64 * MiB))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield folder
    folder.rmdir()


EATS = "x = b'x' * 2**28"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and a memory cgroup")
def test_host_memory_ran_out(box: Box, small_cgroup: Path) -> None:
    enter = f'echo $$ > "{small_cgroup}/cgroup.procs"'
    eats = f"{enter}; exec {shlex.join(python(EATS))}"
    job = failed(box, "sh", "-c", eats)
    assert (job["failure"], job["signal"]) == ("host-oom", signal.SIGKILL)
    assert "for want of host memory" in job["note"]
    job = failed(box, "sh", "-c", f"sh -c {shlex.quote(eats)}; exit $?")
    assert (job["failure"], job["exit_code"]) == ("host-oom", 137)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root and a memory cgroup")
def test_a_worker_is_killed_for_want_of_host_memory(box: Box, small_cgroup: Path) -> None:
    """As PyTorch's loader: the worker dies, and the main process fails because of it."""
    enter = f"open('{small_cgroup}/cgroup.procs', 'w').write(str(os.getpid()))"
    loader = f"""
import os, signal
pid = os.fork()
if pid == 0:
    {enter}
    {EATS}
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert os.WTERMSIG(status) == signal.SIGKILL
raise RuntimeError(f"DataLoader worker (pid {{pid}}) is killed by signal: Killed.")
"""
    job = failed(box, *python(loader))
    assert (job["failure"], job["exit_code"]) == ("host-oom", 1)
    assert job["note"].startswith("RuntimeError: DataLoader worker (pid ")
    assert "for want of host memory" in job["note"]


# --- launch and lost ------------------------------------------------------------------------------


def test_launch(box: Box) -> None:
    def file(name: str, text: str, mode: int) -> str:
        (box.folder / name).write_text(text)
        (box.folder / name).chmod(mode)
        return str(box.folder / name)

    (box.folder / "link").symlink_to(box.folder / "target")
    cases: list[tuple[list[str], dict[str, Any], str]] = [
        (["no-such-program"], {}, "no such file: no-such-program (looked in PATH)"),
        ([str(box.folder / "missing")], {}, "no such file: "),
        ([file("plain", "", 0o644)], {}, "not executable: "),
        ([str(box.folder)], {}, "not a program but a folder: "),
        ([file("bare", "echo hello\n", 0o755)], {}, "neither begins with #! nor is a binary"),
        ([file("orphan", "#!/no/such/interpreter\n", 0o755)], {}, "the interpreter that the first line of "),
        (["true"], {"output": str(box.folder / "no" / "log")}, "is in a folder that does not exist"),
        (["true"], {"output": str(box.folder / "link")}, "is a symbolic link, which is not followed"),
    ]
    for command, request, said in cases:
        job = failed(box, *command, **request)
        assert (job["failure"], job["exit_code"], job["signal"]) == ("launch", None, None), command
        assert said in job["note"], (command, job["note"])
    assert not (box.folder / "target").exists()
    (box.folder / "gone").mkdir()
    held = box.submit("true", cwd=str(box.folder / "gone"), hold=True)
    (box.folder / "gone").rmdir()
    box.request("release", sel={"ranges": [[held, held]]})
    assert told(box, held)["note"].endswith("/gone is gone")
    assert box.job(held)["failure"] == "launch"


@pytest.mark.parametrize(
    "made",
    ["mkfifo $d/job", "mkdir $d/job", "ln -s nowhere $d/job", "ln -s nowhere $d/work", "rm -r $d; ln -s /tmp $d"],
)
def test_what_stands_in_the_way_of_an_attempt_is_its_own_failure(box: Box, made: str) -> None:
    script = f"d=$GPUQ_JOB_DIR/../../2; mkdir -p $d; {made}; exit 1"
    job = box.submit("sh", "-c", script, retry=["1"], cpus=0)
    assert box.wait(job)["failure"] == "launch"
    assert "the run folder" in box.job(job)["note"]
    assert box.wait(box.submit("true"))["exit_code"] == 0, "nobody else is kept waiting"


def test_lost(box: Box) -> None:
    job = failed(box, "sh", "-c", "kill -9 $PPID; sleep 1000")
    assert (job["failure"], job["exit_code"], job["signal"]) == ("lost", None, None)
    assert job["note"] == "its supervisor was ended by SIGKILL, which gpuq did not send"


def test_the_kernel_is_offered_the_job_before_those_that_keep_the_queue(box: Box) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    # what the job inherits by posix_spawn, its supervisor takes back a moment after the job has begun
    script = f"cat /proc/self/oom_score_adj; until grep -qx -- {own} /proc/$PPID/oom_score_adj; do :; done"
    job = box.submit("sh", "-c", script, gpus=0)
    box.wait(job)
    assert int(box.log(job)) == min(1000, own + 50)
