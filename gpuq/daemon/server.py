"""The socket: who is there, lines in, lines out. What a request means is in handlers.py."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from gpuq import __version__, config, crash, protocol
from gpuq.daemon import database, decisions, disabling, editing, groups, handlers, queues
from gpuq.daemon.asking import Daemon, Session
from gpuq.daemon.handlers import STREAMS
from gpuq.errors import (
    BadRequest,
    DaemonUnreachable,
    GpuqError,
    NotAllowed,
    ProtocolMismatch,
    StateFolderError,
)
from gpuq.protocol import Message

log = logging.getLogger("gpuq.server")

ANSWERS = handlers.ANSWERS | database.ANSWERS | queues.ANSWERS | groups.ANSWERS | disabling.ANSWERS | editing.ANSWERS

#: A connection that says nothing is closed after this long, in seconds.
IDLE = 30.0
#: Descriptors kept back from connections: database, logs, pidfds of attempts.
RESERVED_FDS = 256
#: Connections that the kernel keeps until they are accepted; net.core.somaxconn may make it fewer.
BACKLOG = 1024
#: What is asked for so often, and changes so little, that a refusal of it is not worth a line of the log.
LOOKS = frozenset({"status", "list", "show", "why", "gpus", "wait", "follow", "top", "events", "queues", "groups"})
_UCRED = struct.Struct("3i")


class Server:
    """Listens in the state folder. `close` answers what is under way, then tells the rest why it ends."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._server: asyncio.Server | None = None
        #: which file our socket is (device, inode)
        self._identity: tuple[int, int] | None = None
        self._ending: asyncio.Future[GpuqError | None] = asyncio.get_running_loop().create_future()
        #: what each connection's task reads from
        self._readers: dict[asyncio.Task[None], asyncio.StreamReader] = {}
        #: connections that have said nothing yet, the oldest first
        self._silent: dict[asyncio.Task[None], None] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(16, min(4096, soft - RESERVED_FDS))

    async def listen(self) -> None:
        """Bind the socket, 0600. A socket left by a dead daemon is replaced: we hold the daemon's lock."""
        folder = self._daemon.core.state_dir
        try:
            (folder / "sock").unlink(missing_ok=True)
        except OSError as error:
            text = f"{folder / 'sock'} is in the way of the socket: {error.strerror}; move it away"
            raise StateFolderError(text) from None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        os.fchmod(listener.fileno(), 0o600)  # the mode of what bind makes (unix(7)), which nobody sees otherwise
        with config.socket_address(folder) as address:
            listener.bind(address)
        self._identity = _identity(folder / "sock")
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=protocol.MAX_LINE, backlog=BACKLOG
        )

    def reachable(self) -> bool:
        """Whether the socket at the path is ours."""
        return self._identity is not None and _identity(self._daemon.core.state_dir / "sock") == self._identity

    async def close(self, reason: GpuqError | None) -> None:
        """Stop listening; `reason` is told to those who wait for news, None just closes (they come again)."""
        if self._server is not None:
            self._server.close()
        if self.reachable():
            (self._daemon.core.state_dir / "sock").unlink(missing_ok=True)
        self._ending.set_result(reason)
        for reader in self._readers.values():
            reader.feed_eof()  # whoever has nothing under way goes now
        if self._readers:
            await asyncio.wait(self._readers.keys(), timeout=5)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._readers[task] = reader
        self._silent[task] = None
        if len(self._readers) > self._most and self._silent:
            next(iter(self._silent)).cancel()  # the oldest that has said nothing gives way
        try:
            await self._serve(reader, writer, task)
        except (ConnectionError, asyncio.CancelledError):
            log.debug("a client went away")
        finally:
            del self._readers[task]
            self._silent.pop(task, None)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        pid, uid = _peer(writer)
        if uid != os.geteuid():
            decisions.stranger(uid, pid)
            await _send(writer, protocol.error_reply(NotAllowed(f"this daemon belongs to uid {os.geteuid()}")))
            return
        session = Session(uid, _hangup(writer))
        try:
            while not self._ending.done():
                try:
                    line = await asyncio.wait_for(reader.readline(), IDLE)
                except TimeoutError:
                    return
                except ValueError:
                    problem = BadRequest(f"the message is longer than {protocol.MAX_LINE:,} bytes")
                    await _send(writer, protocol.error_reply(problem))
                    return
                if not line.endswith(b"\n"):
                    return  # the client left, perhaps in the middle of a message
                self._silent.pop(task, None)
                if not await self._answer(line, session, reader, writer):
                    return
        finally:
            await session.give_up()

    async def _answer(
        self, line: bytes, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; whether the connection goes on."""
        op = ""
        try:
            message = protocol.decode(line)
            op = _operation(message)
            if op in STREAMS:
                await self._stream(STREAMS[op](self._daemon, session, message), reader, writer)
                return False
            reply = await ANSWERS[op](self._daemon, session, message)
            if not isinstance(reply, dict):
                await _send_parts(writer, reply)
                return True
            submitted = op == "submit" and "ids" in reply
            if submitted:
                crash.point("reply-before")
            await _send(writer, {"ok": True, **reply})
            if submitted:
                crash.point("reply-after")
        except GpuqError as error:
            await session.give_up()
            if op and op not in LOOKS:
                decisions.refused(session.uid, op, error.message)
            await _send(writer, protocol.error_reply(error))
            return not isinstance(error, BadRequest)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("a request failed")
            await session.give_up()
            problem = GpuqError(f"the daemon failed on this ({type(error).__name__}); its log tells more")
            await _send(writer, protocol.error_reply(problem))
        return True

    async def _stream(
        self, objects: AsyncIterator[Message], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send objects until there are no more, the client goes, or the daemon ends."""

        async def send_all() -> None:
            async for message in objects:
                await _send(writer, {"ok": True, **message})

        sending = asyncio.ensure_future(send_all())
        gone = asyncio.ensure_future(_until_closed(reader))
        try:
            anything: set[asyncio.Future[Any]] = {sending, gone, self._ending}
            await asyncio.wait(anything, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif self._ending.done() and (reason := self._ending.result()) is not None:
                await _send(writer, protocol.error_reply(reason))
        finally:
            gone.cancel()
            sending.cancel()
            await asyncio.wait({sending})


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Until the client closes; what it says meanwhile is not heard."""
    while await reader.read(1 << 16):
        pass


def _operation(message: Message) -> str:
    """The operation asked for. Raises ProtocolMismatch for one that only a newer gpuq knows."""
    op, version = message.get("op"), message.get("v")
    if not isinstance(op, str) or not isinstance(version, int):
        raise BadRequest("a request has an operation `op` and a version `v`")
    if version < 1:
        raise BadRequest(f"there is no protocol version {version}")
    if op in ANSWERS or op in STREAMS:
        return op
    if version > protocol.PROTOCOL:
        raise ProtocolMismatch(
            f"the daemon is gpuq {__version__} and does not know {op!r:.60}: "
            "`gpuq daemon restart` replaces it, and running jobs run on"
        )
    raise BadRequest(f"there is no operation {op!r:.60}")


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Process and user that are at the other end, as the kernel says (SO_PEERCRED, unix(7))."""
    peer = writer.get_extra_info("socket")
    pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid), int(uid)


def _hangup(writer: asyncio.StreamWriter) -> Callable[[], bool]:
    """Whether the other end has closed, and not only ended what it sends (POLLHUP, poll(2))."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), 0)
    return lambda: writer.is_closing() or bool(poll.poll(0))


async def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(protocol.encode(message))
    await writer.drain()


async def _send_parts(writer: asyncio.StreamWriter, parts: AsyncIterator[bytes]) -> None:
    """One line, part by part. Where it cannot be ended, so is the connection: nothing else may follow a part."""
    try:
        async for part in parts:
            writer.write(part)
            await writer.drain()
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("an answer was broken off")
        raise ConnectionAbortedError from None


STOPPED = DaemonUnreachable("the daemon was stopped; running jobs run on, and the next command starts it again")
