"""JSON text from outside: one reader, one limit of depth, and nothing that costs more than its length."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.domain.json_text import MOST_LEVELS, UnfitJson, check_levels, exact_value, object_problem, problem_of


def nested(levels: int, *, inner: str = "1", left: str = "[", right: str = "]") -> str:
    return left * levels + inner + right * levels


NO_MODEL_TAKES = [
    "",
    "text",
    "{",
    "NaN",
    '{"a": Infinity}',
    "1e999",
    "1" * 400,
    '"\\ud800"',
    "\ud800",
]


@pytest.mark.parametrize(
    "text", ["1", '"é"', "null", "[]", '{"a": [1, 2.5]}', " {} ", nested(64), '"' + "[" * 99 + '"']
)
def test_a_text_that_every_reader_takes_has_no_problem(text: str) -> None:
    assert problem_of(text) == ""
    assert exact_value(text) == json.loads(text)


@pytest.mark.parametrize("text", NO_MODEL_TAKES)
def test_a_text_that_no_model_can_be_sent_is_not_json(text: str) -> None:
    assert problem_of(text) == "is not JSON"
    assert object_problem(text) == "is not a JSON object"


@pytest.mark.parametrize(
    "text", [nested(65), nested(33, left='{"a":[', right="]}"), "[" * 100_000, nested(1024), "[]" * 9 + nested(65)]
)
def test_64_levels_are_the_most(text: str) -> None:
    for read in (check_levels, exact_value):
        with pytest.raises(UnfitJson, match="is nested deeper than 64 levels"):
            read(text)
    assert problem_of(text) == object_problem(text) == "is nested deeper than 64 levels"
    with pytest.raises(UnfitJson):
        check_levels(text.encode())


@pytest.mark.parametrize("text", ["1", "[]", "null", '"{}"'])
def test_other_values_are_not_objects(text: str) -> None:
    assert object_problem(text) == "is not a JSON object"


def test_an_object_is_one() -> None:
    assert object_problem('{"type": "object"}') == ""


def test_what_a_model_wrote_is_read_exactly() -> None:
    assert exact_value('["\\ud83d", 12345678901234567890, 0.1]') == ["\ud83d", 12345678901234567890, 0.1]
    assert exact_value("1" * 308) == int("1" * 308)
    with pytest.raises(UnfitJson, match="a number that is too large"):
        exact_value("-" + "1" * 310)
    for number in (
        "1e400",
        "-1E+999",
        "1" * 310 + ".5",
    ):
        with pytest.raises(UnfitJson, match="a number that is too large"):
            exact_value(f'{{"a": [{number}]}}')
    assert exact_value("[1e308, 1e-400, 0e999]") == [1e308, 0.0, 0.0]


keys = st.text(alphabet='[{"\\', max_size=3)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def depth_of(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + max(map(depth_of, value if isinstance(value, list) else value.values()), default=0)


@given(values, st.integers(min_value=MOST_LEVELS - 3, max_value=MOST_LEVELS + 1))
def test_brackets_in_texts_are_no_levels(value: Any, around: int) -> None:
    text = nested(around, inner=json.dumps(value))
    is_unfit = around + depth_of(value) > MOST_LEVELS
    assert problem_of(text) == ("is nested deeper than 64 levels" if is_unfit else "")


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 500_000 + "[{" * 40,
        '"\\' * 500_000 + "[" * 65,
        "[" * 1_000_000,
        "[{}," * 20 + "{}," * 300_000,
        '"' * 500_000 + "[" * 65,
    ],
    ids=["escaped quotes", "open escapes", "brackets", "flat", "quotes"],
)
def test_a_megabyte_is_looked_through_in_linear_time(text: str) -> None:
    began = time.thread_time()
    problem_of(text)
    assert time.thread_time() - began < 1
