"""Requests that wait for long: they outlive a daemon that crashes or restarts."""

import time
from collections.abc import Iterator
from typing import Any

from gpuq.client import Client
from gpuq.errors import ConnectionLost
from gpuq.protocol import Message

#: A daemon that goes away again within this many seconds, this many times in a row, is given up on.
SHORT = 1.0
TRIES = 30
#: Longest pause before the next try, in seconds; the first is the shortest, and each is twice as long.
LONGEST_PAUSE = 1.0
SHORTEST_PAUSE = 0.01


class Retries:
    """Counts connections that broke soon after they were made."""

    def __init__(self, tries: int = TRIES) -> None:
        self._tries = tries
        self._failures = 0
        self._began = 0.0

    def connect(self) -> Client:
        """A connection, starting the daemon if there is none; it waits without a time limit."""
        self._began = time.monotonic()
        client = Client.connect()
        self._began = time.monotonic()
        client.socket.settimeout(None)
        return client

    def lost(self, error: ConnectionLost) -> None:
        """Note that the connection broke, and wait a little. Raises it again once that has happened too often."""
        self._failures = self._failures + 1 if time.monotonic() - self._began < SHORT else 1
        if self._failures >= self._tries:
            raise error
        time.sleep(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** (self._failures - 1)))


def ask(op: str, **fields: Any) -> Message:
    """The answer to a question that changes nothing, asked again where a daemon died of something meanwhile."""
    retries = Retries()
    while True:
        try:
            with retries.connect() as client:
                return client.request(op, **fields)
        except ConnectionLost as error:
            retries.lost(error)


def stream(op: str, fields: dict[str, Any]) -> Iterator[Message]:
    """The objects of a streaming operation, over as many connections as it takes.

    The caller may change `fields` as it goes, so that a new connection goes on where the old one broke.
    """
    retries = Retries()
    while True:
        try:
            with retries.connect() as client:
                yield from client.stream(op, **fields)
                return
        except ConnectionLost as error:
            retries.lost(error)
