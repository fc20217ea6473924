"""`doctor`, with something really broken for each of its checks."""

from __future__ import annotations

import os
import pwd
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gpuq.cli.checks import folders, gpus, host
from tests.fakeclock import FakeClock
from tests.harness import GPUQ, Box

GiB = 1024**3


def checks(box: Box, **more: Any) -> dict[str, dict[str, Any]]:
    import json

    done = box.run("doctor", "--json", **more)
    found = json.loads(done.stdout)
    assert found["schema"] == "gpuq.doctor/1"
    broken = [check for check in found["checks"] if check["result"] == "fail"]
    assert done.returncode == int(bool(broken)), broken
    assert all(check["fix"] for check in found["checks"] if check["result"] == "warn"), "a warning says what to do"
    return {check["name"]: check for check in found["checks"]}


def test_it_makes_nothing_so_that_the_first_job_finds_an_empty_folder(sim: Box) -> None:
    found = checks(sim)
    assert (found["GPU 1"]["result"], found["state folder"]["result"]) == ("ok", "ok")
    assert not sim.state.exists()
    assert sim.wait(sim.submit("true"))["state"] == "succeeded"


def test_a_healthy_box(box: Box) -> None:
    box.wait(box.submit("true"))
    found = checks(box)
    assert not [check for check in found.values() if check["result"] == "fail"]
    assert found["database"]["text"].startswith("1 jobs, ")
    before = sorted(path.name for path in box.state.iterdir())
    box.ok("daemon", "stop")
    after = sorted(path.name for path in box.state.iterdir())
    assert checks(box)["database"]["result"] == "ok"
    assert sorted(path.name for path in box.state.iterdir()) == after, f"it changes nothing ({before})"


# --- folders --------------------------------------------------------------------------------------


def test_files_that_others_may_read_or_that_are_something_else(box: Box) -> None:
    box.daemon_pid()
    box.ok("daemon", "stop")
    (box.state / "queue.db").chmod(0o644)
    assert "open to others (0644)" in checks(box)["files"]["text"]
    (box.state / "queue.db").chmod(0o600)
    assert "files" not in checks(box)
    (box.state / "sock").touch(mode=0o600)
    assert "is not what gpuq made" in checks(box)["files"]["text"]
    (box.state / "sock").unlink()
    if os.geteuid() == 0:
        os.chown(box.state / "queue.db", 12345, -1)
        assert "belongs to uid 12345" in checks(box)["files"]["text"]


def test_a_state_folder_that_was_open_to_others(box: Box) -> None:
    box.state.mkdir()
    box.state.chmod(0o755)
    found = checks(box)["state folder"]
    assert found["result"] == "warn" and "(0755)" in found["text"]
    assert checks(box)["state folder"]["result"] == "ok"


@pytest.mark.parametrize("damage", ["cut", "garbage", "pages"])
def test_a_damaged_database(box: Box, damage: str) -> None:
    box.submit_many([["true"]] * 300, hold=True)
    box.ok("daemon", "stop")
    path = box.state / "queue.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage == "cut":
            file.truncate(size // 2)
        elif damage == "garbage":
            file.write(b"not a database, not a database")
        else:
            file.seek(size // 3)
            file.write(b"\xa5" * (size // 3))
    found = checks(box)["database"]
    assert found["result"] == "fail" and "daemon restart" in found["fix"]
    box.ok("daemon", "start")
    found = checks(box)["database"]
    assert found["result"] == "ok" and "recovered before, see " in found["text"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize(
    ("options", "fill", "result", "text"),
    [
        ("size=64m", 0, "warn", "free"),
        ("size=64m", 60, "fail", "no submits are taken"),
        ("size=2g,nr_inodes=1000", 0, "warn", "inodes"),
        ("size=2g", 0, "ok", "free"),
        ("size=2g,ro", 0, "fail", "read-only"),
    ],
)
def test_room_on_the_disk(tmp_path: Path, options: str, fill: int, result: str, text: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "gpuq-test", str(tmp_path)])
    if done.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        if fill:
            (tmp_path / "filler").write_bytes(b"x" * fill * 1024 * 1024)
        found = folders.room("disk", tmp_path)
        assert (found.result, text in found.text) == (result, True), found
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_claims_folder_that_is_not_shared(box: Box) -> None:
    folder = box.folder / "shared"
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)  # not sticky: anybody may remove anybody's files
    assert checks(box, env={"GPUQ_CLAIMS_DIR": str(folder)})["neighbours"]["result"] == "warn"
    assert checks(box, env={"GPUQ_CLAIMS_DIR": str(folder / "none")})["neighbours"]["result"] == "warn"
    folder.chmod(0o1777)
    for number in range(folders.MANY_CLAIM_FILES + 1):
        (folder / f"gpuq-claims.5003.{number}").touch()
    told = checks(box, env={"GPUQ_CLAIMS_DIR": str(folder)})["neighbours"]
    assert told["result"] == "warn"
    assert "1,001 files" in told["text"] and f"have {pwd.getpwuid(os.geteuid()).pw_name} remove them" in told["fix"]


# --- program and host -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "result", "text"),
    [
        ({}, "ok", "typer 0.28.0"),
        ({"typer": "0.29.2"}, "warn", "doubles"),
        ({"typer": "0.26.1"}, "warn", "not tried"),
        ({"nvidia-ml-py": "12.535.108"}, "fail", "misreads"),
        ({"nvidia-ml-py": "12.550.52"}, "ok", "12.550.52"),
        ({"pynvml": "11.5.0"}, "warn", "retired"),
        ({"filelock": None}, "fail", "filelock cannot be found"),
    ],
)
def test_packages(changed: dict[str, str | None], result: str, text: str) -> None:
    good: dict[str, str | None] = {"typer": "0.28.0", "nvidia-ml-py": "13.615.71", "pynvml": None}
    found = host.packages(good | {"sqlite-utils": "4.2", "filelock": "4.2.11"} | changed)
    assert (found.result, text in found.text) == (result, True), found


def test_a_daemon_that_does_not_answer(box: Box) -> None:
    pid = box.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        found = checks(box)["daemon"]
        assert found["result"] == "fail" and "gpuq daemon" in found["fix"]
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_daemon_of_another_version(box: Box) -> None:
    """As after an upgrade; also that what only the newer client knows names `daemon restart`."""
    box.daemon_pid()
    newer = (
        "import sys, gpuq; gpuq.__version__ = '99.0'\n"
        "from gpuq.cli.app import main; sys.argv[1:] = sys.argv[1:]; main()"
    )
    done = subprocess.run([sys.executable, "-c", newer, "doctor"], capture_output=True, text=True)
    assert "warn  daemon: runs" in done.stdout and "`gpuq daemon restart` brings it to 99.0" in done.stdout
    unknown = (
        "from gpuq import protocol; protocol.PROTOCOL += 1\n"
        "from gpuq.client import request\n"
        "try: request('teleport')\nexcept Exception as error: print(type(error).__name__, error.exit_code, error)"
    )
    done = subprocess.run([sys.executable, "-c", unknown], capture_output=True, text=True)
    assert done.stdout.startswith("ProtocolMismatch 5 ") and "`gpuq daemon restart`" in done.stdout
    pid = box.daemon_pid()
    box.ok("daemon", "restart")
    assert box.daemon_pid() != pid


def test_a_unit_of_a_program_that_is_gone(box: Box) -> None:
    assert "unit" not in checks(box)
    unit = box.folder / "home" / ".config" / "systemd" / "user" / "gpuq.service"
    unit.parent.mkdir(parents=True)
    text = box.ok("daemon", "install", "--print")
    unit.write_text(text)
    assert checks(box)["unit"]["result"] == "ok"
    unit.write_text(text.replace(sys.executable, "/no/such/python"))
    found = checks(box)["unit"]
    assert found["result"] == "fail" and "/no/such/python" in found["text"]
    unit.write_text("[Service]\n")
    assert checks(box)["unit"]["result"] == "warn"


def test_few_descriptors(box: Box) -> None:
    done = subprocess.run(
        [*GPUQ, "doctor"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
    )
    assert "warn  limits: at most 200 open files" in done.stdout, box.state


@pytest.mark.parametrize(
    ("files", "processes", "used", "result"),
    [
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 0, "ok"),
        (1024, 4096, 100, "ok"),
        (1023, 4096, 100, "warn"),
        (4096, 400, 200, "warn"),
        (4096, 400, 100, "ok"),
    ],
)
def test_limits(files: int, processes: int, used: int, result: str) -> None:
    assert host.limits(files, processes, used).result == result


def test_a_clock_that_was_set_back(box: Box, tmp_path: Path) -> None:
    box.wait(box.submit("true"))
    clock = FakeClock(tmp_path)
    clock.set_by(-86400)
    found = checks(box, env=clock.env)["clock"]
    assert found["result"] == "warn" and "behind" in found["text"]
    clock.set_by(-86400 * 365 * 30)
    assert checks(box, env=clock.env)["clock"]["result"] == "fail"


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("now", "last", "synchronised", "result"),
    [
        (NOW, None, True, "ok"),
        (NOW, NOW - 5, True, "ok"),
        (NOW, NOW + 30, True, "ok"),
        (NOW, NOW + 90, True, "warn"),
        (NOW, NOW - 5, False, "warn"),
        (0.0, None, True, "fail"),
    ],
)
def test_clock(now: float, last: float | None, synchronised: bool, result: str) -> None:
    assert host.clock(now, last, synchronised=synchronised).result == result
    without = host.clock(now, last, synchronised=synchronised, systemd_runs=False)
    assert without.result == result
    assert "timedatectl" not in (without.fix or "")


def test_the_last_event_is_found(box: Box) -> None:
    before = time.time()
    box.wait(box.submit("true"))
    found = folders.last_event(box.state / "queue.db")
    assert found is not None and before <= found <= time.time()
    assert folders.last_event(box.state / "none.db") is None


def test_how_jobs_are_kept_together_is_as_the_daemon_says(box: Box) -> None:
    before = checks(box)["cgroups"]["text"]
    assert before.startswith(("sub-reaper", "cgroup v2"))
    assert checks(box)["cgroups"]["text"] == box.request("status")["supervision"]


# --- GPUs -----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device")
def test_devices_that_may_not_be_opened(tmp_path: Path) -> None:
    import stat

    device = tmp_path / "nvidia0"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except OSError:
        pytest.skip("devices cannot be made here")
    assert list(gpus.device_checks([device])) == []
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            found = list(gpus.device_checks([device]))
            code = 0 if found and found[0].result == "fail" and "usermod -aG root" in (found[0].fix or "") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_socket_that_nobody_listens_on(box: Box) -> None:
    box.state.mkdir(mode=0o700)
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(box.state / "sock"))
    (box.state / "sock").chmod(0o600)
    assert checks(box)["daemon"]["text"].startswith("does not run")


@pytest.mark.parametrize("what", ["of a newer gpuq", "half recovered"])
def test_a_database_with_which_no_daemon_starts(box: Box, what: str) -> None:
    box.submit("true", hold=True)
    box.ok("daemon", "stop")
    if what == "half recovered":
        (box.state / "queue.db").unlink()
        (box.state / "recover").write_text("{}")
    else:
        with closing(sqlite3.connect(box.state / "queue.db")) as db:
            db.execute("PRAGMA user_version = 99")
    found = checks(box)["database"]
    assert (found["result"], "gpuq db restore FILE" in found["fix"]) == ("fail", True)


def test_a_database_is_opened_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL)")
        conn.execute("INSERT INTO events (at) VALUES (7.0)")
        conn.commit()
        assert folders.last_event(path) == 7.0, "while it is written"
    assert [one.name for one in tmp_path.iterdir()] == ["queue.db"]
    assert folders.last_event(path) == 7.0
    assert [one.name for one in tmp_path.iterdir()] == ["queue.db"]


def test_a_cgroup_that_was_asked_for_and_cannot_be_used_is_told(box: Box) -> None:
    box.setenv(GPUQ_CGROUP=str(box.folder))
    box.daemon_pid()
    found = checks(box)["cgroups"]
    assert (found["result"], "is not a cgroup" in found["text"], "GPUQ_CGROUP" in found["fix"]) == ("warn", True, True)
