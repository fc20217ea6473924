"""Two real users, two daemons, one card: no collision, both get on, and what is hostile is passed over."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from tests.fakenvml import fake_gpus
from tests.harness import wait_until
from tests.users import SharedHost, User, shared_host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")

GiB = 1024**3
MARGIN = 256 * 1024**2
QUICK = {"GPUQ_READING_INTERVAL": "0.1s", "GPUQ_FOREIGN_WINDOW": "1s", "GPUQ_SETTLE": "0.2s"}
ALICE, BOB = 12345, 12346

#: A job that allocates late and notes when it held how much: its end is noted before it gives anything back.
JOB = """
import os, sys, time
from pathlib import Path
size, late, held, notes = int(sys.argv[1]) << 30, float(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
time.sleep(late)
mine = Path(os.environ["FAKE_NVML"] + ".d") / str(os.getpid())
new = mine.with_name(f"new-{os.getpid()}")
new.write_text(f"proc {os.environ['CUDA_VISIBLE_DEVICES']} pid={os.getpid()} used={size} type=C\\n")
new.rename(mine)
begun = time.monotonic()
time.sleep(held)
(notes / str(os.getpid())).write_text(f"{begun} {time.monotonic()} {size}")
mine.unlink()
"""


@pytest.fixture
def host() -> Iterator[SharedHost]:
    """A host with one GPU of 24 GiB."""
    with shared_host() as made:
        made.nvml.set(gpus=fake_gpus(24 * GiB))
        (made.folder / "job.py").write_text(JOB)
        (made.folder / "notes").mkdir()
        (made.folder / "notes").chmod(0o1777)
        yield made


def most(intervals: list[tuple[float, float, int]]) -> int:
    """The most that was held at any one time."""
    return max(sum(size for start, end, size in intervals if start <= moment < end) for moment, _, _ in intervals)


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def submit_many(user: User, sizes: list[int], late: float) -> None:
    job = [user.host.python, str(user.host.folder / "job.py")]
    for size in sorted(set(sizes)):
        line = shlex.join([*job, str(size), str(late), "0.2", str(user.host.folder / "notes")])
        user.ok("submit", "--vram", f"{size}GiB", "--from", "-", stdin=f"{line}\n" * sizes.count(size))


def test_late_allocations_of_two_users_never_collide_and_both_get_on(host: SharedHost) -> None:
    users = [host.user(ALICE, **QUICK), host.user(BOB, **QUICK)]
    for user, late in zip(users, (0.3, 0.1), strict=True):
        submit_many(user, [7, 13, 16] * 4, late)
    for user in users:
        user.ok("wait", "--state", "queued,running")
    jobs = [(user.uid, job) for user in users for job in user.json("list", "--all")["jobs"]]
    assert [job["state"] for _, job in jobs] == ["succeeded"] * 24
    held = [tuple(path.read_text().split()) for path in (host.folder / "notes").iterdir()]
    assert len(held) == 24
    assert most([(float(start), float(end), int(size)) for start, end, size in held]) <= 24 * GiB - MARGIN
    claims = [(instant(job["started_at"]), instant(job["ended_at"]), job["vram_bytes"]) for _, job in jobs]
    assert most(claims) <= 24 * GiB - MARGIN
    # neither was kept waiting until the other had done: of two that want the same they take turns
    order = [uid for _, uid in sorted((job["started_at"], uid) for uid, job in jobs)]
    assert sum(one != next_ for one, next_ in pairwise(order)) >= 6, order
    wait_until(lambda: not list(host.claims.iterdir()), "the end of what was told")


def test_a_neighbour_is_named_and_nothing_of_it_can_be_read_but_its_claims(host: SharedHost) -> None:
    alice, bob = host.user(ALICE, **QUICK), host.user(BOB, **QUICK)
    gate = host.folder / "go"
    alice.ok("submit", "--vram", "16GiB", "--", *alice.holds("16GiB", "--after", str(gate)))
    waits_for_state(alice, 1, "running")
    bob.ok("submit", "--vram", "16GiB", "--", *bob.holds("16GiB"))
    explained = wait_until(lambda: reason(bob, 1, "ForeignUse"), "the reason")
    assert f"{ALICE}'s gpuq claims 16GiB on GPU 0 that it has not allocated yet" in explained
    (file,) = [path for path in host.claims.iterdir() if path.stat().st_uid == ALICE]
    assert file.stat().st_mode & 0o777 == 0o644
    assert str(alice.state) not in file.read_text()
    # it is nobody else's to take away, to write to, or to replace
    for attempt in (f"rm -f {file}", f"echo x > {file}", f"touch ~/x; mv -f ~/x {file}", f"mv -f {file} {file}x"):
        assert bob.do("sh", "-c", attempt).returncode != 0, attempt
    assert bob.do("cat", str(alice.state / "queue.db")).returncode != 0
    alice.kill_daemon()
    assert wait_until(lambda: reason(bob, 1, "ForeignUse"), "the claim of a job that outlives its daemon")
    assert bob.job(1)["state"] == "queued"
    gate.touch()
    bob.ok("wait", "1")
    assert instant(bob.job(1)["started_at"]) >= instant(alice.job(1)["ended_at"])


def waits_for_state(user: User, job_id: int, state: str) -> dict[str, Any]:
    return wait_until(lambda: found if (found := user.job(job_id))["state"] == state else {}, state)


def reason(user: User, job_id: int, kind: str) -> str:
    (found,) = user.json("why", str(job_id))["explanations"]
    return found["text"] if found["reason"] == kind else ""
