"""Promises about answers: every command that waits has its own, and none said what it must not."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.chaos.evidence import Evidence


def every_wait_was_answered(e: Evidence) -> Iterator[str]:
    answers = {line["key"]: line for line in e.journal if line["e"] in ("waited", "ran", "followed")}
    for line in e.journal:
        if line["e"] not in ("wait", "run", "follow"):
            continue
        answer = answers.get(line["key"])
        ids = [line["id"]] if "id" in line else e.by_tag.get(line["tag"], [])
        if answer is None:
            yield f"{line} has no answer"
        elif line["e"] == "follow":
            if answer["code"] != (0 if e.jobs.get(line["id"], {}).get("log_path") else 1):
                yield f"logs -f {line['id']} exited with {answer['code']}: {answer['err']}"
        elif not ids:
            if answer["code"] != 5:
                yield f"run {line['tag']} exited with {answer['code']}, and there is no such job"
        elif answer["code"] not in (codes := {code for job_id in ids for code in _codes(e, job_id)}):
            yield f"{line} of job {ids} was answered with {answer['code']}, and not one of {codes}: {answer['err']}"
        elif line["e"] == "run":
            yield from _printed(e, ids[0], line["tag"], answer["out"])


def _codes(e: Evidence, job_id: int) -> Iterator[int]:
    """The exit codes that `wait` may have given, by the ends in the job's history."""
    for row in e.ends(job_id):
        data = json.loads(row["data"])
        code, number = data.get("exit_code"), data.get("signal")
        if row["kind"] == "succeeded":
            yield 0
        elif data.get("failure") == "timeout":
            yield 128 + (number or 15)
        else:
            yield code or (128 + number if number else 1)


def _printed(e: Evidence, job_id: int, tag: str, out: str) -> Iterator[str]:
    """What `run` printed is all that the job did, if its last attempt was let come to its end."""
    last = (job_id, e.jobs[job_id]["attempt"])
    if last in e.said and f"begin {tag}\n" not in out + "\n":
        yield f"run {tag} (job {job_id}) printed no beginning: {out!r}"
    if last in e.said and f"end {tag}\n" not in out:
        yield f"run {tag} (job {job_id}) printed no end: {out!r}"


def only_the_expected_was_said(e: Evidence) -> Iterator[str]:
    for line in e.journal:
        if line["e"] in ("error", "hangs", "traceback"):
            yield str(line)
