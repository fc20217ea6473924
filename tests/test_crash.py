"""Crash points: what the variable may say, when a point kills, and that the daemon refuses what is none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuq import crash
from gpuq.errors import UsageError
from tests.harness import Box

SOURCE = Path(crash.__file__).parent


@pytest.fixture(autouse=True)
def disarmed() -> None:
    crash.arm(None)


@pytest.mark.parametrize("text", ["nowhere", "commit", "commit-before:", "commit-before:0", "commit-before:x", "a:b:c"])
def test_what_names_no_point_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        crash.arm(text)


@pytest.mark.parametrize(("text", "printed"), [("commit-after", 1), ("commit-after:3", 3), ("spawn-after", 5), ("", 5)])
def test_the_process_dies_at_its_point_at_the_right_time(text: str, printed: int) -> None:
    loop = "for n in range(5):\n    print(n, flush=True)\n    crash.point('commit-after')"
    code = f"from gpuq import crash\ncrash.arm({text!r})\n{loop}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert len(done.stdout.split()) == printed
    assert done.returncode == (0 if printed == 5 else -signal.SIGKILL)


def test_orders_for_a_supervisor_are_given_once() -> None:
    crash.arm("daemon-at-result-after:2")
    assert [crash.in_supervisor(7, 1) for _ in range(4)] == [None, ("result-after", os.getpid()), None, None]
    crash.arm("supervisor-at-identity-before")
    assert crash.in_supervisor(7, 1) == ("identity-before", 0)
    crash.arm("commit-after")
    assert crash.in_supervisor(7, 1) is None


def test_every_point_of_the_table_is_in_the_code_and_the_other_way_round() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name not in ("crash.py", "shim.py"))
    assert set(re.findall(r'crash\.point\("([^"]+)"\)', text)) == crash.DAEMON_POINTS.keys()
    shim = set(re.findall(r'crash_point\(spec, "([^"]+)"\)', (SOURCE / "launch" / "shim.py").read_text()))
    assert {f"{who}-at-{name}" for who in ("daemon", "supervisor") for name in shim} == crash.SUPERVISOR_POINTS.keys()


def test_a_daemon_with_an_unknown_point_does_not_start(box: Box) -> None:
    box.setenv(GPUQ_CRASH_AT="nowhere")
    said = box.fails(5, "daemon", "start")
    assert "nowhere" in said and "commit-before" in said
