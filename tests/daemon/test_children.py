"""The daemon's children, by the thousand."""

from __future__ import annotations

import subprocess
import sys

FLOOD = """
import asyncio, os, signal, sys
from gpuq.daemon import children

unraisable = []
sys.unraisablehook = unraisable.append

async def main():
    loop = asyncio.get_running_loop()
    looks = []
    children.look_after = looks.append
    children.attend(loop, lambda: {1})
    for _ in range(5000):  # faster than the loop reads: what tells it of signals is full
        os.kill(os.getpid(), signal.SIGCHLD)
    while not looks:
        await asyncio.sleep(0)
    print(len(unraisable), looks[0] == {1}, len(looks))

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
asyncio.run(main())
"""


def test_signals_that_come_faster_than_they_are_read_do_no_harm() -> None:
    """CPython 3.11 would warn of each, and could hang: see `children.attend`."""
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0 True 1\n", "")


LEFT = """
import asyncio, os, signal, sys
from gpuq.daemon import children

unraisable = []
sys.unraisablehook = unraisable.append
loop = asyncio.new_event_loop()
children.attend(loop, set)
children.leave(loop)
close = loop._close_self_pipe  # between this and the end of its handlers, a loop cannot take a signal

def closed_and_told():
    close()
    os.kill(os.getpid(), signal.SIGCHLD)

loop._close_self_pipe = closed_and_told
loop.close()
print(len(unraisable))
"""


def test_what_ends_while_the_loop_is_closed_does_no_harm() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")
