"""What no honest server sends: many small parts that each look like a repeat. None may cost much on the event loop."""

import asyncio
import contextlib
import time
from typing import Any

import orjson
import pytest

from tests.cpu_time import least_cpu_seconds
from tests.model_servers.streams import calls, choices, chunk, part, sse
from tests.unit.model.reading import REQUEST, read
from turnkeeper.domain.message import FinishReason
from turnkeeper.model.answer_reader import AnswerReader
from turnkeeper.model.contract import ModelFailure
from turnkeeper.model.deadline_watch import Deadlines, DeadlineWatch
from turnkeeper.model.openai_stream import read_text
from turnkeeper.model.read_pauses import ReadPauses

LONG = orjson.dumps({"text": "x" * 60_000}).decode()
DEEP_TEXT = '{"a":"' + "}" * 40_000
MANY = 1000
STREAMS: dict[str, list[Any]] = {
    "parts that begin an object after a long one": [
        calls(part(0, "a", "t", LONG)),
        calls(*(part(0, "a", "t", "{") for _ in range(MANY))),
    ],
    "a name in each part of a text of braces": [
        calls(part(0, None, "t", DEEP_TEXT)),
        *(calls(part(0, None, "t", "}")) for _ in range(MANY)),
    ],
    "a last chunk that repeats a thousand calls": [
        calls(*(part(number, None, "t", orjson.dumps({"n": number}).decode()) for number in range(MANY))),
        calls(
            *(part(None, None, "t", orjson.dumps({"n": number}).decode()) for number in reversed(range(MANY))),
            finish="tool_calls",
        ),
    ],
    "empty objects again and again": [
        calls(part(0, "a", "t", "{}")),
        *(calls(part(0, None, None, "{}")) for _ in range(MANY)),
    ],
    "messages with one character more each": [
        choices({"message": {"content": "y" * number}}) for number in range(1, MANY)
    ],
    "messages with the next character each": [
        choices({"message": {"content": "ab"[number % 2]}}) for number in range(4 * MANY)
    ],
    "reasoning in parts": [
        chunk(reasoning_details=[{"type": "reasoning.text", "text": "x", "index": number}]) for number in range(MANY)
    ],
    "fields beside a call in parts": [
        calls({"index": 0, "id": "a", "function": {"name": "t"}, "beside": [{"n": number}]}) for number in range(MANY)
    ],
}


class InParts:
    """A body that arrives in large parts."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def collected(self) -> bytes:
        data, self._data = self._data[: 64 * 1024], self._data[64 * 1024 :]
        return data

    async def read(self) -> bytes | None:
        return self.collected() or None

    def hold(self) -> None:
        """Does nothing: there is no connection."""

    def release(self) -> bool:
        return False


@pytest.mark.parametrize("events", STREAMS.values(), ids=list(STREAMS))
def test_a_read_of_many_parts_costs_little(events: list[Any]) -> None:
    body = sse(*events, chunk("stop"))
    assert least_cpu_seconds(lambda: read([body])) < 0.1


SO = b'data: {"choices":[{"delta":{"content":"So."},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
MIB = 1024 * 1024
LARGE: dict[str, tuple[bytes, bytes, bytes]] = {
    "a head of lists": (b'{"choices":[],"x":[', b"[[[]]],", b"1]}"),
    "text of halves of characters": (b'{"choices":[{"delta":{"content":"', b"\xf0\x9f", b'"}}]}'),
    "text of escaped halves": (b'{"choices":[{"delta":{"content":"', rb"\ud83c", b'"}}]}'),
    "a list of parts": (b'{"choices":[{"delta":{"content":[', b'"",', b'""]}}]}'),
    "fields beside the text": (b'{"choices":[{"delta":{"content":"a","x":[', b"1e300,", b"1]}}]}"),
    "fields beside a call": (b'{"choices":[{"delta":{"tool_calls":[{"id":"a","x":[', b"1e300,", b"1]}]}}]}"),
    "an error": (b'{"error":{"message":"no","x":["\\ud800",', b"1,", b"1]}}"),
    "an error that is JSON in a text": (b'{"error":{"message":"{\\"a\\":[', b"{},", b'1]}"}}'),
    "a finish word": (b'{"choices":[{"delta":{},"finish_reason":"', b"[", b'"}]}'),
    "the model's name": (b'{"choices":[],"model":"', b"\xf0\x9f", b'"}'),
    "JSON in one piece": (b'[{"choices":[],"x":[', b"1,", b"1]}]"),
}


@pytest.mark.parametrize("form", LARGE.values(), ids=list(LARGE))
def test_a_chunk_of_2_mib_costs_the_event_loop_little(form: tuple[bytes, bytes, bytes]) -> None:
    begin, repeated, end = form
    content = begin + repeated * ((2 * MIB - 200) // len(repeated)) + end
    data = content if begin.startswith(b"[{") else b"data: " + content + b"\n\n" + SO

    async def read_it() -> None:
        watch = DeadlineWatch(Deadlines(), loop=asyncio.get_running_loop())
        with watch, contextlib.suppress(ModelFailure):
            reader = AnswerReader(REQUEST, max_answer_bytes=200 * 1024)
            async for _ in read_text(InParts(data), reader, watch, ReadPauses(lambda: 0.0, now=time.monotonic)):
                pass
            reader.answer()

    assert least_cpu_seconds(lambda: asyncio.run(read_it())) < 0.05


def test_a_repeat_of_a_thousand_calls_is_no_further_call() -> None:
    outcome = read([sse(*STREAMS["a last chunk that repeats a thousand calls"])])
    assert (outcome.end, len(outcome.calls)) == (FinishReason.TOOL_CALLS, MANY)
