"""What a model is sent and what it answers, as the JSON of OpenTelemetry's GenAI conventions."""

import json
from collections.abc import Sequence

from turnkeeper.domain.message import Message, Role, ToolRequest
from turnkeeper.model.contract import ModelAnswer

MOST_CHARACTERS = 32 * 1024
"""Characters of the messages that are encoded: more than is recorded of a value. The rest of them is left out."""


def input_json(messages: Sequence[Message]) -> str:
    """Returns the value of `gen_ai.input.messages`, with as many of the first messages as can be recorded."""
    encoded: list[str] = []
    left = MOST_CHARACTERS
    for message in messages:
        if left < 0:
            break
        encoded.append(json.dumps({"role": message.role.value.lower(), "parts": _parts(message)}))
        left -= len(encoded[-1])
    return f"[{', '.join(encoded)}]"


def output_json(answer: ModelAnswer) -> str:
    """Returns the value of `gen_ai.output.messages`: a list of one message."""
    message = Message(role=Role.ASSISTANT, text=answer.text, tool_requests=answer.tool_requests)
    reason = answer.finish_reason.value.lower()
    return json.dumps([{"role": "assistant", "parts": _parts(message), "finish_reason": reason}])


def _parts(message: Message) -> list[dict[str, object]]:
    if message.role is Role.TOOL:
        return [{"type": "tool_call_response", "id": message.tool_call_id, "response": message.text}]
    text: list[dict[str, object]] = [{"type": "text", "content": message.text}] if message.text else []
    return [*text, *(_tool_call(request) for request in message.tool_requests)]


def _tool_call(request: ToolRequest) -> dict[str, object]:
    return {
        "type": "tool_call",
        "id": request.tool_call_id,
        "name": request.tool,
        "arguments": request.arguments_json,
    }
