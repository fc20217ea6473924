"""How `--after` is written, for client and daemon: words into what they name. Pure.

    after       = clause *( "," clause )             all of them must hold
    clause      = alternative *( "|" alternative )   one of them must hold
    alternative = [ condition ":" ] jobs             ok where no condition is said
    condition   = "ok" | "any" | "failed" | "started"
    jobs        = ID | ID "-" ID | "@last"           a job, or each of several
                | "array:" ID                        each member of the array that the job is of
                | "each:" ( ID | ID "-" ID )         for each member of an array, the one with the same index there
                | "tag=" NAME | "group=" NAME        each job that has it

A clause is the unit that travels: the client splits at commas, so that over the socket a tag may hold one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gpuq.errors import UsageError
from gpuq.protocol import MAX_AFTER, MAX_NAME

CONDITIONS = ("ok", "any", "failed", "started")
#: Most alternatives of a clause.
MAX_ALTERNATIVES = 32
#: Longest clause, in characters.
MAX_CLAUSE = MAX_ALTERNATIVES * (MAX_NAME + 20)
#: Stands for `@last`.
LAST = -1

_HOW = (
    "write 12, ok:12, any:12, failed:12 or started:12; ok:12-20, array:12 or tag=NAME for each of several; "
    "each:12 in an array; 'ok:12|failed:13' for one of them"
)


class Alternative(NamedTuple):
    condition: str
    #: job, array, each, tag or group
    kind: str
    first: int = 0
    last: int = 0
    #: of a tag or group
    name: str = ""

    @property
    def is_range(self) -> bool:
        return self.first != self.last

    def __str__(self) -> str:
        if self.kind in ("tag", "group"):
            return f"{self.condition}:{self.kind}={self.name}"
        first = "@last" if self.first == LAST else str(self.first)
        jobs = f"{first}-{self.last}" if self.is_range else first
        return f"{self.condition}:{jobs}" if self.kind == "job" else f"{self.condition}:{self.kind}:{jobs}"


def split(values: Iterable[str]) -> list[str]:
    """The clauses of what was given to `--after`."""
    return [clause for value in values for clause in value.split(",")]


def parse_clause(text: str) -> tuple[Alternative, ...]:
    """What a clause names, each alternative once. Raises UsageError."""
    words = text.split("|")
    if len(words) > MAX_ALTERNATIVES:
        raise UsageError(f"--after {text!r:.100}: a clause has {MAX_ALTERNATIVES} alternatives at most")
    return tuple(dict.fromkeys(_alternative(word.strip(), text) for word in words))


def written(clause: Iterable[Alternative]) -> str:
    """The clause as it travels."""
    return "|".join(map(str, clause))


def _alternative(word: str, text: str) -> Alternative:
    if not word:
        problem = "nothing stands beside the |" if "|" in text else "it is empty"
        raise UsageError(f"--after {text!r:.100} is not a dependency, for {problem}: {_HOW}")
    condition, colon, jobs = word.partition(":")
    if not colon or condition not in CONDITIONS:
        condition, jobs = "ok", word
    for kind in ("tag", "group"):
        if jobs.startswith(f"{kind}="):
            return Alternative(condition, kind, name=_name(jobs[len(kind) + 1 :], kind, text))
    kind, colon, ids = jobs.partition(":")
    if colon and kind in ("array", "each"):
        before, _, there = ids.partition(":")
        if before in CONDITIONS:
            raise UsageError(f"--after {text!r:.100}: the condition comes first: write {before}:{kind}:{there}")
        first, last = _ids(ids, text)
        if kind == "array" and first != last:
            raise UsageError(f"--after {text!r:.100}: array: takes one id: write {condition}:{ids} for a range of jobs")
        return Alternative(condition, kind, first, last)
    if colon:
        raise UsageError(
            f"--after {text!r:.100}: {kind!r:.40} is none of {', '.join(CONDITIONS)} (and array, each): {_HOW}"
        )
    return Alternative(condition, "job", *_ids(jobs, text))


def _name(name: str, kind: str, text: str) -> str:
    if not name:
        raise UsageError(f"--after {text!r:.100}: which {kind}? write {kind}=NAME")
    if len(name) > MAX_NAME:
        raise UsageError(f"--after {text!r:.100}: a {kind} has {MAX_NAME} characters at most")
    return name.encode("utf-8", "replace").decode("utf-8")  # as it is kept


def _ids(word: str, text: str) -> tuple[int, int]:
    """The ids of `12`, `12-20` or `@last`."""
    if word == "@last":
        return LAST, LAST
    first, dash, last = word.partition("-")
    if not all(n.isascii() and n.isdigit() and len(n) <= 18 for n in (first, last if dash else first)):
        raise UsageError(f"--after {text!r:.100} is not a dependency, for {word!r:.40} names no job: {_HOW}")
    low, high = int(first), int(last) if dash else int(first)
    if high < low:
        raise UsageError(f"--after {text!r:.100}: the range {word!r} is upside down: write {high}-{low}")
    if high - low >= MAX_AFTER:
        raise UsageError(f"--after {text!r:.100}: {too_many()}")
    return low, high


def too_many() -> str:
    return f"a job waits for {MAX_AFTER:,} others at most"
