"""Tables of what `submit` takes: arrays, begin times, dependencies, environments."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from gpuq.cli import fields, parse
from gpuq.cli.commands import Lines
from gpuq.cli.options import Resources, check_command, make_template
from gpuq.errors import UsageError
from gpuq.model import GiB
from gpuq.protocol import ranges, spans

NOW = datetime(2026, 11, 22, 14, 30).timestamp()


@pytest.mark.parametrize(
    ("text", "indexes", "limit"),
    [
        ("0-3", [0, 1, 2, 3], 0),
        ("0-3%2", [0, 1, 2, 3], 2),
        ("7", [7], 0),
        ("1,3,5-7", [1, 3, 5, 6, 7], 0),
        ("0-10:2", [0, 2, 4, 6, 8, 10], 0),
        ("0-10:4%3", [0, 4, 8], 3),
        ("5,1,3,1", [1, 3, 5], 0),
        (" 2 , 4 ", [2, 4], 0),
    ],
)
def test_arrays(text: str, indexes: list[int], limit: int) -> None:
    assert parse.parse_array(text) == (indexes, limit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1-",
        "-1",
        "3-1",
        "1,,2",
        "0-9%",
        "0-9%0",
        "0-9%x",
        "0-9:0",
        "5:2",
        "1.5",
        "0-9999999",
        "99999999999",
        "²",
    ],
)
def test_bad_arrays(text: str) -> None:
    with pytest.raises(UsageError, match="array"):
        parse.parse_array(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0, None)), ("2", (2, None)), ("1:4", (1, 4)), ("3:3", (3, 3)), (" 2:16 ", (2, 16)), ("007", (7, None))],
)
def test_gpus(text: str, expected: tuple[int, int | None]) -> None:
    assert parse.parse_gpus(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "1:", ":4", "4:1", "0:4", "-1", "1.5", "two", "1:2:3", "1-4", "²", "9" * 40, "1:" + "9" * 5000]
)
def test_bad_gpus(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--gpus "):
        parse.parse_gpus(text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], []), (["A100|H100"], ["A100", "H100"]), (["A100", " H100 |A100"], ["A100", "H100"]), (["a b"], ["a b"])],
)
def test_words(values: list[str], expected: list[str]) -> None:
    assert parse.parse_words(values, "|", "--gpu-type") == expected
    for bad in ("", "|", "a|", "a| |b"):
        with pytest.raises(UsageError, match=f"--gpu-type {re.escape(repr(bad))} holds an empty name"):
            parse.parse_words([*values, bad], "|", "--gpu-type")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("now+1h", NOW + 3600),
        ("2h", NOW + 7200),
        ("1d", NOW + 86400),
        ("16:00", datetime(2026, 11, 22, 16, 0).timestamp()),
        ("16:00:30", datetime(2026, 11, 22, 16, 0, 30).timestamp()),
        ("9:05", datetime(2026, 11, 23, 9, 5).timestamp()),
        ("14:30", datetime(2026, 11, 23, 14, 30).timestamp()),
        ("2026-11-23", datetime(2026, 11, 23).timestamp()),
        ("2026-11-23T08:00", datetime(2026, 11, 23, 8).timestamp()),
        ("2026-11-23T08:00:00Z", datetime.fromisoformat("2026-11-23T08:00:00+00:00").timestamp()),
    ],
)
def test_begin(text: str, expected: float) -> None:
    assert parse.parse_begin(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    ["", "tuesday", "25:00", "12:61", "now+", "now+5", "5", "-2h", "2026-13-01", "2020-01-01", "2099-01-01", "0s"],
)
def test_bad_begin(text: str) -> None:
    with pytest.raises(UsageError, match="begin"):
        parse.parse_begin(text, NOW)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["12"], ["ok:12"]),
        (["ok:12", "any:3"], ["ok:12", "any:3"]),
        (["failed:7,12"], ["failed:7", "ok:12"]),
        (["@last"], ["ok:77"]),
        (["any:@last"], ["any:77"]),
        (["5", "ok:5"], ["ok:5"]),
        (["007"], ["ok:7"]),
        (["ok:1-3"], ["ok:1", "ok:2", "ok:3"]),
        (["2-3", "any:4-4,failed:1-2"], ["ok:2", "ok:3", "any:4", "failed:1", "failed:2"]),
        (["ok:12|failed:13"], ["ok:12|failed:13"]),
        (["12 | failed:@last,3"], ["ok:12|failed:77", "ok:3"]),
        (["12|ok:12"], ["ok:12"]),
        (["1-3|9"], ["ok:1-3|ok:9"]),
        (["array:12", "each:12", "failed:each:@last"], ["ok:array:12", "ok:each:12", "failed:each:77"]),
        (["each:12-20"], ["ok:each:12-20"]),
        (["tag=a:b@last", "started:group=night"], ["ok:tag=a:b@last", "started:group=night"]),
        (["started:7"], ["started:7"]),
        (["1-10000"], [f"ok:{n}" for n in range(1, 10_001)]),
    ],
)
def test_after(values: list[str], expected: list[str]) -> None:
    assert parse.parse_after(values, lambda: 77) == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        "ok:",
        "ok:x",
        "maybe:3",
        "3,",
        "ok:-1",
        "9" * 40,
        "1-",
        ":3",
        "3-1",
        "1-2-3",
        "ok:1\n2",
        "1-10001",
        "0-" + "9" * 18,
        "1|",
        "|1",
        "1||2",
        "|",
        "ok:1|maybe:2",
        "array:",
        "array:x",
        "array:1-2",
        "each:",
        "each:failed:12",
        "array:ok:1",
        "tag=",
        "ok:group=",
        "tags=x",
        "@first",
        "ok:ok:1",
        "|".join(map(str, range(33))),
        "tag=" + "x" * 201,
    ],
)
def test_bad_after(value: str) -> None:
    with pytest.raises(UsageError, match=r"--after .*(write|at most)"):
        parse.parse_after([value], lambda: 77)


ENVIRON = {"PATH": "/bin", "HOME": "/h", "A": "1", "B": "2", "SHLVL": "3", "_": "x", "SSH_TTY": "t", "GPUQ_JOB_ID": "4"}


@pytest.mark.parametrize(
    ("export", "given", "expected", "missing"),
    [
        (None, {}, {"PATH": "/bin", "HOME": "/h", "A": "1", "B": "2"}, []),
        ("ALL", {"A": "9", "C": ""}, {"PATH": "/bin", "HOME": "/h", "A": "9", "B": "2", "C": ""}, []),
        ("NONE", {}, {"PATH": "/bin", "HOME": "/h"}, []),
        ("NONE", {"A": "5"}, {"PATH": "/bin", "HOME": "/h", "A": "5"}, []),
        ("A", {}, {"PATH": "/bin", "HOME": "/h", "A": "1"}, []),
        ("A, Z", {}, {"PATH": "/bin", "HOME": "/h", "A": "1"}, ["Z"]),
    ],
)
def test_environment(export: str | None, given: dict[str, str], expected: dict[str, str], missing: list[str]) -> None:
    assert parse.choose_environment(ENVIRON, export, given) == (expected, missing)


@pytest.mark.parametrize("export", ["", "A,,B", "ALL,A", "A,NONE", "A=1"])
def test_bad_export(export: str) -> None:
    with pytest.raises(UsageError, match="--export"):
        parse.choose_environment(ENVIRON, export, {})


def test_env_pairs() -> None:
    assert parse.parse_env(["A=1", "B=", "C=x=y", "A=2"]) == {"A": "2", "B": "", "C": "x=y"}


@pytest.mark.parametrize("value", ["A", "=secret", ""])
def test_bad_env_shows_no_value(value: str) -> None:
    with pytest.raises(UsageError, match="--env") as error:
        parse.parse_env([value])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "text"), [([3], "3"), ([3, 5, 6, 7], "3, 5-7"), ([7, 6, 3, 5], "3, 5-7"), ([1, 3], "1, 3"), ([], "")]
)
def test_ranges(ids: list[int], text: str) -> None:
    assert ranges(ids) == text
    assert sum(high - low + 1 for low, high in spans(ids)) == len(ids)


# --- templates ------------------------------------------------------------------------------------


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings of the person who runs the tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("GPUQ_DEFAULT_GPUS", "GPUQ_DEFAULT_VRAM", "GPUQ_DEFAULT_TIME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.usefixtures("clean")
def test_template_in_bytes_and_seconds() -> None:
    template = make_template(Resources(vram="10GiB", ram="512M", time="1h30m", gpus="2", tags=["a", "a"]), NOW)
    assert (template["vram"], template["ram"], template["time_limit"]) == (10 * GiB, 512 * 1024**2, 5400.0)
    assert (template["gpus"], template["tags"], template["begin_at"]) == (2, ["a"], None)
    assert template["cwd"] == str(Path.cwd())
    numbers = [number for number, _ in template["limits"]]
    assert numbers == sorted(set(numbers)) and len(numbers) > 5


def test_defaults_come_from_the_settings(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "gpuq").mkdir()
    (clean / "gpuq" / "config.toml").write_text('default_vram = "4GiB"\ndefault_time = "1h"\n')
    template = make_template(Resources(), NOW)
    assert (template["vram"], template["time_limit"], template["gpus"]) == (4 * GiB, 3600.0, None)
    assert make_template(Resources(vram="whole"), NOW)["vram"] is None
    assert make_template(Resources(gpus="0"), NOW)["vram"] is None
    monkeypatch.setenv("GPUQ_DEFAULT_GPUS", "2")
    assert make_template(Resources(), NOW)["gpus"] == 2


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Resources(gpus="-1"), "--gpus '-1'"),
        (Resources(cpus=-3), "--cpus -3"),
        (Resources(gpus="0", vram="1G"), "--gpus 0"),
        (Resources(vram="0"), "--vram '0'"),
        (Resources(vram="nan"), "--vram 'nan'"),
        (Resources(ram="10"), "--ram '10'"),
        (Resources(time="90"), "--time '90'"),
        (Resources(time="0s"), "--time '0s'"),
        (Resources(priority=1001), "--priority 1001"),
        (Resources(name=""), "--name is empty"),
        (Resources(name="x" * 201), "--name is 201"),
        (Resources(tags=[""]), "--tag is empty"),
        (Resources(tags=[str(i) for i in range(101)]), "101 tags"),
        (Resources(cwd="/nonexistent/folder"), "does not exist"),
        (Resources(cwd="/etc/passwd"), "is not a folder"),
        (Resources(output=""), "--output is empty"),
    ],
)
def test_bad_options(options: Resources, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_template(options, NOW)


def test_a_folder_that_is_gone(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clean / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(UsageError, match="has been removed"):
        make_template(Resources(), NOW)
    assert make_template(Resources(cwd="/"), NOW)["cwd"] == "/"


@pytest.mark.parametrize("command", [[], [""], ["  "], ["x", "y" * 600_000]])
def test_bad_commands(command: list[str]) -> None:
    with pytest.raises(UsageError, match="command"):
        check_command(command, "submit")


@pytest.mark.parametrize("command", ["7 8 -- true", "7 -- true", "7 8 --"])
def test_ids_that_the_shell_split_are_no_command(command: str) -> None:
    """`--after ok:$ids -- true`, with three ids on a line each."""
    with pytest.raises(UsageError, match=r"7.* before `--`.* --after ok:12-20"):
        check_command(command.split(), "submit")
    for harmless in (["7", "8", "true"], ["true", "7", "--", "x"], ["--"], ["./7", "--", "x"]):
        check_command(harmless, "submit")


# --- files of commands ----------------------------------------------------------------------------


def test_commands_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "commands"
    file.write_bytes(b"\xef\xbb\xbfecho 1\n\n   \n# note\n  # note\necho '\xff'\r\necho last")
    shell = ["/bin/sh", "-c"]
    with Lines(str(file)) as lines:
        assert lines.count == 3
        for _ in range(2):
            [part] = lines.parts()
            assert part == [[*shell, "echo 1"], [*shell, "echo '\udcff'"], [*shell, "echo last"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no command"),
        (b"# only\n\n", "holds no command"),
        (b"echo 1\necho \0\n", "line 2: holds a NUL"),
        (b"\n" + b"x" * 131_072 + b"\n", "line 2: longer than"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "commands"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error, Lines(str(file)):
        pass
    assert str(file) in str(error.value)


def test_the_longest_line_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "commands"
    file.write_bytes(b"x" * 131_071 + b"\r\n")
    with Lines(str(file)) as lines:
        [[command]] = lines.parts()
    assert len(command[2]) == 131_071


def test_of_jobs_that_follow_each_other_a_range_is_shown() -> None:
    words = [*(f"ok:{n}" for n in range(3, 9)), "any:9", "ok:10", "ok:12|ok:13", "ok:14", "ok:15"]
    assert fields.after_text(words) == "ok:3-8, any:9, ok:10, ok:12|ok:13, ok:14-15"
    assert fields.after_text([]) == ""
