"""A hundred thousand jobs in one submission, and cancelled in one: how fast, and how long others wait meanwhile."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.bench.bed import Bed, program
from tests.bench.report import Goal, Row
from tests.bench.world import CPUS, World

#: Longest that another request may take meanwhile, in seconds.
_MEANWHILE = Goal(0.050)
#: Between two requests of the one who asks meanwhile, in seconds.
_PAUSE = 0.002


def rows(world: World) -> Iterator[Row]:
    bed = world.bed("large")
    bed.submit([["sleep", "86400"]], cpus=CPUS)  # everything else waits
    lines = world.scale.lines
    file = world.folder / "lines"
    file.write_text("".join(f"echo {number} of many\n" for number in range(lines)))
    few = world.folder / "few"
    few.write_text("true\n")
    _, small = _submitted(bed, few)
    with _asking(bed) as answers:
        began = time.perf_counter()
        last, memory = _submitted(bed, file)
        submitted = time.perf_counter() - began
    yield Row("large", f"submit --from {lines:,} lines", "/s", (lines / submitted,), Goal(15_000, least=True))
    yield Row("large", "the client's memory, more than for one line", "bytes", (memory - small,), Goal(4e6))
    yield from _meanwhile("submit", answers)
    with _asking(bed) as answers:
        began = time.perf_counter()
        bed.call("cancel", f"{last - lines + 1}-{last}")
        cancelled = time.perf_counter() - began
    yield Row("large", f"cancel of {lines:,} that wait", "s", (cancelled,), Goal(2.0))
    yield from _meanwhile("cancel", answers)


def _meanwhile(what: str, answers: list[float]) -> list[Row]:
    return [
        Row("large", f"other requests during this {what}", "s", tuple(answers)),
        Row("large", "the longest of these", "s", (max(answers),), _MEANWHILE),
    ]


def _submitted(bed: Bed, file: Path) -> tuple[int, float]:
    """Id of the last job, and the most that the command had in memory, in bytes."""
    null = subprocess.DEVNULL
    argv = [*program(), "submit", "--gpus", "0", "--from", str(file)]
    with subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=bed.env, cwd=bed.folder) as process:
        peak = _peak(process)
    if process.returncode != 0:
        raise RuntimeError(f"submit --from exited with {process.returncode}")
    return bed.last(), peak


def _peak(process: subprocess.Popen[bytes]) -> float:
    """The largest resident set of a process until it ends (VmHWM, proc(5)), in bytes.

    Not ru_maxrss: in that stands also what we had when the process was made of us.
    """
    most = 0.0
    while process.poll() is None:
        with suppress(OSError):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    most = float(line.split()[1]) * 1024
        time.sleep(0.005)
    return most


@contextmanager
def _asking(bed: Bed) -> Iterator[list[float]]:
    """Somebody else, who asks for a page of the queue and for one job again and again: what each answer took."""
    answers: list[float] = []
    over = threading.Event()
    broken: list[BaseException] = []

    def ask() -> None:
        questions: tuple[tuple[str, dict[str, Any]], ...] = (
            ("list", {"limit": 20}),
            ("show", {"sel": {"ranges": [[1, 1]]}}),
            ("status", {}),
        )
        try:
            while not over.is_set():
                for op, fields in questions:
                    began = time.perf_counter()
                    bed.request(op, **fields)
                    answers.append(time.perf_counter() - began)
                over.wait(_PAUSE)
        except BaseException as error:
            broken.append(error)
            raise

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
    if broken:
        raise broken[0]
