"""Events come out whole, wherever the bytes were cut, as the WHATWG standard reads them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.model.reading import by_the_standard
from turnkeeper.model.sse import DONE, EventReader, EventTooLong

STREAM = """\
: a comment
data: Grüße 世界 👩‍🚀 a\u2028b\u0085c\u000bd

event: x
data:one
data: two


data
id: 9\r
data:  last\r
\r
data:

data

data:text\r\rDATA: x\rdatax: x\r data: x\rdata : x\r\rdata: {"a":\r\ndata: 1}\r

data: [DONE]
""".encode()
EVENTS = ["Grüße 世界 👩‍🚀 a\u2028b\u0085c\u000bd".encode(), b"one\ntwo", b"\n last", b"text", b'{"a":\n1}', DONE]
FRAGMENTS = st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: ",
        b":",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"x",
        b"{}",
        b"id: 1",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
    ]
)


def events_of(parts: list[bytes]) -> list[bytes]:
    reader = EventReader(max_event_bytes=1000)
    return [event for part in parts for event in reader.feed(part)]


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(edge % (len(stream) + 1) for edge in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    assert events_of(cut(STREAM, cuts)) == EVENTS


def test_one_byte_at_a_time() -> None:
    assert events_of([bytes([byte]) for byte in STREAM]) == EVENTS


@given(st.lists(FRAGMENTS, max_size=30), st.lists(st.integers(0, 1000), max_size=8))
def test_any_stream_is_read_as_the_standard_reads_it(fragments: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(fragments)
    assert events_of(cut(stream, cuts)) == by_the_standard(stream)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("done", ["[DONE]", " [DONE]", "  [DONE]\t ", "[DONE] "])
def test_the_end_counts_with_its_line_and_with_spaces(done: str, end: str) -> None:
    assert events_of([f"data: x{end}{end}data:{done}{end}".encode()]) == [b"x", DONE]
    assert events_of([f"data:{done}{end}{end}".encode()]) == [DONE]


@pytest.mark.parametrize(
    "stream", [b"data: half\n", b"data: half", b"data:\n\n", b"data\n\n", b"data: \n\n", b"data:\ndata:\n\n"]
)
def test_an_event_without_data_or_without_its_empty_line_never_counts(stream: bytes) -> None:
    assert events_of([stream]) == []


@pytest.mark.parametrize("mark", [[b"\xef\xbb\xbf"], [b"\xef", b"\xbb", b"\xbf"]])
def test_a_byte_order_mark_may_stand_first(mark: list[bytes]) -> None:
    assert events_of([*mark, b"data: x\n\n"]) == [b"x"]
    assert events_of([b"data: x\n\n", *mark, b"data: y\n\n"]) == [b"x"]


@pytest.mark.parametrize("part", [b"x" * 30, b": comment " * 3, b"data: line\n" * 5, b"data\n" * 20])
def test_what_never_ends_is_refused(part: bytes) -> None:
    reader = EventReader(max_event_bytes=100)
    with pytest.raises(EventTooLong):
        [reader.feed(part) for _ in range(10)]


def test_many_events_are_not_one_long_one() -> None:
    reader = EventReader(max_event_bytes=100)
    assert sum(len(reader.feed(b"data: 0123456789\n\n: comment\n")) for _ in range(1000)) == 1000


def test_many_events_in_one_read_are_not_one_long_one() -> None:
    assert len(events_of([b'data: {"n":1}\n\n' * 1000])) == 1000
