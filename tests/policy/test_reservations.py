"""Reservations and backfill against two oracles: one that tries everything, and one that only counts.

The first follows the issue's words on small cases: a reservation is at the earliest time at which the first job that
cannot start could, by the ends that are known, and a later job starts if, and only if, it can be put somewhere such
that the reserved one can still start then. The second is EASY backfill as it was published, for whole GPUs that are
alike: Lifka, JSSPP 1995; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001 (shadow time and extra nodes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.model import Claim, GiB, Reason, Request, Wishes
from gpuq.policy.line import Line
from gpuq.policy.reserve import Ongoing
from gpuq.policy.scheduler import Plan, Policy, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from tests.policy.stream import HOST, Stream, Work, card, cpu, lines, share, whole

# --- the oracle that tries everything -------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What a running job has, and until when."""

    request: Request
    gpus: frozenset[int]
    ends: float


@dataclass(frozen=True)
class Site:
    """Cards by their size in GiB, and what runs on them."""

    cards: tuple[int, ...]
    runs: tuple[Held, ...] = ()

    def with_(self, request: Request, gpus: Sequence[int], ends: float) -> Site:
        return replace(self, runs=(*self.runs, Held(request, frozenset(gpus), ends)))

    def at(self, time: float) -> Site:
        """Once everything that has ended by then has gone."""
        return replace(self, runs=tuple(run for run in self.runs if run.ends > time))

    def holds(self) -> bool:
        """Whether nothing is given twice."""
        if sum(run.request.cpus for run in self.runs) > HOST.cpus or sum(r.request.ram for r in self.runs) > HOST.ram:
            return False
        return all(self._card_holds(n, size) for n, size in enumerate(self.cards))

    def _card_holds(self, number: int, size: int) -> bool:
        here = [run.request.vram for run in self.runs if number in run.gpus]
        return here == [None] or (None not in here and sum(v or 0 for v in here) <= size * GiB)

    def places(self, request: Request) -> Iterator[tuple[int, ...]]:
        """Every choice of GPUs on which the request could run now."""
        for gpus in combinations(range(len(self.cards)), request.gpus):
            if self.with_(request, gpus, inf).holds():
                yield gpus

    def could_start(self, request: Request, time: float) -> bool:
        return any(True for _ in self.at(time).places(request))


SMALL_REQUESTS = st.one_of(
    st.builds(share, st.integers(1, 8), st.integers(1, 3), st.integers(0, 2)),
    st.builds(whole, st.integers(1, 3), st.integers(0, 1)),
    st.builds(cpu, st.integers(0, 4), st.integers(0, 12)),
)
LIMITS = st.sampled_from([10.0, 20.0, 30.0, 40.0, inf])
SELDOM = st.sampled_from([10.0, inf, inf, inf])


@st.composite
def cases(draw: st.DrawFn, limits: st.SearchStrategy[float] = LIMITS) -> tuple[Site, list[Work]]:
    """A site where something runs, and up to six jobs that wait."""
    site = Site(tuple(draw(st.lists(st.sampled_from([4, 8]), min_size=1, max_size=4))))
    for request, ends in draw(st.lists(st.tuples(SMALL_REQUESTS, limits), max_size=5)):
        if places := list(site.places(request)):
            site = site.with_(request, draw(st.sampled_from(places)), ends)
    asked = draw(st.lists(st.tuples(SMALL_REQUESTS, limits, st.integers(0, 1)), min_size=2, max_size=6))
    # more than the host has is refused at submit
    able = [row for row in asked if Site(site.cards).could_start(row[0], 0.0)]
    return site, [Work(n, r, limit=limit, priority=p) for n, (r, limit, p) in enumerate(able, 1)]


def plan_for(site: Site, works: list[Work], policy: Policy) -> Plan:
    gpus, ongoing = [], []
    for n, run in enumerate(site.runs, 100):
        ongoing.append(Ongoing(n, run.request.cpus, run.request.ram, run.ends))
    for number, size in enumerate(site.cards):
        here = [Claim(n, 1, f"GPU-{number}", run.request.vram) for n, run in enumerate(site.runs, 100)]
        gpus.append(card(number, size, [c for c, run in zip(here, site.runs, strict=True) if number in run.gpus]))
    return plan(Snapshot(lines(works), HOST, policy=policy, ongoing=ongoing), gpus)


def numbers(uuids: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(uuid[4:]) for uuid in uuids)


@settings(max_examples=400)
@given(cases())
def test_the_plan_is_what_trying_everything_finds(case: tuple[Site, list[Work]]) -> None:
    """Job by job, in order, with the GPUs that the planner chose for those before.

    Where the ends that are known never make room for the first that cannot start, nothing is reserved here, as nobody
    has waited for so long (`reserve_after`): then whatever fits starts.
    """
    site, works = case
    result = plan_for(site, works, Policy())
    chosen = {start.job_id: numbers(start.gpus) for start in result.starts}
    first: Work | None = None
    at = inf
    for work in sorted(works, key=lambda work: (-work.priority, work.job_id)):
        fits = list(site.places(work.request))
        kept = [p for p in fits if at == inf or _could_still(first, at, site.with_(work.request, p, work.limit))]
        assert (work.job_id in chosen) == bool(kept), work
        if kept:
            assert chosen[work.job_id] in kept
            site = site.with_(work.request, chosen[work.job_id], work.limit)
        elif fits:
            assert result.verdicts[work.key].reason in (Reason.RESERVATION, Reason.RESOURCES)
        elif first is None:
            first = work
            times = sorted({run.ends for run in site.runs if run.ends < inf})
            at = next((time for time in times if site.could_start(work.request, time)), inf)
    if at == inf:
        assert not result.reservations
        return
    assert first is not None
    (reservation,) = result.reservations
    assert (reservation.job_id, reservation.key, reservation.at) == (first.job_id, first.key, at)
    assert numbers(reservation.gpus) in site.at(at).places(first.request), "others have its GPUs at that time"


def _could_still(first: Work | None, at: float, site: Site) -> bool:
    return first is None or site.could_start(first.request, at)


@settings(max_examples=200)
@given(cases(SELDOM))
def test_gpus_that_are_named_are_kept_free(case: tuple[Site, list[Work]]) -> None:
    """Behind jobs of which nobody knows when they end, and after `reserve_after`: GPUs are named, on which, once all
    that is ours is gone, the job fits, and nothing starts on them. Whatever has room elsewhere starts, if CPUs and host
    memory are left for both of them once all has ended that will; of what is then too little for the reserved job
    alone, nothing is given."""
    site, works = case
    result = plan_for(site, works, Policy(reserve_after=0.0))
    if not result.reservations or result.reservations[0].at < inf:
        return
    (reservation,) = result.reservations
    named, mine = set(numbers(reservation.gpus)), reservation.key.request
    assert tuple(sorted(named)) in Site(site.cards).places(mine)
    chosen = {start.job_id: numbers(start.gpus) for start in result.starts}
    behind = False
    for work in sorted(works, key=lambda work: (-work.priority, work.job_id)):
        if work.job_id == reservation.job_id:
            behind = True
            assert work.job_id not in chosen
            assert not list(site.places(work.request))
            then = site.at(1e9)
        elif behind:
            free = [p for p in site.places(work.request) if not named & set(p)]
            assert (work.job_id in chosen) == (bool(free) and _leaves_enough(then, mine, work.request)), work
            assert not named & set(chosen.get(work.job_id, ()))
            then = then.with_(work.request, (), inf) if work.job_id in chosen else then
        if work.job_id in chosen:
            site = site.with_(work.request, chosen[work.job_id], work.limit)


def _leaves_enough(then: Site, mine: Request, other: Request) -> bool:
    """Whether CPUs, and host memory, are enough for both, or one of the two does not want any."""
    cpus, ram = sum(run.request.cpus for run in then.runs), sum(run.request.ram for run in then.runs)
    return (not (mine.cpus and other.cpus) or cpus + mine.cpus + other.cpus <= HOST.cpus) and (
        not (mine.ram and other.ram) or ram + mine.ram + other.ram <= HOST.ram
    )


# --- the oracle that counts -----------------------------------------------------------------------


def easy(total: int, works: list[Work]) -> dict[int, float]:
    """When each job starts, by EASY backfill on so many GPUs that are alike, each of one job at a time."""
    coming = sorted(works, key=lambda work: (work.comes, work.job_id))
    queue: list[Work] = []
    running: list[tuple[Work, float]] = []
    starts: dict[int, float] = {}
    while coming or running:
        now = min([began + min(work.lasts, work.limit) for work, began in running] + [w.comes for w in coming[:1]])
        running = [(work, began) for work, began in running if began + min(work.lasts, work.limit) > now]
        queue += [work for work in coming if work.comes <= now]
        coming = [work for work in coming if work.comes > now]
        for work in _easy_starts(
            total, queue, [(work.request.gpus, began + work.limit) for work, began in running], now
        ):
            queue.remove(work)
            running.append((work, now))
            starts[work.job_id] = now
    return starts


def _easy_starts(total: int, queue: list[Work], running: list[tuple[int, float]], now: float) -> list[Work]:
    """Which of a queue start now. `running` are GPUs, and by when they come free."""
    left, found = list(queue), []
    free = total - sum(count for count, _ in running)
    while left and left[0].request.gpus <= free:
        free -= left[0].request.gpus
        running = [*running, (left[0].request.gpus, now + left[0].limit)]
        found.append(left.pop(0))
    if not left:
        return found
    shadow = min(at for _, at in running if free + sum(n for n, end in running if end <= at) >= left[0].request.gpus)
    extra = free + sum(count for count, end in running if end <= shadow) - left[0].request.gpus
    for work in left[1:]:
        count, over = work.request.gpus, now + work.limit <= shadow
        if count <= free and (over or count <= extra):
            found.append(work)
            free -= count
            extra -= 0 if over else count
    return found


STREAM = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=20
)


@settings(max_examples=150)
@given(STREAM, st.integers(4, 6))
def test_a_stream_of_whole_gpus_runs_as_easy_backfill_says(rows: list[tuple[int, int, int, int]], total: int) -> None:
    """Jobs that run for their limit or less, with every start at the same moment."""
    works, comes = [], 0
    for n, (gpus, limit, early, later) in enumerate(rows, 1):
        comes += later
        lasts = max(1, limit - early)
        works.append(Work(n, whole(gpus), comes, comes, limit=limit * 10.0, lasts=lasts * 10.0))
    stream = Stream({f"GPU-{n}": 8 for n in range(total)})
    stream.run(works)
    assert stream.started == easy(total, works)


def test_no_reservation_passes_a_job_that_has_none_and_competes_for_the_same_gpus() -> None:
    """Who has one goes ahead: small jobs, each reserved on a GPU of its own, would pass a large one for ever."""
    ongoing = [Ongoing(job_id, ends=100.0 * job_id, gpus=1) for job_id in (1, 2, 3)]
    gpus = [card(n, 24, [Claim(n + 1, 1, f"GPU-{n}", None)]) for n in range(3)]

    def holders(*wanted: Request) -> list[int]:
        groups = {GroupKey(0, 1, request): Line.of([job_id]) for job_id, request in enumerate(wanted, 11)}
        snapshot = Snapshot(groups, HOST, policy=Policy(reservations=8), ongoing=ongoing)
        return [one.job_id for one in plan(snapshot, gpus).reservations]

    here = Wishes(exclude=("GPU-2",))
    first, large = Request(1, 20 * GiB, 0, 0, which=here), Request(2, None, 0, 0, which=here)
    assert holders(first, large, whole()) == [11]
    assert holders(first, whole(), large) == [11, 12], "both are ahead of it"
