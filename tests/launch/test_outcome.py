"""What a result and the end of a log mean."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.errors import StoreError
from gpuq.launch.outcome import (
    MAX_NOTE,
    TAIL,
    Result,
    StartFailure,
    judge,
    log_tail,
    read_result,
    warning,
)
from gpuq.model import Failure
from tests.launch.conftest import Attempts, python, shell

MESSAGES = json.loads((Path(__file__).parent / "oom_messages.json").read_text())
OOM = b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


def result(status: int | None, **changes: Any) -> Result:
    plain = Result(
        wait_status=status,
        start_failure=None,
        timed_out=False,
        ended=False,
        leftovers=0,
        log_start=0,
        log_end=0,
        started_at=1.0,
        ended_at=2.0,
        user_seconds=0.0,
        system_seconds=0.0,
        max_rss_bytes=0,
    )
    return replace(plain, **changes)


def exited(code: int) -> int:
    return code << 8


# --- out of GPU memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m["program"])
def test_messages_of_real_programs(message: dict[str, Any]) -> None:
    tail = f"epoch 1\n{message['line']}\n{message.get('after', '')}  in some_function()\n".encode()
    outcome = judge(result(exited(1)), tail)
    assert outcome.failure == Failure(message["failure"])
    if outcome.failure is not Failure.EXIT:
        assert outcome.note == shown(message["line"])
    assert judge(result(0), tail).failure is None, "exit code 0 is success whatever was printed"


def shown(line: str) -> str:
    text = " ".join(line.split())
    return text if len(text) <= MAX_NOTE else text[: MAX_NOTE - 1] + "…"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m["program"])
def test_no_line_proves_that_a_gpu_failed_a_job_without_gpus(message: dict[str, Any]) -> None:
    outcome = judge(result(exited(1)), f"{message['line']}\n".encode(), gpus=False)
    assert outcome.failure is Failure.EXIT
    if message["failure"] != "exit":
        assert outcome.note == f"it was given no GPU, and its log says: {shown(message['line'])}"
    crash = judge(result(signal.SIGABRT), OOM, gpus=False)
    assert (crash.failure, crash.note) == (
        Failure.SIGNAL,
        f"it was given no GPU, and its log says: {OOM.decode().strip()}",
    )


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "  ",
        "[rank0]: ",
        "[rank0]:[rank0]: ",
        "0: ",
        "[1,0]<stderr>:",
        "(RayTrainWorker pid=1234, ip=10.0.0.1) ",
        "(EngineCore_DP0 pid=17374) ERROR 09-28 15:47:24 [core.py:718] ",
        "2025-05-18 21:59:55,086 - trainer.main - ERROR - ",
        "2025-05-18 21:59:55 | ERROR    | __main__:train:12 - ",
        "ERROR:root:",
        "E       ",
        "Training failed: ",
        "Error executing job: ",
        "Rank 3 failed: ",
    ],
)
def test_an_exception_counts_where_it_is_printed(prefix: str) -> None:
    for name in ("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError"):
        line = f"{prefix}{name}: Allocation on device 0 would exceed allowed memory."
        assert judge(result(exited(1)), f"begin\n{line}\nend\n".encode()).failure is Failure.VRAM_OOM


@pytest.mark.parametrize(
    "line",
    [
        "help: reduce batch size if you see torch.OutOfMemoryError: CUDA out of memory.",
        "[rank0]: help: reduce batch size if you see torch.OutOfMemoryError: CUDA out of memory.",
        "INFO  on torch.OutOfMemoryError: smaller batches",
        "  --batch N   less memory; the larger, the sooner you meet torch.cuda.OutOfMemoryError: CUDA out of memory.",
        "# when this happens to you: torch.OutOfMemoryError: CUDA out of memory.",
        "hint: 'CUDA out of memory. Tried to allocate' means that the batch is too large",
    ],
)
def test_a_sentence_about_an_exception_proves_nothing(line: str) -> None:
    assert judge(result(exited(1)), f"{line}\nValueError: no such file\n".encode()).failure is Failure.EXIT
    # nor does it hide what was printed before
    assert judge(result(exited(1)), OOM + f"{line}\n".encode()).note == OOM.decode().strip()


def test_every_kind_of_message_is_there_and_names_where_it_was_seen() -> None:
    assert {message["failure"] for message in MESSAGES} == {"vram-oom", "gpu-lost", "exit"}
    named = " ".join(message["program"] for message in MESSAGES if message["failure"] == "vram-oom")
    assert all(name in named for name in ("PyTorch", "JAX", "TensorFlow", "CuPy", "llama.cpp", "vLLM"))
    assert all(message["source"].startswith("https://") for message in MESSAGES)


@pytest.mark.parametrize(
    "tail",
    [
        b"step 1\rstep 2\rRuntimeError: CUDA error: out of memory\rdone\n",
        b"\x1b[1;31mRuntimeError:\x1b[0m \x1b[31mCUDA error: out of memory\x1b[0m\n",
        "RuntimeError: CUDA error: out of memory\n".encode("utf-16-le"),
        "RuntimeError: CUDA error: out of memory\n".encode("utf-16-be")[1:],
        b"\xff\xfe\x00" * 5000 + b"\nRuntimeError: CUDA error: out of memory\n" + b"\x80\x00" * 9000,
    ],
    ids=["progress bar", "colours", "utf-16", "utf-16 cut in two", "binary"],
)
def test_the_line_is_found_however_it_was_written(tail: bytes) -> None:
    outcome = judge(result(exited(1)), OOM + tail)
    assert outcome.failure is Failure.VRAM_OOM
    assert outcome.note is not None and outcome.note.endswith("CUDA error: out of memory")


def test_the_last_line_that_proves_something_is_the_evidence() -> None:
    lost = b"RuntimeError: CUDA error: uncorrectable ECC error encountered\n"
    assert judge(result(exited(1)), OOM + lost).failure is Failure.GPU_LOST
    assert judge(result(exited(1)), lost + OOM).failure is Failure.VRAM_OOM


def test_a_long_line_is_cut() -> None:
    note = judge(result(exited(1)), OOM.strip() + b" x" * 10_000).note
    assert note is not None
    assert len(note) == MAX_NOTE


def test_what_was_said_megabytes_ago_ended_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(OOM + b"epoch 7 of 90: caught it, and went on\n" * 60_000)
    assert judge(result(exited(1)), log_tail(log, 0)).failure is Failure.EXIT


def test_tracebacks_of_eight_processes_do_not_hide_the_line(tmp_path: Path) -> None:
    """As torchrun and vLLM print them: some hundred frames of each process, prefixed, after the line that matters."""
    frame = '(VllmWorker rank=7 pid=240) ERROR 05-21 09:27:46 [core.py:396]   File "/usr/local/lib/python3.12/x.py"\n'
    log = tmp_path / "log"
    log.write_bytes(OOM + (frame * 250).encode() * 8)
    assert log.stat().st_size < TAIL
    assert judge(result(exited(1)), log_tail(log, 0)).failure is Failure.VRAM_OOM


@given(st.binary(max_size=400))
def test_no_log_breaks_the_search(tail: bytes) -> None:
    assert judge(result(exited(2)), tail).exit_code == 2


# --- the verdict ----------------------------------------------------------------------------------


def test_exit_0_is_success_whatever_was_printed() -> None:
    outcome = judge(result(0), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal, outcome.note) == (None, 0, None, None)


@pytest.mark.parametrize("code", [1, 2, 137, 255])
def test_exit_codes(code: int) -> None:
    outcome = judge(result(exited(code)), b"nothing\n")
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.EXIT, code, None)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
def test_a_crash_with_the_message_is_out_of_memory_and_keeps_its_signal(number: int) -> None:
    outcome = judge(result(number | 0x80), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.VRAM_OOM, None, number)


@pytest.mark.parametrize(
    ("status", "note"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGFPE | 0x80, "SIGFPE, core dumped"),
        (
            signal.SIGKILL,
            "SIGKILL, which gpuq did not send, and the kernel counted no kill for want of memory meanwhile",
        ),
        (40, "signal 40"),
    ],
)
def test_signals(status: int, note: str) -> None:
    outcome = judge(result(status), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.SIGNAL, None, status & 0x7F)
    assert outcome.note == note


def test_a_kill_after_the_grace_period_is_ours() -> None:
    assert judge(result(signal.SIGKILL, ended=True), b"").note == "SIGKILL"


OWN = "the kernel's out-of-memory killer struck it (memory.events of its cgroup: oom_kill 2)"
PEAK = "the kernel's out-of-memory killer struck it (memory.events of its cgroup: oom_kill 2; memory.peak 200MiB)"
HOSTS = "the kernel ended a process for want of host memory once meanwhile (oom_kill in /proc/vmstat)"
WORKER = b"RuntimeError: DataLoader worker (pid 1817) is killed by signal: Killed.\n"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"oom_kills": 2}, OWN),
        ({"oom_kills": 2, "memory_peak_bytes": 200 << 20}, PEAK),
        ({"host_oom_kills": 1}, HOSTS),
    ],
)
def test_host_memory_ran_out_where_a_counter_proves_it(counts: dict[str, int], said: str) -> None:
    for status in (signal.SIGKILL, exited(137)):
        outcome = judge(result(status, **counts), OOM)
        assert (outcome.failure, outcome.note) == (Failure.HOST_OOM, f"SIGKILL, and {said}")
    outcome = judge(result(exited(1), **counts), WORKER)
    assert outcome.failure is Failure.HOST_OOM
    assert outcome.note == f"{WORKER.decode().strip()} ({said})"
    # nothing else says that it was the job's own process, or that this is why it failed
    assert judge(result(exited(1), **counts), b"ValueError\n").failure is Failure.EXIT
    assert judge(result(signal.SIGTERM, **counts), WORKER).failure is Failure.SIGNAL
    assert judge(result(0, **counts), WORKER).failure is None
    # asked to end, it may have been killed by its supervisor
    assert judge(result(signal.SIGKILL, ended=True, **counts), b"").failure is Failure.SIGNAL


@pytest.mark.parametrize("line", [WORKER, b"MemoryError\n", b"  what():  std::bad_alloc\n"])
def test_without_a_counter_host_memory_is_a_hint(line: bytes) -> None:
    outcome = judge(result(exited(1)), line)
    assert outcome.failure is Failure.EXIT
    assert outcome.note is not None and outcome.note.endswith(f", its log says: {shown(line.decode())}")


@pytest.mark.parametrize(("status", "code", "number"), [(0, 0, None), (exited(3), 3, None), (9, None, 9)])
def test_a_time_limit_keeps_what_truly_happened(status: int, code: int | None, number: int | None) -> None:
    outcome = judge(result(status, timed_out=True, oom_kills=1), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.TIMEOUT, code, number)


def test_the_signal_before_the_limit_is_told() -> None:
    unheard = judge(result(signal.SIGTERM, timed_out=True, warned=signal.SIGUSR1), b"")
    assert (unheard.failure, unheard.note) == (Failure.TIMEOUT, "no process handled the SIGUSR1 before it")
    assert judge(result(signal.SIGTERM, timed_out=True, warned=signal.SIGUSR1, warned_processes=1), b"").note is None
    died = result(signal.SIGUSR1, warned=signal.SIGUSR1, warned_processes=2)
    assert judge(died, b"").note == "SIGUSR1, which --signal sent"
    assert warning(died) == "SIGUSR1 to 2 processes"
    # it was somebody else's
    assert judge(replace(died, warned_processes=0), b"").note == "SIGUSR1"
    assert judge(replace(died, warned=signal.SIGUSR2), b"").note == "SIGUSR1"
    assert warning(replace(died, warned=0)) is None


def test_a_result_of_an_older_supervisor_tells_of_no_warning(attempts: Attempts) -> None:
    launch = attempts.launch(shell("exit 0"))
    attempts.run(launch)
    path = launch.run_dir / "result"
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: value for name, value in fields.items() if not name.startswith("warned")}))
    older = read_result(launch.run_dir)
    assert older is not None and (older.warned, older.warned_processes) == (0, 0)
    path.write_text(json.dumps({**fields, "warned": 200}))
    with pytest.raises(StoreError, match="no such signal"):
        read_result(launch.run_dir)


def test_a_job_that_did_not_start() -> None:
    outcome = judge(result(None, start_failure=StartFailure("exec", 2, "no such\nfile: x")), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.LAUNCH, None, None)
    assert outcome.note == "no such file: x"


def test_from_a_real_job_to_the_verdict(attempts: Attempts, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(OOM)  # an earlier attempt's
    launch = attempts.launch(shell("exit 9"), log_path=str(log))
    found = attempts.run(launch)
    assert judge(found, log_tail(str(log), found.log_start)).failure == Failure.EXIT
    launch = attempts.launch(python(f"print({OOM.decode()!r}); raise SystemExit(9)"), log_path=str(log))
    found = attempts.run(launch)
    assert judge(found, log_tail(str(log), found.log_start)).failure == Failure.VRAM_OOM


# --- files ----------------------------------------------------------------------------------------


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"0123456789")
    assert log_tail(log, 0) == b"0123456789"
    assert log_tail(log, 4) == b"456789"
    assert log_tail(log, 4, size=2) == b"89"
    assert log_tail(log, 99) == b""


def test_only_regular_files_have_a_tail(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "log")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "missing", "."):
        assert log_tail(tmp_path / name, 0) == b""
    assert log_tail("/dev/zero", 0) == b""


def test_no_result_yet(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    assert read_result(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"wait_status": null, "start_failure": null}', '{"wait_status": "x"}', "\xff"],
)
def test_a_damaged_result_is_not_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "result").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match="damaged"):
        read_result(tmp_path)


def test_a_result_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        read_result(tmp_path)
