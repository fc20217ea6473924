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
RESULT = "result"
#: Longer than any result, in bytes.
RESULT_ROOM = 16 * 1024
#: Writing fails with these for a while, not for good.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENFILE)


#: Everything is read into the same 8 KiB: a buffer of its own for each file would touch more memory, and keep it.
#: Only the main thread reads whole files.
BUFFER = memoryview(bytearray(8192))
BUFFERS = (BUFFER,)


def slurp(path: "str | bytes | int") -> bytes:
    """The whole file, by its path or descriptor, with a third of the system calls that `open` makes. Raises OSError."""
    file = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while size := os.readv(file, BUFFERS):
            data += BUFFER[:size]
        return data
    finally:
        os.close(file)


class Draft:
    """A file under a name that nobody can have taken before, until it is put in its place. Raises OSError.

    With `room` so many bytes are set aside on the disk at once, and are there when it is full (posix_fallocate(3)).
    """

    def __init__(self, folder: int, name: str, room: int = 0) -> None:
        self.folder, self.name, self.room = folder, name, room
        self.temporary = f"{name}.{os.urandom(8).hex()}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.file = os.open(self.temporary, flags, 0o600, dir_fd=folder)
        if room:
            try:
                os.posix_fallocate(self.file, 0, room)
            except OSError:
                self.drop()
                raise

    def keep(self, data: bytes) -> None:
        """Write it whole, and put it in its place with fsync(2) and rename(2); may be tried again."""
        found, own = os.stat(self.temporary, dir_fd=self.folder, follow_symlinks=False), os.fstat(self.file)
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            raise FileNotFoundError(errno.ENOENT, "the job put something else there")
        written = 0
        while written < len(data):
            written += os.pwrite(self.file, data[written:], written)
        os.ftruncate(self.file, written)
        os.fsync(self.file)
        os.rename(self.temporary, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        os.close(self.file)
        os.fsync(self.folder)

    def drop(self) -> None:
        os.close(self.file)
        try:  # noqa: SIM105 (contextlib would have to be imported)
            os.unlink(self.temporary, dir_fd=self.folder)
        except OSError:
            pass  # the job was faster


def write_durably(folder: int, name: str, data: bytes, draft: Draft | None = None) -> None:
    """The whole file or none, also after a power cut, in spite of what the job did to the folder. Raises OSError.

    Room that was set aside is used first.
    """
    for _ in range(MAX_REPAIRS):
        try:
            if draft is None:
                draft = Draft(folder, name)
            draft.keep(data)
            return
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                os.fchmod(folder, 0o700)
            elif error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                # A folder stands where the file belongs: it is kept, under another name.
                os.rename(name, f"{name}.{os.urandom(8).hex()}.moved", src_dir_fd=folder, dst_dir_fd=folder)
            elif draft is None or not draft.room:
                if draft is not None:
                    draft.drop()
                raise
            else:
                draft.drop()
                draft = None
    raise OSError(errno.EBUSY, "the run folder is changed all the time")


def reserve(folder: int) -> Draft | None:
    """Room for the result, so that it can be recorded on a disk that the job filled. Raises OSError if it is full now.

    None where there can be none: the result is then written as any file.
    """
    try:
        return Draft(folder, RESULT, RESULT_ROOM)
    except OSError as error:
        if error.errno in FULL:
            raise
        return None


def write_result(folder: int, data: bytes, draft: Draft | None) -> None:
    """A full disk is waited out: the result exists nowhere else. The kernel tells nobody when there is room again."""
    while True:
        try:
            write_durably(folder, RESULT, data, draft)
        except OSError as error:
            if error.errno not in FULL:
                raise
            draft = None
            try:
                os.unlink("../../../reserve", dir_fd=folder)  # room that the daemon keeps in the state folder
            except OSError:
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
        text = ""
        for key, item in value.items():
            text += f"{',' if text else '{'}{to_json(key)}:{to_json(item)}"
        return text + "}" if text else "{}"
    plain = str(value)
    if plain.isascii() and plain.isprintable() and '"' not in plain and "\\" not in plain:
        return f'"{plain}"'
    data = plain.encode("utf-16-be", "surrogatepass")
    units = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
    return '"' + "".join(chr(u) if 32 <= u < 127 and u not in (34, 92) else f"\\u{u:04x}" for u in units) + '"'
