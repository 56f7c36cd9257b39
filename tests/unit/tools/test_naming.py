"""The names of servers' tools: as they are where they fit, otherwise mapped with a piece of their hash."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.tools.naming import FORM, full_name


def test_a_name_that_fits_stays() -> None:
    assert full_name("time", "get_current_time") == "time__get_current_time"
    assert full_name("git", "x" * 59) == f"git__{'x' * 59}"


@pytest.mark.parametrize(
    ("foreign", "mapped"),
    [
        ("read.text", "files__read_text_4b02e3"),
        ("größe", "files__gr__e_d353a2"),
        ("", "files___e3b0c4"),
        ("x" * 58, f"files__{'x' * 50}_5ef8b2"),
        ("\ud800", "files____91a681"),
    ],
)
def test_a_name_that_does_not_fit_is_mapped(foreign: str, mapped: str) -> None:
    assert full_name("files", foreign) == mapped


@given(st.text(), st.text())
def test_each_name_is_one_that_models_accept_and_has_one_tool(one: str, other: str) -> None:
    first, second = full_name("a" * 32, one), full_name("a" * 32, other)
    assert FORM.fullmatch(first)
    assert FORM.fullmatch(second)
    assert (first == second) == (one == other)
