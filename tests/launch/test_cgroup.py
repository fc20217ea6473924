"""Cgroups: which may be divided, what an attempt's own one does, and what it tells. Real ones where there are any."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from gpuq.launch import cgroup, launcher, leftovers
from gpuq.launch.adoption import Lost, adopt
from gpuq.launch.cgroup import Supervision, find, is_leaf_of
from gpuq.launch.parts.leaf import Leaf, counter
from tests.harness import Box, wait_until
from tests.launch.conftest import Attempts, child, gone, python, shell, until, written

UNIFIED = "30 23 0:26 / {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" + UNIFIED
)
FILES = ("cgroup.procs", "cgroup.events", "cgroup.kill", "cgroup.subtree_control", "cgroup.controllers")


def fake_group(folder: Path, *leave_out: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name not in leave_out:
            (folder / name).touch()
    return folder


def fake_proc(folder: Path, own: str, mounts: str) -> Path:
    (folder / "proc").mkdir()
    (folder / "proc" / "cgroup").write_text(own)
    (folder / "proc" / "mountinfo").write_text(mounts)
    return folder / "proc"


# --- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounts", [UNIFIED, HYBRID])
@pytest.mark.parametrize("point", ["cg", "with blank"])
def test_our_own_cgroup_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, point: str) -> None:
    monkeypatch.setattr(cgroup, "_marked", lambda folder: folder.name == "gpuq.service")
    own = fake_group(tmp_path / point / "user.slice" / "gpuq.service")
    text = mounts.format(point=str(tmp_path / point).replace(" ", "\\040"))
    proc = fake_proc(tmp_path, "4:memory:/elsewhere\n0::/user.slice/gpuq.service\n", text)
    assert find({}, proc) == Supervision(own)
    (own / "cgroup.subtree_control").write_text("memory pids\n")
    assert find({}, proc) == Supervision(own, memory=True)
    fake_group(own / "gpuq-daemon")
    (proc / "cgroup").write_text("0::/user.slice/gpuq.service/gpuq-daemon\n")
    assert find({}, proc) == Supervision(own, memory=True, divisible=True)


def test_a_mount_that_shows_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_marked", lambda _: True)
    own = fake_group(tmp_path / "cg" / "inner")
    mounts = f"30 23 0:26 /box {tmp_path}/cg rw - cgroup2 cgroup2 rw\n"
    assert find({}, fake_proc(tmp_path, "0::/box/inner\n", mounts)).folder == own
    (tmp_path / "proc" / "cgroup").write_text("0::/boxes\n")
    assert "is mounted that shows our own" in find({}, tmp_path / "proc").why


@pytest.mark.parametrize(
    ("own", "mounts", "leave_out", "why"),
    [
        ("4:memory:/x\n", UNIFIED, "", "version 1 only"),
        ("0::/a\n", "1 1 0:1 / / rw - ext4 /dev/x rw\n", "", "no cgroup file system of version 2 is mounted"),
        ("0::/a\n", UNIFIED, "cgroup.events", "the root of all cgroups"),
        ("0::/a\n", UNIFIED, "cgroup.kill", "older than 5.14"),
        ("0::/gone (deleted)\n", UNIFIED, "", "is not a cgroup"),
    ],
)
def test_why_there_is_none(tmp_path: Path, own: str, mounts: str, leave_out: str, why: str) -> None:
    fake_group(tmp_path / "cg" / "a", leave_out)
    found = find({}, fake_proc(tmp_path, own, mounts.format(point=f"{tmp_path}/cg")))
    assert found.folder is None
    assert why in found.why
    assert found.describe() == f"sub-reaper and process tree: no cgroup is delegated, because {found.why}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_what_is_not_delegated_is_left_alone(tmp_path: Path) -> None:
    own = fake_group(tmp_path / "cg" / "a")
    proc = fake_proc(tmp_path, "0::/a\n", UNIFIED.format(point=f"{tmp_path}/cg"))
    assert find({}, proc).why == f"{own} is not marked as delegated to root"
    os.chown(own / "cgroup.procs", 1234, 1234)
    assert find({}, proc).why == f"{own / 'cgroup.procs'} belongs to somebody else"
    assert find({"GPUQ_CGROUP": str(own)}, proc).folder == own


def test_one_that_is_named_and_is_none(tmp_path: Path) -> None:
    assert find({"GPUQ_CGROUP": str(tmp_path)}).why == f"GPUQ_CGROUP names {tmp_path}, and {tmp_path} is not a cgroup"


# --- what it tells --------------------------------------------------------------------------------

#: The form of the file as Documentation/admin-guide/cgroup-v2.rst of the kernel gives it.
EVENTS = b"low 0\nhigh 3\nmax 181\noom 2\noom_kill 4\noom_group_kill 1\nsock_throttled 0\n"


def test_counters_are_read(tmp_path: Path) -> None:
    leaf = Leaf(os.fsencode(tmp_path))
    assert (leaf.oom_kills(), leaf.memory_peak()) == (0, 0)
    (tmp_path / "memory.events").write_bytes(EVENTS)
    (tmp_path / "memory.peak").write_bytes(b"104857600\n")
    assert (leaf.oom_kills(), leaf.memory_peak()) == (4, 104857600)
    assert counter(EVENTS, b"oom") == 2
    assert counter(b"oom_kill x\n", b"oom_kill") == 0


def test_memory_is_limited_where_it_can_be(tmp_path: Path) -> None:
    leaf = Leaf(os.fsencode(tmp_path))
    leaf.limit(1 << 30)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "memory.max").write_text("")
    (tmp_path / "memory.oom.group").write_text("")
    leaf.limit(1 << 30)
    assert (tmp_path / "memory.max").read_text() == "1073741824"
    assert (tmp_path / "memory.oom.group").read_text() == "1"


def test_only_an_attempts_own_cgroup_is_believed(cgroups: Path, tmp_path: Path) -> None:
    leaf = Supervision(cgroups).leaf(tmp_path / "run", 3, 1)
    assert leaf is not None
    assert not is_leaf_of(leaf, tmp_path / "run")
    leaf.mkdir()
    try:
        assert is_leaf_of(leaf, tmp_path / "run")
        assert not is_leaf_of(leaf, tmp_path / "other")
        assert not is_leaf_of(cgroups, tmp_path / "run")
        assert not is_leaf_of(leaf.parent / "x" / ".." / leaf.name, tmp_path / "run")
    finally:
        leaf.rmdir()


# --- attempts in one of their own -----------------------------------------------------------------


def test_a_job_is_in_its_cgroup_and_its_supervisor_is_not(attempts: Attempts, cgroups: Path) -> None:
    attempts.cgroups = cgroups
    launch = attempts.launch(shell("cat /proc/self/cgroup /proc/$PPID/cgroup"), ram=1 << 30)
    result = attempts.run(launch)
    assert result.wait_status == 0
    assert launch.cgroup is not None
    lines = [line for line in Path(launch.log_path).read_text().splitlines() if line.startswith("0::")]
    assert lines[0].endswith("/" + launch.cgroup.name)
    assert launch.cgroup.name not in lines[1]
    assert result.oom_kills == 0


def test_groups_that_the_job_made_go_too(attempts: Attempts, cgroups: Path, tmp_path: Path) -> None:
    attempts.cgroups = cgroups
    script = (
        f"cd {cgroups}/gpuq-job-* && mkdir -p a/b && echo $$ > a/b/cgroup.procs && : > {tmp_path}/ready;"
        f"trap '' TERM; while :; do sleep 0.01; done"
    )
    launch = attempts.launch(shell(script), grace=0.1)
    supervisor = attempts.start(launch)
    until((tmp_path / "ready").exists)
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).wait_status == signal.SIGKILL


def test_a_stranger_in_the_cgroup_is_ended_before_the_result(attempts: Attempts, cgroups: Path) -> None:
    attempts.cgroups = cgroups
    with child("sleep", "1000") as stranger:
        launch = attempts.launch(shell(f"cd {cgroups}/gpuq-job-* && echo {stranger.pid} > cgroup.procs && exit 5"))
        assert attempts.run(launch).wait_status == 5 << 8
        assert gone(stranger.pid)


def test_a_job_that_left_its_cgroup_is_stopped_and_ended(attempts: Attempts, cgroups: Path, tmp_path: Path) -> None:
    attempts.cgroups = cgroups
    away = cgroups / "away"
    away.mkdir()
    script = f"echo $$ > {away}/cgroup.procs; echo $$ > t; mv t pid; exec sleep 1000"
    launch = attempts.launch(shell(script))
    supervisor = attempts.start(launch)
    pid = written(tmp_path / "pid").strip()
    launcher.suspend(supervisor)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    launcher.end(supervisor)
    assert attempts.finish(launch, supervisor).wait_status == signal.SIGTERM
    away.rmdir()


def test_a_cgroup_that_cannot_be_made_fails_no_job(attempts: Attempts, tmp_path: Path) -> None:
    launch = attempts.launch(shell("exit 6"), cgroup=tmp_path / "no" / "such", ram=1 << 30)
    assert attempts.run(launch).wait_status == 6 << 8
    assert "cgroup" not in json.loads((launch.run_dir / "identity").read_text())


def test_what_hides_from_a_lost_supervisor_is_found_by_its_cgroup(
    attempts: Attempts, cgroups: Path, tmp_path: Path
) -> None:
    """No parent, no session, no group and no environment of the job's; and it is frozen."""
    code = (
        "import os, sys\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
        "    os.execve('/bin/sh', ['sh', '-c', 'echo $$ > t; mv t pid; exec sleep 1000'], {'PATH': '/bin:/usr/bin'})\n"
        "os.wait()\n"
        "while True: os.wait() if os.path.exists('x') else __import__('time').sleep(1)\n"
    )
    attempts.cgroups = cgroups
    launch = attempts.launch(python(code))
    supervisor = attempts.start(launch)
    pid = int(written(tmp_path / "pid"))
    assert launch.cgroup is not None
    launcher.suspend(supervisor)
    until(lambda: "frozen 1" in Path(f"{launch.cgroup}/cgroup.events").read_text())
    os.kill(supervisor.pid, signal.SIGKILL)
    attempts.wait(supervisor)
    found = adopt(launch.run_dir)
    assert isinstance(found, Lost)
    leftovers.end_leftovers(found.identity, 0.2, launch.run_dir)
    assert gone(pid)
    assert not launch.cgroup.exists()


def test_a_daemon_with_a_cgroup_uses_it(box: Box, cgroups: Path) -> None:
    old = cgroups / "gpuq-job-9-9-00000000"
    old.mkdir()
    box.setenv(GPUQ_CGROUP=str(cgroups))
    job = box.submit("sh", "-c", "cat /proc/self/cgroup")
    assert box.wait(job)["state"] == "succeeded"
    assert f"/gpuq-job-{job}-1-" in box.log(job)
    assert box.request("status")["supervision"].startswith(f"cgroup v2 at {cgroups}: kill, freeze")
    assert not old.exists()
    stuck = box.submit("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", grace=0.1)
    box.wait_state(stuck, "running")
    wait_until(lambda: len(list(cgroups.glob("gpuq-job-*"))) == 1)
    box.ok("cancel", str(stuck))
    assert box.wait(stuck)["state"] == "cancelled"
    wait_until(lambda: not list(cgroups.glob("gpuq-job-*")))
