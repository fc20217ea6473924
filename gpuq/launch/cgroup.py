"""Whether the daemon has a control group that it may divide among its jobs, and where (cgroup v2, cgroups(7)).

systemd delegates one to a unit with `Delegate=yes`, and marks it (https://systemd.io/CGROUP_DELEGATION). A group that
holds processes cannot hand controllers down, so the daemon moves itself into a leaf of its own first.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpuq.launch.parts.leaf import Leaf

#: Names a cgroup's folder to use, whoever delegated it.
VARIABLE = "GPUQ_CGROUP"
#: The daemon's own leaf.
DAEMON = "gpuq-daemon"
#: What the names of the attempts' leaves begin with.
PREFIX = "gpuq-job-"
#: Set by systemd on what it delegated; the second since 251, and readable for everybody.
_MARKS = ("trusted.delegate", "user.delegate")


@dataclass(frozen=True, slots=True)
class Supervision:
    """How jobs are kept together: in cgroups below `folder`, or else by the process tree alone, and why."""

    folder: Path | None
    why: str = ""
    #: memory can be limited, and its use is told
    memory: bool = False
    #: the controller may be handed down, see `prepare`
    divisible: bool = False

    def describe(self) -> str:
        """A sentence for people."""
        if self.folder is None:
            return f"sub-reaper and process tree: no cgroup is delegated, because {self.why}"
        return f"cgroup v2 at {self.folder}: kill, freeze{', memory' if self.memory else ''}"

    def leaf(self, run_dir: Path, job_id: int, attempt: int) -> Path | None:
        """Where an attempt's cgroup goes. Two daemons of one user may share the folder."""
        return None if self.folder is None else self.folder / f"{PREFIX}{job_id}-{attempt}-{_mark(run_dir)}"


def _mark(run_dir: Path) -> str:
    return f"{zlib.crc32(os.fsencode(run_dir)):08x}"


def is_leaf_of(path: Path, run_dir: Path) -> bool:
    """Whether this can be the cgroup of the attempt in `run_dir`: the job may have written what names it."""
    return (
        path.is_absolute()
        and ".." not in path.parts
        and path.name.startswith(PREFIX)
        and path.name.endswith(f"-{_mark(run_dir)}")
        and (path / "cgroup.events").is_file()
    )


def find(env: Mapping[str, str] | None = None, proc: Path = Path("/proc/self")) -> Supervision:
    """What this process may use. Changes nothing; see `prepare`."""
    named = (os.environ if env is None else env).get(VARIABLE)
    own = Path(named) if named else _own(proc)
    if isinstance(own, str):
        return Supervision(None, own)
    folder = own.parent if own.name == DAEMON else own
    why = _unfit(folder, trusted=bool(named))
    if why is not None:
        return Supervision(None, f"{VARIABLE} names {folder}, and {why}" if named else why)
    memory = "memory" in _words(folder / "cgroup.subtree_control")
    return Supervision(folder, memory=memory, divisible=bool(named) or own.name == DAEMON)


def prepare() -> Supervision:
    """The same, made ready: the daemon is in a leaf, memory is handed down, the empty groups of old jobs are gone.

    It is handed down only if the daemon was put into its leaf by who started it (DelegateSubgroup= of systemd 254): an
    older systemd puts a daemon that it starts again into the group itself, which then refuses processes.
    """
    found = find()
    if found.folder is None:
        return found
    try:
        _leave(found.folder)
    except OSError as error:
        return Supervision(None, f"{found.folder} cannot be divided: {error.strerror}")
    for entry in os.scandir(found.folder):
        if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
            Leaf(os.fsencode(entry.path)).remove()  # it stays while there are processes in it
    return replace(found, memory=found.memory or (found.divisible and _hand_down(found.folder, "memory")))


def _own(proc: Path) -> Path | str:
    """The folder of the process's own cgroup, or why there is none."""
    try:
        lines = (proc / "cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = (proc / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        return f"/proc does not tell of cgroups ({error.strerror})"
    path = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if path is None:
        return "this system has cgroups of version 1 only"
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        if after.split(" ")[0] == "cgroup2":
            root, point = (_unescape(word) for word in before.split(" ")[3:5])
            if root == "/":
                return Path(point + path.rstrip("/"))
            if path == root or path.startswith(root + "/"):
                return Path(point + path.removeprefix(root))
    return "no cgroup file system of version 2 is mounted that shows our own"


def _unescape(word: str) -> str:
    """A field of mountinfo: blanks and such are octal (proc_pid_mountinfo(5))."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        word = word.replace(code, chr(int(code[1:], 8)))
    return word


def _unfit(folder: Path, *, trusted: bool) -> str | None:
    """Why a cgroup is not ours to divide, None if it is."""
    if not (folder / "cgroup.procs").is_file():
        return f"{folder} is not a cgroup"
    if not (folder / "cgroup.events").is_file():
        return "that is the root of all cgroups"
    if not (folder / "cgroup.kill").is_file():
        return "the kernel is older than 5.14"
    for path in (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control"):
        if not os.access(path, os.W_OK):
            return f"{path} is not writable"
        if not trusted and path.stat().st_uid != os.geteuid():
            return f"{path} belongs to somebody else"
    # everything belongs to root, so that there only the mark tells what systemd keeps for itself
    if not trusted and os.geteuid() == 0 and not _marked(folder):
        return f"{folder} is not marked as delegated to root"
    return None


def _marked(folder: Path) -> bool:
    for name in _MARKS:
        try:
            if os.getxattr(folder, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _leave(folder: Path) -> None:
    """Out of the group itself, if we are in it, into a leaf. Raises OSError."""
    if str(os.getpid()) not in _words(folder / "cgroup.procs"):
        return
    (folder / DAEMON).mkdir(exist_ok=True)
    (folder / DAEMON / "cgroup.procs").write_text("0")


def _hand_down(folder: Path, controller: str) -> bool:
    """Whether groups below have the controller."""
    try:
        (folder / "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return False  # not ours, or others are in the group with us
    return controller in _words(folder / "cgroup.subtree_control")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
