"""Where things are, and where each setting comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuq import config
from gpuq.errors import UsageError
from gpuq.model import GiB, MiB, OverClaim, Settings


def environ(tmp_path: Path, toml: str | None = None, **values: str) -> dict[str, str]:
    if toml is not None:
        (tmp_path / "gpuq").mkdir()
        (tmp_path / "gpuq" / "config.toml").write_text(toml)
    return {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path), **values}


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    assert config.load_settings(environ(tmp_path)) == Settings()
    assert {found.source for found in config.find_settings(environ(tmp_path)).values()} == {"default"}
    assert set(config.SETTINGS) == set(Settings.__dataclass_fields__)


def test_the_file_and_then_a_variable_win(tmp_path: Path) -> None:
    text = 'margin = "1GiB"\nover_claim = "kill"\nlist_rows = 9\nwhole_foreign_percent = 2.5\nwhole_foreign = "0"\n'
    env = environ(tmp_path, text, GPUQ_MARGIN="2GiB", GPUQ_GRACE="3s", GPUQ_LIST_ROWS="")
    found = config.load_settings(env)
    assert (found.margin, found.over_claim, found.list_rows) == (2 * GiB, OverClaim.KILL, 9)
    assert (found.whole_foreign_percent, found.whole_foreign, found.grace) == (2.5, 0, 3.0)
    sources = config.find_settings(env)
    assert sources["margin"].source == "GPUQ_MARGIN"
    assert sources["over_claim"].source == str(tmp_path / "gpuq" / "config.toml")
    assert sources["settle"].source == "default"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("margin = 5", "margin: size '5' is not a size"),
        ("margn = '1G'", "there is no setting 'margn'; did you mean 'margin'?"),
        ("zzz = 1", "there is no setting 'zzz'; known are"),
        ("over_claim = 'shout'", "'shout' is neither"),
        ("list_rows = -1", "'-1' is not a count"),
        ("grace = true", "a string or a number belongs here"),
        ("margin = ", "is not valid TOML"),
        ("whole_foreign_percent = 101", "not a percentage"),
        ("whole_foreign_percent = nan", "not a percentage"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        config.load_settings(environ(tmp_path, toml))
    assert message in str(error.value)
    assert str(tmp_path / "gpuq" / "config.toml") in str(error.value)


def test_a_mistake_in_a_variable_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GPUQ_MARGIN"):
        config.load_settings(environ(tmp_path, GPUQ_MARGIN="lots"))


def test_the_state_folder(tmp_path: Path) -> None:
    import socket

    host = socket.gethostname()
    assert config.state_dir({"GPUQ_STATE_DIR": "/x/y"}) == Path("/x/y")
    assert config.state_dir({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/gpuq") / host
    assert config.state_dir({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/gpuq") / host
    assert config.state_dir({"HOME": str(tmp_path)}) == tmp_path / ".local" / "state" / "gpuq" / host


MOUNTS = """\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:30 / /home rw - nfs4 server:/home rw
31 30 0:31 / /home/me/my\\040disk rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/x", "ext4"), ("/home/me/.local", "nfs4"), ("/home/me/my disk/x", "xfs"), ("/homework", "ext4")],
)
def test_file_systems_are_told_apart(path: str, kind: str) -> None:
    assert config.filesystem_type(Path(path), MOUNTS) == kind
    assert (kind in config.NETWORK_FILESYSTEMS) == (kind == "nfs4")
    assert config.filesystem_type(Path(path), "garbage\n") == "?"


def test_defaults_are_what_the_design_says() -> None:
    settings = Settings()
    assert settings.whole_foreign == 512 * MiB
    assert settings.whole_foreign_percent == 5
    assert (settings.foreign_window, settings.settle) == (10, 2)


def test_mount_points_with_any_name_are_read() -> None:
    text = MOUNTS + "40 22 0:40 / /mnt/\udcff rw - vfat /dev/sdc rw\n"
    assert config.filesystem_type(Path("/mnt/\udcff/x"), text) == "vfat"
    assert config.filesystem_type(Path("/home/x"), text) == "nfs4"
