"""The control group of one attempt (cgroup v2, cgroups(7)): what its processes cannot leave by forking.

Whatever fails here fails no job: without a group the supervisor does the same by looking at its descendants.
"""

import errno
import posix as os
import time

from gpuq.launch.parts.files import slurp

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Between rounds of KILL, in seconds.
ROUND = 0.1


class Leaf:
    """A cgroup that holds the processes of an attempt, and those of the groups that the job made below it."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def make(self) -> bool:
        try:
            os.mkdir(self.path, 0o755)
        except OSError:
            return False
        return True

    def limit(self, ram: int) -> None:
        """Hold it to so many bytes of memory, where the kernel lets us."""
        if self._write(b"memory.max", b"%d" % ram):
            # what is left of a job of which the kernel killed a part does no work
            self._write(b"memory.oom.group", b"1")

    def enter(self) -> None:
        """Put this process into it."""
        self._write(b"cgroup.procs", b"0")

    def kill(self) -> None:
        """KILL to all at once; not even a fork escapes it (Linux 5.14)."""
        self._write(b"cgroup.kill", b"1")

    def freeze(self) -> None:
        self._write(b"cgroup.freeze", b"1")

    def thaw(self) -> None:
        self._write(b"cgroup.freeze", b"0")

    def members(self) -> set[int]:
        """The pids of all processes in it."""
        return {int(word) for path in self._groups() for word in read(path + b"/cgroup.procs").split()}

    def oom_kills(self) -> int:
        """How often the kernel killed one of it for want of memory; with `memory.oom.group` the first counts twice."""
        return counter(read(self.path + b"/memory.events"), b"oom_kill")

    def memory_peak(self) -> int:
        """The most memory it used at once, in bytes (Linux 5.19); 0 where that is not known."""
        text = read(self.path + b"/memory.peak").strip()
        return int(text) if text.isdigit() else 0

    def remove(self) -> bool:
        """False where it stays because processes are in it."""
        for path in sorted(self._groups(), key=len, reverse=True):
            try:
                os.rmdir(path)
            except OSError as error:
                # gone, or a file system that has become read-only: there is nothing to wait for
                if error.errno == errno.EBUSY:
                    return False
        return True

    def close(self) -> None:
        """End what somebody else put into it, which is no descendant of ours, and remove it."""
        while not self.remove():
            self.kill()
            time.sleep(ROUND)

    def _groups(self) -> "Iterator[bytes]":
        """It and the groups below it; those that go meanwhile are left out."""
        pending = [self.path]
        while pending:
            path = pending.pop()
            yield path
            try:
                pending += [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue

    def _write(self, name: bytes, text: bytes) -> bool:
        try:
            file = os.open(self.path + b"/" + name, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False  # a kernel without it, a controller that is not ours, or the group is gone
        try:
            return os.write(file, text) == len(text)
        except OSError:
            return False
        finally:
            os.close(file)


def read(path: bytes) -> bytes:
    """The whole file, nothing for one that is not there."""
    try:
        return slurp(path)
    except OSError:
        return b""


def counter(text: bytes, name: bytes) -> int:
    """A number out of lines of a name and a number, as in memory.events; 0 where it is not told."""
    for line in text.split(b"\n"):
        key, _, value = line.partition(b" ")
        if key == name and value.isdigit():
            return int(value)
    return 0
