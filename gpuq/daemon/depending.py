"""What a submission waits for: the words of `--after` into the jobs that they name, when it is submitted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpuq import after as words
from gpuq.after import Alternative
from gpuq.daemon.hub import let_others
from gpuq.errors import BadRequest, DependencyCycle, NoSuchJob, UsageError
from gpuq.model import Clause, Condition, Dependency
from gpuq.policy.dependencies import DependencyBroken, Numbered, Standing, TooMany, weigh
from gpuq.protocol import MAX_AFTER, ranges
from gpuq.store import dependents
from gpuq.store.staging import Needs
from gpuq.store.store import Store

#: Rows that are read between two looks at what others want.
PAGE = 1000
#: Jobs at either end of a cycle that a message names.
_SHOWN = 10
#: Characters of indexes that a message lists.
LISTED = 80


@dataclass(frozen=True, slots=True, eq=False)
class Each:
    """For each member of the array that is submitted, the member of another one with the same index."""

    condition: Condition
    #: ids by index
    ids: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Depending:
    """What the jobs of a submission wait for."""

    #: clauses that are the same for all
    common: tuple[Clause, ...] = ()
    #: clauses that differ from member to member of the array
    own: tuple[tuple[Dependency | Each, ...], ...] = ()

    def of(self, index: int) -> tuple[Clause, ...]:
        """The own clauses of the member with that index."""
        return tuple(
            Clause(tuple(Dependency(a.condition, a.ids[index]) if isinstance(a, Each) else a for a in alternatives))
            for alternatives in self.own
        )


def weighed(store: Store, after: Sequence[Clause]) -> tuple[frozenset[Numbered], DependencyBroken | None]:
    """The alternatives that are open now, or what can never hold. Raises NoSuchJob."""

    def standing(job_id: int) -> Standing:
        found = store.standing(job_id)
        if found is None:
            clause = next(c for c in after if any(wanted.job_id == job_id for wanted in c.alternatives))
            raise NoSuchJob(f"--after {clause}: there is no job {job_id}")
        return found

    return weigh(after, standing)


def refuse_cycle(store: Store, job_id: int, after: Sequence[Clause]) -> None:
    """Raises DependencyCycle where a job that waits would, by waiting for these instead, wait for itself.

    An alternative counts as any other, though the job might start by another: it would wait for ever where that fails.
    """
    wanted = dict.fromkeys(one.job_id for clause in after for one in clause.alternatives)
    try:
        found = dependents.cycle(store, job_id, wanted)
    except TooMany:
        raise DependencyCycle(
            f"job {job_id} cannot wait for these: so many jobs wait for each other there that it is not known soon "
            "enough whether it would wait for itself; submit it anew"
        ) from None
    if found is not None:
        text = [str(n) for n in found]
        if len(text) > 2 * _SHOWN:
            text[_SHOWN:-_SHOWN] = [f"({len(text) - 2 * _SHOWN} more)"]
        raise DependencyCycle(f"job {job_id} would wait for itself: {' -> '.join(text)}")


def own_needs(
    store: Store, depending: Depending, open_: frozenset[Numbered], members: Iterable[tuple[int, int]], *, waits: bool
) -> dict[int, Needs]:
    """What each of these members, by id and index, waits for; `open_` is what is open of that which all wait for.

    What can never hold is left open: it is found by those who see to dependents, when the job can be seen.
    """
    found: dict[int, Needs] = {}
    for job_id, index in members:
        own = depending.of(index)
        still, never = weighed(store, own) if waits else (frozenset[Numbered](), None)
        if never is not None:
            still = frozenset((number, a) for number, clause in enumerate(own) for a in clause.alternatives)
        shifted = {(len(depending.common) + number, wanted) for number, wanted in still}
        found[job_id] = Needs((*depending.common, *own), open_ | shifted)
    return found


def check(value: object) -> list[tuple[Alternative, ...]]:
    """What a message says under `after`, read. Raises UsageError."""
    if not isinstance(value, list) or len(value) > MAX_AFTER:
        raise BadRequest(f"after is a list of at most {MAX_AFTER:,} dependencies")
    found: dict[tuple[Alternative, ...], None] = {}
    for item in value:
        if not isinstance(item, str):
            raise BadRequest(f"--after must be text, not {item!r:.60}")
        if len(item) > words.MAX_CLAUSE:
            raise UsageError(f"--after has {len(item):,} characters, and {words.MAX_CLAUSE:,} are allowed")
        found[words.parse_clause(item)] = None
    return list(found)


async def resolve(
    store: Store, owner: int, clauses: Sequence[tuple[Alternative, ...]], indexes: Sequence[int]
) -> Depending:
    """The jobs that are named. `indexes` are those of the array that is submitted, empty for none.

    An alternative that names several jobs asks for all of them, so that a clause with it is several:
    (12 and 13) or 14 is (12 or 14) and (13 or 14). Raises UsageError, NoSuchJob.
    """
    reader = _Reader(store, owner, indexes)
    common: dict[Clause, None] = {}
    own: dict[tuple[Dependency | Each, ...], None] = {}
    room = MAX_AFTER
    for clause in clauses:
        named = [await reader.named(alternative) for alternative in clause]
        for chosen in itertools.product(*named):
            alternatives = tuple(dict.fromkeys(chosen))
            room -= len(alternatives)
            if room < 0:
                raise UsageError(f"--after {words.written(clause)!r:.100}: {words.too_many()}")
            fixed = tuple(one for one in alternatives if isinstance(one, Dependency))
            if len(fixed) == len(alternatives):
                common[Clause(fixed)] = None
            else:
                own[alternatives] = None
    return Depending(tuple(common), tuple(own))


class _Reader:
    def __init__(self, store: Store, owner: int, indexes: Sequence[int]) -> None:
        self._store, self._owner, self._indexes = store, owner, indexes

    async def named(self, wanted: Alternative) -> Sequence[Dependency | Each]:
        condition = Condition(wanted.condition)
        match wanted.kind:
            case "each":
                return [Each(condition, await self._partners(wanted))]
            case "array":
                ids = list((await self._members(wanted, MAX_AFTER)).values())
            case "tag":
                ids = await self._tagged(wanted)
            case "group":
                ids = self._grouped(wanted)
            case _:
                self._refuse_last(wanted)
                ids = list(range(wanted.first, wanted.last + 1))
        return [Dependency(condition, job_id) for job_id in ids]

    def _refuse_last(self, wanted: Alternative) -> None:
        if wanted.first == words.LAST:
            raise BadRequest(f"--after {wanted}: which job is @last is asked for before")

    async def _members(self, wanted: Alternative, most: int | None = None) -> dict[int, int]:
        """Ids by index of the array that the job is of. Raises UsageError for more than `most`."""
        self._refuse_last(wanted)
        array_id = self._store.array_of(wanted.first)
        if array_id is None:
            raise NoSuchJob(f"--after {wanted}: there is no job {wanted.first}")
        if array_id == 0:
            raise UsageError(
                f"--after {wanted}: job {wanted.first} is of no array: write {wanted.condition}:{wanted.first}"
            )
        ids: dict[int, int] = {}
        last = array_id - 1
        while members := self._store.array_members(array_id, last, PAGE):
            ids |= {index: job_id for job_id, index in members}
            last = members[-1][0]
            if most is not None and len(ids) > most:
                raise UsageError(f"--after {wanted}: the array has more members, and {words.too_many()}")
            await let_others()
        return ids

    async def _partners(self, wanted: Alternative) -> Mapping[int, int]:
        """Ids by index of the members that those of the new array wait for."""
        if not self._indexes:
            raise UsageError(
                f"--after {wanted}: each: is for an array, whose members wait for one each: give --array, or write "
                f"{wanted.condition}:array:{wanted.first} to wait for all of them"
            )
        ids = await self._members(wanted)
        if wanted.is_range:
            strangers = set(range(wanted.first, wanted.last + 1)) - set(ids.values())
            if strangers:
                raise UsageError(f"--after {wanted}: of one array job {wanted.first} is, and not {_listed(strangers)}")
            ids = {index: job_id for index, job_id in ids.items() if wanted.first <= job_id <= wanted.last}
        missing = [index for index in self._indexes if index not in ids]
        if missing:
            raise UsageError(
                f"--after {wanted}: no member there has the index {_listed(missing)}: there are {_listed(ids)}"
            )
        return {index: ids[index] for index in self._indexes}

    def _grouped(self, wanted: Alternative) -> list[int]:
        """The owner's jobs of the group, those that have ended as well."""
        return self._some(wanted, self._store.group_jobs(wanted.name, self._owner, MAX_AFTER + 1))

    async def _tagged(self, wanted: Alternative) -> list[int]:
        """The owner's jobs with the tag, those that have ended as well."""
        ids: list[int] = []
        place: str | None = ""
        while place is not None:
            found, place = self._store.tagged_jobs(wanted.name, self._owner, place, PAGE, MAX_AFTER + 1 - len(ids))
            ids += found
            if len(ids) > MAX_AFTER:
                break
            await let_others()
        return self._some(wanted, ids)

    def _some(self, wanted: Alternative, ids: list[int]) -> list[int]:
        """Those that were found, of which there are some, and no more than a job may wait for."""
        if not ids:
            raise NoSuchJob(f"--after {wanted}: no job of yours has the {wanted.kind} {wanted.name!r}")
        if len(ids) > MAX_AFTER:
            raise UsageError(f"--after {wanted}: it names more jobs, and {words.too_many()}")
        return sorted(ids)


def _listed(numbers: Iterable[int]) -> str:
    text = ranges(numbers)
    return text if len(text) <= LISTED else text[: LISTED - 1] + "…"
