"""Lists of many jobs: by pages, each job once whatever happens between two of them, in the memory that few take."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpuq import protocol
from gpuq.cli.pages import Jobs, by_id
from gpuq.client import Client
from gpuq.daemon.listing import PAGE, PAGE_OF_IDS, PAGE_TEXT
from gpuq.errors import BadRequest
from gpuq.protocol import Seen, Selection
from tests.bench.crowd import make
from tests.bounds.observe import Observed
from tests.cli.terminal import shown
from tests.harness import GPUQ, Box, wait_until

Job = dict[str, Any]
#: Bytes by which the daemon may grow, at its largest, while it lists any number of jobs: a few pages.
GROWS = 8_000_000


def pages(box: Box, between: Callable[[int], None] = lambda _: None, **fields: Any) -> Iterator[list[Job]]:
    """The pages of a list as they are sent; `between` is called with the number of each before the next one."""
    after, number = None, 0
    while number == 0 or after is not None:
        page = box.request("list", **({"sel": {}, "all": True} | fields), after=after)
        yield page["jobs"]
        after, number = page["next"], number + 1
        between(number)


def once(found: Iterator[list[Job]]) -> list[int]:
    """The ids that a reader has of them."""
    seen = Seen()
    return [job["id"] for page in found for job in page if seen.add(job["id"])]


def held(box: Box, count: int, **template: Any) -> list[int]:
    return box.submit_many([["true"]] * count, gpus=0, hold=True, **template)


def span(*ids: int) -> dict[str, Any]:
    return {"ranges": [[n, n] for n in ids]}


def end(box: Box, job: int) -> None:
    """Let a held job run, until it has ended."""
    box.request("release", sel=span(job))
    assert box.wait(job)["state"] == "succeeded"


# --- each once --------------------------------------------------------------------------------------


def test_pages_are_the_list(box: Box) -> None:
    """In its order, whatever is chosen: what runs, what waits by priority, what has ended, newest first."""
    make(box.state, waiting=700, ended=1300)
    held(box, 300, priority=7, tags=["t"])
    box.request("cancel", sel={"ranges": [[1500, 1600]]})
    chosen: list[dict[str, Any]] = [
        {},
        {"all": False},
        {"sel": {"states": ["held", "succeeded"]}},
        {"sel": {"tags": ["t"]}},
        {"sel": {"ranges": [[1250, 1700], [3, 3]]}},
        {"sel": {"ranges": [[5, 10**9]]}},
        {"sel": {"ranges": [[1, 2000], [2100, 10**9]], "tags": ["t"]}},
    ]
    for fields in chosen:
        whole = box.request("list", **({"sel": {}, "all": True} | fields))
        found = list(pages(box, **fields))
        assert max(map(len, found)) <= PAGE
        assert [job for page in found for job in page] == whole["jobs"], fields
        ids = list(pages(box, ids=True, **fields))
        assert max(map(len, ids)) <= PAGE_OF_IDS
        assert [job for page in ids for job in page] == [{"id": job["id"]} for job in whole["jobs"]], fields
        assert whole["total"] == len(whole["jobs"])
    states = [job["state"] for page in pages(box) for job in page]
    assert states == ["running"] + ["held"] * 300 + ["queued"] * 599 + ["cancelled"] * 101 + ["succeeded"] * 1300
    first = box.request("list", sel={}, all=True, limit=30, after=None)
    assert (len(first["jobs"]), first["total"]) == (30, 2301)


def test_what_ends_between_two_pages_is_shown_once(box: Box) -> None:
    jobs = held(box, 2 * PAGE + 10)
    early, late = jobs[3], jobs[-3]

    def both_end(number: int) -> None:
        if number == 1:
            end(box, early)
            end(box, late)

    sent = list(pages(box, both_end))
    assert [job["id"] for page in sent for job in page].count(early) > 1, "it is where it was, and where it is"
    assert sorted(once(iter(sent))) == jobs


def test_what_starts_between_two_pages_is_not_missed(box: Box) -> None:
    """The jobs that run have been sent by then, and those that wait are gone through after it has left them."""
    jobs = held(box, 2 * PAGE)
    late = box.submit("sleep", "600", gpus=0, hold=True)

    def starts(number: int) -> None:
        if number == 1:
            box.request("release", sel=span(late))
            box.wait_state(late, "running")

    sent = list(pages(box, starts, all=False))
    assert once(iter(sent)) == [*jobs, late]
    assert sent[-1][-1]["state"] == "running"


def test_what_is_tried_again_between_two_pages_is_not_missed(box: Box) -> None:
    """From the end of the list to its middle, which has been sent."""
    ended, waiting = held(box, 5), held(box, PAGE)
    box.request("cancel", sel=span(*ended))

    def retried(number: int) -> None:
        if number == 1:
            box.request("retry", sel=span(ended[0]))
            box.wait(ended[0])
            box.request("retry", sel=span(ended[1]))
            box.request("hold", sel=span(ended[1]))

    assert sorted(once(pages(box, retried))) == [*ended, *waiting]


def test_what_is_chosen_no_more_is_left_out(box: Box) -> None:
    jobs = held(box, PAGE + 5)

    def leaves(number: int) -> None:
        if number == 1:
            box.request("release", sel=span(jobs[-1]))
            box.wait(jobs[-1])

    assert once(pages(box, leaves, sel={"states": ["held"]})) == jobs[:-1]
    assert once(pages(box, all=False)) == jobs[:-1]


def test_what_is_submitted_between_two_pages_waits_for_the_next_list(box: Box) -> None:
    jobs = held(box, PAGE + 5)

    def more(number: int) -> None:
        assert number < 9, "a list that new jobs make longer has no end"
        held(box, 2 * PAGE)
        end(box, box.submit("true", gpus=0, hold=True))

    assert once(pages(box, more)) == jobs


def test_last_is_the_same_job_in_all_pages(box: Box) -> None:
    jobs = held(box, PAGE + 1)
    chosen = {"sel": {"ranges": [[1, PAGE]], "last": True}}

    def more(_: int) -> None:
        held(box, 1)

    assert once(pages(box, more, **chosen)) == jobs


def test_many_move_between_two_pages(box: Box) -> None:
    jobs = held(box, 4 * PAGE)

    def cancelled(number: int) -> None:
        if number == 2:
            box.request("cancel", sel={"ranges": [[1, jobs[-1]]]})

    sent = list(pages(box, cancelled, sel={"states": ["held", "cancelled"]}))
    assert sorted(once(iter(sent))) == jobs
    assert max(map(len, sent)) <= PAGE


def test_a_page_of_long_commands_is_shorter(box: Box) -> None:
    words = ["sh", "-c", "exec sleep 600", "x" * 100_000, "y" * 100_000]
    jobs = [box.submit(*words, gpus=0, cpus=0, hold=True) for _ in range(12)]

    def start(number: int) -> None:
        if number == 1:
            box.request("release", sel=span(*jobs))
            for job in jobs:
                box.wait_state(job, "running")

    for between in (lambda _: None, start):
        sent = list(pages(box, between, all=False))
        assert once(iter(sent)) == jobs
        assert max(len(protocol.encode_list(page)) for page in sent) <= PAGE_TEXT + 300_000
    assert len(sent) > 4, "those that moved come in short pages, too"


def test_a_list_goes_on_where_a_page_said_and_nowhere_else(box: Box) -> None:
    held(box, PAGE + 1)
    place = box.request("list", sel={}, after=None)["next"]
    wrong: list[object] = [7, [], {}, {**place, "key": [1]}, {**place, "key": ["a", 1]}, {**place, "section": -1}]
    wrong += [{**place, "key": [float("nan"), 1]}, {**place, "upto": 2**64}, {**place, "since": True}]
    for after in wrong:
        with pytest.raises(BadRequest, match="goes on at the `next`"):
            box.request("list", sel={}, after=after)
    assert box.request("list", sel={}, after={**place, "section": 99, "key": [10**9, 0]})["jobs"] == []


# --- the reader --------------------------------------------------------------------------------------


def test_a_reader_has_each_job_once(box: Box) -> None:
    jobs = held(box, 2 * PAGE + 10)
    reading = iter(Jobs(Selection(), everything=True))
    found = [next(reading)["id"]]
    end(box, jobs[1])
    end(box, jobs[-1])
    found += [job["id"] for job in reading]
    assert sorted(found) == jobs
    assert len(list(Jobs(Selection(), everything=True, limit=PAGE + 7))) == PAGE + 7


def test_a_list_outlives_the_daemon(box: Box) -> None:
    """A page that nobody answers is asked for again, of the next daemon."""
    jobs = held(box, 3 * PAGE)
    reading = iter(Jobs(Selection(), everything=True))
    found = [next(reading)["id"]]
    box.kill_daemon()
    found += [next(reading)["id"] for _ in range(PAGE)]
    box.request("stop", jobs=False, restart=False)
    found += [job["id"] for job in reading]
    assert found == jobs


def test_jobs_by_id_come_in_the_order_of_their_ids(box: Box) -> None:
    jobs = held(box, PAGE + 200)
    box.request("cancel", sel=span(*jobs[::7]))
    assert [job["id"] for job in by_id(jobs)] == jobs
    printed = json.loads(box.ok("release", "1-400", "--json"))["jobs"]
    assert [job["id"] for job in printed] == [n for n in range(1, 401) if (n - 1) % 7]
    many = box.ok("submit", "--json", "--hold", "--gpus", "0", "--array", "0-999", "true")
    submitted = json.loads(many)["jobs"]
    assert [job["array"]["index"] for job in submitted] == list(range(1000))


# --- what is printed ---------------------------------------------------------------------------------


def test_what_is_printed_is_the_same_bytes(box: Box) -> None:
    held(box, PAGE + 20, name="ünï \n", tags=["a"])
    whole = box.request("list", sel={}, all=True)["jobs"]
    for words, jobs in ((["--all"], whole), (["--all", "-n", "510"], whole[:510]), (["--tag", "none"], [])):
        said = box.ok("list", "--json", *words)
        assert said == json.dumps({"schema": "gpuq.jobs/1", "jobs": jobs}) + "\n", words
        assert box.ok("list", "-q", *words) == "".join(f"{job['id']}\n" for job in jobs)
    lines = box.ok("list").splitlines()
    assert len(lines) == 1 + len(whole)
    assert len({line.index("held") for line in lines[1:]}) == 1, "columns are aligned across pages"
    for words, jobs in ((["-n", "2"], whole[:2]), (["--tag", "none"], [])):
        assert shown("list", "--json", *words) == json.dumps({"schema": "gpuq.jobs/1", "jobs": jobs}, indent=2) + "\n"


def _selects(observed: Observed) -> int:
    return observed.counts().sql["SELECT"]


def test_a_reader_that_has_enough_ends_the_list(box: Box) -> None:
    """As `gpuq list | head -1` does: quietly, and the daemon reads no more than it had."""
    make(box.state, waiting=10, ended=12 * PAGE)
    observed = Observed(box)
    box.request("list", sel={}, after=None)  # counts, for the first time
    before = _selects(observed)
    box.ok("list", "--all", "--json")
    all_pages = _selects(observed) - before
    for give_up in ("pipe", "interrupt"):
        before = _selects(observed)
        with subprocess.Popen(
            [*GPUQ, "list", "--all", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.read(1000).startswith(b'{"schema": "gpuq.jobs/1"')
            if give_up == "interrupt":
                process.send_signal(signal.SIGINT)
                with suppress(BrokenPipeError):
                    process.stdout.read()
            process.stdout.close()
            assert process.wait() == (130 if give_up == "interrupt" else 141)
            assert process.stderr.read() == b""
        assert _selects(observed) - before < all_pages / 2, give_up


def test_head_of_a_short_list(box: Box) -> None:
    held(box, PAGE + 1)
    for words in (["-q"], []):
        with subprocess.Popen([*GPUQ, "list", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait() in (0, 141)
            assert process.stderr.read() == b""


# --- what it takes -----------------------------------------------------------------------------------


def _peak(pid: int) -> int:
    """The most bytes that the process has had in memory since that was reset (VmHWM, proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _grown(box: Box, work: Callable[[], object]) -> int:
    """Bytes by which the daemon was larger while that was done."""
    pid = box.daemon_pid()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = _peak(pid)
    work()
    return _peak(pid) - before


def test_a_long_list_takes_no_more_memory_than_a_short_one(box: Box) -> None:
    make(box.state, waiting=1000, ended=9000)
    box.request("list", sel={}, limit=PAGE)
    assert _grown(box, lambda: box.ok("list", "--all", "--json")) < GROWS
    assert _grown(box, lambda: box.ok("list", "1-100000", "-q")) < GROWS

    def in_one_line() -> None:
        with Client.connect() as client:
            client.send("list", sel={}, all=True, limit=None)
            while not client.socket.recv(1 << 20).endswith(b"]}\n"):
                pass

    assert _grown(box, in_one_line) < GROWS, "as a gpuq asks that knows of no pages"


def test_a_long_list_takes_the_client_no_more_memory(box: Box) -> None:
    make(box.state, waiting=10, ended=8000)
    box.request("status")
    sizes = []
    for number in ("100", "0"):
        with open(os.devnull, "wb") as null:
            process = subprocess.Popen([*GPUQ, "list", "--all", "--json", "-n", number], stdout=null)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        sizes.append(usage.ru_maxrss * 1024)
    assert sizes[1] - sizes[0] < GROWS


def test_others_are_answered_between_two_pages(box: Box) -> None:
    """While one line of very many jobs is sent, which nobody reads, too."""
    make(box.state, waiting=10, ended=8000)
    with Client.connect() as client:
        client.send("list", sel={}, all=True, limit=None)
        assert client.socket.recv(100)
        job = box.submit("true", gpus=0, cpus=0)
        assert box.wait(job)["state"] == "succeeded"
    wait_until(lambda: box.request("status")["jobs"], "an answer when that one has left")
