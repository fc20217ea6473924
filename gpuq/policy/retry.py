"""Whether a job whose attempt failed is tried again by its own rules, when, and with how large a claim. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gpuq.errors import UsageError
from gpuq.model import Failure, Job, MiB, Request, RetryRule
from gpuq.policy.lifecycle import TriedAgain

#: Most retries that a rule may ask for, and the largest growth of a claim.
MAX_TIMES = 1000
MAX_GROWTH = 16.0
#: Longest pause before a retry, in seconds.
LONGEST_PAUSE = 600.0
#: What runs out in these ways can be claimed larger.
_GROWS = {Failure.VRAM_OOM: "vram", Failure.OVER_MEMORY: "vram", Failure.HOST_OOM: "ram"}
#: How a rule is written.
_HOW = "write 2, vram-oom:2, vram-oom:2*1.5 or lost,gpu-lost:3"


def parse_rule(text: str) -> RetryRule:
    """A rule from `2`, `vram-oom:2*1.5`, `lost,gpu-lost:3`. Raises UsageError."""
    names, colon, rest = text.strip().rpartition(":")
    times, star, factor = rest.partition("*")
    if not (times.isascii() and times.isdigit()) or (colon and not names):
        raise UsageError(f"--retry {text!r} is not a rule: {_HOW}")
    if not 1 <= int(times[:9]) <= MAX_TIMES or len(times) > 9:
        raise UsageError(f"--retry {text!r}: {times} times, and from 1 to {MAX_TIMES:,} are taken")
    failures = tuple(dict.fromkeys(_failure(name.strip(), text) for name in names.split(","))) if colon else ()
    growth = _growth(factor, text) if star else 1.0
    if star and not set(failures) & _GROWS.keys():
        raise UsageError(
            f"--retry {text!r}: only a claim that ran out can grow, so *{factor} belongs to {', '.join(sorted(_GROWS))}"
        )
    return RetryRule(failures, int(times), growth)


def parse_rules(texts: Sequence[str]) -> tuple[RetryRule, ...]:
    """All rules of a job. Raises UsageError, also where two of them speak of the same failure."""
    rules: list[RetryRule] = []
    for text in texts:
        rule = parse_rule(text)
        for other in rules:
            both = [name for name in rule.failures if name in other.failures]
            if both:
                raise UsageError(f"--retry {other} and {rule} both name {both[0]}: a failure belongs to one rule")
            if not rule.failures and not other.failures:
                raise UsageError(
                    f"--retry {other} and {rule} both cover any failure: give one number, or name failures as in "
                    f"vram-oom:{rule.times}"
                )
        rules.append(rule)
    return tuple(rules)


def _failure(name: str, text: str) -> Failure:
    if name == Failure.PREEMPTED:
        raise UsageError(f"--retry {text!r}: a job that gave way is queued again without a rule, and spends no retry")
    try:
        return Failure(name)
    except ValueError:
        import difflib

        near = difflib.get_close_matches(name, list(Failure), 1)
        known = f"did you mean {near[0]}?" if near else f"known are {', '.join(Failure)}"
        raise UsageError(f"--retry {text!r}: there is no failure {name!r}; {known}") from None


def _growth(factor: str, text: str) -> float:
    try:
        growth = float(factor) if factor.replace(".", "", 1).isdigit() and factor.isascii() else math.nan
    except ValueError:
        growth = math.nan
    if not 1 < growth <= MAX_GROWTH:
        raise UsageError(f"--retry {text!r}: *{factor} must be more than 1 and at most {MAX_GROWTH:g}")
    return growth


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A rule counts, and cannot help; the note says why."""

    note: str


def try_again(job: Job, backoff: float, capacities: Iterable[int], ram: int, now: float) -> TriedAgain | GivenUp | None:
    """What its rules say of a job that has just failed: another attempt, or None to leave it at that.

    One with a claim that should grow and cannot is given up: it would fail in the same way.

    `backoff` is the pause before the first retry, in seconds; each further one is twice as long. `capacities` are the
    largest claims that the host's GPUs can hold, and `ram` what it has, in bytes: claims do not grow past them.
    """
    if job.failure is Failure.PREEMPTED:  # it goes on whatever its rules say, and at their cost neither
        return TriedAgain(now, job.request, job.spent, job.note or "gave way to a job of higher priority")
    number = _rule(job)
    if number is None or job.failure is None:
        return None
    rule = job.retry[number]
    spent = [*job.spent, *[0] * (len(job.retry) - len(job.spent))]
    request = job.request
    if rule.growth > 1 and job.failure in _GROWS:
        grown = _grown(job, rule.growth, capacities, ram)
        if isinstance(grown, GivenUp):
            return grown
        request = grown
    spent[number] += 1
    pause = min(backoff * 2.0 ** min(sum(spent) - 1, 30), max(backoff, LONGEST_PAUSE))
    evidence = f" ({job.note})" if job.note else ""
    note = f"retry {spent[number]} of {rule.times} after {job.failure}{evidence}"
    return TriedAgain(now + pause, request, tuple(spent), note)


def _rule(job: Job) -> int | None:
    """The rule that counts for the failure, if it has a retry left: one that names it, else one for any."""
    named = [n for n, rule in enumerate(job.retry) if job.failure in rule.failures]
    general = [n for n, rule in enumerate(job.retry) if not rule.failures and job.failure is not Failure.LOST]
    for number in named or general:
        if (job.spent[number] if number < len(job.spent) else 0) < job.retry[number].times:
            return number
    return None


def _grown(job: Job, growth: float, capacities: Iterable[int], ram: int) -> Request | GivenUp:
    """The request with what ran out claimed larger."""
    request = job.request
    if job.failure is Failure.HOST_OOM:
        if not request.ram:
            return GivenUp("not tried again: it claimed no host memory (--ram) that could grow")
        larger = min(_times(request.ram, growth), ram)
        if larger <= request.ram:
            return GivenUp("not tried again: its claim cannot grow past the host's memory")
        return replace(request, ram=larger)
    if request.vram is None:
        return GivenUp("not tried again: it had the whole card, so that its claim cannot grow")
    known = list(capacities)
    if len(known) < request.gpus:
        return request  # just started, or the driver is down: how far it may grow is not known
    larger = min(_times(max(request.vram, job.peak_vram or 0), growth), _roomiest(known, request.gpus))
    if larger <= request.vram:
        return GivenUp("not tried again: its claim cannot grow past the card")
    return replace(request, vram=larger)


def _times(size: int, growth: float) -> int:
    """Rounded up to whole MiB."""
    return math.ceil(size * growth / MiB) * MiB


def _roomiest(capacities: Iterable[int], gpus: int) -> int:
    """The largest claim that as many GPUs can hold at the same time."""
    largest: Sequence[int] = sorted(capacities, reverse=True)
    return largest[gpus - 1] if 0 < gpus <= len(largest) else 0
