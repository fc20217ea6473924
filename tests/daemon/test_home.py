"""Socket, lock or the whole state folder are taken away under a running daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gpuq.client import Client
from tests.harness import Box, gone, wait_until


def answering() -> int | None:
    """The pid of the daemon that listens, None where none does; starts none."""
    try:
        with Client.connect(start=False) as client:
            return int(client.request("status")["pid"])
    except Exception:  # noqa: BLE001 (whatever stands in the way)
        return None


def told(box: Box, text: str) -> bool:
    lines: list[dict[str, Any]] = [json.loads(line) for line in (box.state / "daemon.log").read_text().splitlines()]
    return any(text in line["message"] for line in lines)


def made_anew(path: Path, inode: int) -> bool:
    return path.is_socket() and path.stat().st_ino != inode


def running_job(box: Box) -> tuple[int, str]:
    """A job that runs until the file of the second value is there."""
    gate, begun = box.folder / "gate", box.folder / "begun"
    job = box.submit("sh", "-c", f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit 7', cpus=0)
    wait_until(begun.exists, "the job")
    return job, str(gate)


#: A daemon whose state folder goes just before a call that makes its lock anew, once a file called `armed` is there.
GOES_MEANWHILE = """
import os, runpy, shutil, sys
armed, folder, call, path = sys.argv.pop(), sys.argv.pop(), sys.argv.pop(), sys.argv.pop()

def meanwhile(event, values):
    if event == call and str(values[0]) == path and os.path.exists(armed):
        os.unlink(armed)
        shutil.rmtree(folder, ignore_errors=True)

sys.addaudithook(meanwhile)
runpy.run_module("gpuq.daemon", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("what", ["removed", "moved", "replaced"])
def test_a_socket_that_is_taken_away_is_made_anew(box: Box, what: str) -> None:
    pid = box.daemon_pid()
    sock = box.state / "sock"
    with Client.connect() as waiting:  # one that listens already is not disturbed
        job, gate = running_job(box)
        waiting.send("wait", sel={"ranges": [[job, job]]})
        for _ in range(3):
            before = sock.stat().st_ino
            if what == "removed":
                sock.unlink()
            elif what == "moved":
                sock.rename(box.state / "elsewhere")
            else:
                (box.state / "new").touch()
                (box.state / "new").rename(sock)
            wait_until(partial(made_anew, sock, before), "a socket")
            wait_until(lambda: answering() == pid, "the daemon's answer")
        assert sock.stat().st_mode & 0o777 == 0o600
        open(gate, "w").close()
        assert waiting.receive()["jobs"][0]["exit_code"] == 7
    assert told(box, "is there again")


def test_two_daemons_never_live_in_one_folder(box: Box) -> None:
    pid = box.daemon_pid()
    (box.state / "daemon.lock").unlink()
    wait_until((box.state / "daemon.lock").exists, "the lock")
    wait_until(lambda: told(box, "the lock"), "the lock")
    env = {**os.environ, "GPUQ_STATE_DIR": str(box.state)}
    second = subprocess.run([sys.executable, "-m", "gpuq.daemon"], env=env, capture_output=True, text=True, timeout=60)
    assert second.returncode == 5 and f"daemon {pid} holds" in second.stdout
    assert "and listens" in second.stdout, "it does not tell anybody to end a daemon that is well"
    assert answering() == pid


def test_a_daemon_whose_lock_somebody_else_took_ends(box: Box) -> None:
    job, gate = running_job(box)
    pid = box.daemon_pid()
    taken = (
        "import fcntl, os, sys, time\n"
        "fd = os.open('new', os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX); os.rename('new', 'daemon.lock')\n"
        "print('taken', flush=True); sys.stdin.read()"
    )
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", taken], cwd=box.state, **streams):
        wait_until(lambda: gone(pid), "the daemon's end")
    assert told(box, "the daemon ends")
    assert box.job(job)["state"] == "running", "the next daemon took it back"
    open(gate, "w").close()
    assert box.wait(job)["exit_code"] == 7


def test_a_state_folder_that_is_removed_is_made_anew(box: Box) -> None:
    pid = box.daemon_pid()
    held = box.submit("true", hold=True)
    shutil.rmtree(box.state, ignore_errors=True)
    wait_until(lambda: answering() == pid, "the daemon's answer")
    assert box.state.stat().st_mode & 0o777 == 0o700
    assert box.job(held)["state"] == "held"
    assert box.wait(box.submit("sh", "-c", "exit 4"))["exit_code"] == 4
    assert told(box, "submitted"), "its log is there again"


@pytest.mark.parametrize("call", ["os.mkdir", "open"])
def test_a_state_folder_that_goes_while_its_lock_is_made_anew(box: Box, call: str) -> None:
    """rm -r removes lock and folder at once: a daemon that has seen the first may meet the second at any point."""
    armed, lock = box.folder / "armed", box.state / "daemon.lock"
    arguments = [str(lock if call == "open" else box.state), call, str(box.state), str(armed)]
    with subprocess.Popen([sys.executable, "-c", GOES_MEANWHILE, *arguments]) as daemon:
        wait_until(lambda: answering() == daemon.pid, "the daemon")
        armed.touch()
        lock.unlink()
        wait_until(lambda: not armed.exists() and answering() == daemon.pid, "the daemon's answer")
        assert lock.exists()
        assert box.wait(box.submit("sh", "-c", "exit 4"))["exit_code"] == 4
        daemon.terminate()


def test_a_state_folder_that_is_moved_is_left_alone_and_can_be_moved_back(box: Box) -> None:
    job, gate = running_job(box)
    pid = box.daemon_pid()
    away = box.folder / "away"
    box.state.rename(away)
    wait_until(lambda: gone(pid), "the daemon's end")
    assert not box.state.exists()
    away.rename(box.state)
    assert told(box, "was moved away")
    assert box.job(job)["state"] == "running"
    open(gate, "w").close()
    assert box.wait(job)["exit_code"] == 7


def test_another_folder_in_its_place_is_not_touched(box: Box) -> None:
    pid = box.daemon_pid()
    shutil.move(box.state, box.folder / "away")
    box.state.mkdir(mode=0o700)
    (box.state / "mine").touch()
    wait_until(lambda: gone(pid), "the daemon's end")
    assert [path.name for path in box.state.iterdir()] == ["mine"]
