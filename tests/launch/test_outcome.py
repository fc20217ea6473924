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
    Result,
    StartFailure,
    find_vram_oom,
    judge,
    log_tail,
    read_result,
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
    tail = f"epoch 1\n{message['line']}\n  in some_function()\n".encode()
    found = find_vram_oom(tail)
    assert found == (" ".join(message["line"].split()) if message["gpu"] else None)
    failure = judge(result(exited(1)), tail).failure
    assert failure == (Failure.VRAM_OOM if message["gpu"] else Failure.EXIT)


def test_both_kinds_of_message_are_there() -> None:
    assert {message["gpu"] for message in MESSAGES} == {True, False}
    named = " ".join(message["program"] for message in MESSAGES if message["gpu"])
    assert all(name in named for name in ("PyTorch", "JAX", "TensorFlow", "CuPy", "llama.cpp", "vLLM"))


def test_the_last_line_is_the_evidence_and_progress_bars_are_lines() -> None:
    tail = OOM + b"step 1\rstep 2\rRuntimeError: CUDA error: out of memory\rdone\n"
    assert find_vram_oom(tail) == "RuntimeError: CUDA error: out of memory"


def test_a_long_line_is_cut() -> None:
    found = find_vram_oom(OOM.strip() + b" x" * 10_000)
    assert found is not None
    assert len(found) == MAX_NOTE


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


def test_abort_with_the_message_is_out_of_memory_and_keeps_its_signal() -> None:
    outcome = judge(result(signal.SIGABRT | 0x80), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.VRAM_OOM, None, signal.SIGABRT)


@pytest.mark.parametrize(
    ("status", "note"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGSEGV | 0x80, "SIGSEGV, core dumped"),
        (signal.SIGKILL, "SIGKILL, which gpuq did not send; the kernel does when host memory runs out"),
        (40, "signal 40"),
    ],
)
def test_signals(status: int, note: str) -> None:
    outcome = judge(result(status), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.SIGNAL, None, status & 0x7F)
    assert outcome.note == note


def test_a_kill_after_the_grace_period_is_ours() -> None:
    assert judge(result(signal.SIGKILL, ended=True), b"").note == "SIGKILL"


@pytest.mark.parametrize(("status", "code", "number"), [(0, 0, None), (exited(3), 3, None), (9, None, 9)])
def test_a_time_limit_keeps_what_truly_happened(status: int, code: int | None, number: int | None) -> None:
    outcome = judge(result(status, timed_out=True), OOM)
    assert (outcome.failure, outcome.exit_code, outcome.signal) == (Failure.TIMEOUT, code, number)


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
