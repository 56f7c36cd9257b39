"""What no honest server sends: many small parts that each look like a repeat. None may cost much on the event loop."""

from typing import Any

import orjson
import pytest

from tests.cpu_time import least_cpu_seconds
from tests.model_servers.streams import calls, choices, chunk, part, sse
from tests.unit.model.reading import read
from turnkeeper.domain.message import FinishReason

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


@pytest.mark.parametrize("events", STREAMS.values(), ids=list(STREAMS))
def test_a_read_of_many_parts_costs_little(events: list[Any]) -> None:
    body = sse(*events, chunk("stop"))
    assert least_cpu_seconds(lambda: read([body])) < 0.1


def test_a_repeat_of_a_thousand_calls_is_no_further_call() -> None:
    outcome = read([sse(*STREAMS["a last chunk that repeats a thousand calls"])])
    assert (outcome.end, len(outcome.calls)) == (FinishReason.TOOL_CALLS, MANY)
