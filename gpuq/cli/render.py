"""Tables and pictures on a terminal. The only importer of rich, and imported only when stdout is a terminal."""

import errno
import io
import os
import re
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.terminal_theme import MONOKAI
from rich.text import Text

from gpuq.cli import fields
from gpuq.units import format_duration, format_size, printable

if TYPE_CHECKING:
    from gpuq.simulate.gantt import Picture

Object = Mapping[str, Any]

STATE_STYLE = {
    "running": "green",
    "suspended": "yellow",
    "queued": "yellow",
    "held": "yellow",
    "succeeded": "dim",
    "failed": "red",
    "cancelled": "dim",
    "skipped": "dim",
}
#: A segment of a GPU's bar: what it means, its character (readable without colours), its style.
OURS = ("used by jobs", "█", "green")
CLAIMED = ("claimed, not used yet", "▒", "green")
FOREIGN = ("foreign", "#", "red")
FREE = ("free", "·", "dim")
MARGIN = ("margin", "-", "dim")


def make_console(**options: Any) -> Console:
    """Rich's console without its guessing: no emoji codes, no markup, no highlighting of numbers."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=False, **options)


LEVEL_STYLE = {"warning": "yellow", "error": "red", "critical": "red"}


def log_printer() -> Callable[[str, str, str], None]:
    """Prints a line of the daemon's log: its time, level and text."""
    console = make_console()

    def show(at: str, level: str, text: str) -> None:
        style = LEVEL_STYLE.get(level, "")
        console.print(Text.assemble((at, "dim"), "  ", (f"{level:<7}", style), "  ", text), soft_wrap=True)

    return show


# --- tables ---------------------------------------------------------------------------------------


def print_jobs(jobs: Iterable[Object], estimates: fields.Estimates | None = None) -> None:
    console = make_console()
    console.print(jobs_table(jobs, console.width, estimates))


def jobs_table(jobs: Iterable[Object], width: int, estimates: fields.Estimates | None = None) -> Table:
    """The table of `list`; command and name give way where the terminal is narrow."""
    table = _table()
    now = time.time()
    for name in fields.JOB_HEADER if estimates is None else fields.START_HEADER:
        if name == "command":
            table.add_column("COMMAND", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
        elif name == "name":
            table.add_column("NAME", no_wrap=True, overflow="ellipsis", max_width=max(14, width // 5))
        else:
            table.add_column(name.upper(), no_wrap=True, justify="right" if name == "id" else "left")
    for job in jobs:
        row = fields.job_row(job, now, estimates)
        bad = "red" if job.get("over_claim") or job["state"] == "failed" else ""
        styles = {2: STATE_STYLE.get(job["state"], ""), 4: "red" if job.get("over_claim") else "", 6: bad}
        table.add_row(*(Text(cell, styles.get(i, "")) for i, cell in enumerate(row)))
    return table


#: The columns of `gpus` beside jobs and status, in characters.
_GPU_COLUMNS = 56


def print_gpus(gpus: Iterable[Object], notes: Sequence[str]) -> None:
    table = _table()
    console = make_console()
    for name in fields.GPU_HEADER:
        left = name in ("name", "jobs", "status")
        table.add_column(
            name.upper(),
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if left else "right",
            ratio=1 if name == "name" else None,
            # who is on a GPU, or why it is out of use, may be long, and must not take the place of the numbers
            max_width=max(12, (console.width - _GPU_COLUMNS) // 2) if name in ("jobs", "status") else None,
        )
    for gpu in gpus:
        cells = fields.gpu_row(gpu)
        table.add_row(*map(Text, cells[:-1]), Text(cells[-1], "green" if gpu["available"] else "red"))
    console.print(table)
    for note in notes:
        console.print(Text(note))


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=True)


# --- top ------------------------------------------------------------------------------------------


def frame(data: Object, width: int, height: int | None = None) -> Group:
    """One picture of the host: a bar per GPU, running jobs, the head of the queue.

    With a `height` at most so many lines: rows of the tables go first, then GPUs, then headings.
    """
    gpus, running, waiting = data["gpus"], data["running"], data["waiting"]
    total = data.get("waiting_total", len(waiting))
    parts: list[RenderableType] = [_counts(data)]
    if data.get("note"):
        parts.append(Text(printable(str(data["note"])), "yellow"))
    shown = _Shares(len(gpus), len(running), len(waiting))
    if height is not None:
        for line in parts:
            _keep_to_one_line(line)
        shown = shown.fitted(height - len(parts), len(gpus), len(running), total)
    parts += [_gpu_line(gpu, width) for gpu in gpus[: shown.gpus]]
    parts += _more(len(gpus) - shown.gpus, " GPUs")
    if gpus:
        parts.append(_legend())
    parts += _running(running, shown.running, width)
    parts += _waiting(waiting, shown.waiting, total, width)
    return Group(*parts[:height])


class _Shares(NamedTuple):
    """How many GPUs, running and waiting jobs get a row."""

    gpus: int
    running: int
    waiting: int

    def lines(self, gpus: int, running: int, waiting: int) -> int:
        """What GPUs and tables take in all, where there are so many of each."""
        bars = self.gpus + (self.gpus < gpus) + 1 if gpus else 0
        return bars + _table_lines(self.running, running) + _table_lines(self.waiting, waiting)

    def fitted(self, room: int, gpus: int, running: int, waiting: int) -> "_Shares":
        """Reduced to `room` lines, the longer table first; not enough where even the headings do not fit."""
        shares = self
        while shares.lines(gpus, running, waiting) > room and any(shares):
            if shares.waiting and shares.waiting >= shares.running:
                shares = shares._replace(waiting=shares.waiting - 1)
            elif shares.running:
                shares = shares._replace(running=shares.running - 1)
            else:
                shares = shares._replace(gpus=shares.gpus - 1)
        return shares


def _table_lines(rows: int, total: int) -> int:
    """Lines of a table: blank, title, header with its rows, and a last one where some are left out."""
    return 0 if not total else 2 + (1 + rows if rows else 0) + (rows < total)


def _keep_to_one_line(part: RenderableType) -> None:
    if isinstance(part, Text):
        part.no_wrap, part.overflow = True, "ellipsis"


def _counts(data: Object) -> Text:
    counts = data["counts"]
    text = Text("gpuq", "bold")
    for state in ("running", "suspended", "queued", "held", "succeeded", "failed", "cancelled", "skipped"):
        if counts.get(state):
            text.append(f"  {counts[state]:,} {state}", STATE_STYLE[state])
    if not any(counts.values()):
        text.append("  nothing runs or waits", "dim")
    return text


def _gpu_line(gpu: Object, width: int) -> Text:
    head = f"GPU {fields.index_cell(gpu)} "
    total = gpu.get("total_bytes")
    if not gpu["available"] or not total:
        return Text(
            head + printable(f"{gpu['name']}: {gpu.get('fault') or 'unavailable'}"),
            "red",
            no_wrap=True,
            overflow="ellipsis",
        )
    used, foreign = gpu.get("used_bytes") or 0, fields.foreign_bytes(gpu) or 0
    tail = f" {format_size(used)} used, {format_size(gpu.get('headroom_bytes') or 0)} headroom of {format_size(total)}"
    ours = max(0, used - (gpu.get("foreign_bytes") or 0))
    claimed = max(0, min(gpu.get("claimed_bytes") or 0, total) - ours)
    cells = max(10, width - len(head) - max(len(tail), 44))
    text = Text(head, no_wrap=True, overflow="ellipsis")
    sizes = (ours, claimed, foreign, None, min(gpu.get("margin_bytes") or 0, total))
    for (_, char, style), count in zip(
        (OURS, CLAIMED, FOREIGN, FREE, MARGIN), _cells(sizes, total, cells), strict=True
    ):
        text.append(char * count, style)
    return text.append(tail)


def _cells(sizes: Sequence[int | None], total: int, cells: int) -> list[int]:
    """Cells per segment, together exactly `cells`; what there is at all gets one; None takes what is left."""
    counts: list[int | None] = []
    left = cells
    for size in sizes:
        if size is None:
            counts.append(None)
            continue
        count = min(left, max(1, round(size / total * cells)) if size else 0)
        counts.append(count)
        left -= count
    return [left if count is None else count for count in counts]


def _legend() -> Text:
    text = Text("      ", no_wrap=True, overflow="ellipsis")
    for label, char, style in (OURS, CLAIMED, FOREIGN, FREE, MARGIN):
        text.append(char, style)
        text.append(f" {label}  ", "dim")
    return text


def _running(jobs: Sequence[Object], rows: int, width: int) -> list[RenderableType]:
    if not jobs:
        return []
    table = _table()
    for name in ("ID", "NAME", "GPUS", "VRAM", "TIME", "LIMIT"):
        _add_narrow(table, name, width)
    table.add_column("COMMAND", no_wrap=True, overflow="ellipsis", ratio=1, min_width=6)
    now = time.time()
    for job in jobs[:rows]:
        vram = Text(fields.vram_cell(job), "red" if job.get("over_claim") else "")
        cells = [Text(str(job["id"])), Text(fields.name_cell(job)), Text(fields.gpus_cell(job) or "-"), vram]
        cells += [Text(fields.time_cell(job, now)), _progress(job, now, 8 if width < 100 else 16)]
        table.add_row(*cells, Text(fields.command_cell(job["command"])))
    return [Text(), Text("Running", "bold"), *([table] if rows else []), *_more(len(jobs) - rows)]


def _add_narrow(table: Table, name: str, screen: int) -> None:
    width = max(14, screen // 5) if name == "NAME" else None
    table.add_column(
        name, no_wrap=True, overflow="ellipsis", max_width=width, justify="right" if name == "ID" else "left"
    )


def _progress(job: Object, now: float, cells: int) -> Text:
    """How much of the time limit has passed."""
    if job.get("ending"):
        return Text(fields.ending_cell(job), "yellow")
    if job["state"] == "suspended":
        return Text("suspended", STATE_STYLE["suspended"])
    limit = job.get("time_limit_seconds")
    if not limit or job["started_at"] is None:
        return Text("none", "dim")
    part = min(1.0, fields.ran_for(job, now) / limit)
    full = round(part * cells)
    style = "red" if part > 0.9 else "cyan"
    return Text("━" * full, style).append("─" * (cells - full), "dim").append(f" {format_duration(limit)}")


def _waiting(jobs: Sequence[Object], rows: int, total: int, width: int) -> list[RenderableType]:
    if not jobs:
        return []
    table = _table()
    for name in ("ID", "NAME", "GPUS", "VRAM", "WAITED"):
        _add_narrow(table, name, width)
    table.add_column("REASON", no_wrap=True, overflow="ellipsis", ratio=1, min_width=10)
    now = time.time()
    for job in jobs[:rows]:
        why = fields.because(job.get("reason"), job.get("reason_text"))
        cells = (str(job["id"]), fields.name_cell(job), fields.gpus_cell(job), fields.vram_cell(job))
        table.add_row(*(Text(c or "-") for c in (*cells, fields.time_cell(job, now), why)))
    return [Text(), Text("Waiting", "bold"), *([table] if rows else []), *_more(total - min(rows, len(jobs)))]


def _more(count: int, what: str = "") -> list[RenderableType]:
    return [Text(f"… and {count:,} more{what}", "dim")] if count > 0 else []


def print_frame(data: Object) -> None:
    console = make_console()
    console.print(frame(data, console.width))


def plain_frame(data: Object) -> str:
    """The frame as text, without colours, 100 columns wide."""
    console = make_console(file=io.StringIO(), width=100, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(frame(data, 100))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def svg_frame(data: Object) -> str:
    """The frame as an SVG picture that fetches nothing: rich's template names fonts on the web."""
    from rich._export_format import CONSOLE_SVG_FORMAT

    console = make_console(record=True, file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    console.print(frame(data, 100))
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="gpuq top", theme=MONOKAI, code_format=template)


#: One after the other, so that neighbours differ.
BAR_STYLES = tuple(f"black on {colour}" for colour in ("green", "yellow", "cyan", "magenta", "blue", "white"))


def print_gantt(heading: str, picture: "Picture") -> None:
    """The picture of a simulated run: a colour per job, or blocks for shades."""
    from gpuq.simulate.gantt import BLOCKS, SHADES

    console = make_console()
    console.print()
    console.print(Text(printable(heading)))
    blocks = str.maketrans(SHADES, BLOCKS)
    for label, spans in picture.lines:
        line = Text(label)
        for span in spans:
            if picture.shaded:
                line.append(span.text.translate(blocks), "green")
            else:
                line.append(span.text, "dim" if span.job is None else BAR_STYLES[span.job % len(BAR_STYLES)])
        console.print(line)
    console.print(Text(picture.axis))
    console.print(Text(picture.legend, "dim"))


def progress_bar(what: str, total: int) -> Progress:
    """A bar on stderr that has begun to show, with one task; `stop` takes it away again."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,}"),
        TimeRemainingColumn(),
        console=make_console(stderr=True),
        transient=True,
    )
    bar.add_task(what, total=total)
    bar.start()
    return bar


class Screen:
    """The live view: takes over the terminal while the block runs, and gives it back however it ends."""

    def __init__(self) -> None:
        self._console = make_console()
        self._live: Live | None = None
        #: the terminal's settings before it was taken
        self._former: list[Any] | None = None

    def __enter__(self) -> "Screen":
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def take(self) -> None:
        """Draw on the alternate screen, and read single keys; also where a shell has undone that in between."""
        if sys.stdin.isatty():
            if self._former is None:
                self._former = termios.tcgetattr(0)
            _undisturbed(lambda: tty.setcbreak(0, termios.TCSADRAIN))  # what was typed is not lost
        if self._live is not None:
            self._live.stop()
        self._live = Live(console=self._console, screen=True, auto_refresh=False, transient=True)
        self._live.start()

    def give_back(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._former is not None:
            former, self._former = self._former, None
            _undisturbed(lambda: termios.tcsetattr(0, termios.TCSADRAIN, former))

    def show(self, data: Object) -> None:
        assert self._live is not None
        size = os.get_terminal_size(1)
        hint = Text("q leaves", "dim")
        room = max(0, size.lines - 2)  # the hint and the blank line above it
        self._live.update(Group(frame(data, size.columns, room), *([Text()] if room else []), hint), refresh=True)


def _undisturbed(change: Callable[[], object]) -> None:
    """Change the terminal's settings. From the background that stops us, and is to be done again afterwards."""
    while True:
        try:
            change()
            return
        except termios.error as error:
            if error.args[0] != errno.EINTR:
                raise
