"""What a job waits for: whether it holds, still can, or cannot any more; and who waits for each other. Pure."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpuq.model import Clause, Condition, Dependency, Job, State

#: Alternatives of a clause that a note names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands, as far as others ask that wait for it."""

    state: State
    #: whether an attempt of it has started
    started: bool

    @classmethod
    def of(cls, job: Job) -> Standing:
        return cls(job.state, job.attempt > 0)


#: An alternative of the clause with that number.
Numbered = tuple[int, Dependency]


def holds(condition: Condition, job: Standing) -> bool | None:
    """Whether a dependency on the job holds; None while that is open."""
    if condition is Condition.STARTED and job.started:
        return True
    if job.state is State.SUCCEEDED:
        return condition is not Condition.FAILED
    if job.state is State.FAILED:
        return condition is not Condition.OK
    if job.state in (State.CANCELLED, State.SKIPPED):
        # it did not fail, it did not run to an end: only `any` is content
        return condition is Condition.ANY
    return None


@dataclass(frozen=True, slots=True)
class DependencyBroken:
    """None of a clause's alternatives can hold any more: the job never starts."""

    clause: Clause
    #: how the job of each alternative stands; None for one that is gone
    standings: tuple[Standing | None, ...]

    @property
    def note(self) -> str:
        """`depends on ok:12, which failed`, or of several what became of each."""
        found = list(zip(self.clause.alternatives, self.standings, strict=True))
        if len(found) == 1:
            wanted, standing = found[0]
            return f"depends on {wanted}, which {_outcome(wanted, standing)}"
        shown = Clause(self.clause.alternatives[:_NAMED])
        told = ", ".join(f"job {wanted.job_id} {_outcome(wanted, standing)}" for wanted, standing in found[:_NAMED])
        more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        return f"depends on {shown}{more}: {told}"


def ended_words(state: State) -> str:
    """How a job in this state ended, as the end of a sentence."""
    return {State.CANCELLED: "was cancelled", State.SKIPPED: "was skipped"}.get(state, str(state))


def _outcome(wanted: Dependency, standing: Standing | None) -> str:
    if standing is None:
        return "is gone"
    if holds(wanted.condition, standing) is None:  # it ended so, and is tried again
        return f"is {standing.state} again"
    never = " and never started" if wanted.condition is Condition.STARTED else ""
    return ended_words(standing.state) + never


def listed(clauses: Mapping[int, Clause]) -> str:
    """The first few of them."""
    words = [str(clause) for clause in itertools.islice(clauses.values(), _NAMED)]
    return ", ".join(words) + (f", and {len(clauses) - _NAMED:,} more" if len(clauses) > _NAMED else "")


def weigh(
    after: Sequence[Clause], standing: Callable[[int], Standing | None]
) -> tuple[frozenset[Numbered], DependencyBroken | None]:
    """The alternatives that are open, of clauses that do not hold yet; or the first clause that never will.

    `standing` may say None of a job of which nothing is known: then that clause is left to others.
    """
    open_: set[Numbered] = set()
    for number, clause in enumerate(after):
        standings = tuple(standing(wanted.job_id) for wanted in clause.alternatives)
        found = [
            None if how is None else holds(wanted.condition, how)
            for wanted, how in zip(clause.alternatives, standings, strict=True)
        ]
        if True in found:
            continue
        if None not in found:
            return frozenset(), DependencyBroken(clause, standings)
        open_.update(
            (number, wanted)
            for wanted, how, answer in zip(clause.alternatives, standings, found, strict=True)
            if how is not None and answer is None
        )
    return frozenset(open_), None


# --- cycles ---------------------------------------------------------------------------------------


class TooMany(Exception):
    """The search was given up: so many look-ups did not tell whether there is a cycle."""


class _Side:
    """One of two searches that go towards each other, a step at a time."""

    def __init__(self, roots: Iterable[int], neighbours: Callable[[int], Iterable[int]]) -> None:
        self._neighbours = neighbours
        #: from where each job was reached; a root from itself
        self.came = {root: root for root in roots}
        self._todo = deque(self.came)
        self._from = 0
        self._next: Iterator[int] = iter(())

    def step(self) -> int | None:
        """Look at one more edge: the job that it leads to, 0 for one that leads nowhere new; None at the end."""
        found = next(self._next, None)
        if found is None:
            if not self._todo:
                return None
            self._from = self._todo.popleft()
            self._next = iter(self._neighbours(self._from))
            return 0
        if found in self.came:
            return 0
        self.came[found] = self._from
        self._todo.append(found)
        return found

    def path(self, job_id: int) -> list[int]:
        """From the job back to a root."""
        found = [job_id]
        while self.came[found[-1]] != found[-1]:
            found.append(self.came[found[-1]])
        return found


def find_cycle(
    job_id: int,
    wanted: Iterable[int],
    needs: Callable[[int], Iterable[int]],
    needed_by: Callable[[int], Iterable[int]],
    most: int,
) -> list[int] | None:
    """A cycle that there would be if the job waited for those that are `wanted`: ids, each waiting for the next one,
    from the job to itself. None where there would be none.

    `needs` tells on whom a job waits, and `needed_by` who waits on it. Both ways are gone at once, an edge at a time,
    so that it costs what the cheaper one costs: mostly nobody waits on the job. Raises TooMany after `most` steps.
    """
    down, up = _Side(wanted, needs), _Side([job_id], needed_by)
    if job_id in down.came:
        return [job_id, job_id]
    for _ in range(most):
        for side, other in ((down, up), (up, down)):
            found = side.step()
            if found is None:
                return None
            if found and found in other.came:
                return [job_id, *reversed(down.path(found)), *up.path(found)[1:]]
    raise TooMany
