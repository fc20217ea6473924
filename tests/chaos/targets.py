"""What is fuzzed, and what must hold: each target takes one input, and only defined errors may come out."""

from __future__ import annotations

import io
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from gpuq import after, config, protocol, units
from gpuq.cli import parse
from gpuq.cli.commands import read_lines
from gpuq.daemon import depending, submit
from gpuq.daemon.wishes import Listed
from gpuq.errors import BadRequest, CannotFit, GpuqError, StoreError, UsageError
from gpuq.launch import adoption, outcome
from gpuq.launch.parts.files import to_json
from gpuq.model import Driver, Queue
from gpuq.policy.retry import parse_rule
from tests.chaos import inputs

NOW = 1_795_000_000.0


@dataclass(frozen=True)
class Target:
    name: str
    inputs: st.SearchStrategy[Any]
    #: raises whatever is not allowed
    run: Callable[[Any], None]


def only(*allowed: type[GpuqError]) -> Callable[[Callable[[Any], Any]], Callable[[Any], None]]:
    """The function may raise these, with a message that can be shown, and nothing else."""

    def decorate(work: Callable[[Any], Any]) -> Callable[[Any], None]:
        def run(value: Any) -> None:
            try:
                work(value)
            except allowed as error:
                assert error.message, f"{type(error).__name__} without a word"
                error.message.encode("utf-8", "backslashreplace")

        return run

    return decorate


@only(UsageError)
def size(text: str) -> None:
    found = units.parse_size(text)
    assert 0 < found <= units.MAX_SIZE


def size_there_and_back(number: int) -> None:
    """Shown with one decimal of the unit, so that what is read back is as close as that."""
    shown = units.format_size(number)
    if number >= 1024:
        assert abs(units.parse_size(shown) - number) <= number * 0.051, shown


@only(UsageError)
def duration(text: str) -> None:
    assert 0 < units.parse_duration(text) <= units.MAX_TIME


def duration_there_and_back(seconds: float) -> None:
    """Two units are shown, rounded down, so that what is read back is less by under one of the smaller."""
    shown = units.format_duration(seconds)
    if seconds >= 1:
        lost = seconds - units.parse_duration(shown)
        assert 0 <= lost < (3600 if seconds >= 86400 else 60 if seconds >= 3600 else 1), shown


@only(UsageError)
def array(text: str) -> None:
    indexes, limit = parse.parse_array(text)
    assert indexes == sorted(set(indexes)) and limit >= 0
    assert submit.check_array({"indexes": indexes, "limit": limit}) == (tuple(indexes), limit)


@only(UsageError)
def id_words(word: str) -> None:
    selection = protocol.parse_ids([word])
    assert protocol.Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection


@only(UsageError)
def dependency(text: str) -> None:
    for clause in parse.parse_after([text], lambda: 77):
        assert list(map(after.written, depending.check([clause]))) == [clause]


@only(UsageError)
def begin(text: str) -> None:
    assert NOW <= parse.parse_begin(text, NOW) <= NOW + units.MAX_TIME + 86400


@only(UsageError)
def retry_rule(text: str) -> None:
    rule = parse_rule(text)
    assert parse_rule(str(rule)) == rule


@only(UsageError, BadRequest, CannotFit)
def template(value: Any) -> None:
    if isinstance(value, dict):
        found = submit.check_template(value, 0, Listed(Driver.OK, {"GPU-a": 0, "GPU-b": 1}), Queue(), NOW)
        assert found.time_limit is None or math.isfinite(found.time_limit)


@only(UsageError, BadRequest)
def submission(value: Any) -> None:
    """Everything else of a submission."""
    message = protocol.decode(inputs.line(value))
    submit.check_key(message.get("key"))
    commands = submit.check_commands(message.get("commands"))
    submit.check_environment(message.get("env"))
    submit.check_array(message.get("array"))
    protocol.Selection.from_json(message.get("sel", {}))
    assert all(commands)


@only(BadRequest)
def wire(data: bytes) -> None:
    assert isinstance(protocol.decode(data), dict)


@only(UsageError)
def command_file(data: bytes) -> None:
    found = list(read_lines(io.BytesIO(data), "file"))
    assert all(command[:2] == ["/bin/sh", "-c"] for command in found)
    submit.check_commands(found)


@only(UsageError)
def environment(pair: tuple[str, list[str]]) -> None:
    chosen, _ = parse.choose_environment({"PATH": "/bin", "A": "1"}, pair[0], parse.parse_env(pair[1]))
    assert not chosen.keys() & (parse.DROPPED - {name.partition("=")[0] for name in pair[1]})


@only(UsageError)
def settings(text: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gpuq-fuzz-"))
    try:
        (folder / "gpuq").mkdir()
        (folder / "gpuq" / "config.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
        config.load_settings({"HOME": "/", "XDG_CONFIG_HOME": str(folder)})
    finally:
        shutil.rmtree(folder)


@only(UsageError)
def setting_variable(pair: tuple[str, str]) -> None:
    config.load_settings({"HOME": "/nowhere", f"GPUQ_{pair[0].upper()}": pair[1]})


@only(StoreError)
def run_folder(files: dict[str, bytes | None]) -> None:
    """A file that is None is a folder instead."""
    folder = Path(tempfile.mkdtemp(prefix="gpuq-fuzz-"))
    try:
        for name, data in files.items():
            if data is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(data)
        found = adoption.adopt(folder)
        assert not isinstance(found, adoption.Running), "nothing runs there"
        if isinstance(found, adoption.Ended):
            result = outcome.read_result(folder)
            assert result is not None
            outcome.judge(result, b"CUDA out of memory. Tried to allocate")
    finally:
        shutil.rmtree(folder)


def supervisors_json(value: Any) -> None:
    """The supervisor writes JSON without the module; the daemon reads it with it."""
    assert json.loads(to_json(value)) == value


#: As the supervisor has it: what is not text is kept by lone surrogates, and no number is infinite.
_text = st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.dictionaries(_text, inner, max_size=4),
    max_leaves=8,
)
_variables = st.tuples(st.sampled_from(sorted(config.SETTINGS)), inputs.sizes | inputs.durations | inputs.anything_text)
TARGETS: tuple[Target, ...] = (
    Target("sizes", inputs.sizes, size),
    Target("sizes, there and back", st.integers(0, units.MAX_SIZE), size_there_and_back),
    Target("times", inputs.durations, duration),
    Target("times, there and back", st.floats(0, units.MAX_TIME), duration_there_and_back),
    Target("arrays", inputs.arrays, array),
    Target("ids", inputs.ids, id_words),
    Target("dependencies", inputs.dependencies, dependency),
    Target("begin times", inputs.begins, begin),
    Target("retry rules", inputs.retries, retry_rule),
    Target("templates", inputs.templates | inputs.likely_templates, template),
    Target("submissions", inputs.changed(inputs.SUBMIT), submission),
    Target("lines", inputs.lines(), wire),
    Target("files of commands", st.binary(max_size=200), command_file),
    Target("environments", st.tuples(inputs.anything_text, st.lists(inputs.anything_text, max_size=3)), environment),
    Target("settings files", inputs.tomls, settings),
    Target("setting variables", _variables, setting_variable),
    Target("run folders", inputs.run_folders, run_folder),
    Target("the supervisor's JSON", _plain, supervisors_json),
)
