"""Host memory: whom the kernel's out-of-memory killer takes first, and how often it struck."""

import posix as os

from gpuq.launch.parts.files import slurp

SCORE = "/proc/self/oom_score_adj"

#: Added to the job's `oom_score_adj` (proc(5)), in thousandths of the memory there is. A supervisor or a daemon of some
#: 25 MB is then never taken before the job that filled the memory; nor is the job taken before a stranger that uses
#: a twentieth of the memory more than it. Anybody may raise the value; only root may lower it.
OFFERED = 50
MOST = 1000


def offer_first() -> int | None:
    """From now on rather this process, and what it starts, than those that keep the queue. What it was before."""
    try:
        own = int(slurp(SCORE))
        write_score(min(MOST, own + OFFERED))
    except (OSError, ValueError):
        return None  # a kernel or container that does not allow it: the killer then goes by size alone
    return own


def take_back(own: int | None) -> None:
    """As it was before `offer_first`: what this process started keeps its own."""
    try:
        if own is not None:
            write_score(own)
    except OSError:
        pass  # somebody with the right to has raised the least that we may have meanwhile (proc(5))


def write_score(score: int) -> None:
    file = os.open(SCORE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"%d" % score)
    finally:
        os.close(file)


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it started, also in cgroups; None if untold.

    `oom_kill` of /proc/vmstat, which Linux has since 4.13.
    """
    try:
        text = slurp("/proc/vmstat")
    except OSError:
        return None
    at = text.find(b"\noom_kill ")
    return None if at < 0 else int(text[at + 10 : text.find(b"\n", at + 1)])


def kills_since(before: int | None) -> int:
    """How many more there are than `before`, which `oom_kills` said; 0 where that is not told."""
    now = oom_kills()
    return 0 if before is None or now is None else max(0, now - before)
