"""`true` jobs, two at a time, as many as one likes, from one file or a command each: jobs per second."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.bed import Bed
from tests.bench.measure import Measure, timed
from tests.bench.report import Goal
from tests.bench.world import HALF, World

#: Commands of gpuq, where each job has one: they take a tenth of a second each.
_COMMANDS = 40


def measures(world: World) -> list[Measure]:
    """gpuq keeps every result durably, whatever is asked of it; what the others keep is in their names."""
    bed = world.bed("batch")
    count = world.scale.count
    found = [
        _rate("gpuq submit --from FILE", count, _from_file(bed), Goal(300, least=True)),
        _rate("gpuq, a command each", min(count, _COMMANDS), _one_by_one(bed)),
    ]
    for peer in world.peers:
        for name, (most, work) in peer.batches(world.stamps(f"{peer.name}-batch")).items():
            found.append(_rate(name, min(count, most), work, peer=peer.name))
    return found


def _rate(
    name: str, count: int, work: Callable[[int], None], goal: Goal | None = None, peer: str | None = None
) -> Measure:
    return Measure("batch", name, lambda: count / timed(lambda: work(count)), goal, unit="/s", peer=peer)


def _from_file(bed: Bed) -> Callable[[int], None]:
    def work(count: int) -> None:
        file = bed.folder / "commands"
        file.write_text("true\n" * count)
        bed.call("submit", "--gpus", "0", "--cpus", str(HALF), "--from", str(file))
        _until_ended(bed, count)

    return work


def _one_by_one(bed: Bed) -> Callable[[int], None]:
    def work(count: int) -> None:
        for _ in range(count):
            bed.call("submit", "--gpus", "0", "--cpus", str(HALF), "--", "true")
        _until_ended(bed, count)

    return work


def _until_ended(bed: Bed, count: int) -> None:
    last = bed.last()
    bed.wait(last)  # before the rest: a wait for many jobs costs the daemon something whenever one ends
    bed.wait(last - count + 1, last)
