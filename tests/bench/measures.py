"""What is measured. Each `take` does the thing once and returns seconds; rounds of all of them are interleaved."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.bed import Bed, cpu_seconds, memory, program
from tests.bench.report import NOOP, PASS, Row
from tests.fakenvml import GiB

#: The command that does nothing, with the settings of `gpuq.cli.app`.
_NOOP = """\
import typer

app = typer.Typer(
    name="noop",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def nothing() -> None:
    pass


app()
"""
SOURCE = Path(__file__).with_name("first.c")
CPUS = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Measure:
    name: str
    take: Callable[[], float]
    goal: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Beds:
    """The daemons: idle without GPUs, idle with two fake ones, and two with jobs that wait behind one that runs."""

    idle: Bed
    gpus: Bed
    some: Bed
    many: Bed


def fill(bed: Bed, count: int) -> int:
    """One job that takes all CPUs, and `count` jobs that wait for it; the id of the one that runs."""
    runs, _ = bed.submit([["sleep", "86400"]], cpus=CPUS)
    for left in range(count, 0, -1000):
        bed.submit([["true"]] * min(left, 1000), name="waits")
    return runs


def commands(folder: Path, beds: Beds) -> list[Measure]:
    """Whole processes, from before the fork to after the exit, off a terminal."""
    noop = folder / "noop"
    noop.write_text(f"#!{sys.executable}\n{_NOOP}")
    noop.chmod(0o700)

    def run(bed: Bed, *argv: str) -> Callable[[], float]:
        def take() -> float:
            began = time.perf_counter()
            bed.execute(list(argv))
            return time.perf_counter() - began

        return take

    def gpuq(bed: Bed, *args: str) -> Callable[[], float]:
        return run(bed, *program(), *args)

    submit = gpuq(beds.idle, "submit", "--gpus", "0", "--", "true")

    def submit_then_settle() -> float:
        taken = submit()
        beds.idle.wait(beds.idle.last())
        return taken

    goal = ("noop", 1.5)
    return [
        Measure(PASS, run(beds.idle, sys.executable, "-c", "pass")),
        Measure(NOOP, run(beds.idle, str(noop))),
        Measure("submit", submit_then_settle, goal),
        Measure("list, nothing waits", gpuq(beds.idle, "list"), goal),
        Measure("list -n 20, 1,000 wait", gpuq(beds.some, "list", "-n", "20"), goal),
        Measure("list, 1,000 wait", gpuq(beds.some, "list")),
        Measure("list -n 20, 10,000 wait", gpuq(beds.many, "list", "-n", "20"), goal),
        Measure("list, 10,000 wait", gpuq(beds.many, "list")),
        Measure("show", gpuq(beds.some, "show", "2")),
    ]


def launches(folder: Path, beds: Beds) -> list[Measure]:
    """From a submission to the first instruction of its job, on an idle queue."""
    first = folder / "first"
    compiler = ["cc", "-O1", "-o", str(first), str(SOURCE)]
    if subprocess.run([*compiler, "-static"], stderr=subprocess.DEVNULL).returncode != 0:
        subprocess.run(compiler, check=True)  # a machine without libc.a: the dynamic linker's time is in it too
    stamp = folder / "stamp"

    def stamped(bed: Bed, job_id: int) -> float:
        job = bed.wait(job_id)
        if job["state"] != "succeeded":
            raise RuntimeError(f"the timed job {job['state']}: {job['note']}")
        at = int(stamp.read_text()) / 1e9
        stamp.unlink()
        return at

    def accepted(bed: Bed, **template: Any) -> Callable[[], float]:
        def take() -> float:
            job_id, at = bed.submit([[str(first), str(stamp)]], **template)
            return stamped(bed, job_id) - at

        return take

    def typed() -> float:
        began = time.monotonic()
        beds.idle.call("submit", "--gpus", "0", "--", str(first), str(stamp))
        return stamped(beds.idle, beds.idle.last()) - began

    def fsync() -> float:
        began = time.perf_counter()
        fd = os.open(folder / "fsync", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, bytes(4096))
        os.fsync(fd)
        os.close(fd)
        return time.perf_counter() - began

    return [
        Measure("a new file of 4 KiB and its fsync", fsync),
        Measure("submit accepted → first instruction", accepted(beds.idle), ("unit", 0.030)),
        Measure("the same for a GPU job, two fake GPUs", accepted(beds.gpus, gpus=1, vram=GiB), ("unit", 0.030)),
        Measure("submit typed → first instruction", typed),
    ]


def throughput(bed: Bed, count: int) -> Row:
    """`count` jobs `true` from one file, as many at a time as there are CPUs: from typing until the last has ended."""
    file = bed.folder / "commands"
    file.write_text("true\n" * count)
    began = time.perf_counter()
    bed.call("submit", "--gpus", "0", "--from", str(file))
    last = bed.last()
    bed.wait(last)  # before the rest: a wait for a thousand jobs costs the daemon something whenever one ends
    bed.wait(last - count + 1, last)
    return Row("jobs `true` from one file", "jobs/s", (count / (time.perf_counter() - began),))


def rest(beds: Beds, runs: int, seconds: float) -> list[Row]:
    """Memory, and the share of a core over the same `seconds`, of daemons and a supervisor that have nothing to do."""
    pids = {
        "idle daemon, no GPUs": beds.idle.pid,
        "idle daemon, two fake GPUs": beds.gpus.pid,
        "daemon, 10,000 wait": beds.many.pid,
        "supervisor of a running job": beds.some.supervisor(runs),
    }
    began = time.monotonic()
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)  # the window that is measured
    lasted = time.monotonic() - began
    rows = []
    for name, pid in pids.items():
        idle = name.startswith("idle")
        share = (cpu_seconds(pid) - before[name]) / lasted
        private, resident = memory(pid)
        rows.append(Row(f"{name}: USS", "bytes", (float(private),), ("unit", 45e6) if idle else None))
        rows.append(Row(f"{name}: RSS", "bytes", (float(resident),)))
        rows.append(Row(f"{name}: share of a core", "cores", (share,), ("unit", 0.002) if idle else None))
    return rows
