"""Our part in what the daemons of this host agree on: telling them our claims, and planning one at a time.

Each daemon tells its claims in a file of its own, replaced as a whole. From looking at the others' to telling its own
it holds a lock, so that of two daemons that see the same free memory one sees the other's claim.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gpuq.config import CLAIMS_PREFIX
from gpuq.daemon.claimsfile import Published, PublishedClaim, PublishedWait, encode, hashed
from gpuq.daemon.neighbours import NOBODY, Neighbours, Others, opened, pid_namespace
from gpuq.launch.identity import boot_id, identity_of

log = logging.getLogger("gpuq.sharing")

#: Longest wait for our turn, in seconds: whoever holds the lock for longer must not keep us from starting jobs.
TURN_PATIENCE = 0.1
#: Between two tries for the lock: flock(2) knows no time limit.
TRY_AGAIN = 0.002
#: The file's time is renewed this often, in seconds: what cleans /tmp removes what looks old.
RENEW = 3600.0
#: What is half written and older than this, in seconds, was left by a crash.
HALF_WRITTEN = 60.0
#: What cannot be had for the moment says nothing of the folder.
_FOR_THE_MOMENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})


class Sharing:
    """One daemon's claims among those of the host. Used by the loop; `read` by the thread that reads GPUs, too."""

    def __init__(self, folder: Path, state_dir: Path) -> None:
        self._folder = folder
        me = identity_of(os.getpid())
        assert me is not None
        state = hashed(os.fsencode(os.path.realpath(state_dir)))
        self._me = Published(state, me.pid, me.start_time, boot_id(), pid_namespace())
        self._neighbours = Neighbours(folder, state)
        #: why claims are not shared, None while they are; reading and telling fail apart
        self._faults: dict[str, str] = {}
        self._waited_in_vain = False
        self._body = b""
        self._name = ""
        #: the file as we wrote it, locked, which tells that we live where nothing else does
        self._fd = -1
        self._renewed_at = 0.0

    @property
    def fault(self) -> str | None:
        return next(iter(self._faults.values()), None)

    def read(self) -> Others:
        """What others claim and wait for; nothing where that cannot be read."""
        return self.look() or NOBODY

    def look(self) -> Others | None:
        """The same, to start jobs by: None where it cannot be known for the moment, as without a free descriptor."""
        what = "others' claims cannot be read"
        try:
            found = self._neighbours.read()
        except OSError as error:
            self._note(what, error)
            return None if error.errno in _FOR_THE_MOMENT else NOBODY
        self._faults.pop(what, None)
        return found

    def publish(self, claims: Sequence[PublishedClaim], waits: PublishedWait | None) -> bool:
        """Tell the others what we claim from now on, and what we wait for. Cheap where that has not changed.

        False where that is not possible for the moment only.
        """
        what = "our claims cannot be told"
        try:
            self._publish(claims, waits)
        except OSError as error:  # whatever is wrong with the folder, jobs go on
            self._note(what, error)
            return error.errno not in _FOR_THE_MOMENT
        self._faults.pop(what, None)
        return True

    def _publish(self, claims: Sequence[PublishedClaim], waits: PublishedWait | None) -> None:
        silent = not claims and waits is None
        if silent and not self._body:
            return
        with opened(self._folder) as folder:
            if silent:
                self._remove(folder)
                return
            body = encode(replace(self._me, claims=tuple(claims), waits=waits))
            in_place = self._in_place(folder)
            if body != self._body or not in_place:
                self._write(folder, body, self._name if in_place else "")
            elif time.monotonic() - self._renewed_at > RENEW:
                os.utime(self._fd)
                self._renewed_at = time.monotonic()

    def clean(self) -> None:
        """Remove what earlier daemons of ours left. Their jobs' claims must have been published before."""
        try:
            with opened(self._folder) as folder:
                for name in (*self._neighbours.leftovers(), *self._half_written(folder)):
                    if name != self._name:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=folder)
        except OSError as error:
            log.warning("what was left of our claims cannot be removed: %s", error)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the host's lock, or, where that cannot be had in time, go on without it.

        The lock is on the folder itself: it belongs to root, so that nobody can put another one in its place, as
        whoever made a lock file in it first could. filelock knows only files that it makes.
        """
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # `read` and `publish` will tell
                folder = held.enter_context(opened(self._folder))
                self._wait_for(folder)
                # not just closed: a process that is being started has the descriptor, too, and with it the lock
                held.callback(fcntl.flock, folder, fcntl.LOCK_UN)
            yield

    def _wait_for(self, folder: int) -> None:
        """Wait for the lock. After a wait in vain the next ones do not wait, until it was free once."""
        deadline = time.monotonic() + (0 if self._waited_in_vain else TURN_PATIENCE)
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._waited_in_vain = False
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    if not self._waited_in_vain:
                        log.warning("somebody holds the lock on %s: planning without it", self._folder)
                    self._waited_in_vain = True
                    return
                time.sleep(TRY_AGAIN)
            except OSError as error:  # a file system without such locks
                if not self._waited_in_vain:
                    log.warning("%s cannot be locked (%s): planning without it", self._folder, error)
                self._waited_in_vain = True
                return

    # --- our file ---------------------------------------------------------------------------------

    def _in_place(self, folder: int) -> bool:
        """Whether our file is still there: somebody may have cleaned up."""
        if self._fd < 0:
            return False
        try:
            found = os.stat(self._name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._fd)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _write(self, folder: int, body: bytes, former: str) -> None:
        fd, temporary = _create(folder)
        try:
            os.fchmod(fd, 0o644)  # whatever our umask
            # ext4 writes what has no place yet to the disk before one file takes another's name: more than 1 ms
            # (ext4(5), auto_da_alloc)
            os.posix_fallocate(fd, 0, len(body))
            left = memoryview(body)
            while left:
                left = left[os.write(fd, left) :]
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._put(folder, temporary, former)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        self._forget()
        self._fd, self._body, self._renewed_at = fd, body, time.monotonic()

    def _put(self, folder: int, temporary: str, former: str) -> None:
        """Give it the name of the former one while that is in place: a name that had been gone, or is somebody else's
        by now, may have been noted by others as one that says nothing."""
        if former:
            with contextlib.suppress(OSError):
                os.rename(temporary, former, src_dir_fd=folder, dst_dir_fd=folder)
                return
        self._name = _random_name()
        os.rename(temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)

    def _remove(self, folder: int) -> None:
        if self._body and self._in_place(folder):
            os.unlink(self._name, dir_fd=folder)
        self._forget()

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._body = -1, b""

    def _half_written(self, folder: int) -> Iterator[str]:
        start = f"{CLAIMS_PREFIX}{os.geteuid()}."
        for name in os.listdir(folder):
            if name.startswith(start) and name.endswith(".new"):
                with contextlib.suppress(OSError):
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if found.st_uid == os.geteuid() and time.time() - found.st_mtime > HALF_WRITTEN:
                        yield name

    def _note(self, what: str, error: OSError) -> None:
        """Keep a fault, and say it once."""
        text = f"{what}: {error}"
        if self._faults.get(what) != text:
            log.error("%s", text, extra={"event": "sharing-fault"})
        self._faults[what] = text


def _random_name() -> str:
    """One that nobody can take beforehand."""
    return f"{CLAIMS_PREFIX}{os.geteuid()}.{secrets.token_hex(16)}"


def _create(folder: int) -> tuple[int, str]:
    name = f"{_random_name()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=folder), name
