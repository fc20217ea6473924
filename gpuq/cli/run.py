"""`run`: submit, print the log, exit with the job's code."""

import signal as signals
import time as clock
from contextlib import suppress

from gpuq.cli import options as opt
from gpuq.cli.commands import Typed
from gpuq.cli.common import examples, new_app, tell
from gpuq.cli.follow import Detached, Follower, Signals
from gpuq.cli.outcome import exit_code, sentence
from gpuq.cli.submit import send
from gpuq.client import request
from gpuq.errors import OutputFailed

app = new_app()


@app.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    epilog=examples(
        "gpuq run --vram 10GiB -- python train.py",
        "gpuq run --gpus 0 -- make test && echo passed",
        "gpuq run --gpu-id 1 -- python test_gpu.py",
        "gpuq run --time 10m -- ./bench > result.txt",
    ),
)
def run(
    command: opt.Command = None,
    name: opt.Name = None,
    gpus: opt.Gpus = None,
    vram: opt.Vram = None,
    gpu_type: opt.GpuType = None,
    gpu_min_memory: opt.GpuMinMemory = None,
    gpu_id: opt.GpuId = None,
    exclude_gpu: opt.ExcludeGpu = None,
    spread: opt.Spread = False,
    cpus: opt.Cpus = None,
    ram: opt.Ram = None,
    time: opt.Time = None,
    priority: opt.Priority = 0,
    after: opt.After = None,
    begin: opt.Begin = None,
    hold: opt.Hold = False,
    tag: opt.Tag = None,
    cwd: opt.Cwd = None,
    env: opt.Env = None,
    export: opt.Export = None,
    output: opt.Output = None,
    signal: opt.Signal = None,
    grace: opt.Grace = None,
    log_limit: opt.LogLimit = None,
    retry: opt.Retry = None,
    requeue: opt.Requeue = False,
    preemptible: opt.Preemptible = False,
    queue: opt.Queue = None,
    group: opt.Group = None,
    stop_after: opt.StopAfter = None,
) -> int:
    """Submit a command, print its log, and exit with its code.

    Ctrl-C cancels the job and waits for its end; a second Ctrl-C stops waiting. Ctrl-\\ or closing the terminal
    leaves the job running, as does TERM. The exit code is the job's own, 128+n for a signal or its time limit.
    """
    opt.check_command(command or [], "run")
    resources = opt.Resources(
        name,
        gpus,
        vram,
        cpus,
        ram,
        time,
        priority,
        after or [],
        begin,
        hold,
        tag or [],
        cwd,
        output,
        signal,
        grace,
        log_limit,
        retry or [],
        requeue,
        preemptible,
        gpu_type=gpu_type or [],
        gpu_min_memory=gpu_min_memory,
        gpu_id=gpu_id or [],
        exclude_gpu=exclude_gpu or [],
        spread=spread,
        queue=queue,
        group=group,
        stop_after=stop_after,
    )
    template = opt.make_template(resources, clock.time())
    environment = opt.make_environment(export, env or [])
    with Signals(signals.SIGINT, signals.SIGQUIT, signals.SIGHUP, signals.SIGTERM) as heard:
        job_id, _ = send(template, environment, Typed(command or []))
        attended = Attended(job_id)
        try:
            job = Follower(job_id, signals=heard, on_signal=attended.heard).run()
        except Detached as detached:
            return int(detached.args[0])
        except BrokenPipeError:
            tell(f"nobody reads the output any more; job {job_id} goes on, see `gpuq logs {job_id}`")
            raise
        except OutputFailed as error:
            raise OutputFailed(f"{error.message}; job {job_id} goes on, `gpuq logs -f {job_id}` follows it") from None
    if job["state"] != "succeeded":
        tell(sentence(job))
    return exit_code(job)


class Attended:
    """A job that a person waits for at the terminal."""

    def __init__(self, job_id: int) -> None:
        self._id = job_id
        self._cancelled = False

    def heard(self, number: int) -> None:
        """A signal came. Raises Detached where it means not to wait any longer."""
        if number == signals.SIGINT and not self._cancelled:
            self._cancelled = True
            tell(f"cancelling job {self._id}; Ctrl-C again stops waiting for its end")
            request("cancel", sel={"ranges": [[self._id, self._id]]})
            return
        with suppress(OSError):  # after SIGHUP there is no terminal to say it on
            if number == signals.SIGINT:
                tell(f"no longer waiting; job {self._id} is being cancelled")
            else:
                tell(f"detached; job {self._id} goes on, `gpuq logs -f {self._id}` follows it")
        raise Detached(128 + number)
