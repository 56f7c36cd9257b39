"""A session must not be lost to one bad message of its past."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from turnkeeper.codes import Code
from turnkeeper.domain.message import Message, Role, ToolRequest
from turnkeeper.domain.offered_tools import OfferedTools
from turnkeeper.domain.tool import ClientTool, ToolClass, ToolSpec
from turnkeeper.model.contract import ModelFailure, ModelRequest
from turnkeeper.model.openai import OpenAIModel
from turnkeeper.model.openai_client import Provider
from turnkeeper.model.openai_request import body_of


def sent_call(*, name: str = "t", arguments: str = "{}") -> dict[str, Any]:
    call = ToolRequest(tool_call_id="1", tool=name, arguments_json=arguments)
    message = Message(role=Role.ASSISTANT, text="so", tool_requests=(call,))
    request = ModelRequest(model="m", messages=(message,))
    body: Any = orjson.loads(orjson.dumps(body_of(request, limit_field="max_tokens")))
    assert orjson.loads(orjson.dumps(body_of(request, limit_field="max_tokens"))) == body
    assert body["messages"][0]["content"] == "so"
    function: dict[str, Any] = body["messages"][0]["tool_calls"][0]["function"]
    return function


@pytest.mark.parametrize("arguments", ['{"city": "Par', "", "[1]", "null", "not json"])
def test_old_arguments_that_are_no_object_are_sent_as_one(arguments: str) -> None:
    assert orjson.loads(sent_call(arguments=arguments)["arguments"]) == {"invalid_arguments": arguments}


def test_good_arguments_are_sent_as_they_are() -> None:
    assert sent_call(arguments='{ "a" : 1.0 }')["arguments"] == '{ "a" : 1.0 }'


def test_an_old_name_that_no_server_takes_is_mended() -> None:
    assert sent_call(name="functions.get weather!" + "x" * 60)["name"] == ("functions_get_weather_" + "x" * 60)[:64]


def test_what_is_not_set_is_not_sent() -> None:
    body = body_of(ModelRequest(model="m", messages=()), limit_field="max_tokens")
    assert body == {"model": "m", "stream": True, "messages": [], "stream_options": {"include_usage": True}}


def test_the_output_limit_has_the_providers_name() -> None:
    body = body_of(ModelRequest(model="m", messages=(), max_output_tokens=5), limit_field="max_completion_tokens")
    assert body["max_completion_tokens"] == 5


@pytest.mark.parametrize("where", ["tool", "response"])
def test_a_schema_that_is_not_json_is_the_operators_to_change(where: str) -> None:
    tool = ToolSpec(name="t", description="", schema_json="{", tool_class=ToolClass.READ_ONLY, source="s")
    request = ModelRequest(
        model="m",
        messages=(),
        tools=(tool,) if where == "tool" else (),
        response_schema_json="{" if where == "response" else "",
    )
    with pytest.raises(ModelFailure) as caught:
        body_of(request, limit_field="max_tokens")
    assert caught.value.detail.code is Code.AGENT_CONFIG_ERROR


@pytest.mark.parametrize(
    ("base_url", "key"),
    [
        ("http://x/v1", ""),
        ("http://x/v1", "sk-ü"),
        ("http://x/v1", "sk-1\n"),
        ("api.openai.com", "sk-1"),
        ("ftp://x/v1", "sk-1"),
        ("http://", "sk-1"),
    ],
)
def test_a_provider_that_cannot_work_is_refused_without_its_key(base_url: str, key: str) -> None:
    with pytest.raises(ValueError, match="the model's") as caught:
        OpenAIModel.connect(Provider(base_url=base_url, api_key=key))
    assert not key or key not in str(caught.value)


def a_tool(name: str, *, source: str = "python") -> ToolSpec:
    schema = '{"type":"object","title":"é"}'
    return ToolSpec(name=name, description="Does.", schema_json=schema, tool_class=ToolClass.READ_ONLY, source=source)


def sent_tools(tools: tuple[ToolSpec, ...]) -> list[object]:
    body = body_of(ModelRequest(model="m", messages=(), tools=tools), limit_field="max_tokens")
    encoded = body["tools"]
    assert isinstance(encoded, list)
    return encoded


def test_an_agents_tools_are_encoded_once() -> None:
    offered = OfferedTools(a_tool(f"tool_{number}") for number in range(200))
    first = sent_tools(offered)
    assert all(one is other for one, other in zip(first, sent_tools(offered), strict=True))
    plain = orjson.loads(orjson.dumps(sent_tools(tuple(offered))))
    assert orjson.loads(orjson.dumps(first)) == plain
    another = sent_tools(OfferedTools(offered))
    assert not any(one is other for one, other in zip(first, another, strict=True)), "another list is encoded anew"


def test_a_clients_tools_are_encoded_beside_those_of_the_agent() -> None:
    offered = OfferedTools([a_tool("add"), a_tool("look")])
    first = sent_tools(offered)
    one = ClientTool(name="look", description="Mine.", schema_json="{}")
    both = sent_tools(offered.beside([one]))
    assert both[0] is first[0]
    assert orjson.loads(orjson.dumps(both[1]))["function"]["description"] == "Mine."
    other = sent_tools(offered.beside([replace(one, description="Hers.")]))
    assert orjson.loads(orjson.dumps(other[1]))["function"]["description"] == "Hers."
    assert sent_tools(offered)[1] is first[1]
