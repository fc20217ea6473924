"""The place where chaos happens: a folder with a state folder, a fake driver, the jobs' trace and everybody's journals.

FOLDER/state      gpuq's own
FOLDER/trace      what the jobs wrote about themselves
FOLDER/journal/   what each client did and was told, and what was killed, one JSON object per line
FOLDER/home       an empty home
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fakenvml import FakeNvml, GiB, fake_gpus

JOB = Path(__file__).with_name("job.py")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: Sizes of the fake GPUs, and what gpuq keeps free on each (its default margin), in bytes.
CARDS = (8 * GiB, 16 * GiB)
MARGIN = 256 * 1024**2
#: How the daemon's log tells of a crash point, and of the attempt whose supervisor is to die.
POINT = re.compile(rb"crash point ([\w-]+):(?: told to the supervisor of (\d+) (\d+))?")
#: Longest wait for anything, in seconds.
PATIENCE = 120.0


class Journal:
    """Lines that are on disk before their writer goes on. Threads may share one."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def note(self, event: str, **fields: Any) -> None:
        line = json.dumps({"e": event, "t": time.time(), **fields}).encode() + b"\n"
        assert os.write(self._file, line) == len(line)
        os.fsync(self._file)


class World:
    """The folder, and this process's environment, by which every client in it and below it finds the daemon."""

    def __init__(self, folder: Path, gpuq: list[str], beside: Path | None = None, *, cgroups: bool = False) -> None:
        """`beside` is the folder of another world, whose cards are this one's too; `cgroups` keep jobs in some."""
        self.folder, self.gpuq = folder, gpuq
        self.state = folder / "state"
        self.trace = folder / "trace"
        for name in ("journal", "home"):
            (folder / name).mkdir()
        self.trace.touch()
        self.journal = Journal(folder / "journal" / "world.jsonl")
        if beside is None:
            _make_driver(folder)
        self._shared = beside or folder
        driver = json.loads((self._shared / "driver.json").read_bytes())
        self.journal.note("cards", totals=driver["totals"], margin=MARGIN)
        self.cgroup = _make_cgroup() if cgroups else None
        self._clients: set[int] = set()
        self._guard = threading.Lock()
        self._log_read = 0
        self.own_boot_id = os.environ.get("GPUQ_CHAOS_NAMESPACE") == "1"
        self._set_environment(driver["env"])
        if self.own_boot_id:
            self._new_boot_id()
            subprocess.run(["mount", "--bind", str(folder / "boot_id"), str(BOOT_ID)], check=True)

    def _set_environment(self, driver: dict[str, str]) -> None:
        for name in list(os.environ):
            if name.startswith(("GPUQ_", "XDG_", "CUDA_")):
                del os.environ[name]
        os.environ.update(driver, HOME=str(self.folder / "home"), GPUQ_STATE_DIR=str(self.state), NO_COLOR="1")
        os.environ.update(GPUQ_GRACE="2s", GPUQ_CLAIMS_DIR=str(self._shared / "claims"))
        if self.cgroup is not None:
            os.environ["GPUQ_CGROUP"] = str(self.cgroup)

    def command(self, kind: str, tag: str, argument: str = "") -> list[str]:
        """A job's command."""
        words = [sys.executable, "-I", "-S", str(JOB), str(self.trace), kind, f"tag={tag}"]
        return [*words, argument] if argument else words

    def start_client(self, args: list[str], **more: Any) -> subprocess.Popen[bytes]:
        """The command line as a process that lives through reboots, as one on another host would."""
        with self._guard:
            process = subprocess.Popen([*self.gpuq, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
            self._clients.add(process.pid)
        return process

    def client_ended(self, process: subprocess.Popen[bytes]) -> None:
        with self._guard:
            self._clients.discard(process.pid)

    def close(self) -> None:
        """End whatever is left."""
        self.kill(sorted(self.processes()))
        if self.cgroup is not None:
            for folder in sorted(self.cgroup.rglob("*/"), reverse=True):
                folder.rmdir()
            self.cgroup.rmdir()

    # --- processes --------------------------------------------------------------------------------

    def processes(self) -> dict[int, bytes]:
        """Pid and command line of all that belongs to this box: daemons, supervisors, jobs; clients do not."""
        mark = b"GPUQ_STATE_DIR=" + os.fsencode(self.state) + b"\0"
        found = {}
        for name in os.listdir("/proc"):
            pid = int(name) if name.isdigit() else 0
            if pid in (0, os.getpid()) or pid in self._clients:
                continue
            with suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes() + b"\0":
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        return found

    def daemons(self) -> list[int]:
        """Not what one of them has just forked, which still shows its command line: that becomes a supervisor."""
        found = [pid for pid, line in self.processes().items() if b"\0gpuq.daemon\0" in line]
        return [pid for pid in found if _parent_and_session(pid)[0] not in found]

    def kill(self, pids: list[int]) -> None:
        """KILL, and wait until they are gone."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: all(_gone(pid) for pid in pids), "the end of what was killed")
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def supervisors(self) -> list[tuple[int, int, int]]:
        """(pid, job, attempt) of those that live, by their command line, and not what one has just forked: its job."""
        found = []
        for pid, line in self.processes().items():
            if _parent_and_session(pid)[1] != pid:
                continue
            words = dict(word.split(b"=", 1) for word in line.split(b"\0") if word.startswith((b"job=", b"attempt=")))
            if b"job" in words and b"attempt" in words:
                found.append((pid, int(words[b"job"]), int(words[b"attempt"])))
        return found

    @contextmanager
    def nobody_starts_a_daemon(self) -> Iterator[None]:
        """While the block runs clients wait with starting one: they take turns on this lock."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(self.state / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def reboot(self) -> None:
        """Everything ends at one instant, without a last word, and the kernel is another one."""
        with self.nobody_starts_a_daemon():
            began = time.time()
            all_of_it: set[int] = set()
            while fresh := (self.processes().keys() | self._offspring(all_of_it)) - all_of_it:
                for pid in fresh:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                all_of_it |= fresh
            self.kill(sorted(all_of_it))
            self.journal.note("reboot", since=began)
            if self.own_boot_id:
                self._new_boot_id()
            else:
                self._pretend_new_boot_id()

    def _offspring(self, of: set[int]) -> set[int]:
        """Children of these, and their sessions: what is in the middle of an execve(2) shows no environment."""
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()} - self._clients - {os.getpid()}
        return {pid for pid in pids if of.intersection(_parent_and_session(pid))}

    def _new_boot_id(self) -> None:
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")

    def _pretend_new_boot_id(self) -> None:
        """Where the kernel's file cannot be covered: what supervisors wrote is made to be of another boot."""
        for path in self.state.glob("jobs/*/*/identity"):
            identity = json.loads(path.read_bytes())
            path.write_text(json.dumps({**identity, "boot_id": str(uuid.uuid4())}))

    def note_points(self) -> set[str]:
        """From the daemon's log: which crash points were met since the last look, and whose supervisors are to die."""
        found = set()
        path = self.state / "daemon.log"
        with suppress(FileNotFoundError), path.open("rb") as log:
            if os.fstat(log.fileno()).st_size < self._log_read:
                self._log_read = 0  # a new one
            log.seek(self._log_read)
            for name, job, attempt in re.findall(POINT, log.read()):
                found.add(name.decode())
                self.journal.note("point", name=name.decode(), attempt=[int(job), int(attempt)] if job else None)
            self._log_read = log.tell()
        return found


def _make_driver(folder: Path) -> None:
    """The fake driver, and what of it another world needs to know."""
    (folder / "claims").mkdir()
    fake = FakeNvml(folder / "nvml", fake_gpus(*CARDS))
    env = {name: value for name, value in fake.env.items() if name != "FAKE_NVML_LOG"}
    totals = {fake.uuid(n): size for n, size in enumerate(CARDS)}
    (folder / "driver.json").write_text(json.dumps({"env": env, "totals": totals}))


def _make_cgroup() -> Path | None:
    """One for the jobs, where this user may make one (cgroups(7)); None elsewhere."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].partition("\n")[0]
    with suppress(OSError, IndexError):
        return Path(tempfile.mkdtemp(prefix="gpuq-chaos-", dir=roots[0] / own))
    return None


def _parent_and_session(pid: int) -> tuple[int, int]:
    """As proc_pid_stat(5) has them; zeros for what is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[1]), int(fields[3])


def _gone(pid: int) -> bool:
    """Whether nothing of it runs: where the first thread is dead already, others may still hold the socket."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def until(condition: Any, what: str, patience: float = PATIENCE) -> None:
    """Raises TimeoutError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {patience:.0f} s")
        time.sleep(0.01)
