"""What neighbours' claims leave of a GPU: against an oracle that follows each byte of each process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import Claim, GiB, GpuProcess, Host, MiB, Reason, Request
from gpuq.policy import neighbours
from gpuq.policy.explain import gpu_verdict, neighbour_lines, why_not
from gpuq.policy.fleet import Fleet
from gpuq.policy.neighbours import NeighbourClaim
from tests.policy.build import HOST, SETTINGS, Card, mine, reading

MARGIN = SETTINGS.margin
TOTAL = 24 * GiB
ALICE, BOB = 1001, 1002


def theirs(size: int | None, supervisor: int | None = 500, uid: int = ALICE, **more: Any) -> NeighbourClaim:
    name = {ALICE: "alice", BOB: "bob"}[uid]
    return NeighbourClaim(uid, name, "GPU-0", size, supervisor, **more)


def process(used: int | None, *lineage: int, uid: int | None = ALICE, pid: int = 600) -> GpuProcess:
    return GpuProcess(pid, used, compute=True, graphics=False, uid=uid, lineage=(pid, *lineage))


def card(*claims: NeighbourClaim, ours: tuple[Claim, ...] = (), host: Host = HOST) -> Card:
    found = Card(*ours, host=host)
    found.neighbours = {"GPU-0": claims}
    return found


def test_a_claim_counts_in_full_until_it_is_allocated_and_once_after() -> None:
    one = card(theirs(10 * GiB))
    assert one.see(reading(), 0).headroom == 14 * GiB - MARGIN
    assert one.see(reading(0, process(4 * GiB, 500)), 1).headroom == 14 * GiB - MARGIN
    full = one.see(reading(0, process(10 * GiB, 500)), 2)
    assert (full.headroom, full.foreign, full.promised) == (14 * GiB - MARGIN, 10 * GiB, 0)
    over = one.see(reading(0, process(12 * GiB, 500)), 3)
    assert (over.headroom, over.foreign, over.promised) == (12 * GiB - MARGIN, 12 * GiB, 0)


def test_what_a_claim_covered_is_free_as_soon_as_the_claim_is_gone() -> None:
    one = card(theirs(10 * GiB))
    one.see(reading(0, process(10 * GiB, 500)), 100)
    one.neighbours = {}
    assert one.see(reading(), 101).headroom == TOTAL - MARGIN
    # what was used beyond the claim may come back, as any foreign use
    two = card(theirs(10 * GiB))
    two.see(reading(0, process(13 * GiB, 500)), 100)
    two.neighbours = {}
    assert two.see(reading(), 101).foreign == 3 * GiB


def test_processes_are_known_by_ancestor_session_or_list_and_by_their_user() -> None:
    def left(*processes: GpuProcess, **more: Any) -> int:
        return card(theirs(10 * GiB, **more)).see(reading(0, *processes), 0).promised

    assert left(process(4 * GiB, 550, 500)) == 6 * GiB
    assert left(process(4 * GiB, 700)) == 10 * GiB
    assert left(process(4 * GiB, 700), pids=frozenset({600})) == 6 * GiB
    assert left(process(4 * GiB, uid=None), pids=frozenset({600})) == 6 * GiB  # hidden: its daemon must know
    assert left(process(4 * GiB, 500, uid=BOB)) == 10 * GiB
    assert left(process(4 * GiB, uid=BOB), pids=frozenset({600})) == 10 * GiB
    assert left(process(None, 500)) == 10 * GiB
    assert left(replace(process(4 * GiB, 500), job_id=7)) == 10 * GiB


def test_memory_that_came_or_went_while_the_card_was_read_is_not_taken_for_granted() -> None:
    early, late = process(8 * GiB, 500), process(2 * GiB, 500)
    for before, after in (((), (late,)), ((early,), ()), ((early,), (late,)), ((late,), (early,))):
        now = reading(0, used=0, before=before, after=after)
        (use,) = neighbours.uses([theirs(10 * GiB)], now)
        assert use.used == (2 * GiB if before and after else 0)


def test_an_allocation_while_the_card_is_read_is_not_remembered_as_foreign() -> None:
    one, late = card(theirs(10 * GiB)), process(10 * GiB, 500)
    one.see(reading(0, used=10 * GiB, before=(), after=(late,)), 100)
    assert one.see(reading(0, late), 101).headroom == 14 * GiB - MARGIN


def test_a_whole_gpu_is_left_alone_and_a_whole_job_waits_for_any_claim() -> None:
    whole = card(theirs(None)).see(reading(), 0)
    assert (whole.headroom, whole.whole_free, whole.promised) == (0, False, TOTAL)
    shared = card(theirs(GiB)).see(reading(), 0)
    assert not shared.whole_free
    assert shared.headroom == 23 * GiB - MARGIN


def test_where_nobody_tells_claims_and_foreign_use_are_not_counted_twice() -> None:
    claims = (theirs(6 * GiB), theirs(4 * GiB, 501, BOB))
    used = card(*claims).see(reading(used=9 * GiB, told=False), 0)
    assert (used.headroom, used.promised) == (14 * GiB - MARGIN, GiB)
    more = card(*claims).see(reading(used=12 * GiB, told=False), 0)
    assert more.headroom == 12 * GiB - MARGIN
    inside = card(*claims, host=Host(8, GiB, foreign_pids=True)).see(reading(0, process(9 * GiB, 500)), 0)
    assert inside.headroom == 14 * GiB - MARGIN
    ours = card(*claims, ours=(Claim(1, 1, "GPU-0", 3 * GiB),)).see(reading(told=False), 0)
    assert ours.headroom == 11 * GiB - MARGIN


def test_a_claim_out_of_sight_takes_what_the_others_leave() -> None:
    blind = theirs(5 * GiB, None, BOB, traceable=False)
    now = card(theirs(10 * GiB), blind).see(reading(0, process(4 * GiB, 500), process(3 * GiB, uid=BOB, pid=601)), 0)
    assert now.promised == 6 * GiB + 2 * GiB


def test_who_claims_how_much_is_said() -> None:
    gpu = card(theirs(10 * GiB), theirs(4 * GiB, 501, BOB), theirs(2 * GiB, 502)).see(
        reading(0, process(1 * GiB, 500)), 0
    )
    assert neighbour_lines(gpu) == [
        "alice's gpuq claims 11GiB on GPU 0 that it has not allocated yet",
        "bob's gpuq claims 4GiB on GPU 0 that it has not allocated yet",
    ]
    verdict = why_not(Request(1, 20 * GiB, 0, 0), Fleet([gpu]), HOST, 0, 0, None)
    assert verdict.reason is Reason.FOREIGN_USE
    assert "alice's gpuq claims 11GiB on GPU 0" in verdict.text
    whole = card(theirs(None)).see(reading(), 0)
    assert gpu_verdict(Request(1, GiB, 0, 0), whole) == "alice's gpuq has the whole GPU"
    assert (
        "alice's gpuq claims the whole GPU 0" in why_not(Request(1, GiB, 0, 0), Fleet([whole]), HOST, 0, 0, None).text
    )
    assert gpu_verdict(Request(1, None, 0, 0), gpu) == "claimed by alice, bob's gpuq"
    idle = card(theirs(10 * GiB)).see(reading(), 0)
    assert "0B on GPU" not in why_not(Request(1, 20 * GiB, 0, 0), Fleet([idle]), HOST, 0, 0, None).text


# --- properties -----------------------------------------------------------------------------------

SIZES = st.integers(0, 12 * GiB)
CLAIMS = st.lists(st.tuples(SIZES, st.sampled_from([ALICE, BOB])), max_size=4)
#: which claim it belongs to (or none), what it used before, at, and after the moment of `used`
PROCESSES = st.lists(st.tuples(st.integers(-1, 3), SIZES, SIZES, SIZES), max_size=6)


@given(CLAIMS, PROCESSES, st.integers(0, 3))
def test_no_neighbour_can_grow_into_what_is_offered(
    claims: list[tuple[int, int]], processes: list[tuple[int, int, int, int]], extra: int
) -> None:
    """Every neighbour allocates all of its claim after the reading, nobody else moves, and the headroom is still there.

    The oracle knows what each process used at the very moment of `used`, which the ledger only sees bracketed.
    """
    held = [theirs(size, 500 + n, uid) for n, (size, uid) in enumerate(claims)]
    before, after, at_used = [], [], [0] * len(held)
    others = extra * GiB
    for n, (whose, first, now, last) in enumerate(processes):
        mine_ = whose if 0 <= whose < len(held) else -1
        uid = held[mine_].uid if mine_ >= 0 else 4000
        family = (500 + mine_,) if mine_ >= 0 else (900,)
        before.append(process(first, *family, uid=uid, pid=600 + n))
        after.append(process(last, *family, uid=uid, pid=600 + n))
        # memory moves one way while a card is read
        now = sorted((first, now, last))[1]
        if mine_ >= 0:
            at_used[mine_] += now
        else:
            others += now
    used = others + sum(at_used)
    gpu = card(*held).see(reading(0, total=200 * GiB, used=used, before=tuple(before), after=tuple(after)), 0)
    grown = others + sum(max(size, now) for (size, _), now in zip(claims, at_used, strict=True))
    assert gpu.headroom <= 200 * GiB - MARGIN - grown
    if all(first == last for _, first, _, last in processes):
        assert gpu.headroom == 200 * GiB - MARGIN - grown


@given(CLAIMS, st.lists(SIZES, max_size=4), SIZES)
def test_more_claims_never_mean_more_headroom(claims: list[tuple[int, int]], uses: list[int], size: int) -> None:
    held = [theirs(size, 500 + n, uid) for n, (size, uid) in enumerate(claims)]
    pairs = enumerate(zip(held, uses, strict=False))
    running = [process(used, 500 + n, uid=claim.uid, pid=600 + n) for n, (claim, used) in pairs]
    for told in (True, False):
        now = reading(0, *running, mine(1, 100 * MiB), total=200 * GiB, told=told)
        fewer = card(*held).see(now, 0)
        more = card(*held, theirs(size, 990)).see(now, 0)
        assert more.headroom <= fewer.headroom <= 200 * GiB - MARGIN - fewer.foreign
