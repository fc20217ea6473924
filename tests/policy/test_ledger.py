"""The ledger: headroom from readings and claims, in every situation that section 7 of the design names."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from hypothesis import given
from hypothesis import strategies as st

from gpuq.model import Claim, GiB, Host, MiB
from gpuq.policy import ledger
from tests.policy.build import HOST, SETTINGS, Card, make_gpu, mine, reading, readings, stranger

MARGIN = SETTINGS.margin


def claim(job_id: int, size: int | None, peak: int = 0) -> Claim:
    return Claim(job_id, 1, "GPU-0", size, peak)


def test_an_idle_card_offers_all_but_the_margin() -> None:
    gpu = Card().see(reading(), 0)
    assert gpu.headroom == 24 * GiB - MARGIN
    assert gpu.whole_free


def test_a_claim_counts_in_full_before_anything_is_allocated() -> None:
    gpu = Card(claim(1, 10 * GiB)).see(reading(), 0)
    assert gpu.headroom == 14 * GiB - MARGIN
    assert not gpu.whole_free


def test_allocating_within_the_claim_changes_nothing() -> None:
    card = Card(claim(1, 10 * GiB))
    empty = card.see(reading(), 0)
    full = card.see(reading(0, mine(1, 10 * GiB)), 100)
    assert empty.headroom == full.headroom
    assert full.foreign == 0


def test_a_peak_over_the_claim_counts_instead_of_it() -> None:
    gpu = Card(claim(1, 10 * GiB, peak=13 * GiB)).see(reading(0, mine(1, 2 * GiB)), 0)
    assert gpu.headroom == 11 * GiB - MARGIN
    assert gpu.claims[0].over
    assert not claim(1, 10 * GiB, peak=10 * GiB).over


def test_a_whole_claim_leaves_no_headroom_and_is_never_over() -> None:
    gpu = Card(claim(1, None, peak=20 * GiB)).see(reading(0, mine(1, 20 * GiB)), 0)
    assert gpu.headroom == 0
    assert gpu.claimed == gpu.total
    assert not gpu.claims[0].over


def test_a_card_full_with_no_visible_process_is_full() -> None:
    gpu = Card().see(reading(used=23 * GiB), 0)
    assert gpu.foreign == 23 * GiB
    assert gpu.headroom == 1 * GiB - MARGIN
    assert not gpu.whole_free


def test_headroom_goes_negative_when_foreign_use_arrives_on_claimed_memory() -> None:
    gpu = Card(claim(1, 20 * GiB)).see(reading(0, mine(1, 1 * GiB), stranger(10 * GiB)), 0)
    assert gpu.headroom < 0


def test_foreign_use_counts_as_its_peak_over_the_window() -> None:
    card = Card()
    card.see(reading(0, stranger(8 * GiB)), 100)
    assert card.see(reading(0, stranger(1 * GiB)), 105).foreign == 8 * GiB
    assert card.see(reading(0, stranger(1 * GiB)), 110).foreign == 8 * GiB
    assert card.see(reading(0, stranger(1 * GiB)), 110.1).foreign == 1 * GiB


def test_readings_near_a_start_or_exit_leave_no_peak_but_count_now() -> None:
    card = Card()
    card.disturb(100)
    # the process is gone from the list, its memory is not free yet
    assert card.see(reading(used=9 * GiB), 101).foreign == 9 * GiB
    assert card.see(reading(used=0), 101.5).foreign == 0
    assert card.see(reading(used=5 * GiB), 102).foreign == 5 * GiB
    assert card.see(reading(used=0), 103).foreign == 5 * GiB


def test_ours_is_the_larger_of_the_lists_before_and_after() -> None:
    card = Card(claim(1, 10 * GiB))
    ended = reading(0, used=6 * GiB, before=(mine(1, 6 * GiB),), after=())
    assert card.see(ended, 0).foreign == 0
    grew = reading(0, used=6 * GiB, before=(mine(1, 1 * GiB),), after=(mine(1, 6 * GiB),))
    assert card.see(grew, 100).foreign == 0


def test_whole_gpu_conditions() -> None:
    desktop = reading(0, stranger(2 * GiB, compute=False, graphics=True))
    assert Card().see(desktop, 0).whole_free
    browser = reading(0, stranger(2 * GiB, compute=True, graphics=True))
    assert Card().see(browser, 0).whole_free
    worker = reading(0, stranger(1 * MiB))
    assert not Card().see(worker, 0).whole_free
    leftovers = int(24 * GiB * 0.05)
    assert Card().see(reading(used=leftovers), 0).whole_free
    assert not Card().see(reading(used=leftovers + 1), 0).whole_free
    small = replace(reading(used=512 * MiB), total=4 * GiB)
    assert Card().see(small, 0).whole_free


def test_graphics_memory_still_narrows_what_can_be_claimed() -> None:
    gpu = Card().see(reading(0, stranger(2 * GiB, compute=False, graphics=True)), 0)
    assert gpu.headroom == 22 * GiB - MARGIN


def test_where_the_driver_does_not_tell_ours_counts_as_the_claims() -> None:
    card = Card()
    card.see(reading(used=3 * GiB, told=False), 0)  # before our first job: 3 GiB are foreign
    card.claims = [claim(1, 10 * GiB)]
    card.disturb(100)
    gpu = card.see(reading(used=3 * GiB, told=False), 110)
    assert gpu.foreign == 3 * GiB
    assert gpu.headroom == 11 * GiB - MARGIN
    allocated = card.see(reading(used=13 * GiB, told=False), 120)
    assert allocated.foreign == 3 * GiB
    assert allocated.headroom == 11 * GiB - MARGIN
    arrived = card.see(reading(used=18 * GiB, told=False), 140)
    assert arrived.foreign == 8 * GiB
    assert arrived.headroom == 6 * GiB - MARGIN


def test_untold_headroom_is_what_is_neither_used_nor_kept() -> None:
    """Byte for byte, where claims would leave more."""
    gpu = make_gpu(0, total=1000, margin=100, used=333, foreign=5, told=False)
    assert gpu.headroom == 567
    assert replace(gpu, told=True).headroom == 895


def test_untold_headroom_never_exceeds_what_is_free() -> None:
    card = Card(claim(1, 1 * GiB))
    gpu = card.see(reading(used=20 * GiB, told=False), 0)
    assert gpu.headroom <= 4 * GiB - MARGIN


def test_a_process_of_ours_without_a_figure_is_untold_and_a_foreign_one_is_not() -> None:
    claims = [claim(1, 10 * GiB)]
    assert not ledger.is_told(reading(0, mine(1, None)), claims, HOST)
    assert ledger.is_told(reading(0, mine(1, GiB), stranger(None)), claims, HOST)


def test_another_pid_namespace_is_untold_unless_our_processes_are_seen() -> None:
    container = Host(cpus=8, ram=64 * GiB, foreign_pids=True)
    claims = [claim(1, 10 * GiB)]
    unknown = reading(0, stranger(10 * GiB, pid=31337))
    assert not ledger.is_told(unknown, claims, container)
    assert ledger.is_told(unknown, claims, HOST)
    assert ledger.is_told(unknown, [], container)
    assert ledger.is_told(reading(0, mine(1, GiB)), claims, container)


def test_a_lost_card_has_no_say_and_leaves_its_history_alone() -> None:
    card = Card()
    card.see(reading(0, stranger(8 * GiB)), 100)
    lost = replace(reading(), fault="lost")
    gpu = card.see(lost, 101)
    assert not gpu.whole_free
    assert card.see(reading(), 105).foreign == 8 * GiB


def test_observed_use_is_summed_per_job_and_gpu() -> None:
    two = reading(0, mine(1, 2 * GiB, pid=11), mine(1, 3 * GiB, pid=12), mine(2, 1 * GiB, pid=13), stranger(4 * GiB))
    other = reading(1, mine(1, 7 * GiB, pid=11))
    assert ledger.observed_use(readings(two, other)) == {
        (1, "GPU-0"): 5 * GiB,
        (2, "GPU-0"): 1 * GiB,
        (1, "GPU-1"): 7 * GiB,
    }


SIZES = st.integers(0, 24 * GiB)


@given(
    used=SIZES,
    our_before=SIZES,
    our_after=SIZES,
    claims=st.lists(st.tuples(st.one_of(st.none(), SIZES), SIZES), max_size=4),
    told=st.booleans(),
    earlier=st.lists(SIZES, max_size=5),
)
def test_headroom_is_never_more_than_the_formula_allows(
    used: int,
    our_before: int,
    our_after: int,
    claims: list[tuple[int | None, int]],
    told: bool,
    earlier: list[int],
) -> None:
    card = Card(*(claim(n, size, peak) for n, (size, peak) in enumerate(claims, 1)))
    for second, amount in enumerate(earlier):
        card.see(reading(used=amount), 100 + second)
    now = reading(used=used, before=(mine(1, our_before),), after=(mine(1, our_after),), told=told)
    gpu = card.see(now, 106)
    if any(size is None for size, _ in claims):
        assert gpu.headroom == 0
        return
    entitled = sum(max(size or 0, peak) for size, peak in claims)
    foreign_now = max(0, used - max(our_before, our_after))
    assert gpu.headroom <= 24 * GiB - MARGIN - entitled
    if told:
        assert gpu.headroom <= 24 * GiB - MARGIN - entitled - foreign_now
        assert gpu.foreign >= foreign_now
    else:
        assert gpu.headroom <= 24 * GiB - MARGIN - used
    with_more = gpu.with_claim(claim(9, GiB))
    assert with_more.headroom <= gpu.headroom


#: All that a GPU's state knows besides its fields.
FOLLOWING = [
    name for name in dir(ledger.GpuState) if isinstance(getattr(ledger.GpuState, name), cached_property | property)
]


@given(
    before=st.lists(st.builds(claim, st.integers(1, 3), st.sampled_from([None, GiB, 9 * GiB])), max_size=3),
    more=st.builds(claim, st.integers(4, 5), st.sampled_from([None, GiB, 20 * GiB])),
    foreign=st.sampled_from([0, 3 * GiB]),
)
def test_a_state_with_other_claims_is_as_if_made_anew(before: list[Claim], more: Claim, foreign: int) -> None:
    gpu = make_gpu(claims=tuple(before), foreign=foreign, foreign_besides=foreign, used=foreign)
    for name in FOLLOWING:
        getattr(gpu, name)
    claimed, freed = gpu.with_claim(more), gpu.without(1)
    anew = (replace(gpu, claims=(*before, more)), replace(gpu, claims=tuple(c for c in before if c.job_id != 1)))
    assert (claimed, freed) == anew
    for made, other in zip((claimed, freed), anew, strict=True):
        assert {name: getattr(made, name) for name in FOLLOWING} == {name: getattr(other, name) for name in FOLLOWING}
