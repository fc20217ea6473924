"""A job of the chaos test: `job.py TRACE KIND tag=TAG [ARGUMENT]`. It writes down its own life, outside of gpuq.

One line per event, each by one write to a file opened with O_APPEND: it begins, and how it is about to end. Between
the last line and the end it ignores TERM, so that what it said is what it does. Run it with `-I -S`: few imports.
"""

import os
import signal
import sys
import time

LONG = 600.0


def stat_field(pid: int, number: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[number - 3])


class Trace:
    """Lines that all begin with who we are."""

    def __init__(self, path: str, tag: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        env = os.environ
        index = env.get("GPUQ_ARRAY_INDEX", "null")
        self.head = f'"job":{env["GPUQ_JOB_ID"]},"attempt":{env["GPUQ_ATTEMPT"]},"tag":"{tag}","index":{index}'
        self.tag = tag

    def write(self, event: str, more: str = "") -> None:
        line = f'{{"e":"{event}",{self.head},"t":{time.time()!r}{more}}}\n'.encode()
        assert os.write(self.file, line) == len(line)

    def exit(self, code: int) -> None:
        """Leave with this code, now."""
        self.last(f',"exit":{code}')
        os._exit(code)

    def last(self, more: str) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("end", self.tag, flush=True)
        self.write("end", more)


def sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(left)


def sleeper() -> None:
    """In a forked child: go on for long."""
    try:
        sleep(LONG)
    finally:
        os._exit(0)


def background() -> None:
    """A process in a session of its own, whose parent is gone."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleeper()
        os._exit(0)
    os.wait()


def late(trace: Trace, size: str) -> None:
    """Hold GPU memory a while after the start, as programs do; note how full each card then is."""
    sleep(0.3)
    folder = os.environ["FAKE_NVML"] + ".d"
    mine = f"{folder}/{os.getpid()}"
    cards = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    with open(f"{folder}/new-{os.getpid()}", "w") as file:
        file.writelines(f"proc {card} pid={os.getpid()} used={size} type=C\n" for card in cards)
    os.rename(f"{folder}/new-{os.getpid()}", mine)
    for card in cards:
        trace.write("card", f',"uuid":"{card}","used":{in_use(folder, card)}')
    sleep(0.3)
    os.unlink(mine)


def in_use(folder: str, card: str) -> int:
    """Bytes that living processes hold of a card."""
    total = 0
    for name in os.listdir(folder):
        try:
            os.kill(int(name), 0)
            with open(f"{folder}/{name}") as file:
                lines = file.read().splitlines()
        except (ValueError, OSError):
            continue  # not there yet, or not there any more
        total += sum(int(line.split("used=")[1].split()[0]) for line in lines if line.startswith(f"proc {card} "))
    return total


def main() -> None:
    path, kind, tag = sys.argv[1], sys.argv[2], sys.argv[3].removeprefix("tag=")
    argument = sys.argv[4] if len(sys.argv) > 4 else "0"
    trace = Trace(path, tag)
    trace.write("begin", f',"kind":"{kind}","pid":{os.getpid()},"start":{stat_field(os.getpid(), 22)}')
    print("begin", tag, flush=True)
    if kind == "ok":
        sleep(float(argument))
    elif kind == "exit":
        trace.exit(int(argument))
    elif kind == "signal":
        trace.last(f',"signal":{argument}')
        if argument == "15":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), int(argument))
    elif kind == "limit":
        sleep(LONG)
    elif kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleep(LONG)
    elif kind == "background":
        background()
    elif kind == "children":
        for _ in range(50):
            if os.fork() == 0:
                sleeper()
        trace.exit(7)
    elif kind == "oom":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.", flush=True)
        trace.exit(1)
    elif kind == "gpu":
        late(trace, argument)
    elif kind == "gate":
        while not os.path.exists(path + ".open"):
            time.sleep(0.02)
    elif kind == "warned":
        signal.signal(signal.SIGUSR1, lambda *_: trace.exit(9))
        sleep(LONG)
    elif kind == "chatty":
        for number in range(4000):
            os.write(1, b"%07d %s\n" % (number, b"." * 91))
    elif kind == "parricide":
        trace.write("kills-supervisor")
        os.kill(os.getppid(), signal.SIGKILL)
        sleep(LONG)
    trace.exit(0)


if __name__ == "__main__":
    main()
