"""The scripted model for one's own tools: a message with a tool's name and arguments becomes its call."""

import json

import orjson
import pytest

from turnkeeper.model.playback import ChatRequest, read_request
from turnkeeper.model.script import Reply, Script, ScriptedCall
from turnkeeper.model.typed_calls import TypedCalls, example

REFUND = {
    "type": "object",
    "properties": {
        "cents": {"type": "integer"},
        "note": {"type": "string", "default": ""},
        "number": {"type": "string"},
    },
    "required": ["number", "cents"],
}
SAY = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
SET = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "tags": {"type": "array"}},
    "required": ["on", "tags"],
}
TOOLS = {"refund": REFUND, "say": SAY, "set": SET}


def chat(text: str, *, result: str = "", tools: dict[str, object] | None = None) -> ChatRequest:
    functions = [{"name": name, "parameters": schema} for name, schema in (TOOLS if tools is None else tools).items()]
    messages = [{"role": "user", "content": text}, *([{"role": "tool", "content": result}] if result else [])]
    body = {"messages": messages, "tools": [{"type": "function", "function": function} for function in functions]}
    return read_request(orjson.dumps(body))


def call_of(text: str) -> tuple[str, object] | None:
    _, reply = TypedCalls(Script(replies=())).choose(chat(text))
    return (reply.tool_calls[0].name, json.loads(reply.tool_calls[0].arguments)) if reply.tool_calls else None


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("refund A-17 1990", "refund", {"number": "A-17", "cents": 1990}),
        (
            "  refund   A-17 1990 'it is late' ",
            "refund",
            {"number": "A-17", "cents": 1990, "note": "it is late"},
        ),
        (
            "refund A-17 1990 it is late",
            "refund",
            {"number": "A-17", "cents": 1990, "note": "it is late"},
        ),
        ("refund cents=5 number=A-17", "refund", {"number": "A-17", "cents": 5}),
        ("refund cents=5 A-17", "refund", {"number": "A-17", "cents": 5}),
        ("refund A-17 much", "refund", {"number": "A-17", "cents": "much"}),
        ("refund", "refund", {}),
        ("say it's noon", "say", {"text": "it's noon"}),
        ("say a=b c", "say", {"text": "a=b c"}),
        ('set true \'["a", "b"]\'', "set", {"on": True, "tags": ["a", "b"]}),
    ],
)
def test_a_message_is_a_call(text: str, name: str, arguments: object) -> None:
    assert call_of(text) == (name, arguments)


@pytest.mark.parametrize(
    "text", ["", "hello", "Refund A-17 1", "refunds A-17", "set true [] 3", "please refund A-17 1"]
)
def test_what_is_no_call_is_answered_with_what_can_be_written(text: str) -> None:
    assert call_of(text) is None
    _, reply = TypedCalls(Script(replies=())).choose(chat(text))
    assert reply.text.endswith("- `refund NUMBER 5`\n- `say TEXT`\n- `set true {}`")


def test_an_agent_without_tools_gets_a_sentence() -> None:
    _, reply = TypedCalls(Script(replies=())).choose(chat("hello", tools={}))
    assert reply.text == "I am a script, not a real model. This agent has no tools that I could call."


def test_the_example_of_a_call_is_one() -> None:
    for name, schema in TOOLS.items():
        called = call_of(example(name, schema))
        assert called is not None
        assert (called[0], set(schema["required"])) == (name, set(dict(called[1]))), called  # type: ignore[call-overload]


def test_the_tools_answer_is_told_and_the_script_comes_first_where_its_tools_are_offered() -> None:
    script = Script(replies=(Reply(match="noon", tool_calls=(ScriptedCall(name="say", arguments='{"text":"x"}'),)),))
    model = TypedCalls(script)
    assert model.choose(chat("It is noon."))[1].tool_calls[0].arguments == '{"text":"x"}'
    assert model.choose(chat("It is noon.", tools={"refund": REFUND}))[1].tool_calls == ()
    assert model.choose(chat("It is noon.", result='"done"'))[1].text == "The tool answered: {tool_result}"


@pytest.mark.parametrize("tools", [5, [5], [{"function": 5}], [{"function": {"name": "a"}}], None])
def test_tools_that_cannot_be_read_are_not_there(tools: object) -> None:
    request = read_request(orjson.dumps({"messages": [], "tools": tools}))
    assert set(request.tools) <= {"a"}
