"""The systemd unit, readiness, and what ends at logout. Only systemd's own programs are stood in for."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpuq import systemd
from gpuq.errors import UsageError
from gpuq.launch import cgroup
from tests.cli import fakesystemd
from tests.harness import Box, gone, wait_until

GOLDEN = """\
# Written by `gpuq daemon install`; `gpuq daemon uninstall` removes it.
[Unit]
Description=gpuq, the queue of GPU jobs

[Service]
Type=notify
ExecStart="/opt/a b/100%%/python" -P -X utf8 -m gpuq.daemon
Environment="GPUQ_STATE_DIR=/data/\\"q\\" \\\\ $x"
Environment="GPUQ_GPUS=none"
Environment="XDG_STATE_HOME=/s\\u0001"
Environment="GPUQ_MARGIN=1GiB"
Environment="GPUQ_UNIT=gpuq.service"
WorkingDirectory=/
KillMode=process
Delegate=yes
DelegateSubgroup=gpuq-daemon
OOMPolicy=continue
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2 4 5
TimeoutStartSec=600

[Install]
WantedBy=default.target
"""


def test_the_unit_is_as_it_should_be() -> None:
    environ = {
        "GPUQ_GPUS": "none",
        "GPUQ_STATE_DIR": '/data/"q" \\ $x',
        "XDG_STATE_HOME": "/s\x01",
        "GPUQ_MARGIN": "1GiB",
        "GPUQ_JOB_ID": "3",
        "SECRET": "s3cret",
        "XDG_CONFIG_HOME": "",
    }
    assert systemd.unit_text(environ, "/opt/a b/100%/python") == GOLDEN
    with pytest.raises(UsageError, match="UTF-8"):
        systemd.unit_text({"GPUQ_STATE_DIR": "/\udcff"})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "gpuq.service"
    unit.write_text(systemd.unit_text({"GPUQ_STATE_DIR": '/data/"q" %h \\ $x\n'}))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    # an older systemd says that it passes over what only 254 and later know
    said = [line for line in done.stderr.splitlines() if "Unknown key 'DelegateSubgroup'" not in line]
    assert (done.returncode, said) == (0, [])


def test_the_daemon_is_started_in_the_group_that_it_would_make() -> None:
    assert systemd.SUBGROUP == cgroup.DAEMON


# --- readiness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(box: Box, abstract: bool) -> None:
    name = f"gpuq-test-{os.getpid()}" if abstract else str(box.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name if abstract else name)
        listener.settimeout(60)
        box.ok("daemon", "start", env={"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert listener.recv(4096).decode().splitlines() == ["READY=1", f"STATUS=listens in {box.state}"]
        # neither a job nor its supervisor may speak for the daemon
        job = box.submit("sh", "-c", 'echo "${NOTIFY_SOCKET-none}"; grep -c NOTIFY_SOCKET /proc/$PPID/environ')
        box.wait(job)
        assert box.log(job) == "none\n0\n"
        box.ok("daemon", "stop")
        assert listener.recv(4096) == b"STOPPING=1"


def test_a_service_manager_that_has_gone_is_no_reason_not_to_start(box: Box) -> None:
    box.ok("daemon", "start", env={"NOTIFY_SOCKET": str(box.folder / "nobody")})
    assert box.run("daemon", "status").returncode == 0


# --- install --------------------------------------------------------------------------------------


class Systemd:
    """The programs in a folder in front of PATH."""

    def __init__(self, box: Box) -> None:
        self.folder = box.folder / "systemd"
        self.folder.mkdir()
        for name in ("systemctl", "loginctl"):
            program = self.folder / name
            program.write_text(f"#!{sys.executable}\n" + Path(fakesystemd.__file__).read_text())
            program.chmod(0o755)
        self.linger("yes")
        self.unit = box.folder / "home" / ".config" / "systemd" / "user" / "gpuq.service"
        box.setenv(PATH=f"{self.folder}:{os.environ['PATH']}")

    def linger(self, answer: str) -> None:
        (self.folder / "linger").write_text(answer)

    def calls(self) -> list[str]:
        """What was asked since the last time."""
        file = self.folder / "calls"
        found = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return found


@pytest.fixture
def fake(box: Box) -> Systemd:
    return Systemd(box)


def test_the_running_daemon_is_handed_over_with_its_jobs(box: Box, fake: Systemd) -> None:
    gate, begun = box.folder / "gate", box.folder / "begun"
    job = box.submit("sh", "-c", f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit 7')
    wait_until(begun.exists, "the job")
    before = box.daemon_pid()
    with box.started("wait", str(job)) as waiting:
        said = box.run("daemon", "install")
        assert said.returncode == 0, said.stderr
        assert "1 job ran on" in said.stderr
        status = box.json("daemon", "status")
        assert status["unit"] == "gpuq.service" and status["pid"] != before
        assert fake.unit.read_text() == box.ok("daemon", "install", "--print")
        assert fake.unit.stat().st_mode & 0o777 == 0o600
        assert [call.removeprefix("systemctl --user ") for call in fake.calls() if "systemctl" in call] == [
            "show --property=Version --value",
            "daemon-reload",
            "enable gpuq.service",
            "start gpuq.service",
        ]
        gate.touch()
        assert waiting.wait(60) == 7


def test_commands_start_the_unit_and_restart_does_not_leave_it(box: Box, fake: Systemd) -> None:
    box.ok("daemon", "install")
    first = box.json("daemon", "status")["pid"]
    box.ok("daemon", "restart")
    second = box.json("daemon", "status")
    assert second["unit"] == "gpuq.service" and second["pid"] != first
    box.ok("daemon", "stop")
    fake.calls()
    assert box.run("daemon", "status").returncode == 5 and fake.calls() == []
    box.ok("submit", "--", "true")
    assert fake.calls() == ["systemctl --user start gpuq.service"]
    assert box.json("daemon", "status")["unit"] == "gpuq.service"
    os.kill(box.daemon_pid(), signal.SIGTERM)  # as `systemctl stop` does it
    other = {"GPUQ_STATE_DIR": str(box.folder / "other")}
    box.ok("daemon", "start", env=other)
    assert "start" not in " ".join(fake.calls()), "the unit is that of another state folder"
    box.ok("daemon", "stop", env=other)


@pytest.mark.usefixtures("fake")
def test_stop_by_a_signal_leaves_jobs_running(box: Box) -> None:
    box.ok("daemon", "install")
    gate, begun = box.folder / "gate", box.folder / "begun"
    job = box.submit("sh", "-c", f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit 7')
    wait_until(begun.exists, "the job")
    pid = box.daemon_pid()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), "the daemon's end")
    gate.touch()
    assert box.wait(job)["exit_code"] == 7


def test_where_the_unit_does_not_start_the_daemon_starts_without_it(box: Box, fake: Systemd) -> None:
    box.ok("daemon", "install")
    box.ok("daemon", "stop")
    (fake.folder / "dead").touch()
    done = box.run("submit", "--", "true")
    assert done.returncode == 0 and "No medium found" in done.stderr and "more words" not in done.stderr
    assert box.json("daemon", "status")["unit"] is None


def test_install_refuses_what_is_of_no_use(box: Box, fake: Systemd) -> None:
    fake.linger("no")
    said = box.fails(1, "daemon", "install")
    assert "loginctl enable-linger" in said and "sudo loginctl enable-linger" in said
    (fake.folder / "dead").touch()
    said = box.fails(1, "daemon", "install")
    assert "no systemd user manager" in said and "start the daemon by themselves" in said
    assert not fake.unit.exists()
    assert box.run("daemon", "status").returncode == 5, "nothing was started"
    (fake.folder / "dead").unlink()
    fake.linger("yes")
    assert "GPUQ_GRACE" in box.fails(2, "daemon", "install", env={"GPUQ_GRACE": "soon"})
    fake.unit.parent.mkdir(parents=True)
    fake.unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert "gpuq did not write it" in box.fails(1, "daemon", "install")
    assert "nothing is to be removed" in box.fails(1, "daemon", "uninstall")
    assert fake.unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    fake.unit.unlink()
    victim = box.folder / "victim"
    fake.unit.symlink_to(victim)
    assert "gpuq did not write it" in box.fails(1, "daemon", "install")
    assert not victim.exists()


def test_install_says_when_the_unit_does_not_start(box: Box, fake: Systemd) -> None:
    box.state.mkdir(mode=0o700)
    (box.state / "daemon.log").mkdir()
    said = box.fails(1, "daemon", "install")
    assert "start gpuq.service" in said and "gpuq daemon logs" in said
    assert (
        "is not a file" in (fake.folder / "journal").read_text()
        or "cannot be opened" in (fake.folder / "journal").read_text()
    )
    (box.state / "daemon.log").rmdir()


def test_uninstall_leaves_jobs_and_starts_daemons_as_before(box: Box, fake: Systemd) -> None:
    box.ok("daemon", "install")
    gate, begun = box.folder / "gate", box.folder / "begun"
    job = box.submit("sh", "-c", f'touch "{begun}"; until [ -e "{gate}" ]; do sleep 0.02; done; exit 7')
    wait_until(begun.exists, "the job")
    said = box.run("daemon", "uninstall")
    assert said.returncode == 0 and "1 job ran on" in said.stderr
    assert not fake.unit.exists()
    assert box.json("list")["jobs"][0]["state"] == "running"
    assert box.json("daemon", "status")["unit"] is None
    gate.touch()
    assert box.wait(job)["exit_code"] == 7


# --- logging out ----------------------------------------------------------------------------------

SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
TERMINAL = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-terminal.scope\n"
HYBRID = "12:memory:/user.slice\n1:name=systemd:/user.slice/user-1000.slice/user@1000.service/gpuq.service\n0::/\n"


KILL = {"KillUserProcesses": "yes"}


@pytest.mark.parametrize(
    ("cgroup", "logind", "user", "expected"),
    [
        (SESSION, {}, "ann", None),
        (SESSION, KILL, "ann", "KillUserProcesses"),
        (SESSION, {"KillUserProcesses": "no"}, "ann", None),
        (SESSION, KILL, "root", None),
        (SESSION, {**KILL, "KillExcludeUsers": "ann bob"}, "ann", None),
        (SESSION, {**KILL, "KillExcludeUsers": ""}, "root", "KillUserProcesses"),
        (SESSION, {**KILL, "KillOnlyUsers": "bob"}, "ann", None),
        (SESSION, {"KillUserProcesses": "1", "KillOnlyUsers": "bob ann"}, "ann", "KillUserProcesses"),
        (TERMINAL, {}, "ann", "user manager"),
        (HYBRID, {}, "ann", "user manager"),
        ("0::/system.slice/slurmd.service\n", KILL, "ann", None),
        ("", KILL, "ann", None),
    ],
)
def test_what_ends_at_logout(cgroup: str, logind: dict[str, str], user: str, expected: str | None) -> None:
    found = systemd.at_logout(cgroup, logind, user, False)
    assert (found is None) if expected is None else (found is not None and expected in found.why)


def test_lingering_keeps_the_user_manager_and_no_session() -> None:
    """As systemd 257 did it: it ended a session's scope, under KillUserProcesses=yes, of a user who lingers."""
    assert systemd.at_logout(TERMINAL, KILL, "ann", True) is None
    kept = systemd.at_logout(TERMINAL, KILL, "ann", False)
    assert kept is not None and kept.cure == "`loginctl enable-linger`"
    for lingering, cure in (
        (False, "`loginctl enable-linger`, then `gpuq daemon install`"),
        (True, "`gpuq daemon install`"),
    ):
        ended = systemd.at_logout(SESSION, KILL, "ann", lingering)
        assert ended is not None and ended.cure == cure


def test_the_last_assignment_of_logind_counts() -> None:
    texts = ["[Login]\n#KillUserProcesses=yes\nKillUserProcesses=no\n", "[Login]\n KillUserProcesses = yes\n; x=y\n"]
    assert systemd.logind_settings(texts) == {"KillUserProcesses": "yes"}
    assert systemd.logind_settings(texts[:1]) == {"KillUserProcesses": "no"}
