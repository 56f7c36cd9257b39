"""JSON texts of requests: a text is stored only if a model can be sent it."""

import pytest

from turnkeeper.rpc.json_text import is_json, is_json_object

NO_MODEL_TAKES = [
    "",
    "text",
    "{",
    "NaN",
    '{"a": Infinity}',
    "1e999",
    '"\\ud800"',
    "\ud800",
    "[" * 100_000 + "]" * 100_000,
]


@pytest.mark.parametrize("text", ["1", '"é"', "null", "[]", '{"a": [1, 2.5]}', " {} "])
def test_a_text_that_every_reader_takes_is_json(text: str) -> None:
    assert is_json(text)


@pytest.mark.parametrize("text", NO_MODEL_TAKES)
def test_a_text_that_no_model_can_be_sent_is_not_json(text: str) -> None:
    assert not is_json(text)
    assert not is_json_object(text)


@pytest.mark.parametrize("text", ["1", "[]", "null", '"{}"'])
def test_other_values_are_no_objects(text: str) -> None:
    assert not is_json_object(text)


def test_an_object_is_one() -> None:
    assert is_json_object('{"type": "object"}')
