"""JSON in lines: nothing but white space is other than in the text, and nothing hides."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.terminal.json_lines import hidden_characters, in_lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
def test_it_is_the_same_json_as_python_would_write_it(value: object) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)
        assert in_lines(text) == json.dumps(value, indent=2, ensure_ascii=ascii_only)


@pytest.mark.parametrize("text", ["1e400", "123456789012345678901234567890.5", '"\\u202e\\u0041"', "not JSON at all"])
def test_no_value_is_read(text: str) -> None:
    assert in_lines(text).replace(" ", "") == text.replace(" ", "")


def test_hidden_characters_have_names() -> None:
    text = r'{"to":"a\u202eb\u202e","x":"\\u200b\u00a0\u0041\ud83d\ude00\udb40\udc41"}'
    assert hidden_characters(text) == {
        "U+202E RIGHT-TO-LEFT OVERRIDE": 2,
        "U+00A0 NO-BREAK SPACE": 1,
        "U+E0041 TAG LATIN CAPITAL LETTER A": 1,
    }
