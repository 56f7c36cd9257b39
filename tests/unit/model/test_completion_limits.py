"""What no honest server sends: every answer is a whole answer or a failure, and its parts fit where they are stored."""

from typing import Any

import orjson
import pytest

from tests.cpu_time import least_cpu_seconds
from turnkeeper.domain.message import MOST_CALLS, MOST_TOKENS, FinishReason, Message, Role
from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest

REQUEST = ModelRequest(model="asked-for", messages=(Message(role=Role.USER, text="hello"),))
KIB = 1024


def chunk(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def a_call(number: int, **given: Any) -> dict[str, Any]:
    return {"index": number, "id": f"c{number}", "function": {"name": "t", "arguments": "{}"}, **given}


def answer_to(*events: bytes | dict[str, Any], request: ModelRequest = REQUEST, cap: int = 200 * KIB) -> ModelAnswer:
    completion = Completion(request, max_answer_bytes=cap)
    for event in events:
        completion.take(event if isinstance(event, bytes) else orjson.dumps(event))
    completion.end()
    return completion.finish()


def reason_of(*events: bytes | dict[str, Any]) -> str:
    with pytest.raises(ModelFailure) as caught:
        answer_to(*events)
    return caught.value.detail.metadata["reason"]


@pytest.mark.parametrize("levels", [62, 300, 1024, 100_000])
@pytest.mark.parametrize(
    "where", [b'{"x":%s}', b'{"choices":[],"usage":%s}', b'{"choices":[{"delta":{"content":%s}}]}']
)
def test_a_chunk_nested_deep_is_passed_over_or_a_failure(levels: int, where: bytes) -> None:
    events = (where % (b"[" * levels + b"]" * levels), chunk("stop", content="so"))
    if levels == 62 and b"content" not in where:
        assert answer_to(*events).text == "so"
        return
    assert reason_of(*events) == "MALFORMED"


@pytest.mark.parametrize("levels", [50, 300])
def test_arguments_that_are_an_object_become_its_text_or_a_failure(levels: int) -> None:
    arguments = b'{"a":' + b"[" * levels + b"]" * levels + b"}"
    call = b'{"index":0,"id":"c","function":{"name":"t","arguments":%s}}' % arguments
    events = (b'{"choices":[{"delta":{"tool_calls":[%s]}}]}' % call, chunk("tool_calls"))
    if levels == 300:
        assert reason_of(*events) == "MALFORMED"
        return
    assert answer_to(*events).tool_requests[0].arguments_json == arguments.decode()


def test_half_a_character_in_an_object_of_arguments_becomes_a_whole_one() -> None:
    event = rb'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"t","arguments":{"a":"\ud83d"}}}]}}]}'
    assert answer_to(event, chunk("tool_calls")).tool_requests[0].arguments_json == '{"a":"\ufffd"}'


@pytest.mark.parametrize(
    ("reported", "counted"),
    [
        (2**63 - 1, MOST_TOKENS),
        (2**64 - 1, MOST_TOKENS),
        (MOST_TOKENS, MOST_TOKENS),
        (7, 7),
        (-1, 0),
        (True, 0),
        (1.5, 0),
        ("7", 0),
        (None, 0),
    ],
)
def test_a_count_of_tokens_has_bounds(reported: object, counted: int) -> None:
    usage = {"prompt_tokens": reported, "completion_tokens": reported}
    answer = answer_to({"choices": [], "usage": usage}, chunk("stop", content="so"))
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (counted, counted)
    assert type(answer.usage.input_tokens) is int


def test_the_servers_name_of_the_model_is_cut() -> None:
    name = answer_to({**chunk("stop", content="so"), "model": "m" * 300_000}).model
    assert name == "m" * 256
    half = orjson.dumps({**chunk("stop", content="so"), "model": "HALF"}).replace(b"HALF", rb"\ud83d")
    assert answer_to(half).model == "\ufffd"


def test_so_many_calls_are_an_answer_and_no_more() -> None:
    calls = [a_call(number) for number in range(MOST_CALLS)]
    answer = answer_to(chunk("tool_calls", tool_calls=calls))
    assert (len(answer.tool_requests), answer.finish_reason) == (MOST_CALLS, FinishReason.TOOL_CALLS)
    assert reason_of(chunk(tool_calls=calls), chunk("tool_calls", tool_calls=[a_call(MOST_CALLS)])) == "ANSWER_TOO_LONG"


def test_calls_without_ids_after_a_long_conversation_cost_little() -> None:
    messages = tuple(Message(role=Role.USER, text=f"{number} " * 500) for number in range(1000))
    request = ModelRequest(model="m", messages=messages)
    calls = [a_call(number, id="") for number in range(MOST_CALLS)]
    events = [chunk("tool_calls", tool_calls=calls)]
    assert least_cpu_seconds(lambda: answer_to(*events, request=request)) < 0.1
    answer = answer_to(*events, request=request)
    assert len({call.tool_call_id for call in answer.tool_requests}) == MOST_CALLS


def test_a_long_answer_in_another_choice_than_the_first_is_whole() -> None:
    words = [{"model": "m" * 100, "choices": [{"index": 1, "delta": {"content": "word "}}]} for _ in range(3000)]
    answer = answer_to(*words, {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]})
    assert answer.text == "word " * 3000


def test_a_long_answer_whose_tokens_are_numbered_is_whole() -> None:
    words = [
        {"model": "m" * 100, "choices": [{"index": place, "delta": {"content": "word "}}]} for place in range(3000)
    ]
    answer = answer_to(*words, {"choices": [{"index": 3000, "delta": {}, "finish_reason": "stop"}]})
    assert answer.text == "word " * 3000


def test_a_call_in_a_choice_without_index_is_whole_or_a_failure() -> None:
    call = {"delta": {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "t", "arguments": "x" * 100}}]}}
    both = {"model": "m" * 100, "choices": [{"delta": {"content": "word "}}, call]}
    assert reason_of(*[both] * 1500, chunk("stop")) == "ANSWER_TOO_LONG"


@pytest.mark.parametrize(
    ("events", "output"),
    [
        ([chunk("content_filter")], "none"),
        ([chunk("refusal")], "none"),
        ([{"error": {"code": "content_filter", "message": "no"}}], "none"),
        ([chunk(content="So"), chunk("content_filter")], None),
        ([chunk(content="So"), {"error": {"code": "content_filter", "message": "no"}}], None),
    ],
)
def test_a_refusal_before_any_output_is_one_of_the_request(events: list[dict[str, Any]], output: str | None) -> None:
    with pytest.raises(ModelFailure) as caught:
        answer_to(*events)
    assert caught.value.detail.metadata.get("output") == output


def test_two_answers_are_not_joined() -> None:
    one = {"choices": [{"index": 0, "delta": {"content": "One"}}]}
    other = {"choices": [{"index": 1, "delta": {"content": "Other"}, "finish_reason": "stop"}]}
    assert reason_of(one, other) == "NO_FINISH_REASON"
