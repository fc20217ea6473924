"""`dataclass` as in the standard library, for less: frozen records with slots, of which a start makes eighty.

The standard one has the source of six methods compiled for each class (Python 3.11), which was a third of a daemon's
start. Here `__init__` alone is compiled, and without annotations. The others are the same for every class but for the
names of its fields, so they are closures; `operator.attrgetter` reads all fields in one call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, frozen: bool = False, slots: bool = False) -> Callable[[type], type]:
        """What `dataclasses.dataclass` makes of a class, `fields`, `replace` and `asdict` included.

        A frozen one with slots has no base class with fields of its own, is none, and is not pickled.
        """
        return _frozen if frozen and slots else dataclasses.dataclass(frozen=frozen, slots=slots)


#: A record of fewer fields has each set by itself: a class more would cost a start what it saves.
_FEW = 6


def _frozen(cls: type) -> type:
    own = dict(vars(cls))
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    fields = dataclasses.fields(made)
    key = _getter([field.name for field in fields if field.compare])
    shown = [field.name for field in fields if field.repr]

    def __eq__(self: Any, other: object) -> bool:
        return key(self) == key(other) if other.__class__ is made else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(key(self))

    def __repr__(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{made.__qualname__}({values})"

    for method in (_initialiser(made, hasattr(made, "__post_init__")), __eq__, __repr__, __setattr__, __delattr__):
        if method.__name__ not in own:
            setattr(made, method.__name__, method)
    if own.get("__hash__") is None:  # a class that says how it compares has None there
        made.__hash__ = __hash__
    return made  # type: ignore[no-any-return]


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """The values of these fields, as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _initialiser(made: type, more: bool) -> Callable[..., None]:
    """`__init__` with the fields as arguments, and with a call of `__post_init__` in the end if there is `more`."""
    fields = dataclasses.fields(made)
    # an object is frozen once it is of its class: until then it is of one with the same slots, where an assignment
    # takes a tenth of the time (https://docs.python.org/3.11/reference/datamodel.html#notes-on-using-slots)
    slots = tuple(field.name for field in fields)
    given: dict[str, object] = {"_set": object.__setattr__, "_made": made, "_not_given": dataclasses.MISSING}
    given["_open"] = type(made.__name__, (), {"__slots__": slots}) if len(slots) >= _FEW else None
    arguments, lines = ["self"], list[tuple[str, str]]()
    for field in fields:
        name, value = field.name, field.name
        default = ""
        if field.default is not dataclasses.MISSING:
            given[f"_default_{name}"], default = field.default, f"=_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            given[f"_default_{name}"], default = field.default_factory, "=_not_given"
            value = f"_default_{name}() if {name} is _not_given else {name}"
        if field.init:
            arguments.append(name + default)
            lines.append((name, value))
    if given["_open"] is None:
        body = [f"_set(self, '{name}', {value})" for name, value in lines]
    else:
        body = ["_set(self, '__class__', _open)", *(f"self.{name} = {value}" for name, value in lines)]
        body.append("self.__class__ = _made")
    body.append("self.__post_init__()" if more else "pass")
    statements = "\n  ".join(body)
    source = f"def make({', '.join(given)}):\n def __init__({', '.join(arguments)}):\n  {statements}\n return __init__"
    space: dict[str, Any] = {}
    exec(source, space)
    init: Callable[..., None] = space["make"](**given)
    return init


def __setattr__(_: object, name: str, *_value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def __delattr__(_: object, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
