"""The benchmark runs to its end and has every row. What the rows say is for people to judge, not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIMED = [
    "python -c pass",
    "no-op Typer command",
    "submit",
    "list, nothing waits",
    "list -n 20, 1,000 wait",
    "list, 1,000 wait",
    "list -n 20, 10,000 wait",
    "list, 10,000 wait",
    "show",
    "submit accepted → first instruction",
    "the same for a GPU job, two fake GPUs",
    "submit typed → first instruction",
    "jobs `true` from one file",
]
RESTING = [
    "idle daemon, no GPUs",
    "idle daemon, two fake GPUs",
    "daemon, 10,000 wait",
    "supervisor of a running job",
]


def test_the_short_form_has_every_row(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--short", "--json", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schema"] == "gpuq.bench/1"
    rows = {row["name"]: row for row in report["rows"]}
    for name in TIMED:
        row = rows[name]
        assert 0 < row["median"] <= row["p95"] and row["n"] > 0, row
        assert row["times_python"] > 0 and row["times_noop"] > 0, row
    for name in RESTING:
        assert 0 < rows[f"{name}: USS"]["median"] <= rows[f"{name}: RSS"]["median"]
        # a process that slept all the while used nothing
        assert rows[f"{name}: share of a core"]["median"] >= 0
    assert not list(tmp_path.iterdir()), "it left its folder behind"
    assert not _processes_of(tmp_path), "it left processes behind"


def _processes_of(folder: Path) -> list[str]:
    """Pids whose environment names the folder: daemons, supervisors and jobs that had their state there."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"={folder}/".encode() in environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return found
