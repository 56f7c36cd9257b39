"""Chunks become one answer, in the many ways that servers cut them."""

import logging
from typing import Any

import orjson
import pytest

from turnkeeper.domain.message import FinishReason, Message, Role
from turnkeeper.model.completion import Completion
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.model.failure import Reason

REQUEST = ModelRequest(model="asked-for", messages=(Message(role=Role.USER, text="hello"),))


def delta(finish: str | None = None, **fields: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def part(
    index: int | None, *, call_id: str | None = None, name: str | None = None, arguments: object = None
) -> dict[str, Any]:
    call: dict[str, object] = {} if index is None else {"index": index}
    if call_id is not None:
        call["id"] = call_id
    return delta(tool_calls=[{**call, "function": {"name": name, "arguments": arguments}}])


def put_together(*chunks: object, request: ModelRequest = REQUEST, cap: int = 10_000) -> tuple[list[str], ModelAnswer]:
    completion = Completion(request, max_answer_bytes=cap)
    texts: list[str] = []
    for chunk in chunks:
        completion.take(chunk if isinstance(chunk, bytes) else orjson.dumps(chunk))
        texts.append(completion.new_text())
    completion.end()
    texts.append(completion.new_text())
    return [text for text in texts if text], completion.finish()


def calls_of(*chunks: object) -> list[tuple[str, str, str]]:
    _, answer = put_together(*chunks, delta("tool_calls"))
    return [(call.tool_call_id, call.tool, call.arguments_json) for call in answer.tool_requests]


def reason_of(*chunks: object, cap: int = 10_000) -> str:
    with pytest.raises(ModelFailure) as caught:
        put_together(*chunks, cap=cap)
    return caught.value.detail.metadata["reason"]


def test_text_and_the_model_that_wrote_it() -> None:
    texts, answer = put_together(
        {**delta(role="assistant", content=""), "model": "made-by"},
        delta(content="a"),
        delta(content=None),
        delta("stop", content="b"),
    )
    assert texts == ["a", "b"]
    assert (answer.text, answer.model, answer.finish_reason) == ("ab", "made-by", FinishReason.STOP)


def test_the_requested_model_is_named_if_the_server_names_none() -> None:
    assert put_together(delta("stop", content="b"))[1].model == "asked-for"


@pytest.mark.parametrize(
    ("halves", "whole"),
    [
        ([r"a\ud83d", r"\ude00b"], "a😀b"),
        ([r"\ud83d", r"\ude00"], "😀"),
        ([r"a\ud83d", "b"], "a\ufffdb"),
        ([r"a\ud83d"], "a\ufffd"),
        ([r"\ude00a"], "\ufffda"),
    ],
)
def test_an_escaped_character_cut_in_two_is_whole_again(halves: list[str], whole: str) -> None:
    chunks = [b'{"choices":[{"delta":{"content":"%b"}}]}' % half.encode() for half in halves]
    texts, answer = put_together(*chunks, delta("stop"))
    assert answer.text == "".join(texts) == whole


def test_arguments_with_an_escaped_character_cut_in_two() -> None:
    begin = orjson.dumps(part(0, call_id="1", name="t", arguments="HALF")).replace(b"HALF", rb"\ud83d")
    end = orjson.dumps(part(0, arguments="HALF")).replace(b"HALF", rb"\ude00")
    assert calls_of(begin, end) == [("1", "t", "😀")]


def test_only_a_models_output_is_a_token() -> None:
    completion = Completion(REQUEST, max_answer_bytes=1000)
    silent = [delta(role="assistant", content=""), delta(), {"choices": []}, {"type": "ping"}, {"usage": {}}]
    for chunk in silent:
        completion.take(orjson.dumps(chunk))
    assert completion.tokens == 0
    tokens = [delta(content="x"), delta(reasoning_content="hm"), delta(reasoning="hm"), delta("stop"), part(0)]
    for chunk in tokens:
        completion.take(orjson.dumps(chunk))
    assert completion.tokens == len(tokens)


def test_interleaved_calls() -> None:
    assert calls_of(
        part(0, call_id="a", name="t", arguments='{"x"'),
        part(1, call_id="b", name="u", arguments=""),
        part(0, arguments=":1}"),
        part(1, arguments="{}"),
    ) == [("a", "t", '{"x":1}'), ("b", "u", "{}")]


@pytest.mark.parametrize("index", [0, None])
def test_servers_that_give_all_calls_one_index_or_none(index: int | None) -> None:
    assert calls_of(
        part(index, call_id="a", name="t", arguments='{"x":1}'), part(index, call_id="b", name="t", arguments="{}")
    ) == [("a", "t", '{"x":1}'), ("b", "t", "{}")]


def test_servers_that_repeat_id_and_name_in_each_part() -> None:
    assert calls_of(
        part(0, call_id="a", name="t", arguments='{"x"'), part(0, call_id="a", name="t", arguments=":1}")
    ) == [("a", "t", '{"x":1}')]


def test_servers_that_send_the_name_in_parts_or_the_id_late() -> None:
    assert calls_of(part(0, name="get_"), part(0, call_id="a", name="weather", arguments="{}")) == [
        ("a", "get_weather", "{}")
    ]


def test_parts_without_index_continue_the_last_call() -> None:
    assert calls_of(part(None, call_id="a", name="t", arguments="{"), part(None, arguments="}")) == [("a", "t", "{}")]


@pytest.mark.parametrize(
    ("sent", "whole"), [("", "{}"), (" ", "{}"), (None, "{}"), ({"x": 1}, '{"x":1}'), ("{x", "{x")]
)
def test_arguments(sent: object, whole: str) -> None:
    assert calls_of(part(0, call_id="a", name="t", arguments=sent)) == [("a", "t", whole)]


def test_stop_with_calls_means_calls() -> None:
    _, answer = put_together(part(0, call_id="a", name="t"), delta("stop"))
    assert answer.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (b"{", Reason.MALFORMED),
        (b"\xff", Reason.MALFORMED),
        (b'"text"', Reason.MALFORMED),
        ({"choices": {"delta": {}}}, Reason.MALFORMED),
        ({"choices": [None]}, Reason.MALFORMED),
        ({"choices": [{"delta": []}, 1]}, Reason.NO_FINISH_REASON),
        ({"choices": [{"delta": "x"}]}, Reason.MALFORMED),
        (delta(content=7), Reason.MALFORMED),
        (delta(tool_calls={"a": 1}), Reason.MALFORMED),
        (delta(tool_calls=["a"]), Reason.MALFORMED),
        (delta(tool_calls=[{"function": "f"}]), Reason.MALFORMED),
        (part(0, name="t", arguments=[1]), Reason.MALFORMED),
        ({"error": {"message": "m", "code": 429}}, Reason.RATE_LIMIT),
        ({"error": {"message": "m", "code": "context_length_exceeded"}}, Reason.CONTEXT_LENGTH),
        ({"error": "overloaded"}, Reason.ERROR_EVENT),
        ({"object": "error", "message": "m", "code": 500}, Reason.ERROR_EVENT),
        (delta("tool_calls"), Reason.BAD_FINISH_REASON),
        (delta("error"), Reason.BAD_FINISH_REASON),
        (delta("stop", refusal="I will not"), Reason.REFUSAL),
        (delta("tool_calls", tool_calls=[{"index": 0, "id": "a", "function": {"arguments": "{}"}}]), Reason.MALFORMED),
    ],
)
def test_failures(chunk: object, reason: Reason) -> None:
    assert reason_of(chunk) == reason


def test_a5_an_unknown_finish_reason_after_content_counts_as_stop_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, answer = put_together(delta("went\nhome" + "!" * 99, content="a"))
    assert (answer.text, answer.finish_reason) == ("a", FinishReason.STOP)
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith(r"finish reason 'went\nhome!!")
    assert line.getMessage().endswith("of a model's server is not known: it counts as stop")
    assert len(line.getMessage()) < 150, "a server's word is cut"
    caplog.clear()
    put_together(delta("stop", content="a"))
    assert not caplog.records


def test_the_cap_counts_bytes_of_text_and_arguments() -> None:
    chunks = [delta(content="é" * 100), part(0, call_id="a", name="t", arguments="é" * 100), delta("tool_calls")]
    needed = 200 + 200 + 2 + 64
    assert put_together(*chunks, cap=needed)[1].tool_requests
    assert reason_of(*chunks, cap=needed - 1) == Reason.ANSWER_TOO_LONG


def test_endless_empty_calls_meet_the_cap() -> None:
    assert reason_of(*(part(index, name="t") for index in range(1000))) == Reason.ANSWER_TOO_LONG


def test_new_ids_differ_from_one_conversation_to_the_next() -> None:
    other = ModelRequest(model="m", messages=(*REQUEST.messages, Message(role=Role.USER, text="more")))
    chunks = [part(0, name="t"), delta("tool_calls")]
    ids = {put_together(*chunks, request=request)[1].tool_requests[0].tool_call_id for request in (REQUEST, other)}
    assert len(ids) == 2
