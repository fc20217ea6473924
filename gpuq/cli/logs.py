"""`logs`: a job's output, read from its file."""

import os
from typing import Annotated, Any

import typer

from gpuq.cli.common import check_number, examples, new_app, select, tell, write_raw
from gpuq.cli.outcome import sentence
from gpuq.errors import GpuqError, UsageError

app = new_app()


@app.command(
    "logs",
    epilog=examples(
        "gpuq logs 12",
        "gpuq logs -f @last         follow until it has ended",
        "gpuq logs 12 -n 20         the last 20 lines",
        "gpuq logs 12 --attempt 1   of a former attempt",
    ),
)
def logs(
    job: Annotated[str, typer.Argument(metavar="ID", help="A job id, or @last.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until the job has ended.")] = False,
    number: Annotated[int | None, typer.Option("-n", metavar="LINES", help="Only the last lines.")] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", help="Of this attempt; the newest if not given.")
    ] = None,
) -> None:
    """Print what a job wrote to its standard output and error, as it wrote it.

    With -f a job that has not started is waited for. Exit code 1 for a job that ended before it ever ran.
    """
    check_number(number, "lines")
    if follow and attempt is not None:
        raise UsageError("--follow and --attempt exclude each other: a former attempt does not grow")
    found = _show(job)
    if follow:
        from gpuq.cli.follow import Follower

        ended = Follower(found["id"], lines=number).run()
        _refuse_what_never_ran(ended)
        _tell_failed_launch(ended)
        return
    path = _path(found, attempt)
    if path is None:
        return
    if attempt is None:
        _tell_failed_launch(found)
    print_file(path, number)


def _show(word: str) -> dict[str, Any]:
    from gpuq.cli.link import ask

    selection = select([word])
    if any(low != high for low, high in selection.ranges):
        raise UsageError(f"{word!r} is a range: the log of one job is printed at a time")
    jobs: list[dict[str, Any]] = ask("show", sel=selection.to_json())["jobs"]
    return jobs[0]


def _path(job: dict[str, Any], attempt: int | None) -> str | None:
    """The log's path; None for a job that has none yet, which is said."""
    if attempt is None:
        _refuse_what_never_ran(job)
        if job["log_path"]:
            return str(job["log_path"])
        tell(f"job {job['id']} is {job['state']} and has written nothing yet; `gpuq logs -f {job['id']}` waits for it")
        return None
    numbers = {int(a["attempt"]): a["log_path"] for a in job.get("attempts") or []}
    if attempt not in numbers:
        had = f"its attempts are {', '.join(map(str, sorted(numbers)))}" if numbers else "it had none yet"
        raise UsageError(f"job {job['id']} has no attempt {attempt}; {had}")
    return str(numbers[attempt])


def _refuse_what_never_ran(job: dict[str, Any]) -> None:
    """Raises GpuqError for a job that ended before it started: its newest attempt will never write."""
    if job["log_path"] or job["state"] not in ("cancelled", "skipped"):
        return
    note = f" ({job['note']})" if job["note"] else ""
    head = f"job {job['id']} was {job['state']}{note}"
    if job["attempt"]:  # it ran before, and was to run again
        last = f"`gpuq logs {job['id']} --attempt {job['attempt']}` prints the last output"
        raise GpuqError(f"{head} before attempt {job['attempt'] + 1}: {last}")
    raise GpuqError(f"{head}: it never ran, and has no output")


def _tell_failed_launch(job: dict[str, Any]) -> None:
    """The program did not start, so that only gpuq can say why."""
    if job["failure"] == "launch":
        tell(sentence(job))


def print_file(path: str, lines: int | None) -> None:
    """A file's bytes to stdout, or its last lines. Raises GpuqError."""
    from gpuq.cli.follow import BLOCK, open_log, tail_position

    try:
        fd = open_log(path)
    except FileNotFoundError:
        raise GpuqError(f"the log {path} does not exist: nothing was written, or it was removed") from None
    try:
        position = 0 if lines is None else tail_position(fd, lines)
        while data := os.pread(fd, BLOCK, position):
            write_raw(data)
            position += len(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GpuqError(f"the log {path} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
