"""Our frozen records are the standard library's in all that can be seen of them."""

from __future__ import annotations

import dataclasses
import dis
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuq import records
from gpuq.model import Job

Decorator = Callable[..., Any]


def classes(dataclass: Decorator) -> dict[str, Any]:
    """One class of each kind that there is, made by this decorator."""
    made = dataclass(frozen=True, slots=True)

    @made
    class Empty:
        pass

    @made
    class One:
        """One field: alone it is no tuple."""

        value: object

    @made
    class Many:
        first: object
        second: object = "x"
        third: list[object] = field(default_factory=list)
        aside: object = field(default=0, compare=False)
        hidden: object = field(default=0, repr=False)
        doubled: object = field(init=False, compare=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "doubled", (self.first, self.first))

        @property
        def both(self) -> tuple[object, object]:
            return self.first, self.second

    @made
    class Own:
        value: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 5

        def __repr__(self) -> str:
            return "mine"

    @made
    class Compares:
        value: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Compares) and self.value % 10 == other.value % 10

    return {cls.__name__: cls for cls in (Empty, One, Many, Own, Compares)}


STANDARD, OURS = classes(dataclasses.dataclass), classes(records.dataclass)
VALUES = st.one_of(st.integers(0, 1), st.none(), st.just("x"), st.just(float("nan")), st.just([1]))
#: name of a class, and what it is given
Arguments = tuple[str, list[Any], dict[str, Any]]


def arguments(name: str) -> st.SearchStrategy[Arguments]:
    """Mostly such as the class takes."""
    needed = {"Empty": 0}.get(name, 1)
    words = st.lists(VALUES, min_size=needed, max_size=needed)
    more: st.SearchStrategy[dict[str, Any]] = st.just({})
    if name == "Many":
        more = st.dictionaries(st.sampled_from(["second", "third", "aside", "hidden"]), VALUES)
    wrong = st.dictionaries(st.sampled_from(["first", "doubled", "value", "none"]), VALUES, max_size=1)
    right = st.tuples(st.just(name), words, more)
    return right | right | st.tuples(st.just(name), st.lists(VALUES, max_size=6), wrong)


ANY = st.sampled_from(sorted(STANDARD)).flatmap(arguments)
TWO = st.sampled_from(sorted(STANDARD)).flatmap(lambda name: st.tuples(arguments(name), arguments(name) | ANY))


def outcome(work: Callable[[], object]) -> object:
    """What it returns, or the class of what it raises."""
    try:
        return work()
    except (TypeError, AttributeError) as error:  # FrozenInstanceError is one
        return type(error)


def seen(cls: Any, words: list[Any], named: dict[str, Any]) -> object:
    """All that can be seen of one record without another."""
    record: Any = outcome(lambda: cls(*words, **named))
    names = [f.name for f in dataclasses.fields(cls)]
    if isinstance(record, type):
        return record
    return (
        repr(record),
        outcome(lambda: repr(dataclasses.asdict(record))),
        outcome(lambda: repr(dataclasses.replace(record, second=1))),
        outcome(lambda: repr(dataclasses.replace(record, value=1))),
        [outcome(lambda name=name: setattr(record, name, 1)) for name in names],  # type: ignore[misc]
        [outcome(lambda name=name: delattr(record, name)) for name in names],  # type: ignore[misc]
        [getattr(record, "both", None), getattr(record, "doubled", None)],
    )


@given(ANY)
def test_a_record_is_seen_as_the_standard_one(given_to: Arguments) -> None:
    name, words, named = given_to
    assert repr(seen(OURS[name], words, named)) == repr(seen(STANDARD[name], words, named))


@given(TWO)
def test_two_records_compare_as_the_standard_ones(two: tuple[Arguments, Arguments]) -> None:
    def compared(found: dict[str, Any]) -> object:
        def pair() -> object:
            a, b = (found[name](*words, **named) for name, words, named in two)
            return a == b, a != b, outcome(lambda: hash(a) == hash(b)), a == (a,), a == 1

        return outcome(pair)

    assert compared(OURS) == compared(STANDARD)


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_the_class_is_seen_as_the_standard_one(name: str) -> None:
    ours, standard = OURS[name], STANDARD[name]
    assert ours.__slots__ == standard.__slots__
    assert ours.__match_args__ == standard.__match_args__
    assert (ours.__name__, ours.__qualname__, ours.__module__) == (name, standard.__qualname__, standard.__module__)
    kinds = [(f.name, f.type, f.default, f.default_factory, f.compare) for f in dataclasses.fields(ours)]
    assert kinds == [(f.name, f.type, f.default, f.default_factory, f.compare) for f in dataclasses.fields(standard)]


@pytest.mark.parametrize("found", [OURS, STANDARD], ids=["ours", "standard"])
def test_fields_that_do_not_count_do_not(found: dict[str, Any]) -> None:
    many = found["Many"]
    assert many(1, third=(), aside=1) == many(1, third=(), aside=2)
    assert hash(many(1, third=(), aside=1)) == hash(many(1, third=(), aside=2))
    assert many(1, third=(), hidden=1) != many(1, third=(), hidden=2)


def test_a_default_that_is_made_is_made_for_each() -> None:
    one, other = OURS["Many"](1), OURS["Many"](1)
    one.third.append(1)
    assert other.third == []
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'first'"):
        one.first = 2


def test_others_than_frozen_ones_with_slots_are_the_standard_library_s_own() -> None:
    @records.dataclass(slots=True)
    class Loose:
        value: int

    loose = Loose(1)
    loose.value = 2
    assert loose == Loose(2) and Loose.__hash__ is None


def test_a_start_of_the_daemon_compiles_little() -> None:
    program = (
        "import sys\n"
        "compiled = []\n"
        "sys.addaudithook(lambda event, of: event == 'compile' and of[0] is not None and compiled.append(of))\n"
        "import gpuq.daemon.main\n"
        "ours = {m for m in sys.modules if m.startswith('gpuq')}\n"
        "print(sum('_create_fn' in str(of[0]) for of in compiled), len(ours))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    methods, modules = map(int, done.stdout.split())
    assert modules > 50
    assert methods <= 100, "a dataclass of the standard library, of which each has four to six methods compiled"


def test_a_record_of_many_fields_is_made_without_a_call_for_each() -> None:
    """A job has 38 of them, and a list of the queue makes a hundred thousand jobs."""
    assert len(dataclasses.fields(Job)) > 30
    assert sum(step.opname.startswith("CALL") for step in dis.get_instructions(Job.__init__)) <= 1
