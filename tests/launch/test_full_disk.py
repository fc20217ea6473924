"""Attempts on a disk that is full, or that their jobs fill: a real file system of a few kilobytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuq.launch import launcher
from gpuq.launch.adoption import NeverStarted, adopt
from tests.harness import Box, wait_until
from tests.launch.conftest import Attempts, claimed, python, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

#: Writes until there is no room left, not even for a byte.
FILL = (
    "import os, errno, sys\n"
    "with open(os.path.join(sys.argv[1], 'fill'), 'wb', buffering=0) as file:\n"
    "    for size in (65536, 4096, 1):\n"
    "        try:\n"
    "            while True: file.write(bytes(size))\n"
    "        except OSError as error:\n"
    "            assert error.errno == errno.ENOSPC\n"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "gpuq-test", str(folder)]).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", FILL, str(folder)], check=True)


def test_the_result_of_a_job_that_fills_the_disk_is_recorded(attempts: Attempts, disk: Path) -> None:
    argv = [*python(FILL + "sys.exit(7)"), str(disk)]
    result = attempts.run(attempts.launch(argv, run_dir=disk / "run"))
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7
    assert sorted(path.name for path in (disk / "run").iterdir()) == ["identity", "lock", "result"]


def test_so_is_that_of_one_which_cannot_become_its_program(attempts: Attempts, disk: Path) -> None:
    launch = attempts.launch(["/no/such/program" + "\\" * 900], run_dir=disk / "run")
    launch.run_dir.mkdir()
    (disk / "spare").write_bytes(bytes(8 * 4096))  # for identity and reserve
    fill(disk)
    (disk / "spare").unlink()
    failure = attempts.run(launch).start_failure
    assert failure is not None
    assert failure.step == "exec"


def test_without_its_reserve_the_result_waits_for_room(attempts: Attempts, disk: Path) -> None:
    code = "import glob, os, sys\nos.rename(glob.glob(sys.argv[1] + '/run/*.tmp')[0], sys.argv[1] + '/mine')\n"
    argv = [*python(code + FILL + "sys.exit(7)"), str(disk)]
    launch = attempts.launch(argv, run_dir=disk / "run")
    supervisor = attempts.start(launch)
    until((disk / "fill").exists)
    until(lambda: not Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split())
    assert not (disk / "run" / "result").exists()
    (disk / "fill").unlink()
    result = attempts.finish(launch, supervisor)
    assert os.waitstatus_to_exitcode(result.wait_status or 0) == 7


def test_nothing_begins_on_a_full_disk(attempts: Attempts, disk: Path, tmp_path: Path) -> None:
    claimed(disk / "run")
    fill(disk)
    launch = attempts.launch(["touch", str(tmp_path / "ran")], run_dir=disk / "run")
    attempts.wait(attempts.start(launch))
    assert attempts.statuses == {(launch.job_id, 1): launcher.DISK_FULL}
    assert adopt(disk / "run") == NeverStarted()
    assert not (tmp_path / "ran").exists()


def test_a_job_waits_while_the_disk_is_full(box: Box, tmp_path: Path) -> None:
    box.ok("daemon", "start")
    jobs = box.state / "jobs"
    jobs.mkdir(exist_ok=True, mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "gpuq-test", str(jobs)])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        fill(jobs)
        ran = tmp_path / "ran"
        job = box.submit("sh", "-c", f"echo x >> {ran}; exit 7")
        wait_until(lambda: box.reason(job) == ("Resources", "the disk is full"))
        assert not ran.exists()
        (jobs / "fill").unlink()
        ended = box.wait(job)
        assert (ended["exit_code"], ran.read_text()) == (7, "x\n")
    finally:
        box.close()
        subprocess.run(["umount", "-l", str(jobs)], check=True)
