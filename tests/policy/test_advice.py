"""Advice is followed: the job is changed by what the options say, as a person would type them, and planned anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpuq.cli import parse
from gpuq.model import Claim, GiB, GpuProcess, Host, MiB, Order, Queue, Wishes
from gpuq.policy.advice import TYPING, Case, advice, neat_size, neat_time, size_text, time_text
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.reserve import Ongoing
from gpuq.policy.scheduler import Plan, Policy, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from gpuq.units import parse_duration, parse_size
from tests.policy.build import make_gpu
from tests.policy.stream import Stream, Work, card, cpu, lines, share, whole
from tests.policy.test_streams import CARDS, POLICIES, QUEUES, streams

NOW, GRACE = 1000.0, 10.0
HOST = Host(cpus=4, ram=16 * GiB)


# --- a change, followed -----------------------------------------------------------------------------


def changed(key: GroupKey, length: float, options: Sequence[str], grace: float) -> tuple[GroupKey, float]:
    """The job with these options of `gpuq edit`, as its manual explains them."""
    words = " ".join(options).split()
    request, which = key.request, key.request.which
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--vram":
            request = replace(request, vram=parse_size(value))
        elif option == "--gpus":
            least, most = parse.parse_gpus(value)
            request = replace(request, gpus=least, most=most or 0)
        elif option == "--cpus":
            request = replace(request, cpus=int(value))
        elif option == "--ram":
            request = replace(request, ram=parse_size(value))
        elif option == "--time":
            length = parse_duration(value) + grace
        elif option == "--priority":
            key = replace(key, priority=int(value))
        elif option == "--queue":
            key = replace(key, queue=value)
        else:
            field = {"--gpu-type": "types", "--gpu-id": "only", "--exclude-gpu": "exclude"}.get(option, "min_memory")
            assert value == "none" and (field != "min_memory" or option == "--gpu-min-memory")
            which = replace(which, **{field: type(getattr(which, field))()})
    return replace(key, request=replace(request, which=which)), length


def followed(case: Case, options: Sequence[str]) -> Plan:
    """What is planned once the job has been edited: it keeps its id and its age, and reservations are as they were."""
    groups: dict[GroupKey, Line] = {}
    rows = sorted((n, key) for key, line in case.snapshot.groups.items() for n in line)
    for job_id, key in rows:
        line = case.snapshot.groups[key]
        row = (key, line.length(job_id))
        if job_id == case.job_id:
            row = changed(*row, options, case.grace)
            assert row != (key, line.length(job_id)), f"{options} changes nothing"
        groups.setdefault(row[0], Line()).add(job_id, line.since(job_id), row[1])
    return plan(replace(case.snapshot, groups=groups), case.gpus)


def kinds(options: Sequence[str]) -> list[str]:
    return [option.split()[0] for option in options]


def checked(case: Case) -> list[str]:
    """All changes, each of which has been followed."""
    found = [options for options in advice(case) if options is not None]
    for options in found:
        assert case.job_id in {start.job_id for start in followed(case, options).starts}, options
        request = changed(case.key, inf, options, case.grace)[0].request
        assert "--vram" not in kinds(options) or (request.vram or 0) >= case.peak
    assert len(set(found)) == len(found)
    return [" ".join(options) for options in found]


@st.composite
def settled(draw: st.DrawFn) -> Case:
    """A job that waits, at a moment when everything that may start has; somebody else uses some of the memory."""
    policy = replace(draw(POLICIES), preempt_after=0.0)
    stream = Stream(draw(CARDS), policy, QUEUES, {"broken": "x"})
    asked: list[Snapshot] = []
    cards: list[list[GpuState]] = []

    def look(snapshot: Snapshot, gpus: list[GpuState], result: Plan) -> None:
        if not result.starts:
            asked.append(replace(snapshot, reserved=result.reservations))
            cards.append(gpus)

    stream.look = look
    stream.run(draw(streams(st.sampled_from([10.0, 30.0, 400.0, inf]), 2, bounded=True)))
    waiting = [(n, key, job_id) for n, one in enumerate(asked) for key, line in one.groups.items() for job_id in line]
    assume(waiting)
    number, key, job_id = draw(st.sampled_from(waiting))
    foreign = draw(st.sampled_from([0, 0, 0, GiB, 3 * GiB]))
    gpus = [replace(gpu, foreign=foreign, foreign_besides=foreign) for gpu in cards[number]]
    assume(not plan(asked[number], gpus).starts)
    peak = draw(st.sampled_from([0, 0, GiB, 3 * GiB + 1]))
    return Case(asked[number], gpus, key, job_id, peak, draw(st.sampled_from([0.0, GRACE])))


@settings(max_examples=150)
@given(settled())
def test_each_change_starts_the_job(case: Case) -> None:
    assume(case.snapshot.groups[case.key].length(case.job_id) >= case.grace)
    found = [options for options in advice(case) if options is not None]
    checked(case)
    sizes = [len(set(kinds(options)) - {"--ram"}) for options in found if "--gpu" not in "".join(kinds(options)[1:])]
    assert sizes == sorted(sizes), "single changes come first"
    assert not (1 in sizes and 2 in sizes), "two changes are proposed only where one will not do"


# --- cases that can be done by hand -----------------------------------------------------------------


def case_of(
    work: Work,
    gpus: Sequence[GpuState],
    *others: Work,
    ongoing: Sequence[Ongoing] = (),
    peak: int = 0,
    host: Host = HOST,
    **changes: Any,
) -> Case:
    """The work waits, with its limit and the grace period of 10 s; `others` do, too."""
    works = [replace(one, limit=one.limit + GRACE) for one in (*others, work)]
    snapshot = Snapshot(lines(sorted(works, key=lambda one: one.job_id)), host, NOW, ongoing=ongoing, **changes)
    snapshot = replace(snapshot, reserved=plan(snapshot, gpus).reservations)
    assert work.job_id not in {start.job_id for start in plan(snapshot, gpus).starts}, "it would start as it is"
    return Case(snapshot, gpus, work.key, work.job_id, peak, GRACE)


def taken(number: int, job_id: int, gib: float | None = None, total: int = 24) -> GpuState:
    return card(number, total, [Claim(job_id, 1, f"GPU-{number}", None if gib is None else int(gib * GiB))])


def running(job_id: int, ends: float = inf, gpus: int = 1, **changes: object) -> Ongoing:
    return Ongoing(job_id, ends=ends, gpus=gpus, **changes)  # type: ignore[arg-type]


def test_less_memory_is_as_much_as_there_is() -> None:
    gpus = [taken(0, 1, 13), taken(1, 2, 20)]
    assert checked(case_of(Work(9, share(14)), gpus)) == ["--vram 11GiB"]
    assert checked(case_of(Work(9, whole()), gpus)) == ["--vram 11GiB"]
    assert checked(case_of(Work(9, share(14, gpus=2)), gpus)) == ["--vram 4GiB"], "what the second has"
    assert checked(case_of(Work(9, share(14)), [taken(0, 1, 12.5)])) == ["--vram 11GiB"], "easy to type"
    assert checked(case_of(Work(9, share(14)), [taken(0, 1, 21.3)])) == ["--vram 2560MiB"]


def test_never_less_memory_than_it_was_seen_to_use() -> None:
    gpus = [taken(0, 1, 12.5)]
    assert checked(case_of(Work(9, share(14)), gpus, peak=11 * GiB)) == ["--vram 11GiB"]
    assert checked(case_of(Work(9, share(14)), gpus, peak=11 * GiB + 1)) == ["--vram 11776MiB"]
    assert checked(case_of(Work(9, share(14)), gpus, peak=int(11.5 * GiB))) == ["--vram 11776MiB"]
    assert checked(case_of(Work(9, share(14)), gpus, peak=int(11.5 * GiB) + 1)) == []


def test_fewer_gpus_but_no_fewer_than_needed() -> None:
    gpus = [taken(0, 1), card(1, 24), card(2, 24), card(3, 24)]
    assert checked(case_of(Work(9, share(8, gpus=4)), gpus)) == ["--gpus 3"]
    assert checked(case_of(Work(9, share(8, gpus=4, most=6)), gpus)) == ["--gpus 3:6"]


def test_a_time_limit_that_ends_before_the_reservation() -> None:
    """GPU 0 is free for job 8 from 3600 s on, who wants both."""
    gpus, first = [taken(0, 1), card(1, 24)], Work(8, whole(2))
    ongoing = [running(1, NOW + 3600)]
    found = checked(case_of(Work(9, whole()), gpus, first, ongoing=ongoing))
    minutes = (3600 - GRACE - TYPING) // 60
    assert found == [f"--time {minutes:.0f}m", "--priority 1"]
    found = checked(case_of(Work(9, whole(), limit=3600.0), gpus, first, ongoing=ongoing))
    assert found[0] == f"--time {minutes:.0f}m"
    found = checked(case_of(Work(9, whole()), gpus, first, ongoing=[running(1, NOW + 300)]))
    assert found[0] == f"--time {300 - GRACE - TYPING:.0f}s"
    found = checked(case_of(Work(9, whole()), gpus, first, ongoing=[running(1, NOW + 90)]))
    assert found == ["--priority 1"], "there is no time to type it, and to do anything"


def test_no_time_that_its_queue_does_not_allow() -> None:
    gpus, first = [taken(0, 1), card(1, 24)], Work(8, whole(2))
    queues = {"short": Queue("short", max_time=1200.0)}
    found = checked(
        case_of(Work(9, whole(), queue="short"), gpus, first, ongoing=[running(1, NOW + 3600)], queues=queues)
    )
    assert found == ["--time 20m", "--priority 1"]


def test_of_several_reservations_the_last_that_will_do() -> None:
    """GPU 1 is kept for job 7 from 1200 s on, and GPU 2, on which job 9 would be, for job 8 from 3600 s on."""
    gpus = [taken(0, 1), card(1, 24), taken(2, 2), card(3, 24)]
    request = replace(whole(2), which=Wishes(only=("GPU-0", "GPU-1")))
    first, second = Work(7, request), Work(8, replace(request, which=Wishes(only=("GPU-2", "GPU-3"))))
    ongoing = [running(1, NOW + 1200), running(2, NOW + 3600)]
    work = Work(9, replace(whole(), which=Wishes(exclude=("GPU-1",))))
    found = checked(case_of(work, gpus, first, second, ongoing=ongoing, policy=Policy(reservations=8)))
    assert found == ["--time 59m", "--priority 1"]


def test_no_time_within_which_its_signal_would_not_come() -> None:
    gpus, first = [taken(0, 1), card(1, 24)], Work(8, whole(2))
    case = case_of(Work(9, whole()), gpus, first, ongoing=[running(1, NOW + 1240)])
    assert checked(replace(case, early=1199.0))[0] == "--time 20m"
    assert checked(replace(case, early=1200.0)) == ["--priority 1"]


def test_memory_beside_a_reservation() -> None:
    """Job 8 will have 20 of 24 GiB once job 1, with 10, has ended: 4 are left beside it, of 14 that are free now."""
    gpus, first = [taken(0, 1, 10)], Work(8, share(20))
    found = checked(case_of(Work(9, share(12)), gpus, first, ongoing=[running(1, NOW + 3600)]))
    assert found == ["--vram 4GiB", "--time 59m", "--priority 1"]


def test_priority_is_just_enough() -> None:
    gpus = [taken(0, 1), card(1, 24)]
    others = [Work(7, whole(2), priority=5), Work(8, whole(2), priority=900)]
    found = checked(
        case_of(Work(9, whole(), priority=2), gpus, *others, ongoing=[running(1)], policy=Policy(Order.FIFO))
    )
    assert found == ["--priority 901"]
    others = [Work(8, whole(2), priority=1000)]
    found = checked(
        case_of(Work(9, whole(), priority=2), gpus, *others, ongoing=[running(1)], policy=Policy(Order.FIFO))
    )
    assert found == [], "there is no higher one"


@pytest.mark.parametrize("order", [Order.EASY, Order.FIFO])
def test_priority_that_outweighs_age(order: Order) -> None:
    """Job 8 has waited for ten hours more, each of which counts as much as one point of priority."""
    gpus, old = [taken(0, 1), card(1, 24)], Work(8, whole(2), since=NOW - 36_000, priority=3)
    policy = Policy(order, ageing=3600.0)
    for since, priority in ((NOW, 14), (NOW - 1, 13), (NOW - 36_000, 4)):
        case = case_of(Work(9, whole(), since=since), gpus, old, ongoing=[running(1, NOW + 9)], policy=policy)
        assert checked(case) == [f"--priority {priority}"]
        less = Case(case.snapshot, gpus, case.key, 9, 0, GRACE)
        assert 9 not in {start.job_id for start in followed(less, [f"--priority {priority - 1}"]).starts}


def test_what_the_host_has_left() -> None:
    busy = [running(1, cpus=3, ram=10 * GiB, gpus=0)]
    assert checked(case_of(Work(9, cpu(4)), [], ongoing=busy)) == ["--cpus 1"]
    assert checked(case_of(Work(9, cpu(1, ram=8)), [], ongoing=busy)) == ["--ram 6GiB"]
    assert checked(case_of(Work(9, cpu(4, ram=8)), [], ongoing=busy)) == ["--cpus 1 --ram 6GiB"]
    full = [running(1, cpus=4, gpus=0)]
    assert checked(case_of(Work(9, whole(cpus=1)), [card(0)], ongoing=full)) == ["--cpus 0"]
    assert checked(case_of(Work(9, cpu(1)), [], ongoing=full)) == [], "a job without GPUs and CPUs is nothing"


@pytest.mark.parametrize(
    ("which", "options"),
    [
        (Wishes(types=("card",), min_memory=16 * GiB), "--gpu-min-memory none"),
        (Wishes(only=("GPU-0",)), "--gpu-id none"),
        (Wishes(exclude=("GPU-1",), spread=True), "--exclude-gpu none"),
        (Wishes(min_memory=16 * GiB, exclude=("GPU-1",)), "--gpu-min-memory none --exclude-gpu none"),
    ],
)
def test_without_the_condition_that_is_in_the_way(which: Wishes, options: str) -> None:
    gpus = [taken(0, 1), card(1, 8)]
    found = checked(case_of(Work(9, replace(whole(), which=which)), gpus, ongoing=[running(1)]))
    assert found == [options]


def test_a_type_that_is_in_the_way() -> None:
    gpus = [taken(0, 1), replace(card(1, 24), name="H100")]
    request = replace(whole(), which=Wishes(types=("card",)))
    assert checked(case_of(Work(9, request), gpus, ongoing=[running(1)])) == ["--gpu-type none"]


def test_another_queue() -> None:
    gpus = [taken(0, 1), card(1, 24)]
    queues = {
        "default": Queue(gpus=frozenset({"GPU-0"})),
        "a": Queue("a", draining=True),
        "b": Queue("b", paused=True),
        "c": Queue("c", max_time=3600.0),
        "d": Queue("d"),
    }
    case = case_of(Work(9, whole()), gpus, ongoing=[running(1)], queues=queues)
    assert checked(case) == ["--queue d"]
    case = case_of(Work(9, whole(), limit=3600.0), gpus, ongoing=[running(1)], queues=queues)
    assert checked(case) == ["--queue c"]


def test_two_changes_where_one_will_not_do() -> None:
    gpus = [taken(0, 1, 14), taken(1, 2, 24)]
    assert checked(case_of(Work(9, share(12, gpus=2)), gpus, ongoing=[running(1), running(2)])) == [
        "--gpus 1 --vram 10GiB"
    ]
    busy = [running(1, cpus=3)]
    assert checked(case_of(Work(9, share(12, cpus=2)), gpus[:1], ongoing=busy)) == ["--cpus 1 --vram 10GiB"]


def test_nothing_helps() -> None:
    one = GpuProcess(7, 24 * GiB, compute=True, graphics=False)
    foreign = make_gpu(0, foreign=24 * GiB, foreign_besides=24 * GiB, strangers=(one,), used=24 * GiB)
    assert checked(case_of(Work(9, whole()), [foreign])) == [], "somebody else's memory"
    assert checked(case_of(Work(9, share(2)), [foreign])) == []
    lost = replace(card(0), fault="it is lost")
    assert checked(case_of(Work(9, whole()), [lost])) == [], "a GPU that is out of order"
    paused = {"default": Queue(paused=True)}
    assert checked(case_of(Work(9, whole()), [card(0)], queues=paused)) == [], "a paused queue"
    stopped = {"g": "3 failures"}
    assert checked(case_of(Work(9, whole(), group="g"), [card(0)], stopped=stopped)) == [], "a stopped group"
    members = [running(1, gpus=0, array_id=5)]
    assert checked(case_of(Work(9, cpu(), array=(5, 1)), [], ongoing=members)) == [], "an array's limit"
    assert checked(case_of(Work(9, cpu()), [], host=Host(cpus=0, ram=0))) == []


def test_who_has_no_more_time_may_stop_after_each_try() -> None:
    tries = list(advice(case_of(Work(9, whole()), [replace(card(0), fault="lost")])))
    assert tries == [None] * len(tries)
    case = case_of(Work(9, share(14)), [taken(0, 1, 13)])
    assert next(iter(advice(case))) == ("--vram 11GiB",)


# --- sizes and times that are easy to type ------------------------------------------------------------


@given(st.integers(-GiB, 200 * GiB), st.integers(0, 100 * GiB))
def test_a_neat_size(size: int, least: int) -> None:
    """No larger, at most a quarter smaller where that may be, and typed as it is meant."""
    neat = neat_size(size, least)
    assert neat <= size and neat % MiB == 0
    if size >= 4 * MiB:
        assert neat > size * 3 / 4
        assert parse_size(size_text(neat)) == neat
    if size // MiB * MiB >= least:
        assert neat >= least, "the easy one is not below what is needed where the exact one is not"


def test_neat_sizes() -> None:
    told = [(11.9, 0), (11.9, 11.5), (3.9, 0), (3.9, 3.8), (0.9, 0), (0.01, 0)]
    assert [size_text(neat_size(int(size * GiB), int(least * GiB))) for size, least in told] == [
        "11GiB",
        "12032MiB",
        "3840MiB",
        "3993MiB",
        "921MiB",
        "10MiB",
    ]


@given(st.floats(1.0, 1e7))
def test_a_neat_time(seconds: float) -> None:
    neat = neat_time(seconds)
    assert seconds * 0.9 - 1 <= neat <= seconds
    assert parse_duration(time_text(neat)) == neat


def test_neat_times() -> None:
    assert [time_text(neat_time(s)) for s in (61.5, 599.9, 600, 659, 3599)] == ["61s", "599s", "10m", "10m", "59m"]
