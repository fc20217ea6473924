"""Sizes, times and text as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.errors import UsageError
from gpuq.model import GiB, MiB
from gpuq.units import (
    MAX_SIZE,
    MAX_TIME,
    format_duration,
    format_short_duration,
    format_size,
    parse_duration,
    parse_size,
    printable,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GiB", 10 * GiB),
        ("10G", 10 * GiB),
        ("10 gb", 10 * GiB),
        ("512M", 512 * MiB),
        ("1.5GiB", 3 * GiB // 2),
        ("1K", 1024),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0G",
        "-1G",
        "10",
        "nan",
        "inf",
        "nanG",
        "1e3G",
        "G",
        "10X",
        "10GiBs",
        "1,5G",
        "٣G",
        "9" * 400 + "G",
        "99999T",
    ],
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_size(text, "--vram")
    assert "--vram" in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("0:01:30", 90),
        ("100:00:00", 360000),
        ("0.5s", 0.5),
        ("1w", 604800),
        ("1.5h", 5400),
        ("2w1d", 15 * 86400),
        ("0.5d30m", 45000),
        ("1w2d3h4m5.5s", 604800 + 2 * 86400 + 3 * 3600 + 245.5),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0s",
        "90",
        "-5m",
        "nan",
        "1:2",
        "1:30",
        "90:00",
        "1d1w",
        "1.h",
        ".5h",
        "1:60:00",
        "1:00:60",
        "5 minutes",
        "m5",
        "1h1d",
        "9" * 400 + "s",
        "99999d",
        "٣s",
    ],
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_duration(text, "--time")
    assert "--time" in str(error.value)


@given(st.text(max_size=40))
def test_anything_parses_or_is_a_usage_error(text: str) -> None:
    for parse, most in ((parse_size, float(MAX_SIZE)), (parse_duration, MAX_TIME)):
        try:
            value = parse(text)
        except UsageError:
            continue
        assert 0 < value <= most


@given(st.integers(1, MAX_SIZE))
def test_a_formatted_size_says_what_it_was_to_five_percent(size: int) -> None:
    text = format_size(size)
    assert len(text) <= 9
    if size >= 1024:
        assert abs(parse_size(text) - size) <= size * 0.05


@given(st.floats(0, MAX_TIME))
def test_durations_take_little_room(seconds: float) -> None:
    assert len(format_duration(seconds)) <= 8
    assert len(format_short_duration(seconds)) <= 8


def test_durations_as_people_read_them() -> None:
    assert [format_duration(s) for s in (0, 59.9, 60, 3600, 86400 * 2 + 3600 * 4)] == [
        "0s",
        "59s",
        "1m00s",
        "1h00m",
        "2d04h",
    ]
    assert [format_short_duration(s) for s in (0.44, 9.5, 12.3, 75)] == ["0.4s", "9.5s", "12s", "1m15s"]


@given(st.text(max_size=60))
def test_what_is_printable_moves_no_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert all(c.isprintable() or c in "\u200d\ufe0f" for c in shown)
    shown.encode("utf-8")


def test_printable_keeps_what_people_write() -> None:
    assert printable("train 🚀 日本 é") == "train 🚀 日本 é"
    assert printable("a\nb\x1b[31m\u202e\udcff") == "a\\nb\\x1b[31m\\u202e\\udcff"
    assert printable("a\nb", newline=True) == "a\nb"
