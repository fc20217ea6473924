"""Mutation testing of `gpuq/policy/`: what of a seeded sample of changes to it the tests of `tests/policy` notice.

    python -m tests.mutation --cosmic-ray VENV/bin/cosmic-ray [--sample 300] [--seed 5] [--work DIR]

A command, not part of the suite. It needs Cosmic Ray 8 in a virtual environment of its own, which it does not install,
and git; the tests run in the Python that runs this. A copy of the committed files is changed, in DIR or a temporary
folder, one change at a time, with the lowest priority. A DIR from before is gone on with.

A change is noticed (killed) if a test fails, or all of them together take four times as long as without it. Left out
are changes of `|`, of which annotations, which nothing evaluates, are full. Hypothesis draws the same examples each
time, and the tests of the module that is changed, and those that are quick, run first (`plugin.py`).
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from shutil import copytree

from tests.mutation.plugin import PROFILE, UNCHANGED

ROOT = Path(__file__).parent.parent.parent
#: Of the operators of Cosmic Ray, those that are left out, as SQL has it.
LEFT_OUT = "core/ReplaceBinaryOperator\\_BitOr\\_%"


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.mutation")
    options.add_argument("--cosmic-ray", required=True, type=Path, help="the executable")
    options.add_argument("--sample", type=int, default=300)
    options.add_argument("--seed", type=int, default=5)
    options.add_argument("--work", type=Path, help="the folder for the copy and the results")
    chosen = options.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="gpuq-mutation-"))
    copy, session = work / "copy", work / "session.sqlite"
    tool = chosen.cosmic_ray.absolute()
    if not session.exists():
        _copy(copy)
        copytree(copy / "gpuq" / "policy", work / "unchanged")
        took = _baseline(copy)
        (work / "config.toml").write_text(_config(timeout=4 * took))
        _run([str(tool), "init", str(work / "config.toml"), str(session)], copy)
        _choose(session, chosen.sample, chosen.seed)
    copytree(work / "unchanged", copy / "gpuq" / "policy", dirs_exist_ok=True)  # one that was stopped left a change
    print(f"results in {work}", flush=True)
    _run([str(tool), "exec", str(work / "config.toml"), str(session)], copy)
    _report(session)


def _command() -> list[str]:
    first_failure = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
    plugin = ["-p", "tests.mutation.plugin", "--hypothesis-profile", PROFILE]
    return [sys.executable, "-m", "pytest", *first_failure, *plugin, "tests/policy"]


def _config(timeout: float) -> str:
    return (
        "[cosmic-ray]\n"
        'module-path = "gpuq/policy"\n'
        f"timeout = {timeout:.0f}\n"
        "excluded-modules = []\n"
        f"test-command = '{shlex.join(_command())}'\n"
        "[cosmic-ray.distributor]\n"
        'name = "local"\n'
    )


def _copy(to: Path) -> None:
    files = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    to.mkdir(parents=True)
    subprocess.run(["tar", "x", "-C", str(to)], input=files, check=True)


def _run(command: list[str], folder: Path) -> None:
    # a module that is changed and restored within a second would look the same to the cache of compiled ones
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment[UNCHANGED] = str(folder.parent / "unchanged")
    subprocess.run(["nice", "-n", "19", *command], cwd=folder, env=environment, check=True)


def _baseline(copy: Path) -> float:
    """Seconds that the tests take where nothing is changed."""
    began = time.monotonic()
    _run(_command(), copy)
    return time.monotonic() - began


def _choose(session: Path, sample: int, seed: int) -> None:
    """Keep a sample, in an order by chance, so that a part of it is one as well."""
    with closing(sqlite3.connect(session)) as found, found:
        of_all = f"SELECT job_id FROM mutation_specs WHERE operator_name NOT LIKE '{LEFT_OUT}' ESCAPE '\\' ORDER BY "
        by_place = "module_path, start_pos_row, start_pos_col, operator_name, operator_args, occurrence"
        jobs = [job_id for (job_id,) in found.execute(of_all + by_place)]
        kept = random.Random(seed).sample(jobs, min(sample, len(jobs)))
        found.execute("DELETE FROM work_items")
        found.executemany("INSERT INTO work_items VALUES (?)", [(job_id,) for job_id in kept])
        marks = ",".join("?" * len(kept))
        found.execute(f"DELETE FROM mutation_specs WHERE job_id NOT IN ({marks})", kept)
    print(f"{len(kept)} of {len(jobs)} changes, seed {seed}")


def _report(session: Path) -> None:
    with closing(sqlite3.connect(session)) as found:
        rows = found.execute(
            "SELECT module_path, start_pos_row, operator_name, test_outcome, diff"
            " FROM work_results JOIN mutation_specs USING (job_id) ORDER BY module_path, start_pos_row"
        ).fetchall()
    survived = [row for row in rows if row[3] == "SURVIVED"]
    for path, line, operator, _, diff in survived:
        changed = [text for text in diff.splitlines() if text[:1] in "+-" and text[:3] not in ("+++", "---")]
        print(f"\n{path}:{line} {operator}", *changed, sep="\n")
    noticed = len(rows) - len(survived)
    print(f"\n{noticed} of {len(rows)} changes noticed ({noticed / max(1, len(rows)):.1%}), {len(survived)} survived")


main()
