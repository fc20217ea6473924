"""What one job costs: waits for the disk, commits, SQL statements, files and processes, from submit to result."""

from __future__ import annotations

import shutil

import pytest

from tests.bounds.observe import Counts, Observed
from tests.harness import Box

#: Without a search along PATH, which would count as many calls as it has folders.
TRUE = shutil.which("true") or "/bin/true"


@pytest.fixture
def observed(box: Box) -> Observed:
    """The box's daemon, which has run a job: what is done once only is done."""
    found = Observed(box)
    box.wait(box.submit(TRUE, gpus=0))
    return found


def spent(observed: Observed, before: Counts, jobs: int) -> dict[str, float]:
    """What each job cost, by the names that the bounds have."""
    counted = observed.counts() - before
    daemon, others = counted.durable
    found = {
        "commits": counted.sql["COMMIT"],
        "statements": sum(counted.sql.values()),
        "disk waits of the daemon": daemon,
        "disk waits of the supervisor": others,
        "files opened by the daemon": counted.daemon["open"] + counted.daemon["create"],
        "files opened by the supervisor": counted.others["open"] + counted.others["create"],
        "folders made": counted.daemon["mkdir"] + counted.others["mkdir"],
        "programs begun": sum(
            calls[name] for calls in (counted.daemon, counted.others) for name in ("execv", "execve", "posix_spawn")
        ),
        "database pages": counted.daemon["pwrite64"] / 2,  # a frame of the log is a header and a page
        "reads and writes": counted.transfers,
    }
    return {name: count / jobs for name, count in found.items()}


def over(found: dict[str, float], bounds: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What is more than its bound: what was counted, and the bound."""
    return {name: (found[name], most) for name, most in bounds.items() if found[name] > most}


def test_a_job_alone(box: Box, observed: Observed) -> None:
    """The path from an accepted submit to the first instruction, and from the exit to the next start."""
    before = observed.counts()
    for _ in range(10):
        box.wait(box.submit(TRUE, gpus=0))
    assert not over(
        spent(observed, before, 10),
        {
            # each waits for the disk: the acknowledgement, the claim before the start, the result
            "commits": 3.2,
            "disk waits of the daemon": 3.5,
            # what a daemon that comes later must find: who the supervisor is, and the result, each with its folder
            "disk waits of the supervisor": 4.2,
            # a few microseconds each on the loop's thread, which everybody waits for
            "statements": 34,
            "files opened by the daemon": 11,
            # its folder, identity, log, draft and result; what /proc says of it and of memory, before and after,
            # and the job's score
            "files opened by the supervisor": 14.2,
            "folders made": 3.2,
            # the job's own: the supervisor has seen to another before
            "programs begun": 1.1,
            # of tables and their indexes, 4 KiB each
            "database pages": 27,
            # of daemon, supervisor and job
            "reads and writes": 95,
        },
    )


def test_a_job_of_many(box: Box, observed: Observed) -> None:
    """Jobs per second where many wait: what comes at the same time is to be done at once."""
    before = observed.counts()
    box.wait(*box.submit_many([[TRUE]] * 40, gpus=0))
    assert not over(
        spent(observed, before, 40),
        {
            # the end of one and the claim of the next are one
            "commits": 1.3,
            "disk waits of the daemon": 1.4,
            "disk waits of the supervisor": 4.2,
            "statements": 18,
            "files opened by the daemon": 11,
            "files opened by the supervisor": 14.2,
            "folders made": 3.2,
            "programs begun": 1.1,
            "database pages": 13,
            "reads and writes": 58,
        },
    )


def test_jobs_that_only_wait(box: Box, observed: Observed) -> None:
    """A large submission, and its cancel, are a few transactions; what a job costs beside is its rows."""
    before = observed.counts()
    ids = box.submit_many([[TRUE]] * 2000, gpus=0, hold=True)
    assert not over(
        spent(observed, before, len(ids)),
        {"commits": 0.01, "disk waits of the daemon": 0.02, "statements": 2.1, "database pages": 0.6},
    )
    before = observed.counts()
    box.request("cancel", sel={"ranges": [[ids[0], ids[-1]]]})
    assert not over(
        spent(observed, before, len(ids)),
        {"commits": 0.01, "disk waits of the daemon": 0.02, "statements": 3.2, "database pages": 1},
    )
