"""The daemon's own log: what it says, and what may befall its files without harm to anybody."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuq.config import log_files
from gpuq.daemon.journal import Journal, encode
from gpuq.errors import StateFolderError
from gpuq.model import GiB
from tests.cli.terminal import read_line, shown
from tests.fakenvml import GPU_IS_LOST, FakeNvml, fake_gpus
from tests.harness import Box, wait_until


def record(text: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "gpuq.test", "levelno": 20, "levelname": "INFO", "msg": text, "args": args})
    vars(made).update(extra)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- files ----------------------------------------------------------------------------------------


def test_it_is_put_aside_by_size_and_nothing_between_is_lost(tmp_path: Path) -> None:
    journal = Journal(tmp_path, size=1000)
    for number in range(60):
        journal.emit(record("line %d", number, number=number))
    journal.close()
    files = log_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    kept = [line["number"] for path in files for line in lines(path)]
    assert kept == list(range(kept[0], 60)) and 0 < kept[0] < 60
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_size < 1200


@pytest.mark.parametrize("what", ["removed", "moved", "replaced", "link", "fifo"])
def test_a_log_that_somebody_took_away_is_made_anew(tmp_path: Path, what: str) -> None:
    journal = Journal(tmp_path)
    path = tmp_path / "daemon.log"
    journal.emit(record("before"))
    path.rename(tmp_path / "elsewhere")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if what == "removed":
        (tmp_path / "elsewhere").unlink()
    elif what == "replaced":
        path.touch()
    elif what == "link":
        path.symlink_to(victim)
    elif what == "fifo":
        os.mkfifo(path)
    journal.emit(record("after"))
    journal.close()
    assert victim.read_text() == "precious"
    if what in ("removed", "moved", "replaced"):
        assert [line["message"] for line in lines(path)] == ["after"]
    else:  # it goes on where it was until the thing is gone
        assert lines(tmp_path / "elsewhere")[-1]["message"] == "after"


def test_a_log_that_cannot_be_put_aside_does_not_grow_without_end(tmp_path: Path) -> None:
    (tmp_path / "daemon.log.1").mkdir()
    (tmp_path / "daemon.log.1" / "full").touch()
    (tmp_path / "daemon.log.2").mkdir()
    (tmp_path / "daemon.log.2" / "full").touch()
    journal = Journal(tmp_path, size=1000)
    for number in range(100):
        journal.emit(record("line %d", number, number=number))
    journal.close()
    assert (tmp_path / "daemon.log").stat().st_size < 1200
    assert lines(tmp_path / "daemon.log")[-1]["number"] == 99


#: Python ignores SIGXFSZ, so that a write beyond the limit is cut short and the next one fails, as on a full disk.
FULL = """
import logging, resource, sys
from pathlib import Path
from gpuq.daemon import journal
journal.begin(Path(sys.argv[1]))
log = logging.getLogger("gpuq.test")
log.info("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
for _ in range(5):
    log.info("does not fit")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.info("fits again")
log.info("and again")
"""


def test_a_full_disk_loses_lines_and_says_how_many(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    said = (tmp_path / "daemon.log").read_text().splitlines()
    assert json.loads(said[0])["message"] == "first"
    assert "does not fit" not in said[1] or not said[1].endswith("}"), "half a line is on a line of its own"
    rest = [json.loads(line) for line in said[2:]]
    assert [line["message"] for line in rest[1:]] == ["fits again", "and again"]
    assert rest[0]["lost"] == 5 and "5 lines" in rest[0]["message"]


def test_what_is_no_file_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "daemon.log").symlink_to("/dev/null")
    with pytest.raises(StateFolderError, match=r"daemon\.log"):
        Journal(tmp_path)


def test_a_line_is_one_line_of_json_whatever_is_said() -> None:
    awkward = record("two\nlines \udcff %s", "x", path=Path("/p"), job=3)
    line = encode(awkward)
    assert line.count(b"\n") == 1
    told = json.loads(line)
    assert (told["message"], told["path"], told["job"], told["level"]) == ("two\nlines \udcff x", "/p", 3, "info")
    assert told["at"].endswith("Z")
    assert "%d" in json.loads(encode(record("%d apples", "no")))["message"]
    assert len(encode(record("x" * 10**6))) < 20_000
    try:
        raise ValueError("why")
    except ValueError:
        broken = logging.makeLogRecord({"msg": "it broke", "exc_info": sys.exc_info()})
    assert "ValueError: why" in json.loads(encode(broken))["trace"]


# --- what it says ---------------------------------------------------------------------------------


def decisions(box: Box) -> list[dict[str, Any]]:
    return [line for line in lines(box.state / "daemon.log") if "event" in line]


def test_every_decision_is_named(nvml: FakeNvml, box: Box) -> None:
    nvml.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    box.setenv(GPUQ_READING_INTERVAL="0.1s", SECRET="s3cret-value")
    gate = box.folder / "gate"
    until = ["sh", "-c", f'until [ -e "{gate}" ]; do sleep 0.02; done; exit 3']
    job = box.submit(*until, gpus=1, vram=10 * GiB)
    wait_until(lambda: box.job(job)["state"] == "running", "the start")
    nvml.change(1, memory=GPU_IS_LOST)
    wait_until(lambda: any(line["event"] == "gpu-lost" for line in decisions(box)), "the loss")
    nvml.set(gpus=fake_gpus(24 * GiB, 24 * GiB))
    wait_until(lambda: any(line["event"] == "gpu-back" for line in decisions(box)), "the return")
    waiting = box.submit("true", gpus=0, hold=True)
    for op in ("release", "cancel"):
        box.request(op, sel={"ranges": [[waiting, waiting]]})
    box.fails(3, "cancel", "99")
    box.kill_daemon()
    assert box.job(job)["state"] == "running"
    gate.touch()
    box.wait(job)
    box.ok("daemon", "stop")
    said = decisions(box)
    told = [line["event"] for line in said]
    for event in ("begin", "listen", "submit", "start", "asked", "refused", "adopt", "released", "failed"):
        assert event in told, f"{event} is not in {told}"
    uid = os.geteuid()
    begin = next(line for line in said if line["event"] == "begin")
    assert begin["settings"]["reading_interval"] == 0.1 and begin["uid"] == uid
    start = next(line for line in said if line["event"] == "start")
    assert (start["job"], start["attempt"], len(start["gpus"])) == (job, 1, 1)
    assert "GPU 0 (13.8GiB headroom left)" in start["message"]
    assert [line["found"] for line in said if line["event"] == "adopt"] == ["running"]
    assert {line["verb"] for line in said if line["event"] == "asked"} == {"release", "cancel", "stop of the daemon"}
    assert {line["uid"] for line in said if line["event"] in ("submit", "asked", "refused")} == {uid}
    failed = next(line for line in said if line["event"] == "failed")
    assert failed["level"] == "warning" and failed["data"]["exit_code"] == 3
    assert "s3cret-value" not in (box.state / "daemon.log").read_text()


def test_a_running_daemon_makes_a_removed_log_anew(box: Box) -> None:
    box.daemon_pid()
    (box.state / "daemon.log").unlink()
    box.submit("true", gpus=0)
    assert "submit" in [line["event"] for line in decisions(box)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be two users")
def test_a_stranger_is_named_once(box: Box) -> None:
    box.daemon_pid()
    box.state.chmod(0o777)
    (box.state / "sock").chmod(0o777)
    knock = (
        "import os, socket\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "for _ in range(20):\n"
        "    one = socket.socket(socket.AF_UNIX); one.connect('sock'); one.recv(65536); one.close()"
    )
    subprocess.run([sys.executable, "-c", knock], cwd=box.state, check=True)
    box.state.chmod(0o700)
    assert [line["uid"] for line in decisions(box) if line["event"] == "stranger"] == [12345]


# --- looking at it --------------------------------------------------------------------------------


def test_it_is_shown_to_people_and_as_it_is(box: Box) -> None:
    box.submit("true", gpus=0)
    box.ok("daemon", "stop")
    text = box.ok("daemon", "logs")
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  info     uid \d+ submitted job 1: queued", text, re.M)
    raw = box.ok("daemon", "logs", "--json", "-n", "3")
    assert [json.loads(line) for line in raw.splitlines()] == lines(box.state / "daemon.log")[-3:]
    assert "submitted job 1" in shown("daemon", "logs")
    assert box.ok("daemon", "logs", "-n", "0") == ""
    many = b"".join(encode(record("line %d", number)) for number in range(300))
    (box.state / "daemon.log.1").write_bytes(many)
    assert len(box.ok("daemon", "logs").splitlines()) > 300
    screen = shown("daemon", "logs")
    assert "line 299" in screen and "line 100\n" not in screen and "lines before these" in screen


def test_lines_of_older_files_and_of_no_json_are_shown(box: Box) -> None:
    box.daemon_pid()
    box.ok("daemon", "stop")
    (box.state / "daemon.log.2").write_text("2026-11-22 INFO of old \x1b[31m\n")
    (box.state / "daemon.log.1").write_bytes(encode(record("older")))
    text = box.ok("daemon", "logs").splitlines()
    assert "of old \\x1b[31m" in text[0]
    assert text[1].endswith("older")
    assert box.ok("daemon", "logs", "-n", str(len(text) - 1)).splitlines() == text[1:]


def test_following_goes_on_across_files(box: Box) -> None:
    box.daemon_pid()
    log = box.state / "daemon.log"
    with box.started("daemon", "logs", "-f", "-n", "1") as process:
        assert read_line(process)
        for round_ in range(1, 4):
            # as the journal does it, in its order
            for older, newer in zip(log_files(box.state), log_files(box.state)[1:], strict=False):
                if newer.exists():
                    newer.replace(older)
            box.submit("true", gpus=0)
            while f"submitted job {round_}" not in (line := read_line(process)):
                assert line, "it was not followed"
        log.unlink()
        box.submit("true", gpus=0)
        while "submitted job 4" not in (line := read_line(process)):
            assert line, "it was not followed"
