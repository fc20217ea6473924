"""The command: makes a world, lets clients and killer loose in it, drains it, and lets the checker judge."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos import checker
from tests.chaos.clients import Waiters, drain, make_clients
from tests.chaos.evidence import Living, living, read
from tests.chaos.killer import Killer, copy_evidence
from tests.chaos.promises.cards import over_claims
from tests.chaos.tour import tour
from tests.chaos.world import PATIENCE, World


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="daemons to kill")
    parser.add_argument("--minutes", type=float, default=120, help="stop after this long, whatever was killed")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--mode", choices=("random", "points", "both", "tour"), default="both")
    parser.add_argument("--boxes", type=int, choices=(1, 2), default=2, help="queues that share the cards")
    parser.add_argument("--beside", type=Path, default=None, help="the folder of the first of two boxes")
    parser.add_argument("--keep", action="store_true", help="keep the folder, also when all is well")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--gpuq", default=f"{sys.executable} -m gpuq", help="the command line to try")
    options = parser.parse_args(words)
    if options.mode == "tour":
        options.boxes = 1
    return options


def in_a_namespace_of_its_own() -> None:
    """As root, run again where the kernel's boot id can be covered by a file of ours (mount_namespaces(7))."""
    if os.environ.get("GPUQ_CHAOS_NAMESPACE") or os.geteuid() != 0:
        return
    enter = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode == 0:
        os.environ["GPUQ_CHAOS_NAMESPACE"] = "1"
        os.execvp(enter[0], [*enter, sys.executable, "-m", "tests.chaos", *sys.argv[1:]])


def main() -> int:
    options = parse(sys.argv[1:])
    if options.boxes == 1 and options.beside is None:  # two boxes are on one host, and that is rebooted for both
        in_a_namespace_of_its_own()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="gpuq-chaos-"))
    world = World(folder, options.gpuq.split(), options.beside, cgroups=options.beside is not None)
    began = time.monotonic()
    other = start_neighbour(options, seed, folder) if options.boxes == 2 else None
    try:
        broken, figures = (travel if options.mode == "tour" else rage)(world, options, seed)
        figures = {"seed": seed, "seconds": 0, **figures}
        if other is not None:
            broken, figures = with_neighbour(other, folder, broken, figures)
    finally:
        world.close()
        if other is not None:
            other.terminate()
            other.wait()
    figures |= {"seconds": round(time.monotonic() - began), "broken": len(broken)}
    report(broken, figures, as_json=options.json)
    if options.beside is not None:
        pass  # the first box judges the evidence of both, and removes it
    elif broken or options.keep:
        print(f"the evidence is in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 1 if broken else 0


# --- a second box on the same cards ---------------------------------------------------------------


def start_neighbour(options: argparse.Namespace, seed: int, folder: Path) -> subprocess.Popen[str]:
    """The same in a second state folder with a daemon of its own, which shares the cards with the first."""
    (folder / "other").mkdir()
    words = [
        "--kills",
        str(options.kills - options.kills // 2),
        "--minutes",
        str(options.minutes),
        "--mode",
        options.mode,
    ]
    words += ["--clients", str(options.clients), "--seed", str(seed + 1), "--gpuq", options.gpuq]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GPUQ_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", *words, "--beside", str(folder), "--boxes", "1", "--json"],
        env={**env, "TMPDIR": str(folder / "other")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if options.json else None,
        text=True,
    )


def with_neighbour(
    other: subprocess.Popen[str], folder: Path, broken: list[str], figures: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Both boxes' figures, what broke in either, and what they claimed together."""
    out, _ = other.communicate()
    if not out:
        return [*broken, f"the second box broke down: {other.returncode}"], figures
    told = json.loads(out)
    broken += [f"the second box: {line}" for line in told["broken_promises"]]
    copies = [folder / "copy", *(folder / "other").glob("gpuq-chaos-*/copy")]
    boxes = [read(copy) for copy in copies]
    broken += [f"two boxes: no_card_is_over_claimed: {line}" for line in over_claims(boxes)]
    points = {line["name"] for e in boxes for line in e.noted("point")}
    both = {name: value + told[name] for name, value in figures.items() if isinstance(value, int) and name != "seed"}
    faults = dict(sorted((Counter(figures["faults"]) + Counter(told["faults"])).items()))
    return broken, {**figures, **both, "faults": faults, "crash_points": len(points), "boxes": len(boxes)}


# --- one box --------------------------------------------------------------------------------------


def rage(world: World, options: argparse.Namespace, seed: int) -> tuple[list[str], dict[str, Any]]:
    """Clients and killer at once; what broke, and the figures."""
    broken: list[str] = []
    looks = 0

    def judge(copy: Path, alive: Living) -> None:
        nonlocal looks
        looks += 1
        found = checker.check(read(copy), alive, final=False)
        broken.extend(f"after kill {killer.kills}: {line}" for line in found)
        if found:
            copy.rename(world.folder / "first-evidence")
            copy.mkdir()
            stop.set()

    stop = threading.Event()
    waiters = Waiters(world)
    killer = Killer(world, seed, options.mode, judge)
    clients = make_clients(world, waiters, options.clients, seed, stop)
    for client in clients:
        client.thread.start()
    began = told = time.monotonic()

    def tell() -> None:
        """A line each minute, for whoever waits."""
        nonlocal told
        if time.monotonic() - told >= 60 and not options.json:
            told = time.monotonic()
            state = (
                f"{killer.kills} of {options.kills} kills, {sum(killer.faults.values())} faults, looked {looks} times"
            )
            print(f"{(told - began) / 60:5.1f} min: {state}, {len(broken)} promises broken", flush=True)

    killer.run(options.kills // options.boxes, began + options.minutes * 60, stop, tell)
    stop.set()
    for client in clients:
        client.thread.join(PATIENCE)
        if client.thread.is_alive():
            broken.append(f"client {client.thread.name} got no answer for {PATIENCE:.0f} s")
    figures = {"kills": killer.kills, "faults": dict(sorted(killer.faults.items())), "looks": looks + 1}
    return settle(world, waiters, broken, figures)


def travel(world: World, _options: argparse.Namespace, seed: int) -> tuple[list[str], dict[str, Any]]:
    """Every crash point once."""
    waiters = Waiters(world)
    broken, reached = tour(world, waiters, seed)
    return settle(world, waiters, broken, {"kills": reached})


def settle(
    world: World, waiters: Waiters, broken: list[str], figures: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Let everything come to its end, stop the daemon, and judge."""
    stuck = drain(world.journal)
    if stuck is not None:
        broken.append(f"stuck: {stuck}")
    unanswered = waiters.finish(PATIENCE if stuck is None else 1.0)
    if unanswered:
        broken.append(f"unanswered: {unanswered} commands still wait, though no job is left")
    subprocess.run([*world.gpuq, "daemon", "stop"], capture_output=True, check=False)
    world.kill(world.daemons())
    world.note_points()
    copy_evidence(world.folder, world.folder / "copy")
    evidence = read(world.folder / "copy")
    broken += checker.check(evidence, living(world.state), final=True)
    broken += [f"traceback in the daemon's log: {line}" for line in tracebacks(world.state)]
    return broken, {**figures, "waiters": waiters.started, **checker.figures(evidence)}


def tracebacks(state: Path) -> list[str]:
    """The message and the last line of each, from the daemon's log and those that were put aside."""
    found = []
    for path in state.glob("daemon.log*"):
        for line in path.read_bytes().splitlines():
            if b'"trace":' in line:
                told = json.loads(line)
                found.append(f"{told['message']}: {told['trace'].splitlines()[-1]}")
    return found


def report(broken: list[str], figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**figures, "broken_promises": broken}))
        return
    for line in broken:
        print("BROKEN", line)
    print()
    faults = figures.pop("faults", {})
    rows = [(name.replace("_", " "), value) for name, value in figures.items()]
    for name, value in [*rows, *((f"fault: {name}", value) for name, value in faults.items()), *verdict(broken)]:
        print(f"| {name:45} | {value:>9,} |")


#: What a broken promise means, by the part of the checker that found it.
KINDS = {
    "processes escaped": {"no_process_outlives_its_attempt"},
    "jobs lost": {"acknowledged_submits_exist_once", "everything_ended"},
    "attempts doubled": {"attempts_begin_once"},
    "wrong status": {"every_status_is_true", "every_failure_is_named", "states_agree"},
    "cards over-claimed": {"no_card_is_over_claimed"},
    "waits without their answer": {"every_wait_was_answered"},
}


def verdict(broken: list[str]) -> list[tuple[str, int]]:
    """How many promises of each kind were broken."""
    named = [next((kind for kind, names in KINDS.items() if names & set(line.split(": "))), "other") for line in broken]
    return [(kind, named.count(kind)) for kind in (*KINDS, "other")]


if __name__ == "__main__":
    sys.exit(main())
