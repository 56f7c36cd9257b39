"""Encodes a ModelRequest as the body of a chat completion."""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from types import MappingProxyType

import orjson

from turnkeeper.domain.message import Message, Role, ToolRequest
from turnkeeper.domain.tool import ToolSpec
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.failure import Reason, failure

_FORM = "chat.completions"
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def body_of(
    request: ModelRequest,
    *,
    limit_field: str,
    omit: Collection[str] = (),
    extra: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Returns the body. Raises ModelFailure if a schema is not JSON.

    `limit_field` is this provider's name for the output limit. `extra` is added, and wins over what it repeats; fields
    in `omit` are left out.
    """
    body: dict[str, object] = {
        "model": request.model,
        "stream": True,
        "messages": [_encoded(message) for message in request.messages],
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if request.max_output_tokens is not None:
        body[limit_field] = request.max_output_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.response_schema_json:
        schema = {"name": "answer", "schema": _schema(request.response_schema_json)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in {**body, **extra}.items() if name not in omit}


def _encoded(message: Message) -> object:
    """Returns the encoded message, cached with it: encoding two thousand messages anew would slow every turn."""
    form = message.forms.get(_FORM)
    if form is None:
        form = message.forms[_FORM] = orjson.Fragment(orjson.dumps(_message(message)))
    return form


def _message(message: Message) -> dict[str, object]:
    """Returns the message as the API has it."""
    encoded: dict[str, object] = {"role": message.role.lower(), "content": message.text}
    if message.role is Role.TOOL:
        encoded["tool_call_id"] = message.tool_call_id
    if message.tool_requests:
        encoded["content"] = message.text or None
        encoded["tool_calls"] = [_tool_call(call) for call in message.tool_requests]
    return encoded


def _tool_call(call: ToolRequest) -> dict[str, object]:
    """Returns an earlier call with a valid name, and with a JSON object as its arguments.

    Servers refuse a whole conversation for one call without them, and a model's mistake must not end its session.
    """
    return {
        "id": call.tool_call_id,
        "type": "function",
        "function": {
            "name": _NOT_IN_A_NAME.sub("_", call.tool)[:64],
            "arguments": call.arguments_json
            if _is_object(call.arguments_json)
            else orjson.dumps({"invalid_arguments": call.arguments_json}).decode(),
        },
    }


def _tool(tool: ToolSpec) -> dict[str, object]:
    """Returns the tool as the API has it."""
    function = {"name": tool.name, "description": tool.description, "parameters": _schema(tool.schema_json)}
    return {"type": "function", "function": function}


@lru_cache(maxsize=64)
def _schema(text: str) -> object:
    """Returns the schema, to be sent as it is: one that is nested deep could be read and not written again.

    Raises ModelFailure if it is not JSON.
    """
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        raise failure(Reason.BAD_SCHEMA) from None
    return orjson.Fragment(text)


def _is_object(text: str) -> bool:
    """Returns True if the text is a JSON object."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
