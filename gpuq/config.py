"""Where things are (state folder, config file) and what the user set. Reads files and variables; writes nothing
but the state folder itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuq.errors import NotAllowed, StateFolderError, UsageError
from gpuq.units import format_duration, format_size, parse_duration, parse_size

if TYPE_CHECKING:  # the vocabulary takes 15 ms to import, which `submit` and `list` need not wait for
    from gpuq.model import Order, OverClaim, Settings


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$GPUQ_STATE_DIR`, or `$XDG_STATE_HOME/gpuq/HOSTNAME`: homes are shared between hosts, daemons are not."""
    override = environ.get("GPUQ_STATE_DIR")
    if override:
        return _absolute("GPUQ_STATE_DIR", override)
    base = environ.get("XDG_STATE_HOME")
    root = Path(base) if base and os.path.isabs(base) else _home(environ) / ".local" / "state"
    return root / "gpuq" / socket.gethostname()


def _absolute(name: str, path: str) -> Path:
    try:
        return Path(os.path.abspath(path))
    except FileNotFoundError:
        raise UsageError(
            f"{name} {path!r} is named from this folder, which has been removed; cd to another, or give the whole path"
        ) from None


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    base = environ.get("XDG_CONFIG_HOME")
    root = Path(base) if base and os.path.isabs(base) else _home(environ) / ".config"
    return root / "gpuq" / "config.toml"


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME")
    if home and os.path.isabs(home):
        return Path(home)
    import pwd

    return Path(pwd.getpwuid(os.geteuid()).pw_dir)


def check_state_dir(path: Path, *, create: bool, write: bool = True) -> None:
    """The folder is a real folder, ours, and 0700, and can be written if `write` says so. Raises NotAllowed for
    somebody else's, StateFolderError; FileNotFoundError without `create`."""
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateFolderError(
                f"the state folder {path} cannot be made: {error.strerror}; "
                "set GPUQ_STATE_DIR to a folder of yours that can be written"
            ) from None
    try:
        found = path.lstat()
    except PermissionError as error:
        raise NotAllowed(f"the state folder {path} cannot be looked at: {error.strerror}") from None
    except NotADirectoryError as error:
        raise StateFolderError(f"the state folder {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
        raise StateFolderError(f"the state folder {path} is {kind}; set GPUQ_STATE_DIR to a folder of yours")
    if found.st_uid != os.geteuid():
        raise NotAllowed(
            f"the state folder {path} belongs to uid {found.st_uid}, and you are uid {os.geteuid()}; "
            "set GPUQ_STATE_DIR to a folder of yours"
        )
    _refuse_other_use(path, found)
    if write and is_readonly(path):
        raise StateFolderError(
            f"the state folder {path} is on a file system that is mounted read-only; mount it for writing, or set "
            "GPUQ_STATE_DIR to a folder elsewhere"
        )
    if write and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StateFolderError(f"the state folder {path} is not writable; chmod 700 it, or set GPUQ_STATE_DIR")
    if found.st_mode & 0o077 and not is_readonly(path):
        path.chmod(0o700)


def is_readonly(path: Path) -> bool:
    """Whether the file system of this path takes no writes (statvfs(3))."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


#: Version of the database's schema: how many migrations there are (`store/migrations.py`).
SCHEMA = 12
#: What is in a state folder from the first start on.
_MARKS = ("sock", "daemon.lock", "daemon.pid", "daemon.log", "start.lock", "queue.db", "damaged")


def _refuse_other_use(path: Path, found: os.stat_result) -> None:
    """A folder that many use, or that holds other things, is not made ours. Raises StateFolderError."""
    advice = "set GPUQ_STATE_DIR to a new folder, or an empty one"
    if found.st_mode & stat.S_ISVTX:
        raise StateFolderError(f"the state folder {path} is shared with others (sticky); {advice}")
    with contextlib.suppress(OSError):
        if any(os.path.lexists(path / name) for name in _MARKS):
            return
        with os.scandir(path) as entries:
            other = next(entries, None)
        if other is not None:
            raise StateFolderError(f"the state folder {path} holds other things ({other.name!r}); {advice}")


#: Logs of the daemon that are kept beside the one that grows.
LOGS_KEPT = 3


def log_files(folder: Path) -> list[Path]:
    """Where the daemon of this folder keeps its own log, the oldest first; the last is the one that grows."""
    return [folder / f"daemon.log.{number}" for number in range(LOGS_KEPT, 0, -1)] + [folder / "daemon.log"]


#: The names of the files there begin with this.
CLAIMS_PREFIX = "gpuq-claims."


def claims_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$GPUQ_CLAIMS_DIR`, or /tmp: where the daemons of this host tell each other what they claim.

    It is root's and sticky, so that nobody can remove another's files. logind.conf(5) has a user's files in /dev/shm
    removed at logout (RemoveIPC), and a folder of our own making would belong to whoever came first.
    """
    return Path(os.path.abspath(environ.get("GPUQ_CLAIMS_DIR") or "/tmp"))


def claims_dir_fault(path: Path) -> str | None:
    """Why claims cannot be shared through this folder, None if they can."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return f"{path}: {error.strerror}"
    try:
        return folder_fault(path, os.fstat(fd))
    finally:
        os.close(fd)


def folder_fault(path: Path, found: os.stat_result) -> str | None:
    """The same of an open folder."""
    if found.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to uid {found.st_uid}, not to root"
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        return f"others can remove files from {path}, which is not sticky (mode {stat.S_IMODE(found.st_mode):o})"
    return None


#: sockaddr_un holds 108 bytes with the final NUL (unix(7)).
MAX_SOCKET_PATH = 107


class socket_address:
    """The socket's address while the block runs; through /proc/self/fd where the path is too long for one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1

    def __enter__(self) -> str:
        path = str(self._folder / "sock")
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        self._fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/sock"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def filesystem_type(path: Path, mountinfo: str) -> str:
    """The file system that `path` is on, from the text of /proc/self/mountinfo (proc(5)); `?` if none matches."""
    best, kind = -1, "?"
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        if (path == Path(mount) or Path(mount) in path.parents) and len(mount) >= best:
            best, kind = len(mount), right.split()[0]
    return kind


#: File systems on which WAL and flock are not safe between hosts, or not at all.
NETWORK_FILESYSTEMS = frozenset(
    "nfs nfs4 cifs smb3 smbfs ceph lustre gpfs beegfs afs glusterfs fuse.glusterfs fuse.sshfs 9p panfs pvfs2".split()
)


def on_network(path: Path) -> bool:
    try:
        text = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return False
    return filesystem_type(path, text) in NETWORK_FILESYSTEMS


# --- settings -------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One setting: how it is read, how it is shown, and what it means."""

    parse: Callable[[str], Any]
    show: Callable[[Any], str]
    doc: str


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(f"{text!r} is not a percentage from 0 to 100")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise UsageError(f"{text!r} is not a count")
    return int(text)


def _over_claim(text: str) -> OverClaim:
    from gpuq.model import OverClaim

    try:
        return OverClaim(text)
    except ValueError:
        raise UsageError(f"{text!r} is neither 'tell' nor 'kill'") from None


def _order(text: str) -> Order:
    from gpuq.model import Order

    try:
        return Order(text)
    except ValueError:
        raise UsageError(f"{text!r} is none of {', '.join(repr(str(one)) for one in Order)}") from None


def _time_or_zero(text: str) -> float:
    return 0.0 if text.strip() == "0" else parse_duration(text)


def _size_or_zero(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)


_SIZE = (_size_or_zero, format_size)
_TIME = (parse_duration, format_duration)

SETTINGS: Mapping[str, Setting] = {
    "margin": Setting(*_SIZE, "memory kept free on each GPU, beside all claims"),
    "whole_foreign": Setting(*_SIZE, "foreign use that a whole-GPU job tolerates, besides graphics"),
    "whole_foreign_percent": Setting(_number, str, "the same in percent of the GPU; the larger of the two counts"),
    "over_claim": Setting(_over_claim, str, "a job that uses more than its claim: 'tell', or 'kill' it"),
    "grace": Setting(*_TIME, "time between TERM and KILL when a job is ended"),
    "reading_interval": Setting(*_TIME, "time between readings of the GPUs while something runs or waits"),
    "foreign_window": Setting(*_TIME, "foreign use counts as its peak over this time"),
    "settle": Setting(*_TIME, "time after a start or exit on a GPU whose readings are left out of that peak"),
    "nvml_patience": Setting(*_TIME, "a driver that has not answered for this long counts as unavailable"),
    "keep_environment": Setting(*_TIME, "ended jobs keep their environment, for `retry`, this long"),
    "retry_backoff": Setting(*_TIME, "pause before the first retry of a job; each further one is twice as long"),
    "order": Setting(_order, str, "who starts when the first in the queue cannot: 'easy', 'fifo' or 'fit-first'"),
    "ageing": Setting(_time_or_zero, format_duration, "waiting that outweighs one point of priority; 0 for none"),
    "reserve_after": Setting(
        _time_or_zero, format_duration, "a job whose start nobody can foresee has GPUs kept free after this long"
    ),
    "preempt_after": Setting(_time_or_zero, format_duration, "a preemptible job runs this long before it gives way"),
    "list_rows": Setting(_count, str, "rows that `list` shows on a terminal"),
    "default_gpus": Setting(_count, str, "`--gpus` where it is not given (default: 1 where there are GPUs)"),
    "default_vram": Setting(parse_size, format_size, "`--vram` where it is not given (default: whole GPUs)"),
    "default_time": Setting(*_TIME, "`--time` where it is not given (default: no limit)"),
}


class Found(NamedTuple):
    """A setting's value and where it comes from: `default`, the file's path, or the variable's name."""

    value: Any
    source: str


def find_settings(environ: Mapping[str, str] = os.environ) -> dict[str, Found]:
    """Every setting with its source; variables win over the file. Raises UsageError naming file or variable."""
    from gpuq.model import Settings

    defaults = Settings()
    found = {name: Found(getattr(defaults, name), "default") for name in SETTINGS}
    return found | find_given(environ)


def find_given(environ: Mapping[str, str] = os.environ) -> dict[str, Found]:
    """Only the settings that differ from their defaults because the user said so. Raises as `find_settings`."""
    found: dict[str, Found] = {}
    path = config_file(environ)
    for key, value in _read_toml(path).items():
        setting = SETTINGS.get(key)
        if setting is None:
            import difflib

            near = difflib.get_close_matches(key, SETTINGS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(SETTINGS)}"
            raise UsageError(f"{path}: there is no setting {key!r}{hint}")
        found[key] = Found(_parse(setting, value, f"{path}: {key}"), str(path))
    for key, setting in SETTINGS.items():
        name = f"GPUQ_{key.upper()}"
        if environ.get(name):
            found[key] = Found(_parse(setting, environ[name], name), name)
    return found


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    from gpuq.model import Settings

    return Settings(**{name: found.value for name, found in find_settings(environ).items()})


def _parse(setting: Setting, value: object, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{where} = {value!r}: a string or a number belongs here")
    try:
        return setting.parse(str(value))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    import tomllib

    try:
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
