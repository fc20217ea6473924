"""Typer's messages about what was typed, in the words of ours."""

import re
from typing import Any

#: A message of Typer's parser (typer/_click: types, parser and core of 0.27 and 0.28), and ours.
SENTENCES = (
    (re.compile(r"(?P<value>.+) is not a valid int(eger)?", re.DOTALL), "{name} {value} is not a whole number"),
    (re.compile(r"Option '(?P<option>.+)' requires an argument"), "{option} needs a value"),
    (re.compile(r"Option '(?P<option>.+)' does not take a value"), "{option} takes no value"),
    (re.compile(r"Got unexpected extra arguments?(\(s\))? \((?P<words>.*)\)", re.DOTALL), "'{words}' is too much"),
    (re.compile(r"No such command (?P<word>.+)", re.DOTALL), "there is no verb {word}"),
    (re.compile(r"Missing command"), "a verb is missing"),
)


def typing_error(error: Any) -> str:
    """What was wrong with the words of the command line; Typer's own sentence where none of ours fits."""
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption":
        near = ", ".join(error.possibilities or ())
        return f"there is no option {option}" + (f"; did you mean {near}?" if near else "")
    if type(error).__name__ == "MissingParameter":
        return f"{_name(error.param)} is missing"
    message = str(error.message).rstrip(".")
    for pattern, sentence in SENTENCES:
        match = pattern.fullmatch(message)
        if match is not None:
            return sentence.format(name=_name(getattr(error, "param", None)), **match.groupdict())
    return str(error.format_message()).rstrip(".")


def _name(param: Any) -> str:
    """`--gpus`, the longest of its names; an argument by what the help calls it."""
    if param is None:
        return "an argument"
    if param.param_type_name == "argument":
        return str(param.metavar or param.name)
    return str(max(param.opts, key=len))
