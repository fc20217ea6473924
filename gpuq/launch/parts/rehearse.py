"""What the zygote does before it forks: a supervisor's work some times over, so that each has less memory of its own.

A page of memory is shared until somebody writes to it, and Python writes to all that it uses: it counts references.
What it makes once is made before the fork, and what it will make after it is to lie on few pages.
"""

import _socket
import marshal
import posix as os
import sys

from gpuq.launch.parts.circumstances import circumstances
from gpuq.launch.parts.processes import read_stat
from gpuq.launch.parts.serve import IDLE, NULL, Title, channel_of, introduce, take_orders, wait_for_adoption
from gpuq.launch.parts.start import DEFAULT_PATH, become_subreaper

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from gpuq.launch.shim import Spec

#: The bytecode of a function begins to adapt to what it is used for with its eighth call (PEP 659).
REHEARSALS = 10
#: Where folders are made that no disk has to be waited for.
MEMORY = "/dev/shm"
#: What such a folder's name begins with; the zygote's pid follows.
NAME = "gpuq-"
#: What CPython allocates comes from pools of one size each (Objects/obmalloc.c): their alignment, what each begins
#: with, by how much sizes differ, and the largest, in bytes.
POOL, POOL_HEAD, STEP, LARGEST = 16384, 48, 16, 512
#: More than there is room for in the pools of a size that are in use here.
MOST_FILLERS = 4096
#: What `bytes` has beside its data.
BYTES_HEAD = bytes.__basicsize__


def rehearse(title: Title) -> None:
    """What Python makes when it is first used, caches, parsers of arguments and the bytecode that it adapts, is made
    here and shared, not by each supervisor in pages of its own.

    A supervisor's work is done some times over, with a folder in memory (shm_overview(7)) and a program that there is.
    Where there is no such folder, nothing is made before it is used.
    """
    folder = f"{MEMORY}/{NAME}{os.getpid()}-{os.urandom(8).hex()}"
    said = os.dup(2)
    try:
        remove_left()
        os.mkdir(folder, 0o700)
        try:
            see_to_nothing(title, folder.encode())
        finally:
            remove(folder)
    except OSError:
        pass  # it costs memory, and no job
    become_subreaper(0)
    os.dup2(said, 2)
    os.close(said)


def remove_left() -> None:
    """Remove what zygotes of ours left that were killed while they rehearsed."""
    for name in os.listdir(MEMORY):
        pid = name[len(NAME) :].partition("-")[0]
        if name.startswith(NAME) and pid.isdecimal() and ((stat := read_stat(int(pid))) is None or stat.gone):
            try:  # noqa: SIM105 (contextlib would have to be imported)
                remove(f"{MEMORY}/{name}")
            except OSError:
                pass  # another user's


def remove(folder: str) -> None:
    """Remove a folder of ours that has files only. Others may put a link of such a name there: it is not followed."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(opened).st_uid == os.geteuid():
            for name in os.listdir(opened):
                os.unlink(name, dir_fd=opened)
            os.rmdir(folder)
    finally:
        os.close(opened)


def see_to_nothing(title: Title, folder: bytes) -> None:
    """REHEARSALS jobs, one after the other, in this process, which is then a sub-reaper and has another `stderr`."""
    spec: Spec = {
        "run_dir": folder,
        "program": marshal.dumps(([b"true"], {b"PATH": b"/proc:" + DEFAULT_PATH})),
        "cwd": b"/",
        "log_path": folder + b"/log",
        "private_log": True,
        "umask": 0o077,
        "limits": [],
        "time_limit": None,
        "grace": 1.0,
        "warn": None,
        "log_limit": None,
        "cgroup": None,
        "ram": None,
    }
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    own = circumstances()
    for _ in range(REHEARSALS):
        wait_for_adoption(0)
        channel = channel_of(os.dup(theirs.fileno()))
        introduce(channel)
        files = os.dup(NULL), os.memfd_create("gpuq-rehearsal")
        os.pwrite(files[1], marshal.dumps(dict(spec)), 0)
        rights = b"".join(file.to_bytes(4, sys.byteorder) for file in files)
        ours.sendmsg([IDLE], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        for file in files:
            os.close(file)
        take_orders(channel, title, own, last=False)
        channel.close()
    ours.close()
    theirs.close()


def begin_pools() -> list[object]:
    """Fill the pools that are in use, so that each fork allocates from the first page of a new one of each size, not
    from a page of holes and another that counts them. What is returned keeps the pools as they are.

    With another allocator it only costs memory.
    """
    fillers: list[object] = []
    for size in range(STEP, LARGEST + 1, STEP):
        for _ in range(MOST_FILLERS):
            fillers.append(filler_of(size, len(fillers)))
            if id(fillers[-1]) % POOL == POOL_HEAD:
                break
    return fillers


def filler_of(size: int, number: int) -> object:
    """A new object of so many bytes."""
    if size > BYTES_HEAD:
        return bytes(size - BYTES_HEAD)
    return object() if size == STEP else (1 << 40) + number  # which has 32 bytes
