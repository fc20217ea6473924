"""`doctor`: looks at this machine and says what is wrong and what to do about it. Repairs nothing, starts nothing."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict

from gpuq.cli import plain
from gpuq.cli.checks.check import FAIL, Check
from gpuq.cli.checks.folders import check_database, check_neighbours, check_state
from gpuq.cli.checks.gpus import check_gpus
from gpuq.cli.checks.host import (
    check_cgroups,
    check_clock,
    check_daemon,
    check_limits,
    check_pid_namespace,
    check_program,
    check_unit,
)
from gpuq.cli.checks.person import check_completion, check_settings
from gpuq.cli.common import Json, examples, new_app, print_json, screen_width
from gpuq.errors import GpuqError
from gpuq.units import printable

app = new_app()

#: Every group of checks, in the order in which one thing needs another.
GROUPS: dict[str, Callable[[], Iterable[Check]]] = {
    "program": check_program,
    "settings": check_settings,
    "state folder": check_state,
    "database": check_database,
    "daemon": check_daemon,
    "unit": check_unit,
    "GPUs": check_gpus,
    "neighbours": check_neighbours,
    "processes": check_pid_namespace,
    "limits": check_limits,
    "cgroups": check_cgroups,
    "clock": check_clock,
    "completion": check_completion,
}


@app.command(
    "doctor", epilog=examples("gpuq doctor", "gpuq doctor --json | jq '.checks[] | select(.result != \"ok\")'")
)
def doctor(as_json: Json = False) -> int:
    """Check this machine, and say what to fix. Exit code 1 if something does not work."""
    checks = [check for name, group in GROUPS.items() for check in _guarded(name, group)]
    if as_json:
        print_json("gpuq.doctor/1", checks=[asdict(check) for check in checks])
    else:
        sys.stdout.write(text_of(checks, screen_width()))
    return int(any(check.result == FAIL for check in checks))


def _guarded(name: str, group: Callable[[], Iterable[Check]]) -> Iterable[Check]:
    """The findings of a group; an error in it is one of them, and keeps no other check from being made."""
    try:
        yield from group()
    except GpuqError as error:
        yield Check(name, FAIL, error.message)
    except OSError as error:
        yield Check(name, FAIL, f"{error.filename}: {error.strerror}" if error.filename else str(error))


def text_of(checks: Iterable[Check], screen: int | None = None) -> str:
    """A line per check, and below it what to do; on a `screen` of so many columns wrapped to them."""
    lines = []
    for check in checks:
        lines.append(plain.wrapped(f"{check.result:<4}  ", f"{check.name}: {printable(check.text)}", screen))
        if check.fix:
            lines.append(plain.wrapped("      → ", printable(check.fix), screen))
    return "".join(lines)
