"""Those that read a file of commands and keep no queue: GNU parallel, and xargs, which keeps nothing at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.peers.base import Peer
from tests.bench.stamps import Stamps


class _Stream(Peer):
    def commands(self, count: int) -> Path:
        file = Path(tempfile.mkdtemp(dir=self.folder)) / "commands"
        file.write_text("true\n" * count)
        return file


class Parallel(_Stream):
    name, program, package = "parallel", "parallel", "Debian: parallel"

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:  # noqa: ARG002
        return {
            "parallel -j2, results kept (--joblog)": (5000, self._kept),
            "parallel -j2, nothing kept": (5000, self._bare),
        }

    def _bare(self, count: int) -> None:
        self.execute(["parallel", "--will-cite", "-j2", "-a", str(self.commands(count))])

    def _kept(self, count: int) -> None:
        file = self.commands(count)
        self.execute(["parallel", "--will-cite", "-j2", "--joblog", str(file.with_name("log")), "-a", str(file)])


class Xargs(_Stream):
    name, program, package = "xargs", "xargs", "Debian: findutils"

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:  # noqa: ARG002
        return {
            "xargs -P2 /bin/sh -c, nothing kept": (20_000, self._shell),
            "xargs -P2, no shell, nothing kept": (20_000, self._bare),
        }

    def _shell(self, count: int) -> None:
        self.execute(["xargs", "-P2", "-I{}", "-a", str(self.commands(count)), "/bin/sh", "-c", "{}"])

    def _bare(self, count: int) -> None:
        self.execute(["xargs", "-P2", "-n1", "-a", str(self.commands(count)), "true"])
