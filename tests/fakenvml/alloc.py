"""Hold memory of a fake GPU, as a job: `alloc.py WHERE SIZE [--after FILE] [--until FILE]`.

WHERE is a UUID, `first-visible` or `all-visible` of CUDA_VISIBLE_DEVICES. The memory is there under this process's
own pid from when the file `--after` exists until `--until` exists, and goes when the process does, however it ends.
Prints `allocated` once it is there. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

UNITS = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


def size(text: str) -> int:
    return int(float(text[:-3]) * UNITS[text[-3:]])


def chosen(where: str) -> list[str]:
    visible = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
    if where == "all-visible":
        return visible
    return visible[:1] if where == "first-visible" else [where]


def wait_for(path: Path | None) -> None:
    while path is not None and not path.exists():
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("where")
    parser.add_argument("size", type=size)
    parser.add_argument("--after", type=Path)
    parser.add_argument("--until", type=Path)
    options = parser.parse_args()
    uuids = chosen(options.where)
    if not uuids:
        print("no GPU is visible", file=sys.stderr)
        return 1
    wait_for(options.after)
    mine = Path(os.environ["FAKE_NVML"] + ".d") / str(os.getpid())
    temporary = mine.with_name(f"new-{os.getpid()}")
    temporary.write_text("".join(f"proc {u} pid={os.getpid()} used={options.size} type=C\n" for u in uuids))
    temporary.rename(mine)
    print("allocated", flush=True)
    try:
        wait_for(options.until)
    finally:
        mine.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
