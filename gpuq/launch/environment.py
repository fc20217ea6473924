"""The environment of a job: the submitter's, with the GPUs it was given and who it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from gpuq.model import Job


def job_environment(submitted: Mapping[str, str], job: Job, run_dir: str, state_dir: str) -> dict[str, str]:
    """What the job's program sees.

    GPUs are named by UUID, because an index means one card to NVML and another to CUDA unless the order is set, and
    an empty CUDA_VISIBLE_DEVICES hides them all (CUDA C++ Programming Guide, "CUDA Environment Variables").
    """
    env = {name: value for name, value in submitted.items() if name not in _OURS}
    env["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    env["GPUQ_GPU_COUNT"] = str(len(job.gpus))
    # a log that can be followed: Python holds back what it prints to a file
    env.setdefault("PYTHONUNBUFFERED", "1")
    env["GPUQ_JOB_ID"] = str(job.id)
    env["GPUQ_ATTEMPT"] = str(job.attempt)
    env["GPUQ_JOB_DIR"] = f"{run_dir}/work"
    env["GPUQ_METRICS"] = f"{run_dir}/metrics.jsonl"
    env["GPUQ_STATE_DIR"] = state_dir
    if job.array is not None:
        env["GPUQ_ARRAY_ID"] = str(job.array.array_id)
        env["GPUQ_ARRAY_INDEX"] = str(job.array.index)
    return env


#: A job submitted from within a job must not pass for its parent.
_OURS = frozenset(
    f"GPUQ_{name}"
    for name in ("JOB_ID", "ATTEMPT", "JOB_DIR", "METRICS", "GPU_COUNT", "STATE_DIR", "ARRAY_ID", "ARRAY_INDEX")
)


def log_path(job: Job, run_dir: str) -> str:
    """Where the attempt writes: `--output` with Slurm's %j id, %a index, %A array id, %x name, or the run folder."""
    if job.output is None:
        return f"{run_dir}/log"
    values = {"j": str(job.id), "x": job.name.replace("/", "_"), "%": "%", "a": "0", "A": str(job.id)}
    if job.array is not None:
        values |= {"a": str(job.array.index), "A": str(job.array.array_id)}
    path, rest = "", job.output
    while rest:
        before, percent, rest = rest.partition("%")
        path += before
        if percent:
            path += values.get(rest[:1], "%" + rest[:1])
            rest = rest[1:]
    return path if path.startswith("/") else f"{job.cwd.rstrip('/')}/{path}"
