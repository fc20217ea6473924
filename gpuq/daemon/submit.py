"""From a submission on the wire to jobs: every field is checked here, whatever the client has checked."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuq import protocol
from gpuq.daemon.checking import check_integer, check_optional, check_seconds, check_text
from gpuq.daemon.wishes import Listed, refuse_contradiction, resolve
from gpuq.errors import BadRequest, CannotFit, UsageError
from gpuq.launch.environment import log_path
from gpuq.model import (
    ANY_GPU,
    DEFAULT_QUEUE,
    ArrayPlace,
    EarlySignal,
    Job,
    KiB,
    Queue,
    Request,
    RetryRule,
    State,
    Wishes,
)
from gpuq.policy import queues
from gpuq.policy.groups import ARRAY, array_group
from gpuq.policy.retry import parse_rules
from gpuq.protocol import Message
from gpuq.store.rows import dump
from gpuq.store.staging import Own
from gpuq.units import MAX_SIZE, format_duration, format_size, parse_duration

#: Longest single argument, with its NUL, that execve(2) takes: MAX_ARG_STRLEN.
MAX_ARGUMENT = 32 * 4096
#: More GPUs than any host has.
MAX_GPUS = 1024
#: Most rules for retries.
MAX_RULES = 20
#: Of a log that is limited, this much is kept at least, in bytes.
SHORTEST_LOG = 64 * KiB


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked submission. `template` has every field of its jobs but id, name, command and place in an array."""

    template: Job
    #: how many commands it has
    count: int
    #: indexes of an array, empty for none
    indexes: tuple[int, ...]
    array_limit: int
    environment: bytes

    @property
    def jobs(self) -> int:
        return len(self.indexes) or self.count

    def at(self, first_id: int) -> Job:
        """The template once it is known where the ids begin."""
        if not self.indexes:
            return self.template
        # an array that stops is a group of its own
        group = array_group(first_id) if self.template.stop_after is not None else None
        place = ArrayPlace(first_id, 0, self.array_limit)
        return replace(self.template, array=place, group=self.template.group or group)


def check_key(value: object) -> str:
    if not isinstance(value, str) or not 8 <= len(value) <= 64 or not value.isascii():
        raise BadRequest("a submission carries a random key of 8 to 64 ASCII characters")
    return value


def check_count(value: object) -> int | None:
    """How many commands will come; None where the client does not say. Raises CannotFit."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequest(f"count says how many commands will come, and is {value!r:.60}")
    if value > protocol.MAX_JOBS:
        raise CannotFit(f"a submission holds at most {protocol.MAX_JOBS:,} jobs")
    return value


def check_commands(value: object) -> list[tuple[str, ...]]:
    """Argument lists. Raises UsageError for one that no program could be started with."""
    if not isinstance(value, list):
        raise BadRequest("commands is a list of argument lists")
    return [_command(item) for item in value]


def _command(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadRequest("a command is a list of strings")
    if not value or not value[0]:
        raise UsageError("the command is empty: write gpuq submit -- CMD ARG…")
    if "\0" in "".join(value):
        raise UsageError("the command holds a NUL character, which no program can be given")
    sizes = [len(word) if word.isascii() else len(_bytes(word)) for word in value]
    if max(sizes) >= MAX_ARGUMENT:
        raise UsageError(
            f"an argument of the command has {max(sizes):,} bytes, and Linux takes {MAX_ARGUMENT - 1:,}: "
            "put it into a file"
        )
    if sum(sizes) > protocol.MAX_COMMAND:
        raise UsageError(
            f"the command has {sum(sizes):,} bytes, and {protocol.MAX_COMMAND:,} are allowed: put its data into a file"
        )
    return tuple(value)


def _bytes(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(f"{text!r} holds characters that no program can be given") from None


def check_environment(value: object) -> bytes:
    """The environment as it is stored. Values are in no message."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise BadRequest("env maps names to strings")
    size = 0
    for name, text in value.items():
        if not name or "=" in name or "\0" in name or "\0" in text:
            raise UsageError(f"the environment variable {name!r} cannot be given to a program")
        try:
            size += len(os.fsencode(name)) + len(os.fsencode(text)) + 2
        except UnicodeEncodeError:  # the value is not shown
            raise UsageError(
                f"the environment variable {name!r} holds characters that no program can be given"
            ) from None
    if size > protocol.MAX_ENVIRONMENT:
        raise UsageError(f"the environment has {size:,} bytes, and {protocol.MAX_ENVIRONMENT:,} are allowed")
    return dump(dict(sorted(value.items()))).encode("ascii")


def check_array(value: object) -> tuple[tuple[int, ...], int]:
    if value is None:
        return (), 0
    if not isinstance(value, dict) or not isinstance(value.get("indexes"), list):
        raise BadRequest("array has a list of indexes and a limit")
    indexes = tuple(check_integer(i, "an array index", 0, 10**9) for i in value["indexes"])
    if not indexes:
        raise UsageError("the array has no members")
    if len(set(indexes)) != len(indexes):
        raise UsageError("the array names an index twice")
    return indexes, check_integer(value.get("limit") or 0, "the array's limit", 0, protocol.MAX_JOBS)


def check_queue(t: Mapping[str, Any]) -> str:
    """The name of the queue that is asked for."""
    return DEFAULT_QUEUE if t.get("queue") is None else check_text(t["queue"], "--queue", protocol.MAX_NAME)


def check_template(t: Mapping[str, Any], owner: int, listed: Listed, queue: Queue, now: float) -> Job:
    """The job that all of the submission are like, but for what they wait for: see `depending`.

    `listed` are the host's GPUs. Raises CannotFit where one is named that it does not have.
    """
    seconds, chosen = check_seconds(t.get("time_limit"), "--time"), t.get("time_chosen") is not False
    time_limit = queues.time_limit(queue, seconds if chosen else None, None if chosen else seconds)
    return Job(
        id=0,
        name=check_name(t.get("name")),
        owner=owner,
        state=State.QUEUED,
        command=(),
        cwd=_folder(t.get("cwd")),
        request=check_request(t, listed),
        env_hash="",
        submitted_at=now,
        priority=check_priority(t.get("priority")),
        queue=queue.name,
        group=check_group(t.get("group")),
        stop_after=check_stop_after(t.get("stop_after")),
        time_limit=time_limit,
        begin_at=check_moment(t.get("begin_at")),
        tags=check_tags(t.get("tags") or []),
        umask=check_integer(t.get("umask", 0o077), "the umask", 0, 0o777),
        limits=_limits(t.get("limits") or []),
        output=_output(t.get("output")),
        grace=check_seconds(t.get("grace"), "--grace"),
        early_signal=_early_signal(t.get("early_signal"), time_limit),
        log_limit=_log_limit(t),
        retry=_retry(t.get("retry") or []),
        preemptible=t.get("preemptible") is True,
    )


def check_request(t: Mapping[str, Any], listed: Listed) -> Request:
    """The resources that are asked for. Raises UsageError, CannotFit."""
    vram = check_optional(t, "vram", "--vram", 1, MAX_SIZE)
    which = _which(t, listed)
    gpus, most = _gpus(t, 0 if listed.none and vram is None and which is ANY_GPU else 1)
    if gpus == 0 and vram is not None:
        raise UsageError("--vram without GPUs: it is the memory on each GPU, so leave it out or ask for --gpus 1")
    refuse_contradiction(gpus, which, listed)
    cpus = check_optional(t, "cpus", "--cpus", 0, 65536)
    ram = check_optional(t, "ram", "--ram") or 0
    return Request(gpus, vram, (0 if gpus else 1) if cpus is None else cpus, ram, most, which)


def check_priority(value: object) -> int:
    return check_integer(value or 0, "--priority", -protocol.MAX_PRIORITY, protocol.MAX_PRIORITY)


def check_stop_after(value: object) -> int | None:
    return None if value is None else check_integer(value, "--stop-after", 1, protocol.MAX_JOBS)


def _gpus(t: Mapping[str, Any], default: int) -> tuple[int, int]:
    """GPUs at least, and at most; the latter 0 where that is the same."""
    gpus = check_optional(t, "gpus", "--gpus", 0, MAX_GPUS)
    most = check_optional(t, "gpus_most", "--gpus", 1, MAX_GPUS)
    if most is None:
        return default if gpus is None else gpus, 0
    if not gpus:
        raise UsageError(f"--gpus {gpus or ''}:{most}: a range begins with 1; --gpus 0 is a job without GPUs")
    if most < gpus:
        raise UsageError(f"--gpus {gpus}:{most} is upside down: write {most}:{gpus}")
    return gpus, most if most > gpus else 0


def _which(t: Mapping[str, Any], listed: Listed) -> Wishes:
    spread = t.get("spread") or False
    if not isinstance(spread, bool):
        raise BadRequest(f"--spread is given or not, and is {spread!r:.60}")
    types = [word.encode("utf-8", "replace").decode("utf-8") for word in _words(t, "gpu_types", "--gpu-type")]
    wishes = Wishes(
        types=tuple(dict.fromkeys(types)),
        min_memory=check_optional(t, "gpu_min_memory", "--gpu-min-memory") or 0,
        only=resolve(_words(t, "gpu_ids", "--gpu-id"), "--gpu-id", listed),
        exclude=resolve(_words(t, "gpus_excluded", "--exclude-gpu"), "--exclude-gpu", listed),
        spread=spread,
    )
    return ANY_GPU if wishes == ANY_GPU else wishes


def _words(t: Mapping[str, Any], key: str, what: str) -> list[str]:
    value = t.get(key) or []
    if not isinstance(value, list) or len(value) > MAX_GPUS:
        raise BadRequest(f"{key} is a list of at most {MAX_GPUS:,}")
    words = [check_text(word, what, protocol.MAX_NAME).strip() for word in value]
    if not all(words):
        raise UsageError(f"{what} holds an empty word")
    return words


def _early_signal(value: object, time_limit: float | None) -> EarlySignal | None:
    """`USR1@300`, as Slurm's --signal; a bare number is of seconds there, and here as well."""
    if value is None:
        return None
    text = check_text(value, "--signal", 100)
    name, at, time = text.strip().rpartition("@")
    if not at:
        raise UsageError(
            f"--signal {text!r}: write the signal and how long before the limit, as in USR1@300 or TERM@5m"
        )
    try:
        before = parse_duration(f"{time}s" if time.isascii() and time.isdigit() else time, "--signal")
    except UsageError as error:
        raise UsageError(f"{error.message}; a bare number is seconds, as in USR1@300") from None
    if time_limit is None:
        raise UsageError(f"--signal {text!r} comes before the time limit, and there is none: give --time")
    if before >= time_limit:
        raise UsageError(
            f"--signal {text!r} would come before the job begins: the time limit is {format_duration(time_limit)}"
        )
    return EarlySignal(_signal(name, text), before)


def _signal(name: str, text: str) -> int:
    word = name.upper().removeprefix("SIG")
    numbers = {number.name.removeprefix("SIG"): number.value for number in signal.Signals}
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 4 else numbers.get(word)
    if number is None or number not in signal.valid_signals():
        raise UsageError(f"--signal {text!r}: there is no signal {name!r}; write USR1, TERM or the like")
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise UsageError(f"--signal {text!r}: no program can answer to {word}")
    return int(number)


def _log_limit(t: Mapping[str, Any]) -> int | None:
    limit = check_optional(t, "log_limit", "--log-limit")
    if limit is not None and limit < SHORTEST_LOG:
        raise UsageError(f"--log-limit is {format_size(limit)}, and at least {format_size(SHORTEST_LOG)} are kept")
    return limit


def _retry(value: object) -> tuple[RetryRule, ...]:
    if not isinstance(value, list) or len(value) > MAX_RULES:
        raise BadRequest(f"retry is a list of at most {MAX_RULES} rules")
    return parse_rules([check_text(item, "--retry", 200) for item in value])


def check_moment(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise BadRequest(f"--begin must be seconds since the epoch, not {value!r:.60}")
    return float(value)


def check_group(value: object) -> str | None:
    """The name of a group. Raises UsageError for one that is an array's."""
    if value is None:
        return None
    name = check_text(value, "--group", protocol.MAX_NAME).encode("utf-8", "replace").decode("utf-8")
    if not name:
        raise UsageError("--group is empty: give it a name")
    if name.startswith(ARRAY):
        raise UsageError(f"--group {name!r}: names that begin with {ARRAY!r} are those of arrays; choose another")
    return name


def check_name(value: object) -> str:
    text = check_text(value, "--name", protocol.MAX_NAME) if value is not None else ""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_tags(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > protocol.MAX_TAGS:
        raise BadRequest(f"tags is a list of at most {protocol.MAX_TAGS}")
    tags = [check_text(tag, "--tag", protocol.MAX_NAME).encode("utf-8", "replace").decode("utf-8") for tag in value]
    if not all(tags):
        raise UsageError("--tag is empty")
    return tuple(dict.fromkeys(tags))


def _output(value: object) -> str | None:
    if value is None:
        return None
    text = check_text(value, "--output", protocol.MAX_TEXT)
    if not text:
        raise UsageError("--output is empty: name a file")
    return text


def missing_folder(job: Job) -> str | None:
    """What to tell of a log whose folder is not there yet: something may make it before the job starts."""
    folder = os.path.dirname(log_path(job, ""))
    if job.output is None or os.path.isdir(folder):
        return None
    return f"--output: the folder {folder} does not exist; if it is not there when job {job.id} starts, the job fails"


def _folder(value: object) -> str:
    text = check_text(value, "--cwd", protocol.MAX_TEXT)
    if not text.startswith("/"):
        raise UsageError(f"--cwd {text!r} is not an absolute path")
    try:
        found = Path(os.fsdecode(_bytes(text))).stat()
    except OSError as error:
        raise UsageError(f"--cwd {text!r}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"--cwd {text!r} is not a folder")
    return text


def _limits(value: object) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or len(value) > 64:
        raise BadRequest("limits is a list of [number, soft limit]")
    try:
        return tuple((check_integer(n, "a limit", 0, 63), check_integer(s, "a limit", -1, 2**63 - 1)) for n, s in value)
    except (TypeError, ValueError):
        raise BadRequest("limits is a list of [number, soft limit]") from None


def read_submission(first: Message, count: int, template: Job) -> Submission:
    """A submission of so many commands. Raises UsageError where its parts do not go together."""
    indexes, limit = check_array(first.get("array"))
    if indexes and count != 1:
        raise UsageError("an array has one command; --array and --from do not go together")
    if not count:
        raise UsageError("nothing to submit: no command was given")
    if count * max(1, len(indexes)) > protocol.MAX_JOBS:
        raise CannotFit(f"a submission holds at most {protocol.MAX_JOBS:,} jobs")
    if template.stop_after is not None and template.group is None and not indexes:
        raise UsageError("--stop-after is for several jobs: name their --group, or submit an --array")
    environment = check_environment(first.get("env"))
    digest = hashlib.sha256(environment).hexdigest()
    held = first["template"].get("hold") is True
    job = replace(template, env_hash=digest, state=State.HELD if held else State.QUEUED)
    return Submission(job, count, indexes, limit, environment)


def own_values(checked: Submission, commands: Iterable[tuple[str, ...]], first_id: int) -> Iterator[Own]:
    """What each job has of its own, with ids from `first_id` on."""
    name = checked.template.name
    for n, command in enumerate(commands):
        text = dump(command)
        if checked.indexes:
            called = name or _default_name(command)
            yield from ((first_id + n, called, text, index) for n, index in enumerate(checked.indexes))
        else:
            yield first_id + n, name or _default_name(command), text, None


def _default_name(command: tuple[str, ...]) -> str:
    """The program's name; of a shell line, its first word's."""
    word = command[0]
    if len(command) == 3 and command[:2] == ("/bin/sh", "-c") and (words := command[2].split(None, 1)):
        word = words[0]
    name = word.rstrip("/").rpartition("/")[2] or word
    return name.encode("utf-8", "replace").decode("utf-8")[: protocol.MAX_NAME]
