"""The promise about cards: no more is claimed of one, or in use on it, than there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.evidence import Evidence


def no_card_is_over_claimed(e: Evidence) -> Iterator[str]:
    yield from over_claims([e])
    totals = e.noted("cards")[0]["totals"]
    for line in e.trace:
        if line["e"] == "card" and line["used"] > totals[line["uuid"]]:
            yield f"{line['used']} bytes of {line['uuid']} were in use: {line}"


def over_claims(boxes: list[Evidence]) -> Iterator[str]:
    """More claimed of a card at one time than there is, by one daemon or several.

    Among several a claim of which no process lives any more is nobody's, before its own daemon comes back to say so.
    """
    cards = boxes[0].noted("cards")[0]
    changes: dict[str, list[tuple[float, int, str, int]]] = defaultdict(list)
    for number, e in enumerate(boxes):
        for claim in e.claims:
            key = (claim["job_id"], claim["attempt"])
            row = e.attempts[key]
            if len(boxes) > 1 and (key in e.orphaned or row["failure"] == "lost" or row["note"] == "never started"):
                continue
            room = cards["totals"][claim["uuid"]] - cards["margin"]
            size = room if claim["bytes"] is None else claim["bytes"]
            name = f"job {key[0]} attempt {key[1]}" + (f" of box {number}" if len(boxes) > 1 else "")
            changes[claim["uuid"]].append((row["started_at"], 1, name, size))
            if row["ended_at"] is not None:
                # one that ended and one that starts at the same instant do not meet
                changes[claim["uuid"]].append((row["ended_at"], 0, name, -size))
    for uuid, steps in changes.items():
        claimed, live = 0, set[str]()
        for at, begins, name, size in sorted(steps):
            claimed += size
            (live.add if begins else live.discard)(name)
            if claimed > cards["totals"][uuid] - cards["margin"]:
                yield f"at {at} {claimed} bytes of {uuid} were claimed by {sorted(live)}"
