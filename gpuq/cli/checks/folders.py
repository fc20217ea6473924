"""Checks of the state folder: whose it is, what it is on, its files, the database, the room left, the neighbours'."""

import os
import pwd
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from gpuq import config
from gpuq.cli.checks.check import FAIL, OK, WARN, Check
from gpuq.errors import GpuqError
from gpuq.model import GiB, MiB
from gpuq.units import format_size

#: Less free space than this is worth a warning, and with less than the second nothing new is taken.
LITTLE_SPACE, NO_SPACE = 1 * GiB, 16 * MiB
#: Fewer files than this that may still be made are worth a warning: an attempt makes about ten.
FEW_FILES = 10_000
#: A database is looked through for so long at most, in seconds.
PATIENCE = 3.0
#: More files than this that look like one user's claims are none that gpuq made.
MANY_CLAIM_FILES = 1000
#: Files of the state folder that hold what is nobody else's business.
PRIVATE = ("sock", "queue.db", "queue.db-wal", "queue.db-shm", "daemon.log", "daemon.lock", "jobs", "nvml")


def check_state() -> Iterable[Check]:
    folder = config.state_dir()
    try:
        mode = stat.S_IMODE(folder.lstat().st_mode)
        config.check_state_dir(folder, create=False)
    except FileNotFoundError:
        yield from _not_yet(folder)
        return
    except GpuqError as error:
        yield Check("state folder", FAIL, error.message)
        return
    if mode & 0o077:
        text = f"{folder} was open to others ({mode:04o}); it is 0700 now, as every command makes it"
        yield Check("state folder", WARN, text, "find out what opened it: others could read logs meanwhile")
    else:
        yield Check("state folder", OK, f"{folder}, ours alone (0700)")
    yield from _file_system(folder)
    yield from check_files(folder)


def _not_yet(folder: Path) -> Iterable[Check]:
    parent = next(p for p in folder.parents if p.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        yield Check("state folder", OK, f"{folder}, made with the first job")
        yield from _file_system(parent)
    else:
        yield Check(
            "state folder",
            FAIL,
            f"{folder} cannot be made: {parent} is not writable",
            "set GPUQ_STATE_DIR to a folder of yours",
        )


def _file_system(folder: Path) -> Iterable[Check]:
    kind = config.filesystem_type(folder, Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    if config.on_network(folder):
        yield Check(
            "file system",
            WARN,
            f"{kind}, a network file system: the database uses a rollback journal there, which is slower",
            "set GPUQ_STATE_DIR to a folder on a local disk",
        )
    else:
        yield Check("file system", OK, kind)
    yield room("disk", folder)
    runs = Path("/var/tmp")
    if config.on_network(folder) and os.stat(runs).st_dev != os.stat(folder).st_dev:
        yield room("disk of run folders", runs)


def room(name: str, folder: Path) -> Check:
    """How much may still be written on the file system of a folder, and how many files made."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    fix = "free some: `gpuq prune --older 30d` removes ended jobs and their logs; or set GPUQ_STATE_DIR"
    if found.f_flag & os.ST_RDONLY:
        return Check(name, FAIL, f"the file system of {folder} is mounted read-only", "`dmesg` may tell why")
    if free < NO_SPACE:
        return Check(name, FAIL, f"{format_size(free)} free: no submits are taken", fix)
    if free < LITTLE_SPACE:
        return Check(name, WARN, f"{format_size(free)} free", fix)
    if found.f_files and found.f_favail < FEW_FILES:
        return Check(name, WARN, f"only {found.f_favail:,} files may still be made (inodes)", fix)
    return Check(name, OK, f"{format_size(free)} free")


def check_files(folder: Path) -> Iterator[Check]:
    """Whether what is in the folder is ours, closed to others, and what it should be."""
    bad = [text for name in PRIVATE if (text := _fault(folder / name)) is not None]
    if bad:
        yield Check("files", FAIL, "; ".join(bad), "move away what is not gpuq's; `chmod go-rwx` the rest")


def _fault(path: Path) -> str | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    expected = {"sock": stat.S_IFSOCK, "jobs": stat.S_IFDIR}.get(path.name, stat.S_IFREG)
    if stat.S_IFMT(found.st_mode) != expected:
        return f"{path} is not what gpuq made ({stat.filemode(found.st_mode)})"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to uid {found.st_uid}"
    if found.st_mode & 0o077:
        return f"{path} is open to others ({stat.S_IMODE(found.st_mode):04o})"
    return None


def check_database() -> Iterable[Check]:
    """Whether the database can be read, and its pages are whole; a large one is looked through only in part."""
    path = config.state_dir() / "queue.db"
    again = (
        "`gpuq daemon start` goes on with it; if that fails, `gpuq db restore FILE` goes on with a copy (`backups/`)"
    )
    if (config.state_dir() / "recover").exists():
        yield Check("database", FAIL, f"the recovery of {path} is not finished; the files are in `damaged/`", again)
        return
    if not path.exists():
        yield Check("database", OK, "none yet")
        return
    deadline = time.monotonic() + PATIENCE
    try:
        with closing(open_read_only(path)) as conn:
            conn.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            jobs = conn.execute("SELECT count(*) FROM jobs").fetchone()[0]
            version = conn.execute("PRAGMA user_version").fetchone()[0]
            faults = _page_faults(conn)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        faults, jobs, version = [str(error)], 0, 0
    if version > config.SCHEMA:
        text = f"{path} is of version {version}, and this gpuq knows {config.SCHEMA}"
        yield Check(
            "database", FAIL, text, "install the newer gpuq again, or `gpuq db restore FILE` with an older copy"
        )
        return
    if faults:
        yield Check(
            "database",
            FAIL,
            f"{path} is damaged: {faults[0]}",
            "`gpuq daemon restart` sets it aside and recovers what can be read",
        )
    else:
        report = max(config.state_dir().glob("damaged/*/report.txt"), default=None)
        before = "" if report is None else f"; recovered before, see {report}"
        yield Check("database", OK, f"{jobs:,} jobs, {format_size(path.stat().st_size)}{before}")


def _page_faults(conn: sqlite3.Connection) -> list[str]:
    try:
        return [text for (text,) in conn.execute("PRAGMA quick_check(3)") if text != "ok"]
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return []
        raise


def open_read_only(path: Path) -> sqlite3.Connection:
    """The database as it is, without a file being made beside it: a closed one is opened as one that nobody writes."""
    wal = path.with_name(path.name + "-wal")
    how = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True)


def last_event(path: Path) -> float | None:
    """When the last thing happened that the database knows of, in seconds since the epoch; None if that is unknown."""
    with suppress(sqlite3.Error, UnicodeDecodeError, OSError):
        if path.exists():
            with closing(open_read_only(path)) as conn:
                row = conn.execute("SELECT at FROM events ORDER BY id DESC LIMIT 1").fetchone()
                return float(row[0]) if row else None
    return None


def check_neighbours() -> Iterable[Check]:
    """Whether daemons of other users can be told what we claim."""
    folder = config.claims_dir()
    fault = config.claims_dir_fault(folder)
    if fault is not None:
        yield Check(
            "neighbours",
            WARN,
            f"{fault}: other users' gpuq does not know of your claims, nor yours of theirs",
            f"`sudo install -d -m 1777 {folder}`, or set GPUQ_CLAIMS_DIR, for all alike, to such a folder of root's",
        )
        return
    found = claim_files(folder)
    most, count = found.most_common(1)[0] if found else (0, 0)
    if count > MANY_CLAIM_FILES:
        who = _user(most)
        yield Check(
            "neighbours",
            WARN,
            f"{sum(found.values()):,} files in {folder} look like claims, {count:,} of them {who}'s: "
            "each daemon must look at all of them before it starts a job",
            f"have {who} remove them: no gpuq leaves so many behind",
        )
    else:
        yield Check("neighbours", OK, f"the daemons of this host tell each other their claims in {folder}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def claim_files(folder: Path) -> Counter[int]:
    """How many files with names of claims each user has there."""
    found: Counter[int] = Counter()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(config.CLAIMS_PREFIX):
                with suppress(OSError):
                    found[entry.stat(follow_symlinks=False).st_uid] += 1
    return found
