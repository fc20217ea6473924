"""Files that outlive a crash, whatever the job did to the run folder, and the JSON in them."""

import errno
import posix as os
import time

#: Known to type checkers without the import of `typing`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Most repairs of a run folder for one file of ours in it.
MAX_REPAIRS = 8
#: Writing fails with these for a while, not for good.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENFILE)


def write_durably(folder: int, name: str, data: bytes) -> None:
    """The whole file or none, also after a power cut, in spite of what the job did to the folder. Raises OSError."""
    for _ in range(MAX_REPAIRS):
        try:
            write_once(folder, name, data)
            return
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                os.fchmod(folder, 0o700)
            elif error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                # A folder stands where the file belongs: it is kept, under another name.
                os.rename(name, f"{name}.{random_name()}.moved", src_dir_fd=folder, dst_dir_fd=folder)
            else:
                raise
    write_once(folder, name, data)


def write_once(folder: int, name: str, data: bytes) -> None:
    """By a temporary name that nobody can have taken before, fsync and rename(2). Raises OSError."""
    temporary = f"{name}.{random_name()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        try:
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def random_name() -> str:
    return os.urandom(8).hex()


def write_result(folder: int, data: bytes) -> None:
    """A full disk is waited out: the result exists nowhere else. The kernel tells nobody when there is room again."""
    while True:
        try:
            write_durably(folder, "result", data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            time.sleep(1.0)
        else:
            return


def to_json(value: "Mapping[str, object] | object") -> str:
    """For the few types that occur here. Text is escaped to ASCII; a lone surrogate stays one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{to_json(key)}:{to_json(item)}" for key, item in value.items()) + "}"
    text = str(value).encode("utf-16-be", "surrogatepass")
    units = [int.from_bytes(text[i : i + 2], "big") for i in range(0, len(text), 2)]
    return '"' + "".join(chr(u) if 32 <= u < 127 and u not in (34, 92) else f"\\u{u:04x}" for u in units) + '"'
