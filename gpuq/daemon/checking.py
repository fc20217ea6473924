"""Single values as they come on the wire. BadRequest is raised for a wrong type, UsageError for what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuq.errors import BadRequest, UsageError
from gpuq.protocol import MAX_ID
from gpuq.units import MAX_SIZE, MAX_TIME


def check_integer(value: object, what: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{what} must be a whole number, not {value!r:.60}")
    if not low <= value <= high:
        allowed = f"from {low} to {high}" if high < MAX_ID else f"{low} or more"
        raise UsageError(f"{what} is {value}, and must be {allowed}")
    return value


def check_optional(t: Mapping[str, Any], key: str, what: str, low: int = 1, high: int = MAX_SIZE) -> int | None:
    return None if t.get(key) is None else check_integer(t[key], what, low, high)


def check_seconds(value: object, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{what} must be a number of seconds, not {value!r:.60}")
    if not 0 < value <= MAX_TIME:  # false for NaN as well
        raise UsageError(f"{what} is {value} seconds, and must be more than zero and at most ten years")
    return float(value)


def check_text(value: object, what: str, longest: int) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{what} must be text, not {value!r:.60}")
    if "\0" in value:
        raise UsageError(f"{what} holds a NUL character")
    if len(value) > longest:
        raise UsageError(f"{what} has {len(value)} characters, and {longest} are allowed")
    return value
