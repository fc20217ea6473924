"""Chaos, for seconds: some kills at random instants, and every crash point once. `python -m tests.chaos` is longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gpuq import crash

ROOT = Path(__file__).parents[2]


def chaos(folder: Path, *options: str) -> dict[str, Any]:
    """A run in a process of its own, because it sets its environment; the figures, once no promise was broken."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--json", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
        cwd=ROOT,
    )
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    assert not figures["broken_promises"], figures
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "it leaves nothing behind"
    return figures


def test_nothing_is_lost_doubled_or_wrong_while_daemons_supervisors_and_boxes_die(tmp_path: Path) -> None:
    figures = chaos(tmp_path, "--kills", "15", "--minutes", "2", "--boxes", "1")
    assert figures["kills"] >= 15
    assert figures["looks"] >= 2
    assert figures["acknowledged_submits"] >= 10
    assert figures["begun"] >= 10
    assert figures["faults"]["reboot"] and figures["faults"]["supervisor killed"]


def test_every_crash_point_is_met_and_survived(tmp_path: Path) -> None:
    figures = chaos(tmp_path, "--mode", "tour")
    assert figures["crash_points"] == len(crash.POINTS)
    assert figures["waiters"] >= 5
