"""A real daemon in a temporary folder, the real command line, and conditions to wait for.

    def test_it(box: Box) -> None:
        job = box.submit("sh", "-c", "exit 3")
        assert box.wait(job)["exit_code"] == 3

A box is alone on the machine: state folder, home and environment are its own, and when the test ends it makes sure
that no process of it is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gpuq.client import Client
from gpuq.errors import GpuqError
from gpuq.launch.identity import read_stat
from tests import commands

T = TypeVar("T")
#: Longest wait for anything, in seconds: only a broken program waits so long.
PATIENCE = 60.0
GPUQ = [sys.executable, "-m", "gpuq"]


def wait_until(condition: Callable[[], T], what: str = "the condition") -> T:
    """The first true value of the condition. Fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {PATIENCE:.0f} s"
        pause.wait(0.01)
    return value


def gone(pid: int) -> bool:
    """Whether no such process runs; a zombie does not, unless threads of it still do."""
    stat = read_stat(pid)
    return stat is None or stat.gone


class Box:
    """One state folder with its daemon. `env` is what commands and the daemon see, beside the test's own PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._patch = monkeypatch
        for name in list(os.environ):
            if name.startswith(("GPUQ_", "XDG_", "CUDA_")):
                monkeypatch.delenv(name)
        (folder / "home").mkdir()
        (folder / "claims").mkdir()
        (folder / "claims").chmod(0o1777)
        self.setenv(HOME=str(folder / "home"), GPUQ_STATE_DIR=str(self.state), GPUQ_GPUS="none", NO_COLOR="1")
        self.setenv(GPUQ_CLAIMS_DIR=str(folder / "claims"))
        self._linger()
        monkeypatch.chdir(folder)

    def _linger(self) -> None:
        """On a desktop of a person who does not linger, each daemon would be started with a warning."""
        if Path("/run/systemd/system").is_dir():
            program = self.folder / "lingering" / "loginctl"
            program.parent.mkdir()
            program.write_text("#!/bin/sh\necho yes\n")
            program.chmod(0o755)
            self.setenv(PATH=f"{program.parent}:{os.environ['PATH']}")

    def setenv(self, **values: str | None) -> None:
        """Set (None: unset) variables for every command, and the daemon if it has not started yet."""
        for name, value in values.items():
            if value is None:
                self._patch.delenv(name, raising=False)
            else:
                self._patch.setenv(name, value)

    # --- commands ---------------------------------------------------------------------------------

    def run(
        self, *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The command line, to its end. Whatever happens, it shows no traceback."""
        environ = {**os.environ, **(env or {})}
        given = None if stdin is None else stdin.encode(errors="surrogateescape")
        folder = str(cwd or Path.cwd())
        done = commands.run(args, given, environ, folder, PATIENCE * 2) or subprocess.run(
            [*GPUQ, *args],
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            env=environ,
            cwd=folder,
            timeout=PATIENCE * 2,
        )
        text = [stream.decode(errors="surrogateescape").replace("\r\n", "\n") for stream in (done.stdout, done.stderr)]
        told = subprocess.CompletedProcess(done.args, done.returncode, *text)
        assert "Traceback" not in told.stderr, told.stderr
        return told

    def ok(self, *args: str, **more: Any) -> str:
        """Standard output of a command that must succeed."""
        done = self.run(*args, **more)
        assert done.returncode == 0, f"gpuq {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fails(self, code: int, *args: str, **more: Any) -> str:
        """The message of a command that must fail with this exit code and print nothing on standard output."""
        done = self.run(*args, **more)
        assert done.returncode == code, f"gpuq {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stderr.strip(), "it failed without a word"
        return done.stderr

    def json(self, *args: str) -> dict[str, Any]:
        found = json.loads(self.ok(*args, "--json"))
        assert isinstance(found, dict)
        return found

    @contextmanager
    def started(self, *args: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on while the block runs."""
        process = subprocess.Popen(
            [*GPUQ, *args],
            stdin=more.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    # --- the protocol -----------------------------------------------------------------------------

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        with Client.connect() as client:
            return client.request(op, **fields)

    def submit(self, *command: str, **template: Any) -> int:
        """Submit over the socket, without the cost of a command; returns the id."""
        return self.submit_many([list(command)], **template)[0]

    def submit_many(self, commands: list[list[str]], **template: Any) -> list[int]:
        array = template.pop("array", None)
        reply = self.request(
            "submit",
            key=template.pop("key", None) or os.urandom(16).hex(),
            template={"cwd": str(self.folder), **template},
            commands=commands,
            env=template.pop("env", None) or dict(os.environ),
            array=array,
            last=True,
        )
        first, last = reply["ids"]
        return list(range(first, last + 1))

    def job(self, job_id: int) -> dict[str, Any]:
        found = self.request("show", sel={"ranges": [[job_id, job_id]]})["jobs"][0]
        assert isinstance(found, dict)
        return found

    def wait(self, *job_ids: int) -> dict[str, Any]:
        """Wait until all have ended; the first one's view."""
        with Client.connect() as client:
            client.socket.settimeout(PATIENCE)
            jobs = client.request("wait", sel={"ranges": [[n, n] for n in job_ids]})["jobs"]
        found = next(job for job in jobs if job["id"] == job_ids[0])
        assert isinstance(found, dict)
        return found

    def wait_state(self, job_id: int, state: str) -> dict[str, Any]:
        """Wait until the job is in a state; told by the daemon, not asked for."""
        with Client.connect() as client:
            client.socket.settimeout(PATIENCE)
            client.send("follow", id=job_id)
            while True:
                job = client.receive()["job"]
                if job["state"] == state:
                    assert isinstance(job, dict)
                    return job
                assert job["state"] not in ("succeeded", "failed", "cancelled", "skipped"), job

    def reason(self, job_id: int) -> tuple[str, str]:
        """Reason and its text, as `why` has them now."""
        found = self.request("why", sel={"ranges": [[job_id, job_id]]})["explanations"][0]
        return found["reason"], found["text"]

    def log(self, job_id: int) -> str:
        return Path(self.job(job_id)["log_path"]).read_text(errors="surrogateescape")

    # --- the daemon -------------------------------------------------------------------------------

    def daemon_pid(self) -> int:
        pid = self.request("status")["pid"]
        assert isinstance(pid, int)
        return pid

    def wait_begun(self, job_id: int) -> None:
        """Wait until the job runs, whatever becomes of the daemon: its supervisor has its orders, and has said so."""
        self.wait_state(job_id, "running")
        run_dir = Path(self.job(job_id)["attempts"][-1]["run_dir"])
        wait_until((run_dir / "identity").exists, "the supervisor's word")

    def kill_daemon(self) -> int:
        """KILL it, as a crash would; returns the pid that it had."""
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), "the daemon's end")
        return pid

    def processes(self) -> list[int]:
        """Every process that carries this box's state folder in its environment: daemon, supervisors, jobs."""
        mark = f"GPUQ_STATE_DIR={self.state}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    environ = (entry / "environ").read_bytes() + b"\0"
                except OSError:
                    continue
                if mark in environ:
                    found.append(int(entry.name))
        return found

    def _stop(self) -> None:
        """What `daemon stop --jobs` asks for, without the cost of a command; a daemon that cannot hear is killed."""
        with suppress(GpuqError), Client.connect(start=False) as client:
            client.socket.settimeout(PATIENCE * 2)
            pid = client.request("status")["pid"]
            client.request("stop", jobs=True, restart=False)
            client.socket.close()
            wait_until(lambda: gone(pid), "the daemon's end")

    def close(self) -> None:
        """Stop daemon and jobs; nothing of this box may be left."""
        try:
            if (self.state / "sock").exists():
                self._stop()
        finally:
            for pid in self.processes():
                with suppress(OSError):
                    print("left behind:", pid, Path(f"/proc/{pid}/cmdline").read_bytes())
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self.processes(), "the end of what the test left behind")
        told = [line for log in self.state.glob("daemon.log*") for line in log.read_text(errors="replace").splitlines()]
        assert not [line for line in told if "an error that nobody could take" in line]
