"""`cancel`, `hold`, `release`, `suspend`, `resume` and `retry`: the same request under six names."""

from collections.abc import Iterable

from gpuq.cli.common import (
    Groups,
    Ids,
    Json,
    Quiet,
    States,
    Tags,
    count_jobs,
    examples,
    new_app,
    print_done,
    select_some,
    tell,
    tell_refused,
)
from gpuq.protocol import ranges

app = new_app()


@app.command(
    "cancel",
    epilog=examples(
        "gpuq cancel 12 15-20",
        "gpuq cancel @last",
        "gpuq cancel --state queued --tag sweep",
    ),
)
def cancel(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Cancel waiting or running jobs.

    A running job gets TERM, and KILL after its grace period. Prints the ids of the jobs that it
    reached; exit code 1 if one could not be cancelled.
    """
    return _control("cancel", "cancelled", ids, state, tag, group, as_json=as_json, quiet=quiet)


@app.command(
    "hold",
    epilog=examples("gpuq hold 12", "gpuq hold --state queued --tag big     and later: gpuq release --tag big"),
)
def hold(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Keep waiting jobs from starting, until `gpuq release`."""
    return _control("hold", "held", ids, state, tag, group, as_json=as_json, quiet=quiet)


@app.command("release", epilog=examples("gpuq release 12", "gpuq release --state held"))
def release(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Let held jobs start."""
    return _control("release", "released", ids, state, tag, group, as_json=as_json, quiet=quiet)


@app.command("suspend", epilog=examples("gpuq suspend 12", "gpuq suspend --state running --tag big"))
def suspend(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Stop running jobs where they are, until `gpuq resume`.

    All of their processes are stopped. They keep their GPUs and the memory on them; their time limit stands still.
    """
    return _control("suspend", "suspended", ids, state, tag, group, as_json=as_json, quiet=quiet)


@app.command("resume", epilog=examples("gpuq resume 12", "gpuq resume --state suspended"))
def resume(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Let suspended jobs go on."""
    return _control("resume", "resumed", ids, state, tag, group, as_json=as_json, quiet=quiet)


@app.command(
    "retry",
    epilog=examples("gpuq retry 12", "gpuq retry --state failed --tag sweep"),
)
def retry(
    ids: Ids = None,
    state: States = None,
    tag: Tags = None,
    group: Groups = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Queue ended jobs again, under the same id, as a new attempt.

    Jobs that were skipped because they depended on it are not revived: name them too. Retries are counted anew; a
    claim that --retry made larger stays so.
    """
    return _control("retry", "queued again", ids, state, tag, group, as_json=as_json, quiet=quiet)


def _control(
    op: str,
    done_word: str,
    ids: list[str] | None,
    state: str | None,
    tag: list[str] | None,
    group: list[str] | None,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    from gpuq.client import request

    selection = select_some(ids, state, tag, group)
    reply = request(op, sel=selection.to_json())
    done: list[int] = reply["done"]
    if as_json:
        from gpuq.cli.pages import by_id, print_jobs

        print_jobs(by_id(done))
    else:
        if done:
            print_done(done, f"{done_word}: {_which(done)}", quiet=quiet)
        elif not reply["refused"]:
            tell("no job was chosen")
    return 1 if tell_refused(reply["refused"]) else 0


def _which(done: Iterable[int]) -> str:
    jobs = list(done)
    return f"job {jobs[0]}" if len(jobs) == 1 else f"{count_jobs(len(jobs))} ({ranges(jobs)})"
