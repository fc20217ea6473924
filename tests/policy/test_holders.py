"""Who has a reservation, for how long, and what others must leave to it: each rule of the issue by an example."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from gpuq.model import Claim, GiB, Order, Queue, Reason, Request
from gpuq.policy.line import Line
from gpuq.policy.reserve import Ongoing, Reservation
from gpuq.policy.scheduler import RESERVATIONS, Plan, Policy, Snapshot, plan
from gpuq.policy.waiting import GroupKey
from tests.policy.build import make_gpu, stranger
from tests.policy.stream import HOST, Stream, Work, card, cpu, share, whole

EASY = Policy()


def stream(cards: int, *works: Work, policy: Policy = EASY, queues: dict[str, Queue] | None = None) -> Stream:
    """Where those that come at 0 have been planned for."""
    found = Stream({f"GPU-{n}": 8 for n in range(cards)}, policy, queues or {})
    come(found, *works)
    return found


def come(to: Stream, *works: Work, at: float = 0.0) -> Plan:
    to.now = at
    to.waiting |= {work.job_id: work for work in works}
    return to.plan()


def end(to: Stream, job_id: int, at: float) -> Plan:
    to.now = at
    del to.running[job_id]
    return to.plan()


def holders(found: Stream) -> list[int]:
    return [reservation.job_id for reservation in found.reserved]


def test_an_older_job_that_comes_back_takes_no_reservation() -> None:
    """A job that was held, or tried before, has a smaller id, and would go first. The reservation stays."""
    found = stream(1, Work(5, whole(), limit=100.0), Work(6, whole(), limit=10.0))
    assert holders(found) == [6]
    come(found, Work(2, whole(), limit=10.0), at=20.0)
    assert holders(found) == [6]
    end(found, 5, 50.0)
    assert found.started == {5: 0.0, 6: 50.0}
    assert holders(found) == [2]


def test_a_higher_priority_takes_it() -> None:
    found = stream(1, Work(5, whole(), limit=100.0), Work(6, whole(), limit=10.0))
    come(found, Work(7, whole(), limit=10.0, priority=1), at=20.0)
    assert holders(found) == [7]
    end(found, 5, 50.0)
    assert found.started[7] == 50.0


def test_the_priority_of_a_queue_is_part_of_it() -> None:
    queues = {"urgent": Queue("urgent", priority=1)}
    found = stream(1, Work(5, whole(), limit=100.0), Work(6, whole(), limit=10.0), queues=queues)
    come(found, Work(7, whole(), limit=10.0, queue="urgent"), at=20.0)
    assert holders(found) == [7]


def test_with_ageing_a_higher_priority_takes_it_though_a_still_older_job_waits_for_a_limit() -> None:
    """Job 1 waits for its array's limit since long ago, job 3 has the reservation, and job 4 is of higher priority: by
    ageing it comes after job 1, and before job 3."""
    policy = Policy(ageing=100.0)
    members = [Work(n, cpu(1), limit=500.0, array=(1, 1)) for n in (1, 2)]
    running = Work(3, whole(), since=10.0, limit=500.0)
    found = stream(1, *members, running, Work(5, whole(), since=150.0, limit=10.0), policy=policy)
    assert holders(found) == [5]
    come(found, Work(6, whole(), since=200.0, limit=10.0, priority=1), at=200.0)
    assert holders(found) == [6]


def test_with_ageing_a_higher_priority_that_has_not_waited_takes_nothing() -> None:
    """A point of priority is worth 100 s here, and the holder has waited for longer."""
    running = Work(3, whole(), since=0.0, limit=500.0)
    found = stream(1, running, Work(5, whole(), since=0.0, limit=10.0), policy=Policy(ageing=100.0))
    come(found, Work(6, whole(), since=200.0, limit=10.0, priority=1), at=200.0)
    assert holders(found) == [5]


def test_a_job_that_goes_gives_its_reservation_up() -> None:
    found = stream(1, Work(5, whole(), limit=100.0), Work(6, whole()), Work(7, whole()))
    del found.waiting[6]
    come(found, at=20.0)
    assert holders(found) == [7]


def test_what_nothing_of_ours_that_ends_makes_room_for_has_no_reservation_and_lets_the_next_have_one() -> None:
    """A stranger computes on one of two GPUs. Nobody knows for how long, so that the job for both reserves nothing;
    the one behind it, for what is ours, is not passed for ever by small ones."""
    key, small = GroupKey(0, 1000, share(8, 2)), GroupKey(0, 1000, share(8))
    taken = make_gpu(0, total=8 * GiB, margin=0, used=GiB, foreign=GiB, strangers=(stranger(GiB),))
    busy = make_gpu(1, total=8 * GiB, margin=0, claims=()).with_claim
    gpus = [taken, busy(Claim(9, 1, "GPU-1", 4 * GiB))]
    groups = {key: Line.of([1], 0.0, 10.0), small: Line.of([2], 0.0, 10.0)}
    for reserve_after in (0.0, 600.0):
        policy = Policy(reserve_after=reserve_after)
        result = plan(Snapshot(groups, HOST, policy=policy, ongoing=[Ongoing(9, ends=50.0)]), gpus)
        assert result.reservations == (Reservation(2, small, 50.0, ("GPU-1",)),)


def test_more_cpus_than_there_are_reserve_nothing() -> None:
    """The host was larger when it was submitted. All others would wait for it for ever."""
    groups = {GroupKey(0, 1000, cpu(9)): Line.of([1]), GroupKey(0, 1000, cpu(1)): Line.of([2])}
    result = plan(Snapshot(groups, HOST, now=9999.0, policy=Policy(reserve_after=0.0)), [])
    assert not result.reservations
    assert [start.job_id for start in result.starts] == [2]


def test_while_there_is_no_reading_a_reservation_stays_and_there_is_no_other() -> None:
    found = stream(1, Work(1, whole(cpus=1), limit=100.0), Work(2, whole(), limit=10.0))
    groups = {**found.snapshot().groups, GroupKey(0, 1000, cpu(4)): Line.of([3])}
    assert plan(replace(found.snapshot(), groups=groups), None).reservations == found.reserved
    more = replace(found.snapshot(), groups=groups, policy=Policy(reservations=2))
    assert [one.job_id for one in plan(more, None).reservations] == [2, 3]


def test_a_reservation_names_what_is_left_when_another_job_takes_a_spare_gpu() -> None:
    """It wants two of three, one of which is free and would be taken by a job that never ends."""
    running = [Work(1, whole(), limit=50.0), Work(2, whole(), limit=100.0), Work(3, whole(), limit=100.0)]
    found = stream(3, *running, Work(4, whole(2), limit=10.0))
    assert [(r.at, r.gpus) for r in found.reserved] == [(100.0, ("GPU-0", "GPU-1"))]
    del found.running[1]
    come(found, Work(5, whole()), at=20.0)
    assert found.running[5].gpus == ("GPU-0",)
    assert [(r.at, r.gpus) for r in found.reserved] == [(100.0, ("GPU-1", "GPU-2"))]


def test_where_jobs_start_in_order_a_reservation_from_before_is_of_no_account() -> None:
    """The setting was changed. An older job that came back is first, and nothing passes it."""
    found = stream(1, Work(5, whole(), limit=100.0), Work(6, whole(), limit=10.0))
    found.policy = Policy(order=Order.FIFO)
    come(found, Work(2, whole(), limit=10.0), at=20.0)
    assert not found.reserved
    found.reserved = (Reservation(6, Work(6, whole()).key, 100.0, ("GPU-0",)),)
    end(found, 5, 50.0)
    assert found.started[2] == 50.0


def test_without_a_reading_no_job_takes_the_cpus_of_a_reservation() -> None:
    found = stream(1, Work(1, whole(cpus=1), limit=100.0), Work(2, whole(cpus=2), limit=10.0))
    groups = {GroupKey(0, 1000, cpu(3)): Line.of([3]), found.reserved[0].key: Line.of([2], 0.0, 10.0)}
    assert not plan(replace(found.snapshot(), groups=groups), None).starts
    groups = {GroupKey(0, 1000, cpu(2)): Line.of([3]), found.reserved[0].key: Line.of([2], 0.0, 10.0)}
    assert [s.job_id for s in plan(replace(found.snapshot(), groups=groups), None).starts] == [3]


def test_gpus_are_kept_free_as_they_come_free_once_a_job_has_waited_for_long() -> None:
    """Behind jobs without a limit: before ten minutes are over whatever fits starts, after that not on its GPUs."""
    running = [Work(n, whole()) for n in (1, 2)]
    found = stream(2, *running, Work(3, whole(2), limit=10.0))
    assert holders(found) == []
    end(found, 1, 599.0)
    come(found, Work(4, whole(), limit=10.0), at=599.5)
    assert found.started[4] == 599.5
    named = (Reservation(3, Work(3, whole(2)).key, inf, ("GPU-0", "GPU-1")),)
    come(found, at=600.0)
    assert found.reserved == named
    end(found, 4, 601.0)
    come(found, Work(5, whole(), limit=1.0), at=602.0)
    assert 5 not in found.started
    assert found.reserved == named
    end(found, 2, 700.0)
    assert found.started == {1: 0.0, 2: 0.0, 4: 599.5, 3: 700.0}


def test_a_range_does_not_pass_the_limit_of_its_queue() -> None:
    assert len(stream(4, Work(1, whole(1, most=4))).running[1].gpus) == 4
    queues = {"some": Queue("some", max_gpus=3)}
    found = stream(4, Work(1, whole(1, most=4), queue="some"), queues=queues)
    assert len(found.running[1].gpus) == 3
    found = stream(4, Work(1, whole(2), queue="some"), Work(2, whole(1, most=2), queue="some"), queues=queues)
    assert [len(run.gpus) for run in found.running.values()] == [2, 1]


def test_a_later_job_leaves_the_place_in_a_queue_that_the_reservation_needs() -> None:
    """Two jobs of the queue may run. None must be the second while another one waits for a GPU, which may come free
    before it is due."""
    queues = {"two": Queue("two", max_jobs=2)}
    works = [
        Work(1, whole(), limit=100.0),
        Work(2, cpu(1), queue="two"),
        Work(3, whole(), limit=10.0, queue="two"),
        Work(4, cpu(1), queue="two"),
        Work(5, cpu(1), limit=100.0, queue="two"),
    ]
    found = stream(1, *works, queues=queues)
    assert holders(found) == [3]
    assert sorted(found.started) == [1, 2]
    last = found.last
    assert last is not None and last.verdicts[works[-1].key].reason is Reason.RESERVATION


def test_a_later_member_leaves_the_place_in_an_array_that_the_reservation_needs() -> None:
    works = [
        Work(1, whole(), limit=100.0, priority=2),
        Work(2, whole(), array=(2, 1), priority=1, limit=10.0),
        Work(3, cpu(1), array=(2, 1)),
        Work(4, cpu(1), array=(2, 1), limit=50.0),
        Work(5, cpu(1), array=(3, 1), limit=50.0),
    ]
    found = stream(1, *works)
    assert holders(found) == [2]
    assert sorted(found.started) == [1, 5]
    end(found, 1, 20.0)
    assert found.started[2] == 20.0


def test_a_later_job_leaves_the_gpus_in_a_queue_that_the_reservation_needs() -> None:
    """Three GPUs are the queue's, and two of them are promised. A range takes what is left beside them."""
    queues = {"some": Queue("some", max_gpus=3)}
    works = [
        Work(1, whole(3), limit=100.0),
        Work(2, share(8, 2), limit=10.0, queue="some"),
        Work(3, share(1, 1, most=3), limit=10.0, queue="some"),
        Work(4, share(1), limit=10.0, queue="some"),
    ]
    found = stream(4, *works, queues=queues)
    assert holders(found) == [2]
    assert [run.gpus for run in found.running.values()] == [("GPU-0", "GPU-1", "GPU-2"), ("GPU-3",)]


def test_a_queue_that_has_more_gpus_than_it_may_lets_cpu_jobs_start() -> None:
    """Its limit was lowered meanwhile."""
    found = stream(2, Work(1, whole(2), queue="some"), queues={"some": Queue("some", max_gpus=2)})
    lowered = replace(found.snapshot(), queues={"some": Queue("some", max_gpus=1)})
    for work, starts in ((Work(2, cpu(1), queue="some"), [2]), (Work(3, share(1), queue="some"), [])):
        result = plan(replace(lowered, groups={work.key: Line.of([work.job_id])}), found.gpus())
        assert [start.job_id for start in result.starts] == starts


def test_two_reservations_leave_each_other_cpus_and_places() -> None:
    queues = {"one": Queue("one", max_jobs=1)}
    running = [Work(1, whole(), limit=10.0), Work(2, whole(), limit=20.0), Work(3, whole(), limit=30.0)]
    found = stream(
        3,
        *running,
        Work(4, whole(cpus=3), limit=10.0),
        Work(5, whole(cpus=2), limit=10.0),
        policy=Policy(reservations=3),
    )
    assert [(r.job_id, r.at) for r in found.reserved] == [(4, 10.0)]
    found = stream(
        3,
        *running,
        Work(4, whole(cpus=2), limit=10.0),
        Work(5, share(8, cpus=2), limit=10.0),
        policy=Policy(reservations=3),
    )
    assert [(r.job_id, r.at) for r in found.reserved] == [(4, 10.0), (5, 20.0)]
    come(found, Work(6, cpu(1), limit=5.0), Work(7, cpu(1), limit=25.0), at=0.0)
    assert 6 in found.started and 7 not in found.started
    found = stream(
        3,
        *running,
        Work(4, whole(), limit=10.0, queue="one"),
        Work(5, share(8), limit=10.0, queue="one"),
        policy=Policy(reservations=3),
        queues=queues,
    )
    assert holders(found) == [4]


def test_fifo_lets_nothing_pass_but_what_waits_for_other_things_blocks_nobody() -> None:
    queues = {
        "shut": Queue("shut", paused=True),
        "full": Queue("full", max_jobs=0),
        "lost": Queue("lost", gpus=frozenset()),
    }
    policy = Policy(order=Order.FIFO)
    blocked = [Work(n, whole(), queue=name) for n, name in enumerate(queues, 1)]
    array = [Work(4, cpu(1), array=(4, 1)), Work(5, cpu(1), array=(4, 1))]
    others = [Work(6, whole(2)), Work(7, whole(2)), Work(8, cpu(1)), Work(9, cpu(1), priority=-1)]
    found = stream(4, *blocked, *array, *others, policy=policy, queues=queues)
    assert sorted(found.started) == [4, 6, 7, 8, 9]
    found = stream(3, *blocked, *array, *others, policy=policy, queues=queues)
    assert sorted(found.started) == [4, 6]
    assert not found.reserved


def test_a_job_for_all_gpus_is_not_starved_by_later_small_ones_that_have_reservations() -> None:
    """Several may have one, each on GPUs of its own. A job that gets none, because those ahead of it have reserved too
    much, would be passed for ever by later ones that are content with what is left."""
    for most in (1, 2, RESERVATIONS):
        found = Stream({f"GPU-{n}": 8 for n in range(4)}, Policy(reservations=most))
        first = [Work(n, share(5 + n % 4), limit=10.0, lasts=7.0 + n % 3) for n in range(1, 8)]
        later = [
            Work(n, share(5 + n % 4), when, when, limit=10.0, lasts=7.0 + n * 7 % 4)
            for n, when in ((n, (n - 8) * 2.0) for n in range(9, 60))
        ]
        found.run([*first, Work(8, whole(4), 1.0, 1.0, limit=10.0), *later])
        assert found.started[8] <= 30.0, f"with {most} reservations"


def test_a_job_that_would_delay_one_is_not_passed_by_later_reservations() -> None:
    """Job 3 has room, and would delay job 2. If job 4 had a reservation, it would go ahead of job 3 for good."""
    works = [
        Work(1, whole(3), limit=10.0),
        Work(2, whole(2, cpus=4), limit=10.0),
        Work(3, whole(1, cpus=1), limit=50.0),
        Work(4, whole(2), limit=10.0),
    ]
    assert holders(stream(4, *works, policy=Policy(reservations=4))) == [2]


def test_small_jobs_of_a_queue_do_not_pass_its_first_for_ever() -> None:
    """A queue of two GPUs; jobs of one GPU come all the time, and one that needs both."""
    queues = {"two": Queue("two", max_gpus=2)}
    stream = Stream({f"GPU-{n}": 24 for n in range(4)}, Policy(reservations=8), queues)
    small = [Work(10 * n, whole(), 4.0 * n, 4.0 * n, limit=10.0, lasts=10.0, queue="two") for n in range(1, 100)]
    stream.run([*small, Work(51, whole(2), 20.0, 20.0, limit=10.0, lasts=10.0, queue="two")])
    assert stream.started[51] <= 50.0


def test_who_is_over_in_time_or_leaves_enough_passes_the_first_of_its_queue() -> None:
    queue = {"q": Queue("q", max_gpus=3)}
    ongoing = [Ongoing(1, ends=100.0, gpus=2, queue="q")]
    gpus = [card(n, 24, [Claim(1, 1, f"GPU-{n}", None)] if n < 2 else []) for n in range(6)]

    def starts(*others: tuple[Request, float], elsewhere: bool = False) -> set[int]:
        groups = {GroupKey(0, 1, whole(2), queue="q"): Line.of([2], length=50.0)}
        for job_id, (request, length) in enumerate(others, 3):
            key = GroupKey(0, 1, request, queue="default" if elsewhere else "q")
            groups.setdefault(key, Line()).add(job_id, 0.0, length)
        return {start.job_id for start in plan(Snapshot(groups, HOST, queues=queue, ongoing=ongoing), gpus).starts}

    assert starts((whole(1), 100.0)) == {3}, "it is over when the first can start"
    assert starts((whole(1), 101.0)) == {3}, "one GPU is left beside it"
    assert starts((share(4), inf), (whole(1), inf)) == {3}, "but only one"
    assert starts((whole(1), inf), (whole(1), 100.0)) == {3}
    assert starts((whole(2), inf), elsewhere=True) == {3}, "that is another queue"
    queue["q"] = Queue("q", max_gpus=2)
    assert starts((whole(1), 100.0)) == set(), "the queue is full"
    ongoing[0] = Ongoing(1, ends=100.0, gpus=1, queue="q")
    assert starts((whole(1), 101.0)) == set() and starts((whole(1), 100.0), (cpu(), inf)) == {3, 4}
    assert starts((whole(1), 101.0), (whole(1), 99.0)) == {4}, "of jobs that are alike the short one passes"
