"""`sim-job`: a program that uses a simulated GPU's memory as training does: late, and dying when the card is full."""

from typing import Annotated

import typer

from gpuq import units
from gpuq.cli.common import examples, new_app

app = new_app()


@app.command(
    "sim-job",
    epilog=examples(
        "export GPUQ_STATE_DIR=$(mktemp -d) GPUQ_GPUS=sim:2x24GiB",
        "gpuq submit --vram 10GiB -- gpuq sim-job --vram 8GiB --ramp 5s --for 60s",
    ),
)
def sim_job(
    vram: Annotated[
        str, typer.Option("--vram", metavar="SIZE", help="Memory to allocate on each visible GPU.")
    ] = "1GiB",
    ramp: Annotated[
        str | None, typer.Option("--ramp", metavar="TIME", help="Grow to it over this time; at once if not given.")
    ] = None,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="End after this time.")] = "10s",
) -> int:
    """Allocate memory on a simulated GPU, to try gpuq out without real ones.

    When the card is full it ends as CUDA programs do, with an out-of-memory error and exit code 1.
    """
    from gpuq.gpus import simjob

    return simjob.run(
        units.parse_size(vram, "--vram"),
        units.parse_duration(ramp, "--ramp") if ramp is not None else 0.0,
        units.parse_duration(duration, "--for"),
    )
