"""Hostile input, for seconds: nothing but defined errors. `python -m tests.chaos.fuzz --minutes 10` is the long one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gpuq import protocol
from gpuq.errors import GpuqError, StoreError
from tests.chaos.fuzz import Wire, hammer, wire_target
from tests.chaos.targets import TARGETS, Target, only
from tests.harness import Box


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_but_defined_errors(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert hammer(target, 100) >= 20


def test_whatever_is_said_on_the_socket_the_daemon_answers_with_defined_errors_and_lives(sim: Box) -> None:
    with Wire(sim.state).guarded() as wire:
        assert hammer(wire_target(wire), 200) >= 100
    assert wire.kinds["ok"] and wire.kinds["BadRequest"] and wire.kinds["UsageError"], wire.kinds


def test_connections_that_say_half_a_word_and_stay_keep_nobody_out(box: Box) -> None:
    with Wire(box.state).guarded() as wire:
        silent = []
        for _ in range(100):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(box.state / "sock"))
            connection.sendall(b'{"v":1,"op":')
            silent.append(connection)
        assert box.request("status")["pid"] == wire.pid
        for connection in silent:
            connection.close()


def test_the_longest_line_is_taken_and_a_longer_one_refused(box: Box) -> None:
    with Wire(box.state).guarded() as wire:
        head = b'{"v":1,"op":"status","more":"'
        wire.say(head + b"x" * (protocol.MAX_LINE - len(head) - 3) + b'"}\n')
        assert set(wire.kinds) <= {"ok"}
        wire.say(head + b"x" * protocol.MAX_LINE + b'"}\n')
        assert set(wire.kinds) <= {"ok", "BadRequest"}


def test_a_target_notices_what_is_not_allowed() -> None:
    """The harness can fail: another exception, an error without a word, a wrong kind."""

    def raises(error: Exception) -> Target:
        @only(StoreError)
        def work(value: object) -> None:  # noqa: ARG001
            raise error

        return Target("t", TARGETS[0].inputs, work)

    hammer(raises(StoreError("said")), 10)
    for error in (ValueError("x"), GpuqError("x"), StoreError("")):
        with pytest.raises((AssertionError, ValueError, GpuqError)):
            hammer(raises(error), 10)
