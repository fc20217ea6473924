"""Supervisors that see to one brief job after the other: nothing of one job reaches the next."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuq.launch import launcher
from gpuq.launch.adoption import Ended, NeverStarted, adopt
from gpuq.launch.launcher import Launch, Launcher
from gpuq.launch.outcome import Result, parse, read_result
from gpuq.launch.parts.serve import BRIEF, MOST_JOBS
from gpuq.launch.supervisors import NotBegun, Supervisor
from tests.launch.conftest import Attempts, claimed, gone, python, reap_children, reaping, settled, shell, until


class Shared(Attempts):
    """Attempts whose supervisors see to several."""

    def end(self, launch: Launch) -> Supervisor:
        """Run the attempt, also to the file of its result; its supervisor, which may live on."""
        supervisor = self.start(launch)
        self.hear_until(lambda: (launch.job_id, 1) in self.reports)
        until((launch.run_dir / "result").exists)
        return supervisor

    def result(self, launch: Launch) -> Result:
        """The same as reported and as written."""
        found = read_result(launch.run_dir)
        assert found is not None and found == parse(self.reports[launch.job_id, 1], "its report")
        return found


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    with reaping():
        made = Shared(tmp_path, launcher=Launcher(spare=1))
        yield made
        made.close()


def idle(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"gpuq supervisor\0idle"


def test_brief_jobs_share_supervisors_and_each_has_its_own_result(shared: Shared) -> None:
    pids = set()
    for code in range(30):
        launch = shared.launch(shell(f"exit {code}"))
        pids.add(shared.end(launch).pid)
        assert os.waitstatus_to_exitcode(shared.result(launch).wait_status or 0) == code
        until(lambda run_dir=launch.run_dir: isinstance(adopt(run_dir), Ended))  # type: ignore[misc]
    assert len(pids) <= 3
    for pid in pids & shared.launcher.pids():
        until(lambda pid=pid: idle(pid))  # type: ignore[misc]
        files = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        assert sorted(name.partition(":")[0] for name in files) == ["/dev/null"] * 4 + ["socket"], "nothing of a job's"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_what_one_job_was_given_the_next_does_not_have(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    tell = "umask; ulimit -n; pwd; echo ${A-none} ${B-none}; cat /proc/self/oom_score_adj"
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    path = os.environ["PATH"]
    limited = shared.launch(
        shell(tell),
        umask=0o077,
        cwd=str(tmp_path / "deep"),
        limits=((resource.RLIMIT_NOFILE, soft // 2),),  # so that it is forked, and the others are not
        env={"PATH": path, "A": "a"},
    )
    private = shared.launch(shell(tell), umask=0o777, cwd=str(tmp_path / "deep"), env={"PATH": path, "A": "a"})
    plain = shared.launch(shell(tell), env={"PATH": path, "B": "b"})
    launches = [
        limited,
        private,
        plain,
        replace(plain, job_id=9, run_dir=tmp_path / "run-9", log_path=str(tmp_path / "9")),
    ]
    assert len({shared.end(launch).pid for launch in launches}) == 1, "the same saw to all"
    said = [Path(launch.log_path).read_text().split("\n") for launch in launches]
    assert said[0][:4] == ["0077", str(soft // 2), str(tmp_path / "deep"), "a none"]
    assert said[1][:4] == ["0777", str(soft), str(tmp_path / "deep"), "a none"]
    assert said[2][:4] == said[3][:4] == ["0022", str(soft), str(tmp_path), "none b"]
    assert len({lines[4] for lines in said}) == 1, "offered to the kernel as much"
    ours = [path for launch in launches for path in (Path(launch.log_path), *launch.run_dir.iterdir())]
    assert {os.stat(path).st_mode for path in ours} == {0o100600}


def test_use_is_counted_for_each_job_alone(shared: Shared) -> None:
    busy = python("x = bytearray(100 << 20); t = __import__('time')\nwhile t.process_time() < .2: pass")

    def same_supervisor() -> tuple[Launch, Launch] | None:
        """None where the first job was not brief, as on a host that has much else to do."""
        large, small = shared.launch(busy), shared.launch(["true"])
        return (large, small) if shared.end(large).pid == shared.end(small).pid else None

    large, small = until(same_supervisor)
    most, least = shared.result(large), shared.result(small)
    assert most.max_rss_bytes > 100 << 20 and most.user_seconds + most.system_seconds >= 0.15
    assert least.max_rss_bytes < 50 << 20 and least.user_seconds + least.system_seconds < 0.1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD, signal.SIGINT])
def test_a_signal_to_one_that_is_idle_means_no_job(shared: Shared, number: int) -> None:
    supervisor = shared.end(shared.launch(["true"]))
    until(lambda: idle(supervisor.pid))
    os.kill(supervisor.pid, number)
    launch = shared.launch(shell("sleep 0.1; exit 3"))
    assert shared.end(launch).pid == supervisor.pid
    result = shared.result(launch)
    assert (result.wait_status, result.ended, result.suspended_seconds) == (3 << 8, False, 0.0)


@pytest.mark.parametrize(
    "what",
    {
        "long": shell(f"sleep {BRIEF + 0.1}"),
        "leaves something behind": shell("sleep 1000 &"),
        "runs into its limit": shell("exec sleep 1000"),
        "keeps its log short": shell("echo"),
        "is ended": shell("exec sleep 1001"),
    }.items(),
    ids=lambda item: item[0],
)
def test_after_a_job_that_was_more_than_that_its_supervisor_ends(
    shared: Shared, what: tuple[str, tuple[str, ...]]
) -> None:
    name, argv = what
    launch = shared.launch(argv, log_limit=4096 if name == "keeps its log short" else None)
    if name == "runs into its limit":
        launch = shared.launch(argv, time_limit=0.1)
    supervisor = shared.start(launch)
    if name == "is ended":
        launcher.end(supervisor)
    shared.wait(supervisor)
    assert shared.result(launch).ended is (name == "is ended")
    assert shared.end(shared.launch(["true"])).pid != supervisor.pid


@pytest.mark.parametrize(
    "change",
    [
        "renice -n 5 -p $PPID",
        "taskset -pc 0 $PPID",
        "prlimit --pid $PPID --nofile=64:64",
        "prlimit --pid $PPID --nofile=3:3",
        "prlimit --pid $PPID --cpu=1:1",
        "ionice -c3 -p $PPID",
        "chrt -i -p 0 $PPID",
        "echo 777 > /proc/$PPID/oom_score_adj",
    ],
)
def test_what_a_job_does_to_its_parent_meets_no_other_job(shared: Shared, change: str) -> None:
    tell = (
        "cat /proc/self/stat | cut -d' ' -f18,19,41; ulimit -n; ulimit -t; cat /proc/self/oom_score_adj; ionice; nproc"
    )
    before, after = shared.launch(shell(tell)), shared.launch(shell(tell))
    shared.end(before)
    changed = shared.launch(shell(f"{change} > /dev/null"))
    shared.end(changed)
    assert shared.result(changed).wait_status == 0, Path(changed.log_path).read_text()
    for _ in range(3):  # more than can be ready
        shared.end(after)
        assert Path(after.log_path).read_text() == Path(before.log_path).read_text()
        after = shared.launch(shell(tell))


def test_it_can_be_ended_as_soon_as_it_has_begun(shared: Shared) -> None:
    """What is asked of it once it is known to have begun is never taken for something old."""
    for _ in range(20):
        launch = shared.launch(shell("exec sleep 1000"))
        supervisor = shared.start(launch)
        launcher.end(supervisor)
        shared.wait(supervisor)
        assert shared.result(launch).ended


def test_one_that_dies_idle_is_not_given_orders(shared: Shared) -> None:
    supervisor = shared.end(shared.launch(["true"]))
    until(lambda: idle(supervisor.pid))
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: gone(supervisor.pid))
    assert shared.end(shared.launch(["true"])).pid != supervisor.pid


def test_orders_that_one_had_not_taken_when_it_was_killed_are_told_of(shared: Shared, tmp_path: Path) -> None:
    supervisor = shared.end(shared.launch(["true"]))
    until(lambda: idle(supervisor.pid))
    os.kill(supervisor.pid, signal.SIGSTOP)
    launch = shared.launch(shell("echo ran >> ran"))
    claimed(launch.run_dir)
    shared.launcher.start(launch)
    os.kill(supervisor.pid, signal.SIGKILL)
    shared.hear_until(lambda: bool(shared.refused))
    assert shared.refused == {(launch.job_id, 1): NotBegun((launch.job_id, 1))}
    assert settled(launch.run_dir) == NeverStarted()
    assert not (tmp_path / "ran").exists()
    assert shared.launcher.room(1000) == Launcher(spare=0).room(1000), "none is under way any more"


def test_orders_of_a_daemon_that_is_gone_are_not_taken(shared: Shared, tmp_path: Path) -> None:
    """The next daemon may be watching this supervisor for the attempt before: it must end, and soon."""
    supervisor = shared.end(shared.launch(["true"]))
    until(lambda: idle(supervisor.pid))
    os.kill(supervisor.pid, signal.SIGSTOP)
    launch = shared.launch(shell("echo ran >> ran"))
    claimed(launch.run_dir)
    shared.launcher.start(launch)
    shared.launcher.close()
    os.kill(supervisor.pid, signal.SIGCONT)
    until(lambda: gone(supervisor.pid))
    assert settled(launch.run_dir) == NeverStarted()
    assert not (tmp_path / "ran").exists()
    reap_children()
    shared.launcher = Launcher(spare=1)


def test_without_a_daemon_they_end_and_what_runs_goes_on(shared: Shared, tmp_path: Path) -> None:
    waiting = shared.end(shared.launch(["true"]))
    argv = shell("until [ -e go ]; do sleep 0.02; done; exit 4")
    launches = [shared.launch(argv) for _ in range(2)]
    running = [shared.start(launch) for launch in launches]
    shared.hear_until(lambda: any(idle(pid) for pid in shared.launcher.pids() if pid != shared.launcher.zygote))
    pids = shared.launcher.pids()
    shared.launcher.close()
    until(lambda: all(gone(pid) for pid in pids - {one.pid for one in running}))
    assert waiting.pid in pids
    (tmp_path / "go").touch()
    until(lambda: all(gone(one.pid) for one in running))
    for launch in launches:
        found = read_result(launch.run_dir)
        assert found is not None and found.wait_status == 4 << 8
    reap_children()
    shared.launcher = Launcher(spare=1)


def test_those_that_are_too_many_end(shared: Shared, tmp_path: Path) -> None:
    argv = shell("until [ -e go ]; do sleep 0.02; done")
    launches = [shared.launch(argv) for _ in range(5)]
    running = [shared.start(launch) for launch in launches]
    (tmp_path / "go").touch()
    shared.hear_until(lambda: len(shared.reports) == 5)
    shared.hear_until(
        lambda: len(shared.launcher.pids()) == 2,
    )  # with what they are forked from
    assert sum(gone(one.pid) for one in running) >= 4


def test_none_sees_to_more_than_so_many(shared: Shared) -> None:
    assert 100 <= MOST_JOBS <= 1000
    first = shared.end(shared.launch(["true"])).pid
    count = 1
    while True:
        launch = shared.launch(["true"])
        if shared.start(launch).pid != first:
            break
        count += 1
        shared.hear_until(lambda key=(launch.job_id, 1): key in shared.reports)  # type: ignore[misc]
    assert count == MOST_JOBS
    shared.hear_until(lambda: first not in shared.launcher.pids())
