"""Stands in for `systemctl --user` and `loginctl`, with a manager that runs the unit as its file says.

Started as a program of either name. Its folder holds `calls` (what it was asked), `linger` (yes or no), and, where
there is no user manager, `dead`.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(sys.argv[0]).parent
#: As systemd does it: variables of the manager, not of whoever asks.
KEPT = ("HOME", "PATH", "LANG")


def unquoted(word: str) -> str:
    """A quoted word of a unit file (systemd.syntax(7)), with `%%` made `%` again."""
    return re.sub(r"\\(.)|%(%)", lambda found: found[1] or found[2], word.strip('"'))


def start(unit: Path) -> int:
    text = unit.read_text()
    words = re.search(r"^ExecStart=(\"[^\"]*\")(.*)$", text, re.M)
    assert words is not None
    environment = dict(unquoted(one).split("=", 1) for one in re.findall(r'^Environment=(".*")$', text, re.M))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(HERE / "notify"))
        listener.settimeout(60)
        process = subprocess.Popen(
            [unquoted(words[1]), *words[2].split()],
            env={name: os.environ[name] for name in KEPT if name in os.environ}
            | environment
            | {"NOTIFY_SOCKET": str(HERE / "notify")},
            cwd=re.search(r"^WorkingDirectory=(.*)$", text, re.M)[1],  # type: ignore[index]
            stdout=(HERE / "journal").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        (HERE / "notify").chmod(0o666)
        deadline = time.monotonic() + 60
        said = b""
        listener.settimeout(0.05)
        while b"READY=1" not in said:
            try:
                said = listener.recv(65536)
            except TimeoutError:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.stderr.write("Job for gpuq.service failed because the control process exited\n")
                    (HERE / "notify").unlink()
                    return 1
    (HERE / "notify").unlink()
    return 0


def systemctl(words: list[str]) -> int:
    if (HERE / "dead").exists():
        sys.stderr.write("Failed to connect to bus: No medium found\nmore words\n")
        return 1
    if words[0] == "show":
        print("252 (252.39-1~deb12u1)")
    if words[0] == "start":
        return start(Path(os.environ["HOME"], ".config", "systemd", "user", words[1]))
    return 0


def main() -> int:
    name = Path(sys.argv[0]).name
    with (HERE / "calls").open("a") as file:
        file.write(" ".join([name, *sys.argv[1:]]) + "\n")
    if name == "loginctl":
        print((HERE / "linger").read_text())
        return 0
    assert sys.argv[1] == "--user"
    return systemctl(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
