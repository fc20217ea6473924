"""The planner against its promises: no start makes headroom negative, and nothing that fits waits."""

from __future__ import annotations

from itertools import combinations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuq.model import Claim, GiB, GpuProcess, Host, Reason, Request
from gpuq.policy.ledger import GpuState
from gpuq.policy.line import Line
from gpuq.policy.neighbours import NeighbourClaim, NeighbourUse
from gpuq.policy.placing import place
from gpuq.policy.reserve import Ongoing
from gpuq.policy.scheduler import Plan, Snapshot, plan
from gpuq.policy.waiting import GroupKey, Waiting
from tests.policy.build import HOST, Card, make_gpu, make_job, mine, reading, stranger


def share(vram: int, gpus: int = 1) -> Request:
    return Request(gpus, vram * GiB, 0, 0)


def whole(gpus: int = 1) -> Request:
    return Request(gpus, None, 0, 0)


def cpu(count: int = 1, ram: int = 0) -> Request:
    return Request(0, None, count, ram * GiB)


def plan_of(
    gpus: list[GpuState] | None, *requests: Request, host: Host = HOST, priorities: list[int] | None = None
) -> Plan:
    """Plan for jobs 1, 2, … with these requests."""
    waiting = Waiting()
    for number, request in enumerate(requests, 1):
        priority = priorities[number - 1] if priorities else 0
        waiting.put(make_job(number, request=request, priority=priority), 0, 0.0)
    return plan(Snapshot(waiting.groups, host), gpus)


def started(result: Plan) -> dict[int, tuple[str, ...]]:
    return {start.job_id: start.gpus for start in result.starts}


def test_sharing_packs_so_that_big_holes_stay_whole() -> None:
    result = plan_of([make_gpu(0), make_gpu(1)], share(10), share(10), share(10), share(10))
    assert started(result) == {1: ("GPU-0",), 2: ("GPU-0",), 3: ("GPU-1",), 4: ("GPU-1",)}


def test_a_whole_gpu_is_shared_with_nobody() -> None:
    result = plan_of([make_gpu(0)], whole(), share(1))
    assert started(result) == {1: ("GPU-0",)}
    assert [v.reason for v in result.verdicts.values()] == [Reason.RESOURCES]


def test_several_gpus_are_distinct_and_each_has_the_memory() -> None:
    gpus = [make_gpu(0, total=8 * GiB), make_gpu(1), make_gpu(2)]
    assert started(plan_of(gpus, share(10, gpus=2))) == {1: ("GPU-1", "GPU-2")}
    assert started(plan_of(gpus, share(10, gpus=3))) == {}


def test_whole_jobs_leave_the_desktop_for_last() -> None:
    desktop = make_gpu(0, strangers=(stranger(GiB, compute=False, graphics=True),), foreign=GiB)
    assert started(plan_of([desktop, make_gpu(1)], whole())) == {1: ("GPU-1",)}
    assert started(plan_of([desktop, make_gpu(1)], whole(2))) == {1: ("GPU-0", "GPU-1")}


def test_priority_then_age_and_small_ones_pass() -> None:
    result = plan_of([make_gpu(0)], share(20), share(20), share(2), priorities=[0, 5, 0])
    assert started(result) == {2: ("GPU-0",), 3: ("GPU-0",)}
    assert [start.job_id for start in result.starts] == [2, 3]


def test_ages_interleave_between_groups() -> None:
    result = plan_of([make_gpu(0)], share(8), share(7), share(8), share(7))
    assert set(started(result)) == {1, 2, 3}


def test_cpus_and_host_memory_are_counted() -> None:
    small = Host(cpus=2, ram=8 * GiB)
    result = plan_of([], cpu(), cpu(), cpu(), host=small)
    assert set(started(result)) == {1, 2}
    assert next(iter(result.verdicts.values())).text == "asks for 1 CPU, 0 of 2 free"
    assert set(started(plan_of([], cpu(1, ram=6), cpu(1, ram=6), host=small))) == {1}


def test_gpu_jobs_count_no_cpus_unless_asked() -> None:
    busy = Host(cpus=0, ram=GiB)
    assert started(plan_of([make_gpu(0)], whole(), host=busy)) == {1: ("GPU-0",)}


def test_an_array_runs_as_many_as_its_limit() -> None:
    key = GroupKey(0, 1000, share(1), (1, 2))
    result = plan(Snapshot({key: Line.of([1, 2, 3, 4])}, HOST, ongoing=[Ongoing(9, array_id=1)]), [make_gpu(0)])
    assert started(result) == {1: ("GPU-0",)}
    assert result.verdicts[key].reason is Reason.LIMIT


def test_without_a_reading_gpu_jobs_are_left_and_cpu_jobs_start() -> None:
    result = plan_of(None, whole(), cpu())
    assert set(started(result)) == {2}
    assert not result.verdicts


def verdict(gpus: list[GpuState], request: Request, fault: str | None = None) -> tuple[Reason, str]:
    key = GroupKey(0, 1000, request)
    found = plan(Snapshot({key: Line.of([1])}, HOST, gpu_fault=fault), gpus).verdicts[key]
    return found.reason, found.text


def test_reasons() -> None:
    taken = make_gpu(0, claims=(Claim(9, 1, "GPU-0", 20 * GiB),))
    assert verdict([taken], share(10))[0] is Reason.RESOURCES
    foreign = make_gpu(0, used=20 * GiB, foreign=20 * GiB, foreign_besides=20 * GiB)
    reason, text = verdict([foreign], share(10))
    assert reason is Reason.FOREIGN_USE
    assert "20GiB on GPU 0" in text
    assert verdict([foreign], whole())[0] is Reason.FOREIGN_USE
    lost = make_gpu(0, fault="fell off the bus")
    assert verdict([lost], share(10)) == (Reason.GPU_UNAVAILABLE, "GPU 0: fell off the bus")
    assert verdict([], share(10), "driver broken") == (Reason.GPU_UNAVAILABLE, "driver broken")
    both = make_gpu(0, used=20 * GiB, foreign=20 * GiB, claims=(Claim(9, 1, "GPU-0", 20 * GiB),))
    assert verdict([both], share(10))[0] is Reason.RESOURCES


# --- properties -----------------------------------------------------------------------------------

REQUESTS = st.one_of(
    st.builds(share, st.integers(1, 26), st.integers(1, 3)),
    st.builds(whole, st.integers(1, 3)),
    st.builds(cpu, st.integers(1, 3)),
)
GPUS = st.lists(
    st.builds(
        lambda total, foreign, claims, others: (total, foreign, claims, others),
        st.sampled_from([8, 24, 80]),
        st.integers(0, 30),
        st.lists(st.one_of(st.none(), st.integers(1, 40)), max_size=2),
        st.lists(st.tuples(st.one_of(st.none(), st.integers(1, 40)), st.integers(0, 10)), max_size=2),
    ),
    max_size=4,
).map(
    lambda rows: [
        make_gpu(
            n,
            total=total * GiB,
            used=foreign * GiB,
            foreign=foreign * GiB,
            foreign_besides=foreign * GiB,
            tolerated=max(512 * 2**20, total * GiB // 20),
            claims=tuple(Claim(900 + i, 1, f"GPU-{n}", None if c is None else c * GiB) for i, c in enumerate(claims)),
            neighbours=tuple(NeighbourUse("x", None if c is None else c * GiB, used * GiB) for c, used in others),
            promised=sum(max(0, (c or 0) - used) * GiB for c, used in others),
        )
        for n, (total, foreign, claims, others) in enumerate(rows)
    ]
)


def after(gpus: list[GpuState], result: Plan) -> list[GpuState]:
    """The GPUs with the plan's claims booked."""
    books = {gpu.uuid: gpu for gpu in gpus}
    for start in result.starts:
        for uuid in start.gpus:
            books[uuid] = books[uuid].with_claim(Claim(start.job_id, 0, uuid, start.request.vram))
    return list(books.values())


@given(GPUS, st.lists(REQUESTS, max_size=12), st.lists(st.integers(-2, 2), min_size=12, max_size=12))
def test_no_start_makes_headroom_negative_and_nothing_that_fits_waits(
    gpus: list[GpuState], requests: list[Request], priorities: list[int]
) -> None:
    result = plan_of(gpus, *requests, priorities=priorities)
    then = after(gpus, result)
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    for gpu in then:
        if len(gpu.claims) > len(by_uuid[gpu.uuid].claims):
            assert gpu.headroom >= 0
            assert gpu.fault is None
    for start in result.starts:
        assert len(set(start.gpus)) == start.request.gpus
    cpus = sum(start.request.cpus for start in result.starts)
    assert cpus <= HOST.cpus
    for number, request in enumerate(requests, 1):
        if number not in started(result) and request.cpus <= HOST.cpus - cpus:
            assert not fits_by_brute_force(request, then)


def fits_by_brute_force(request: Request, gpus: list[GpuState]) -> bool:
    """The oracle: some set of distinct GPUs where each takes its share, by the rules as the design words them."""
    return any(all(_takes(request, gpu) for gpu in some) for some in combinations(gpus, request.gpus))


def _takes(request: Request, gpu: GpuState) -> bool:
    if request.vram is None:
        return not gpu.claims and not gpu.neighbours and gpu.foreign_besides <= max(512 * 2**20, gpu.total // 20)
    entitled, theirs = [c.entitled for c in gpu.claims], [n.claimed for n in gpu.neighbours]
    if None in entitled or None in theirs:
        return False
    late = sum(max(0, (n.claimed or 0) - n.used) for n in gpu.neighbours)
    return gpu.total - gpu.margin - gpu.foreign - late - sum(e or 0 for e in entitled) >= request.vram


@given(GPUS, st.lists(REQUESTS, max_size=8))
def test_the_same_input_gives_the_same_plan_and_every_group_left_has_a_reason(
    gpus: list[GpuState], requests: list[Request]
) -> None:
    result = plan_of(gpus, *requests)
    assert result == plan_of(gpus, *requests)
    waiting = {request for n, request in enumerate(requests, 1) if n not in started(result)}
    assert {key.request for key in result.verdicts} == waiting


@given(GPUS, REQUESTS)
def test_place_finds_room_exactly_where_the_oracle_does(gpus: list[GpuState], request: Request) -> None:
    assert (place(request, gpus) is not None) == fits_by_brute_force(request, gpus)


class Host24(RuleBasedStateMachine):
    """One 24 GiB card over time: jobs come, allocate late, grow over their claims and go; strangers come and go.

    After each start, the headroom that the start was judged by must have held it. A card without claims and strangers
    must never see a job that fits wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.card = Card()
        self.at = 1000.0
        self.used: dict[int, int] = {}
        self.foreign = 0
        self.next_job = 1
        self.queue: dict[int, Request] = {}
        #: of each neighbour's claim, by its supervisor: claimed and used
        self.theirs: dict[int, tuple[int | None, int]] = {}

    def _reading(self) -> GpuState:
        processes = [mine(job_id, used) for job_id, used in self.used.items() if used]
        if self.foreign:
            processes.append(stranger(self.foreign))
        for supervisor, (_, used) in self.theirs.items():
            pid = 10_000 + supervisor
            processes.append(GpuProcess(pid, used, compute=True, graphics=False, uid=5, lineage=(pid, supervisor)))
        self.card.neighbours = {
            "GPU-0": [NeighbourClaim(5, "alice", "GPU-0", size, pid) for pid, (size, _) in self.theirs.items()]
        }
        return self.card.see(reading(0, *processes), self.at)

    @rule(size=st.one_of(st.none(), st.integers(1, 23)))
    def submit(self, size: int | None) -> None:
        self.queue[self.next_job] = Request(1, None if size is None else size * GiB, 0, 0)
        self.next_job += 1

    @rule(seconds=st.floats(0.1, 12))
    def time_passes_and_the_planner_runs(self, seconds: float) -> None:
        self.at += seconds
        gpu = self._reading()
        groups: dict[GroupKey, Line] = {}
        for job_id, request in self.queue.items():
            groups.setdefault(GroupKey(0, 1, request), Line()).add(job_id, 0.0, inf)
        result = plan(Snapshot(groups, HOST), [gpu])
        headroom, was_idle = gpu.headroom, not (gpu.claims or gpu.foreign or gpu.neighbours)
        for start in result.starts:
            request = self.queue.pop(start.job_id)
            assert request.vram is not None or (gpu.whole_free and len(result.starts) == 1)
            headroom -= request.vram or 0
            assert headroom >= 0
            self.card.claims.append(Claim(start.job_id, 1, "GPU-0", request.vram))
            self.used[start.job_id] = 0
            self.card.disturb(self.at)
        if was_idle and not result.starts:
            assert not self.queue, "a job that fits waits beside an idle card"

    @precondition(lambda self: self.used)
    @rule(data=st.data(), size=st.integers(0, 24))
    def allocate(self, data: st.DataObject, size: int) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.used)))
        self.used[job_id] = size * GiB
        self.card.claims = [
            Claim(c.job_id, 1, c.uuid, c.bytes, max(c.peak, size * GiB)) if c.job_id == job_id else c
            for c in self.card.claims
        ]

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.used)))
        del self.used[job_id]
        self.card.claims = [c for c in self.card.claims if c.job_id != job_id]
        self.card.disturb(self.at)

    @rule(size=st.one_of(st.none(), st.integers(1, 23)))
    def a_neighbour_claims(self, size: int | None) -> None:
        """As its daemon would: where our claims and its own leave room."""
        claimed = sum(24 * GiB if c.bytes is None else c.bytes for c in self.card.claims)
        claimed += sum(24 * GiB if c is None else c for c, _ in self.theirs.values())
        if claimed + (24 if size is None else size) * GiB <= 24 * GiB:
            self.theirs[self.next_job] = (None if size is None else size * GiB, 0)
            self.next_job += 1

    @precondition(lambda self: self.theirs)
    @rule(data=st.data(), part=st.floats(0, 1))
    def a_neighbour_allocates(self, data: st.DataObject, part: float) -> None:
        who = data.draw(st.sampled_from(sorted(self.theirs)))
        size = self.theirs[who][0]
        self.theirs[who] = (size, int((24 * GiB if size is None else size) * part))

    @precondition(lambda self: self.theirs)
    @rule(data=st.data())
    def a_neighbour_goes(self, data: st.DataObject) -> None:
        del self.theirs[data.draw(st.sampled_from(sorted(self.theirs)))]

    @rule(size=st.integers(0, 24))
    def strangers(self, size: int) -> None:
        self.foreign = size * GiB

    @invariant()
    def claims_within_the_card_unless_over_used(self) -> None:
        claimed = sum(c.bytes or 0 for c in self.card.claims) + sum(size or 0 for size, _ in self.theirs.values())
        assert claimed <= 24 * GiB
        whole = any(c.bytes is None for c in self.card.claims) or any(s is None for s, _ in self.theirs.values())
        assert not whole or len(self.card.claims) + len(self.theirs) == 1


Host24.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHost24 = Host24.TestCase
