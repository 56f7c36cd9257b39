"""Ids: lower-case ULIDs, sortable, and derived ones that are the same everywhere."""

import re
import secrets
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper import ids

ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")
numbers = st.integers(0, (1 << 128) - 1)
words = st.lists(st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=4)


@given(numbers)
def test_a_number_has_26_characters_and_can_be_read_back(number: int) -> None:
    text = ids.encode(number)
    assert ULID.fullmatch(text)
    value = 0
    for character in text:
        value = value * 32 + ids.ALPHABET.index(character)
    assert value == number


@given(numbers, numbers)
def test_texts_sort_as_their_numbers(one: int, other: int) -> None:
    assert (ids.encode(one) < ids.encode(other)) == (one < other)


def test_a_known_ulid() -> None:
    assert ids.ulid(milliseconds=1469918176385, random_bits=0) == "01aryz6s410000000000000000"


def test_more_random_bits_than_80_do_not_reach_the_time() -> None:
    assert ids.ulid(milliseconds=1, random_bits=(1 << 90) - 1)[:10] == ids.ulid(milliseconds=1, random_bits=0)[:10]


def test_a_later_id_is_greater() -> None:
    clock = iter([1.0, 1.5, 2.0, 3600.0])
    new_ids = [make() for make in [ids.source(lambda: next(clock), lambda bits: (1 << bits) - 1)] * 4]
    assert all(one < other for one, other in pairwise(new_ids))


def test_random_bits_are_fetched_for_many_ids_and_none_is_used_twice() -> None:
    fetched: list[bytes] = []

    def fetch(size: int) -> bytes:
        fetched.append(secrets.token_bytes(size))
        return fetched[-1]

    random_bits = ids.RandomBits(fetch)
    used = b"".join(random_bits(80).to_bytes(10) for _ in range(150))
    assert used == b"".join(fetched)[: len(used)]
    assert len(fetched) == 3


def test_odd_numbers_of_random_bits_have_no_more_bits() -> None:
    random_bits = ids.RandomBits(lambda size: b"\xff" * size)
    assert [random_bits(bits) for bits in (1, 7, 9, 80)] == [1, 127, 511, (1 << 80) - 1]
    assert random_bits(8 * ids.FETCHED_BYTES + 8) == (1 << (8 * ids.FETCHED_BYTES + 8)) - 1


@given(words)
def test_derived_ids_are_the_same_everywhere(parts: list[str]) -> None:
    assert ids.derived(*parts) == ids.derived(*parts)
    assert ULID.fullmatch(ids.derived(*parts))


@pytest.mark.parametrize("other", [("a", "bc"), ("abc",), ("", "abc"), ("ab", "c", "")])
def test_derived_ids_keep_the_parts_apart(other: tuple[str, ...]) -> None:
    assert ids.derived("ab", "c") != ids.derived(*other)


def test_a_derived_id_never_changes() -> None:
    """Stored sessions are found by it."""
    assert ids.derived("default", "default", "request-1") == "2m8kha5m5txb1ry70a30bnk9nb"
