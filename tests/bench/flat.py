"""How much a full queue costs: `python -m tests.bench.flat [--waiting N] [--ended N] [--folders N] [--rounds N]`.

Requests over the socket, to a daemon whose queue is full and to one whose queue is empty, in interleaved rounds; then
the daemon's start and memory, and a cancel of everything that waits with what others saw of it. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gpuq.client import Client
from tests.bench.bed import Bed
from tests.bench.crowd import make
from tests.bench.kernel import cpu_seconds, memory

Take = Callable[[Bed, int], object]


def _list(bed: Bed, _job: int) -> object:
    return bed.request("list", sel={}, all=False, limit=20)


def _list_all(bed: Bed, _job: int) -> object:
    return bed.request("list", sel={}, all=True, limit=20)


def _one(op: str) -> Take:
    return lambda bed, job_id: bed.request(op, sel={"ranges": [[job_id, job_id]]})


def _submit(bed: Bed, _job: int) -> object:
    return bed.submit([["true"]], name="one")


#: What is asked of both daemons; `submit` and `cancel` follow each other, so that both queues stay as they are.
ASKED: dict[str, Take] = {
    "list -n 20": _list,
    "list --all -n 20": _list_all,
    "show": _one("show"),
    "why": _one("why"),
    "submit": _submit,
    "cancel": _one("cancel"),
}


def compare(empty: Bed, full: Bed, rounds: int) -> None:
    """Print the median time and the daemon's CPU time of each request, and the ratio of both."""
    wall: dict[tuple[str, str], list[float]] = {}
    used: dict[tuple[str, str], list[float]] = {}
    beds = {"empty": empty, "full": full}
    jobs = {name: _submit(bed, 0)[0] for name, bed in beds.items()}  # type: ignore[index]
    for number in range(rounds + 3):
        for asked, take in ASKED.items():
            for name, bed in beds.items():
                before, began = cpu_seconds(bed.pid), time.perf_counter()
                answer = take(bed, jobs[name])
                took = time.perf_counter() - began
                if asked == "submit":
                    jobs[name] = answer[0]  # type: ignore[index]
                if number >= 3:
                    wall.setdefault((asked, name), []).append(took)
                    used.setdefault((asked, name), []).append(cpu_seconds(bed.pid) - before)
    print(f"{'ms (median)':18} {'empty':>8} {'full':>8} {'ratio':>6}   {'cpu':>8} {'full':>8} {'ratio':>6}")
    for asked in ASKED:
        a, b = (statistics.median(wall[asked, name]) * 1e3 for name in beds)
        c, d = (statistics.median(used[asked, name]) * 1e3 for name in beds)
        print(f"{asked:18} {a:8.2f} {b:8.2f} {b / a:6.2f}   {c:8.2f} {d:8.2f} {d / c:6.2f}")


def start(bed: Bed) -> None:
    """Print how long the daemon takes to begin anew, by stopping and starting it."""
    bed.call("daemon", "stop")
    began = time.perf_counter()
    bed.call("daemon", "start")
    took = time.perf_counter() - began
    bed.pid = int(bed.request("status")["pid"])
    print(f"daemon start {took:.2f} s, its CPU time {cpu_seconds(bed.pid):.2f} s", end="; ")
    print("USS {:.1f} MB, RSS {:.1f} MB".format(*(size / 1e6 for size in memory(bed.pid))))
    while bed.request("status")["database"] != "whole":
        time.sleep(0.1)  # its first thorough check goes on, and would be in the figures that follow
    print(f"thoroughly checked after {time.perf_counter() - began:.1f} s, CPU time {cpu_seconds(bed.pid):.1f} s")


def cancel_all(bed: Bed) -> None:
    """Print how long a cancel of all that waits takes, and the longest answer to another request meanwhile."""
    took: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.perf_counter()
            bed.request("status")
            took.append(time.perf_counter() - began)

    asking = threading.Thread(target=ask)
    before, began = cpu_seconds(bed.pid), time.perf_counter()
    asking.start()
    with Client.connect(start=False) as client:
        client.socket.settimeout(None)
        cancelled = len(client.request("cancel", sel={"states": ["queued"]})["done"])
    lasted = time.perf_counter() - began
    done.set()
    asking.join()
    cpu = cpu_seconds(bed.pid) - before
    print(f"cancel of {cancelled:,}: {lasted:.2f} s, CPU {cpu:.2f} s, longest other answer {max(took) * 1e3:.0f} ms")
    print("USS {:.1f} MB, RSS {:.1f} MB".format(*(size / 1e6 for size in memory(bed.pid))))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flat", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=0, help="run folders of jobs that ended (default 0)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="where state folders are made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpuq-flat-", dir=options.folder) as name:
        folder = Path(name)
        empty, full = Bed(folder / "empty", GPUQ_GPUS="none"), Bed(folder / "full", GPUQ_GPUS="none")
        make(empty.state, waiting=0, ended=0)  # but for the job that takes all CPUs
        began = time.perf_counter()
        make(full.state, waiting=options.waiting, ended=options.ended, folders=options.folders)
        print(f"the queue was filled in {time.perf_counter() - began:.1f} s")
        with empty, full:
            for bed in (empty, full):
                start(bed)
            compare(empty, full, options.rounds)
            cancel_all(full)


if __name__ == "__main__":
    main()
