"""The small ones in C: task-spooler, whose server holds its queue in memory, and nq, which needs no server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

from tests.bench.peers.base import Peer
from tests.bench.stamps import Stamps


class TaskSpooler(Peer):
    name, program, package = "tsp", "tsp", "Debian: task-spooler"

    def start(self) -> None:
        self.env |= {"TS_SOCKET": str(self.folder / "socket"), "TS_SLOTS": "2", "TS_MAXCONN": "20000"}
        self.execute(["tsp", "-S", "2"])

    def stop(self) -> None:
        self.execute(["tsp", "-K"])

    def submit(self, argv: list[str]) -> list[str]:
        return ["tsp", "-n", *argv]

    def submit_whole(self, argv: list[str]) -> list[str]:
        return ["tsp", "-n", "-N", "2", *argv]

    def listing(self) -> list[str]:
        return ["tsp", "-l"]

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:  # noqa: ARG002
        return {"tsp, a command each": (5000, self._batch)}

    def _batch(self, count: int) -> None:
        self.shell('i=0; while [ $i -lt "$1" ]; do tsp -n true; i=$((i+1)); done >/dev/null; tsp -w', str(count))


class Nq(Peer):
    """A folder is a queue with one slot, and jobs wait for the locks of those before them."""

    name, program, package = "nq", "nq", "Debian: nq"
    listing_codes = (0, 1)  # whether all that it lists is done

    def submit(self, argv: list[str]) -> list[str]:
        return ["nq", "-q", *argv]

    submit_whole = submit

    def listing(self) -> list[str]:
        return ["nq", "-t"]

    def start(self) -> None:
        self.env["NQDIR"] = str(self.folder / "queue")

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:  # noqa: ARG002
        return {"nq, a command each, two queues": (2000, self._batch)}

    def _batch(self, count: int) -> None:
        folder = tempfile.mkdtemp(dir=self.folder)
        script = 'i=0; while [ $i -lt "$1" ]; do NQDIR=$2/a nq -q true; NQDIR=$2/b nq -q true; i=$((i+2)); done'
        self.shell(script + "; NQDIR=$2/a nq -w; NQDIR=$2/b nq -w", str(count), folder)
