"""Which of several GPUs are closest to each other. Pure.

The GPUs whose distances, added up over all pairs, are least: each process of a job talks to all others. That is the
minimum-weight k-clique of a complete graph, which is NP-hard; hosts are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpuq.model import FARTHEST
from gpuq.policy.ledger import GpuState

#: Up to so many ways to choose, the best one is found: any number of 14 GPUs, or 5 of 16. Beyond, the search is greedy.
EXACT = 5000

Matrix = Sequence[Sequence[int]]


def closest(gpus: Sequence[GpuState], count: int) -> tuple[GpuState, ...] | None:
    """The `count` GPUs that are closest, in the order given; None where there are fewer.

    `gpus` come in order of preference: among choices that are equally close, the one counts whose first GPU that the
    other lacks comes first. A pair of which nothing is told counts as `FARTHEST`. So the first ones are chosen where
    nothing is told, or all are equally far apart.
    """
    if count > len(gpus):
        return None
    if count < 2 or count == len(gpus) or not any(gpu.near for gpu in gpus):
        return tuple(gpus[:count])
    matrix = [[gpu.near.get(other.uuid, FARTHEST) for other in gpus] for gpu in gpus]
    few = math.comb(len(gpus), count) <= EXACT
    return tuple(gpus[number] for number in (_best if few else _greedy)(matrix, count))


def _best(matrix: Matrix, count: int) -> tuple[int, ...]:
    """The best choice, by looking at all in order, but for those that cannot be better than one that was found.

    Every distance that is still to come is at least the least of all.
    """
    size, least = len(matrix), _least(matrix)
    best: tuple[int, ...] = ()
    best_sum = math.inf

    def extend(chosen: tuple[int, ...], so_far: int, added: Sequence[int]) -> None:
        # `added` is the sum of distances to those chosen, by GPU
        nonlocal best, best_sum
        missing = count - len(chosen)
        if not missing:
            best, best_sum = chosen, so_far
            return
        to_come = least * ((missing - 1) * len(chosen) + missing * (missing - 1) // 2)
        for number in range(chosen[-1] + 1 if chosen else 0, size - missing + 1):
            total = so_far + added[number]
            if total + to_come < best_sum:
                extend((*chosen, number), total, [a + b for a, b in zip(added, matrix[number], strict=True)])

    extend((), 0, [0] * size)
    return best


def _greedy(matrix: Matrix, count: int) -> tuple[int, ...]:
    """From each GPU on, the next one that is closest to those chosen; the best of these choices. May miss the best."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for seed in range(len(matrix)):
        chosen, total, added = [seed], 0, list(matrix[seed])
        while len(chosen) < count:
            number = min((n for n in range(len(matrix)) if n not in chosen), key=added.__getitem__)
            chosen.append(number)
            total += added[number]
            added = [a + b for a, b in zip(added, matrix[number], strict=True)]
        found.append((total, tuple(sorted(chosen))))
    return min(found)[1]


def _least(matrix: Matrix) -> int:
    return min(distance for one, row in enumerate(matrix) for other, distance in enumerate(row) if one != other)
