"""What `why` says in words, on a terminal and off it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from gpuq.cli.why import describe, start_words


@pytest.fixture(autouse=True)
def _zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC-2")  # two hours east (POSIX, environment variable TZ)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


FIRST, LATER, NEXT_DAY = "2026-11-23T09:10:11Z", "2026-11-23T10:00:00.000Z", "2026-11-24T01:00:00.000Z"


IF = "if the queue stays as it is"
NOBODY = "nobody can say when it starts: what is in its way has no time limit, or does not end by itself"
PROBABLY = "will probably start at 2026-11-23 11:10:11; nobody can say by when: a job before it has no time limit"


@pytest.mark.parametrize(
    ("earliest", "latest", "later_than", "words"),
    [
        (FIRST, FIRST, None, f"starts by 2026-11-23 11:10:11, {IF}"),
        (FIRST, LATER, None, f"starts between 2026-11-23 11:10:11 and 12:00:00, {IF}"),
        (FIRST, NEXT_DAY, None, f"starts between 2026-11-23 11:10:11 and 2026-11-24 03:00:00, {IF}"),
        (FIRST, None, LATER, "starts later than 2026-11-23 12:00:00"),
        (FIRST, None, None, PROBABLY),
        (None, None, None, NOBODY),
    ],
)
def test_when_it_starts(earliest: str | None, latest: str | None, later_than: str | None, words: str) -> None:
    assert start_words({"earliest": earliest, "latest": latest, "later_than": later_than}) == words


def gpu(index: int, verdict: str, reserved_for: int | None = None) -> dict[str, Any]:
    sizes = ("total_bytes", "margin_bytes", "foreign_bytes", "claimed_bytes", "headroom_bytes")
    told = {"index": index, "uuid": f"GPU-{index}", "name": "NVIDIA A100-SXM4-80GB", "verdict": verdict}
    return {**told, **dict.fromkeys(sizes, 79 * 2**30), "reserved_for": reserved_for, "reserved_at": NEXT_DAY}


EXPLAINED: dict[str, Any] = {
    "job": 12,
    "state": "queued",
    "reason": "Reservation",
    "text": "fits now, and would delay job 3, for which GPU 0 and GPU 1 and GPU 2 are reserved",
    "lines": ["asks for 1 whole GPU of type A100|H100 of at least 20GiB, priority 0"],
    "position": 1234,
    "conditions": [
        {"condition": "on this host", "count": 3, "gpus": ["GPU 0", "GPU 1", "GPU 2"]},
        {"condition": "of type A100 or H100", "count": 2, "gpus": ["GPU 0", "GPU 1"]},
        {"condition": "not taken by others", "count": 0, "gpus": []},
        {"condition": "with room beside our running jobs", "count": 0, "gpus": []},
    ],
    "gpus": [gpu(0, "claimed by job 1", 3), gpu(1, "foreign process 4711 computes on it", 3), gpu(2, "fits")],
    "reservation": {"at": LATER, "places": ["GPU 0"]},
    "estimate": {"earliest": FIRST, "latest": LATER, "later_than": None},
    "changes": ["--gpu-type none --gpu-min-memory none --exclude-gpu none", "--time 29m"],
}


def test_it_fits_a_terminal_and_commands_are_whole() -> None:
    text = describe(EXPLAINED, "", 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\n  `gpuq edit 12 --gpu-type none --gpu-min-memory none --exclude-gpu none`\n" in text
    assert "\0" not in text
    assert "GPUs: 3 on this host, 2 of type A100 or H100 (GPU 0, GPU 1), 0 not taken by" in text
    assert "beside our running" not in text, "after the first condition that no GPU passes there is nothing to tell"
    assert "reserved for it: GPU 0, from 2026-11-23 12:00:00 at the latest" in text
    assert " ".join(text.split()).count("reserved for job 3 by 11-24 03:00") == 2


def test_off_a_terminal_nothing_is_wrapped() -> None:
    lines = describe(EXPLAINED).splitlines()
    assert lines[0] == f"job 12 (queued): Reservation: {EXPLAINED['text']}"
    assert lines[1] == "  position 1,234 of those that may start"
    assert lines[6] == (
        "  would start now with --gpu-type none --gpu-min-memory none --exclude-gpu none, or --time 29m: "
        "`gpuq edit 12 --gpu-type none --gpu-min-memory none --exclude-gpu none`"
    )
    assert lines[8].endswith("79GiB     claimed by job 1; reserved for job 3 by 11-24 03:00") and len(lines) == 11


def test_moments_are_told_in_local_time() -> None:
    ran = {"job": 1, "state": "running", "reason": None, "text": f"runs on GPU 0 since {FIRST}", "lines": ["so it is"]}
    assert describe(ran) == "job 1 (running): runs on GPU 0 since 2026-11-23 11:10:11\n  so it is\n"
