"""Which rule answers, and with what."""

import json
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from turnkeeper.model.playback import BadChatRequest, ChatRequest, Player, frames, read_request, whole_answer
from turnkeeper.model.script import Reply, Script, ScriptedCall

ChatMessage = Mapping[str, object]

USER: ChatMessage = {"role": "user", "content": "what is {turn}?"}
CALL: ChatMessage = {"role": "assistant", "content": None, "tool_calls": []}


def chat(*messages: ChatMessage, **fields: object) -> ChatRequest:
    return read_request(orjson.dumps({"messages": messages, **fields}))


def tool(text: str) -> ChatMessage:
    return {"role": "tool", "content": text, "tool_call_id": "1"}


def reply_of(reply: Reply, question: ChatRequest) -> Any:
    answer: Any = whole_answer(reply, question, finished=True)
    return answer["choices"][0]["message"]


def test_the_first_rule_that_matches_the_last_user_message() -> None:
    player = Player(Script(replies=(Reply(match="^bye"), Reply(match="hello"), Reply())))
    earlier = {"role": "user", "content": "bye"}
    choices = [player.choose(chat(earlier, {"role": "user", "content": text})) for text in ("oh hello", "bye", "x")]
    assert [choice[0] for choice in choices if choice] == [2, 1, 3]


def test_tool_results_since_the_last_user_message_choose_the_rule() -> None:
    player = Player(Script(replies=(Reply(after_tools=0), Reply(after_tools=2), Reply())))
    questions = [
        chat(USER, CALL, tool("a"), USER),
        chat(USER, CALL, tool("a"), tool("b")),
        chat(USER, CALL, tool("a")),
    ]
    assert [chosen[0] for question in questions if (chosen := player.choose(question))] == [1, 2, 3]


def test_a_rule_with_calls_answers_the_user_by_default() -> None:
    call = ScriptedCall(name="t")
    player = Player(Script(replies=(Reply(tool_calls=(call,)), Reply(tool_calls=(call,), after_tools=1))))
    questions = [chat(USER), chat(USER, CALL, tool("a")), chat(USER, CALL, tool("a"), CALL, tool("b"))]
    assert [(player.choose(question) or (0,))[0] for question in questions] == [1, 2, 0]


def test_times() -> None:
    player = Player(Script(replies=(Reply(match="other", times=1), Reply(times=2), Reply())))
    assert [(player.choose(chat(USER)) or (0,))[0] for _ in range(4)] == [2, 2, 3, 3]


def test_every_third_request_that_the_rule_applies_to() -> None:
    player = Player(Script(replies=(Reply(match="other", every=1), Reply(every=3), Reply())))
    assert [(player.choose(chat(USER)) or (0,))[0] for _ in range(7)] == [3, 3, 2, 3, 3, 2, 3]


def test_every_other_request_until_the_times_are_used_up() -> None:
    player = Player(Script(replies=(Reply(every=2, times=1), Reply())))
    assert [(player.choose(chat(USER)) or (0,))[0] for _ in range(4)] == [2, 1, 2, 2]


def test_placeholders_are_filled_once() -> None:
    reply = Reply(match=r"what is (?P<what>\S+)\?", text="{user} {what} {turn} {tool_result} {other} {}")
    assert reply_of(reply, chat(USER, CALL, tool("{user}")))["content"] == "what is {turn}? {turn} 1 {user} {other} {}"


def test_placeholders_in_arguments() -> None:
    call = ScriptedCall(name="t", arguments='{"n": {turn}}')
    assert reply_of(Reply(tool_calls=(call,)), chat(USER))["tool_calls"][0]["function"]["arguments"] == '{"n": 1}'


def test_a_quote_in_the_users_text_leaves_arguments_valid() -> None:
    call = ScriptedCall(name="t", arguments='{"text": "{user}"}', escape=True)
    quoted = {"role": "user", "content": 'say "hi"\n'}
    arguments = reply_of(Reply(tool_calls=(call,)), chat(quoted))["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"text": 'say "hi"\n'}


def test_new_ids_follow_from_the_conversation() -> None:
    reply = Reply(tool_calls=(ScriptedCall(name="t"), ScriptedCall(name="t", call_id=""), ScriptedCall(name="t")))
    ids = [[call.get("id") for call in reply_of(reply, question)["tool_calls"]] for question in 2 * [chat(USER)]]
    assert ids[0] == ids[1]
    assert ids[0][1] is None
    assert ids[0][0] != ids[0][2]
    assert reply_of(reply, chat(USER, USER))["tool_calls"][0]["id"] != ids[0][0]


def test_text_is_cut_by_characters() -> None:
    sent = [orjson.loads(frame[6:]) for frame in frames(Reply(text="世界!", chunk=2), chat(USER))]
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in sent]
    assert texts == ["世界", "!"]


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, 7, {"text": "b"}]
    assert chat({"role": "user", "content": parts}).user == "ab"


def test_a_conversation_without_a_user() -> None:
    question = chat({"role": "system", "content": "x"}, tool("a"))
    assert (question.user, question.turn, question.tool_results) == ("", 0, ("a",))


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"messages": 1}', b'{"messages": [1]}'])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(BadChatRequest):
        read_request(body)
