"""The four policies on whole GPUs, by counting: nothing of ours, no GPU by name, every job looked at every time.

EASY after Lifka (JSSPP 1995) as Mu'alem and Feitelson put it (IEEE TPDS 12(6), 2001): the first job that does not fit
has the shadow time, at which enough nodes will be free by the estimates, and what is free then beyond its need are the
extra nodes; a later job starts now if it fits and either ends by the shadow time or takes no more than the extra nodes.
"""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    submit: int
    gpus: int
    duration: int
    limit: int | None = None
    priority: int = 0

    @property
    def runs(self) -> int:
        return self.duration if self.limit is None else min(self.duration, self.limit)

    @property
    def estimate(self) -> int:
        return self.duration if self.limit is None else self.limit


def starts(jobs: list[Job], gpus: int, policy: str) -> list[int]:
    """When each job starts; the jobs as they were submitted."""
    found: dict[int, int] = {}
    running: set[int] = set()

    def end(n: int) -> int:
        return found[n] + jobs[n].runs

    now = 0
    while len(found) < len(jobs) or running:
        running = {n for n in running if end(n) > now}
        waiting = [n for n, job in enumerate(jobs) if n not in found and job.submit <= now]
        if policy == "sjf":
            waiting.sort(key=lambda n: (-jobs[n].priority, jobs[n].estimate, n))
        else:
            waiting.sort(key=lambda n: (-jobs[n].priority, n))
        chosen = _chosen(jobs, waiting, running, found, gpus, now, policy)
        found.update(dict.fromkeys(chosen, now))
        running |= set(chosen)
        if any(jobs[n].runs == 0 for n in chosen):
            continue  # it is over at once, and its place is free
        times = [end(n) for n in running] + [job.submit for n, job in enumerate(jobs) if n not in found]
        now = min((at for at in times if at > now), default=now)
    return [found[n] for n in range(len(jobs))]


def _chosen(
    jobs: list[Job], waiting: list[int], running: set[int], found: dict[int, int], gpus: int, now: int, policy: str
) -> list[int]:
    free = gpus - sum(jobs[n].gpus for n in running)
    chosen: list[int] = []
    for at, n in enumerate(waiting):
        if jobs[n].gpus <= free:
            chosen.append(n)
            free -= jobs[n].gpus
        elif policy == "fifo":
            return chosen
        elif policy == "easy":
            until = {one: found.get(one, now) + jobs[one].estimate for one in (*running, *chosen)}
            return chosen + _backfilled(jobs, n, waiting[at + 1 :], until, free, now)
    return chosen


def _backfilled(jobs: list[Job], head: int, behind: list[int], until: dict[int, int], free: int, now: int) -> list[int]:
    shadow = next(
        at
        for at in sorted(until.values())
        if free + sum(jobs[n].gpus for n in until if until[n] <= at) >= jobs[head].gpus
    )
    extra = free + sum(jobs[n].gpus for n in until if until[n] <= shadow) - jobs[head].gpus
    chosen = []
    for n in behind:
        if jobs[n].gpus > free:
            continue
        if now + jobs[n].estimate <= shadow:
            chosen.append(n)
            free -= jobs[n].gpus
        elif jobs[n].gpus <= extra:
            chosen.append(n)
            free -= jobs[n].gpus
            extra -= jobs[n].gpus
    return chosen
