"""Copies with a few fields changed equal those of the library."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.builders import a_turn
from tests.call_counts import calls_of
from turnkeeper.copies import replace
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import HeadChange, LeaseChange


@dataclass(frozen=True, slots=True)
class _Two:
    one: int
    other: str = "default"


@dataclass(frozen=True, slots=True)
class _Three(_Two):
    third: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Single:
    one: int


@dataclass(frozen=True)
class _WithoutSlots:
    one: int
    other: str = "default"


@dataclass(slots=True)
class _Checked:
    one: int
    other: int = 0

    def __post_init__(self) -> None:
        self.other = self.one + 1


@dataclass(slots=True)
class _Counting:
    one: int
    other: int = 0
    fixed: int = field(default=7, init=False)


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (_Two(1, "a"), {"one": 2}),
        (_Two(1, "a"), {"one": 2, "other": "b"}),
        (_Three(1, "a", (3,)), {"third": ()}),
        (_Three(1, "a", (3,)), {"one": 5}),
        (_Single(1), {"one": 2}),
        (_WithoutSlots(1), {"other": "b"}),
        (_Checked(1), {"one": 5}),
        (_Counting(1), {"one": 5}),
        (a_turn(SessionKey("acme", "s1")), {"state": TurnState.RUNNING, "tries": 3}),
        (HeadChange(lease=LeaseChange.TAKE), {"queue": ("t1",)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_copy_equals_that_of_the_library(value: Any, changes: dict[str, Any]) -> None:
    before = repr(value)
    copy = replace(value, **changes)
    assert copy == dataclasses.replace(value, **changes)
    assert repr(copy) == repr(dataclasses.replace(value, **changes))
    assert type(copy) is type(value)
    assert repr(value) == before, "the value itself stays as it is"


@pytest.mark.parametrize("value", [_Two(1), _WithoutSlots(1)], ids=lambda value: type(value).__name__)
def test_a_field_that_a_class_lacks_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        replace(value, third=3)


def test_what_is_no_dataclass_is_refused() -> None:
    value: Any = "text"
    with pytest.raises(TypeError):
        replace(value, one=1)


def test_a_copy_calls_one_function() -> None:
    """The library's checks each field, and calls the class."""
    turn = a_turn(SessionKey("acme", "s1"))
    replace(turn, tries=1)
    _, calls = calls_of(lambda: replace(turn, tries=3))
    assert calls.total() == 2, "the lambda's and its own"
