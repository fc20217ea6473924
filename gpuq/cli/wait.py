"""`wait`: blocks until jobs have ended. The daemon answers when they have; nothing is polled."""

import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from gpuq import units
from gpuq.cli.common import (
    Groups,
    Ids,
    Json,
    Quiet,
    States,
    Tags,
    count_jobs,
    examples,
    new_app,
    on_terminal,
    print_json,
    select_some,
    tell,
)
from gpuq.cli.link import Retries
from gpuq.cli.outcome import exit_code, sentence
from gpuq.cli.pages import Jobs
from gpuq.errors import ConnectionLost, NoSuchJob
from gpuq.protocol import Selection, spans

app = new_app()

#: Of more jobs only so many are told of one by one, with a summary.
FEW = 20
#: As timeout(1).
TIMED_OUT = 124

Job = dict[str, Any]
T = TypeVar("T")


@app.command(
    "wait",
    epilog=examples(
        "gpuq wait 12                     exits with the job's code",
        "gpuq wait 12-20 && echo all well",
        "gpuq wait --tag sweep --any      until the first ended",
        "gpuq wait 12 --timeout 2h        124 if it has not ended by then",
    ),
)
def wait(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    any_: Annotated[bool, typer.Option("--any", help="Until the first of them ended; exit with its code.")] = False,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="Give up after this time.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Wait until jobs have ended.

    One job: its exit code, 128+n for a signal or its time limit, 1 where there is no code. Several: 1 if any did
    not succeed. With --timeout 124 when the time is up.
    """
    selection = select_some(ids, state, tag, group)
    seconds = units.parse_duration(timeout, "--timeout") if timeout is not None else None

    def ended() -> Outcome:
        return _ended(selection, any_=any_, whole=as_json)

    outcome = ended() if seconds is None else _within(seconds, ended)
    if outcome is None:
        tell(f"not ended within {timeout}")
        return TIMED_OUT
    _report(outcome, as_json=as_json, quiet=quiet)
    if outcome.gone and not any_:
        tell(f"{count_jobs(outcome.gone)} of them removed meanwhile: nobody knows any more how that ended")
        return 1
    if any_ or outcome.total == 1:
        return exit_code(outcome.first) if outcome.first is not None else 0
    return int(outcome.total > outcome.counts.get("succeeded", 0))


class Outcome(NamedTuple):
    """How the jobs ended: those of them that are told of, ranges of the ids of all, and numbers by state."""

    jobs: list[Job]
    ended: list[list[int]]
    counts: Mapping[str, int]
    #: the one that ended first, None where there is none
    first: Job | None
    #: how many were removed before it was told how they ended
    gone: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def _settled(selection: Selection) -> Selection:
    """The same jobs by id alone: `--state queued` means those that are queued now, however long this takes."""
    if not (selection.last or selection.states or selection.tags or selection.groups):
        return selection
    ids = [job["id"] for job in Jobs(selection, everything=True, ids=True)]
    if not ids:
        raise NoSuchJob("no job was chosen")
    return Selection(tuple((a, b) for a, b in spans(ids)))


def _ended(selection: Selection, *, any_: bool, whole: bool) -> Outcome:
    """The outcome once they ended; `whole` with every job."""
    fields = {"sel": _settled(selection).to_json(), "any": any_, "pages": True, "brief": not whole}
    retries = Retries()
    while True:
        jobs: list[Job] = []
        try:
            with retries.connect() as client:
                for message in client.stream("wait", **fields):
                    jobs += message["jobs"]
        except ConnectionLost as error:
            retries.lost(error)
            continue
        # a daemon that is older than that is not brief
        ended = message.get("ended", spans(job["id"] for job in jobs))
        counts = message.get("counts", Counter(job["state"] for job in jobs))
        first = message.get("first") or min(jobs, key=lambda job: str(job["ended_at"]), default=None)
        return Outcome(jobs, ended, counts, first, message.get("gone", 0))


class _TimeUp(Exception):
    pass


def _within(seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns or raises; None when the time is up first, also where no daemon can be started meanwhile."""

    def end(_number: int, _frame: object) -> None:
        raise _TimeUp

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    except _TimeUp:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _report(outcome: Outcome, *, as_json: bool, quiet: bool) -> None:
    """What is on stdout is as long as the jobs are many; sentences are of a few, with a summary of many."""
    if as_json:
        print_json("gpuq.jobs/1", jobs=outcome.jobs)
        return
    if quiet:
        sys.stdout.writelines(f"{job_id}\n" for low, high in outcome.ended for job_id in range(low, high + 1))
        return
    say = print if on_terminal() else tell
    for job in outcome.jobs[:FEW]:
        if on_terminal() or job["state"] != "succeeded":
            say(sentence(job))
    if outcome.total > FEW and (on_terminal() or outcome.total > outcome.counts.get("succeeded", 0)):
        numbers = ", ".join(f"{count:,} {state}" for state, count in sorted(outcome.counts.items()))
        say(f"{count_jobs(outcome.total)} ended: {numbers}")
