"""Threads of the daemon: for what may block. The host may have no room for one more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gpuq.errors import HostBusy


def begin(work: Callable[[], None], name: str) -> None:
    """Do work in a thread that does not keep the daemon from ending. Raises HostBusy, with nothing begun."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError:  # all that Python says of the EAGAIN of pthread_create(3)
        raise HostBusy(
            "no thread could be made: end some processes, or raise the limit that `ulimit -u` shows"
        ) from None
