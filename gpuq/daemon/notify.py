"""Word to the service manager that started us, where one did (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger("gpuq.notify")


class Notifier:
    """Takes NOTIFY_SOCKET out of our environment: what we start must not speak for us."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", None)

    def tell(self, state: str) -> None:
        """Send `READY=1` or the like. A manager that does not listen is no reason not to go on."""
        if not self._address:
            return
        # an address that begins with @ is in the abstract namespace (unix(7))
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.connect(address)
                sender.sendall(state.encode())
            except OSError as error:
                log.warning("the service manager at %s was not told %r: %s", self._address, state, error)
