"""The daemon's end of the zygote (`parts/fork.py`), from which supervisors are forked."""

from __future__ import annotations

import array
import contextlib
import logging
import marshal
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import InspectLoader
from types import ModuleType
from typing import cast

from gpuq.launch.parts.fork import ROOM
from gpuq.launch.parts.serve import WORD

log = logging.getLogger("gpuq.zygote")

#: Each part becomes a module of its name, for those after it to import; the last is run.
_BOOTSTRAP = """\
import marshal, sys
for name, code in marshal.load(open(%d, 'rb')):
    part = sys.modules[name] = type(sys)(name)
    exec(code, vars(part))
part.main()
"""
#: Most bytes that are kept of what a zygote says when it breaks.
_COMPLAINT = 4096


class Zygote:
    """A zygote, started with the first wish, and again with the next one after it died. Close it with `close`."""

    def __init__(self, parts: Sequence[ModuleType]) -> None:
        #: The code travels compiled: to read it again takes longer, and an upgrade on disk must not change it.
        self._code = marshal.dumps(
            tuple((part.__name__, cast(InspectLoader, part.__loader__).get_code(part.__name__)) for part in parts)
        )
        self._channel: socket.socket | None = None
        self._said = -1
        self._wishes = 0
        self.pid: int | None = None

    @property
    def channel(self) -> int | None:
        """The descriptor that is readable when `replies` has something to tell. None while there is no zygote."""
        return None if self._channel is None else self._channel.fileno()

    def begin(self) -> None:
        """Start it, unless it lives. Raises OSError."""
        if self._channel is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            said = os.memfd_create("gpuq-zygote-said")
            undo.callback(os.close, said)
            self.pid = self._spawn(theirs, said)
            undo.pop_all()
        ours.setblocking(False)
        self._channel, self._said = ours, said

    def _spawn(self, theirs: socket.socket, said: int) -> int:
        """It is not waited for here: whoever looks after the daemon's children does."""
        code = os.memfd_create("gpuq-code")
        with open(code, "r+b") as file:
            file.write(self._code)
            file.seek(0)
            argv = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP % code, "-" * ROOM]
            # it is asked to end by the end of the channel alone
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=(code,),
                    cwd="/",
                    # ld.so(8): what is bound when it is used is bound again in each fork, in pages of its own
                    env={**os.environ, "LD_BIND_NOW": "1"},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        process.returncode = 0  # without this, Popen would complain that nobody waited
        return process.pid

    def fork(self, own: int) -> int:
        """Have a supervisor forked that has this descriptor as its channel; the number of the wish. Raises OSError."""
        self.begin()
        assert self._channel is not None
        self._wishes += 1
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [own]))]
        self._channel.sendmsg([self._wishes.to_bytes(WORD, "little")], rights)
        return self._wishes

    def replies(self) -> Iterator[tuple[int, int]]:
        """(number, errno) of each wish that was answered since: 0 where a supervisor was forked. At its end `channel`
        is None if the zygote is gone, and then everything that it forked has begun."""
        while self._channel is not None:
            try:
                data = self._channel.recv(2 * WORD)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it left wishes unread (unix(7))
                data = b""
            if not data:
                log.error("the zygote has ended: %s", self._last_words() or "it was killed")
                self.close()
                return
            number, failed = (int.from_bytes(data[at : at + WORD], "little") for at in (0, WORD))
            yield number, failed

    def _last_words(self) -> str:
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, _COMPLAINT, max(0, size - _COMPLAINT)).decode("utf-8", "backslashreplace")
        return said.strip().rpartition("\n")[2]

    def close(self) -> None:
        """Let it end; what it forked runs on."""
        if self._channel is not None:
            self._channel.close()
            os.close(self._said)
            self._channel = self.pid = None
