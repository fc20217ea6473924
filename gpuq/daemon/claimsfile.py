"""What a daemon tells the others of this host about its claims: one JSON object, checked strictly. No effects.

    {"v": 1, "state": HASH, "pid": N, "start": TICKS, "boot": ID, "pid_ns": INODE,
     "waits": {"since": MS, "gpus": N, "bytes": N or null, "only": [UUID, …] or null} or null,
     "claims": [{"gpu": UUID, "bytes": N or null, "run": HASH, "supervisor": [PID, TICKS] or null, "pids": [PID, …]}]}

`bytes` is null for whole GPUs; `waits` is the request that the daemon would place next, `only` the GPUs that will do
for it, null for all; `supervisor` is null until it
has been started; the hashes stand for the state folder and the attempt's run folder, whose names are nobody's business.
Fields that are not known are passed over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

VERSION = 1
#: A file is at most so long, in bytes.
MAX_BYTES = 256 * 1024
MAX_CLAIMS = 1024
MAX_PIDS = 256
#: The kernel's own limit on pids: PID_MAX_LIMIT of <linux/threads.h>.
MAX_PID = 4 * 1024 * 1024
#: No GPU has so much memory.
MAX_CLAIM = 2**50
MAX_INTEGER = 2**63 - 1
UUID = re.compile(r"[A-Za-z0-9-]{1,96}", re.ASCII)
HASH = re.compile(r"[0-9a-f]{32}", re.ASCII)
BOOT = re.compile(r"[0-9a-f-]{36}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PublishedClaim:
    gpu: str
    #: bytes; None for the whole GPU
    bytes: int | None
    #: hash of the attempt's run folder
    run: str
    #: pid and start time
    supervisor: tuple[int, int] | None = None
    #: processes that were seen on the GPU
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PublishedWait:
    """A request that could not be placed; `since` is in monotonic milliseconds."""

    since: int
    gpus: int
    bytes: int | None
    #: the GPUs that will do, None for all
    only: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """All that one daemon says."""

    #: hash of the state folder
    state: str
    pid: int
    #: clock ticks since boot
    start_time: int
    boot_id: str
    #: inode of the PID namespace in which the pids are meant
    pid_ns: int
    claims: tuple[PublishedClaim, ...] = ()
    waits: PublishedWait | None = None


def hashed(path: bytes) -> str:
    return hashlib.sha256(path).hexdigest()[:32]


def encode(said: Published) -> bytes:
    """The file's content. Where it would grow too long the pids go first, then the smallest claims."""
    whole_first = sorted(said.claims, key=lambda c: (c.bytes is not None, -(c.bytes or 0)))
    claims = whole_first[:MAX_CLAIMS]
    body = _dump(said, claims, MAX_PIDS)
    return body if len(body) <= MAX_BYTES else _dump(said, claims, 0)


def _dump(said: Published, claims: list[PublishedClaim], pids: int) -> bytes:
    listed = [
        {"gpu": c.gpu, "bytes": c.bytes, "run": c.run, "supervisor": c.supervisor, "pids": c.pids[:pids]}
        for c in claims
    ]
    body = {
        "v": VERSION,
        "state": said.state,
        "pid": said.pid,
        "start": said.start_time,
        "boot": said.boot_id,
        "pid_ns": said.pid_ns,
        "waits": None if said.waits is None else asdict(said.waits),
        "claims": listed,
    }
    return json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n"


def parse(content: bytes) -> Published:
    """What a file says. Raises ValueError for anything that is not exactly as described above."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        said = json.loads(content.decode("ascii"), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(said, dict) or said.get("v") != VERSION:
        raise ValueError(f"it is no object of version {VERSION}")
    claims = said.get("claims")
    if not isinstance(claims, list) or len(claims) > MAX_CLAIMS:
        raise ValueError(f"claims is no list of at most {MAX_CLAIMS}")
    return Published(
        state=_text(said, "state", HASH),
        pid=_integer(said.get("pid"), 1, MAX_PID),
        start_time=_integer(said.get("start"), 0, MAX_INTEGER),
        boot_id=_text(said, "boot", BOOT),
        pid_ns=_integer(said.get("pid_ns"), 1, MAX_INTEGER),
        claims=tuple(map(_claim, claims)),
        waits=None if said.get("waits") is None else _wait(said["waits"]),
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _claim(said: object) -> PublishedClaim:
    if not isinstance(said, dict):
        raise ValueError("a claim is no object")
    pids, supervisor = said.get("pids"), said.get("supervisor")
    if not isinstance(pids, list) or len(pids) > MAX_PIDS:
        raise ValueError(f"pids is no list of at most {MAX_PIDS}")
    return PublishedClaim(
        gpu=_text(said, "gpu", UUID),
        bytes=_bytes(said),
        run=_text(said, "run", HASH),
        supervisor=None if supervisor is None else _process(supervisor),
        pids=tuple(_integer(pid, 1, MAX_PID) for pid in pids),
    )


def _wait(said: object) -> PublishedWait:
    if not isinstance(said, dict):
        raise ValueError("waits is no object")
    since, gpus, only = (
        _integer(said.get("since"), 0, MAX_INTEGER),
        _integer(said.get("gpus"), 1, 1024),
        said.get("only"),
    )
    return PublishedWait(since, gpus, _bytes(said), None if only is None else _some(only))


def _some(said: object) -> tuple[str, ...]:
    if not isinstance(said, list) or not 0 < len(said) <= MAX_CLAIMS:
        raise ValueError(f"only is no list of 1 to {MAX_CLAIMS} GPUs")
    return tuple(_named(uuid, "a GPU", UUID) for uuid in said)


def _bytes(said: Mapping[str, Any]) -> int | None:
    return None if said.get("bytes", 0) is None else _integer(said.get("bytes"), 0, MAX_CLAIM)


def _process(said: object) -> tuple[int, int]:
    if not isinstance(said, list) or len(said) != 2:
        raise ValueError("a process is a pid and a start time")
    return _integer(said[0], 1, MAX_PID), _integer(said[1], 0, MAX_INTEGER)


def _integer(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is no whole number from {low} to {high}")
    return value


def _text(said: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    return _named(said.get(key), key, pattern)


def _named(value: object, what: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is {value!r:.40}, which it cannot be")
    return value
