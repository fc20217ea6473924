"""What client and daemon say to each other: one JSON object per line over a Unix socket.

A request is `{"v": 1, "op": NAME, …}`. The reply is `{"ok": true, …}` or
`{"ok": false, "error": {"kind": ERROR CLASS, "message": TEXT}}`. A streaming operation (`follow`, `events` with
`follow`, `top`) sends further objects, each a line, until one holds `"end": true` or the client closes.
Text that is not UTF-8 travels as lone surrogates (PEP 383), which JSON's ASCII escapes carry.

The protocol grows only by addition: a daemon ignores fields it does not know, and names its own version when it
is asked for an operation it does not know.

Operations and their fields (`sel` is a Selection as JSON; `job` is the object of `gpuq.jobs/1`):

| op | request | reply |
|---|---|---|
| status | | pid version protocol state_dir socket started_at jobs {state: n} gpus_note |
| submit | key, template, commands [[argv]…], env, array {indexes, limit}?, last | at the end ids [first, last], notes |
| list | sel, all, limit, after, ids? | jobs, next; of the first page counts and, with a limit, total |
| show | sel | jobs, each with attempts [{…, claims}] and events |
| why | sel | explanations |
| estimates | | estimates [{job, earliest, latest, later_than}], of those that may start |
| stats | seconds? | stats |
| cancel hold release suspend resume retry | sel | done [ids], refused [{id, message}] |
| edit | sel, changes {fields of a template} | done [ids], changed [ids] |
| wait | sel, any, pages, brief | jobs, once all (any: one) of them ended |
| follow | id | stream: {"job": job} now and on each change, until the job ended |
| gpus | | gpus, driver, fault, version, note |
| gpus-switch | do (disable enable), gpus [index or uuid], why? | gpus [{uuid, index, changed}] |
| queues | | queues |
| queue | name, do (set pause resume drain remove), changes? {}, why? | queue, notes, new, changed |
| groups | | groups |
| group | name, do (resume) | group, changed |
| top | | stream of frames: {"gpus", "running", "waiting", "counts", "note"} |
| events | sel?, since?, since_job?, limit, follow, pages | events; with follow then a stream of {"event": event} |
| db-check | | path bytes whole problems checked_at report |
| db-backup | path?, force | path bytes |
| db-restore | path dry_run | path jobs missing waiting; then the daemon begins anew |
| prune | sel, older?, larger?, all, logs_only, dry_run | done [ids], kept [ids], bytes |
| stop | jobs, restart | running, cancelled; the daemon exits after the reply |

`wait` and `events` tell of many in several answers where `pages` asks for it, the last of them with `end`; new events
then come as lists, too. A `brief` wait is told `ended` [[first, last id]…], `counts` {state: n}, and a few jobs: all,
or the first that did not succeed.

A list comes in pages, each asked for by a request of its own: the first with `after` null, the others with what `next`
was; null there ends the list. A page has at most 500 jobs (5,000 where their `ids` will do), and may have none though
more follow. It is read at one moment. Jobs may move between two pages, and the list goes on where it was: what was
submitted later is left out; a job that is there and chosen all the time is sent at least once, what moved meanwhile
perhaps again, and at the end of the list; a reader drops an id that it has had (`Seen`), and has each job once, as it
was when it was first sent. `limit` is how many more the reader wants. A page does not depend on the connection, nor on
the daemon's life. A request without `after`, as clients made it before there were pages, is answered in one line, with
`total` and no job twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gpuq.errors import BadRequest, GpuqError, UsageError, all_errors

PROTOCOL = 1
#: Longest line either side reads, in bytes. Larger submissions travel in parts.
MAX_LINE = 8 * 1024 * 1024
#: Longest command, in bytes of all its arguments together.
MAX_COMMAND = 512 * 1024
#: Longest environment, in bytes.
MAX_ENVIRONMENT = 2 * 1024 * 1024
#: Longest name, tag or output path, in characters.
MAX_TEXT = 4096
MAX_NAME = 200
MAX_TAGS = 100
MAX_PRIORITY = 1000
#: Most jobs that one job waits for.
MAX_AFTER = 10_000
#: Most jobs in one submission and members in one array.
MAX_JOBS = 1_000_000
#: Largest id: SQLite's 64-bit row id.
MAX_ID = 2**63 - 1

Message = dict[str, Any]


_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def encode(message: Mapping[str, Any]) -> bytes:
    """One line, with its newline."""
    return _ENCODE(message).encode("ascii") + b"\n"


def encode_list(messages: Iterable[Message]) -> bytes:
    """The same of several, as a list has them, without its brackets."""
    return _ENCODE(list(messages)).encode("ascii")[1:-1]


def decode(line: bytes) -> Message:
    """The object in one line. Raises BadRequest."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"this is not a line of JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadRequest(f"a message is a JSON object, not {type(message).__name__}")
    return message


def error_reply(error: GpuqError) -> Message:
    return {"ok": False, "error": {"kind": type(error).__name__, "message": error.message}}


def raise_error(error: Mapping[str, Any]) -> None:
    """Raise here what happened in the daemon."""
    cls = all_errors().get(str(error.get("kind")), GpuqError)
    raise cls(str(error.get("message")))


class Selection(NamedTuple):
    """Which jobs a verb is about: ids and ranges, `@last`, states, tags, groups. Several kinds are a conjunction."""

    #: inclusive ranges; a single id is (n, n)
    ranges: tuple[tuple[int, int], ...] = ()
    last: bool = False
    states: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    #: `array:12` is the array of which 12 is the first
    groups: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.ranges or self.last or self.states or self.tags or self.groups)

    def to_json(self) -> Message:
        return {
            "ranges": [list(r) for r in self.ranges],
            "last": self.last,
            "states": list(self.states),
            # a daemon that knows no groups must not take this for more jobs than are meant
            "tags": [*self.tags, *map(_stand_in, self.groups)],
            "groups": list(self.groups),
        }

    @classmethod
    def from_json(cls, value: object) -> Selection:
        """Raises BadRequest for anything that `to_json` cannot have made."""
        if not isinstance(value, dict):
            raise BadRequest(f"a selection is an object, not {type(value).__name__}")
        try:
            ranges = tuple((_id(a), _id(b)) for a, b in value.get("ranges", []))
            states = tuple(_text(s) for s in value.get("states", []))
            groups = tuple(_text(g) for g in value.get("groups", []))
            tags = tuple(_text(t) for t in value.get("tags", []) if t not in set(map(_stand_in, groups)))
        except (TypeError, ValueError):
            raise BadRequest(f"the selection {value!r} is malformed") from None
        for some, what in ((tags, "tags"), (groups, "groups")):
            if len(some) > MAX_TAGS:
                raise UsageError(f"a selection has at most {MAX_TAGS} {what}, and this one has {len(some)}")
        return cls(ranges, value.get("last") is True, states, tags, groups)


def _stand_in(group: str) -> str:
    """A tag that no job has."""
    return f"group={group}\0"


def _id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_ID:
        raise ValueError(value)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value.encode("utf-8", "replace").decode("utf-8")  # as tags are kept


class Seen:
    """Ids that were met: a bit for each, for the ids of a queue follow each other."""

    #: ids of a block, and so bytes times eight
    _BLOCK = 1 << 16

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, job_id: int) -> bool:
        """Note an id; whether it is new."""
        block, place = divmod(job_id, self._BLOCK)
        bits = self._blocks.get(block)
        if bits is None:
            bits = self._blocks[block] = bytearray(self._BLOCK // 8)
        byte, bit = place >> 3, 1 << (place & 7)
        if bits[byte] & bit:
            return False
        bits[byte] |= bit
        return True


def spans(ids: Iterable[int]) -> list[list[int]]:
    """Inclusive ranges, as a Selection holds them: of many thousand ids that follow each other, one."""
    found: list[list[int]] = []
    for job in sorted(ids):
        if found and job == found[-1][1] + 1:
            found[-1][1] = job
        else:
            found.append([job, job])
    return found


def ranges(ids: Iterable[int]) -> str:
    """`3, 5-9` from 3 5 6 7 8 9."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans(ids))


def parse_ids(
    words: list[str], states: str | None = None, tags: list[str] | None = None, groups: list[str] | None = None
) -> Selection:
    """A selection from the command line: `12`, `12-20`, `@last`, `--state a,b`, `--tag t`, `--group g`.

    Raises UsageError.
    """
    ranges: list[tuple[int, int]] = []
    last = False
    for word in words:
        if word == "@last":
            last = True
            continue
        first, dash, end = word.partition("-")
        if not _is_number(first) or (dash and not _is_number(end)):
            raise UsageError(f"{word!r} is not a job id: write 12, 12-20 or @last")
        low, high = int(first), int(end) if dash else int(first)
        if high < low:
            raise UsageError(f"the range {word!r} is upside down: write {high}-{low}")
        ranges.append((low, high))
    chosen = tuple(s.strip() for s in states.split(",")) if states is not None else ()
    return Selection(tuple(ranges), last, chosen, tuple(tags or ()), tuple(groups or ()))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
