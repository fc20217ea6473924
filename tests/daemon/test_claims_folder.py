"""Hostile files in the folder where claims are told: none stops a daemon or misleads it, nor makes it slow."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq.daemon.claimnames import MAX_OF_USER
from gpuq.daemon.claimsfile import (
    MAX_BYTES,
    MAX_CLAIMS,
    Published,
    PublishedClaim,
    PublishedWait,
    encode,
    parse,
)
from gpuq.daemon.neighbours import Neighbours, pid_namespace
from gpuq.daemon.sharing import TURN_PATIENCE, Sharing
from gpuq.launch.identity import boot_id, identity_of
from gpuq.policy.neighbours import NeighbourClaim
from tests.fakenvml import FakeNvml, fake_gpus
from tests.harness import Box

GiB = 1024**3
GPU = "GPU-fa4e0000-0000-0000-0000-000000000000"
OURS, THEIRS = "0" * 32, "1" * 32
#: Somebody else, where we are root and can be anybody.
STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "claims"
    made.mkdir()
    made.chmod(0o1777)
    return made


@pytest.fixture
def someone() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives for as long as the test."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def said(pid: int, *claims: PublishedClaim, state: str = THEIRS, **more: Any) -> Published:
    me = identity_of(pid)
    assert me is not None
    fields = {"start_time": me.start_time, "boot_id": boot_id(), "pid_ns": pid_namespace(), **more}
    return Published(state, pid, claims=claims, **fields)


def claim(size: int | None = 10, **more: Any) -> PublishedClaim:
    return PublishedClaim(GPU, None if size is None else size * GiB, "a" * 32, **more)


def place(folder: Path, digit: str = "b", uid: int | None = None) -> Path:
    return folder / f"gpuq-claims.{os.geteuid() if uid is None else uid}.{digit * 32}"


class Counted:
    """A function, and what it was called with first."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls: list[Any] = []

    def __call__(self, first: Any, *args: Any, **more: Any) -> Any:
        self.calls.append(first)
        return self.function(first, *args, **more)


def found(folder: Path) -> list[NeighbourClaim]:
    return [c for claims in Neighbours(folder, OURS).read().claims.values() for c in claims]


def test_a_claim_counts_while_its_daemon_or_its_supervisor_lives(
    folder: Path, someone: subprocess.Popen[bytes]
) -> None:
    supervisor = identity_of(someone.pid)
    assert supervisor is not None
    file = place(folder)
    file.write_bytes(encode(said(os.getpid(), claim())))
    assert [c.bytes for c in found(folder)] == [10 * GiB]
    dead = subprocess.Popen(["true"])
    former = identity_of(dead.pid)
    assert former is not None
    dead.wait()
    ghost = said(os.getpid(), claim(supervisor=(someone.pid, supervisor.start_time)))
    ghost = Published(THEIRS, dead.pid, former.start_time, boot_id(), pid_namespace(), ghost.claims)
    file.write_bytes(encode(ghost))
    assert [(c.supervisor, c.traceable) for c in found(folder)] == [(someone.pid, True)]
    for wrong in ((someone.pid, supervisor.start_time + 1), (dead.pid, former.start_time)):
        file.write_bytes(encode(Published(THEIRS, dead.pid, 0, boot_id(), pid_namespace(), (claim(supervisor=wrong),))))
        assert found(folder) == []
    file.write_bytes(encode(said(os.getpid(), claim(), boot_id="0" * 36)))
    assert found(folder) == []
    file.write_bytes(encode(said(os.getpid(), claim(), state=OURS)))
    assert found(folder) == []


def test_of_another_pid_namespace_only_the_lock_tells(folder: Path) -> None:
    """So it is where /proc hides other users' processes."""
    file = place(folder)
    file.write_bytes(encode(said(os.getpid(), claim(supervisor=(os.getpid(), 5), pids=(7,)), pid_ns=1)))
    assert found(folder) == []
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [(c.traceable, c.supervisor, c.pids) for c in found(folder)] == [(False, None, frozenset())]
    assert found(folder) == []


def test_of_a_daemon_that_says_two_things_the_newest_counts(folder: Path) -> None:
    old, new = place(folder, "b"), place(folder, "c")
    old.write_bytes(encode(said(os.getpid(), claim(10))))
    os.utime(old, (1, 1))
    new.write_bytes(encode(said(os.getpid(), claim(4))))
    assert [c.bytes for c in found(folder)] == [4 * GiB]


def test_what_changes_is_seen_and_what_does_not_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbours, file = Neighbours(folder, OURS), place(folder)
    for size in (1, 2, 3, 2, 1):  # within one tick of the clock by which changes are dated
        file.write_bytes(encode(said(os.getpid(), claim(size))))
        assert [c.bytes for c in neighbours.read().claims[GPU]] == [size * GiB]
    file.unlink()
    assert neighbours.read().claims == {}
    file.write_bytes(encode(said(os.getpid(), claim())))
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert neighbours.read().claims
    opened = Counted(os.open)
    monkeypatch.setattr(os, "open", opened)
    assert neighbours.read().claims
    assert opened.calls == [folder]


# --- hostile --------------------------------------------------------------------------------------


def _garbage(body: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(body)


def _changed(**fields: object) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        body = json.loads(encode(said(os.getpid(), claim())))
        file.write_text(json.dumps({**body, **fields}))

    return write


def _claims(**fields: object) -> Callable[[Path], object]:
    good = json.loads(encode(said(os.getpid(), claim())))["claims"][0]
    return _changed(claims=[{**good, **fields}])


def _huge(file: Path) -> None:
    file.write_bytes(b'{"v": 1, "claims": [' + b" " * MAX_BYTES)
    os.truncate(file, 2**40)


def _good_elsewhere(file: Path) -> Path:
    target = file.parent.parent / "elsewhere"
    target.write_bytes(encode(said(os.getpid(), claim())))
    return target


def _link_to_fifo(file: Path) -> None:
    os.mkfifo(file.parent.parent / "fifo")
    file.symlink_to("../fifo")


HOSTILE: dict[str, Callable[[Path], object]] = {
    "nothing": _garbage(b""),
    "no JSON": _garbage(b"\x00\xff" * 1000),
    "a list": _garbage(b"[]"),
    "half": lambda file: file.write_bytes(encode(said(os.getpid(), claim()))[:-10]),
    "huge": _huge,
    "deep": _garbage(b'{"v":1,"claims":' + b"[" * 100_000),
    "a long number": _garbage(b'{"v":1,"pid":' + b"9" * 100_000 + b"}"),
    "NaN": _garbage(encode(said(os.getpid(), claim())).replace(str(10 * GiB).encode(), b"NaN")),
    "infinity": _garbage(encode(said(os.getpid(), claim())).replace(str(10 * GiB).encode(), b"1e999")),
    "a fraction": _claims(bytes=1.5),
    "negative": _claims(bytes=-1),
    "too many bytes": _claims(bytes=2**70),
    "true": _claims(bytes=True),
    "text": _claims(bytes="10GiB"),
    "a UUID that is none": _claims(gpu="GPU\n\x1b[31m"),
    "a long UUID": _claims(gpu="x" * 1000),
    "no supervisor": _claims(supervisor=[0, 0]),
    "a supervisor too many": _claims(supervisor=[1, 2, 3]),
    "pids of groups": _claims(pids=[-1]),
    "too many pids": _claims(pids=[1] * 10_000),
    "too many claims": _changed(claims=[{}] * (MAX_CLAIMS + 1)),
    "a negative pid": _changed(pid=-1),
    "pid of everybody": _changed(pid=0),
    "a huge pid": _changed(pid=2**31),
    "another version": _changed(v=2),
    "a wait for no GPU": _changed(waits={"since": 0, "gpus": 0, "bytes": 1}),
    "a wait on no GPU": _changed(waits={"since": 0, "gpus": 1, "bytes": 1, "only": []}),
    "a wait on a GPU that is none": _changed(waits={"since": 0, "gpus": 1, "bytes": 1, "only": ["../x"]}),
    "a link to a good one": lambda file: file.symlink_to(_good_elsewhere(file)),
    "a link to a secret": lambda file: file.symlink_to("/etc/shadow"),
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a FIFO": lambda file: os.mkfifo(file),
    "a folder": lambda file: file.mkdir(),
    "a link to a FIFO": lambda file: _link_to_fifo(file),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_a_claims_file_is_passed_over(folder: Path, kind: str) -> None:
    good = place(folder, "c")
    good.write_bytes(encode(said(os.getpid(), claim(3), state="2" * 32)))
    HOSTILE[kind](place(folder, "a"))
    neighbours = Neighbours(folder, OURS)
    for _ in range(2):
        assert [c.bytes for c in neighbours.read().claims[GPU]] == [3 * GiB]
    neighbours.leftovers()


@as_root
def test_nobody_speaks_for_another_user(folder: Path, someone: subprocess.Popen[bytes]) -> None:
    """Neither under his name nor with his processes."""
    me = identity_of(someone.pid)
    assert me is not None
    body = encode(said(someone.pid, claim(supervisor=(me.pid, me.start_time))))
    for name_of, owner in ((os.geteuid(), STRANGER), (STRANGER, os.geteuid()), (STRANGER, STRANGER)):
        file = place(folder, uid=name_of)
        file.write_bytes(body)
        os.chown(file, owner, owner)
        assert found(folder) == []  # the daemon that it names is ours, not the stranger's
        file.unlink()
    theirs = subprocess.Popen(["sleep", "600"], user=STRANGER, group=STRANGER)
    try:
        file = place(folder, uid=STRANGER)
        file.write_bytes(encode(said(theirs.pid, claim(supervisor=(someone.pid, me.start_time), pids=(someone.pid,)))))
        os.chown(file, STRANGER, STRANGER)
        assert [(c.uid, c.owner) for c in found(folder)] == [(STRANGER, str(STRANGER))]
    finally:
        theirs.kill()
        theirs.wait()
    assert found(folder) == []  # only our process is left of what it names


@as_root
def test_a_hundred_thousand_files_hide_nobody_and_are_looked_at_once(folder: Path) -> None:
    """Hard links to a few files of a stranger, under our name, and more than he may have under his own."""
    for number in range(4):
        theirs = folder / f"file-{number}"
        theirs.write_bytes(encode(said(os.getpid(), claim(supervisor=(os.getpid(), 0)), state="2" * 32)))
        os.chown(theirs, STRANGER, STRANGER)
        for n in range(25_000):
            os.link(theirs, folder / f"gpuq-claims.{os.geteuid()}.{number}{n:031x}")
        for n in range(MAX_OF_USER):
            os.link(theirs, folder / f"gpuq-claims.{STRANGER}.{number}{n:031x}")
    place(folder, "f").write_bytes(encode(said(os.getpid(), claim(3))))
    neighbours = Neighbours(folder, OURS)
    looks = Counted(os.stat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", looks)
        assert [c.bytes for c in neighbours.read().claims[GPU]] == [3 * GiB]
        assert len(looks.calls) > 100_000
        looks.calls.clear()
        patch.setattr(os, "scandir", None)  # nor are they listed again because something changed
        fresh = said(os.getpid(), claim(5), state="3" * 32)
        for digit in ("e", "d"):
            place(folder, digit).write_bytes(encode(fresh))
            assert sorted(c.bytes or 0 for c in neighbours.read().claims[GPU]) == [3 * GiB, 5 * GiB]
        assert len(looks.calls) < 200
    assert sum(map(len, neighbours._names._known.values())) <= 2 * MAX_OF_USER


def test_more_changes_than_the_kernel_tells_of_hide_nothing(folder: Path) -> None:
    neighbours = Neighbours(folder, OURS)
    assert neighbours.read().claims == {}
    place(folder, "f").write_bytes(encode(said(os.getpid(), claim(3))))
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for n in range(most // 2 + 1):
        for name in ("x", "y"):  # two that are alike would count as one
            os.close(os.open(folder / f"{name}{n}", os.O_CREAT | os.O_WRONLY))
            os.unlink(folder / f"{name}{n}")
    place(folder, "e").write_bytes(encode(said(os.getpid(), claim(5), state="3" * 32)))
    assert sorted(c.bytes or 0 for c in neighbours.read().claims[GPU]) == [3 * GiB, 5 * GiB]


def test_without_word_of_changes_they_are_found_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have as many inotify instances as he may have, and no more."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(inotify_init1=lambda _: -1))
    neighbours = Neighbours(folder, OURS)
    for size in (1, 2, 3):
        place(folder, str(size)).write_bytes(encode(said(os.getpid(), claim(size), state=str(size) * 32)))
        assert len(neighbours.read().claims[GPU]) == size


def test_two_thousand_files_of_one_user_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2000):
        body = encode(said(os.getpid(), claim(), state=f"{number:032x}"))
        (folder / f"gpuq-claims.{os.geteuid()}.{number:032x}").write_bytes(body)
    opened = Counted(os.open)
    monkeypatch.setattr(os, "open", opened)
    assert len(found(folder)) == MAX_OF_USER
    assert len(opened.calls) <= MAX_OF_USER + 2


FIELDS = "v state pid start boot pid_ns claims waits since gpus gpu bytes run supervisor pids".split()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=8),
    max_leaves=12,
)


@given(ANYTHING, st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=3))
def test_whatever_json_says_it_is_valid_or_refused(value: object, fields: dict[str, object]) -> None:
    good = json.loads(encode(Published(THEIRS, 5, 6, boot_id(), 7, (claim(),))))
    for said in (value, good | fields, good | {"claims": [good["claims"][0] | fields]}):
        with contextlib.suppress(ValueError):
            heard = parse(json.dumps(said).encode())
            assert parse(encode(heard)) == heard


SIZES = st.none() | st.integers(0, 2**50)
PIDS = st.integers(1, 2**22)
CLAIMS = st.builds(
    PublishedClaim,
    st.just(GPU),
    SIZES,
    st.just("a" * 32),
    st.none() | st.tuples(PIDS, st.integers(0, 2**60)),
    st.lists(PIDS, max_size=9).map(tuple),
)
ONLY = st.none() | st.lists(st.sampled_from([GPU, "GPU-1"]), min_size=1, max_size=3).map(tuple)
WAITS = st.builds(PublishedWait, st.integers(0, 2**60), st.integers(1, 1024), SIZES, ONLY)


@given(st.lists(CLAIMS, max_size=5), st.none() | WAITS)
def test_what_is_told_is_understood(claims: list[PublishedClaim], waits: PublishedWait | None) -> None:
    told = Published(THEIRS, 5, 6, boot_id(), 7, tuple(claims), waits)
    heard = parse(encode(told))
    assert (heard.state, heard.pid, heard.start_time, heard.waits) == (told.state, 5, 6, waits)
    assert sorted(map(repr, heard.claims)) == sorted(map(repr, claims))


def test_too_much_to_tell_is_cut_and_stays_valid() -> None:
    many = tuple(claim(n % 50, pids=tuple(range(1, 300)), supervisor=(2**22, 2**62)) for n in range(3 * MAX_CLAIMS))
    body = encode(Published(THEIRS, 5, 6, boot_id(), 7, (*many, claim(None))))
    assert len(body) <= MAX_BYTES
    heard = parse(body).claims
    assert len(heard) == MAX_CLAIMS
    assert heard[0].bytes is None  # the largest are those that must not be missed
    assert heard[1].bytes == 49 * GiB


# --- the lock -------------------------------------------------------------------------------------


def test_only_one_has_its_turn_and_nobody_is_waited_for_in_vain(folder: Path, tmp_path: Path) -> None:
    one, two = Sharing(folder, tmp_path / "one"), Sharing(folder, tmp_path / "two")
    with one.turn():
        assert _locked(folder)
    assert not _locked(folder)
    with one.turn():
        begun = time.monotonic()
        with two.turn():
            waited = time.monotonic() - begun
        assert waited >= TURN_PATIENCE
        assert _locked(folder)  # it did not let go of what it never had
        begun = time.monotonic()
        for _ in range(100):
            with two.turn():
                pass
        assert time.monotonic() - begun < 100 * TURN_PATIENCE
    with two.turn():
        assert _locked(folder)


def _locked(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_a_name_that_was_taken_is_left_for_another(folder: Path, tmp_path: Path) -> None:
    sharing = Sharing(folder, tmp_path)
    sharing.publish([claim()], None)
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    (file / "x").touch()
    sharing.publish([claim(3)], None)
    assert sharing.fault is None
    assert [c.bytes for c in found(folder)] == [3 * GiB]
    sharing.publish([], None)
    assert found(folder) == []
    assert list(folder.iterdir()) == [file]


def test_a_folder_that_is_gone_is_told_and_used_when_it_is_back(folder: Path, tmp_path: Path) -> None:
    sharing = Sharing(folder, tmp_path)
    folder.rmdir()
    assert sharing.read().claims == {}
    with sharing.turn():
        sharing.publish([claim()], None)
    assert "No such file" in (sharing.fault or "")
    folder.mkdir()
    folder.chmod(0o1777)
    sharing.publish([claim()], None)
    assert sharing.read().waits == ()
    assert sharing.fault is None
    assert len(found(folder)) == 1


# --- a whole daemon -------------------------------------------------------------------------------


@as_root
def test_a_daemon_among_all_of_that_starts_jobs_at_once(box: Box, nvml: FakeNvml) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB))
    folder = box.folder / "claims"
    for number, make in enumerate(HOSTILE.values()):
        file = folder / f"gpuq-claims.{STRANGER}.{number:032x}"
        with contextlib.suppress(FileExistsError):
            make(file)
        os.chown(file, STRANGER, STRANGER, follow_symlinks=False)
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        jobs = [box.submit("true", gpus=1, vram=20 * GiB) for _ in range(3)]
        box.wait(*jobs)
        assert {box.job(job)["state"] for job in jobs} == {"succeeded"}
        assert "somebody holds the lock" in (box.state / "daemon.log").read_text()
    finally:
        holder.kill()
        holder.communicate()
    assert box.request("gpus")["gpus"][0]["neighbours"] == []
