"""Names of Unix users."""

from __future__ import annotations

import contextlib
import pwd
from functools import cache


@cache
def owner_name(uid: int) -> str:
    """The user's name; the number where there is none."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)
