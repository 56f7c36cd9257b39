"""Events that differ in their text alone are read by the bytes around it, and give what a parse of each gives."""

import random
from collections import deque
from collections.abc import Sequence

import orjson
import pytest

from tests.call_counts import calls_of
from tests.model_servers.streams import chunk
from tests.unit.model.reading import REQUEST
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelFailure

PARSE = Completion.text_alone.__qualname__
ENDS = b"data: " + orjson.dumps(chunk("stop")) + b"\n\ndata: [DONE]\n\n"
TEXTS = (
    "a",
    "né",
    "日本",
    '"',
    "\\",
    "\n",
    "\u2028",
    " ",
    '{"content":"x"}',
    '"},"finish_reason":null',
    "?",
    "😀",
    "stop",
)


def event(text: str, **more: object) -> bytes:
    return b"data: " + orjson.dumps({**chunk(content=text), **more}) + b"\n\n"


def escaped(body: str) -> bytes:
    """Returns an event whose text is these bytes of JSON."""
    return event("MARK").replace(b"MARK", body.encode())


def reader_of(reads: Sequence[bytes], *, most: int = 200 * 1024) -> AnswerReader:
    reader = AnswerReader(REQUEST, max_answer_bytes=most)
    for data in reads:
        reader.feed(data)
    return reader


def parses_of(reader: AnswerReader, reads: Sequence[bytes]) -> int:
    """Reads these; returns how many events were parsed."""
    _, counts = calls_of(lambda: deque(map(reader.feed, reads), maxlen=0))
    return counts[PARSE]


def test_a_hundred_reads_need_the_parses_of_the_first_two() -> None:
    reads = [event(f"{number} ") + event("né\n") for number in range(100)]
    reader = reader_of(reads[:2])
    assert parses_of(reader, reads[2:]) == 0
    reader.feed(ENDS)
    assert reader.answer().text == "".join(f"{number} né\n" for number in range(100))
    assert reader.tokens == 201


def test_events_that_differ_in_more_are_not_compared_for_ever() -> None:
    reads = [event("a", created=number) for number in range(1000)]
    reader = reader_of([])
    assert parses_of(reader, reads) <= 1000 + 2 * 8, "one each, and two for each event that was learnt in vain"
    reader.feed(ENDS)
    assert reader.answer().text == "a" * 1000


@pytest.mark.parametrize("seed", range(40))
def test_reads_of_any_texts_give_what_single_parts_give(seed: int) -> None:
    chance = random.Random(seed)
    events = [event(chance.choice(TEXTS)) for _ in range(60)]
    if seed % 2:
        events[chance.randrange(60)] = event("x", created=1)
        events[chance.randrange(60)] = b"event: error\n"
        events[chance.randrange(60)] = b": a comment\n\n"
        events[chance.randrange(60)] = escaped("\\ud83d") + escaped("\\ude00")
        events[chance.randrange(60)] = b"data: " + orjson.dumps(chunk(content="y", role="assistant")) + b"\n\n"
    reads, rest = list[bytes](), b"".join(events) + ENDS
    while rest:
        size = chance.randint(1, 9) * len(events[0]) if chance.random() < 0.7 else chance.randint(1, 300)
        cut = rest.rfind(b"\n\n", 0, size) + 2 if chance.random() < 0.8 else size
        reads.append(rest[: cut if cut > 1 else size])
        rest = rest[len(reads[-1]) :]
    together = reader_of(reads)
    apart = reader_of([bytes([byte]) for data in reads for byte in data])
    assert (together.answer().text, together.tokens) == (apart.answer().text, apart.tokens)


@pytest.mark.parametrize(
    "body",
    ["", "a\\", '\\",\\"', '"', "a\tb", "\\u12", '"},"finish_reason":"length"}]}', "\\ud83d"],
    ids=["empty", "open escape", "escaped quotes", "a quote", "a tab", "half an escape", "another end", "a half"],
)
def test_a_text_that_is_no_string_of_its_own_is_read_with_its_event(body: str) -> None:
    known = [event("a"), event("b")]
    read: list[object] = []
    for way in (
        [*known, escaped(body) + event("nc"), ENDS],
        [bytes([byte]) for byte in b"".join([*known, escaped(body), event("nc"), ENDS])],
    ):
        try:
            reader = reader_of(way)
            read.append((reader.answer(), reader.tokens))
        except ModelFailure as failed:
            read.append(str(failed.detail))
    assert read[0] == read[1]


def test_the_text_of_another_field_is_not_taken_for_the_answers() -> None:
    reads = [event("m-1"), event("stop", id="stop"), *[event("x", system_fingerprint="x")] * 2]
    reader = reader_of([*reads, event("x", system_fingerprint="y"), event("z", system_fingerprint="x"), ENDS])
    assert reader.answer().text == "m-1stopxxxz"


def test_an_event_behind_the_beginning_of_a_line_is_a_part_of_that_line() -> None:
    reader = reader_of([event("a"), event("b"), event("c"), b": a comment, and then ", event("d"), ENDS])
    assert reader.answer().text == "abc"


def test_text_beyond_the_room_of_an_answer_fails_where_it_does_event_by_event() -> None:
    def shown(reads: Sequence[bytes]) -> str:
        reader = AnswerReader(REQUEST, max_answer_bytes=45)
        with pytest.raises(ModelFailure):
            deque(map(reader.feed, reads))
        return reader.new_text()

    events = [event("0123456789") for _ in range(6)]
    assert shown([events[0], events[1], b"".join(events[2:])]) == shown(events) == "0123456789" * 4
