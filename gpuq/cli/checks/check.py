"""What a check finds."""

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` says what to do where something is to be done."""

    name: str
    result: str
    text: str
    fix: str | None = None
