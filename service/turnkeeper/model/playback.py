"""Makes the bytes of an answer from a chat request and a script. No I/O."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from turnkeeper.model.script import Reply, Script, TokenCount

DONE_FRAME = b"data: [DONE]\n\n"
COMMENT_FRAME = b": still here\n\n"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class BadChatRequest(ValueError):
    """The body is not a chat completion request; the message has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat completion request, as far as rules need it."""

    model: str
    stream: bool
    include_usage: bool
    user: str
    """The text of the last user message."""
    tool_results: tuple[str, ...]
    """The tool results after that message."""
    turn: int
    """The number of user messages."""
    key: str
    """Equal for equal messages."""
    input_tokens: int
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The JSON Schema of each offered tool's arguments, by the tool's name."""


class Chooser(Protocol):
    """What decides on the answers of a scripted model."""

    def choose(self, chat: ChatRequest) -> tuple[int, Reply] | None:
        """Returns the reply to a request, and a number that names its rule; None if there is no reply."""
        ...


class Player:
    """Chooses the rule of a request. It counts how often each rule was used and how often it applied."""

    def __init__(self, script: Script) -> None:
        """Begins with all counts at 0."""
        self._script = script
        self._used: Counter[int] = Counter()
        self._applied: Counter[int] = Counter()

    def choose(self, chat: ChatRequest) -> tuple[int, Reply] | None:
        """Returns the first rule that applies, with its number from 1; None if none does."""
        for number, reply in enumerate(self._script.replies, 1):
            if _applies(reply, chat) and self._has_its_turn(number, reply):
                self._used[number] += 1
                return number, reply
        return None

    def _has_its_turn(self, number: int, reply: Reply) -> bool:
        """Returns True if `times` and `every` of the rule allow this use."""
        if reply.times is not None and self._used[number] >= reply.times:
            return False
        self._applied[number] += 1
        return self._applied[number] % (reply.every or 1) == 0


def read_request(body: bytes) -> ChatRequest:
    """Returns the request in a body. Raises BadChatRequest if the body is not a chat request."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadChatRequest("the body is not JSON") from None
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadChatRequest("messages: must be a list of messages")
    users = [number for number, message in enumerate(messages) if message.get("role") == "user"]
    after = messages[users[-1] + 1 :] if users else messages
    text = orjson.dumps(messages)
    return ChatRequest(
        model=str(request.get("model") or "scripted"),
        stream=bool(request.get("stream")),
        include_usage=bool((request.get("stream_options") or {}).get("include_usage")),
        user=_content(messages[users[-1]]) if users else "",
        tool_results=tuple(_content(message) for message in after if message.get("role") == "tool"),
        turn=len(users),
        key=hashlib.sha256(text).hexdigest()[:12],
        input_tokens=len(text) // 4,
        tools=_tools(request.get("tools")),
    )


def frames(reply: Reply, chat: ChatRequest) -> Iterator[bytes]:
    """Yields the chunks with text and tool calls, one server-sent event each."""
    text = _filled(reply.text, reply, chat)
    for start in range(0, len(text), reply.chunk):
        yield _frame(chat, {"content": text[start : start + reply.chunk]})
    for index, call in enumerate(tool_calls(reply, chat)):
        arguments: str = call["function"]["arguments"]
        begin = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield _frame(chat, {"tool_calls": [begin]})
        for start in range(0, len(arguments), reply.chunk):
            part = {"index": index, "function": {"arguments": arguments[start : start + reply.chunk]}}
            yield _frame(chat, {"tool_calls": [part]})


def role_frame(chat: ChatRequest) -> bytes:
    """Returns the first chunk, which has the role alone."""
    return _frame(chat, {"role": "assistant", "content": ""})


def end_frames(reply: Reply, chat: ChatRequest) -> bytes:
    """Returns the finish reason, then the usage if the request includes it; without `[DONE]`."""
    end = _frame(chat, {}, finish_reason=finish_reason(reply))
    tokens = usage(reply, chat)
    if tokens is None or not chat.include_usage:
        return end
    return end + event({**_head(chat, "chat.completion.chunk"), "choices": [], "usage": tokens})


def whole_answer(reply: Reply, chat: ChatRequest, *, finished: bool) -> dict[str, object]:
    """Returns the answer to a request without `stream`."""
    message: dict[str, object] = {"role": "assistant", "content": _filled(reply.text, reply, chat)}
    if reply.tool_calls:
        message["tool_calls"] = tool_calls(reply, chat)
    choice = {"index": 0, "message": message, "finish_reason": finish_reason(reply) if finished else None}
    answer = {**_head(chat, "chat.completion"), "choices": [choice]}
    tokens = usage(reply, chat)
    return answer if tokens is None else {**answer, "usage": tokens}


def tool_calls(reply: Reply, chat: ChatRequest) -> list[dict[str, Any]]:
    """Returns the calls as the API has them; ids are derived from the conversation, or left out."""
    calls: list[dict[str, Any]] = []
    for number, call in enumerate(reply.tool_calls):
        call_id = f"call_{chat.key}_{number}" if call.call_id is None else call.call_id
        function = {"name": call.name, "arguments": _filled(call.arguments, reply, chat, in_json=call.escape)}
        calls.append({**({"id": call_id} if call_id else {}), "type": "function", "function": function})
    return calls


def finish_reason(reply: Reply) -> str:
    """Returns the script's finish reason, or the usual one."""
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def usage(reply: Reply, chat: ChatRequest) -> dict[str, int] | None:
    """Returns the script's token counts, or a guess of four bytes a token; None if the script wants none."""
    match reply.usage:
        case False:
            return None
        case TokenCount(input_tokens=input_tokens, output_tokens=output_tokens):
            pass
        case _:
            input_tokens, output_tokens = chat.input_tokens, sum(1 for _ in frames(reply, chat))
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def event(value: object) -> bytes:
    """Returns the value as a server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _applies(reply: Reply, chat: ChatRequest) -> bool:
    """Returns True if the rule applies.

    A rule with tool calls and no `after_tools` answers only the user: after its own calls it would call for ever.
    """
    after_tools = 0 if reply.after_tools is None and reply.tool_calls else reply.after_tools
    return after_tools in (None, len(chat.tool_results)) and bool(re.search(reply.match, chat.user))


def _filled(text: str, reply: Reply, chat: ChatRequest, *, in_json: bool = False) -> str:
    """Returns the text with its placeholders replaced, and their values escaped inside JSON.

    One pass replaces all, so that a placeholder in a user's text is left as it is.
    """
    match = re.search(reply.match, chat.user)
    values = {
        "user": chat.user,
        "tool_result": chat.tool_results[-1] if chat.tool_results else "",
        "turn": str(chat.turn),
        **({name: value or "" for name, value in match.groupdict().items()} if match else {}),
    }
    if in_json:
        values = {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in values.items()}
    return _PLACEHOLDER.sub(lambda name: values.get(name[1], name[0]), text)


def _tools(tools: object) -> Mapping[str, Mapping[str, Any]]:
    """Returns the parameters of the functions in a request's `tools`, as far as they can be read."""
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    known = [function for function in functions if isinstance(function, dict)]
    return {str(function.get("name")): function.get("parameters") or {} for function in known}


def _content(message: dict[str, object]) -> str:
    """Returns the text of a message, of all its parts if it has several."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _frame(chat: ChatRequest, delta: dict[str, object], *, finish_reason: str | None = None) -> bytes:
    """Returns one chunk as a server-sent event."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({**_head(chat, "chat.completion.chunk"), "choices": [choice]})


def _head(chat: ChatRequest, kind: str) -> dict[str, object]:
    """Returns the fields that every answer and chunk has."""
    return {"id": f"chatcmpl-{chat.key}", "object": kind, "created": 0, "model": chat.model}
