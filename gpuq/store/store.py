"""The SQLite queue. The daemon is its only writer, from one thread.

Writes happen inside `transaction()`; a change of state is a guarded UPDATE with its event row beside it. WAL with
`synchronous=FULL`: what was acknowledged survives a power cut (https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import json
import logging
import os
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from gpuq import crash
from gpuq.errors import IllegalTransition, StoreDamaged, StoreError
from gpuq.events import Event, Kind
from gpuq.model import WAITING, Attempt, Claim, Clause, Job, State
from gpuq.policy.dependencies import Numbered
from gpuq.protocol import spans
from gpuq.store import dependents, rules, staging
from gpuq.store.backup import FOLDER, before_migration, copy, stamp
from gpuq.store.changes import Changes, groups
from gpuq.store.connection import connect
from gpuq.store.lists import LIVING
from gpuq.store.migrations import migrate, outdated, schema_fault, version_of
from gpuq.store.queries import Queries
from gpuq.store.rows import LIVE_COLUMNS, clean, dump, job_values, live_values
from gpuq.store.staging import Staged

log = logging.getLogger("gpuq.store")

_SET_LIVE = f"UPDATE jobs SET {','.join(f'{c} = :{c}' for c in LIVE_COLUMNS)} WHERE id = :id"
#: Newest submissions whose keys stay in the file of changes: a client that lost the answer asks again at once.
_KEYS_KEPT = 1000


class Store(Queries):
    """Open with `Store(path)`; raises StoreError when the file cannot be used, StoreDamaged when it is damaged.

    A database with jobs is copied into `backups/` beside it before its schema changes, if `backups` says so.
    """

    def __init__(self, path: Path, *, network: bool = False, backups: bool = True) -> None:
        super().__init__()
        self.path = path
        self._network = network
        self.changes: Changes | None = None
        self._on_damage: Callable[[str], None] | None = None
        self._open()
        try:
            fault = schema_fault(self.conn)
            if fault is not None:
                raise StoreDamaged(fault)
            version = version_of(self.conn)
            self._configure()
            if backups and outdated(version) and self.conn.execute("SELECT 1 FROM jobs LIMIT 1").fetchone():
                before_migration(self.conn, path.parent / FOLDER, version)
            migrate(self.conn)
            #: whether an older gpuq wrote it: what that did not keep is not missing
            self.migrated = outdated(version)
            self.unseen = staging.unfinished(self)
        except BaseException:
            self.conn.close()
            raise

    def _open(self) -> None:
        try:
            self.conn = connect(self.path)
            self._file, self._folder = _identity(self.path), _identity(self.path.parent)
        except OSError as error:
            raise StoreError(f"the database {self.path} cannot be used: {error.strerror}") from None
        self.conn.on_damage = self._on_damage

    def _configure(self) -> None:
        # WAL needs shared memory, which a network file system does not give between hosts
        self.conn.execute(f"PRAGMA journal_mode = {'DELETE' if self._network else 'WAL'}")
        self.conn.execute("PRAGMA synchronous = FULL")

    @property
    def on_damage(self) -> Callable[[str], None] | None:
        """Called with what SQLite said when it meets damage, beside the StoreDamaged that is raised."""
        return self._on_damage

    @on_damage.setter
    def on_damage(self, told: Callable[[str], None]) -> None:
        self._on_damage = self.conn.on_damage = told

    def close(self) -> None:
        if self.changes is not None:
            self.changes.close()
        self.conn.close()

    def keep_changes(self, path: Path) -> None:
        """From now on every commit is told to the file of changes, too."""
        self.changes = Changes(path)
        self.changes.open(sum(self.counts().values()))
        if self.changes.behind:
            self._rewrite_changes()

    def _rewrite_changes(self) -> None:
        """The file of changes anew: the jobs that live, and the environments that they need."""
        assert self.changes is not None
        event = self.last_event()
        columns = [column["name"] for column in self.conn.execute("PRAGMA table_info(jobs)").fetchall()]
        rows = self._columns(columns, f"{LIVING} AND {self.seen} ORDER BY id")
        needed = self.conn.execute(
            f"SELECT hash, body FROM environments WHERE hash IN (SELECT env_hash FROM jobs WHERE {LIVING})"
        )
        keys = self.conn.execute(
            "SELECT key, first_id, last_id FROM submissions WHERE NOT unfinished ORDER BY rowid DESC LIMIT ?",
            (_KEYS_KEPT,),
        )
        staged = (
            (one.token, group)
            for one in self.unseen
            for group in groups(columns, self._columns(columns, f"id BETWEEN {one.first} AND {one.last}"))
        )
        bodies = ([row["hash"], b64encode(row["body"]).decode("ascii")] for row in needed)
        self.changes.rewrite(
            chain(
                [{"e": event, "last": self.next_id() - 1}],
                ({"e": event, "environments": [body]} for body in bodies),
                ({"e": event, "submissions": [[*key]]} for key in keys),
                ({"e": event, "rules": [[table, row[rules.KEYS[table]], row]]} for table, row in rules.rows(self)),
                ({"e": event, "jobs": [group]} for group in groups(columns, rows)),
                ({"e": event, "staged": [{"of": token, **group}]} for token, group in staged),
            ),
            sum(self.counts().values()) + sum(one.written for one in self.unseen),
        )

    def _columns(self, columns: Sequence[str], where: str) -> Iterator[tuple[Any, ...]]:
        rows = self.conn.execute(f"SELECT {', '.join(columns)} FROM jobs WHERE {where}")
        rows.row_factory = None
        return rows

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; IMMEDIATE, so that it fails before the work and not at its end. Raises StoreError."""
        self._stay()
        self.conn.execute("BEGIN IMMEDIATE")
        last_event = 0
        try:
            yield
            if self.changes is not None:
                last_event = self.last_event()
            crash.point("commit-before")
            self.conn.execute("COMMIT")
            crash.point("commit-after")
        except BaseException:
            self._counted.clear()
            if self.changes is not None:
                self.changes.rollback()
            if self.conn.in_transaction:
                with suppress(StoreError):  # what went wrong is being told already
                    self.conn.execute("ROLLBACK")
            raise
        if self.changes is not None:
            self.changes.commit(last_event)
            if self.changes.behind:
                self._rewrite_changes()

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """A transaction of what may be lost in a power cut, as long as no later one makes it count.

        The next that is synced takes it along: they are in one log (https://sqlite.org/wal.html, section 2.2). A
        rollback journal has no such order, and is synced.
        """
        if not self._network:
            self.conn.execute("PRAGMA synchronous = NORMAL")
        try:
            with self.transaction():
                yield
        finally:
            self.conn.execute("PRAGMA synchronous = FULL")

    def empty_log(self) -> None:
        """Write back what is in the log, from whichever thread: nobody waits for the disk but who calls this."""
        try:
            with closing(connect(self.path)) as conn:
                conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except (OSError, StoreError) as error:  # a commit that finds the log long tries it again
            log.warning("the log of the database could not be written back: %s", error)

    def shorten_changes(self) -> None:
        """Write the file of changes anew, without what is of no use any more. Raises StoreError."""
        if self.changes is not None:
            self.changes.behind = True
            with self.transaction():
                pass

    def _stay(self, *, log_too: bool = False) -> None:
        """The file must still be ours, and `log_too` its log: what is written into one that was removed would be lost.

        In a folder that is another one nothing is written; see `at_home`.
        """
        try:
            if _identity(self.path) == self._file:
                if not log_too or self._network or os.path.lexists(f"{self.path}-wal"):
                    return
                what = "left without its log, which was removed"
            else:
                what = "replaced"
        except FileNotFoundError:
            what = "removed"
        except OSError as error:
            raise StoreError(f"the database {self.path} cannot be looked at: {error.strerror}") from None
        if not self._same_folder():
            raise StoreError(f"the database {self.path} is gone, and so is the folder that it was in")
        log.error("the database %s was %s; it is written anew", self.path, what, extra={"event": "database-removed"})
        try:
            self._write_anew()
        except OSError as error:
            raise StoreError(f"the database {self.path} was {what}, and cannot be written anew: {error}") from None
        self.conn.execute("BEGIN IMMEDIATE")
        note = f"the database was {what} under the running daemon, and written anew"
        self.add_events([Event(time.time(), Kind.DAMAGED, data={"note": note})])
        self.conn.execute("COMMIT")

    def _same_folder(self) -> bool:
        try:
            return _identity(self.path.parent) == self._folder
        except OSError:
            return False

    def at_home(self) -> None:
        """The folder that is there now is ours, perhaps made anew: see to the database in it. Raises StoreError."""
        try:
            self._folder = _identity(self.path.parent)
        except OSError as error:
            raise StoreError(f"the folder of {self.path} cannot be looked at: {error.strerror}") from None
        self._stay(log_too=True)

    def _write_anew(self) -> None:
        """From the open connection, which still has everything. What is in the way is kept in `damaged/`."""
        anew = self.path.with_name(f"{self.path.name}.anew")
        copy(self.conn, anew, replace=True)
        aside = self.path.parent / "damaged" / stamp()
        for part in ("-journal", "-wal", "-shm", ""):
            there = self.path.with_name(self.path.name + part)
            if os.path.lexists(there):
                aside.mkdir(mode=0o700, parents=True, exist_ok=True)
                there.rename(aside / there.name)
        self.conn.close()
        anew.replace(self.path)
        self._open()
        self._configure()
        if self.changes is not None:
            self.changes.behind = True

    # --- submitting -------------------------------------------------------------------------------

    def submission(self, key: str) -> tuple[int, int] | None:
        """First and last id of a submission made before under this key."""
        row = self.conn.execute(
            "SELECT first_id, last_id FROM submissions WHERE key = ? AND NOT unfinished", (key,)
        ).fetchone()
        return None if row is None else (row["first_id"], row["last_id"])

    def next_id(self) -> int:
        row = self.conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
        return 1 if row is None else int(row["seq"]) + 1

    def start_ids_after(self, job_id: int) -> None:
        """Never give out this id, or a smaller one. In a transaction."""
        if job_id >= self.next_id():
            self.conn.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
            self.conn.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?)", (job_id,))

    def stage(self, count: int, digest: str, environment: bytes) -> Staged:
        """The next ids, for a submission of so many jobs with this environment that is written in slices."""
        first = self.next_id()
        staged = Staged(self, first, first + count - 1)
        staged.begin(digest, environment)
        return staged

    def insert_alike(
        self,
        template: Job,
        own: Sequence[staging.Own],
        unmet: Collection[Numbered],
        each: Mapping[int, staging.Needs] | None = None,
    ) -> None:
        """Add jobs that are as the template but for their own columns; see `staging.insert_alike`."""
        staging.insert_alike(self, template, own, unmet, each=each)

    def tally(self, more: Mapping[State, int]) -> None:
        """Keep the numbers of jobs by state, of the states where they were counted. A rollback forgets them."""
        for state, change in more.items():
            if state in self._counted:
                self._counted[state] += change

    def put_submission(self, key: str, first: int, last: int) -> None:
        self.conn.execute("INSERT INTO submissions (key, first_id, last_id) VALUES (?, ?, ?)", (key, first, last))
        if self.changes is not None:
            self.changes.submission(key, first, last)

    def job_defaults(self) -> dict[str, object]:
        """The columns of a job that may be left out, as SQLite would fill them in."""
        found: dict[str, object] = {}
        for row in self.conn.execute("PRAGMA table_info(jobs)").fetchall():
            text = row["dflt_value"]
            found[row["name"]] = None if text is None else self.conn.execute(f"SELECT {text}").fetchone()[0]
        return found

    def insert_job(self, job: Job, event: Event) -> None:
        """Add a job that has an id already, outside any submission."""
        self.put_job({"id": job.id, **job_values(job)})
        self.add_events([event])

    def put_job(self, values: dict[str, Any]) -> None:
        """Add the row of a job."""
        self._counted.clear()
        marks = ",".join(":" + c for c in values)
        self.conn.execute(f"INSERT INTO jobs ({','.join(values)}) VALUES ({marks})", values)
        if self.changes is not None:
            self.changes.jobs({}, [values])

    def delete_job(self, job_id: int) -> None:
        """Remove the row of a job, and nothing else of it."""
        self._counted.clear()
        self.conn.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def overwrite(self, job: Job) -> None:
        """Write a job whatever the store believed of it: for what run folders know better."""
        self._counted.clear()
        values = live_values(job)
        self.conn.execute(_SET_LIVE, {"id": job.id, **values})
        if self.changes is not None:
            self.changes.set(job.id, values)

    def prune(self, ids: Sequence[int], now: float) -> None:
        """Remove every row of these jobs. An event tells of it, so that nobody takes them for lost."""
        if not ids:
            return
        self._counted.clear()
        # before the others go: the number of the last event must never fall
        self.add_events([Event(now, Kind.PRUNED, data={"ids": spans(ids)})])
        listed = dump(list(ids))
        for table, column in (
            ("jobs", "id"),
            ("attempts", "job_id"),
            ("claims", "job_id"),
            ("dependencies", "job_id"),
            ("events", "job_id"),
        ):
            one = " AND last_id IS NULL" if table == "events" else ""
            self.conn.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?)){one}", (listed,))
        for ranges in (
            "submissions WHERE NOT unfinished AND first_id <= :high AND last_id >= :low AND NOT EXISTS "
            "(SELECT 1 FROM jobs WHERE id BETWEEN first_id AND last_id)",
            "events WHERE last_id IS NOT NULL AND job_id <= :high AND last_id >= :low AND NOT EXISTS "
            "(SELECT 1 FROM jobs WHERE id BETWEEN job_id AND last_id)",
        ):
            self.conn.execute(f"DELETE FROM {ranges}", {"low": min(ids), "high": max(ids)})
        if self.changes is not None:
            self.changes.removed(ids)

    def pruned(self) -> Iterator[tuple[int, int]]:
        """Ranges of ids that were removed, given up before they were seen, or left out after damage."""
        kinds = (Kind.PRUNED.value, Kind.WITHDRAWN.value, Kind.RECOVERED.value)
        for row in self.conn.execute("SELECT data FROM events WHERE kind IN (?, ?, ?)", kinds):
            yield from ((first, last) for first, last in json.loads(row["data"]).get("ids", ()))

    def add_dependencies(self, job_ids: Iterable[int], after: Sequence[Clause], open_: Collection[Numbered]) -> None:
        """What each of these jobs waits for, and which alternatives of it are open."""
        dependents.note_starts(self, (wanted for _, wanted in open_))
        self.conn.executemany(
            "INSERT OR IGNORE INTO dependencies (job_id, clause, on_id, condition, met) VALUES (?, ?, ?, ?, ?)",
            (
                (job_id, number, wanted.job_id, wanted.condition.value, (number, wanted) not in open_)
                for job_id in job_ids
                for number, clause in enumerate(after)
                for wanted in clause.alternatives
            ),
        )

    def put_environment(self, digest: str, body: bytes) -> None:
        done = self.conn.execute("INSERT OR IGNORE INTO environments VALUES (?, ?)", (digest, body))
        if done.rowcount and self.changes is not None:
            self.changes.environment(digest, body)

    def environment(self, digest: str) -> bytes | None:
        """None once it was erased."""
        row = self.conn.execute("SELECT body FROM environments WHERE hash = ?", (digest,)).fetchone()
        return None if row is None else bytes(row["body"])

    def erase_environments(self, before: float) -> int:
        """Erase those that only jobs ended before that time refer to; returns how many."""
        erased = self.conn.execute(
            f"""DELETE FROM environments
                WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE env_hash = hash AND {LIVING})
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE env_hash = hash AND ended_at >= ?)""",
            (before,),
        ).rowcount
        if erased and self.changes is not None:
            self.changes.behind = True  # written anew without them
        return erased

    # --- transitions ------------------------------------------------------------------------------

    def change(self, before: Job, after: Job, event: Event) -> None:
        """Write a job after a fact. Raises IllegalTransition when the job has left the state it was read in."""
        values = live_values(after)
        count = self.conn.execute(
            f"{_SET_LIVE} AND state = :before",
            {"id": after.id, "before": before.state.value, **values},
        ).rowcount
        if count != 1:
            raise IllegalTransition(f"job {after.id} is not {before.state} any more, and cannot become {after.state}")
        if before.state is not after.state:
            self.tally({before.state: -1, after.state: 1})
        if self.changes is not None:
            self.changes.set(after.id, values)
        self.add_events([event])

    def edit(self, before: Job, after: Job, event: Event, unmet: Collection[Numbered] | None) -> None:
        """Write a job that waits as its owner wants it; `unmet` is what is open of what it waits for, if that changed.

        Raises IllegalTransition when the job has left the state it was read in.
        """
        was, now = job_values(before), job_values(after)
        values = {name: value for name, value in now.items() if value != was[name]}
        count = self.conn.execute(
            f"UPDATE jobs SET {','.join(f'{c} = :{c}' for c in values)} WHERE id = :id AND state = :before",
            {**values, "id": after.id, "before": before.state.value},
        ).rowcount
        if count != 1:
            raise IllegalTransition(f"job {after.id} is not {before.state} any more, and cannot be edited")
        if unmet is not None:
            self.conn.execute("DELETE FROM dependencies WHERE job_id = ?", (after.id,))
            self.add_dependencies([after.id], after.after, unmet)
        if self.changes is not None:
            self.changes.set(after.id, values)
        self.add_events([event])

    def change_alike(self, ids: Sequence[int], before: Job, after: Job, event: Event) -> None:
        """Write for all of these jobs, which wait, what a fact has made of one of them: it is the same for all.

        Raises IllegalTransition when one of them has left these states.
        """
        was, now = live_values(before), live_values(after)
        values = {name: value for name, value in now.items() if value != was[name]}
        states = ",".join(f"'{state}'" for state in sorted(WAITING))
        listed = dump(ids)
        held = self.conn.execute(
            f"SELECT count(*) FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state = '{State.HELD}'",
            (listed,),
        ).fetchone()[0]
        count = self.conn.execute(
            f"""UPDATE jobs SET {",".join(f"{c} = :{c}" for c in values)}
                WHERE id IN (SELECT value FROM json_each(:ids)) AND state IN ({states})""",
            {"ids": listed, **values},
        ).rowcount
        if count != len(ids):
            raise IllegalTransition(f"{len(ids) - count} of {len(ids)} jobs cannot become {after.state} any more")
        self.tally({State.HELD: -held, State.QUEUED: held - count, after.state: count})
        if self.changes is not None:
            self.changes.set_alike(ids, values)
        self.conn.execute(
            """INSERT INTO events (at, kind, job_id, attempt, data)
               SELECT ?, ?, id, nullif(attempt, 0), ? FROM jobs
               WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id""",
            (event.at, event.kind.value, dump(dict(event.data)), listed),
        )

    def add_events(self, events: Iterable[Event], last_id: int | None = None) -> None:
        """With `last_id` each is one of every job from its own to that one."""
        self.conn.executemany(
            "INSERT INTO events (at, kind, job_id, attempt, data, last_id) VALUES (?, ?, ?, ?, ?, ?)",
            ((e.at, e.kind.value, e.job_id, e.attempt, dump(dict(e.data)), last_id) for e in events),
        )

    def add_attempt(self, attempt: Attempt) -> None:
        self.conn.execute(
            "INSERT INTO attempts (job_id, number, started_at, run_dir, log_path) VALUES (?, ?, ?, ?, ?)",
            (attempt.job_id, attempt.number, attempt.started_at, dump(attempt.run_dir), dump(attempt.log_path)),
        )
        if not attempt.claims:
            return
        # claims of an attempt whose own row is lost may have outlived it, with the peaks that were seen
        self.conn.executemany(
            "INSERT INTO claims VALUES (?, ?, ?, ?, ?) ON CONFLICT (job_id, attempt, uuid) DO NOTHING",
            ((c.job_id, c.attempt, c.uuid, c.bytes, c.peak) for c in attempt.claims),
        )

    def end_attempt(self, attempt: Attempt) -> None:
        self.conn.execute(
            """UPDATE attempts SET ended_at = ?, exit_code = ?, signal = ?, failure = ?, note = ?, peak_ram = ?,
               user_seconds = ?, system_seconds = ? WHERE job_id = ? AND number = ?""",
            (
                attempt.ended_at,
                attempt.exit_code,
                attempt.signal,
                attempt.failure,
                clean(attempt.note),
                attempt.peak_ram,
                attempt.user_seconds,
                attempt.system_seconds,
                attempt.job_id,
                attempt.number,
            ),
        )

    def set_peaks(self, claims: Iterable[Claim]) -> None:
        """Keep the observed peaks of claims, and the largest of each job beside it."""
        rows = list(claims)
        if not rows:
            return
        self.conn.executemany(
            "UPDATE claims SET peak = ? WHERE job_id = ? AND attempt = ? AND uuid = ?",
            ((c.peak, c.job_id, c.attempt, c.uuid) for c in rows),
        )
        self.conn.executemany(
            "UPDATE jobs SET peak_vram = max(coalesce(peak_vram, 0), ?) WHERE id = ?",
            ((c.peak, c.job_id) for c in rows),
        )


def _identity(path: Path) -> tuple[int, int]:
    """Which file this is, and no other. Raises OSError."""
    found = os.stat(path, follow_symlinks=False)
    return found.st_dev, found.st_ino


def with_outcome(attempt: Attempt, job: Job, user: float | None, system: float | None) -> Attempt:
    """The attempt with the outcome that its job now shows."""
    return replace(
        attempt,
        ended_at=job.ended_at,
        exit_code=job.exit_code,
        signal=job.signal,
        failure=job.failure,
        note=job.note,
        peak_ram=job.peak_ram,
        user_seconds=user,
        system_seconds=system,
    )
