"""Jobs that try to leave something behind: none is left, however they end, with a cgroup and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuq.launch import launcher, leftovers
from gpuq.launch.adoption import Lost, adopt
from tests.launch.conftest import SHELL_ENV, Attempts, gone, python, until

#: Each process says who it is; then the first ends or stays, as it was told.
BEGIN = (
    "import os, signal, sys, time\n"
    "def here():\n"
    "    open(f'pids/{os.getpid()}', 'w').close()\n"
    "def stay():\n"
    "    here()\n"
    "    while True: time.sleep(1000)\n"
    "def end(number):\n"
    "    here()\n"
    "    while len(os.listdir('pids')) < number: time.sleep(0.01)\n"
    "    open('ready', 'w').close()\n"
    "    if sys.argv[1] == 'exit': os._exit(3)\n"
    "    stay()\n"
    "ignore = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
)
PROGRAMS = {
    "double fork": (
        "if not os.fork():\n    os.setsid()\n    if not os.fork(): stay()\n    os._exit(0)\nos.wait()\nend(2)\n"
    ),
    "sessions": "for _ in range(3):\n    if not os.fork(): os.setsid(); stay()\nend(4)\n",
    "deaf": "ignore()\nif not os.fork(): os.setpgid(0, 0); stay()\nend(2)\n",
    "500 children": (
        "for n in range(500):\n    if not os.fork():\n        if n % 2: os.setsid()\n        stay()\nend(501)\n"
    ),
    "background": "for _ in range(5):\n    if not os.fork(): ignore() or stay()\nend(6)\n",
    "no descriptors": "if not os.fork(): os.closerange(0, 999); stay()\nos.closerange(0, 999)\nend(2)\n",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_is_left_however_it_ends(both: Attempts, tmp_path: Path, program: str) -> None:
    started = {}
    for how in ("exit", "cancel", "limit"):
        (tmp_path / how / "pids").mkdir(parents=True)
        limit = None if how != "limit" else 3.0 if program == "500 children" else 1.5
        argv = [*python(BEGIN + PROGRAMS[program]), how]
        launch = both.launch(argv, cwd=str(tmp_path / how), time_limit=limit, grace=0.3)
        started[how] = (launch, both.start(launch))
    until((tmp_path / "cancel" / "ready").exists)
    launcher.end(started["cancel"][1])
    results = {how: both.finish(*pair) for how, pair in started.items()}
    for how in results:
        pids = [int(name) for name in os.listdir(tmp_path / how / "pids")]
        assert len(pids) >= 2
        assert all(gone(pid) for pid in pids), how
    assert os.waitstatus_to_exitcode(results["exit"].wait_status or 0) == 3
    assert results["exit"].leftovers >= 1
    assert (results["cancel"].ended, results["cancel"].timed_out) == (True, False)
    assert (results["limit"].ended, results["limit"].timed_out) == (False, True)


@pytest.mark.parametrize("program", ["double fork", "500 children"])
def test_nothing_is_left_by_a_lost_supervisor(both: Attempts, tmp_path: Path, program: str) -> None:
    (tmp_path / "pids").mkdir()
    env = {**SHELL_ENV, "GPUQ_JOB_DIR": f"{tmp_path}/run-1/work"}
    launch = both.launch([*python(BEGIN + PROGRAMS[program]), "stay"], env=env)
    supervisor = both.start(launch)
    until((tmp_path / "ready").exists)
    os.kill(supervisor.pid, 9)
    both.wait(supervisor)
    found = adopt(launch.run_dir)
    assert isinstance(found, Lost)
    leftovers.end_leftovers(found.identity, 0.1, launch.run_dir)
    assert all(gone(int(name)) for name in os.listdir(tmp_path / "pids"))
