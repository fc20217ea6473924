"""Commands as a shell script calls them: whole processes, off a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench.bed import Bed, program
from tests.bench.measure import Measure, timed
from tests.bench.peers.base import Peer
from tests.bench.report import Goal
from tests.bench.stamps import Stamps
from tests.bench.world import World

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
_GOAL = Goal(1.3, times=True)


def measures(world: World) -> list[Measure]:
    idle, full = world.bed("idle"), world.full()
    noop = _noop(world.folder)
    waiting = f"{world.scale.waiting:,} wait"
    ended, _ = idle.submit([["true"]])
    idle.wait(ended)

    def run(name: str, bed: Bed, *argv: str, goal: Goal | None = _GOAL) -> Measure:
        return Measure("commands", name, lambda: timed(lambda: bed.execute(list(argv))), goal)

    def gpuq(words: str, bed: Bed, note: str = "", goal: Goal | None = _GOAL) -> Measure:
        name = f"gpuq {words.rstrip('0123456789 ')}{note}"
        return run(name, bed, *program(), *words.split(), goal=goal)

    return [
        run("python -c pass", idle, sys.executable, "-c", "pass", goal=None),
        run("no-op Typer command", idle, str(noop), goal=None),
        Measure("commands", "gpuq submit", _submit(idle), _GOAL),
        Measure("commands", f"gpuq submit, {waiting}", _submit_waiting(full), _GOAL),
        run("gpuq list -n 20", idle, *program(), "list", "-n", "20"),
        run(f"gpuq list -n 20, {waiting}", full, *program(), "list", "-n", "20"),
        run(f"gpuq list, {waiting}", full, *program(), "list", goal=None),
        gpuq(f"show {ended}", idle),
        gpuq("show 2", full, f", {waiting}"),
        gpuq("why 2", full, f", {waiting}"),
        gpuq(f"wait {ended}", idle),
        Measure("commands", "gpuq cancel", _cancel(idle), _GOAL),
        Measure("commands", f"gpuq cancel, {waiting}", _cancel(full), _GOAL),
        *(measure for peer in world.peers for measure in _of_peer(peer, world.stamps(f"{peer.name}-commands"))),
    ]


def _noop(folder: Path) -> Path:
    noop = folder / "noop"
    noop.write_text(f"#!{sys.executable}\n{_NOOP}")
    noop.chmod(0o700)
    return noop


def _submit(bed: Bed) -> Callable[[], float]:
    def take() -> float:
        taken = timed(lambda: bed.call("submit", "--gpus", "0", "--", "true"))
        bed.wait(bed.last())  # the next measure finds the queue idle
        return taken

    return take


def _submit_waiting(bed: Bed) -> Callable[[], float]:
    def take() -> float:
        taken = timed(lambda: bed.call("submit", "--gpus", "0", "--", "true"))
        bed.request("cancel", sel={"last": True})
        return taken

    return take


def _cancel(bed: Bed) -> Callable[[], float]:
    def take() -> float:
        job, _ = bed.submit([["true"]], hold=True)
        return timed(lambda: bed.call("cancel", str(job)))

    return take


def _of_peer(peer: Peer, stamps: Stamps) -> list[Measure]:
    submit, listing = peer.submit(stamps.job), peer.listing()
    found = []
    if submit is not None:

        def take() -> float:
            taken = timed(lambda: peer.execute(submit))
            stamps.next()
            return taken

        found.append(Measure("commands", f"{peer.name}: submit", take, peer=peer.name))
    if listing is not None:
        shown = Measure(
            "commands",
            f"{peer.name}: list",
            lambda: timed(lambda: peer.execute(listing, peer.listing_codes)),
            peer=peer.name,
        )
        found.append(shown)
    return found
