"""Placement and claims with a real daemon: who shares a card, who waits, what was used, and who used too much."""

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fakenvml import FakeNvml, FakeProcess, fake_gpus
from tests.harness import Box, wait_until

GiB = 1024**3
MARGIN = 256 * 1024**2
#: A pid that is no process here: Linux gives none so large (proc(5), pid_max).
STRANGER = 2**22 + 1
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture
def card(box: Box, nvml: FakeNvml) -> FakeNvml:
    """One GPU of 24 GiB, read often; foreign use is soon forgotten."""
    box.setenv(GPUQ_READING_INTERVAL="0.1s", GPUQ_FOREIGN_WINDOW="1s", GPUQ_SETTLE="0.2s")
    nvml.set(gpus=fake_gpus(24 * GiB))
    return nvml


def until(gate: Path) -> str:
    """Shell that waits for a file."""
    return f'while [ ! -e "{gate}" ]; do sleep 0.02; done'


def gpu(box: Box, index: int = 0) -> dict[str, Any]:
    found = box.request("gpus")["gpus"][index]
    assert isinstance(found, dict)
    return found


def peaks(box: Box, job: int, size: int) -> None:
    """Wait until so much was seen in use by a job."""
    wait_until(lambda: box.job(job)["peak_vram_bytes"] == size, f"job {job}'s peak")


def share(box: Box, size: int, *command: str, gpus: int = 1, **more: Any) -> int:
    return box.submit(*command, gpus=gpus, vram=size * GiB, **more)


def events(box: Box, kind: str) -> list[tuple[int, str]]:
    """Job and note of every event of a kind."""
    return [(e["job"], e["data"].get("note", "")) for e in box.request("events")["events"] if e["kind"] == kind]


# --- sharing --------------------------------------------------------------------------------------


def test_two_jobs_share_a_card_and_a_third_waits_with_its_numbers(box: Box, card: FakeNvml) -> None:
    gates = [box.folder / "first", box.folder / "second"]
    pair = [share(box, 10, *card.allocate("10GiB", until=gate)) for gate in gates]
    for job in pair:
        peaks(box, job, 10 * GiB)
    third = share(box, 10, "true")
    assert box.reason(third) == (
        "Resources",
        "asks for 1 GPU with 10GiB; 0 of 1 GPUs fit now, most headroom 3.8GiB",
    )
    explained = box.request("why", sel={"ranges": [[third, third]]})["explanations"][0]
    assert explained["position"] == 1
    (numbers,) = explained["gpus"]
    assert (numbers["claimed_bytes"], numbers["headroom_bytes"], numbers["jobs"]) == (20 * GiB, 4 * GiB - MARGIN, pair)
    assert numbers["verdict"] == "6.2GiB too little"
    gates[0].touch()
    ended = box.wait(third)
    assert ended["state"] == "succeeded"
    assert box.job(pair[1])["state"] == "running"  # and it need not end for that
    assert ended["started_at"] >= box.job(pair[0])["ended_at"]
    gates[1].touch()
    box.wait(*pair)
    assert gpu(box)["claimed_bytes"] == 0


def test_a_late_allocation_cannot_collide(box: Box, card: FakeNvml) -> None:
    allocate, gate = box.folder / "allocate", box.folder / "go"
    first = share(box, 16, *card.allocate("16GiB", after=allocate, until=gate))
    box.wait_state(first, "running")
    assert gpu(box)["used_bytes"] == 0  # the card looks empty, and is not
    second = share(box, 16, *card.allocate("16GiB"))
    assert box.reason(second)[0] == "Resources"
    allocate.touch()
    peaks(box, first, 16 * GiB)
    assert box.reason(second)[0] == "Resources"
    gate.touch()
    assert box.wait(second)["started_at"] >= box.job(first)["ended_at"]
    assert [box.job(job)["state"] for job in (first, second)] == ["succeeded"] * 2


def test_jobs_on_several_gpus_claim_on_each(box: Box, card: FakeNvml) -> None:
    card.set(gpus=fake_gpus(24 * GiB, 24 * GiB, 24 * GiB))
    gate, other = box.folder / "go", box.folder / "other"
    pair = share(box, 14, *card.allocate("12GiB", where="all-visible", until=gate), gpus=2)
    peaks(box, pair, 12 * GiB)
    assert box.job(pair)["gpu_indexes"] == [0, 1]
    (attempt,) = box.job(pair)["attempts"]
    assert [(claim["declared_bytes"], claim["peak_bytes"]) for claim in attempt["claims"]] == [
        (14 * GiB, 12 * GiB),
        (14 * GiB, 12 * GiB),
    ]
    two = share(box, 14, "true", gpus=2)
    assert box.reason(two) == (
        "Resources",
        "asks for 2 GPUs with 14GiB each; 1 of 3 GPUs fit now, most headroom 23.8GiB",
    )
    whole = box.wait_state(box.submit("sh", "-c", until(other), gpus=1), "running")
    assert whole["gpu_indexes"] == [2]
    assert box.reason(two)[0] == "Resources"
    other.touch()
    gate.touch()
    assert box.wait(two, pair, whole["id"])["state"] == "succeeded"


@pytest.mark.usefixtures("card")
def test_whole_gpus_and_shares_exclude_each_other(box: Box) -> None:
    first_gate, whole_gate = box.folder / "first", box.folder / "whole"
    first = share(box, 1, "sh", "-c", until(first_gate))
    box.wait_state(first, "running")
    whole = box.submit("sh", "-c", until(whole_gate), gpus=1)
    assert box.reason(whole) == ("Resources", "asks for 1 whole GPU; 0 of 1 GPUs fit now")
    assert box.request("why", sel={"ranges": [[whole, whole]]})["explanations"][0]["gpus"][0]["verdict"] == (
        f"claimed by job {first}"
    )
    first_gate.touch()
    box.wait_state(whole, "running")
    assert (gpu(box)["claimed_bytes"], gpu(box)["headroom_bytes"]) == (24 * GiB, 0)
    small = share(box, 1, "true")
    assert box.reason(small)[0] == "Resources"
    assert box.request("why", sel={"ranges": [[small, small]]})["explanations"][0]["gpus"][0]["verdict"] == (
        f"job {whole} has the whole GPU"
    )
    whole_gate.touch()
    assert box.wait(small)["started_at"] >= box.job(whole)["ended_at"]


@pytest.mark.usefixtures("card")
def test_small_jobs_pass_a_large_one_and_priority_goes_first(box: Box) -> None:
    gate = box.folder / "go"
    first = share(box, 16, "sh", "-c", until(gate))
    box.wait_state(first, "running")
    order = box.folder / "order"
    low = share(box, 20, "sh", "-c", f'echo low >> "{order}"')
    high = share(box, 20, "sh", "-c", f'echo high >> "{order}"', priority=5)
    small = share(box, 4 - 1, "true")
    assert box.wait(small)["state"] == "succeeded"
    assert [box.job(job)["state"] for job in (low, high)] == ["queued"] * 2
    gate.touch()
    box.wait(low, high)
    assert order.read_text() == "high\nlow\n"


# --- who used what --------------------------------------------------------------------------------


def test_all_processes_of_a_job_are_its_own(box: Box, card: FakeNvml) -> None:
    gate = box.folder / "go"
    holds = shlex.join(card.allocate("2GiB", until=gate))
    # a child, a grandchild whose parents are gone, and one in a session of its own
    script = f"{holds} & (({holds} &) &) ; setsid {holds} & {until(gate)}; wait"
    job = share(box, 8, "sh", "-c", script)
    peaks(box, job, 6 * GiB)
    (claim,) = box.job(job)["attempts"][0]["claims"]
    assert (claim["declared_bytes"], claim["peak_bytes"], claim["used_bytes"]) == (8 * GiB, 6 * GiB, 6 * GiB)
    shown = gpu(box)
    assert (shown["used_bytes"], shown["foreign_bytes"], shown["processes"]) == (6 * GiB, 0, [])
    card.add_process(0, FakeProcess(STRANGER, 3 * GiB))
    assert gpu(box)["foreign_bytes"] == 3 * GiB
    gate.touch()
    ended = box.wait(job)
    assert (ended["state"], ended["peak_vram_bytes"], ended["over_claim"]) == ("succeeded", 6 * GiB, False)


def test_each_attempt_has_its_own_peak(box: Box, card: FakeNvml) -> None:
    sizes, gate = box.folder / "size", box.folder / "go"
    large, small = (shlex.join(card.allocate(size, until=gate)) for size in ("7GiB", "3GiB"))
    job = share(box, 8, "sh", "-c", f'if [ -e "{sizes}" ]; then exec {small}; else exec {large}; fi')
    peaks(box, job, 7 * GiB)
    gate.touch()
    box.wait(job)
    gate.unlink()
    sizes.touch()
    box.request("retry", sel={"ranges": [[job, job]]})
    peaks(box, job, 3 * GiB)
    gate.touch()
    box.wait(job)
    attempts = box.job(job)["attempts"]
    assert [a["claims"][0]["peak_bytes"] for a in attempts] == [7 * GiB, 3 * GiB]


def test_over_use_is_told_at_once_and_counts(box: Box, card: FakeNvml) -> None:
    gate, neighbours = box.folder / "go", box.folder / "neighbours"
    greedy = share(box, 4, *card.allocate("10GiB", until=gate))
    listed = wait_until(lambda: (job := box.request("list", sel={})["jobs"][0])["over_claim"] and job, "the telling")
    assert (listed["id"], listed["state"]) == (greedy, "running")
    assert listed["note"] == "used 10GiB of the 4GiB it claimed on GPU 0"
    shown = gpu(box)
    assert (shown["claimed_bytes"], shown["headroom_bytes"]) == (10 * GiB, 14 * GiB - MARGIN)
    beside = share(box, 15, "true")  # would have fitted beside the claim
    assert box.reason(beside)[0] == "Resources"
    fits = share(box, 13, "sh", "-c", until(neighbours))
    box.wait_state(fits, "running")
    assert box.job(beside)["state"] == "queued"
    gate.touch()
    neighbours.touch()
    assert box.wait(greedy)["state"] == "succeeded"
    assert box.wait(beside)["state"] == "succeeded"
    assert box.job(greedy)["over_claim"]
    assert events(box, "over-claim") == [(greedy, "used 10GiB of the 4GiB it claimed on GPU 0")]


def test_over_use_ends_the_job_where_the_settings_say_so(box: Box, card: FakeNvml) -> None:
    box.setenv(GPUQ_OVER_CLAIM="kill")
    gate, never = box.folder / "go", box.folder / "never"
    neighbour = share(box, 10, *card.allocate("10GiB", until=gate))
    peaks(box, neighbour, 10 * GiB)
    greedy = box.wait(share(box, 4, *card.allocate("5GiB", until=never)))
    assert (greedy["state"], greedy["failure"]) == ("failed", "over-memory")
    assert greedy["note"] == "used 5GiB of the 4GiB it claimed on GPU 0"
    assert box.job(neighbour)["state"] == "running"
    gate.touch()
    assert box.wait(neighbour)["state"] == "succeeded"


def test_a_neighbours_out_of_memory_names_who_used_too_much(box: Box, card: FakeNvml) -> None:
    gate = box.folder / "go"
    greedy = share(box, 4, *card.allocate("22GiB", until=gate))
    peaks(box, greedy, 22 * GiB)
    alone = box.wait(share(box, 1, "sh", "-c", f"echo '{OOM}'; exit 1"))
    assert (alone["state"], alone["failure"], alone["exit_code"]) == ("failed", "vram-oom", 1)
    assert alone["note"] == f"{OOM} (job {greedy} used 22GiB of the 4GiB it claimed on GPU 0)"
    survived = box.wait(share(box, 1, "sh", "-c", f"echo '{OOM}'"))
    assert (survived["state"], survived["failure"], survived["note"]) == ("succeeded", None, None)
    gate.touch()
    box.wait(greedy)
    nobody = box.wait(share(box, 1, "sh", "-c", f"echo '{OOM}'; exit 1"))
    assert (nobody["failure"], nobody["note"]) == ("vram-oom", OOM)


def test_an_out_of_memory_names_who_used_too_much_between_two_readings(box: Box, card: FakeNvml) -> None:
    box.setenv(GPUQ_READING_INTERVAL="1h")
    allocate, gate, full = box.folder / "allocate", box.folder / "go", box.folder / "full"
    greedy = share(box, 4, *card.allocate("20GiB", after=allocate, until=gate))
    victim = share(box, 15, "sh", "-c", f"{until(full)}; echo '{OOM}'; exit 1")
    for job in (greedy, victim):
        box.wait_state(job, "running")
    allocate.touch()
    log = Path(box.job(greedy)["log_path"])
    wait_until(lambda: log.exists() and log.read_text() == "allocated\n", "the allocation")
    full.touch()
    ended = box.wait(victim)
    assert ended["note"] == f"{OOM} (job {greedy} used 20GiB of the 4GiB it claimed on GPU 0)"
    assert events(box, "over-claim") == [(greedy, "used 20GiB of the 4GiB it claimed on GPU 0")]
    gate.touch()
    box.wait(greedy)


def test_an_out_of_memory_is_told_while_the_driver_is_silent(box: Box, card: FakeNvml) -> None:
    box.setenv(GPUQ_NVML_PATIENCE="0.2s")
    gate = box.folder / "go"
    victim = share(box, 15, "sh", "-c", f"{until(gate)}; echo '{OOM}'; exit 1")
    box.wait_state(victim, "running")
    card.change(0, hang=30)
    gate.touch()
    assert box.wait(victim)["failure"] == "vram-oom"
    card.change(0, hang=0)


def test_foreign_use_of_claimed_memory_stops_starts_and_nothing_else(box: Box, card: FakeNvml) -> None:
    gate, late = box.folder / "go", box.folder / "late"
    runs = share(box, 16, *card.allocate("6GiB", after=late, until=gate))
    box.wait_state(runs, "running")
    card.add_process(0, FakeProcess(STRANGER, 10 * GiB))
    waits = share(box, 1, "true")
    assert box.reason(waits) == (
        "ForeignUse",
        "asks for 1 GPU with 1GiB; 0 of 1 GPUs fit now, 1 without foreign use (10GiB on GPU 0)",
    )
    late.touch()
    peaks(box, runs, 6 * GiB)
    assert (box.job(runs)["state"], box.job(waits)["state"]) == ("running", "queued")
    assert box.reason(waits)[0] == "ForeignUse"
    card.remove_process(0, STRANGER)
    assert box.wait(waits)["state"] == "succeeded"
    assert box.job(runs)["state"] == "running"
    gate.touch()
    assert box.wait(runs)["state"] == "succeeded"


# --- the daemon dies ------------------------------------------------------------------------------


def test_claims_and_peaks_outlive_the_daemon(box: Box, card: FakeNvml) -> None:
    late, grow, gate = box.folder / "late", box.folder / "grow", box.folder / "go"
    more = shlex.join(card.allocate("1GiB", after=grow, until=gate))
    greedy = share(box, 4, "sh", "-c", f"{more} & {shlex.join(card.allocate('6GiB', until=gate))}; wait")
    peaks(box, greedy, 6 * GiB)
    quiet = share(box, 15, *card.allocate("15GiB", after=late, until=gate))
    box.wait_begun(quiet)
    box.kill_daemon()
    grow.touch()
    wait_until(lambda: len([path for path in (card.folder / "box.d").iterdir() if path.name.isdigit()]) == 2)
    waits = share(box, 4, "true")  # beside what is used there would be room
    assert box.reason(waits)[0] == "Resources"
    shown = gpu(box)
    assert (shown["jobs"], shown["claimed_bytes"]) == ([greedy, quiet], 22 * GiB)
    assert box.job(greedy)["peak_vram_bytes"] == 7 * GiB
    assert box.job(greedy)["over_claim"]
    late.touch()
    peaks(box, quiet, 15 * GiB)
    assert gpu(box)["foreign_bytes"] == 0  # they are still known for ours
    box.kill_daemon()
    assert box.reason(waits)[0] == "Resources"
    gate.touch()
    assert box.wait(waits, greedy, quiet)["state"] == "succeeded"
    assert [box.job(job)["peak_vram_bytes"] for job in (greedy, quiet)] == [7 * GiB, 15 * GiB]
    assert events(box, "over-claim") == [(greedy, "used 6GiB of the 4GiB it claimed on GPU 0")]


def test_over_use_that_was_only_told_ends_the_job_under_a_daemon_that_is_to_kill(box: Box, card: FakeNvml) -> None:
    greedy = share(box, 4, *card.allocate("6GiB", until=box.folder / "never"))
    peaks(box, greedy, 6 * GiB)
    box.kill_daemon()
    box.setenv(GPUQ_OVER_CLAIM="kill")
    ended = box.wait(greedy)
    assert (ended["failure"], ended["note"]) == ("over-memory", "used 6GiB of the 4GiB it claimed on GPU 0")


def test_a_claim_holds_until_what_a_vanished_supervisor_left_is_gone(box: Box, card: FakeNvml) -> None:
    box.setenv(GPUQ_GRACE="3s")
    said, gate = box.folder / "supervisor", box.folder / "go"
    stubborn = f'trap "" TERM; {shlex.join(card.allocate("16GiB", until=gate))} & echo $PPID > {said}; {until(gate)}'
    lost = share(box, 16, "sh", "-c", stubborn)
    peaks(box, lost, 16 * GiB)
    waits = share(box, 16, "true")
    os.kill(int(said.read_text()), signal.SIGKILL)
    neighbour = share(box, 1, "sh", "-c", until(gate))
    box.wait_state(neighbour, "running")
    assert (box.job(lost)["state"], gpu(box)["foreign_bytes"]) == ("running", 0)
    box.request("cancel", sel={"ranges": [[lost, lost]]})  # it has no supervisor to be told, and others have
    ended = box.wait(lost)
    assert (ended["failure"], ended["exit_code"]) == (None, None)
    assert box.wait(waits)["started_at"] >= ended["ended_at"]
    assert box.job(neighbour)["state"] == "running"
    gate.touch()
    assert box.wait(neighbour)["state"] == "succeeded"


# --- simulated GPUs -------------------------------------------------------------------------------


def test_simulated_jobs_show_their_peak_and_die_as_cuda_does(sim: Box) -> None:
    sim.setenv(GPUQ_READING_INTERVAL="0.1s")
    job = [sys.executable, "-m", "gpuq", "sim-job", "--ramp", "0.3s", "--vram"]
    fine = share(sim, 12, *job, "10GiB", "--for", "1s")
    greedy = share(sim, 12, *job, "30GiB", "--for", "60s")
    assert sim.wait(fine)["state"] == "succeeded"
    assert sim.job(fine)["peak_vram_bytes"] == 10 * GiB
    ended = sim.wait(greedy)
    assert (ended["state"], ended["failure"]) == ("failed", "vram-oom")
    assert "CUDA out of memory" in ended["note"]
    whole = share(sim, 12, *job, "1GiB", "--for", "0.5s", gpus=2)
    both = sim.submit("true", gpus=2)
    assert sim.reason(both)[0] == "Resources"
    assert sim.wait(both)["started_at"] >= sim.job(whole)["ended_at"]


# --- many -----------------------------------------------------------------------------------------


def test_no_instant_has_more_claims_on_a_card_than_fit(box: Box, card: FakeNvml) -> None:
    """Sixty jobs over four cards, each allocating all of its claim, late."""
    totals = [8, 16, 24, 48]
    card.set(gpus=fake_gpus(*(size * GiB for size in totals)))
    dice = random.Random(20240607)
    jobs = []
    for number in range(60):
        gpus = 2 if number % 6 == 0 else 1
        size = dice.randint(1, 15 if gpus == 2 else 20)
        after, until = box.folder / f"{number}.after", box.folder / f"{number}.until"
        gates = f"sleep {dice.uniform(0, 0.1):.3f}; touch {after}; sleep {dice.uniform(0, 0.2):.3f}; touch {until}"
        holds = shlex.join(card.allocate(f"{size}GiB", where="all-visible", after=after, until=until))
        jobs.append(share(box, size, "sh", "-c", f"({gates}) & exec {holds}", gpus=gpus))
    box.wait(*jobs)
    views = [box.job(job) for job in jobs]
    assert {job["state"] for job in views} == {"succeeded"}
    shared = 0
    for uuid, total in zip((gpu.uuid for gpu in card.box.gpus), totals, strict=True):
        here = [(instant(j["started_at"]), instant(j["ended_at"]), j["vram_bytes"]) for j in views if uuid in j["gpus"]]
        for moment, _, _ in here:
            claims = [size for start, end, size in here if start <= moment < end]
            assert sum(claims) <= total * GiB - MARGIN
            shared += len(claims) > 1
    assert shared, "nothing was ever shared: this would prove nothing"
    assert [gpu(box, index)["claimed_bytes"] for index in range(4)] == [0] * 4


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
