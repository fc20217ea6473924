"""What strangers, careless scripts and broken disks may hand to gpuq, as hypothesis strategies."""

from __future__ import annotations

import json
import string
from typing import Any

from hypothesis import strategies as st

from gpuq.daemon.handlers import ANSWERS, STREAMS

#: Any text at all, lone surrogates included, which JSON's escapes can carry.
anything_text = st.text(st.characters(), max_size=40) | st.sampled_from(["", "\0", "\ud800", "\u202e", "²", "9" * 400])
numbers = (
    st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 1e308, 10**4299])
)
scalars = st.none() | st.booleans() | numbers | anything_text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything_text, inner, max_size=4),
    max_leaves=12,
)


def words(alphabet: str, *examples: str) -> st.SearchStrategy[str]:
    """Text that is nearly right: of the right characters, or right ones with some changes."""
    made = st.text(st.sampled_from(alphabet), max_size=14)
    return made | st.sampled_from(examples) | mutated_text(st.sampled_from(examples)) | anything_text


def mutated_text(source: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Right ones with one place replaced."""
    return st.builds(
        lambda text, at, new, gone: text[: at % (len(text) + 1)] + new + text[at % (len(text) + 1) + gone :],
        source,
        st.integers(0, 60),
        anything_text,
        st.integers(0, 3),
    )


DIGITS = string.digits
sizes = words(DIGITS + ".KMGTiB eE-+", "10GiB", "1.5GiB", "512M", "1023.9TiB", "0.0001K")
durations = words(DIGITS + ".dhms: -", "90s", "1h30m", "1d2h3m4.5s", "12:34:56", "0.5s")
arrays = words(DIGITS + "-,:% ", "0-99%4", "1,3,5-9", "0-10:2", "0-9,20-29:3%2")
ids = words(DIGITS + "-@last", "12", "12-20", "@last", "0-999999999999999999")
dependencies = words(
    DIGITS + ":,|=okanyfiled@", "ok:12", "any:@last", "failed:3", "1,2,any:3", "started:4|each:5", "ok:tag=a"
)
begins = words(DIGITS + "now+:-T dhms.Z", "now+1h", "16:00", "2026-11-23T08:00", "2h", "9999-12-31T23:59:59+14:00")
retries = words(DIGITS + "vram-oomlst,:*. ", "2", "vram-oom:2*1.5", "lost,gpu-lost:3", "vram-oom:1*16", "1000")
signals = words(DIGITS + "USRTEM@smh ", "USR1@300", "TERM@5m", "10@1s", "SIGINT@0.5s", "RTMIN@60")
tomls = words(
    string.printable,
    'margin = "1GiB"\n',
    'grace = "10s"\nover_claim = "kill"\n',
    "list_rows = 9\n",
    "whole_foreign_percent = 2.5\n",
    "default_gpus = 99999999999999999999\n",
    "margin = inf\ngrace = nan\n",
    "list_rows = 2026-11-22T00:00:00Z\n",
    "[margin]\nx = 1\n",
)

# --- messages -------------------------------------------------------------------------------------

TEMPLATE = {
    "cwd": "/proc",  # where no job that is let go can make a file
    "name": "n",
    "gpus": 0,
    "cpus": 1,
    "ram": 1,
    "vram": None,
    "gpus_most": None,
    "gpu_types": [],
    "gpu_min_memory": None,
    "gpu_ids": [],
    "gpus_excluded": [],
    "spread": False,
    "priority": 0,
    "time_limit": 60.0,
    "grace": 1.0,
    "early_signal": "USR1@10",
    "log_limit": 10**6,
    "retry": ["2"],
    "begin_at": 0,
    "after": [],
    "tags": ["t"],
    "umask": 0o22,
    "limits": [[7, 1024]],
    "output": None,
    "hold": True,
}
SUBMIT = {
    "v": 1,
    "op": "submit",
    "key": "0123456789abcdef",
    "template": TEMPLATE,
    "commands": [["true"]],
    "env": {"A": "1"},
    "array": None,
    "last": True,
}
SELECTION = {"ranges": [[1, 5]], "last": False, "states": ["held"], "tags": ["t"]}
#: `stop` would end the daemon, as it should.
OPERATIONS = sorted((ANSWERS.keys() | STREAMS.keys()) - {"stop"})
GOOD: list[dict[str, Any]] = [SUBMIT, {"v": 1, "op": "follow", "id": 1}] + [
    {"v": 1, "op": op, "sel": SELECTION, "limit": 3, "since": 0, "all": True, "any": True, "follow": True}
    for op in OPERATIONS
]


@st.composite
def changed(draw: st.DrawFn, good: Any) -> Any:
    """A valid value with one part replaced by anything, added or left out, however deep."""
    if isinstance(good, dict) and good and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(good)))
        how = draw(st.integers(0, 5))
        if how == 0:
            return {key: value for key, value in good.items() if key != name}
        if how == 1:
            return {**good, draw(anything_text): draw(values)}
        return {**good, name: draw(changed(good[name]))}
    if isinstance(good, list) and good and draw(st.booleans()):
        at = draw(st.integers(0, len(good) - 1))
        return [*good[:at], draw(changed(good[at])), *good[at + 1 :]]
    return draw(values)


def _not_stop(message: Any) -> bool:
    return not (isinstance(message, dict) and message.get("op") == "stop")


messages = st.sampled_from(GOOD).flatmap(changed).filter(_not_stop)
templates = changed(TEMPLATE)
_gpu_names = st.sampled_from(["0", "1", "00", "7", "GPU-a", "gpu-", "GPU-sim", ""]) | anything_text
#: For each field what looks like a value of it.
likely_templates = st.fixed_dictionaries(
    {"cwd": st.just("/"), "gpus": st.sampled_from([0, 1, None])},
    optional={
        "time_limit": st.floats(0.001, 1e9),
        "early_signal": signals,
        "retry": st.lists(retries, max_size=3),
        "after": st.lists(dependencies, max_size=3),
        "tags": st.lists(anything_text, max_size=3),
        "name": anything_text,
        "output": anything_text,
        "vram": numbers,
        "gpus_most": numbers,
        "gpu_types": st.lists(anything_text, max_size=3),
        "gpu_min_memory": numbers,
        "gpu_ids": st.lists(_gpu_names, max_size=3),
        "gpus_excluded": st.lists(_gpu_names, max_size=3),
        "spread": st.booleans(),
        "ram": numbers,
        "log_limit": numbers,
        "limits": st.lists(st.lists(numbers, max_size=3), max_size=3),
    },
)


# --- requests with one field that is near the border of what is right -------------------------------

_texts = st.sampled_from(["", "x", "ü", "x" * 200, "x" * 201, "a\nb"]) | anything_text
_sizes = st.sampled_from([0, 1, 65535, 65536, 2**30, 2**50, 2**62, -1, True, 1.0, None]) | st.integers(0, 2**40)
_seconds = st.sampled_from([0, 0.0, -0.0, 1, 1e-9, 61, 3.2e8, 1e10, float("nan"), float("inf"), None]) | st.floats(
    0, 1e9
)
_whole = st.integers(-3, 70) | st.sampled_from([999, 1000, 1001, -1000, -1001, 1024, 1025, 65536, 65537, 511, 512])
_lists = {
    "tags": _texts,
    "retry": retries,
    "after": dependencies,
    "gpu_types": _texts,
    "gpu_ids": _gpu_names,
    "gpus_excluded": _gpu_names,
}
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("name", "output"), _texts | st.none()),
    **dict.fromkeys(("cpus", "gpus", "gpus_most", "priority", "umask"), _whole | st.none()),
    **dict.fromkeys(("ram", "vram", "gpu_min_memory", "log_limit"), _sizes),
    **dict.fromkeys(("time_limit", "grace", "begin_at"), _seconds),
    **{name: st.lists(one, max_size=3) for name, one in _lists.items()},
    "early_signal": signals,
    "cwd": st.sampled_from(["/", "/proc/", "/etc/passwd", "/nowhere", "tmp", ""]) | _texts,
    "limits": st.lists(st.tuples(st.integers(-1, 65), st.integers(-2, 2**63)), max_size=3),
}
_PARTS: dict[str, st.SearchStrategy[Any]] = {
    "key": st.text("abcdef", min_size=6, max_size=66),
    "commands": st.lists(
        st.lists(st.sampled_from(["true", "", "a\0b", "\ud800", "x" * 131072]), max_size=2), max_size=3
    ),
    "env": st.dictionaries(st.sampled_from(["A", "", "A=B", "\0", "ü", "\udcff"]), _texts, max_size=3),
    "array": st.fixed_dictionaries(
        {"indexes": st.lists(st.integers(-1, 9) | st.sampled_from([10**9, 10**9 + 1]), max_size=4)},
        optional={"limit": _whole | st.none()},
    ),
    "last": st.sampled_from([True, False, None, 1]),
}
_selections = st.fixed_dictionaries(
    {},
    optional={
        "ranges": st.lists(
            st.lists(st.integers(0, 40) | st.sampled_from([-1, 2**63 - 1, 2**63]), min_size=2, max_size=2)
        ),
        "last": st.booleans(),
        "states": st.lists(st.sampled_from(["held", "queued", "failed", "cancelled", "asleep", ""]), max_size=2),
        "tags": st.lists(_texts, max_size=2),
    },
)
_counts = st.sampled_from([0, 1, 10**6, 2**63 - 1, 2**63, -1, None, 1.5])


@st.composite
def likely(draw: st.DrawFn) -> dict[str, Any]:
    """A request of which all is right but one field, which may be right as well."""
    if draw(st.booleans()):
        message = {**SUBMIT, "key": draw(st.binary(min_size=8, max_size=8)).hex()}
        name = draw(st.sampled_from(sorted(_FIELDS | _PARTS)))
        if name in _PARTS:
            return {**message, name: draw(_PARTS[name])}
        gpus = {"gpus": 1} if name == "vram" or name.startswith("gpu") else {}
        return {**message, "template": {**TEMPLATE, **gpus, name: draw(_FIELDS[name])}}
    message = {"v": 1, "op": draw(st.sampled_from(OPERATIONS)), "sel": {"ranges": [[1, 9]]}, "id": 1, "dry_run": True}
    name, other = draw(st.sampled_from([("sel", _selections), ("limit", _counts), ("since", _counts), ("id", _counts)]))
    return {**message, "all": draw(st.booleans()), name: draw(other)}


def line(message: Any) -> bytes:
    """As a client sends it. Python's JSON has NaN and infinities, which are part of what strangers may send."""
    return json.dumps(message).encode("ascii") + b"\n"


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """What is sent on one connection: messages, some of them damaged, or bytes that were never any."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return draw(st.binary(max_size=300))
    if how == 1:
        return b"[" * draw(st.integers(1, 200_000)) + b"\n"
    if how == 2:
        return b'{"v":1,"op":' + b'{"a":' * draw(st.integers(1, 50_000)) + b"1" + b"}" * 50_000 + b"\n"
    said = draw(st.lists(likely() if how > 4 else messages, min_size=1, max_size=4))
    sent = b"".join(line(message) for message in said)
    if how == 3:
        at = draw(st.integers(0, len(sent)))
        sent = sent[:at] + draw(st.binary(max_size=4)) + sent[at + draw(st.integers(0, 4)) :]
        if b"stop" in sent:
            return b"\n"
    if how == 4:
        return sent[: draw(st.integers(0, len(sent)))]
    return sent


# --- files of a run folder ------------------------------------------------------------------------

IDENTITY = {"pid": 2**30, "start_time": 1, "boot_id": "b"}
RESULT = {
    "wait_status": 0,
    "start_failure": None,
    "timed_out": False,
    "ended": False,
    "leftovers": 0,
    "log_start": 0,
    "log_end": 0,
    "started_at": 1.0,
    "ended_at": 2.0,
    "user_seconds": 0.0,
    "system_seconds": 0.0,
    "max_rss_bytes": 1,
    "oom_kills": 0,
    "host_oom_kills": 0,
    "warned": 10,
    "warned_processes": 1,
}
FAILED = {**RESULT, "wait_status": None, "start_failure": {"step": "exec", "errno": 2, "text": "no such file"}}


def contents(*good: Any) -> st.SearchStrategy[bytes]:
    """A file's bytes: nearly right, or anything."""
    made = st.sampled_from(good).flatmap(changed).map(lambda value: json.dumps(value).encode())
    cut = st.builds(lambda data, at: data[: at % (len(data) + 1)], made, st.integers(0, 400))
    return made | cut | st.binary(max_size=100) | st.just(b"[" * 60_000) | st.just(b" " * 70_000)


run_folders = st.fixed_dictionaries(
    {},
    optional={
        "identity": contents(IDENTITY) | st.none(),
        "result": contents(RESULT, FAILED) | st.none(),
        "lock": st.binary(max_size=50) | st.none(),
    },
)
