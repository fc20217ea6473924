"""`daemon start|stop|restart|status|logs|install|uninstall`."""

import os
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from gpuq import __version__, config, systemd
from gpuq.cli import plain
from gpuq.cli.common import Json, check_number, count_jobs, examples, new_app, print_json, tell
from gpuq.client import Client, begin, only_starter, refuse_within_job
from gpuq.errors import DaemonUnreachable, NoDaemon
from gpuq.units import printable

app = new_app()

#: Who waits for longer than this, in seconds, is told for what.
TELL_AFTER = 1.0
app.info.epilog = examples("gpuq daemon status", "gpuq daemon restart     after an upgrade; jobs run on")


@app.callback()
def daemon() -> None:
    """Start, stop and look at the daemon. Verbs that need it start it by themselves."""


@app.command(
    "start",
    epilog=examples(
        "gpuq daemon start",
        "export GPUQ_STATE_DIR=$(mktemp -d) GPUQ_GPUS=sim:2x24GiB; gpuq daemon start",
    ),
)
def start() -> None:
    """Start the daemon if it does not run."""
    try:
        client = Client.connect()
    except DaemonUnreachable:
        _check_settings()  # what is wrong here is wrong usage
        raise
    with client:
        status = client.request("status")
    tell(f"the daemon runs: pid {status['pid']}, state in {status['state_dir']}")
    if status.get("gpus_note"):
        tell(str(status["gpus_note"]))


@app.command("stop", epilog=examples("gpuq daemon stop", "gpuq daemon stop --jobs"))
def stop(
    jobs: Annotated[bool, typer.Option("--jobs", help="Cancel the running jobs first.")] = False,
) -> None:
    """Stop the daemon. Running jobs run on, and the next daemon takes them back."""
    try:
        reply = _stop(jobs=jobs, restart=False)
    except NoDaemon as error:
        if not jobs:
            raise
        raise NoDaemon(
            f"{error}; jobs that an earlier daemon left running run on, and `gpuq cancel --state running` ends them"
        ) from None
    cancelled, running = int(reply["cancelled"]), int(reply["running"])
    parts = [f"{count_jobs(cancelled)} cancelled"] if jobs else []
    if running or not jobs:
        parts.append(
            f"{count_jobs(running)} {'runs' if running == 1 else 'run'} on" if running else "no job was running"
        )
    tell("the daemon stopped; " + ", ".join(parts))


@app.command("restart", epilog=examples("gpuq daemon restart     the new program takes the running jobs over"))
def restart() -> None:
    """Replace the daemon, as after an upgrade or a change of settings. Running jobs run on."""
    _check_settings()
    folder = config.state_dir()
    if not systemd.installed_for(folder):
        refuse_within_job(folder)
    running = 0
    if folder.is_dir():
        with only_starter(folder):  # so that it starts with our environment, not with that of whoever waits for jobs
            running = _stop_for_another()
            begin(folder)
    with Client.connect() as client:
        status = client.request("status")
    tell(f"the daemon runs: pid {status['pid']}, version {status['version']}; {count_jobs(running)} ran on")


def _stop_for_another() -> int:
    """End the daemon, if one runs, for another to take over; how many jobs run on."""
    with suppress(DaemonUnreachable):
        return int(_stop(jobs=False, restart=True)["running"])
    return 0


@app.command(
    "install",
    epilog=examples(
        "loginctl enable-linger; gpuq daemon install", "gpuq daemon install --print     only show the unit"
    ),
)
def install(
    only_print: Annotated[bool, typer.Option("--print", help="Print the unit, and do nothing else.")] = False,
) -> None:
    """Let systemd run the daemon: from boot on, and again should it fail. Jobs run on when it stops.

    Writes a user unit with the settings that are set in your shell now. Needs lingering.
    """
    from gpuq.cli.install import install as install_unit

    _check_settings()
    if only_print:
        sys.stdout.write(systemd.unit_text())
    else:
        install_unit(_stop_for_another)


@app.command("uninstall", epilog=examples("gpuq daemon uninstall"))
def uninstall() -> None:
    """Remove the systemd unit. Running jobs run on, and the next command starts a daemon by itself."""
    from gpuq.cli.install import uninstall as uninstall_unit

    uninstall_unit(_stop_for_another)


def _check_settings() -> None:
    """Whether a daemon could start with what is set here. Raises UsageError."""
    from gpuq.gpus.source import open_source

    config.load_settings()
    open_source(os.environ.get("GPUQ_GPUS"), look_only=True).close()


@app.command("status", epilog=examples("gpuq daemon status", "gpuq daemon status --json | jq .pid"))
def status(as_json: Json = False) -> None:
    """Say whether the daemon runs, and with what. Starts none; exit code 5 where none runs."""
    with Client.connect(start=False) as client:
        reply = client.request("status")
    told = {key: value for key, value in reply.items() if key not in ("ok", "end")}
    if as_json:
        print_json("gpuq.daemon/1", **told)
        return
    sys.stdout.write(plain.pairs(_rows(told)))
    if told["version"] != __version__:
        tell(f"this gpuq is {__version__}; `gpuq daemon restart` replaces the daemon, and running jobs run on")


def _rows(told: dict[str, Any]) -> list[tuple[str, str]]:
    from gpuq.cli.fields import local_time

    counts = told.get("jobs") or {}
    return [
        ("pid", str(told["pid"])),
        ("version", printable(str(told["version"]))),
        ("state folder", printable(str(told["state_dir"]))),
        ("socket", printable(str(told["socket"]))),
        ("started", local_time(told["started_at"])),
        ("unit", printable(str(told.get("unit") or ""))),
        ("database", printable(str(told.get("database") or ""))),
        ("jobs", ", ".join(f"{n:,} {state}" for state, n in counts.items() if n) or "none"),
        ("GPUs", printable(str(told.get("gpus_note") or ""))),
    ]


@app.command(
    "logs",
    epilog=examples(
        "gpuq daemon logs -n 50",
        "gpuq daemon logs -f",
        "gpuq daemon logs --json | jq 'select(.job == 12)'",
    ),
)
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until Ctrl-C.")] = False,
    number: Annotated[
        int | None, typer.Option("-n", metavar="LINES", help="Only the last lines; on a terminal 200 by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As it is kept: one JSON object per line.")] = False,
) -> None:
    """Print the daemon's own log: every decision, and who asked for it."""
    from gpuq.cli.daemonlog import print_log

    check_number(number, "lines")
    print_log(config.state_dir(), lines=number, follow=follow, raw=as_json)


def _stop(*, jobs: bool, restart: bool) -> dict[str, Any]:
    """Ask the daemon to stop, and wait until its process has ended: then its lock is free as well."""
    with Client.connect(start=False) as client:
        client.socket.settimeout(None)  # cancelling jobs takes their grace period
        process = _process_behind(client)
        client.send("stop", jobs=jobs, restart=restart)
        if jobs and not select.select([client.socket], [], [], TELL_AFTER)[0]:
            tell("ending the running jobs; what does not answer to TERM is killed after its grace period")
        reply = client.receive()
        client.socket.shutdown(socket.SHUT_WR)  # nothing more from us: it need not wait for it
        select.select([process], [], [])
        if isinstance(process, int):
            os.close(process)
    return reply


def _process_behind(client: Client) -> int | socket.socket:
    """What becomes readable when the daemon has ended: its pidfd, which the kernel names (SO_PEERCRED, unix(7)).

    The connection, which ends a moment before, where its process cannot be seen from here.
    """
    credentials = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = int(struct.unpack("3i", credentials)[0])
    try:
        return os.pidfd_open(pid) if pid else client.socket
    except OSError:
        return client.socket
