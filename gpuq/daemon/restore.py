"""`python -m gpuq.daemon.restore FILE [dry]`: `db restore` where no daemon can start on the database that is there.

Answers with one object, as a daemon would.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from gpuq import config, protocol
from gpuq.daemon.database import restore_reply
from gpuq.daemon.home import Home
from gpuq.errors import GpuqError


def main(path: str, dry: str = "") -> None:
    os.umask(0o077)
    folder = config.state_dir()
    try:
        with contextlib.closing(Home(folder)):
            answer = {"ok": True, **restore_reply(folder, Path(path), os.geteuid(), dry_run=bool(dry))}
    except GpuqError as error:
        answer = protocol.error_reply(error)
    sys.stdout.buffer.write(protocol.encode(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
