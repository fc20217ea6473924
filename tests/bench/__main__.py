"""How fast gpuq is: `python -m tests.bench [--short] [--json] [--rounds N] [--folder DIR]`.

Times depend on the machine and on what else it does, so they are told as ratios to `python -c pass` and to a Typer
command that does nothing, taken in the same interleaved rounds. Nothing is asserted about them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuq.config import filesystem_type
from tests.bench.bed import Bed
from tests.bench.measures import CPUS, Beds, Measure, commands, fill, launches, rest, throughput
from tests.bench.report import Row, as_json, as_table
from tests.fakenvml import FakeNvml, GiB, fake_gpus


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="a quick look: few rounds, few jobs, a short rest")
    parser.add_argument("--json", action="store_true", help="print one object, gpuq.bench/1")
    parser.add_argument("--rounds", type=int, help="rounds of all commands (default 30, with --short 2)")
    parser.add_argument("--folder", type=Path, help="where state folders are made: launching depends on the disk")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons are stopped
    about = _about(options.folder)
    rows = measure(options.folder, options.rounds or (2 if options.short else 30), short=options.short)
    about["load after"] = _load()
    print(json.dumps(as_json(rows, about)) if options.json else as_table(rows, about))


def measure(where: Path | None, rounds: int, *, short: bool) -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuq-bench-", dir=where)))
        nvml = FakeNvml(folder / "nvml", fake_gpus(24 * GiB, 24 * GiB))
        beds = Beds(
            idle=stack.enter_context(Bed(folder / "idle", GPUQ_GPUS="none")),
            gpus=stack.enter_context(Bed(folder / "gpus", **nvml.env)),
            some=stack.enter_context(Bed(folder / "some", GPUQ_GPUS="none")),
            many=stack.enter_context(Bed(folder / "many", GPUQ_GPUS="none")),
        )
        runs = fill(beds.some, 1000)
        fill(beds.many, 10_000)
        resting = rest(beds, runs, 1 if short else 20)
        rows = interleave([*commands(folder, beds), *launches(folder, beds)], rounds, warm_up=1 if short else 3)
        return [*rows, throughput(beds.idle, 40 if short else 1000), *resting]


def interleave(measures: Sequence[Measure], rounds: int, warm_up: int) -> list[Row]:
    """Every measure once a round, in an order that changes, so that none follows the same one each time."""
    values: dict[str, list[float]] = {measure.name: [] for measure in measures}
    for number in range(warm_up + rounds):
        for measure in random.sample(measures, len(measures)):
            taken = measure.take()
            if number >= warm_up:
                values[measure.name].append(taken)
    return [Row(measure.name, "s", tuple(values[measure.name]), measure.goal) for measure in measures]


def _about(where: Path | None) -> dict[str, Any]:
    folder = Path(where or tempfile.gettempdir()).resolve()
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "machine": f"{CPUS} CPUs, {platform.system()} {platform.release()}",
        "file system": filesystem_type(folder, Path("/proc/self/mountinfo").read_text()),
        "load before": _load(),
    }


def _load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


if __name__ == "__main__":
    main()
