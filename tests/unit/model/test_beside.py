"""What came beside a call is kept whole or not at all, and has room where it is stored."""

from contextlib import suppress
from typing import Any

import orjson
import pytest

from tests.builders import NOON
from tests.model_servers.streams import PARIS, calls, chunk, part, sse
from tests.unit.model.reading import answer_of
from turnkeeper.domain.event import MessageCompleted, NewEvent
from turnkeeper.domain.message import MOST_CALLS, Part, ToolRequest
from turnkeeper.model.beside import origin_of, packed, unpacked
from turnkeeper.model.contract import ModelAnswer, ModelFailure
from turnkeeper.pb.v1 import message_pb2
from turnkeeper.rpc import codec
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.mongo.events import numbered

KIB = 1024
ONE_CALL = calls(part(0, "a", "get_weather", PARIS))


def kept(*events: object) -> Any:
    answer = answer_of([sse(*events, chunk("tool_calls"))])
    return orjson.loads(answer.tool_requests[0].provider_json)


def stored(answer: ModelAnswer) -> int:
    """Returns the size of the event that holds the answer. Raises ValueError if the store refuses it."""
    message = MessageCompleted(
        message_id="m" * 26,
        content=(Part(text=answer.text),),
        tool_requests=tuple(
            ToolRequest(
                tool_call_id=f"call_{number:026}",
                tool=call.tool,
                arguments_json=call.arguments_json,
                provider_json=call.provider_json,
            )
            for number, call in enumerate(answer.tool_requests)
        ),
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        model=answer.model,
    )
    return len(numbered(WireCodec(), "s" * 36, NewEvent(payload=message, at=NOON, turn_id="t" * 36), 1).payload)


def test_long_reasoning_is_cut_and_anything_else_left_out() -> None:
    reasoning = [chunk(reasoning_content="x" * 1000) for _ in range(100)]
    assert len(kept(*reasoning, ONE_CALL)["message"]["reasoning_content"]) == 32 * KIB
    details = [chunk(reasoning_details=[{"type": "reasoning.text", "text": "x" * 1000, "signature": "s"}])] * 100
    assert "message" not in kept(*details, ONE_CALL)


def test_more_beside_calls_than_an_answer_may_have_is_a_failure() -> None:
    with pytest.raises(ModelFailure) as caught:
        kept(calls(part(0, "a", "t", "{}", extra_content="x" * 201 * KIB)))
    assert caught.value.detail.metadata["reason"] == "ANSWER_TOO_LONG"


@pytest.mark.parametrize(
    "events",
    [
        [chunk(content="x" * 167 * KIB), chunk(reasoning="y" * 40 * KIB), calls(part(0, "i" * 32 * KIB, "t", "{}"))],
        [calls(*(part(number, f"{number:0120}", "t" * 10, "{}") for number in range(MOST_CALLS)))],
        [calls(*(part(number, "", "t", "{}", x={"y": 1}) for number in range(MOST_CALLS)))],
    ],
    ids=["text and reasoning", "ids", "fields"],
)
def test_the_largest_answers_have_room_in_an_event(events: list[object]) -> None:
    answer = answer_of([sse(*events, chunk("tool_calls"))])
    assert stored(answer) <= 264 * KIB


@pytest.mark.parametrize("text_size", [0, 180 * KIB])
@pytest.mark.parametrize("character", ["\\u0001", '\\"', "\\ud83c", "\U0001f30d", "\\u2028"])
def test_what_is_kept_is_an_answer_that_can_be_stored_or_a_failure(character: str, text_size: int) -> None:
    call = sse(calls(part(0, "HERE", "t", "{}"))).replace(b"HERE", character.encode() * 15_000)
    body = sse(chunk(content="x" * text_size)) + call + sse(chunk("tool_calls"))
    body = body.replace(b"data: [DONE]\n\n", b"")
    with suppress(ModelFailure):
        answer = answer_of([body])
        assert stored(answer) <= 264 * KIB


def test_it_is_of_one_model_at_one_server() -> None:
    origin = origin_of(("model.example", 443), "small")
    text = packed(origin=origin, call_id="a", call={"x": 1}, function={}, message={})
    assert unpacked(text, origin=origin) == {"of": origin, "id": "a", "call": {"x": 1}}
    for other in (origin_of(("model.example", 443), "large"), origin_of(("model.example", 80), "small"), ""):
        assert unpacked(text, origin=other) == {}
    assert "model.example" not in text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"of":1}', '"x"'])
def test_text_that_is_not_ours_is_nothing(text: str) -> None:
    assert unpacked(text, origin="o") == {}


def test_a_call_of_an_earlier_version_has_nothing_kept() -> None:
    earlier = message_pb2.ToolRequest(tool_call_id="call_1", tool="t", arguments_json="{}").SerializeToString()
    assert codec.read(ToolRequest, message_pb2.ToolRequest.FromString(earlier)) == ToolRequest(
        tool_call_id="call_1", tool="t", arguments_json="{}"
    )
