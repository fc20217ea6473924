"""Databases of every released schema open; a migration is all or nothing, and a copy is made before it."""

from __future__ import annotations

import re
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from gpuq import config
from gpuq.errors import StoreError
from gpuq.model import Condition, Dependency, Ending, Failure, State
from gpuq.protocol import MAX_ID, Selection
from gpuq.store import migrations, schema
from gpuq.store.backup import KEPT
from gpuq.store.lists import Order
from gpuq.store.migrations import MIGRATIONS, TABLES, migrate
from gpuq.store.salvage import shapes
from gpuq.store.store import Store

RELEASED = sorted((Path(__file__).parent / "schemas").glob("v*.sql"))
#: What every released schema had.
FIRST = TABLES - {"queues", "disabled_gpus", "job_groups"}
#: The states that version 5 knew.
RELEASED_STATES = {State(s) for s in "held queued running succeeded failed cancelled skipped".split()}


def build(dump: Path, path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(dump.read_text())


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, by the columns that the first schema had."""
    with closing(sqlite3.connect(path)) as db:
        return {table: db.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in FIRST}


def test_what_version_6_added_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    build(Path(__file__).parent / "schemas" / "v6.sql", path)
    with closing(Store(path)) as store:
        job = store.job(4)
    assert job is not None and (job.state, job.suspended_at, job.suspended_seconds) == (
        State.SUSPENDED,
        1767225900.0,
        2.5,
    )
    assert (job.grace, job.log_limit, job.spent) == (120.0, 2**20, (1, 0))
    assert job.early_signal is not None and (job.early_signal.signal, job.early_signal.before) == (10, 300.0)
    assert [str(rule) for rule in job.retry] == ["vram-oom:2*1.5", "1"]


@pytest.mark.parametrize("dump", RELEASED, ids=lambda dump: dump.stem)
def test_a_database_of_every_released_schema_opens_with_everything_in_it(dump: Path, tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    build(dump, path)
    before = rows(path)
    assert all(before.values()), "the sample has rows of every table"
    with closing(Store(path)) as store:
        everything = Selection(ranges=((0, MAX_ID),))
        jobs, total = store.select_jobs(everything, State, Order.AGE, None), store.count(everything, State)
        assert [job.id for job in jobs] == list(range(1, total + 1))
        assert {job.state for job in jobs} >= RELEASED_STATES
        odd = jobs[3]
        assert odd.command == ("echo", "\udcff\udc80", "a\nb", "", "'\"\\")
        assert (odd.cwd, odd.output) == ("/home/ada/\udce9té", "/home/ada/out-\udcff.log")
        assert (odd.name, odd.tags, odd.attempt) == ("naïve \u2028 ünïcode 🚀", ("sweep", "größe"), 2)
        assert [a.number for a in store.attempts(4)] == [1, 2]
        assert [a.failure for a in store.attempts(3)] == [Failure.VRAM_OOM]
        assert store.attempts(3)[0].claims[0].over
        assert store.job(7) == next(job for job in jobs if job.ending is Ending.CANCEL)
        assert store.open_dependencies(6) == [Dependency(Condition.OK, 7)]
        clauses = store.conn.execute("SELECT on_id, condition, met, clause FROM dependencies WHERE job_id = 6")
        assert [tuple(row) for row in clauses] == [(7, "ok", 0, 0), (1, "any", 1, 1)], "each is a clause of its own"
        assert store.submission("0123456789abcdef") == (1, total)
        assert store.environment("e" * 64) == b'{"HOME":"/home/ada","X":"\\u00e9"}'
        assert [job.id for job in store.live_jobs(State.QUEUED)] == [6, 9, 10]
        assert len(store.events(0, None, None)) == len(before["events"])
        assert store.next_id() == 41, "an id that was given out is not given out again"
    after = rows(path)
    for table in FIRST:
        assert [row[: len(old)] for row, old in zip(after[table], before[table], strict=True)] == before[table]


def written(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """Every table and index as it was written, less what is a matter of style: sqlite-utils quotes and indents."""
    found = db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    return [(kind, name, re.sub(r"[\s\"\[\]]", "", sql or "")) for kind, name, sql in found]


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_migration_works_from_every_version(version: int, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.db")) as db, closing(sqlite3.connect(tmp_path / "new.db")) as new:
        for step in range(version + 1):
            migrate(db, to=step)
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        migrate(new)
        migrate(db)
        assert written(db) == written(new)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_new_database_is_what_all_migrations_make_of_an_empty_one() -> None:
    assert len(MIGRATIONS) == schema.VERSION, "a migration is not in schema.py yet"
    with closing(sqlite3.connect(":memory:")) as stepwise, closing(sqlite3.connect(":memory:")) as new:
        for version in range(1, len(MIGRATIONS) + 1):
            migrate(stepwise, to=version)
        migrate(new)
        assert written(new) == written(stepwise)


def test_a_new_database_gets_migrations_that_its_schema_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, lambda db: db.conn.execute("CREATE TABLE later (x)")))
    with closing(sqlite3.connect(":memory:")) as db:
        migrate(db)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert {name for _, name, _ in written(db)} >= {"later", *TABLES}


def test_a_migration_that_is_killed_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    build(RELEASED[-1], path)
    before = rows(path)
    script = (
        "import os, signal, sys\n"
        "from gpuq.store import migrations\n"
        "def half(db):\n"
        "    db.conn.execute('DELETE FROM jobs'); db.conn.execute('CREATE TABLE more (x)')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "migrations.MIGRATIONS = (*migrations.MIGRATIONS, half)\n"
        "from pathlib import Path\n"
        "from gpuq.store import store\n"
        "store.Store(Path(sys.argv[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    assert rows(path) == before
    [copied] = (tmp_path / "backups").iterdir()
    assert rows(copied) == before, "the copy made before it is whole"


def test_a_copy_is_made_before_a_migration_and_the_newest_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue.db"
    build(RELEASED[-1], path)
    for number in range(KEPT + 2):
        version = len(migrations.MIGRATIONS)
        Store(path).close()
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE jobs SET name = ? WHERE id = 1", (f"at {version}",))
            db.commit()
        before = rows(path)

        def later(db: Database, number: int = number) -> None:
            db.conn.execute(f"CREATE TABLE later{number} (x)")

        monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, later))
        # another table than those that a start looks at changes nothing of theirs
        monkeypatch.setattr(migrations, "FINGERPRINTS", (*migrations.FINGERPRINTS, migrations.FINGERPRINTS[-1]))
        Store(path).close()
    copies = sorted((tmp_path / "backups").iterdir(), key=lambda copy: copy.name.split(".")[2])
    assert len(copies) == KEPT
    assert copies[-1].name.startswith(f"queue.v{version}.")
    assert rows(copies[-1]) == before
    assert stat.S_IMODE((tmp_path / "backups").stat().st_mode) == 0o700
    assert {stat.S_IMODE(copy.stat().st_mode) for copy in copies} == {0o600}
    Store(path).close()
    assert len(list((tmp_path / "backups").iterdir())) == KEPT, "a new one is not copied"


def test_a_newer_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer gpuq"):
        Store(path)
    assert path.read_bytes() == before
    assert not (tmp_path / "backups").exists()


def test_the_tables_that_a_start_looks_for_are_those_that_migrations_make() -> None:
    assert shapes().keys() == TABLES
    for version, known in enumerate(migrations.FINGERPRINTS):
        with closing(sqlite3.connect(":memory:")) as db:
            migrate(db, to=version)
            assert hex(migrations.fingerprint(db)) == hex(known), f"version {version}"
    assert len(migrations.FINGERPRINTS) == len(MIGRATIONS) + 1
    assert len(MIGRATIONS) == config.SCHEMA


def test_neither_a_first_start_nor_one_with_nothing_to_migrate_needs_sqlite_utils(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import gpuq.daemon.main\n"
        "from gpuq.store.recovery import open_store\n"
        "open_store(Path(sys.argv[1]), Path(sys.argv[1]), network=False)[0].close()\n"
        "print('sqlite_utils' in sys.modules)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    found = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert found == ["False\n", "False\n"]
