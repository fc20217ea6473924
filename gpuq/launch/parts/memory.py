"""Host memory: whom the kernel's out-of-memory killer takes first, and how often it struck."""

from gpuq.launch.parts.files import slurp

#: Added to the job's `oom_score_adj` (proc(5)), in thousandths of the memory there is. A supervisor or a daemon of some
#: 25 MB is then never taken before the job that filled the memory; nor is the job taken before a stranger that uses
#: a twentieth of the memory more than it. Anybody may raise the value; only root may lower it.
OFFERED = 50
MOST = 1000


def offer_first() -> None:
    """In the job's process: rather this one and what it starts than those that keep the queue."""
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            own = int(file.read(16))
            file.write(b"%d" % min(MOST, own + OFFERED))
    except (OSError, ValueError):
        pass  # a kernel or container that does not allow it: the killer then goes by size alone


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it started, also in cgroups; None if untold.

    `oom_kill` of /proc/vmstat, which Linux has since 4.13.
    """
    try:
        text = slurp("/proc/vmstat")
    except OSError:
        return None
    found = text.partition(b"\noom_kill ")[2].partition(b"\n")[0]
    return int(found) if found.isdigit() else None


def kills_since(before: int | None) -> int:
    """How many more there are than `before`, which `oom_kills` said; 0 where that is not told."""
    now = oom_kills()
    return 0 if before is None or now is None else max(0, now - before)
