"""The blocking client: one connection per request, standard library only.

Starts the daemon when there is none, as tmux and gpg-agent do. Twenty clients that race take turns on a lock file,
so that one of them starts the daemon and the others find it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gpuq import config, protocol
from gpuq.errors import ConnectionLost, DaemonUnreachable, NoDaemon, NotAllowed
from gpuq.protocol import Message
from gpuq.units import printable

T = TypeVar("T")

#: A daemon that answers nothing for this long, in seconds, is reported instead of waited for.
PATIENCE = 60.0
#: How often a daemon is started, or asked what may be asked twice, where it dies before it answers.
TRIES = 4
#: Operations that change nothing.
READING = frozenset({"status", "list", "show", "why", "gpus", "queues", "groups"})


class Client:
    """One connection to the daemon. Use as a context manager."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = bytearray()

    @classmethod
    def connect(cls, *, start: bool = True) -> Client:
        """A connection; with `start`, to a daemon started now if there is none. Raises DaemonUnreachable."""
        folder = config.state_dir()
        connection = _connect(folder)
        if connection is None:
            if not start:
                raise NoDaemon(f"no daemon runs for {folder}; `gpuq daemon start` starts one")
            connection = _persist(lambda: _start(folder), TRIES)
        connection.settimeout(PATIENCE)
        return cls(connection)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, op: str, **fields: Any) -> None:
        line = protocol.encode({"v": protocol.PROTOCOL, "op": op, **fields})
        try:
            self.socket.sendall(line)
        except TimeoutError:
            raise DaemonUnreachable(self._silence()) from None
        except OSError:
            pass  # the daemon closed; its reason, if it gave one, is still to be read

    def receive(self) -> Message:
        """The next object of the daemon. Raises what went wrong there, ConnectionLost when it is gone."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                chunk = self.socket.recv(1 << 16)
            except TimeoutError:
                raise DaemonUnreachable(self._silence()) from None
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise ConnectionLost("the daemon closed the connection before it answered")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message = protocol.decode(line)
        if message.get("ok") is False:
            protocol.raise_error(message.get("error", {}))
        return message

    def _silence(self) -> str:
        """What is to be said of a daemon that does not answer."""
        text = f"the daemon has not answered for {PATIENCE:.0f} s"
        with suppress(OSError, IndexError):
            credentials = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid = int(struct.unpack("3i", credentials)[0])
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
            if state in (b"T", b"t"):
                return f"{text}: it is stopped, and `kill -CONT {pid}` lets it go on"
        return text

    def until_closed(self) -> None:
        """Wait until the daemon, which has announced it, ends or begins anew."""
        with suppress(ConnectionLost):
            while True:
                self.receive()

    def buffered(self) -> bool:
        """Whether `receive` would return without reading: a caller that selects must ask this first."""
        return b"\n" in self._buffer

    def request(self, op: str, **fields: Any) -> Message:
        self.send(op, **fields)
        return self.receive()

    def stream(self, op: str, **fields: Any) -> Iterator[Message]:
        """Every object of a streaming operation, however long it takes, up to and with the one that ends it."""
        self.send(op, **fields)
        self.socket.settimeout(None)
        while True:
            message = self.receive()
            yield message
            if message.get("end"):
                return


def request(op: str, *, start: bool = True, **fields: Any) -> Message:
    """One request over a connection of its own; one that changes nothing is made again where the daemon dies."""

    def ask() -> Message:
        with Client.connect(start=start) as client:
            return client.request(op, **fields)

    return _persist(ask, TRIES if op in READING else 1)


def restore_alone(path: str, *, dry_run: bool) -> Message:
    """The operation `db-restore` where no daemon runs, nor can start. Raises what is wrong."""
    import subprocess

    words = [sys.executable, "-P", "-X", "utf8", "-m", "gpuq.daemon.restore", path, "dry" if dry_run else ""]
    env = {**os.environ, "GPUQ_STATE_DIR": str(config.state_dir())}
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )
    except OSError as error:
        raise _unstartable("the restore", error) from None
    if not done.stdout:
        raise DaemonUnreachable(f"the restore ended without a word, with exit code {done.returncode}")
    reply = protocol.decode(done.stdout)
    if reply.get("ok") is False:
        protocol.raise_error(reply.get("error", {}))
    return reply


def _unstartable(what: str, error: OSError) -> DaemonUnreachable:
    """A process of ours that could not be made; where its program is at fault the error names that file."""
    if not error.filename:
        return DaemonUnreachable(f"{what} could not be started: {error.strerror}")
    return DaemonUnreachable(
        f"{what} could not be started: {error.filename}: {error.strerror}; that is the Python of this gpuq: "
        "let it be executable, or install gpuq anew"
    )


def request_then_anew(op: str, *, anew: Callable[[Message], bool], **fields: Any) -> Message:
    """A request after which, where `anew` says so of its reply, the daemon begins anew: returns when that one answers.

    Raises what is wrong with the new one, too.
    """
    with Client.connect() as client:
        reply = client.request(op, **fields)
        if anew(reply):
            client.until_closed()
    if anew(reply):
        request("status")
    return reply


def _persist(work: Callable[[], T], tries: int) -> T:
    """What `work` returns, done again where the connection was lost, so many times in all."""
    while True:
        tries -= 1
        try:
            return work()
        except ConnectionLost:
            if tries <= 0:
                raise


def _connect(folder: Path) -> socket.socket | None:
    """A connection to the daemon of this folder, None when there is none."""
    try:
        config.check_state_dir(folder, create=False, write=False)
    except FileNotFoundError:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with config.socket_address(folder) as address:
            connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except PermissionError:
        connection.close()
        raise NotAllowed(f"the daemon's socket in {folder} belongs to somebody else") from None
    except OSError as error:
        connection.close()
        raise DaemonUnreachable(f"the socket in {folder} cannot be reached: {error.strerror}") from None
    return connection


def _start(folder: Path) -> socket.socket:
    """Start a daemon, or find the one that somebody else has just started."""
    config.check_state_dir(folder, create=True)
    with only_starter(folder):
        connection = _connect(folder)
        if connection is None:
            try:
                begin(folder)
            except DaemonUnreachable:
                connection = _connect(folder)  # one that was beginning anew, say, came first
                if connection is None:
                    raise
            else:
                connection = _connect(folder)
    if connection is None:
        raise ConnectionLost(f"the daemon started and went away again; see {folder / 'daemon.log'}")
    return connection


@contextmanager
def only_starter(folder: Path) -> Iterator[None]:
    """While the block runs nobody else starts a daemon for this folder."""
    lock = os.open(folder / "start.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def refuse_within_job(folder: Path) -> None:
    """A daemon started by a job of its own would be ended with the job. Raises DaemonUnreachable."""
    if os.environ.get("GPUQ_JOB_DIR", "").startswith(f"{folder}/"):
        raise DaemonUnreachable(
            "this is a job of gpuq, and a daemon started here would end with it: run `gpuq daemon start` elsewhere"
        )


def begin(folder: Path) -> None:
    """Start the daemon, through its systemd unit where that is installed. Raises DaemonUnreachable."""
    from gpuq import systemd

    if systemd.start_unit(folder):
        return
    refuse_within_job(folder)
    spawn(folder)
    ends = systemd.ends_at_logout()
    if ends is not None:
        print(
            f"gpuq: the daemon and its jobs end when you log out: {ends.why}; what prevents it: {ends.cure}",
            file=sys.stderr,
        )


def spawn(folder: Path) -> None:
    """Run the daemon in a session of its own, and wait for its word that it listens, or why it does not.

    Raises DaemonUnreachable with that reason; ConnectionLost where it died without one, so that the next may live.
    """
    import subprocess

    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            # -P: nothing is imported from the folder that the user happens to stand in; utf8: whatever our locale is
            [sys.executable, "-P", "-X", "utf8", "-m", "gpuq.daemon", str(write)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[write],
            start_new_session=True,
            env={**os.environ, "GPUQ_STATE_DIR": str(folder)},
            cwd="/",
        )
        process.returncode = 0  # it outlives us: Popen need not complain that nobody waits
    except OSError as error:
        os.close(read)
        raise _unstartable("the daemon", error) from None
    finally:
        os.close(write)
    said = []
    with open(read, encoding="utf-8", errors="replace") as pipe:
        for line in pipe:  # notes as they come: a large database may take a while
            if line.startswith("note: "):
                print(f"gpuq: {printable(line.removeprefix('note: ').rstrip())}", file=sys.stderr, flush=True)
            else:
                said.append(line.rstrip("\n"))
    if said != ["ready"]:
        why = "\n".join(said).strip()
        if not why:
            raise ConnectionLost(f"the daemon did not start: it ended without a word; see {folder / 'daemon.log'}")
        raise DaemonUnreachable(f"the daemon did not start: {why}")
