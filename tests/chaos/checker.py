"""The judge: reads what a run left behind, and says which promises are broken.

It imports nothing of gpuq and shares no rule with it. `python -m tests.chaos.checker FOLDER` judges kept evidence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.evidence import Evidence, Living, living, read
from tests.chaos.promises.answers import every_wait_was_answered, only_the_expected_was_said
from tests.chaos.promises.attempts import (
    a_reboot_loses_what_ran_and_nothing_else,
    attempts_begin_once,
    every_failure_is_named,
    every_status_is_true,
    long_logs_keep_beginning_and_end,
    no_process_outlives_its_attempt,
    retries_follow_the_rules,
)
from tests.chaos.promises.cards import no_card_is_over_claimed
from tests.chaos.promises.jobs import (
    acknowledged_changes_were_made,
    acknowledged_submits_exist_once,
    arrays_keep_their_limit,
    dependencies_hold,
    everything_ended,
    histories_are_legal,
    states_agree,
    what_is_held_or_cancelled_does_not_start,
)


def evidence_is_whole(e: Evidence) -> Iterator[str]:
    yield from e.damage


PROMISES: tuple[Callable[[Evidence], Iterator[str]], ...] = (
    evidence_is_whole,
    acknowledged_submits_exist_once,
    attempts_begin_once,
    every_status_is_true,
    every_failure_is_named,
    retries_follow_the_rules,
    a_reboot_loses_what_ran_and_nothing_else,
    acknowledged_changes_were_made,
    states_agree,
    histories_are_legal,
    no_card_is_over_claimed,
    dependencies_hold,
    arrays_keep_their_limit,
    what_is_held_or_cancelled_does_not_start,
    long_logs_keep_beginning_and_end,
    only_the_expected_was_said,
)
AT_THE_END: tuple[Callable[[Evidence], Iterator[str]], ...] = (everything_ended, every_wait_was_answered)


def check(e: Evidence, alive: Living, *, final: bool) -> list[str]:
    """What is broken, each with the promise that it breaks; `final` when all should have come to its end."""
    broken = [f"{p.__name__}: {text}" for p in PROMISES + (AT_THE_END if final else ()) for text in p(e)]
    name = no_process_outlives_its_attempt.__name__
    return broken + [f"{name}: {text}" for text in no_process_outlives_its_attempt(e, alive, final=final)]


def figures(e: Evidence) -> dict[str, Any]:
    """How much was looked at."""
    lost = sum(row["failure"] == "lost" for row in e.attempts.values())
    points = {line["name"] for line in e.noted("point")}
    return {
        "jobs": len(e.jobs),
        "attempts": len(e.attempts),
        "begun": len(e.begun),
        "lost_by_killed_supervisors_or_reboots": lost,
        "acknowledged_submits": len(e.noted("submitted")),
        "requests_unanswered": len(e.noted("unanswered")),
        "retries": sum(row["kind"] == "retrying" for rows in e.events.values() for row in rows),
        "suspended": sum(row["kind"] == "suspended" for rows in e.events.values() for row in rows),
        "requeued": sum(row["kind"] == "requeued" for rows in e.events.values() for row in rows),
        "crash_points": len(points),
    }


def main() -> int:
    folder = Path(sys.argv[1])
    broken = check(read(folder), living(folder / "state"), final=True)
    print("\n".join(broken) or "no promise is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
