"""`config show`: every setting, its value, and where the value comes from."""

import sys

from gpuq.cli.common import Json, examples, new_app, on_terminal, print_json
from gpuq.units import printable

app = new_app()


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
        return
    rows = [(key, shown[key] or "-", printable(one.source), paths.SETTINGS[key].doc) for key, one in found.items()]
    if on_terminal():
        text = plain.columns(("setting", "value", "source"), [row[:3] for row in rows])
    else:
        text = plain.columns(("setting", "value", "source", "meaning"), rows)
    sys.stdout.write(text)


def _shown(key: str, value: object) -> str:
    from gpuq.config import SETTINGS

    return "" if value is None else str(SETTINGS[key].show(value))
