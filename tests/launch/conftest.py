"""Attempts as a daemon would start them, with real supervisors and real jobs."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gpuq.daemon.children import PR_SET_CHILD_SUBREAPER
from gpuq.launch import cgroup
from gpuq.launch.adoption import Found, adopt, wait_unlocked
from gpuq.launch.cgroup import Supervision
from gpuq.launch.launcher import Launch, Launcher
from gpuq.launch.outcome import Result, parse, read_result
from gpuq.launch.parts.leaf import Leaf
from gpuq.launch.runfolder import RECORD
from gpuq.launch.supervisors import Began, Died, Key, NotBegun, Reported, Supervisor

#: Seconds after which something that should have happened counts as not happening.
DEADLINE = 60.0
T = TypeVar("T")
SHELL_ENV = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}


def until(condition: Callable[[], T | None]) -> T:
    """The first true value of `condition`."""
    limit = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)
    return value


def written(path: Path) -> str:
    """The text of a file that a job renames into place."""
    until(path.exists)
    return path.read_text()


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def unprivileged(work: Callable[[], T]) -> T:
    """The work as a user to whom file modes matter: root ignores them, by two capabilities of a thread.

    They are dropped in a thread of its own, from what it has and from what a program that it starts may get
    (capabilities(7): CAP_DAC_OVERRIDE is 1, CAP_DAC_READ_SEARCH is 2). Others do not have them to begin with.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, data) == 0
        for index in range(3):
            data[index] &= ~0b110
        for capability in (1, 2):
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP, which only root can and must
        assert libc.capset(header, data) == 0
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 (raised below, in the caller's thread)
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def python(code: str) -> tuple[str, ...]:
    """A job that runs Python code, quickly started."""
    return (sys.executable, "-I", "-S", "-c", code)


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def claimed(run_dir: Path) -> None:
    """Make the run folder as it is before an attempt is claimed."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / RECORD).touch()


def settled(run_dir: Path) -> Found:
    """What became of an attempt whose supervisor or zygote has ended, with its lock perhaps still on its way to it: the
    kernel tells of the end of a socket a moment before it lets go what was in its queue."""
    wait_unlocked(run_dir)
    return adopt(run_dir)


def answer(starter: Launcher) -> Began | NotBegun:
    """What became of the one attempt that is being started."""
    while True:
        assert select.select([starter], [], [], DEADLINE)[0], "no answer"
        for one in starter.news():
            if isinstance(one, Began | NotBegun):
                return one


def reap_children() -> None:
    """As `daemon.children` does with what nobody waits for: the dead would slow down each look at /proc."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


@contextmanager
def reaping() -> Iterator[None]:
    """We adopt what loses its parent, as the daemon does, so that supervisors become our children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        reap_children()


@dataclass
class Attempts:
    """Makes launches with defaults, waits for their ends, and leaves nothing behind."""

    folder: Path
    #: where each attempt gets a cgroup of its own, None for none
    cgroups: Path | None = None
    #: each supervisor ends with its attempt
    launcher: Launcher = field(default_factory=lambda: Launcher(spare=0))
    begun: dict[Key, Supervisor] = field(default_factory=dict)
    refused: dict[Key, NotBegun] = field(default_factory=dict)
    #: what supervisors told of how their attempts ended
    reports: dict[Key, bytes] = field(default_factory=dict)
    #: how supervisors ended that told nothing
    statuses: dict[Key, int | None] = field(default_factory=dict)
    _count: int = 0

    def launch(self, argv: Sequence[str], **changes: Any) -> Launch:
        self._count += 1
        run_dir = self.folder / f"run-{self._count}"
        plain = Launch(
            job_id=self._count,
            attempt=1,
            run_dir=run_dir,
            argv=tuple(argv),
            cwd=str(self.folder),
            env=SHELL_ENV,
            log_path=str(self.folder / f"log-{self._count}"),
            private_log=True,
            umask=0o022,
            limits=(),
            time_limit=None,
            grace=0.5,
        )
        launch = replace(plain, **changes)
        leaf = Supervision(self.cgroups).leaf(launch.run_dir, launch.job_id, launch.attempt)
        return launch if leaf is None else replace(launch, cgroup=leaf)

    def hear(self) -> None:
        """Wait for something to happen, and remember what is told of it."""
        assert select.select([self.launcher], [], [], DEADLINE)[0], "nothing happens"
        for one in self.launcher.news():
            match one:
                case Began(key, supervisor):
                    self.begun[key] = supervisor
                case NotBegun(key):
                    self.refused[key] = one
                case Reported(key, report):
                    self.reports[key] = report
                case Died(key, status):
                    self.statuses[key] = status
        self.launcher.settle()

    def hear_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.hear()

    def start(self, launch: Launch) -> Supervisor:
        """The attempt's supervisor, once it has its orders. Raises LaunchError."""
        self.launcher.start(launch)
        key = (launch.job_id, launch.attempt)
        while key not in self.begun:
            self.hear()
            if key in self.refused:
                failure = self.refused[key].failure
                assert failure is not None, "the zygote is gone"
                raise failure
        return self.begun[key]

    def wait(self, supervisor: Supervisor) -> None:
        """Until the supervisor has ended and is reaped; what it reported is remembered."""
        self.hear_until(lambda: supervisor.pid not in self.launcher.pids())

    def finish(self, launch: Launch, supervisor: Supervisor) -> Result:
        self.wait(supervisor)
        result = read_result(launch.run_dir)
        assert result is not None, (launch.run_dir / "lock").read_text()
        assert parse(self.reports[launch.job_id, launch.attempt], "its report") == result
        return result

    def run(self, launch: Launch) -> Result:
        return self.finish(launch, self.start(launch))

    def output(self, argv: Sequence[str], **changes: Any) -> str:
        """What a job printed that ended well."""
        launch = self.launch(argv, **changes)
        assert self.run(launch).wait_status == 0
        return Path(launch.log_path).read_text(errors="surrogateescape")

    def close(self) -> None:
        """Kill what a failed test left, without the code under test."""
        left = [pid for pid in self.launcher.pids() if pid != self.launcher.zygote]
        self.launcher.close()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        reap_children()
        sessions = {supervisor.pid for supervisor in self.begun.values()}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with suppress(OSError):  # it has ended
                if os.getsid(pid) in sessions or Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self.folder):
                    os.kill(pid, signal.SIGKILL)


@contextmanager
def child(*argv: str, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A child of ours, killed in the end."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def cgroup_of_our_own() -> Path:
    """A new cgroup; skips where none can be made. Root may make one in the root group, others where it is delegated."""
    try:
        mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        root = next(Path(before.split()[4]) for before, after in mounts if after.startswith("cgroup2 "))
        folder = root if os.geteuid() == 0 else cgroup.find().folder
        if folder is None:
            pytest.skip("no cgroup is delegated to this user")
        made = folder / f"gpuq-test-{os.getpid()}-{os.urandom(4).hex()}"
        made.mkdir()
    except (OSError, StopIteration):
        pytest.skip("no cgroup of version 2 can be made here")
    return made


@pytest.fixture
def cgroups() -> Iterator[Path]:
    """A cgroup for the test's attempts; nothing may be left in it."""
    made = cgroup_of_our_own()
    yield made
    left = [entry.path for entry in os.scandir(made) if entry.is_dir()]
    Leaf(os.fsencode(made)).close()
    assert left == []


@pytest.fixture(params=["process tree", "cgroup"])
def both(request: pytest.FixtureRequest, attempts: Attempts) -> Attempts:
    """Attempts that are kept together by either means."""
    if request.param == "cgroup":
        attempts.cgroups = request.getfixturevalue("cgroups")
    return attempts


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    with reaping():
        made = Attempts(tmp_path)
        yield made
        made.close()
