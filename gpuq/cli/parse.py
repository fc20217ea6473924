"""Reads the values of `submit`'s options that are more than a size or a time. Pure but for the clock passed in."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta

from gpuq import after
from gpuq.errors import UsageError
from gpuq.protocol import MAX_AFTER, MAX_JOBS
from gpuq.units import MAX_TIME, parse_duration

#: Larger array indexes are refused, as a typing error.
MAX_INDEX = 10**9

#: What `--export NONE` and `--export NAME` leave: without these no program is found and no home folder known.
BASICS = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER")

#: Never passed on: `_ SHLVL OLDPWD` are the shell's own, the SSH ones die with the connection, and the GPUQ ones
#: belong to the job that submits (a job's own are set at its launch).
DROPPED = frozenset(
    {"_", "SHLVL", "OLDPWD", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "SSH_AUTH_SOCK"}
    | {"GPUQ_JOB_ID", "GPUQ_ATTEMPT", "GPUQ_JOB_DIR", "GPUQ_METRICS", "GPUQ_GPU_COUNT"}
    | {"GPUQ_ARRAY_ID", "GPUQ_ARRAY_INDEX"}
)


def parse_array(text: str) -> tuple[list[int], int]:
    """Indexes and the most that run at a time (0: no limit) from `0-99%4`, `1,3,5-9`, `0-10:2`.

    Raises UsageError.
    """
    spec, percent, most = text.strip().partition("%")
    limit = _number(most, text) if percent else 0
    if percent and limit == 0:
        raise UsageError(f"--array {text!r}: after % stands how many run at a time, which is at least 1")
    indexes: set[int] = set()
    for part in spec.split(","):
        indexes.update(_array_part(part, text))
        if len(indexes) > MAX_JOBS:
            raise UsageError(f"--array {text!r} has more than {MAX_JOBS:,} members")
    return sorted(indexes), limit


def _array_part(part: str, text: str) -> range:
    span, colon, step_text = part.strip().partition(":")
    low_text, dash, high_text = span.partition("-")
    low = _number(low_text, text)
    high = _number(high_text, text) if dash else low
    step = _number(step_text, text) if colon else 1
    if high < low:
        raise UsageError(f"--array {text!r}: the range {span!r} is upside down: write {high}-{low}")
    if step == 0 or (colon and not dash):
        raise UsageError(f"--array {text!r}: a step is at least 1 and follows a range, as in 0-10:2")
    if (high - low) // step >= MAX_JOBS:
        raise UsageError(f"--array {text!r} has more than {MAX_JOBS:,} members")
    return range(low, high + 1, step)


def _number(word: str, text: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise UsageError(f"--array {text!r} is not a list of indexes: write 0-99, 1,3,5-9, 0-10:2 or 0-99%4")
    if len(word) > 10 or int(word) > MAX_INDEX:
        raise UsageError(f"--array {text!r}: {word} is larger than {MAX_INDEX:,}")
    return int(word)


def parse_gpus(text: str) -> tuple[int, int | None]:
    """GPUs at least, and at most where that was said, from `2` and `1:4`. Raises UsageError."""
    low, colon, high = text.strip().partition(":")
    ends = [low, high] if colon else [low]
    if colon and not (low and high):
        raise UsageError(f"--gpus {text!r} is open at one end: write both, as in 1:4; fewer than the most will do")
    if not all(end.isascii() and end.isdigit() for end in ends):
        raise UsageError(f"--gpus {text!r} is not a number of GPUs: write 2, or 1:4 for 1 at least and 4 at most")
    if any(len(end) > 6 for end in ends):
        raise UsageError(f"--gpus {text!r} is more than any host has")
    least, most = int(low), int(high) if colon else None
    if most is not None and most < least:
        raise UsageError(f"--gpus {text!r} is upside down: write {most}:{least}")
    if most is not None and least == 0:
        raise UsageError(f"--gpus {text!r}: a range begins with 1; --gpus 0 is a job without GPUs")
    return least, most


def parse_words(values: Iterable[str], separator: str, what: str) -> list[str]:
    """`A100` and `H100` from `A100|H100`, or from the option given twice. Raises UsageError."""
    found: dict[str, None] = {}
    for value in values:
        words = [word.strip() for word in value.split(separator)]
        if not all(words):
            raise UsageError(f"{what} {value!r} holds an empty name")
        found.update(dict.fromkeys(words))
    return list(found)


def parse_begin(text: str, now: float) -> float:
    """Seconds since the epoch from `now+1h`, `2h`, `16:00`, `2026-11-23T08:00`, in local time, as Slurm's --begin.

    A time of day that has passed today is tomorrow's. Raises UsageError.
    """
    word = text.strip()
    if word == "now":
        return now
    if word.startswith("now+"):
        return now + parse_duration(word[4:], "--begin now+")
    clock = _time_of_day(word)
    if clock is not None:
        hour, minute, second = clock
        today = datetime.fromtimestamp(now)
        at = today.replace(hour=hour, minute=minute, second=second, microsecond=0)
        return (at if at.timestamp() > now else at + timedelta(days=1)).timestamp()
    if len(word) >= 10 and word[4] == "-":
        return _date(word, text, now)
    try:
        return now + parse_duration(word, "begin")
    except UsageError:
        raise UsageError(
            f"--begin {text!r} is not a time: write now+1h, 2h, 16:00 or 2026-11-23T08:00 (local time)"
        ) from None


def _time_of_day(word: str) -> tuple[int, int, int] | None:
    parts = word.split(":")
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() and len(p) <= 2 for p in parts):
        return None
    hour, minute, second = (*map(int, parts), 0)[:3]
    if hour > 23 or minute > 59 or second > 59:
        raise UsageError(f"--begin {word!r} is not a time of day: 0:00 to 23:59:59")
    return hour, minute, second


def _date(word: str, text: str, now: float) -> float:
    try:
        at = datetime.fromisoformat(word).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--begin {text!r} is not a date: write 2026-11-23 or 2026-11-23T08:00") from None
    if at <= now:
        raise UsageError(f"--begin {text!r} has passed")
    if at > now + MAX_TIME:
        raise UsageError(f"--begin {text!r} is more than ten years away")
    return at


def parse_past(text: str, now: float, option: str) -> float:
    """Seconds since the epoch from `7d`, so long ago, or `2026-11-23T08:00`, in local time. Raises UsageError."""
    word = text.strip()
    try:
        if len(word) >= 10 and word[4] == "-":
            return datetime.fromisoformat(word).timestamp()
        return now - parse_duration(word, option)
    except (UsageError, ValueError, OverflowError, OSError):
        raise UsageError(
            f"{option} {text!r} is not a time: write 7d for so long ago, 2026-11-23 or 2026-11-23T08:00"
        ) from None


def parse_after(values: Iterable[str], last: Callable[[], int]) -> list[str]:
    """Clauses as the protocol takes them: `ok:1` to `ok:3` from `ok:1-3`; `last` is asked which job `@last` is.

    Raises UsageError.
    """
    found: dict[str, None] = {}
    for text in after.split(values):
        clause = [
            one._replace(first=last(), last=last()) if one.first == after.LAST else one
            for one in after.parse_clause(text)
        ]
        if len(clause) == 1 and clause[0].kind == "job":
            one = clause[0]
            found.update(dict.fromkeys(f"{one.condition}:{job}" for job in range(one.first, one.last + 1)))
        else:
            found[after.written(clause)] = None
        if len(found) > MAX_AFTER:
            raise UsageError(f"--after {text!r}: {after.too_many()}")
    return list(found)


def parse_env(values: Iterable[str]) -> dict[str, str]:
    """`K=V` pairs. Raises UsageError, which never shows a value."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise UsageError(f"--env takes NAME=VALUE; {name!r} has no {'name' if equals else 'value'}")
        found[name] = content
    return found


def choose_environment(
    environ: Mapping[str, str], export: str | None, given: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The job's environment, and the names in `--export` that are not set. Raises UsageError."""
    words = [w.strip() for w in (export if export is not None else "ALL").split(",")]
    if "" in words:
        raise UsageError(f"--export {export!r} holds an empty name: write ALL, NONE or NAME,NAME")
    everything = words == ["ALL"]
    if len(words) > 1 and {"ALL", "NONE"} & set(words):
        raise UsageError(f"--export {export!r}: ALL and NONE stand alone; write --env NAME=VALUE to add to them")
    if any("=" in word for word in words):
        raise UsageError("--export takes names; write --env NAME=VALUE to set one")
    names = set(environ) if everything else {*BASICS, *(w for w in words if w != "NONE")}
    missing = [] if everything or words == ["NONE"] else [w for w in words if w not in environ]
    chosen = {k: v for k, v in environ.items() if k in names and k not in DROPPED}
    return {**chosen, **given}, missing
