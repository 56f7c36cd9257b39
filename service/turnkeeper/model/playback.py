"""From a chat request and a script to what goes over the wire. No I/O."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from turnkeeper.model.script import Reply, Script, TokenCount

DONE_FRAME = b"data: [DONE]\n\n"
COMMENT_FRAME = b": still here\n\n"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class BadChatRequest(ValueError):
    """The body is no chat completion request; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks, as far as rules look at it.

    `user` is the last user message's text, `tool_results` what followed it, `turn` the number of user messages,
    `key` the same for the same messages.
    """

    model: str
    stream: bool
    include_usage: bool
    user: str
    tool_results: tuple[str, ...]
    turn: int
    key: str
    input_tokens: int


class Player:
    """Chooses the rule. All it remembers is how often a rule with `times` was used, and one with `every` applied."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._used: Counter[int] = Counter()
        self._met: Counter[int] = Counter()

    def choose(self, asked: Asked) -> tuple[int, Reply] | None:
        """The first rule that applies, with its number from 1."""
        for number, reply in enumerate(self._script.replies, 1):
            if _applies(reply, asked) and self._has_its_turn(number, reply):
                self._used[number] += 1
                return number, reply
        return None

    def _has_its_turn(self, number: int, reply: Reply) -> bool:
        if reply.times is not None and self._used[number] >= reply.times:
            return False
        self._met[number] += 1
        return self._met[number] % (reply.every or 1) == 0


def read_request(body: bytes) -> Asked:
    """Raises BadChatRequest."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadChatRequest("the body is not JSON") from None
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadChatRequest("messages: must be a list of messages")
    users = [place for place, message in enumerate(messages) if message.get("role") == "user"]
    after = messages[users[-1] + 1 :] if users else messages
    text = orjson.dumps(messages)
    return Asked(
        model=str(request.get("model") or "scripted"),
        stream=bool(request.get("stream")),
        include_usage=bool((request.get("stream_options") or {}).get("include_usage")),
        user=_content(messages[users[-1]]) if users else "",
        tool_results=tuple(_content(message) for message in after if message.get("role") == "tool"),
        turn=len(users),
        key=hashlib.sha256(text).hexdigest()[:12],
        input_tokens=len(text) // 4,
    )


def frames(reply: Reply, asked: Asked) -> Iterator[bytes]:
    """The chunks that carry text and tool calls, one server-sent event each."""
    text = _filled(reply.text, reply, asked)
    for start in range(0, len(text), reply.chunk):
        yield _frame(asked, {"content": text[start : start + reply.chunk]})
    for index, call in enumerate(tool_calls(reply, asked)):
        arguments: str = call["function"]["arguments"]
        begin = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield _frame(asked, {"tool_calls": [begin]})
        for start in range(0, len(arguments), reply.chunk):
            piece = {"index": index, "function": {"arguments": arguments[start : start + reply.chunk]}}
            yield _frame(asked, {"tool_calls": [piece]})


def role_frame(asked: Asked) -> bytes:
    return _frame(asked, {"role": "assistant", "content": ""})


def end_frames(reply: Reply, asked: Asked) -> bytes:
    """The finish reason, then the usage where it was asked for; not yet `[DONE]`."""
    end = _frame(asked, {}, finish_reason=finish_reason(reply))
    used = usage(reply, asked)
    if used is None or not asked.include_usage:
        return end
    return end + event({**_head(asked, "chat.completion.chunk"), "choices": [], "usage": used})


def whole_answer(reply: Reply, asked: Asked, *, finished: bool) -> dict[str, object]:
    """The answer for a request without `stream`."""
    message: dict[str, object] = {"role": "assistant", "content": _filled(reply.text, reply, asked)}
    if reply.tool_calls:
        message["tool_calls"] = tool_calls(reply, asked)
    choice = {"index": 0, "message": message, "finish_reason": finish_reason(reply) if finished else None}
    answer = {**_head(asked, "chat.completion"), "choices": [choice]}
    used = usage(reply, asked)
    return answer if used is None else {**answer, "usage": used}


def tool_calls(reply: Reply, asked: Asked) -> list[dict[str, Any]]:
    """The calls as the API writes them; ids are made up from the conversation, or left out."""
    calls: list[dict[str, Any]] = []
    for place, call in enumerate(reply.tool_calls):
        call_id = f"call_{asked.key}_{place}" if call.call_id is None else call.call_id
        function = {"name": call.name, "arguments": _filled(call.arguments, reply, asked, in_json=call.escape)}
        calls.append({**({"id": call_id} if call_id else {}), "type": "function", "function": function})
    return calls


def finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def usage(reply: Reply, asked: Asked) -> dict[str, int] | None:
    """As the script says; else a guess of four bytes a token; None when the script wants none."""
    match reply.usage:
        case False:
            return None
        case TokenCount(input_tokens=given, output_tokens=made):
            pass
        case _:
            given, made = asked.input_tokens, sum(1 for _ in frames(reply, asked))
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _applies(reply: Reply, asked: Asked) -> bool:
    """A rule with tool calls answers the user unless it says otherwise: else it would call for ever."""
    tools = 0 if reply.after_tools is None and reply.tool_calls else reply.after_tools
    return tools in (None, len(asked.tool_results)) and bool(re.search(reply.match, asked.user))


def _filled(text: str, reply: Reply, asked: Asked, *, in_json: bool = False) -> str:
    """Placeholders replaced in one pass, so that what a user wrote is never read as one; escaped inside JSON."""
    found = re.search(reply.match, asked.user)
    values = {
        "user": asked.user,
        "tool_result": asked.tool_results[-1] if asked.tool_results else "",
        "turn": str(asked.turn),
        **({name: value or "" for name, value in found.groupdict().items()} if found else {}),
    }
    if in_json:
        values = {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in values.items()}
    return _PLACEHOLDER.sub(lambda name: values.get(name[1], name[0]), text)


def _content(message: dict[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _frame(asked: Asked, delta: dict[str, object], *, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({**_head(asked, "chat.completion.chunk"), "choices": [choice]})


def _head(asked: Asked, kind: str) -> dict[str, object]:
    return {"id": f"chatcmpl-{asked.key}", "object": kind, "created": 0, "model": asked.model}
