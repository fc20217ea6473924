"""An event as a line of text: time, job, kind, attempt, and what belongs to the kind; escaped."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gpuq.cli import fields
from gpuq.units import format_size, printable

Event = Mapping[str, Any]
#: What is known of which UUID has which index.
Indexes = Mapping[str, int]

#: Characters of a UUID that tell GPUs of a host apart.
SHORT_UUID = 8


def head(event: Event, *, named: bool = False) -> str:
    """The columns in front of the details; `named` tells the job as well."""
    job = f"{event['job'] if event.get('job') is not None else '-':>6}  " if named else ""
    return f"{fields.local_time(event['at'])}  {job}{event['kind']:<14}  "


def details(event: Event, indexes: Indexes) -> str:
    """`attempt=2  gpus=gpu0,1`: the attempt from the second on, and the event's own data."""
    attempt = event.get("attempt") or 1
    words = [f"attempt={attempt}"] if attempt > 1 else []
    data = dict(event.get("data") or {})
    for told_elsewhere in ("why", "reserved_at"):
        data.pop(told_elsewhere, None)
    then = data.pop("indexes", None)  # what the GPUs were called when it happened; older events do not tell
    if then is not None:
        indexes = {uuid: index for uuid, index in zip(data.get("gpus") or (), then, strict=False) if index is not None}
    for key, value in data.items():
        shown = gpus_word(value, indexes) if key == "gpus" else _value(key, value)
        words += [f"{printable(str(key))}={shown}"] if shown else []
    return "  ".join(words)


def gpus_word(uuids: Iterable[str], indexes: Indexes) -> str:
    """`gpu0,1`; short UUIDs where one of them is not known."""
    found = list(uuids)
    if found and all(uuid in indexes for uuid in found):
        return "gpu" + ",".join(str(indexes[uuid]) for uuid in found)
    return ",".join(short_uuid(uuid) for uuid in found)


def short_uuid(uuid: str) -> str:
    return printable(uuid.removeprefix("GPU-")[:SHORT_UUID])


def indexes_of(job: Mapping[str, Any]) -> dict[str, int]:
    """The indexes that the object of a job tells, of its newest attempt and, from `show`, of former ones."""
    pairs = list(zip(job["gpus"], job.get("gpu_indexes") or (), strict=False))
    pairs += [(claim["gpu"], claim["index"]) for attempt in job.get("attempts") or () for claim in attempt["claims"]]
    return {uuid: index for uuid, index in pairs if index is not None}


def _value(key: str, value: object) -> str:
    if isinstance(value, str):
        return short_uuid(value) if key == "gpu" else printable(value)
    if key in ("vram", "ram") and isinstance(value, int):
        return format_size(value)
    return json.dumps(value)
