"""Real Unix users on one host, each with a daemon, without any right that a user does not have. Needs root.

What a user must read to run gpuq (interpreter, packages, checkout) may lie where only we can: each command of a user
runs in a mount namespace of its own, in which these are mounted below a folder that everybody can read.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import gpuq
from tests.fakenvml import ALLOC, FakeNvml
from tests.harness import PATIENCE, gone, wait_until

#: What a user's commands see under other paths.
_MOUNTS = {
    "python": Path(sys.base_prefix),
    "packages": Path(sysconfig.get_path("purelib")),
    "checkout": Path(gpuq.__file__).resolve().parents[1],
}
_ENTER = """
set -e
for name in python packages checkout; do mount --bind "$1" "$HOST/$name"; shift; done
uid=$1; shift
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs -- "$@"
"""


class SharedHost:
    """A folder that every user can reach, with a fake driver, a place for claims, and the users' homes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        for name in _MOUNTS:
            (folder / name).mkdir()
        self.claims = folder / "claims"
        self.claims.mkdir()
        self.claims.chmod(0o1777)
        self.nvml = FakeNvml(folder / "nvml")
        (folder / "nvml" / "box.d").chmod(0o1777)
        (folder / "nvml" / "calls").touch()
        (folder / "nvml" / "calls").chmod(0o666)
        shutil.copy(ALLOC, folder / "alloc.py")
        self.users: list[User] = []

    @property
    def python(self) -> str:
        real = Path(os.path.realpath(sys.executable))
        return str(self.folder / "python" / real.relative_to(Path(sys.base_prefix).resolve()))

    def user(self, uid: int, **env: str) -> User:
        made = User(self, uid, env)
        self.users.append(made)
        return made

    def close(self) -> None:
        for user in self.users:
            user.close()


class User:
    """One user: commands run with its ids, in its home."""

    def __init__(self, host: SharedHost, uid: int, env: dict[str, str]) -> None:
        self.host, self.uid = host, uid
        self.home = host.folder / f"u{uid}"
        self.home.mkdir(mode=0o755)
        os.chown(self.home, uid, uid)
        self.state = self.home / "state"
        self.env = {
            "PATH": os.defpath,
            "HOME": str(self.home),
            "HOST": str(host.folder),
            "PYTHONPATH": f"{host.folder}/checkout:{host.folder}/packages",
            "PYTHONDONTWRITEBYTECODE": "1",
            "GPUQ_STATE_DIR": str(self.state),
            "GPUQ_CLAIMS_DIR": str(host.claims),
            "NO_COLOR": "1",
            **host.nvml.env,
            **env,
        }

    def argv(self, *command: str) -> list[str]:
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return [*enter, *map(str, _MOUNTS.values()), str(self.uid), *command]

    def do(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Any program, as this user."""
        return subprocess.run(
            self.argv(*command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            env=self.env,
            cwd=self.home,
            timeout=PATIENCE * 2,
        )

    def ok(self, *args: str, stdin: str | None = None) -> str:
        """Standard output of a gpuq command that must succeed."""
        done = self.do(self.host.python, "-m", "gpuq", *args, stdin=stdin)
        assert done.returncode == 0, f"gpuq {shlex.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *args: str) -> dict[str, Any]:
        found = json.loads(self.ok(*args, "--json"))
        assert isinstance(found, dict)
        return found

    def job(self, job_id: int) -> dict[str, Any]:
        (found,) = self.json("show", str(job_id))["jobs"]
        assert isinstance(found, dict)
        return found

    def holds(self, size: str, *more: str) -> list[str]:
        """A job that holds memory of its GPU, like `FakeNvml.allocate`."""
        return [self.host.python, str(self.host.folder / "alloc.py"), "first-visible", size, *more]

    def daemon_pid(self) -> int:
        pid = self.json("daemon", "status")["pid"]
        assert isinstance(pid, int)
        return pid

    def kill_daemon(self) -> None:
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), "the daemon's end")

    def processes(self) -> list[int]:
        """Every process that carries this user's state folder in its environment."""
        mark, found = f"GPUQ_STATE_DIR={self.state}\0".encode(), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Stop daemon and jobs; nothing of this user may be left."""
        try:
            if (self.state / "sock").exists():
                self.do(self.host.python, "-m", "gpuq", "daemon", "stop", "--jobs")
        finally:
            for pid in self.processes():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not self.processes(), "the end of what the test left behind")


@contextmanager
def shared_host() -> Iterator[SharedHost]:
    """A host for several users. pytest's own folders are closed to all but one."""
    if subprocess.run(["unshare", "--mount", "--propagation", "private", "true"], capture_output=True).returncode:
        pytest.skip("users cannot have file systems of their own here")
    with tempfile.TemporaryDirectory(prefix="gpuq-users-") as folder:
        host = SharedHost(Path(folder))
        try:
            yield host
        finally:
            host.close()
