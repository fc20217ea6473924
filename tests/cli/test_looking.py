"""What a person reads about jobs: lists with their hints, `show` in 80 columns, reasons, outputs and events."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from typing import Any

import pytest
from rich.cells import cell_len

from gpuq.cli import event_text, fields, render
from tests.cli.terminal import ESCAPES, Terminal, shown
from tests.cli.test_verbs import spaces
from tests.fakenvml import GiB
from tests.harness import GPUQ, Box

# --- list -----------------------------------------------------------------------------------------


def test_the_hint_repeats_the_filters(box: Box) -> None:
    box.submit_many([["true"]] * 3, gpus=0, hold=True, tags=["a b"])
    done = box.run("list", "1-3", "--state", "held", "--tag", "a b", "-n", "1")
    assert done.stderr == "… and 2 more (gpuq list 1-3 --state held --tag 'a b' -n 0 shows all)\n"
    assert box.run("list", "--all", "-n", "1").stderr == "… and 2 more (gpuq list --all -n 0 shows all)\n"
    assert "(gpuq list --state held -n 0 shows all)" in spaces(shown("list", "--state", "held", "-n", "1"))


def test_the_hint_follows_the_table(box: Box) -> None:
    box.submit_many([["true"]] * 3, gpus=0, hold=True)
    done = subprocess.run(
        [*GPUQ, "list", "-n", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].startswith("… and 2 more")


def test_members_of_an_array_show_their_index(box: Box) -> None:
    box.submit_many([["true"]], gpus=0, begin_at=4e9, name="sweep", array={"indexes": [3, 7], "limit": 0})
    for args in (["list"], ["top", "--once"], ["show", "2"], ["why", "2"]):
        assert "sweep[7]" in box.ok(*args), args
        assert "sweep[7]" in shown(*args), args
    assert [job["name"] for job in box.json("list")["jobs"]] == ["sweep", "sweep"]


def test_gpus_of_waiting_jobs_are_a_number_of_them(sim: Box) -> None:
    sim.submit("sleep", "1000", gpus=2)
    sim.wait_state(1, "running")
    sim.submit("true", gpus=2)
    sim.submit("true", gpus=0, hold=True)
    first, second, third = (line.split() for line in sim.ok("list").splitlines()[1:])
    assert (first[3], second[3], third[3]) == ("gpu0,1", "2x", "-")
    sim.ok("cancel", "1-3")


@pytest.mark.parametrize("state", ["running", "suspended"])
@pytest.mark.parametrize(("ending", "said"), [("cancel", "cancelling"), ("over-memory", "ending: over-memory")])
def test_what_is_being_ended_says_so_before_all_else(state: str, ending: str, said: str) -> None:
    job = {"state": state, "ending": ending, "over_claim": True}
    assert fields.reason_cell(job) == said
    assert fields.reason_cell({**job, "ending": None}) == "over claim"
    assert fields.state_text(job) == f"{state}, {said}"


# --- show and why ---------------------------------------------------------------------------------


def test_why_tells_the_position(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB")
    box.submit("sleep", "1000")
    box.wait_state(1, "running")
    box.submit_many([["true"]] * 3)
    assert "  position 3 of those that may start\n" in box.ok("why", "4")
    box.submit("true", hold=True)
    assert "position" not in box.ok("why", "5")
    box.ok("cancel", "1-5")


def test_a_signal_is_named_once(box: Box) -> None:
    job = box.submit("sh", "-c", "kill -SEGV $$", gpus=0)
    box.wait(job)
    text = box.ok("show", "1")
    assert "failure           signal 11 (SEGV)" in text
    assert "\nnote" not in text and "\nsignal" not in text and "\n  signal" not in text
    assert box.run("wait", "1").stderr == "gpuq: job 1 failed: signal 11 (SEGV)\n"
    killed = box.submit("sh", "-c", "kill -KILL $$", gpus=0)
    box.wait(killed)
    message = box.run("wait", "2").stderr
    assert message.startswith("gpuq: job 2 failed: signal 9 (KILL), which gpuq did not send")


def test_a_timeout_names_the_limit(box: Box) -> None:
    box.submit("sleep", "1000", gpus=0, time_limit=1)
    box.wait(1)
    assert "failure timeout after 1s\n" in spaces(box.ok("show", "1"))
    assert box.run("wait", "1").stderr == "gpuq: job 1 failed: timeout after 1s\n"


def test_where_a_job_will_write_is_known_before_it_runs(box: Box) -> None:
    box.submit("true", gpus=0, hold=True, output="logs/%x-%j.txt", name="n")
    assert box.job(1)["output"] == f"{box.folder}/logs/n-1.txt" and box.job(1)["log_path"] is None
    assert f"log {box.folder}/logs/n-1.txt\n" in spaces(box.ok("show", "1"))
    box.submit("true", gpus=0, hold=True)
    assert box.job(2)["output"] is None and "\nlog" not in box.ok("show", "2")


def test_a_running_job_shows_its_time(sim: Box) -> None:
    sim.submit("sleep", "1000", gpus=0, time_limit=7200)
    sim.submit("sleep", "1000", vram=GiB)
    sim.wait_state(1, "running")
    sim.wait_state(2, "running")
    first, second = (spaces(sim.ok("show", job)) for job in ("1", "2"))
    assert re.search(r"\nelapsed \d+s\n", first) and re.search(r"\ntime left 1h59m\n", first)
    assert "\nelapsed " in second and "time left" not in second
    assert "claimed 1GiB, no use was seen\n" in second
    sim.ok("cancel", "1-2")
    sim.wait(1, 2)
    assert "elapsed" not in sim.ok("show", "1")


def test_show_fits_80_columns(sim: Box) -> None:
    sim.submit("sh", "-c", "echo " + "long " * 60, vram=20 * GiB, gpus=2, name="n " * 60)
    sim.wait(1)
    (claim, _) = sim.job(1)["attempts"][0]["claims"]
    text = shown("show", "1")
    paths = ("/", "folder", "log")  # a path is one word, and cutting it would keep it from being copied
    lines = [line for line in text.splitlines() if not any(word in line for word in paths)]
    assert len(lines) > 15
    assert max(map(cell_len, lines)) <= 80, lines
    assert any(line.strip() == claim["gpu"] for line in lines), "the UUID stands on a line of its own"
    assert "long " * 60 in sim.ok("show", "1"), "off a terminal nothing is wrapped"


# --- logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow", [[], ["-f"]], ids=["once", "followed"])
def test_the_output_of_what_never_ran(box: Box, follow: list[str]) -> None:
    box.submit("sleep", "1000", gpus=0)
    box.submit("true", gpus=0, after=["ok:1"])
    box.submit("true", gpus=0, hold=True)
    box.ok("cancel", "1", "3")
    box.wait(1, 2, 3)
    assert box.fails(1, "logs", "2", *follow) == (
        "gpuq: job 2 was skipped (depends on ok:1, which was cancelled): it never ran, and has no output\n"
    )
    assert box.fails(1, "logs", "3", *follow) == "gpuq: job 3 was cancelled: it never ran, and has no output\n"


def test_the_former_output_of_what_did_not_run_again(box: Box) -> None:
    cpus = len(os.sched_getaffinity(0))
    box.submit("echo", "before", gpus=0, cpus=cpus)
    box.wait(1)
    box.submit("sleep", "1000", gpus=0, cpus=cpus)
    box.wait_state(2, "running")
    box.ok("retry", "1")
    box.ok("cancel", "1")
    message = box.fails(1, "logs", "1")
    assert message == "gpuq: job 1 was cancelled before attempt 2: `gpuq logs 1 --attempt 1` prints the last output\n"
    assert box.ok("logs", "1", "--attempt", "1") == "before\n"
    box.ok("cancel", "2")


@pytest.mark.parametrize("follow", [[], ["-f"]], ids=["once", "followed"])
def test_a_failed_launch_is_told(box: Box, follow: list[str]) -> None:
    box.submit("/nonexistent/program", gpus=0)
    box.wait(1)
    done = box.run("logs", "1", *follow)
    assert done.returncode == 0
    assert re.fullmatch(r"gpuq: job 1 failed: launch: .*/nonexistent/program.*\n", done.stderr)


# --- events ---------------------------------------------------------------------------------------


def test_events_name_gpus_by_index(sim: Box) -> None:
    sim.submit("true", gpus=2)
    sim.wait(1)
    assert re.search(r" started +gpus=gpu0,1\n", sim.ok("events", "1"))
    assert re.search(r" started +gpus=gpu0,1\n", sim.ok("show", "1"))
    with sim.started("events", "-f", "1") as process:
        line = ""
        assert process.stdout is not None
        while " started " not in line:
            line = process.stdout.readline()
        assert line.endswith("gpus=gpu0,1\n")


def test_events_name_gpus_as_they_were_called_when_it_happened(sim: Box) -> None:
    sim.submit("true", gpus=1)
    sim.wait(1)
    sim.ok("daemon", "stop")
    sim.setenv(GPUQ_GPUS="none")
    assert " gpus=gpu0\n" in sim.ok("events", "1")


def test_a_gpu_that_nobody_has_an_index_for_is_named_by_a_short_uuid() -> None:
    event: dict[str, Any] = {"at": "2026-11-22T20:00:00Z", "kind": "started", "data": {"gpus": ["GPU-0123456789"]}}
    assert event_text.details(event, {}) == "gpus=01234567"
    assert event_text.details(event, {"GPU-0123456789": 3}) == "gpus=gpu3"
    told = {**event, "data": {"gpus": ["GPU-0123456789"], "indexes": [1]}}
    assert event_text.details(told, {"GPU-0123456789": 3}) == "gpus=gpu1"
    assert event_text.details({**told, "data": {**told["data"], "indexes": [None]}}, {}) == "gpus=01234567"


def test_why_events_and_doctor_fit_80_columns(box: Box) -> None:
    box.setenv(GPUQ_GPUS="sim:1x24GiB")
    said = "RuntimeError: CUDA error: uncorrectable ECC error encountered in " + "a kernel of many names " * 6
    failed = box.submit("sh", "-c", f"echo '{said}'; exit 1", gpus=1)
    box.wait(failed)
    box.submit("sleep", "1000", vram=20 * GiB)
    box.wait_state(2, "running")
    box.submit("true", vram=23 * GiB)
    for args in (["why", "1-3"], ["events"], ["show", str(failed)], ["doctor"]):
        text = ESCAPES.sub("", shown(*args)) if args != ["doctor"] else Terminal(*args, columns=80)
        if isinstance(text, Terminal):
            with text as terminal:  # it may find something
                text = ESCAPES.sub("", terminal.finish()[1])
        for line in text.replace("\r", "").splitlines():
            assert cell_len(line) <= 80 or max(map(len, line.split())) > 50, (args, line)
    assert "many names" in shown("why", "1")
    shows = " ".join(shown("show", str(failed)).split())
    assert shows.count("uncorrectable ECC") == 2, "in its command, and once where it failed"
    assert "20GiB" in box.ok("why", "3") and max(map(len, box.ok("events").splitlines())) > 200, "not off a terminal"
    box.ok("cancel", "2-3")


def test_what_has_begun_is_not_said_to_wait_for_a_time(box: Box) -> None:
    job = box.submit("true", gpus=0, begin_at=1.0)
    box.wait(job)
    assert "not before" not in box.ok("show", str(job))
    assert "not before" in box.ok("show", str(box.submit("true", gpus=0, begin_at=4e9)))


def test_events_tell_the_attempt(box: Box) -> None:
    box.submit("true", gpus=0)
    box.wait(1)
    box.ok("retry", "1")
    box.wait(1)
    kinds = [line.split()[3:] for line in box.ok("events", "1").splitlines()]
    assert kinds[1] == ["started"]
    assert kinds[-1][:2] == ["succeeded", "attempt=2"]


# --- cancel and its like --------------------------------------------------------------------------


def test_nothing_was_chosen(box: Box) -> None:
    for verb in ("cancel", "hold", "release", "retry"):
        done = box.run(verb, "--tag", "none")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "gpuq: no job was chosen\n")
        assert shown(verb, "--tag", "none") == "gpuq: no job was chosen\n"
        assert box.json(verb, "--tag", "none")["jobs"] == []


# --- top ------------------------------------------------------------------------------------------


@pytest.fixture
def crowded(sim: Box) -> Box:
    """Both GPUs taken, several jobs running, a long queue."""
    sim.submit_many([["sleep", "1000"]] * 8, vram=4 * GiB)
    sim.submit_many([["true"]] * 80, gpus=2, name="waits")
    sim.wait_state(8, "running")
    return sim


def test_top_keeps_its_last_line(crowded: Box) -> None:
    for rows in (40, 24, 12, 6):
        with Terminal("top", rows=rows) as terminal:
            terminal.read_until("q leaves")
            if rows >= 12:
                assert "Running" in terminal.text and "Waiting" in terminal.text and "more" in terminal.text
            terminal.type("q")
            assert terminal.finish()[0] == 0
    crowded.ok("cancel", "--state", "queued,running", "-q")


def test_a_frame_is_never_taller_than_the_terminal(crowded: Box) -> None:
    data = json.loads(crowded.ok("top", "--json"))
    for gpus in (0, 2, 20):
        for waiting in (0, 1, 50):
            cut: dict[str, Any] = data | {
                "gpus": (data["gpus"] * 10)[:gpus],
                "waiting": data["waiting"][:waiting],
                "waiting_total": min(waiting, data["waiting_total"]),
                "note": "a note that is too long for a line " * 5,
            }
            for width in (40, 80):
                for height in (1, 2, 3, 5, 8, 11, 12, 13, 17, 24, 40, 59):
                    console = render.make_console(file=io.StringIO(), width=width, force_terminal=False)
                    with console.capture() as capture:
                        console.print(render.frame(cut, width, height))
                    lines = capture.get().splitlines()
                    assert len(lines) <= height, (gpus, waiting, width, height)
                    assert lines[0].startswith("gpuq")
                    if height >= 12 and gpus == 2:
                        assert any("Running" in line for line in lines)
                        assert any("Waiting" in line for line in lines) == bool(waiting)
    crowded.ok("cancel", "--state", "queued,running", "-q")


def test_show_and_why_tell_what_a_job_waits_for(box: Box) -> None:
    for _ in range(3):
        box.submit("true", gpus=0, hold=True)
    ended = box.submit("false", gpus=0)
    box.wait(ended)
    box.submit("true", gpus=0, after=["ok:1-3", f"any:2|ok:{ended}"])
    shown = spaces(box.ok("show", "5"))
    assert f"after ok:1-3, any:2|ok:{ended}\n" in shown
    assert "waits for ok:1: job 1 is held\n ok:2: job 2 is held\n" in shown
    line = f"any:2|ok:{ended}: job 2 is held; job {ended} failed\n"
    assert f" {line}" in shown and f"  {line}" in box.ok("why", "5")
    assert "reason Dependency: waits for ok:1, ok:2, ok:3, any:2\n" in shown
    assert box.json("show", "5")["jobs"][0]["waits_for"][3] == line.strip()
    many = [f"ok:{n % 3 + 1}|any:{n % 3 + 1}" for n in range(3)]
    box.submit("true", gpus=0, after=many)
    box.run("cancel", "1")
    assert "waits_for" in box.json("show", "1")["jobs"][0] and "waits for" not in box.ok("show", "1")
