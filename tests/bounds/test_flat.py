"""What a request costs does not grow with the queue: SQLite's instructions, calls of a plan, listed folders."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

from gpuq import protocol
from gpuq.daemon import explaining, views
from gpuq.daemon.core import Core
from gpuq.events import Event, Kind
from gpuq.model import ACTIVE, ENDED, WAITING, Claim, Driver, GiB, GpuReading, Host, Readings, Request, Settings, State
from gpuq.policy import ledger, scheduler
from gpuq.policy.lifecycle import Cancelled
from gpuq.policy.waiting import Free, Waiting, key_of
from gpuq.protocol import Selection
from gpuq.store import check
from gpuq.store.lists import Order
from gpuq.store.store import Store
from tests.bench.crowd import make
from tests.policy.build import HOST, make_job, mine

SMALL, LARGE = 40, 4000
#: How much more a look-up may cost in a queue a hundred times as long: a level or two of each index.
MORE = 1.3


@contextmanager
def queue(folder: Path, size: int) -> Iterator[Core]:
    """As many jobs that wait, and ten times as many that have ended, as a daemon has them in memory."""
    make(folder, waiting=size, ended=10 * size)
    with closing(Store(folder / "queue.db")) as store:
        core = Core(Settings(), store, HOST, folder, folder / "jobs")
        core.load()
        store.count(Selection(), ENDED)  # counted once in a daemon's life
        yield core


def instructions(store: Store, work: Callable[[], object]) -> int:
    """Of SQLite's virtual machine, while that is done (https://sqlite.org/c3ref/progress_handler.html)."""
    count = 0

    def another() -> int:
        nonlocal count
        count += 1
        return 0

    store.conn.set_progress_handler(another, 1)
    try:
        work()
    finally:
        store.conn.set_progress_handler(None, 1)
    return count


def looked(core: Core) -> dict[str, Callable[[], object]]:
    """What requests ask the store, by their names."""
    store, last = core.store, core.store.next_id() - 1
    one = Selection(ranges=((last, last),))
    job = store.job(last)
    assert job is not None

    def listed(states: frozenset[State], order: Order) -> object:
        return store.select_jobs(Selection(), states, order, 20), store.count(Selection(), states)

    def page(states: frozenset[State], order: Order) -> Callable[[], object]:
        """In the middle of a list."""
        before = store.walk(Selection(), states, order, store.count(Selection(), states) // 2)
        return lambda: store.walk(Selection(), states, order, 20, before.last)

    return {
        "a page, waiting": page(WAITING, Order.URGENCY),
        "a page, ended": page(ENDED, Order.NEWEST),
        "what moved": lambda: store.moved(store.last_event() - 9, store.last_event(), last, 20),
        "list, running": lambda: listed(ACTIVE, Order.AGE),
        "list, waiting": lambda: listed(WAITING, Order.URGENCY),
        "list, ended": lambda: listed(ENDED, Order.NEWEST),
        "counts": store.counts,
        "show": lambda: (store.jobs(store.select(one)), store.attempts(last), store.events(0, one, None)),
        "an id that is named": lambda: store.unknown([(last, last)]),
        "new events": lambda: store.events(store.last_event() - 5, None, None),
        "newest events": lambda: store.events(0, None, 20),
        "why": lambda: (core.reason(job), asyncio.run(explaining.explanations(core, [job]))),
        "@last": lambda: store.last_job(job.owner),
        "environments": lambda: store.erase_environments(0.0),
    }


def changed(core: Core) -> dict[str, Callable[[], object]]:
    """What changes jobs; each may be done once."""
    store, last = core.store, core.store.next_id() - 1
    one = store.job(last)
    assert one is not None

    def submit() -> None:
        with store.transaction():
            new = store.next_id()
            store.insert_alike(one, [(new, "new", '["true"]', None)], ())
            store.put_submission("new", new, new)
            store.add_events([Event(0.0, Kind.SUBMITTED, new)], last_id=new)

    return {
        "cancel": lambda: core.apply([(one, Cancelled())]),
        "cancel of many": lambda: core.cancel_waiting(list(range(last - 20, last))),
        "submit": submit,
    }


def test_requests_read_and_write_what_they_are_about(tmp_path: Path) -> None:
    costs: dict[str, list[int]] = {}
    for size in (SMALL, LARGE):
        with queue(tmp_path / str(size), size) as core:
            for name, take in looked(core).items():
                take()  # what is counted once
                costs.setdefault(name, []).append(instructions(core.store, take))
            for name, take in changed(core).items():
                costs.setdefault(name, []).append(instructions(core.store, take))
    grown = {name: pair for name, pair in costs.items() if pair[1] > MORE * pair[0] + 20}
    assert not grown, costs


def test_a_start_asks_as_much_of_a_short_queue_as_of_a_long_one(tmp_path: Path) -> None:
    asked = []
    for size in (SMALL, LARGE):
        make(tmp_path / str(size), waiting=size, ended=size)
        seen: list[str] = []
        with closing(Store(tmp_path / str(size) / "queue.db")) as store:
            store.conn.set_trace_callback(seen.append)
            check.after_opening(store.conn)
            core = Core(Settings(), store, HOST, tmp_path, tmp_path / "jobs")
            core.load()
            assert sum(map(len, core.waiting.groups.values())) == size + 1
        asked.append(len(seen))
    assert asked[0] == asked[1], asked  # no row has a statement of its own


def test_a_cancel_of_many_takes_few_statements(tmp_path: Path) -> None:
    seen: list[str] = []
    with queue(tmp_path / "queue", SMALL) as core:
        ids = list(range(core.store.next_id() - 30, core.store.next_id()))
        core.store.conn.set_trace_callback(seen.append)
        core.cancel_waiting(ids)
        core.store.conn.set_trace_callback(None)
    assert len(seen) <= 10, seen


def test_a_job_of_a_list_takes_few_calls(tmp_path: Path) -> None:
    """Of functions, Python's and others: those of a page, to each of its jobs."""
    calls = 0

    def another(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    with queue(tmp_path / "queue", SMALL) as core:
        ids = core.store.walk(Selection(), ENDED, Order.NEWEST, 300).ids
        sys.setprofile(another)
        try:
            line = protocol.encode_list(views.current_view(core, job) for job in core.store.each(ids))
        finally:
            sys.setprofile(None)
    assert line.count(b'"id"') == 300
    assert calls <= 36 * 300, calls / 300  # 28


READINGS = Readings(
    Driver.OK,
    0.0,
    tuple(
        GpuReading(f"GPU-{g}", g, "card", 80 * GiB, 64 * GiB, processes, processes)
        for g in range(16)
        for processes in [tuple(mine(4 * g + n, 16 * GiB) for n in range(4))]
    ),
)
CLAIMS = {f"GPU-{g}": [Claim(4 * g + n, 1, f"GPU-{g}", 16 * GiB) for n in range(4)] for g in range(16)}


def plan_calls(count: int) -> int:
    """Calls of functions in a planning pass with so many waiting jobs of 200 requests, 16 GPUs, 64 running jobs."""
    waiting = Waiting()
    for n in range(200):
        request = Request(1 + n % 4, (40 + n) * GiB // 2, 0, 0)
        ids = list(range(1000 + n, 1000 + count, 200))
        waiting.add_free(key_of(make_job(request=request)), Free(ids, [0.0] * len(ids), [inf] * len(ids)))
    calls = 0

    def another(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    snapshot = scheduler.Snapshot(waiting.groups, Host(64, 512 * GiB))
    gc.disable()  # what is told of a collection, as hypothesis has itself told, is a call as well
    sys.setprofile(another)
    try:
        states = ledger.gpu_states(READINGS, {}, CLAIMS, Settings(), snapshot.host)
        plan = scheduler.plan(snapshot, states)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert len(plan.verdicts) == 200 and not plan.starts
    return calls


def test_a_plan_costs_by_request_and_not_by_job() -> None:
    few, many = plan_calls(1000), plan_calls(100_000)
    assert few == many
    assert many < 20_000  # it was 790,000 when each request had the headroom of each GPU computed anew


def test_a_start_does_not_list_what_has_ended(tmp_path: Path) -> None:
    make(tmp_path / "state", waiting=5, ended=20, folders=20)
    Store(tmp_path / "state" / "queue.db").close()
    (tmp_path / "state" / "jobs" / "upto").write_text("100\n")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "sys.addaudithook(lambda name, args: name in ('os.listdir', 'os.scandir') and print(args[0]))\n"
        "from gpuq.store import reconcile\n"
        "from gpuq.store.recovery import open_store\n"
        "reconcile.FEW_FOLDERS = 10\n"
        "folder = Path(sys.argv[1])\n"
        "store, recovered = open_store(folder, folder / 'jobs', network=False)\n"
        "assert recovered is None\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "state")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert str(tmp_path) not in run.stdout
