"""Logs with a limit: the beginning and the end are kept, whoever writes, follows and breaks."""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.cli.follow import KeptLog
from gpuq.launch import launcher
from gpuq.launch.keptlog import MARK_SIZE, end_size, head_size, mark, read_mark
from gpuq.launch.parts.keeper import Keeper
from tests.launch.conftest import Attempts, gone, python, shell, until, written

LIMIT = 1 << 16
#: Prints numbered lines of 16 bytes, so that it is seen which are missing.
COUNT = "import os, sys\nfor n in range(int(sys.argv[1])): sys.stdout.write('%015d\\n' % n)\n"


def line(number: int) -> bytes:
    return b"%015d\n" % number


def kept(log: bytes, printed: bytes, limit: int = LIMIT) -> None:
    """The log is what a limit leaves of what was printed."""
    head = head_size(limit)
    if len(printed) <= limit:
        assert log == printed
        return
    assert len(log) <= limit + MARK_SIZE
    if log == printed:
        return
    left_out = read_mark(log[head : head + MARK_SIZE])
    assert left_out is not None
    end = log[head + MARK_SIZE :]
    assert log[:head] == printed[:head]
    assert len(end) >= end_size(limit)
    assert end == printed[-len(end) :]
    assert left_out == len(printed) - head - len(end)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(300, 5000),
    st.lists(st.one_of(st.integers(0, 200), st.integers(0, 12000)), max_size=25),
    st.binary(max_size=20),
)
def test_beginning_and_end_are_kept_and_a_follower_sees_all_it_can(limit: int, sizes: list[int], before: bytes) -> None:
    noise = random.Random(1)
    log, path = tempfile.mkstemp()
    try:
        os.write(log, before)
        own = os.open(path, os.O_WRONLY | os.O_APPEND)
        keeper = Keeper(own, limit)
        follower = KeptLog(path, limit)
        printed, seen, most = b"", b"", 0
        for size in sizes:
            data = noise.randbytes(size)
            keeper._put(memoryview(data))
            printed += data
            most = max(most, os.fstat(log).st_size - len(before))
            if size % 3 and not before:
                while more := follower.read():
                    seen += more
        kept(os.pread(log, 1 << 20, len(before)), printed, limit)
        assert os.pread(log, len(before), 0) == before
        assert most <= limit + MARK_SIZE
        if not before:
            while more := follower.read():
                seen += more
            followed(seen, printed)
        follower.close()
        for fd in (own, keeper._file, keeper._pipe, keeper.into, keeper._stop, keeper._told):
            os.close(fd)
    finally:
        os.close(log)
        os.unlink(path)


def followed(seen: bytes, printed: bytes) -> None:
    """What a follower saw is what was printed, with gaps that say how long they are."""
    before, _, after = (re.escape(part) for part in mark(None).partition(b"some"))
    position = 0
    pieces = re.split(before.rstrip(b"\\ ") + rb" +(\d+)" + after, seen)
    for index, piece in enumerate(pieces):
        if index % 2:
            position += int(piece)
        else:
            assert printed[position : position + len(piece)] == piece
            position += len(piece)
    assert position == len(printed)


def test_a_mark_is_known_by_its_form() -> None:
    assert read_mark(mark(12345678901234567890)) == 12345678901234567890
    assert read_mark(mark(0)) == 0
    assert read_mark(mark(None)) == -1
    for data in (b"", mark(5)[:-1], b"x" * MARK_SIZE, mark(5).replace(b"5", b"x")):
        assert read_mark(data) is None


@pytest.mark.parametrize("lines", [0, 1000, LIMIT // 16, LIMIT // 16 + 1, 100_000])
def test_a_job_with_a_limited_log(attempts: Attempts, lines: int) -> None:
    launch = attempts.launch([*python(COUNT), str(lines)], log_limit=LIMIT)
    result = attempts.run(launch)
    assert result.wait_status == 0
    log = Path(launch.log_path).read_bytes()
    kept(log, b"".join(line(n) for n in range(lines)))
    assert (result.log_start, result.log_end) == (0, len(log))


def test_a_log_that_was_there_is_kept_whole(attempts: Attempts, tmp_path: Path) -> None:
    log = tmp_path / "mine"
    log.write_bytes(b"before\n" * 20_000)
    launch = attempts.launch([*python(COUNT), "100000"], log_limit=LIMIT, log_path=str(log), private_log=False)
    assert attempts.run(launch).log_start == 140_000
    assert log.read_bytes()[:140_000] == b"before\n" * 20_000
    kept(log.read_bytes()[140_000:], b"".join(line(n) for n in range(100_000)))


def test_what_somebody_else_writes_into_the_log_is_never_moved(attempts: Attempts, tmp_path: Path) -> None:
    log = tmp_path / "shared"
    code = (
        COUNT
        + f"sys.stdout.flush(); open({str(log)!r}, 'a').write('stranger\\n')\n"
        + "for n in range(100000): print('more')\n"
    )
    launch = attempts.launch([*python(code), str(LIMIT // 16)], log_limit=LIMIT, log_path=str(log))
    assert attempts.run(launch).wait_status == 0
    text = log.read_bytes()
    # the pipe may not have been empty when the stranger wrote
    assert text.replace(b"stranger\n", b"").startswith(b"".join(line(n) for n in range(LIMIT // 16)))
    assert b"stranger\n" in text
    assert b"bytes are not in this log: something else writes to this log]\n" in text
    assert len(text) < LIMIT + 3 * MARK_SIZE


def test_a_log_that_its_owner_cuts_begins_anew(attempts: Attempts, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "for n in range(20000): sys.stdout.write('%015d\\n' % n)\n"
        "sys.stdout.flush(); open('t', 'w').close(); os.rename('t', 'ready')\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
        "for n in range(20000): sys.stdout.write('%015d\\n' % n)\n"
    )
    launch = attempts.launch(python(code), log_limit=LIMIT)
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    until(lambda: Path(launch.log_path).read_bytes().endswith(line(19_999)))
    os.truncate(launch.log_path, 0)
    (tmp_path / "go").touch()
    attempts.finish(launch, supervisor)
    log = Path(launch.log_path).read_bytes()
    assert log.startswith(line(0) + line(1))
    assert log.endswith(line(19_999))
    assert len(log) <= LIMIT + MARK_SIZE


def test_who_keeps_the_pipe_open_keeps_nobody(attempts: Attempts, tmp_path: Path) -> None:
    """The other end goes to a process that is none of the job's, as with a terminal multiplexer's server."""
    code = "import os, time; os.write(1, b'hello'); open('ready', 'w').close()\n"
    code += "while not os.path.exists('go'): time.sleep(0.01)"
    launch = attempts.launch(python(code), log_limit=LIMIT)
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    child = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()[0]
    held = os.open(f"/proc/{child}/fd/1", os.O_WRONLY)
    try:
        (tmp_path / "go").touch()
        assert attempts.finish(launch, supervisor).wait_status == 0
    finally:
        os.close(held)
    assert Path(launch.log_path).read_bytes() == b"hello"


def test_a_child_in_the_background_and_closed_descriptors(attempts: Attempts, tmp_path: Path) -> None:
    script = "(while :; do echo x; sleep 0.01; done) & echo $! > t; mv t pid; exec >&- 2>&- <&-; exit 3"
    launch = attempts.launch(shell(script), log_limit=LIMIT)
    assert attempts.run(launch).wait_status == 3 << 8
    assert gone(int(written(tmp_path / "pid")))


def test_an_end_by_force_keeps_what_was_printed(attempts: Attempts, tmp_path: Path) -> None:
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.write(1, b'x' * 70000)\n"
    code += "open('ready', 'w'); time.sleep(1000)"
    launch = attempts.launch(python(code), log_limit=1 << 20)
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).wait_status == signal.SIGKILL
    assert Path(launch.log_path).read_bytes() == b"x" * 70000


def test_a_device_has_no_limit(attempts: Attempts) -> None:
    assert attempts.run(attempts.launch(shell("echo hello"), log_limit=LIMIT, log_path="/dev/null")).wait_status == 0
