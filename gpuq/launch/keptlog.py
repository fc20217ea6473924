"""Where the parts of a log with a limit are, for who writes one (`parts.keeper`) and who follows one (`cli.follow`).

Such a log holds the first half of its limit, a line that says how many bytes are left out, and the end of what was
printed: at least a quarter of the limit, at most half. It is rewritten in place, and only behind the first half.
"""

#: A line of one length, whatever the number. While the end is being moved there is a word in the number's place.
MARK = b"\n[gpuq: %20b bytes are left out here by the log's limit]\n"
MARK_SIZE = len(MARK % b"")
MOVING = b"some"
#: What `read_mark` returns then.
MOVED = -1


def head_size(limit: int) -> int:
    """How many bytes of the beginning are kept: the offset of the mark in a log that was empty."""
    return limit // 2


def end_size(limit: int) -> int:
    """How many bytes of the end are kept at least."""
    return limit // 4


def mark(left_out: int | None) -> bytes:
    """The line in the middle; None while the end is being moved."""
    return MARK % (MOVING if left_out is None else b"%d" % left_out)


def read_mark(data: bytes) -> int | None:
    """How many bytes a mark says are left out; MOVED while the end is being moved, None for what is no mark."""
    before, _, after = MARK.partition(b"%20b")
    if len(data) != MARK_SIZE or not data.startswith(before) or not data.endswith(after):
        return None
    number = data[len(before) : -len(after)].strip()
    return MOVED if number == MOVING else int(number) if number.isdigit() else None
