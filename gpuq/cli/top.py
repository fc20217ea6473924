"""`top`: a live view. The daemon pushes a frame whenever something changed."""

import os
import select
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuq.cli.common import examples, new_app, on_terminal, print_json
from gpuq.errors import ConnectionLost, GpuqError, UsageError

app = new_app()

#: Signals that end it.
LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds after which elapsed times are drawn anew.
CLOCK = 1.0

#: Values of TERM for a terminal that cannot draw over what it shows (term(7)).
BLIND = ("dumb", "unknown")

Frame = dict[str, Any]


@app.command(
    "top",
    epilog=examples("gpuq top", "gpuq top --once", "gpuq top --svg picture.svg"),
)
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one frame, and leave.")] = False,
    svg: Annotated[str | None, typer.Option("--svg", metavar="FILE", help="Write one frame as an SVG picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one frame as a JSON object.")] = False,
) -> None:
    """Watch GPUs, running jobs and the head of the queue, until q or Ctrl-C.

    A bar per GPU shows what jobs use, what they have claimed and not used yet, foreign use, what is free, and the
    margin. Off a terminal, and on one that cannot move its cursor (TERM=dumb), one frame is printed.
    """
    if svg == "":
        raise UsageError("--svg is empty: name a file")
    if svg is None and not as_json and not once and on_terminal() and os.environ.get("TERM") not in BLIND:
        _live()
        return
    data = _first()
    if as_json:
        print_json(
            "gpuq.top/1",
            **{key: data.get(key) for key in ("gpus", "running", "waiting", "waiting_total", "counts", "note")},
        )
        return
    from gpuq.cli import render

    if svg is not None:
        try:
            Path(svg).write_text(render.svg_frame(data), encoding="utf-8")
        except OSError as error:
            raise GpuqError(f"{svg} cannot be written: {error.strerror}") from None
    elif on_terminal():
        render.print_frame(data)
    else:
        sys.stdout.write(render.plain_frame(data))


def _first() -> Frame:
    from gpuq.client import Client

    with Client.connect() as client:
        return client.request("top")


def _live() -> None:
    from gpuq.cli.follow import PASSING, Signals
    from gpuq.cli.link import Retries
    from gpuq.cli.render import Screen

    retries = Retries()
    with Signals(*LEAVING, *PASSING) as signals, Screen() as screen:
        while True:
            try:
                with retries.connect() as client:
                    client.send("top")
                    _watch(client, screen, signals)
                return
            except ConnectionLost as error:
                retries.lost(error)


def _watch(client: Any, screen: Any, signals: Any) -> None:
    """Draw until the person leaves. Raises ConnectionLost."""
    data: Frame | None = None
    keys = [0] if sys.stdin.isatty() else []
    while True:
        ready: list[int] = []
        if not client.buffered():
            ready, _, _ = select.select([client.socket.fileno(), signals.fd, *keys], [], [], CLOCK)
        if signals.fd in ready and _ends(signals.take(), screen):
            return
        if 0 in ready and _leaves(os.read(0, 64)):
            return
        if client.buffered() or client.socket.fileno() in ready:
            data = client.receive()
        if data is not None:
            screen.show(data)


def _ends(signals: Iterable[int], screen: Any) -> bool:
    """Whether the person leaves. Ctrl-Z stops us with the terminal as it was; `fg` takes it again."""
    heard = set(signals)
    if heard & set(LEAVING):
        return True
    if signal.SIGTSTP in heard:
        screen.give_back()
        former = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here we stop, and go on when somebody says so
        signal.signal(signal.SIGTSTP, former)
    if heard & {signal.SIGTSTP, signal.SIGCONT}:
        screen.take()
    return False


def _leaves(typed: bytes) -> bool:
    """q, or the end of the input."""
    return not typed or b"q" in typed or b"Q" in typed
