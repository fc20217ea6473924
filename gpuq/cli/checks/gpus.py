"""Checks of GPUs, their driver and its device files."""

import grp
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from gpuq import config
from gpuq.cli.checks.check import FAIL, OK, WARN, Check
from gpuq.errors import GpuqError
from gpuq.model import Driver, Readings, Settings
from gpuq.units import format_duration, format_size

#: Seconds that a daemon may take to answer, beside the driver.
ANSWER = 5.0


def check_gpus() -> Iterable[Check]:
    """Read the GPUs once. NVML is left to another process: a driver may crash it, or never answer."""
    spec = os.environ.get("GPUQ_GPUS")
    if spec:
        from gpuq.gpus.source import open_source

        try:
            yield from _gpu_checks(open_source(spec, look_only=True).read())
        except GpuqError as error:
            yield Check("GPUs", FAIL, error.message)
        return
    from gpuq.gpus.apart import crash_text, read_apart

    patience = _nvml_patience()
    found = read_apart(patience)
    if found is None:
        text = f"NVML has not answered for {format_duration(patience)}: GPU jobs wait until it does"
        yield Check("GPUs", FAIL, text, "`dmesg | grep -i -e nvrm -e xid` may tell why; often only a reboot helps")
    elif isinstance(found, int):
        text = f"{crash_text(found)}; the daemon tries it again by itself, and CPU jobs go on"
        yield Check("GPUs", FAIL, text, "`gpuq daemon restart` has it tried at once")
    else:
        yield from _gpu_checks(found)
        yield from _remembered({gpu.uuid for gpu in found.gpus}, patience)


def _remembered(listed: Collection[str], patience: float) -> Iterable[Check]:
    """GPUs that a daemon which runs has seen, and that the driver lists no longer."""
    from gpuq.client import Client

    try:
        with Client.connect(start=False) as client:
            client.socket.settimeout(patience + ANSWER)
            told = client.request("gpus")["gpus"]
    except GpuqError:  # which the check of the daemon tells
        return
    for gpu in told:
        if gpu["uuid"] not in listed and not gpu["available"]:
            yield Check(
                f"GPU {gpu['uuid']}",
                FAIL,
                f"{gpu['name']}: {gpu['fault']}; the daemon has seen it",
                "`dmesg | grep -i xid` tells more; a reboot often brings it back",
            )


def _nvml_patience() -> float:
    """Seconds after which a driver counts as silent; the default where the settings cannot be read, which is told."""
    try:
        return config.load_settings().nvml_patience
    except GpuqError:
        return Settings().nvml_patience


def _gpu_checks(readings: Readings) -> Iterable[Check]:
    if readings.driver is Driver.NONE:
        yield Check("GPUs", OK, "no NVIDIA driver on this machine: jobs run on its CPUs")
        return
    if readings.driver is Driver.BROKEN:
        yield Check(
            "GPUs",
            FAIL,
            readings.fault or "the driver does not work",
            "does `nvidia-smi` work? after an upgrade of the driver, reboot",
        )
        return
    version = f"version {readings.version or 'unknown'}"
    if readings.gpus:
        yield Check("driver", OK, f"{version}, {len(readings.gpus)} GPU(s)")
    else:
        fix = "`lspci | grep -i nvidia` tells whether the host sees one, `dmesg | grep -i nvrm` why the driver does not"
        yield Check("driver", WARN, f"{version}, and it lists no GPU", fix)
    yield from device_checks(sorted(Path("/dev").glob("nvidia*")))
    for gpu in readings.gpus:
        name = f"GPU {gpu.index}"
        if gpu.fault is not None:
            yield Check(
                name,
                FAIL,
                f"{gpu.name}: {gpu.fault}",
                "`dmesg | grep -i xid` tells more; a reset or reboot brings it back",
            )
        elif not gpu.told:
            yield Check(
                name,
                WARN,
                f"{gpu.name}: the driver does not tell which process uses how much memory (a container, WSL or vGPU?)",
                "jobs then count as what they claim: claim with --vram what they really need",
            )
        else:
            yield Check(name, OK, f"{gpu.name}, {format_size(gpu.used)} of {format_size(gpu.total)} used")


def device_checks(devices: Iterable[Path]) -> Iterable[Check]:
    """Whether a job may open the driver's devices: NVML needs fewer of them than CUDA does."""
    closed = [path for path in devices if path.is_char_device() and not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        found = closed[0].stat()
        try:
            group = grp.getgrgid(found.st_gid).gr_name
        except KeyError:
            group = str(found.st_gid)
        yield Check(
            "device files",
            FAIL,
            f"{', '.join(map(str, closed))} may not be read and written by you: jobs cannot use the GPUs",
            f"`sudo usermod -aG {group} $USER` and log in again, where that group may",
        )
