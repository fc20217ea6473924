"""Traces as people have them, and everything that can be wrong with one: told with file and line, nothing simulated."""

from __future__ import annotations

import io
import os
import random
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuq.errors import UsageError
from gpuq.model import GiB
from gpuq.simulate.trace import NO_LIMIT, SECOND, WHOLE, Trace, refusal_by
from gpuq.simulate.tracefile import LONGEST_LINE, read, read_file

HEAD = "job_id,submit_time,num_gpu,duration\n"


def parse(text: str, *cards: int) -> Trace:
    return read(io.StringIO(text, newline=""), "t.csv", refusal_by([cards or (80 * GiB,) * 8]))


def refused(text: str, *cards: int) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, *cards)
    assert caught.value.exit_code == 2
    return caught.value.message


def rows(trace: Trace) -> list[tuple[str, float, int, float]]:
    return [
        (name, trace.submit[n] / SECOND, trace.gpus[n], trace.duration[n] / SECOND) for n, name in enumerate(trace.ids)
    ]


def test_a_trace_as_published_ones_are() -> None:
    trace = parse(
        "job_id,num_gpu,submit_time,iterations,model_name,duration,interval\n"
        "0,1,0,606,vgg19,164,30\n"
        "1,8,30,133,vgg11,147,23\n"
        "2,2,53,157,inception4,127,26\n"
    )
    assert rows(trace) == [("0", 0, 1, 164), ("1", 30, 8, 147), ("2", 53, 2, 127)]
    assert list(trace.limit) == [NO_LIMIT] * 3 and list(trace.vram) == [WHOLE] * 3 and trace.users() == [""] * 3
    assert not trace.sorted


def test_every_column() -> None:
    trace = parse(
        "user,priority,vram,time_limit,duration,num_gpu,submit_time,job_id\n"
        "ada,5,10GiB,60,50,2,100,a\n"
        "bob,-3,whole,,70.5,1,101.25,b\n"
        "ada,,,1e2,200,1,102,c\n"
    )
    assert rows(trace) == [("a", 0, 2, 50), ("b", 1.25, 1, 70.5), ("c", 2, 1, 200)]
    assert trace.origin == 100 * SECOND
    assert list(trace.vram) == [10 * GiB, WHOLE, WHOLE]
    assert list(trace.limit) == [60 * SECOND, NO_LIMIT, 100 * SECOND]
    assert list(trace.priority) == [5, -3, 0]
    assert trace.users() == ["ada", "bob", "ada"]
    assert [trace.runs(row) / SECOND for row in range(3)] == [50, 70.5, 100]
    assert [trace.estimate(row) / SECOND for row in range(3)] == [60, 70.5, 100]
    assert trace.cut() == 1


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "a,0,1,5\nb,1,1,5\n",
        HEAD + "a,0,1,5\nb,1,1,5",
        "\ufeff" + HEAD + "a,0,1,5\nb,1,1,5\n",
        (HEAD + "a,0,1,5\nb,1,1,5\n").replace("\n", "\r\n"),
        (HEAD + "a,0,1,5\nb,1,1,5\n").replace("\n", "\r"),
        '"job_id","submit_time","num_gpu","duration"\n"a","0","1","5"\n"b","1","1","5"\n',
        "\n" + HEAD + "\n  \na,0,1,5\n,,,\n\nb,1,1,5\n\n",
        " Job_ID , SUBMIT_TIME,num_gpu ,duration\n a , 0 , 1 , 5 \nb,1,1,5\n",
        HEAD + "a,0.0,1.0,5.000\nb,1e0,+1,.5e1\n",
        HEAD + "a,0,1,5,\nb,1,1,5,,\n",
        "job_id,submit_time,num_gpu,duration,time_limit\na,0,1,5\nb,1,1,5\n",
        'job_id,note,submit_time,num_gpu,duration\na,"of two\nlines, with a comma",0,1,5\nb,,1,1,5\n',
    ],
)
def test_ways_to_write_the_same(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    assert rows(read_file(str(path), refusal_by([(0,)]))) == [("a", 0, 1, 5), ("b", 1, 1, 5)]


def test_what_is_not_in_order_is_sorted_and_ties_stay_as_they_are() -> None:
    trace = parse(HEAD + "a,9,1,5\nb,3,1,6\nc,9,2,7\nd,3,1,8\n")
    assert trace.sorted
    assert rows(trace) == [("b", 0, 1, 6), ("d", 0, 1, 8), ("a", 6, 1, 5), ("c", 6, 2, 7)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "t.csv is empty: a header belongs there"),
        ("\n\n", "t.csv is empty"),
        (HEAD, "t.csv: there is no job to simulate"),
        (HEAD + "\n,,,\n", "there is no job to simulate"),
        (
            "job_id,submit_time,num_gpu\na,0,1\n",
            "column duration is missing; the header names job_id, submit_time, num_",
        ),
        ("id,start\na,0\n", "columns job_id, submit_time, num_gpu, duration are missing; the header names id, start"),
        ("a,0,1,5\nb,1,1,5\n", "are missing; the header names a, 0, 1, 5"),
        (HEAD.replace(",", ";") + "a;0;1;5\n", "columns are separated by commas, not ';'"),
        (HEAD.replace(",", "\t") + "a\t0\t1\t5\n", "separated by commas, not '\\t'"),
        ("job_id,duration,submit_time,num_gpu,duration\na,1,0,1,5\n", "the header names duration 2 times"),
        (HEAD + "a,0,1,5\na,1,1,5\n", "t.csv, line 3: job_id 'a' is there twice; nothing was simulated"),
        (HEAD + "a,0,1,5\nb,-1,1,5\n", "t.csv, line 3: submit_time '-1' is negative"),
        (HEAD + "a,0,1,-5\n", "line 2: duration '-5' is negative"),
        (HEAD + "a,nan,1,5\n", "submit_time 'nan' is not a number of seconds"),
        (HEAD + "a,0,1,inf\n", "duration 'inf' is not a number of seconds"),
        (HEAD + "a,0,1,1h\n", "duration '1h' is not a number of seconds"),
        (HEAD + "a,0,1,1_000\n", "duration '1_000' is not"),
        (HEAD + "a,0,1,٥\n", "duration '٥' is not"),
        (HEAD + "a,2026-11-23 08:00,1,5\n", "submit_time '2026-11-23 08:00' is not a number of seconds"),
        (HEAD + "a,1763884800000,1,5\n", "are these milliseconds?"),
        (HEAD + "a,0,1,1e999\n", "is more than"),
        (HEAD + "a,0,1,400000000\n", "that is over ten years"),
        (HEAD + "a,0,0,5\n", "line 2: num_gpu '0': a job has 1 GPU at least"),
        (HEAD + "a,0,-1,5\n", "a job has 1 GPU at least"),
        (HEAD + "a,0,1.5,5\n", "num_gpu '1.5' is not a whole number"),
        (HEAD + "a,0,9,5\n", "line 2: job a asks for 9 GPUs, and 8 are simulated"),
        (HEAD + "a,0,99999999999999999999,5\n", "is not a whole number"),
        (HEAD + "a,0,1\n", "line 2: has no duration"),
        (HEAD + ",0,1,5\n", "line 2: has no job_id"),
        (HEAD + "a,,1,5\n", "line 2: has no submit_time"),
        (HEAD + "a,0,1,5,6\n", "line 2: has 5 fields, and the header 4"),
        (HEAD + 'a,0,1,"5\nb,1,1,5\nc,2,1,5\n', "line 2: is no CSV"),
        (HEAD + 'a,0,1,"5"x\n', "line 2: is no CSV"),
        (HEAD + "a,0,1,5\0\n", "line 2: holds a NUL byte"),
        (HEAD + "a" * (LONGEST_LINE + 5), "line 2: is longer than 65,536 characters"),
    ],
)
def test_bad_traces(text: str, says: str) -> None:
    assert says in refused(text)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("time_limit", "0", "time_limit '0': no job can run in that"),
        ("time_limit", "-1", "negative"),
        ("time_limit", "UNLIMITED", "is not a number of seconds"),
        ("vram", "10", "vram '10' is not a size"),
        ("vram", "0GiB", "must be more than zero"),
        ("vram", "-1GiB", "is not a size"),
        ("vram", "81GiB", "job a asks for 1 with 81GiB, and 0 of the simulated GPUs have as much"),
        ("priority", "high", "priority 'high' is not a whole number"),
        ("priority", "1001", "is not between -1000 and 1000"),
    ],
)
def test_bad_values_of_columns_that_need_not_be_there(column: str, value: str, says: str) -> None:
    assert says in refused(f"{HEAD[:-1]},{column}\na,0,1,5,{value}\n")


def test_memory_is_of_gpus_whose_size_is_known() -> None:
    text = f"{HEAD[:-1]},vram\na,0,2,5,30GiB\n"
    assert "write --gpus 8x80GiB" in refused(text, 0, 0, 0)
    assert "and 1 of the simulated GPUs have as much" in refused(text, 24 * GiB, 24 * GiB, 80 * GiB)
    assert len(parse(text, 24 * GiB, 80 * GiB, 80 * GiB)) == 1


CELL = st.one_of(
    st.sampled_from(["", "0", "1", "-1", "1.5", "nan", "10GiB", '"', "\r", "\0", "a b", "1e9"]), st.text(max_size=4)
)


@given(rows=st.lists(st.lists(CELL, max_size=7).map(",".join), max_size=5), head=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_trace_or_refused(rows: list[str], head: bool) -> None:
    text = (f"{HEAD[:-1]},vram,time_limit,priority\n" if head else "") + "\n".join(rows)
    try:
        trace = parse(text)
    except UsageError as error:
        assert error.message.startswith("t.csv")
    else:
        assert len(trace) and min(trace.gpus) >= 1 and min(trace.duration) >= 0 and trace.submit[0] == 0


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes((HEAD[:-1] + ",user\na,0,1,5,müller\n").encode(encoding))
    if encoding == "utf-16":
        with pytest.raises(UsageError, match="UTF-8"):
            read_file(str(path), refusal_by([(0,)]))
    else:
        assert len(read_file(str(path), refusal_by([(0,)]))) == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "directory"), (tmp_path / "gone", "No such file"), (tmp_path / ("x" * 300), "long")):
        with pytest.raises(UsageError, match=says):
            read_file(str(path), refusal_by([(0,)]))
    with pytest.raises(UsageError, match="is longer than"):
        read_file("/dev/zero", refusal_by([(0,)]))


def test_a_fifo(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(HEAD + "a,0,1,5\n",))
    writer.start()
    assert len(read_file(str(path), refusal_by([(0,)]))) == 1
    writer.join()


def test_a_row_is_small() -> None:
    dice, rows = random.Random(0), 20_000
    lines = (f"job-{n},{n},{dice.randint(1, 8)},{dice.random() * 1e4:.3f}\n" for n in range(rows))
    file = io.StringIO(HEAD + "".join(lines))
    tracemalloc.start()
    try:
        trace = read(file, "t.csv", refusal_by([(0,) * 8]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(trace) == rows
    assert peak < 350 * rows, "a hundred thousand are some tens of megabytes"
