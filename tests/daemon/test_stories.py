"""Jobs that wait for each other, with starts and ends in any order, in parts and across deaths of the daemon.

Who becomes ready and who is skipped is what the definition says, nobody twice, and nobody is forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.daemon.core import Core
from gpuq.daemon.running import NewAttempt
from gpuq.events import Kind
from gpuq.model import ENDED, Attempt, Clause, Condition, Failure, Settings, State
from gpuq.policy.lifecycle import Ended, NeverStarted, Started, advance
from tests.daemon.test_cascade import parts_of
from tests.daemon.test_many import QUEUES, Queue, after_of, filled

#: What happens next, to which of the jobs to which it can, and whether the daemon dies of it.
STORIES = st.lists(
    st.tuples(
        st.sampled_from(("start", "start", "succeed", "fail", "cancel", "never", "part")),
        st.integers(0, 8),
        st.booleans(),
    ),
    max_size=25,
)
WAIT = {State.QUEUED, State.HELD}


@dataclass
class World:
    """The jobs as the definition has them: told from it alone, without a look at how gpuq does it."""

    after: dict[int, tuple[Clause, ...]]
    states: dict[int, State]
    started: set[int] = field(default_factory=set)
    ready: set[int] = field(default_factory=set)

    def _came_true(self, condition: Condition, job_id: int) -> bool:
        return {
            Condition.OK: self.states[job_id] is State.SUCCEEDED,
            Condition.FAILED: self.states[job_id] is State.FAILED,
            Condition.ANY: self.states[job_id] in ENDED,
            Condition.STARTED: job_id in self.started,
        }[condition]

    def _holds(self, clause: Clause) -> bool:
        return any(self._came_true(d.condition, d.job_id) for d in clause.alternatives)

    def _never(self, clause: Clause) -> bool:
        return not self._holds(clause) and all(self.states[d.job_id] in ENDED for d in clause.alternatives)

    def settle(self) -> None:
        """Who is skipped, one after the other, and who waits for nothing any more."""
        while broken := [
            n for n, state in self.states.items() if state in WAIT and any(map(self._never, self.after[n]))
        ]:
            self.states |= dict.fromkeys(broken, State.SKIPPED)
        self.ready |= {n for n in self.waiting() if self.after[n] and all(map(self._holds, self.after[n]))}

    def waiting(self) -> list[int]:
        return [n for n, state in self.states.items() if state in WAIT]

    def startable(self) -> list[int]:
        queued = [n for n, state in self.states.items() if state is State.QUEUED]
        return [n for n in queued if all(map(self._holds, self.after[n]))]

    def running(self) -> list[int]:
        return [n for n, state in self.states.items() if state is State.RUNNING]


def start(core: Core, job_id: int) -> None:
    job = core.store.job(job_id)
    assert job is not None
    step = advance(job, Started((), "log"), 1.0)
    core.apply([], [NewAttempt(job, step, Attempt(job_id, job.attempt + 1, 1.0, "/", "log"))])


def again(core: Core) -> Core:
    """The next daemon, which knows what the database says and nothing else."""
    fresh = Core(Settings(), core.store, core.host, core.state_dir, core.run_root)
    fresh.store.awaited_starts = None
    fresh.load()
    fresh.reserve.keep()
    return fresh


def drain(core: Core) -> None:
    rounds = 0
    while core.cascade.left:
        core.go_on()
        rounds += 1
        assert rounds < 200


def one_more(core: Core, world: World, what: str, which: int) -> None:
    """A moment of the story, where it is possible."""
    if what == "part":
        if core.cascade.left:
            core.go_on()
        return
    allowed: dict[str, Callable[[], list[int]]] = {"start": world.startable, "cancel": world.waiting}
    chosen = sorted(allowed.get(what, world.running)())
    if not chosen:
        return
    job_id = chosen[which % len(chosen)]
    if what in ("start", "cancel", "never"):  # those who are told last are told by the time of what comes now
        drain(core)
    if what == "start":
        start(core, job_id)
        world.started.add(job_id)
        world.states[job_id] = State.RUNNING
    elif what == "cancel":
        core.cancel_waiting([job_id])
        world.states[job_id] = State.CANCELLED
    elif what == "never":
        core.apply([(core.running[job_id].job, NeverStarted())])
        world.states[job_id] = State.QUEUED
    else:
        fact = Ended(exit_code=1, failure=Failure.EXIT) if what == "fail" else Ended(exit_code=0)
        core.apply([(core.running[job_id].job, fact)])
        world.states[job_id] = State.FAILED if what == "fail" else State.SUCCEEDED
    world.settle()


@settings(max_examples=300, deadline=None)
@given(queue=QUEUES, story=STORIES, size=st.integers(1, 4))
def test_whoever_waits_is_told_once_and_rightly(queue: Queue, story: list[tuple[str, int, bool]], size: int) -> None:
    after = {n: after_of(n, wanted) for n, (_, _, _, wanted, _) in enumerate(queue, 1)}
    states = {n: State.HELD if held else State.QUEUED for n, (held, *_) in enumerate(queue, 1)}
    world = World(after, states)
    with filled(queue) as core, parts_of(size):
        for what, which, dies in story:
            one_more(core, world, what, which)
            core = again(core) if dies else core
        drain(core)
        assert {job.id: job.state for job in core.store.every_job()} == world.states
        told = Counter((e.kind, e.job_id) for e in core.store.events(0, None, None))
        assert {n for kind, n in told if kind is Kind.READY} == world.ready
        assert {n for kind, n in told if kind is Kind.SKIPPED} == {
            n for n, state in world.states.items() if state is State.SKIPPED
        }
        assert (
            max(count for (kind, _), count in told.items() if kind in (Kind.READY, Kind.SKIPPED, Kind.SUBMITTED)) == 1
        )
        fresh = again(core)
        assert not fresh.cascade.left, "nothing is left to the next daemon"
        for n in world.waiting():
            open_ = not all(map(world._holds, after[n]))
            assert bool(core.store.open_clauses(n)) == open_
            assert fresh.waiting.blocked(n) == core.waiting.blocked(n)
            assert fresh.waiting.key(n) == core.waiting.key(n)
