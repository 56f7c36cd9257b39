"""Events come out whole, wherever the bytes were cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.model.sse import DONE, EventReader, EventTooLong

STREAM = """\
: a comment
data: Grüße 世界 👩‍🚀 a\u2028b\u0085c

event: x
data:one
data: two


data
id: 9\r
data: last\r
\r
data: [DONE]
""".encode()
EVENTS = ["Grüße 世界 👩‍🚀 a\u2028b\u0085c".encode(), b"one\ntwo", b"last", DONE]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    reader = EventReader(max_event_bytes=1000)
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[start:end] for start, end in pairwise(edges)]
    assert [event for part in parts for event in reader.feed(part)] == EVENTS


def test_one_byte_at_a_time() -> None:
    reader = EventReader(max_event_bytes=1000)
    assert [event for byte in STREAM for event in reader.feed(bytes([byte]))] == EVENTS


def test_an_event_without_its_empty_line_never_counts() -> None:
    assert EventReader(max_event_bytes=1000).feed(b"data: half\n") == []


@pytest.mark.parametrize("part", [b"x" * 30, b": comment " * 3, b"data: line\n" * 5])
def test_what_never_ends_is_refused(part: bytes) -> None:
    reader = EventReader(max_event_bytes=100)
    with pytest.raises(EventTooLong):
        [reader.feed(part) for _ in range(10)]


def test_many_events_are_not_one_long_one() -> None:
    reader = EventReader(max_event_bytes=100)
    assert sum(len(reader.feed(b"data: 0123456789\n\n: comment\n")) for _ in range(1000)) == 1000
