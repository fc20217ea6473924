"""The benchmark runs to its end and has every row. What the rows say is for people to judge, not for a test."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.kernel import processes_of
from tests.bench.report import SECTIONS, Goal, Row, as_json, as_table

ROOT = Path(__file__).parents[2]
#: Of each section, some that must be there.
ROWS = {
    "machine": ["process starts, one after the other", "commits, WAL with synchronous=FULL"],
    "commands": ["python -c pass", "gpuq submit", "gpuq list -n 20", "gpuq show", "gpuq wait", "gpuq cancel"],
    "first": ["gpuq, accepted", "gpuq, accepted, for a GPU (fake NVML)", "gpuq, typed"],
    "next": ["gpuq", "gpuq, for a GPU (fake NVML)"],
    "batch": ["gpuq submit --from FILE", "xargs -P2, no shell, nothing kept"],
    "plan": ["1,000 wait", "100,000 wait"],
    "large": ["submit --from 300 lines", "cancel of 300 that wait", "the longest of these"],
    "flat": ["list -n 20, to that of an empty queue", "cancel, over the socket"],
    "rest": ["idle daemon: USS", "supervisor of a running job: USS"],
}


def test_the_short_form_has_every_row(tmp_path: Path) -> None:
    """With the peers that are quick, where they are installed."""
    few = {"rounds": "1", "count": "10", "lines": "300", "waiting": "200", "peers": "xargs,tsp,nq"}
    words = ["--short", "--json", "--folder", str(tmp_path), *(f"--{name}={value}" for name, value in few.items())]
    done = subprocess.run([sys.executable, "-m", "tests.bench", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["schema"] == "gpuq.bench/2"
    rows = {(row["section"], row["name"]): row for row in report["rows"]}
    for section, names in ROWS.items():
        for name in names:
            row = rows[section, name]
            assert row["goal"] is None, "so few say nothing"
            assert row["median"] > 0 and row["p95"] > 0 and row["n"] > 0, row
    for section, base in report["bases"].items():
        assert base is None or rows[section, base]["ratio"] == 1
    for program in ("tsp", "nq"):
        there = any(name.startswith(program) for _, name in rows)
        assert there == (shutil.which(program) is not None), report["left_out"]
        assert there or any(line.startswith(f"{program}: ") for line in report["left_out"])
    assert not list(tmp_path.iterdir()), "it left its folder behind"
    assert not processes_of(tmp_path), "it left processes behind"


def test_ratios_goals_and_percentiles() -> None:
    rows = [
        Row("next", "gpuq", "s", (0.002, 0.004, 0.003), Goal(0.0025)),
        Row("next", "other", "s", (0.006,), Goal(0.007, p95=0.005)),
        Row("batch", "gpuq submit --from FILE", "/s", tuple(map(float, range(1, 101))), Goal(50, least=True)),
        Row("batch", "other", "/s", (101.0,), Goal(2.5, times=True, least=True)),
        Row("rest", "other", "bytes", (5e6,), Goal(4e6)),
    ]
    found: dict[Any, Any] = {(row["section"], row["name"]): row for row in as_json(rows, [], {})["rows"]}
    assert found["next", "gpuq"]["median"] == 0.003 and found["next", "gpuq"]["p95"] == 0.004
    assert found["next", "gpuq"]["goal"]["met"] is False
    assert found["next", "other"]["ratio"] == 2 and found["next", "other"]["goal"]["met"] is False
    assert found["batch", "gpuq submit --from FILE"]["p95"] == 6, "of a rate the slow end counts"
    assert found["batch", "gpuq submit --from FILE"]["goal"]["met"] is True
    assert found["batch", "other"]["ratio"] == 2 and found["batch", "other"]["goal"]["met"] is False
    assert found["rest", "other"]["ratio"] is None
    table = as_table(rows, ["tsp: not here"], {"date": "today"})
    assert "left out: tsp: not here" in table and "date: today" in table
    assert [table.count(title) for title, _ in SECTIONS.values()] == [0, 0, 0, 1, 1, 0, 0, 0, 1]
