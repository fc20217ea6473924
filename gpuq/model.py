"""The vocabulary: states, reasons, failures and the records that everything else speaks of.

Imports nothing of gpuq. Sizes are bytes, durations seconds, times seconds since the epoch (UTC),
GPUs are named by UUID. Records are frozen: a change is a new record (`dataclasses.replace`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_QUEUE = "default"
KiB = 1024
MiB = 1024**2
GiB = 1024**3


class State(StrEnum):
    #: waits for its owner to release it
    HELD = "held"
    #: waits for the scheduler
    QUEUED = "queued"
    #: an attempt is launched and its supervisor has not reported the end
    RUNNING = "running"
    #: an attempt is launched and its processes are stopped; it keeps what it was given
    SUSPENDED = "suspended"
    #: exit code 0
    SUCCEEDED = "succeeded"
    #: ended otherwise; `failure` says how
    FAILED = "failed"
    #: ended because its owner said so
    CANCELLED = "cancelled"
    #: never ran: a dependency can no longer hold
    SKIPPED = "skipped"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.SKIPPED})
WAITING = frozenset({State.HELD, State.QUEUED})
#: states with an attempt that has not ended
ACTIVE = frozenset({State.RUNNING, State.SUSPENDED})
LIVE = WAITING | ACTIVE


class Reason(StrEnum):
    """Why a job waits."""

    #: our own claims, CPUs or host memory leave too little
    RESOURCES = "Resources"
    #: it would fit, and would delay a job that has a reservation
    RESERVATION = "Reservation"
    #: jobs start strictly in order, and another one is first
    PRIORITY = "Priority"
    #: a job that it depends on has not ended yet
    DEPENDENCY = "Dependency"
    #: as many of its array, group or queue run as may, or its group has stopped
    LIMIT = "Limit"
    #: its queue is paused
    QUEUE_PAUSED = "QueuePaused"
    #: held by its owner
    HELD = "Held"
    #: its `--begin` time has not come
    BEGIN_TIME = "BeginTime"
    #: it would fit but for memory that processes outside gpuq use
    FOREIGN_USE = "ForeignUse"
    #: it would fit but for GPUs that are lost, or a driver that does not answer
    GPU_UNAVAILABLE = "GpuUnavailable"


class Failure(StrEnum):
    """Why an attempt failed."""

    #: a non-zero exit code
    EXIT = "exit"
    #: ended by a signal that gpuq did not send
    SIGNAL = "signal"
    #: ran into its time limit
    TIMEOUT = "timeout"
    #: the program said that GPU memory ran out
    VRAM_OOM = "vram-oom"
    #: the kernel ended it because host memory ran out
    HOST_OOM = "host-oom"
    #: its GPU went away under it
    GPU_LOST = "gpu-lost"
    #: used more GPU memory than its claim, where the settings say kill
    OVER_MEMORY = "over-memory"
    #: gave way to a job of higher priority; the job is queued again
    PREEMPTED = "preempted"
    #: could not be started: no such file, not executable, folder gone
    LAUNCH = "launch"
    #: its supervisor vanished without a result, or was ended with it from outside
    LOST = "lost"


class Condition(StrEnum):
    """What a dependency asks of the job it names."""

    #: that it succeeded
    OK = "ok"
    #: that it ended, however
    ANY = "any"
    #: that it failed
    FAILED = "failed"
    #: that an attempt of it has started, whatever becomes of that
    STARTED = "started"


class Ending(StrEnum):
    """Why gpuq asked a running attempt to end."""

    CANCEL = "cancel"
    OVER_MEMORY = "over-memory"
    PREEMPT = "preempt"


@dataclass(frozen=True, slots=True)
class Dependency:
    condition: Condition
    job_id: int

    def __str__(self) -> str:
        return f"{self.condition}:{self.job_id}"


@dataclass(frozen=True, slots=True)
class Clause:
    """What a job waits for holds when one of its alternatives does. A job waits for all of its clauses."""

    alternatives: tuple[Dependency, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.alternatives))


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which GPUs a job may run on, and how they are chosen."""

    #: parts of product names, one of which must be in a GPU's; whether letters are large does not matter
    types: tuple[str, ...] = ()
    #: bytes that a GPU must have in all
    min_memory: int = 0
    #: UUIDs: none but these, where there are any, and none of those
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    #: take the emptiest GPUs instead of the fullest that have room
    spread: bool = False


ANY_GPU = Wishes()


@dataclass(frozen=True, slots=True)
class Request:
    """The resources of a job. Equal requests are planned once, whatever the length of the queue."""

    #: GPUs at least
    gpus: int
    #: bytes claimed on each GPU; None asks for whole GPUs
    vram: int | None
    cpus: int
    #: bytes of host memory, 0 where none was asked for
    ram: int
    #: GPUs at most, where more than `gpus` are of use; 0 for just `gpus`
    most: int = 0
    which: Wishes = ANY_GPU

    @property
    def gpus_at_most(self) -> int:
        return max(self.gpus, self.most)


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often an attempt that failed in certain ways is followed by another."""

    #: empty means any failure but `lost`, whose work may have been done
    failures: tuple[Failure, ...]
    times: int
    #: what ran out is claimed this many times larger with each retry
    growth: float = 1.0

    def __str__(self) -> str:
        names = ",".join(self.failures)
        return (f"{names}:" if names else "") + str(self.times) + (f"*{self.growth:g}" if self.growth != 1 else "")


@dataclass(frozen=True, slots=True)
class EarlySignal:
    """A signal that an attempt gets before its time limit."""

    signal: int
    #: seconds before the limit
    before: float


@dataclass(frozen=True, slots=True)
class ArrayPlace:
    """A job's place in its array. `limit` members at most run at a time (0: no limit)."""

    array_id: int
    index: int
    limit: int


@dataclass(frozen=True, slots=True)
class Job:
    """One command with its resources, and the outcome of its newest attempt."""

    id: int
    name: str
    #: uid, as the kernel told it
    owner: int
    state: State
    command: tuple[str, ...]
    cwd: str
    request: Request
    env_hash: str
    submitted_at: float
    priority: int = 0
    queue: str = DEFAULT_QUEUE
    #: jobs of its owner that stop together, None for no group
    group: str | None = None
    #: failures in a row after which its group stops
    stop_after: int | None = None
    #: whether it gives way to a job of higher priority, to go on later as a new attempt
    preemptible: bool = False
    time_limit: float | None = None
    begin_at: float | None = None
    after: tuple[Clause, ...] = ()
    tags: tuple[str, ...] = ()
    array: ArrayPlace | None = None
    umask: int = 0o077
    #: soft resource limits of the submitter by RLIMIT number, applied to the job
    limits: tuple[tuple[int, int], ...] = ()
    #: log path as the submitter wrote it (%j id, %a index, %A array id, %x name), None for the run folder
    output: str | None = None
    #: seconds between TERM and KILL, None for the settings'
    grace: float | None = None
    early_signal: EarlySignal | None = None
    #: most bytes of log that are kept, None for all
    log_limit: int | None = None
    #: the first rule that names a failure counts, then those for any
    retry: tuple[RetryRule, ...] = ()
    #: retries spent, by rule
    spent: tuple[int, ...] = ()
    #: number of the newest attempt, 0 before the first
    attempt: int = 0
    #: GPUs of the newest attempt
    gpus: tuple[str, ...] = ()
    started_at: float | None = None
    ended_at: float | None = None
    #: since when the newest attempt is suspended, and for how long it was before, in seconds
    suspended_at: float | None = None
    suspended_seconds: float = 0.0
    exit_code: int | None = None
    signal: int | None = None
    failure: Failure | None = None
    #: one line of evidence for the failure
    note: str | None = None
    #: set once gpuq has asked the running attempt to end
    ending: Ending | None = None
    #: largest GPU memory seen in use by the newest attempt on any one GPU; None if no reading saw it
    peak_vram: int | None = None
    #: largest resident set of any one process of the newest attempt
    peak_ram: int | None = None
    log_path: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class Claim:
    """GPU memory that an attempt is entitled to, from launch until none of its processes is left."""

    job_id: int
    attempt: int
    uuid: str
    #: bytes; None claims the whole GPU
    bytes: int | None
    #: largest use observed so far
    peak: int = 0

    @property
    def entitled(self) -> int | None:
        """Bytes counted against the GPU: the claim, or the observed peak once that is larger."""
        return None if self.bytes is None else max(self.bytes, self.peak)

    @property
    def over(self) -> bool:
        """Whether more was used than was claimed."""
        return self.bytes is not None and self.peak > self.bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a job, as the store keeps it."""

    job_id: int
    number: int
    started_at: float
    run_dir: str
    log_path: str
    claims: tuple[Claim, ...] = ()
    ended_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    failure: Failure | None = None
    note: str | None = None
    peak_ram: int | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A process beyond doubt: a pid alone is used again, these three together are not."""

    pid: int
    #: clock ticks since boot, field 22 of /proc/PID/stat (proc(5))
    start_time: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Queue:
    """What holds for all jobs of a named queue."""

    name: str = DEFAULT_QUEUE
    #: added to that of each job
    priority: int = 0
    #: UUIDs of the GPUs that its jobs may have; None for all
    gpus: frozenset[str] | None = None
    #: seconds, for jobs that are submitted without a limit, and at most
    default_time: float | None = None
    max_time: float | None = None
    #: most running jobs, and most GPUs that these have in all
    max_jobs: int | None = None
    max_gpus: int | None = None
    #: nothing starts
    paused: bool = False
    #: nothing more is taken in
    draining: bool = False
    #: why it is paused or draining
    why: str | None = None


@dataclass(frozen=True, slots=True)
class DisabledGpu:
    """A GPU that takes no new job until somebody enables it."""

    uuid: str
    why: str
    #: since when, in seconds since the epoch
    at: float


@dataclass(frozen=True, slots=True)
class Group:
    """How the jobs of a group, which stop together, have fared."""

    name: str
    #: how many in a row have failed, and the ids of the last of them
    failures: int = 0
    failed: tuple[int, ...] = ()
    #: when it stopped, in seconds since the epoch; None while its jobs start
    stopped_at: float | None = None


# --- what NVML says -------------------------------------------------------------------------------


class Driver(StrEnum):
    #: no NVIDIA driver on this box: CPU jobs only
    NONE = "none"
    #: there is a driver and it answers
    OK = "ok"
    #: there is a driver and it does not work; GPU jobs wait
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that NVML lists on a GPU."""

    pid: int
    #: bytes; None where the driver does not tell
    used: int | None
    compute: bool
    graphics: bool
    #: the job it belongs to, None for foreign ones; filled in after the reading, as are the two below
    job_id: int | None = None
    #: whose process it is, None where that cannot be seen
    uid: int | None = None
    #: the pid, its ancestors' and its session's, of a foreign process
    lineage: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment. The process list is read before and after `used`."""

    uuid: str
    #: None for one that the driver lists no longer: another may have its index by now
    index: int | None
    name: str
    #: bytes that jobs can use; what the driver reserves is left out
    total: int
    used: int
    before: tuple[GpuProcess, ...] = ()
    after: tuple[GpuProcess, ...] = ()
    #: False where the driver does not tell which process uses how much
    told: bool = True
    #: why the GPU cannot be used now, None when it can
    fault: str | None = None
    #: True where the fault is the GPU's own, gone or broken, and not the driver's or one of telling
    lost: bool = False

    @property
    def order(self) -> tuple[float, str]:
        """By index; those without one last."""
        return (float("inf") if self.index is None else self.index, self.uuid)


#: Distance of two GPUs: this less the number of NVLinks between them, 1 to 36; where there are none, this and NVML's
#: topology level (nvml.h, nvmlGpuTopologyLevel_t): 0 on one board, 10 behind one PCIe switch, 20 behind several, 30 at
#: one host bridge, 40 in one NUMA node, 50 across them.
ON_ONE_BOARD = 100
#: The largest distance there is. A pair of which nothing is told counts as that far apart.
FARTHEST = ON_ONE_BOARD + 50

#: Distance by pair of UUIDs, the smaller one first.
Distances = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Readings:
    """All GPUs at one moment. `at` is on the monotonic clock."""

    driver: Driver
    at: float
    gpus: tuple[GpuReading, ...] = ()
    fault: str | None = None
    version: str | None = None
    #: how far apart they are, in no unit: less is closer; a pair of which nothing is told is left out
    distances: Distances = field(default_factory=dict, hash=False)


# --- settings -------------------------------------------------------------------------------------


class OverClaim(StrEnum):
    """What happens to a job that uses more than it claimed."""

    TELL = "tell"
    KILL = "kill"


class Order(StrEnum):
    """Who starts when the first in the queue cannot."""

    #: whoever fits and delays no reservation: EASY backfill
    EASY = "easy"
    #: nobody
    FIFO = "fifo"
    #: whoever fits
    FIT_FIRST = "fit-first"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a user may set. Field docs stand in `config.SETTINGS`."""

    margin: int = 256 * MiB
    whole_foreign: int = 512 * MiB
    whole_foreign_percent: float = 5.0
    over_claim: OverClaim = OverClaim.TELL
    grace: float = 10.0
    reading_interval: float = 1.0
    foreign_window: float = 10.0
    settle: float = 2.0
    nvml_patience: float = 5.0
    keep_environment: float = 30 * 86400.0
    retry_backoff: float = 1.0
    order: Order = Order.EASY
    ageing: float = 3600.0
    reserve_after: float = 600.0
    preempt_after: float = 300.0
    list_rows: int = 50
    default_gpus: int | None = None
    default_vram: int | None = None
    default_time: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine offers apart from GPUs."""

    cpus: int
    ram: int
    #: True in a PID namespace of our own (containers, WSL) until NVML has listed a process of ours by its pid here
    foreign_pids: bool = False
    #: GPU capacities by UUID, of every GPU seen since the daemon started, lost ones included; 0 is not told yet
    capacities: Mapping[str, int] = field(default_factory=dict)
    #: their product names, empty where the capacity is not told yet
    names: Mapping[str, str] = field(default_factory=dict)
