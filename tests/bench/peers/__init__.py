"""Other queues, measured in the same run where they are installed; each runs in a folder of its own, and is ended."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.bench.measure import Unfit
from tests.bench.peers.base import Peer
from tests.bench.peers.hyperqueue import HyperQueue
from tests.bench.peers.local import Gflow, GqLocal
from tests.bench.peers.slurm import Slurm
from tests.bench.peers.spoolers import Nq, TaskSpooler
from tests.bench.peers.streams import Parallel, Xargs

PEERS: tuple[type[Peer], ...] = (TaskSpooler, Nq, Parallel, Xargs, HyperQueue, GqLocal, Gflow, Slurm)


def begin(stack: ExitStack, folder: Path, wanted: set[str] | None) -> tuple[list[Peer], list[str]]:
    """The peers that run now, and a line for each that does not; `wanted` names them, None stands for all."""
    begun, left_out = [], []
    for kind in PEERS:
        if wanted is not None and kind.name not in wanted:
            continue
        lack = kind.lacks()
        if lack is None:
            try:
                begun.append(stack.enter_context(kind(folder / kind.name)))
            except (Unfit, OSError, subprocess.SubprocessError) as error:
                lack = f"it did not start: {error}"
        if lack is not None:
            left_out.append(f"{kind.name}: {lack}")
    return begun, left_out
