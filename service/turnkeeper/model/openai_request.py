"""Encodes a ModelRequest as the body of a chat completion."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import cast

import orjson

from turnkeeper.domain.message import Message, Role, ToolRequest
from turnkeeper.domain.offered_tools import OfferedTools
from turnkeeper.domain.tool import CLIENT, ToolSpec
from turnkeeper.model.beside import unpacked
from turnkeeper.model.contract import ModelRequest
from turnkeeper.model.failure import Reason, failure

MOST_CHARACTERS = 32 * 1024 * 1024
"""Characters of a conversation that is sent, at most: no model's window is nearly as large."""
_LARGE_TEXT = 1024 * 1024
"""Characters of a conversation that is encoded in a thread: it takes a few milliseconds."""
_LARGE_CONVERSATION = 500
"""Messages of such a conversation."""
_FORM = "chat.completions"
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def is_large(request: ModelRequest) -> bool:
    """Returns True if the request is large enough to be encoded in a thread.

    Raises ModelFailure if it is larger than any model's window.
    """
    size = sum([len(message.text) for message in request.messages])
    if size > MOST_CHARACTERS:
        raise failure(Reason.CONTEXT_LENGTH)
    return size > _LARGE_TEXT or len(request.messages) > _LARGE_CONVERSATION


def body_of(
    request: ModelRequest,
    *,
    limit_field: str,
    origin: str = "",
    omit: Collection[str] = (),
    extra: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
    """Returns the body. Raises ModelFailure if a schema is not JSON.

    `limit_field` is this provider's name for the output limit. `origin` is this model's own name, see `origin_of`: what
    came with a call from it goes back with the call, and what came from another model stays here. `extra` is added, and
    wins over what it repeats; fields in `omit` are left out.
    """
    body: dict[str, object] = {
        "model": request.model,
        "stream": True,
        "messages": _messages(request.messages, origin=origin),
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        body["tools"] = _tools(request.tools)
    if request.max_output_tokens is not None:
        body[limit_field] = request.max_output_tokens
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.response_schema_json:
        schema = {"name": "answer", "schema": _schema(request.response_schema_json)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in {**body, **extra}.items() if name not in omit}


def _messages(messages: Sequence[Message], *, origin: str) -> list[object]:
    """Returns the encoded messages, each cached with it: encoding two thousand anew would slow every turn."""
    form, ids = f"{_FORM} {origin}", dict[str, str]()
    encoded: list[object] = []
    for message in messages:
        if message.tool_requests:
            ids.update(_ids(message, origin=origin))
        cached = message.forms.get(form)
        if cached is None:
            # A copy: what `dumps` returns keeps the eight times larger buffer that it wrote into.
            encoded_message = bytes(memoryview(orjson.dumps(_message(message, ids, origin=origin))))
            cached = message.forms[form] = orjson.Fragment(encoded_message)
        encoded.append(cached)
    return encoded


def _ids(message: Message, *, origin: str) -> Mapping[str, str]:
    """Returns the ids by which the model's server knows the calls of a message, by our own ids; cached with it."""
    form = f"{_FORM} {origin} ids"
    ids = cast(Mapping[str, str] | None, message.forms.get(form))
    if ids is None:
        kept = ((call.tool_call_id, unpacked(call.provider_json, origin=origin)) for call in message.tool_requests)
        ids = message.forms[form] = {own: str(theirs.get("id") or own) for own, theirs in kept}
    return ids


def _message(message: Message, ids: Mapping[str, str], *, origin: str) -> dict[str, object]:
    """Returns the message as the API has it. `ids`: the server's ids of the calls up to here, by our own."""
    encoded: dict[str, object] = {"role": message.role.lower(), "content": message.text}
    if message.role is Role.TOOL:
        encoded["tool_call_id"] = ids.get(message.tool_call_id, message.tool_call_id)
    if message.tool_requests:
        beside = unpacked(message.tool_requests[0].provider_json, origin=origin).get("message") or {}
        encoded = {**beside, **encoded, "content": message.text or None}
        encoded["tool_calls"] = [_tool_call(call, ids, origin=origin) for call in message.tool_requests]
    return encoded


def _tool_call(call: ToolRequest, ids: Mapping[str, str], *, origin: str) -> dict[str, object]:
    """Returns an earlier call with a valid name, a JSON object as its arguments, and all that came beside it.

    Servers refuse a whole conversation for one call without them, and a model's mistake must not end its session.
    """
    kept = unpacked(call.provider_json, origin=origin)
    return {
        "type": "function",
        **(kept.get("call") or {}),
        "id": ids[call.tool_call_id],
        "function": {
            **(kept.get("function") or {}),
            "name": _NOT_IN_A_NAME.sub("_", call.tool)[:64],
            "arguments": call.arguments_json
            if _is_object(call.arguments_json)
            else orjson.dumps({"invalid_arguments": call.arguments_json}).decode(),
        },
    }


def _tools(tools: Sequence[ToolSpec]) -> list[object]:
    """Returns the encoded tools. Those of an agent are encoded once, those of a client at each call."""
    if not isinstance(tools, OfferedTools):
        return [_tool(tool) for tool in tools]
    cached = tools.forms.setdefault(_FORM, {})
    encoded: list[object] = []
    for tool in tools:
        form = cached.get(tool.name) if tool.source != CLIENT else _tool(tool)
        if form is None:
            form = cached[tool.name] = orjson.Fragment(bytes(memoryview(orjson.dumps(_tool(tool)))))
        encoded.append(form)
    return encoded


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
