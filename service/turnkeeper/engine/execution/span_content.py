"""What a model is sent and what it answers, as the JSON of OpenTelemetry's GenAI conventions."""

import json
from collections.abc import Sequence

from turnkeeper.domain.message import Message, Role, ToolRequest
from turnkeeper.model.contract import ModelAnswer


def input_json(messages: Sequence[Message]) -> str:
    """Returns the value of `gen_ai.input.messages`."""
    return json.dumps([{"role": message.role.value.lower(), "parts": _parts(message)} for message in messages])


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
