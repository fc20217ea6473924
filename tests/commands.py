"""The command line as a process of its own, forked from one that has imported Typer and `gpuq.cli.app` already.

Four fifths of what a command takes is the start of its interpreter and those imports, the same each time. Here each
command is a new process with its own arguments, environment, folder, umask and descriptors, which runs
`gpuq.cli.app.main` and imports the module of its verb; only the interpreter is not a new one. What a new interpreter
does is tested where commands are started as people do: by `Box.started`, on a terminal, in `tests/cli/test_app.py`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

#: What an interpreter and its libraries read when they start: where this differs, a new one is needed.
AT_START = ("PYTHON", "LD_", "LC_", "LANG", "GCONV_", "LOCPATH", "MALLOC_")
_LOCK = threading.Lock()
_servers: dict[int, tuple[socket.socket, dict[str, str]]] = {}


def _of_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_START)}


def run(
    args: tuple[str, ...], stdin: bytes | None, env: Mapping[str, str], cwd: str, timeout: float
) -> subprocess.CompletedProcess[bytes] | None:
    """A command line, to its end, or until it is killed after `timeout` seconds.

    None where it needs a new interpreter, because of what that reads from the environment.
    """
    with _LOCK:
        server, began_with = _servers.get(os.getpid()) or _begin()
    if _of_start(env) != began_with:
        return None
    given, feed = os.pipe() if stdin is not None else (os.open(os.devnull, os.O_RDONLY), None)
    (out, its_out), (err, its_err) = os.pipe(), os.pipe()
    told, its_word = socket.socketpair()
    theirs = [its_word.detach(), given, its_out, its_err]
    order = json.dumps({"args": args, "env": dict(env), "cwd": cwd, "umask": _umask()}).encode()
    with _LOCK:
        socket.send_fds(server, [len(order).to_bytes(4, "big")], theirs)
        server.sendall(order)
    for fd in theirs:
        os.close(fd)
    with ThreadPoolExecutor(3) as threads, told.makefile("r") as lines, told:
        clock = threading.Timer(timeout, os.kill, (int(lines.readline()), signal.SIGKILL))
        clock.start()
        if feed is not None:
            threads.submit(_write, feed, stdin or b"")
        output = [threads.submit(_read, fd) for fd in (out, err)]
        code = int(lines.readline())
        clock.cancel()
        return subprocess.CompletedProcess(["gpuq", *args], code, *(found.result() for found in output))


def _read(fd: int) -> bytes:
    with open(fd, "rb") as pipe:
        return pipe.read()


def _write(fd: int, text: bytes) -> None:
    with suppress(BrokenPipeError), open(fd, "wb") as pipe:  # it need not read all
        pipe.write(text)


def _umask() -> int:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))


def _begin() -> tuple[socket.socket, dict[str, str]]:
    """A server for this process, which ends with it."""
    ours, theirs = socket.socketpair()
    began_with = _of_start(os.environ)
    program = "import sys; from tests import commands; commands.serve(int(sys.argv[1]))"
    root = str(Path(__file__).parents[1])
    read, write = os.pipe()  # so that its streams are made for pipes, as those of commands are
    with theirs:
        subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=read,
            stdout=write,
            stderr=write,
            env={"PATH": os.defpath, **began_with},
            cwd=root,
        ).returncode = 0  # it ends with us: nobody waits
    os.close(read)
    os.close(write)
    found = _servers[os.getpid()] = ours, began_with
    return found


# --- the server -----------------------------------------------------------------------------------


def serve(number: int) -> None:
    """Fork a process for each order; tell its id, and how it ended. Until nobody is left to order."""
    import_module("gpuq.cli.app")
    import_module("gpuq.client")
    control = socket.socket(fileno=number)
    running: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != number:
                pid, told = running.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                _tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                told.close()
                continue
            size, fds, _, _ = socket.recv_fds(control, 4, 4)
            if not size:
                return
            order = json.loads(control.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
            pid = os.fork()
            if not pid:
                _become(order, fds[1:])
            for other in fds[1:]:
                os.close(other)
            told, watch = socket.socket(fileno=fds[0]), os.pidfd_open(pid)
            running[watch] = pid, told
            poll.register(watch, select.POLLIN)
            _tell(told, pid)


def _tell(told: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # whoever asked was interrupted
        told.send(f"{number}\n".encode())


def _become(order: dict[str, Any], fds: list[int]) -> NoReturn:
    """What `python -m gpuq` is after its start, to the end."""
    from gpuq.cli.app import main

    code: object = 1
    try:
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.closerange(3, 1024)
        os.umask(order["umask"])
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.path[0] = order["cwd"]
        sys.argv = ["gpuq", *order["args"]]
        main()
    except SystemExit as end:
        code = end.code
    finally:
        _end(code)


def _end(code: object) -> NoReturn:
    """What an interpreter does at its end."""
    if sys.exc_info()[0] is not None:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
