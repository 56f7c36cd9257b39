"""What a row of the table of model servers is, and the events that its bytes are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from turnkeeper.domain.message import FinishReason
from turnkeeper.model.failure import Reason

STOP, LENGTH, CALLS = FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS
SIGNATURE = "CpQCAXLI2nyDd" * 60
LONG_ID = f"call_9f8e7d__thought__{SIGNATURE}"
PARIS, ROME = '{"city":"Paris"}', '{"city":"Rome"}'
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One answer of one server."""

    server: str
    what: str
    """What is special about it, for the guide."""
    body: bytes
    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments of each tool call."""
    end: FinishReason | Reason = STOP
    """How the answer ends, or why there is none."""
    sent_back: tuple[Mapping[str, Any], ...] = ()
    """What the next request has for each call, beside name and arguments."""
    message_back: Mapping[str, object] = field(default_factory=dict)
    """What the next request has beside the calls of the message."""


def sse(*events: object, end: str = "\n\n", prefix: str = "data: ") -> bytes:
    """Returns events, and `[DONE]`."""
    return b"".join(
        prefix.encode() + (event if isinstance(event, bytes) else orjson.dumps(event)) + end.encode()
        for event in (*events, b"[DONE]")
    )


def chunk(finish: object = None, **delta: object) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1760000000,
        "model": "m-1",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def usage(**counts: int) -> dict[str, Any]:
    counted = counts or {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m-1", "choices": [], "usage": counted}


def part(index: int | None, call_id: str | None, name: str | None, arguments: object, **more: object) -> dict[str, Any]:
    """Returns a part of a tool call; None leaves a field out."""
    function = {"name": name, "arguments": arguments}
    fields = {"index": index, "id": call_id, "type": "function" if call_id else None, **more}
    return {
        **{key: value for key, value in fields.items() if value is not None},
        "function": {key: value for key, value in function.items() if value is not None},
    }


def calls(*parts: Mapping[str, Any], finish: object = None) -> dict[str, Any]:
    return chunk(finish, tool_calls=list(parts))


def whole(message: Mapping[str, Any], finish: str = "stop", **more: object) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4},
        **more,
    }


def choices(*several: object) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m-1", "choices": list(several)}


HELLO = [chunk(role="assistant", content=""), chunk(content="Grüße, "), chunk(content="Welt 🌍"), chunk("stop")]
TEXT = "Grüße, Welt 🌍"
ONE_CALL = (("get_weather", PARIS),)
TWO_CALLS = (("get_weather", PARIS), ("get_weather", ROME))
