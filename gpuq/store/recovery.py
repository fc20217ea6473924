"""A damaged database is set aside whole, and a new one made of what can be read from it and from the run folders.

Whatever interrupts it, nothing is lost: the order is to link the damaged files into `damaged/TIME/`, to say so in the
file `recover`, to take them away, to build the new database beside, and to give it its name. The next start goes on
where that was left. A restore is the same, with the rows of the copy instead of the damaged ones.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gpuq.errors import StoreDamaged, StoreError
from gpuq.events import Event, Kind
from gpuq.model import ACTIVE
from gpuq.store import changes, check, runrecord, salvage, staging
from gpuq.store.backup import stamp, sync
from gpuq.store.connection import connect, disk_full
from gpuq.store.mend import Mended, leave_out, mend
from gpuq.store.migrations import migrate
from gpuq.store.reconcile import Reconciled, reconcile
from gpuq.store.replay import replay
from gpuq.store.store import Store

log = logging.getLogger("gpuq.recovery")

DATABASE = "queue.db"
#: Where damaged databases are kept, with their reports. gpuq deletes none.
DAMAGED = "damaged"
REPORT = "report.txt"
#: Says that the next start recovers, and why; with `source`, that it had begun to.
MARK = "recover"
#: A checked copy that the next start goes on with.
RESTORE = "restore.db"
_PARTS = ("", "-wal", "-shm", "-journal")
#: What is set aside with the database and stays in use.
_BESIDE = (changes.NAME,)


@dataclass(frozen=True, slots=True)
class Mark:
    why: str
    #: name of the folder in `damaged/` that holds the files
    source: str | None = None
    restore: bool = False


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done at a start, for a person."""

    summary: str
    report: Path


def mark(folder: Path, why: str, *, restore: bool = False) -> None:
    """Have the next start recover, or restore `restore.db`. Raises OSError."""
    _write_mark(folder, Mark(why, restore=restore))


def open_store(
    folder: Path, run_root: Path, *, network: bool, tell: Callable[[str], None] = lambda _: None
) -> tuple[Store, Recovered | None]:
    """The database of a state folder, recovered first if it has to be; `tell` gets a word before. Raises StoreError.

    Whatever database it is, attempts that were started without its knowledge are given to it.
    """
    try:
        recovered = _recover_if_needed(folder, run_root, tell)
        try:
            return _opened(folder, run_root, network, recovered=recovered is not None), recovered
        except StoreDamaged as error:  # a page that is met only now: once, for what comes of it is whole
            recovered = _recover(folder, run_root, Mark(error.message), tell)
            return _opened(folder, run_root, network, recovered=True), recovered
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder) from None
        raise StoreError(
            f"the database {folder / DATABASE} cannot be used: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
        ) from None


def _refuse_older(store: Store, folder: Path) -> None:
    """Raises StoreDamaged for a database that is older than what it is known to have held."""
    known, held = changes.last_event(folder / changes.NAME), store.last_event()
    if known > held:
        raise StoreDamaged(
            f"it is older than the changes that were kept beside it: {known - held:,} events are missing"
        )


def _opened(folder: Path, run_root: Path, network: bool, *, recovered: bool) -> Store:
    """The database, after everything that a start reads was read. Raises StoreDamaged, StoreError, OSError."""
    store = Store(folder / DATABASE, network=network)
    try:
        check.after_opening(store.conn)
        _refuse_older(store, folder)
        if not (recovered or store.migrated) and store.next_id() > 1 and _is_empty(folder / changes.NAME):
            # it may be older than what was acknowledged: run folders tell of some of it, and the report of the rest
            raise StoreDamaged(f"the file `{changes.NAME}` beside it is gone, which tells whether anything is missing")
        if removed := staging.remove_unfinished(store, time.time()):
            log.info("%d submissions that were not whole are removed", removed, extra={"event": "withdrawn"})
        reconcile(store, run_root, os.geteuid(), time.time(), deep=False)
        store.keep_changes(folder / changes.NAME)
        if store.next_id() > 1:
            runrecord.remember(run_root, store.next_id() - 1)
    except BaseException:
        store.close()
        raise
    return store


def _is_empty(path: Path) -> bool:
    """Whether nothing is there, or nothing in it."""
    try:
        return path.lstat().st_size == 0
    except FileNotFoundError:
        return True


def last_report(folder: Path) -> Path | None:
    """The report of the newest recovery."""
    return max(folder.glob(f"{DAMAGED}/*/{REPORT}"), default=None)


def _recover_if_needed(folder: Path, run_root: Path, tell: Callable[[str], None]) -> Recovered | None:
    found = _read_mark(folder)
    if found is None:
        why = check.before_opening(folder / DATABASE)
        if why is None and _is_new(folder) and any(_records(run_root)):
            why = "it is gone, and there are run folders"
        if why is None:
            return None
        found = Mark(why)
    return _recover(folder, run_root, found, tell)


def _is_new(folder: Path) -> bool:
    path = folder / DATABASE
    return not path.exists() or path.stat().st_size == 0


def _records(run_root: Path) -> Iterable[Path]:
    """Records of jobs, so that an empty state folder is not taken for a damaged one."""
    for job_id in runrecord.numbers(run_root):
        for number in runrecord.numbers(run_root / str(job_id)):
            if (path := run_root / str(job_id) / str(number) / runrecord.NAME).is_file():
                yield path


def _recover(folder: Path, run_root: Path, found: Mark, tell: Callable[[str], None]) -> Recovered:
    if found.source is None and not found.restore and (folder / DATABASE).is_file():
        salvage.refuse_newer_file(folder / DATABASE)
    log.error("the database is set aside: %s", found.why, extra={"event": "recover"})
    tell(f"the database is set aside ({found.why}), and made anew; that may take a while")
    source = found.source or _set_aside(folder, found)
    aside = folder / DAMAGED / source
    for part in reversed(_PARTS):  # the log first: it must never lie beside a database that it is not of
        (folder / (DATABASE + part)).unlink(missing_ok=True)
    fresh = folder / f"{DATABASE}.new"
    for part in _PARTS:
        Path(f"{fresh}{part}").unlink(missing_ok=True)
    if found.restore:
        shutil.copyfile(folder / RESTORE, fresh, follow_symlinks=False)
        fresh.chmod(0o600)
    report = _build(fresh, aside, run_root, found)
    sync(fresh)
    (folder / changes.NAME).unlink(missing_ok=True)  # it is written anew from the new database
    fresh.replace(folder / DATABASE)
    _write(aside / REPORT, "\n".join(report.lines) + "\n")
    sync(folder)
    (folder / RESTORE).unlink(missing_ok=True)
    (folder / MARK).unlink()
    log.warning("%s", report.summary, extra={"event": "recovered", "report": str(aside / REPORT)})
    return Recovered(f"{report.summary}; {aside / REPORT} tells more", aside / REPORT)


def _set_aside(folder: Path, found: Mark) -> str:
    """Give the files a second name; what has been taken down stays, whatever happens to the first."""
    source = stamp()
    aside = folder / DAMAGED / source
    (folder / DAMAGED).mkdir(mode=0o700, exist_ok=True)
    aside.mkdir(mode=0o700)
    for path in (folder / name for name in (*(DATABASE + part for part in _PARTS), *_BESIDE)):
        if not os.path.lexists(path):
            continue
        if path.is_symlink() or not path.is_file():
            path.rename(aside / path.name)
            continue
        try:
            os.link(path, aside / path.name)
        except OSError:  # a file system without links
            shutil.copyfile(path, aside / path.name, follow_symlinks=False)
    sync(aside)
    _write_mark(folder, Mark(found.why, source, found.restore))
    return source


@dataclass(frozen=True, slots=True)
class _Report:
    summary: str
    lines: list[str]


def _build(fresh: Path, aside: Path, run_root: Path, found: Mark) -> _Report:
    now = time.time()
    read = _read(aside / DATABASE, needed=not found.restore)
    kept = changes.read(aside / changes.NAME)
    conn = connect(fresh)
    with contextlib.closing(conn):
        conn.execute("PRAGMA journal_mode = DELETE")
        conn.execute("PRAGMA synchronous = OFF")  # it has no name yet; it is synced as a whole at the end
        if not found.restore and read is not None:
            migrate(conn, to=read.version)
            conn.execute("BEGIN IMMEDIATE")
            salvage.insert(conn, read)
            conn.execute("COMMIT")
        migrate(conn)
    store = Store(fresh, network=True)
    with contextlib.closing(store):
        staging.remove_unfinished(store, now)
        mended = leave_out(store)
        replayed = 0 if found.restore else replay(store, kept, mixed=read is None or bool(read.notes))
        if found.restore:
            _drop_pruned(store, kept.removed | _pruned(read), now)
        told = reconcile(store, run_root, os.geteuid(), now, deep=True)
        mixed = not found.restore and read is not None and bool(read.notes)
        acknowledged = () if found.restore else kept.rows
        # last, for what waits depends on the others
        mend(store, run_root, now, mended, mixed=mixed, acknowledged=acknowledged)
        last = max(_last_id(store, read), kept.last_id)
        with store.transaction():
            store.start_ids_after(last)
            skipped: list[list[int]] = []
            if not kept.whole and (upto := runrecord.reserved(run_root)) > last:
                # nothing vouches for the last id: those that may have been given out are not given out again
                store.start_ids_after(upto)
                skipped = [[last + 1, upto]]
            report = _tell(store, read, mended, told, replayed, last, found, aside, kept.removed)
            for first, end in skipped:
                report.lines.append(
                    f"Nothing tells whether these ids were given out, and they are not now: {first}-{end}"
                )
            data = {"note": report.summary, "report": str(aside / REPORT), **({"ids": skipped} if skipped else {})}
            store.add_events([Event(now, Kind.RECOVERED, data=data)])
    if mended.left_out:
        _write(aside / "rows.jsonl", "".join(json.dumps(row, default=repr) + "\n" for row in mended.left_out))
    return report


def _pruned(read: salvage.Found | None) -> set[int]:
    """Ids that were removed on purpose from the database that is set aside, as its events tell."""
    ids: set[int] = set()
    for row in () if read is None else read.rows["events"].values():
        if Kind.PRUNED.value in row:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                spans = json.loads(str(row[5])).get("ids", ())
                ids.update(job_id for first, last in spans for job_id in range(first, last + 1))
    return ids


def _drop_pruned(store: Store, pruned: set[int], now: float) -> None:
    """What had not ended in the copy, and ended and was removed since: no run folder tells that it has run."""
    gone = [job.id for job in store.every_job() if job.id in pruned and not job.ended]
    with store.transaction():
        store.prune(gone, now)


def _read(path: Path, *, needed: bool) -> salvage.Found | None:
    """What is in a database; None where there is none, or where it need not be known and a newer gpuq wrote it."""
    try:
        return salvage.read(path) if path.is_file() and not path.is_symlink() else None
    except FileNotFoundError:
        return None
    except StoreError:
        if needed:
            raise
        return None


def _last_id(store: Store, read: salvage.Found | None) -> int:
    """The largest id that anything names."""
    seen = [store.next_id() - 1]
    for table, column in (
        *(("jobs", "id"), ("events", "job_id"), ("events", "last_id"), ("attempts", "job_id")),
        ("submissions", "last_id"),
    ):
        seen.append(store.conn.execute(f"SELECT coalesce(max({column}), 0) FROM {table}").fetchone()[0])
    if read is not None:
        seen += [read.last_id, max(read.rows["jobs"], default=0)]
    return max(seen)


def _tell(
    store: Store,
    read: salvage.Found | None,
    mended: Mended,
    told: Reconciled,
    replayed: int,
    last: int,
    found: Mark,
    aside: Path,
    pruned: set[int],
) -> _Report:
    states = Counter(row["state"] for row in store.conn.execute("SELECT state FROM jobs"))
    ids = [row["id"] for row in store.conn.execute("SELECT id FROM jobs ORDER BY id")]
    removed = pruned | {n for first, end in store.pruned() for n in range(first, end + 1)}
    missing = _gaps(sorted({*ids, *removed}), last)
    total = sum(states.values())
    running = any(states[state] for state in ACTIVE)
    lost = sum(b - a + 1 for a, b in missing)
    verb = "restored" if found.restore else "recovered"
    summary = f"the database was {verb} ({found.why}): {total:,} {'job' if total == 1 else 'jobs'}"
    if told.rebuilt or told.given:
        summary += f", {len(told.rebuilt) + len(told.given):,} with the help of their run folders"
    if lost:
        summary += f"; {lost:,} ids are missing" if lost > 1 else "; 1 id is missing"
    lines = [
        f"gpuq set this database aside and {verb} what could be read.",
        "",
        f"why:                    {found.why}",
        f"the files as found:     {aside}",
        f"jobs now:               {total:,} ({', '.join(f'{n:,} {s}' for s, n in sorted(states.items())) or 'none'})",
        *(["                        (whether those that run still do is looked at next)"] if running else []),
    ]
    if read is not None:
        lines += [
            f"pages:                  {read.pages:,} there, {read.pages_told:,} by its own account",
            f"rows read:              {', '.join(f'{len(rows):,} {name}' for name, rows in read.rows.items())}",
            f"rows no path led to:    {read.orphans:,}",
            *(f"note:                   {note}" for note in read.notes),
        ]
    lines += [
        f"told by the changes:    {replayed:,}",
        f"known from run folders: {_spans(told.rebuilt)}",
        f"had run, unknown to it: {_spans(told.given)}",
        f"run folder, no record:  {_spans(told.unknown)}",
        f"rows that made no sense: {len(mended.left_out):,}" + (" (rows.jsonl)" if mended.left_out else ""),
        f"ids without a job:      {', '.join(_span(a, b) for a, b in missing) or 'none'}",
        *(f"held: job {job_id}: {note}" for job_id, note in mended.held.items()),
        "",
        "An id without a job: its row could not be read and it has no run folder. It had not run, or `gpuq prune` or",
        "somebody else removed its folder.",
        "Its number is not given out again.",
    ]
    return _Report(summary, lines)


def _gaps(ids: list[int], last: int) -> list[tuple[int, int]]:
    """Ranges of ids up to `last` that are not there."""
    gaps, expected = [], 1
    for job_id in [*ids, last + 1]:
        if job_id > expected:
            gaps.append((expected, job_id - 1))
        expected = job_id + 1
    return gaps


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _spans(ids: Iterable[int]) -> str:
    return ", ".join(str(job_id) for job_id in sorted(ids)) or "none"


def _read_mark(folder: Path) -> Mark | None:
    try:
        fields = json.loads((folder / MARK).read_bytes())
        found = Mark(str(fields["why"]), fields["source"], fields["restore"] is True)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Mark("it was marked as damaged")
    if found.source is not None and not (folder / DAMAGED / found.source).is_dir():
        return Mark(found.why, None, found.restore)
    return found if not found.restore or (folder / RESTORE).is_file() else Mark(found.why, found.source)


def _write_mark(folder: Path, found: Mark) -> None:
    unfinished = folder / f"{MARK}.new"
    _write(unfinished, json.dumps({"why": found.why, "source": found.source, "restore": found.restore}))
    unfinished.replace(folder / MARK)
    sync(folder)


def _write(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
