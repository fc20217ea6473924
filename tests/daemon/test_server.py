"""The socket and whatever may be said on it: nothing but defined errors, and the others do not notice."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest

from gpuq import protocol
from gpuq.client import Client
from gpuq.errors import BadRequest, GpuqError, ProtocolMismatch
from tests.harness import PATIENCE, Box


def connect(box: Box) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(box.state / "sock"))
    return connection


def say(box: Box, data: bytes) -> list[dict[str, Any]]:
    """Send bytes on a connection of their own and hang up; every object that came back."""
    with connect(box) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the daemon hung up first
        received = b""
        try:
            while chunk := connection.recv(1 << 16):
                received += chunk
        except ConnectionResetError:
            pass  # it hung up with our bytes unread
    return [json.loads(line) for line in received.splitlines()]


@pytest.fixture
def up(box: Box) -> Box:
    box.request("status")
    if len(str(box.state / "sock")) > 107:
        pytest.fail("the temporary folder's path is too long for this test")
    return box


def test_garbage_is_answered_or_ignored_and_changes_nothing(up: Box) -> None:
    """Each of these gets one error of the kind BadRequest, then the connection ends."""
    lines = [
        b"\n",
        b"hello\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        b'{"op": "list"}\n',
        b'{"op": 7, "v": 1}\n',
        b'{"op": "list", "v": "1"}\n',
        b'{"op": "list", "v": 0}\n',
        b'{"op": "no-such-thing", "v": 1}\n',
        b'{"op": "list", "v": 1, "sel": []}\n',
        b'{"op": "list", "v": 1, "sel": {"ranges": [[1]]}}\n',
        b'{"op": "list", "v": 1, "sel": {"ranges": [["a", "b"]]}}\n',
        b'{"op": "list", "v": 1, "sel": {"ranges": [[1, 99999999999999999999]]}}\n',
        b'{"op": "list", "v": 1, "limit": -1}\n',
        b'{"op": "list", "v": 1, "limit": "all"}\n',
        b'{"op": "list", "v": 1, "after": {"since": "1"}}\n',
        b'{"op": "submit", "v": 1}\n',
        b'{"op": "submit", "v": 1, "commands": [["true"]], "last": true}\n',
        b'{"op": "submit", "v": 1, "commands": [["true"]], "last": true, "key": "12345678"}\n',
        b'{"op": "follow", "v": 1, "id": "1"}\n',
        b'{"op": "follow", "v": 1, "id": true}\n',
        b'{"op": "events", "v": 1, "since": "x"}\n',
        b"[" * 100_000 + b"\n",
    ]
    for line in lines:
        replies = say(up, line + b'{"op": "status", "v": 1}\n')
        assert len(replies) == 1, (line[:60], replies)
        assert replies[0]["ok"] is False, line[:60]
        assert replies[0]["error"]["kind"] == "BadRequest", (line[:60], replies)
    assert up.request("list", sel={}, all=True)["total"] == 0


def test_unknown_fields_are_ignored(up: Box) -> None:
    assert say(up, b'{"op": "status", "v": 1, "colour": "blue"}\n')[0]["ok"] is True


def test_half_messages_are_dropped(up: Box) -> None:
    pid = up.daemon_pid()
    for half in (b"", b"{", b'{"op": "submit", "v": 1, "commands": [["tr', b'{"op": "status", "v": 1}'):
        assert say(up, half) == []
    assert up.daemon_pid() == pid


def test_half_a_submission_is_forgotten(up: Box) -> None:
    part = {"v": 1, "op": "submit", "key": "12345678", "template": {"cwd": "/"}, "env": {}, "commands": [["true"]]}
    assert say(up, protocol.encode({**part, "last": False})) == [{"ok": True}]
    assert up.request("list", sel={}, all=True)["total"] == 0
    assert say(up, protocol.encode({**part, "last": True}))[0]["ids"] == [1, 1]
    up.wait(1)


def test_an_error_in_a_later_part_forgets_the_earlier_ones(up: Box) -> None:
    part: dict[str, Any] = {"key": "12345678", "template": {"cwd": "/"}, "env": {}}
    with Client.connect() as client:
        client.request("submit", **part, commands=[["true"]], last=False)
        with pytest.raises(GpuqError, match="NUL"):
            client.request("submit", commands=[["a\0b"]], last=True)
        assert client.request("list", sel={}, all=True)["total"] == 0
        assert client.request("submit", **part, commands=[["true"]], last=True)["ids"] == [1, 1]
    up.wait(1)


@pytest.mark.usefixtures("up")
def test_a_client_of_a_newer_protocol_is_told_to_restart_the_daemon() -> None:
    with Client.connect() as client:
        client.socket.sendall(b'{"op": "teleport", "v": 99}\n')
        with pytest.raises(ProtocolMismatch, match="gpuq daemon restart"):
            client.receive()
        client.socket.sendall(b'{"op": "status", "v": 99}\n')
        assert client.receive()["protocol"] == protocol.PROTOCOL


def test_a_message_of_a_gibibyte_is_refused_and_not_kept(up: Box) -> None:
    pid = up.daemon_pid()
    chunk = b"x" * (1 << 20)
    sent = 0
    with connect(up) as connection:
        try:
            for _ in range(1024):
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass  # refused in the middle, as it should be
        received = b""
        try:
            while more := connection.recv(1 << 16):
                received += more
        except ConnectionResetError:
            pass
    assert sent < 64 * len(chunk)
    if received:
        assert json.loads(received)["error"]["kind"] == "BadRequest"
    with open(f"/proc/{pid}/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    assert peak < 200 * 1024, f"the daemon grew to {peak} kB"
    assert up.daemon_pid() == pid


def test_a_thousand_silent_connections_hinder_nobody(up: Box) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(up)) for _ in range(1000)]
        job = up.submit("true")
        assert up.wait(job)["state"] == "succeeded"
        assert up.ok("list") == ""
        silent[500].sendall(b'{"op": "status", "v": 1}\n')
        assert json.loads(silent[500].recv(1 << 16))["ok"] is True


def test_a_client_that_leaves_in_the_middle_of_a_wait_is_forgotten(up: Box) -> None:
    job = up.submit("true", hold=True)
    for _ in range(50):
        with Client.connect() as client:
            client.send("wait", sel={"ranges": [[job, job]]})
    with connect(up) as connection:
        connection.sendall(protocol.encode({"v": 1, "op": "events", "follow": True}))
        connection.recv(10)
    up.request("release", sel={"ranges": [[job, job]]})
    assert up.wait(job)["state"] == "succeeded"


def test_errors_cross_the_socket_as_their_class(up: Box) -> None:
    with pytest.raises(BadRequest, match="no operation"):
        up.request("nonsense")


def test_a_thousand_jobs_in_one_submission(up: Box) -> None:
    ids = up.submit_many([["true"]] * 1000, hold=True)
    assert ids == list(range(1, 1001))
    assert up.request("list", sel={}, limit=20)["total"] == 1000
    assert len(up.request("list", sel={}, limit=20)["jobs"]) == 20
    done = up.request("cancel", sel={"ranges": [[n, n] for n in ids]})
    assert done["done"] == ids
    assert up.request("list", sel={})["total"] == 0


def test_followers_are_told_each_change_and_the_end(up: Box) -> None:
    job = up.submit("true", hold=True)
    with Client.connect() as client:
        stream = client.stream("follow", id=job)
        assert next(stream)["job"]["state"] == "held"
        up.request("release", sel={"ranges": [[job, job]]})
        states = [message["job"]["state"] for message in stream]
    assert states[-1] == "succeeded"
    assert "running" in states


def test_event_followers_miss_none(up: Box) -> None:
    with Client.connect() as client:
        stream = client.stream("events", follow=True)
        seen = next(stream)["events"]
        jobs = up.submit_many([["true"]] * 30)
        kinds: list[tuple[int, str]] = []
        for message in stream:
            kinds.append((message["event"]["job"], message["event"]["kind"]))
            if len([k for k in kinds if k[1] == "succeeded"]) == len(jobs):
                break
    assert {(n, kind) for n in jobs for kind in ("submitted", "started", "succeeded")} <= set(kinds)
    assert len(kinds) == len(set(kinds))
    ids = [event["id"] for event in seen]
    assert ids == sorted(ids)


def test_a_follower_is_told_when_the_reason_changes(up: Box) -> None:
    cpus = len(os.sched_getaffinity(0))
    gate = up.folder / "gate"
    up.submit("sh", "-c", f'until [ -e "{gate}" ]; do sleep 0.02; done', cpus=cpus)
    waiting = up.submit("true", cpus=cpus)
    with Client.connect() as client:
        client.socket.settimeout(PATIENCE)
        client.send("follow", id=waiting)
        texts = [client.receive()["job"]["reason_text"]]
        while texts[-1] != f"asks for {cpus} CPU{'s' if cpus > 1 else ''}, 0 of {cpus} free":
            texts.append(client.receive()["job"]["reason_text"])
    gate.touch()
    assert up.wait(waiting)["state"] == "succeeded"


def test_events_committed_while_others_are_sent_are_not_lost(up: Box) -> None:
    with Client.connect() as client:
        stream = client.stream("events", follow=True)
        next(stream)
        seen: list[int] = []
        for _ in range(20):
            up.submit_many([["true"]] * 20, hold=True)
        while len(seen) < 400:
            event = next(stream)["event"]
            if event["kind"] == "submitted":
                seen.append(event["job"])
    assert seen == list(range(1, 401))
