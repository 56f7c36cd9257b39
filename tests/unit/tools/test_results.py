"""What a tool returns becomes a result, or a sentence for the model; its size never decides what that costs."""

import itertools
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pydantic
import pytest

from tests.cpu_time import least_cpu_seconds
from turnkeeper.tools.results import RESULT_BYTES, UnfitResult, check_size, result_text


class Page(pydantic.BaseModel):
    parts: list[int] = []


@dataclass
class Book:
    pages: list[Page] = field(default_factory=list)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "é", [], {"a": [1, {"b": None}]}, nested(64), "x" * 65_534])
def test_a_value_of_json_is_its_text(value: Any) -> None:
    assert json.loads(result_text(value)) == value


@pytest.mark.parametrize("value", [[], {}, (1, 2), {3}, deque([1]), Page(), Book([Page(parts=[1])]), b"x", Page])
def test_other_small_values_may_become_json(value: object) -> None:
    check_size(value)


def many() -> list[int]:
    return [0] * 5_000_000


TOO_LARGE: dict[str, Callable[[], object]] = {
    "a text of 100 MB": lambda: "x" * 100_000_000,
    "many numbers": many,
    "many lists": lambda: [many()] * 5_000_000,
    "a set": lambda: set(range(200_000)),
    "a deque": lambda: deque(many()),
    "a model": lambda: Page.model_construct(parts=many()),
    "models in a value": lambda: Book([Page.model_construct(parts=many())]),
    "names": lambda: {"x" * 2_000_000: 1},
    "values": lambda: dict.fromkeys(range(200_000), 0),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_refused_before_it_is_copied(name: str) -> None:
    value = TOO_LARGE[name]()

    def check() -> None:
        with pytest.raises(UnfitResult, match=f"The result has more than {RESULT_BYTES} bytes"):
            check_size(value)

    assert least_cpu_seconds(check) < 0.1


def test_a_text_a_little_too_large_is_told_its_size() -> None:
    with pytest.raises(UnfitResult, match="The result has 65537 bytes; at most 65536 are passed on"):
        result_text("x" * 65_535)


@pytest.mark.parametrize("value", [nested(65), endless(), [{"a": nested(64)}]], ids=["deep", "endless", "inside"])
def test_64_levels_are_the_most(value: object) -> None:
    with pytest.raises(UnfitResult, match="nested deeper than 64 levels"):
        result_text(value)


@pytest.mark.parametrize(
    "value",
    [float("nan"), [float("inf")], "\ud800", {"a": object()}, {(1, 2): 3}, 10**5000, 10**400, itertools.count()],
    ids=["nan", "inf", "half", "object", "key", "5,000 digits", "400 digits", "iterator"],
)
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(UnfitResult, match="something that JSON cannot hold"):
        result_text(value)
