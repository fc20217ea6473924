"""What jobs may wait for: starts, one of several, members of arrays one by one, jobs by array, tag or group."""

from __future__ import annotations

import pytest

from gpuq.client import Client
from gpuq.daemon import cascade, depending, handlers
from gpuq.daemon.core import Core
from gpuq.errors import ConnectionLost, DependencyCycle, GpuqError, NoSuchJob, UsageError
from gpuq.model import Condition
from gpuq.policy.dependencies import TooMany
from gpuq.policy.lifecycle import Ended, Retried
from gpuq.store import dependents, staging
from tests.daemon.test_cascade import parts_of
from tests.daemon.test_many import filled
from tests.daemon.test_stories import again, drain, start
from tests.harness import Box, gone, wait_until
from tests.policy.build import clauses, numbered

MANY = 3 * cascade.MOST + 7


def states(box: Box, ids: list[int]) -> list[str]:
    found = {job["id"]: job for job in box.request("list", sel={"ranges": [[n, n] for n in ids]})["jobs"]}
    return [found[n]["state"] for n in ids]


def change(box: Box, op: str, *ids: int) -> None:
    assert box.request(op, sel={"ranges": [[n, n] for n in ids]})["done"] == sorted(ids)


def kinds(box: Box, job_id: int) -> list[str]:
    return [event["kind"] for event in box.job(job_id)["events"]]


# --- starts ---------------------------------------------------------------------------------------


def test_a_start_wakes_those_who_wait_for_it(box: Box) -> None:
    root = box.submit("sleep", "600", hold=True)
    client = box.submit("true", after=[f"started:{root}"])
    assert box.reason(client) == ("Dependency", f"waits for started:{root}")
    change(box, "release", root)
    assert box.wait(client)["state"] == "succeeded"
    assert box.job(root)["state"] == "running"
    assert box.job(client)["started_at"] >= box.job(root)["started_at"]
    late = box.submit("true", after=[f"started:{root}"])
    assert box.wait(late)["state"] == "succeeded", "it runs already"
    change(box, "cancel", root)
    box.wait(root)
    assert box.wait(box.submit("true", after=[f"started:{root}"]))["state"] == "succeeded", "it had started"


def test_what_never_starts_skips_those_who_wait_for_its_start(box: Box) -> None:
    root = box.submit("true", hold=True)
    client = box.submit("true", after=[f"started:{root}"])
    next_ = box.submit("true", after=[f"started:{client}"])
    change(box, "cancel", root)
    assert box.wait(client)["note"] == f"depends on started:{root}, which was cancelled and never started"
    assert box.wait(next_)["note"] == f"depends on started:{client}, which was skipped and never started"


def test_a_start_that_many_wait_for_is_told_in_parts_and_across_a_death(box: Box) -> None:
    root = box.submit("sleep", "600", hold=True)
    ids = box.submit_many([["true"]] * MANY, after=[f"started:{root}"], hold=True)
    ends = box.submit_many([["true"]] * 3, after=[f"ok:{root}"])
    box.kill_daemon()
    # the release, then the claim, in which the first part of them is told
    box.setenv(GPUQ_CRASH_AT="transition-after:2")
    with Client.connect() as client:
        box.setenv(GPUQ_CRASH_AT=None)
        pid = box.daemon_pid()
        with pytest.raises(ConnectionLost):
            client.request("release", sel={"ranges": [[root, root]]})
            client.request("wait", sel={"ranges": [[root, root]]})
    wait_until(lambda: gone(pid), "the death")
    every = {"ranges": [[ids[0], ids[-1]]]}

    def told() -> bool:
        events = box.request("events", sel=every)["events"]
        return [event["kind"] for event in events].count("ready") >= MANY

    wait_until(told, "the rest")
    ready = [event["job"] for event in box.request("events", sel=every)["events"] if event["kind"] == "ready"]
    assert sorted(ready) == ids, "each once"
    assert {job["reason"] for job in box.request("list", sel=every)["jobs"]} == {"Held"}
    assert {box.reason(n) for n in ends} == {("Dependency", f"waits for ok:{root}")}
    change(box, "release", ids[-1])
    assert box.wait(ids[-1])["state"] == "succeeded"


def test_jobs_that_are_tried_again_together_wait_for_the_new_start(box: Box) -> None:
    server = box.submit("sleep", "600")
    client = box.submit("true", after=[f"started:{server}"])
    box.wait(client)
    change(box, "cancel", server)
    box.wait(server)
    change(box, "retry", client)
    assert box.wait(client)["state"] == "succeeded", "alone it waits for nothing"
    change(box, "retry", server, client)
    assert box.wait(client)["attempt"] == 3
    assert box.job(client)["started_at"] >= box.job(server)["started_at"]
    assert box.job(server)["state"] == "running"


def test_jobs_that_are_tried_again_wait_for_older_ones_however_many_they_are(box: Box) -> None:
    root = box.submit("sleep", "600", hold=True)
    ids = box.submit_many([["true"]] * (handlers.SLICE + 5), after=[f"any:{root}"], hold=True)
    every = {"ranges": [[root, ids[-1]]]}
    box.request("cancel", sel=every)
    assert len(box.request("retry", sel=every)["done"]) == len(ids) + 1
    wait_until(lambda: box.job(root)["state"] == "running", "the start")
    assert box.request("status")["jobs"] == {"queued": len(ids), "running": 1}
    assert box.reason(ids[-1]) == ("Dependency", f"waits for any:{root}")
    box.request("cancel", sel=every)


# --- one of several -------------------------------------------------------------------------------


def test_one_of_several_is_enough(box: Box) -> None:
    first, second, third = (box.submit("true", hold=True) for _ in range(3))
    either = box.submit("true", after=[f"ok:{first}|failed:{second}"], hold=True)
    both = box.submit("true", after=[f"ok:{first}|ok:{second}", f"any:{third}|any:{second}"])
    assert box.job(either)["after"] == [f"ok:{first}|failed:{second}"]
    assert box.reason(both)[1] == f"waits for ok:{first}|ok:{second}, any:{third}|any:{second}"
    change(box, "release", first)
    wait_until(lambda: "ready" in kinds(box, either), "the first alternative")
    assert box.reason(both)[1] == f"waits for any:{third}|any:{second}"
    [explained] = box.request("why", sel={"ranges": [[both, both]]})["explanations"]
    assert explained["lines"] == [f"any:{third}|any:{second}: job {third} is held; job {second} is held"]
    change(box, "release", second)
    assert box.wait(both)["state"] == "succeeded"
    assert (states(box, [either, third]), kinds(box, either).count("ready")) == (["held", "held"], 1)


def test_it_is_skipped_when_no_alternative_can_hold_any_more(box: Box) -> None:
    first, second = box.submit("false", hold=True), box.submit("true", hold=True)
    either = box.submit("true", after=[f"ok:{first}|failed:{second}"])
    change(box, "release", first)
    box.wait(first)
    assert box.reason(either) == ("Dependency", f"waits for failed:{second}")
    [explained] = box.request("why", sel={"ranges": [[either, either]]})["explanations"]
    assert explained["lines"] == [f"ok:{first}|failed:{second}: job {first} failed; job {second} is held"]
    change(box, "release", second)
    told = f"depends on ok:{first}|failed:{second}: job {first} failed, job {second} succeeded"
    assert (box.wait(either)["state"], box.job(either)["note"]) == ("skipped", told)
    late = box.submit("true", after=[f"ok:{first}|failed:{second}"])
    assert (box.wait(late)["state"], box.job(late)["note"]) == ("skipped", told)
    assert box.wait(box.submit("true", after=[f"ok:{first}|ok:{second}"]))["state"] == "succeeded"


def test_both_ends_of_one_job_are_alternatives_of_a_clause(box: Box) -> None:
    for command in ("true", "false"):
        root = box.submit(command, hold=True)
        waits = box.submit("true", after=[f"failed:{root}|ok:{root}"])
        change(box, "release", root)
        assert box.wait(waits)["state"] == "succeeded"


def test_a_range_among_alternatives_is_all_of_it_or_the_other(box: Box) -> None:
    first, second, third = (box.submit("true", hold=True) for _ in range(3))
    waits = box.submit("true", after=[f"{first}-{second}|any:{third}"])
    assert box.job(waits)["after"] == [f"ok:{first}|any:{third}", f"ok:{second}|any:{third}"]
    change(box, "release", first)
    box.wait(first)
    assert box.reason(waits)[1] == f"waits for ok:{second}|any:{third}"
    change(box, "cancel", third)
    assert box.wait(waits)["state"] == "succeeded"


def test_a_retry_waits_for_the_alternatives_that_live(box: Box) -> None:
    ended, lives = box.submit("false"), box.submit("true", hold=True)
    box.wait(ended)
    waits = box.submit("true", after=[f"ok:{ended}|ok:{lives}"])
    change(box, "cancel", waits)
    change(box, "retry", waits)
    assert box.reason(waits) == ("Dependency", f"waits for ok:{lives}")
    change(box, "cancel", waits, lives)
    change(box, "retry", waits)
    assert box.wait(waits)["state"] == "succeeded", "a retry waits for nobody who has ended"


# --- arrays ---------------------------------------------------------------------------------------


def array(box: Box, *indexes: int, **template: object) -> list[int]:
    return box.submit_many([["sh", "-c", "exit $GPUQ_ARRAY_INDEX"]], array={"indexes": list(indexes)}, **template)


def test_members_wait_for_those_with_the_same_index(box: Box) -> None:
    first = array(box, 0, 1, 2, 5, hold=True)
    second = box.submit_many([["true"]], array={"indexes": [0, 2, 5]}, after=[f"each:{first[0]}"])
    third = box.submit_many(
        [["true"]], array={"indexes": [1, 0]}, after=[f"failed:each:{first[2]}", f"any:{second[0]}"]
    )
    assert [box.job(n)["after"] for n in second] == [[f"ok:{first[n]}"] for n in (0, 2, 3)]
    assert box.job(third[0])["after"] == [f"any:{second[0]}", f"failed:{first[1]}"]
    change(box, "release", first[0])
    assert box.wait(second[0])["state"] == "succeeded"
    assert states(box, second) == ["succeeded", "queued", "queued"]
    change(box, "release", first[2])
    assert box.wait(second[1])["note"] == f"depends on ok:{first[2]}, which failed"
    change(box, "release", first[1])
    assert box.wait(third[0])["state"] == "succeeded"
    assert box.wait(third[1])["note"] == f"depends on failed:{first[0]}, which succeeded"


@pytest.mark.parametrize("count", [5, staging.SLICE * 2 + 3])
def test_members_whose_partners_have_ended(box: Box, count: int) -> None:
    first = box.submit_many([["true"]], array={"indexes": list(range(count))}, hold=True)
    change(box, "release", first[0])
    box.wait(first[0])
    change(box, "cancel", first[1])
    second = box.submit_many([["true"]], array={"indexes": list(range(count))}, after=[f"each:{first[0]}"])
    assert box.wait(second[0])["state"] == "succeeded"
    assert box.job(second[1])["note"] == f"depends on ok:{first[1]}, which was cancelled"
    assert states(box, second[:3]) == ["succeeded", "skipped", "queued"]
    assert box.request("status")["jobs"] == {"held": count - 2, "queued": count - 2}
    change(box, "cancel", *first[2:])
    assert set(states(box, second[1:])) == {"skipped"}


def test_a_whole_array_is_waited_for_by_any_of_its_ids(box: Box) -> None:
    first = array(box, 0, 7, hold=True)
    waits = box.submit("true", after=[f"any:array:{first[1]}"])
    assert box.job(waits)["after"] == [f"any:{n}" for n in first]
    change(box, "release", *first)
    assert box.wait(waits)["state"] == "succeeded"


# --- tags and groups ------------------------------------------------------------------------------


def test_jobs_are_named_by_a_tag(box: Box) -> None:
    prepared = [box.submit("true", tags=["prep"]), box.submit("true", tags=["a", "prep"], hold=True)]
    box.submit("false", tags=["preparation", "pre"])
    box.wait(prepared[0])
    waits = box.submit("true", after=["tag=prep"], tags=["prep"])
    assert box.job(waits)["after"] == [f"ok:{n}" for n in prepared]
    change(box, "release", prepared[1])
    assert box.wait(waits)["state"] == "succeeded"
    odd = "x,y:größe\u2028\"'"
    named = box.submit("true", tags=[odd, "another"])
    assert box.job(box.submit("true", after=[f"any:tag={odd}"]))["after"] == [f"any:{named}"]


# --- bad input ------------------------------------------------------------------------------------

BAD: list[tuple[object, type[GpuqError], str]] = [
    (["ok:99"], NoSuchJob, "--after ok:99: there is no job 99"),
    (["ok:1|any:99"], NoSuchJob, r"--after ok:1\|any:99: there is no job 99"),
    (["ok:1|"], UsageError, r"'ok:1\|' is not a dependency, for nothing stands beside the \|"),
    ([""], UsageError, "it is empty: write 12"),
    (["best:1"], UsageError, "'best' is none of ok, any, failed, started"),
    (["ok:x"], UsageError, "names no job"),
    (["ok:3-1"], UsageError, "the range '3-1' is upside down: write 1-3"),
    (["ok:@last"], UsageError, "@last"),
    (["1-2"], NoSuchJob, "there is no job 2"),
    (["2"], NoSuchJob, "there is no job 2"),  # itself
    (["ok:0-9999", "ok:10000-19999"], UsageError, "a job waits for 10,000 others at most"),
    (["ok:0-999|any:0-999"], UsageError, "a job waits for 10,000 others at most"),
    (["array:1"], UsageError, "job 1 is of no array: write ok:1"),
    (["array:9"], NoSuchJob, "there is no job 9"),
    (["each:1"], UsageError, "each: is for an array.*give --array, or write ok:array:1"),
    (["each:failed:1"], UsageError, "the condition comes first: write failed:each:1"),
    (["tag="], UsageError, "which tag"),
    (["any:tag=nobody's"], NoSuchJob, 'no job of yours has the tag "nobody\'s"'),
    (["group=nobody"], NoSuchJob, "no job of yours has the group 'nobody'"),
    ([7], UsageError, "must be text"),
    ("ok:1", UsageError, "a list"),
]


@pytest.mark.parametrize(("after", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_named(box: Box, after: object, error: type[GpuqError], message: str) -> None:
    box.submit("true", hold=True)
    with pytest.raises(error, match=message):
        box.submit("true", after=after)
    assert box.request("list", sel={}, all=True)["total"] == 1


def test_arrays_that_do_not_correspond_are_refused(box: Box) -> None:
    single = box.submit("true", hold=True)
    first = array(box, 0, 1, 2, hold=True)
    other = array(box, 9, hold=True)
    for after, message in (
        (f"each:{first[0]}", "no member there has the index 3, 5-6: there are 0-2"),
        (f"each:{first[0]}-{first[1]}", "no member there has the index 2-3, 5-6: there are 0-1"),
        (f"each:{first[0]}-{other[0]}", f"of one array job {first[0]} is, and not {other[0]}"),
        (f"each:{single}", f"job {single} is of no array"),
        ("each:99", "there is no job 99"),
    ):
        with pytest.raises(GpuqError, match=message):
            array(box, 0, 1, 2, 3, 5, 6, after=[after])
    assert box.request("list", sel={}, all=True)["total"] == 5


# --- cycles ---------------------------------------------------------------------------------------


def edited(core: Core, job_id: int, *words: str) -> None:
    """The job waits for these instead, as an edit will write it."""
    after = clauses(*words)
    depending.refuse_cycle(core.store, job_id, after)
    with core.store.transaction():
        core.store.conn.execute("DELETE FROM dependencies WHERE job_id = ?", (job_id,))
        core.store.add_dependencies([job_id], after, numbered(after))


WAITING_JOB: tuple[bool, int, None, list[list[tuple[int, Condition]]], None] = (False, 1, None, [], None)


def test_a_cycle_is_refused_and_named() -> None:
    with filled([WAITING_JOB] * 6) as core:
        edited(core, 2, "ok:1")
        edited(core, 4, "any:2|failed:3", "started:5")
        for job_id, word, cycle in (
            (1, "any:4", "1 -> 4 -> 2 -> 1"),
            (5, "ok:6|started:4", "5 -> 4 -> 5"),
            (3, "ok:3", "3 -> 3"),
        ):
            with pytest.raises(DependencyCycle, match=f"^job {job_id} would wait for itself: {cycle}$"):
                edited(core, job_id, word)
        edited(core, 4, "ok:6")
        edited(core, 1, "any:4")
        edited(core, 2, "ok:5")


def test_a_long_cycle_is_named_in_short_and_a_longer_one_refused_as_well() -> None:
    with filled([WAITING_JOB] * 100) as core:
        for n in range(2, 101):
            edited(core, n, f"ok:{n - 1}")
        with pytest.raises(DependencyCycle, match=r"1 -> 100 -> .* -> \(81 more\) -> .* -> 2 -> 1$"):
            edited(core, 1, "ok:100")
        with pytest.raises(TooMany):
            dependents.cycle(core.store, 1, [100], most=20)


def test_jobs_that_wait_for_each_other_are_tried_again_one_after_the_other() -> None:
    """Each was given to the other to wait for while that had ended: only their retry together makes a cycle of it."""
    with filled([WAITING_JOB] * 3) as core:
        edited(core, 2, "any:1")
        core.cancel_waiting([1, 2, 3])
        with core.store.transaction():
            core.store.add_dependencies([1], clauses("any:3|ok:2"), frozenset())
            core.store.add_dependencies([3], clauses("ok:2"), frozenset())
        core.apply([(job, Retried()) for job in core.store.jobs([1, 2, 3])])
        open_ = {n: [str(d) for d in core.store.open_dependencies(n)] for n in (1, 2, 3)}
        assert open_ == {1: [], 2: ["any:1"], 3: ["ok:2"]}
        assert core.waiting.blocked(1) is None


def test_only_what_is_still_waited_for_makes_a_cycle() -> None:
    with filled([WAITING_JOB] * 3) as core:
        edited(core, 3, "any:1|any:2")
        assert dependents.cycle(core.store, 1, [3]) == [1, 3, 1]
        core.cancel_waiting([2])
        assert dependents.cycle(core.store, 1, [3]) is None, "that holds by now"


def test_of_those_that_are_tried_again_together_a_new_start_is_waited_for() -> None:
    with filled([WAITING_JOB] * 2) as core:
        edited(core, 2, "started:1")
        start(core, 1)
        assert core.store.open_dependencies(2) == []
        core.apply([(core.running[1].job, Ended(exit_code=0))])
        core.cancel_waiting([2])
        core.apply([(job, Retried()) for job in core.store.jobs([1, 2])])
        assert [str(one) for one in core.store.open_dependencies(2)] == ["started:1"]
        start(core, 1)
        assert core.store.open_dependencies(2) == []


def test_a_start_that_was_not_told_to_all_is_found_by_the_next_daemon() -> None:
    with filled([WAITING_JOB] * 6) as core, parts_of(2):
        for n in range(2, 7):
            edited(core, n, "started:1" if n < 6 else "ok:1")
        start(core, 1)
        assert core.cascade.left
        fresh = again(core)
        assert list(fresh.cascade.left) == [1]
        drain(fresh)
        assert [bool(core.store.open_dependencies(n)) for n in range(2, 7)] == [False] * 4 + [True]
