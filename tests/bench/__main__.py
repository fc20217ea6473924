"""How fast gpuq is, beside its peers and the machine's own limit: `python -m tests.bench [--short] [--json] …`.

Times depend on the machine and on what else it does, so they are told as ratios, taken in the same interleaved rounds.
Nothing is asserted about them. Peers are measured where they are installed; `tests/bench/peers/` says how.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuq.config import filesystem_type
from gpuq.errors import GpuqError
from tests.bench import batches, commands, flat, large, latency, machine, peers, planning, rest
from tests.bench.measure import Measure, interleave
from tests.bench.report import SECTIONS, Row, as_json, as_table
from tests.bench.world import CPUS, Scale, World

_LONG = Scale(
    rounds=30,
    warm_up=1,
    batches=3,
    count=5000,
    lines=100_000,
    waiting=10_000,
    crowd=100_000,
    ended=1_000_000,
    watched=64,
    settle=3,
    seconds=10,
)
_SHORT = Scale(
    rounds=2,
    warm_up=0,
    batches=1,
    count=40,
    lines=1000,
    waiting=1000,
    crowd=300,
    ended=1000,
    watched=8,
    settle=0.3,
    seconds=0.5,
)
#: What options may set.
_SIZES = ("rounds", "batches", "count", "lines", "waiting", "crowd", "ended")
#: Sections of what takes milliseconds: all of it is in the same rounds.
_QUICK: dict[str, Callable[[World], list[Measure]]] = {
    "machine": machine.measures,
    "commands": commands.measures,
    "first": latency.first,
    "next": latency.following,
    "plan": planning.measures,
}


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, _end)
    about = _about(options.folder)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpuq-bench-", dir=options.folder)))
        begun, left_out = peers.begin(stack, folder, options.peers)
        world = World(stack, folder, _scale(options), begun)
        rows, given_up = measure(world, options.only)
    if options.short:  # goals are for as much as they are told of
        rows = [replace(row, goal=None) for row in rows]
    about["load after"] = _load()
    left_out += given_up
    print(json.dumps(as_json(rows, left_out, about)) if options.json else as_table(rows, left_out, about))


def _end(number: int, _: object) -> None:
    """Stop what was started, and remove it; once: timeout(1) sends its signal twice, the second time to the group."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def measure(world: World, only: Sequence[str]) -> tuple[list[Row], list[str]]:
    """The rows of these sections, and what was given up of peers."""
    scale = world.scale
    quick = [one for section, measures in _QUICK.items() if section in only for one in measures(world)]
    slow = batches.measures(world) if "batch" in only else []
    rows, given_up = interleave(quick, scale.rounds, scale.warm_up)
    more, given_up_later = interleave(slow, scale.batches, warm_up=0)
    rows += more
    left_out = given_up + given_up_later
    for section, single in (("large", large.rows), ("flat", flat.rows), ("rest", rest.rows)):
        if section in only:
            try:
                rows += single(world)
            except (GpuqError, OSError, subprocess.SubprocessError) as error:
                left_out.append(f"the rest of {section!r}: gpuq failed: {error}")  # the other rows are true
    return rows, left_out


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--short", action="store_true", help="a quick look that judges nothing: few rounds and jobs, a short rest"
    )
    parser.add_argument("--json", action="store_true", help="print one object, gpuq.bench/2")
    parser.add_argument("--only", type=_sections, default=tuple(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--peers", type=_peers, help="names of those to measure, or none; all that are installed")
    parser.add_argument("--folder", type=Path, help="where state folders are made: launching depends on the disk")
    for name, help_text in (
        ("rounds", "of what takes milliseconds"),
        ("batches", "rounds of batches"),
        ("count", "jobs of a batch"),
        ("lines", "of the large file"),
        ("waiting", "jobs where a long queue is looked at"),
        ("crowd", "jobs that wait where the queue is full"),
        ("ended", "jobs that have ended there"),
    ):
        long, short = getattr(_LONG, name), getattr(_SHORT, name)
        parser.add_argument(f"--{name}", type=int, help=f"{help_text} ({long}, with --short {short})")
    return parser.parse_args()


def _scale(options: argparse.Namespace) -> Scale:
    given = {field: getattr(options, field) for field in _SIZES}
    scale = _SHORT if options.short else _LONG
    return replace(scale, **{name: value for name, value in given.items() if value is not None})


def _sections(text: str) -> tuple[str, ...]:
    """Raises ArgumentTypeError."""
    words = tuple(text.split(","))
    if unknown := set(words) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    return words


def _peers(text: str) -> set[str]:
    """Raises ArgumentTypeError."""
    words = set() if text == "none" else set(text.split(","))
    if unknown := words - {peer.name for peer in peers.PEERS}:
        known = ", ".join(peer.name for peer in peers.PEERS)
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {known}, and none")
    return words


def _about(where: Path | None) -> dict[str, Any]:
    folder = Path(where or tempfile.gettempdir()).resolve()
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "command": " ".join(["python -m tests.bench", *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": f"{CPUS} CPUs, {platform.system()} {platform.release()}",
        "file system": filesystem_type(folder, Path("/proc/self/mountinfo").read_text()),
        "load before": _load(),
    }


def _load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


if __name__ == "__main__":
    main()
