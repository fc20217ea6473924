"""What a full queue costs: many that wait, very many that have ended, beside a queue that is empty.

Requests go over the socket to both daemons in turn, and each ratio is that of two neighbours in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.bench.bed import Bed
from tests.bench.crowd import make
from tests.bench.kernel import memory
from tests.bench.report import Goal, Row
from tests.bench.world import World

Take = Callable[[Bed, int], object]
#: Before those that count.
_WARM_UP = 3
#: Requests of each kind, for each round of what takes milliseconds.
_PER_ROUND = 3
_RATIO = Goal(1.5)


def _one(op: str) -> Take:
    return lambda bed, job_id: bed.request(op, sel={"ranges": [[job_id, job_id]]})


def _submit(bed: Bed, _job: int) -> int:
    return bed.submit([["true"]], name="one")[0]


#: What is asked of both; `submit` and `cancel` follow each other, so that both queues stay as they are.
ASKED: dict[str, Take] = {
    "list -n 20": lambda bed, _: bed.request("list", sel={}, all=False, limit=20),
    "list --all -n 20": lambda bed, _: bed.request("list", sel={}, all=True, limit=20),
    "show": _one("show"),
    "why": _one("why"),
    "submit": _submit,
    "cancel": _one("cancel"),
}


def rows(world: World) -> Iterator[Row]:
    scale = world.scale
    empty, full = Bed(world.folder / "flat-empty", GPUQ_GPUS="none"), Bed(world.folder / "flat-full", GPUQ_GPUS="none")
    make(empty.state, waiting=0, ended=0)  # but for the job that takes all CPUs
    make(full.state, waiting=scale.crowd, ended=scale.ended)
    with empty, full:
        what = f"{scale.crowd:,} wait, {scale.ended:,} have ended"
        yield Row("flat", f"daemon start, {what}", "s", (_start(full),), Goal(2.0))
        yield Row("flat", f"daemon: USS, {what}", "bytes", (memory(full.pid)[0],), Goal(250e6))
        for bed in (empty, full):  # the first thorough check goes on, and would be in the figures that follow
            while bed.request("status")["database"] != "whole":
                time.sleep(0.1)
        yield from _compared(empty, full, scale.rounds * _PER_ROUND)


def _start(bed: Bed) -> float:
    """Seconds that it takes the daemon to begin anew."""
    bed.call("daemon", "stop")
    began = time.perf_counter()
    bed.call("daemon", "start")
    took = time.perf_counter() - began
    bed.pid = int(bed.request("status")["pid"])
    return took


def _compared(empty: Bed, full: Bed, rounds: int) -> Iterator[Row]:
    took: dict[str, list[tuple[float, float]]] = {asked: [] for asked in ASKED}
    jobs = {bed: _submit(bed, 0) for bed in (empty, full)}
    for number in range(_WARM_UP + rounds):
        for asked, take in ASKED.items():
            pair = []
            for bed in (empty, full):
                began = time.perf_counter()
                answer = take(bed, jobs[bed])
                pair.append(time.perf_counter() - began)
                if asked == "submit":
                    assert isinstance(answer, int)
                    jobs[bed] = answer
            if number >= _WARM_UP:
                took[asked].append((pair[0], pair[1]))
    for asked, pairs in took.items():
        yield Row("flat", f"{asked}, over the socket", "s", tuple(with_all for _, with_all in pairs))
        ratios = tuple(with_all / alone for alone, with_all in pairs)
        yield Row("flat", f"{asked}, to that of an empty queue", "times", ratios, _RATIO)
