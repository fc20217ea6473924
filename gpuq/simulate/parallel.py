"""Several simulations at once, each in a process of its own, as far as there are CPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from gpuq.errors import GpuqError
from gpuq.simulate.cards import Cards
from gpuq.simulate.engine import simulate
from gpuq.simulate.results import Run
from gpuq.simulate.rules import Rules
from gpuq.simulate.trace import Trace

Task = tuple[Rules, Cards]
#: Fewer jobs are simulated before a process has started.
WORTH_A_PROCESS = 2000
#: Told how many jobs have ended, over all simulations.
Progress = Callable[[int], None]


def run_all(trace: Trace, tasks: Sequence[Task], progress: Progress) -> list[Run]:
    """The run of each task, in their order. Raises GpuqError where a process dies, of want of memory, say."""
    cpus = len(os.sched_getaffinity(0))
    if len(tasks) == 1 or len(trace) < WORTH_A_PROCESS or cpus == 1:
        return [_run(trace, task, number, progress) for number, task in enumerate(tasks)]
    with _Workers(trace, tasks) as workers:
        return workers.run(cpus, progress)


def _run(trace: Trace, task: Task, number: int, progress: Progress) -> Run:
    rules, cards = task
    return simulate(trace, cards, rules, lambda ended: progress(number * len(trace) + ended))


class _Workers:
    """A process per task, begun before anything else happens here: a fork takes no threads along, but their locks."""

    def __init__(self, trace: Trace, tasks: Sequence[Task]) -> None:
        self._jobs = len(trace)
        self._names = [rules.name for rules, _ in tasks]
        self._ended = [0] * len(tasks)
        self._runs: dict[int, Run] = {}
        self._processes: list[ForkProcess] = []
        self._pipes: dict[Connection, int] = {}
        for number, task in enumerate(tasks):
            self._begin(trace, task, number)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def _begin(self, trace: Trace, task: Task, number: int) -> None:
        fork = multiprocessing.get_context("fork")  # the trace is there already
        ours, theirs = fork.Pipe()
        self._pipes[ours] = number
        process = fork.Process(target=_work, args=(trace, task, theirs, list(self._pipes)), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)

    def run(self, most: int, progress: Progress) -> list[Run]:
        """Let so many of them work at a time."""
        waiting = list(self._pipes)
        working: list[Connection] = []
        while waiting or working:
            while waiting and len(working) < most:
                working.append(waiting.pop(0))
                with suppress(BrokenPipeError):  # then there is no word from it, either
                    working[-1].send("go")
            for pipe in wait(working):
                assert isinstance(pipe, Connection)
                if self._hear(pipe):
                    working.remove(pipe)
                progress(sum(self._ended))
        return [self._runs[number] for number in range(len(self._names))]

    def _hear(self, pipe: Connection) -> bool:
        """Whether it has ended."""
        number = self._pipes[pipe]
        try:
            said: Run | int = pipe.recv()
        except (EOFError, ConnectionResetError):
            self._processes[number].join()
            code = self._processes[number].exitcode or 0
            how = f"was ended by signal {-code}" if code < 0 else "broke off"
            raise GpuqError(f"the simulation of {self._names[number]} {how}") from None
        if isinstance(said, int):
            self._ended[number] = said
            return False
        self._ended[number] = self._jobs
        self._runs[number] = said
        return True


def _work(trace: Trace, task: Task, pipe: Connection, not_ours: Sequence[Connection]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever waits for us tells of it
    for other in not_ours:
        other.close()  # else it would not be noticed here that nobody reads what we say
    rules, cards = task
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody waits any longer
        pipe.recv()
        pipe.send(simulate(trace, cards, rules, pipe.send))
