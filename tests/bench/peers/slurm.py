"""Slurm, all of it on this host and in a folder of its own, in the form that starts jobs soonest. It needs root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable

from tests.bench.measure import Unfit
from tests.bench.peers.base import PATIENCE, Peer, ran
from tests.bench.peers.local import free_port
from tests.bench.stamps import Stamps

#: slurm.conf(5): no accounting, no delay between two looks at the queue, two CPUs.
_CONFIG = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Slurm(Peer):
    name, program, package = "Slurm", "slurmctld", "Debian: slurm-wlm munge"

    @classmethod
    def lacks(cls) -> str | None:
        for program in ("slurmctld", "slurmd", "munged", "sbatch"):
            if shutil.which(program) is None:
                return f"{program} is not installed ({cls.package})"
        return "it needs root" if os.geteuid() else None

    def start(self) -> None:
        self._servers: list[subprocess.Popen[bytes]] = []
        self._munge()
        config = self.folder / "slurm.conf"
        ports = {"controller": free_port(), "node": free_port()}
        config.write_text(_CONFIG.format(host=socket.gethostname(), folder=self.folder, **ports))
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.env["SLURM_CONF"] = str(config)
        self._serve("slurmctld", "-D", "-f", str(config))
        self._serve("slurmd", "-D", "-f", str(config), "-N", socket.gethostname())
        self._until("sinfo", "-h", "-o", "%T", says="idle")

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._serve("munged", "--foreground", "--force", *(f"--{o}={self.folder}/munge.{n}" for o, n in files.items()))

    def _serve(self, *argv: str) -> None:
        null = subprocess.DEVNULL
        self._servers.append(subprocess.Popen(argv, env=self.env, stdin=null, stdout=null, stderr=null))

    def _until(self, *argv: str, says: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(argv, env=self.env, capture_output=True, text=True)
            if says in done.stdout:
                return
            if time.monotonic() > deadline:
                raise Unfit(f"{argv[0]} says {done.stdout.strip() or done.stderr.strip()!r:.150}, not {says!r}")
            time.sleep(0.1)

    def stop(self) -> None:
        for server in reversed(self._servers):
            server.terminate()
        for server in self._servers:
            server.wait(PATIENCE)

    def _sbatch(self, *words: str) -> list[str]:
        return ["sbatch", "-o", "/dev/null", *words]

    def submit(self, argv: list[str]) -> list[str]:
        return self._sbatch("--wrap", " ".join(argv))

    def submit_whole(self, argv: list[str]) -> list[str]:
        return self._sbatch("--exclusive", "--wrap", " ".join(argv))

    def listing(self) -> list[str]:
        return ["squeue"]

    def batches(self, stamps: Stamps) -> dict[str, tuple[int, Callable[[int], None]]]:
        def work(count: int) -> None:
            self.execute(self._sbatch(f"--array=1-{count}", "--wrap", " ".join(stamps.job)))
            ran(stamps, count)

        return {"Slurm --array": (20, work)}
