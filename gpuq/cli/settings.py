"""`config show`: every setting, its value, and where the value comes from."""

import sys

from gpuq.cli.common import Json, examples, flush, new_app, print_json, screen_width, tell
from gpuq.errors import GpuqError
from gpuq.units import printable

app = new_app()

#: Settings that the command line itself uses, at each call.
OURS = ("list_rows", "default_gpus", "default_vram", "default_time")
#: Seconds after which a daemon that does not answer is not asked any more.
ANSWER = 5


@app.callback()
def config() -> None:
    """Show the settings, and where each comes from."""


app.info.epilog = examples("gpuq config show", "GPUQ_MARGIN=1GiB gpuq config show --json")


@app.command("show", epilog=examples("gpuq config show", "gpuq config show --json | jq .settings.margin"))
def show(as_json: Json = False) -> None:
    """Show every setting: its value, and where that comes from: default, the file, or a variable.

    Settings stand in config.toml, `margin = "512MiB"`, or in variables, GPUQ_MARGIN=512MiB. The daemon reads them
    when it starts.
    """
    from gpuq import config as paths
    from gpuq.cli import plain

    found = paths.find_settings()
    shown = {key: _shown(key, one.value) for key, one in found.items()}
    if as_json:
        settings = {
            key: {"value": shown[key] or None, "source": one.source, "help": paths.SETTINGS[key].doc}
            for key, one in found.items()
        }
        print_json("gpuq.config/1", file=str(paths.config_file()), settings=settings)
        _tell_stale(shown)
        return
    rows = [(key, shown[key] or "-", printable(one.source), paths.SETTINGS[key].doc) for key, one in found.items()]
    width = screen_width()
    if width is not None:
        sys.stdout.write(_for_terminal(rows, str(paths.config_file()), width))
    else:
        sys.stdout.write(plain.columns(("setting", "value", "source", "meaning"), rows))
    flush()
    _tell_stale(shown)


def _for_terminal(rows: list[tuple[str, str, str, str]], file: str, width: int) -> str:
    """The table with each meaning on a line of its own, and the file's path once, below."""
    from gpuq.cli import plain

    short = [(key, value, "config.toml" if source == printable(file) else source) for key, value, source, _ in rows]
    header, *lines = plain.columns(("setting", "value", "source"), short).splitlines(keepends=True)
    text = header + "".join(
        line + plain.wrapped("    ", doc, width) for line, (*_, doc) in zip(lines, rows, strict=True)
    )
    return f"{text}config.toml is {printable(file)}\n"


def _tell_stale(shown: dict[str, str]) -> None:
    """Say which settings a running daemon read otherwise when it started; nothing where none runs or tells."""
    from gpuq.client import Client

    try:
        with Client.connect(start=False) as client:
            client.socket.settimeout(ANSWER)
            used = client.request("status").get("settings") or {}
    except GpuqError:
        return
    other = [
        f"{key} = {used[key] or '-'} (here {value or '-'})"
        for key, value in shown.items()
        if key not in OURS and used.get(key, value) != value
    ]
    if other:
        tell(f"the daemon still uses {', '.join(other)}; `gpuq daemon restart` applies what is set here")


def _shown(key: str, value: object) -> str:
    from gpuq.config import SETTINGS

    return "" if value is None else str(SETTINGS[key].show(value))
