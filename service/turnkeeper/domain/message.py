"""What a model is shown and what it says: messages, tool calls, usage."""

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    SYSTEM = "SYSTEM"
    USER = "USER"
    ASSISTANT = "ASSISTANT"
    TOOL = "TOOL"


class FinishReason(StrEnum):
    """Why a model message ended. INTERRUPTED: its owner closed it before the model did."""

    STOP = "STOP"
    TOOL_CALLS = "TOOL_CALLS"
    LENGTH = "LENGTH"
    CONTENT_FILTER = "CONTENT_FILTER"
    INTERRUPTED = "INTERRUPTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and calls, added up. Tokens are as the model's server counted them; 0 when it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            model_calls=self.model_calls + other.model_calls,
            tool_calls=self.tool_calls + other.tool_calls,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens - other.input_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            model_calls=self.model_calls - other.model_calls,
            tool_calls=self.tool_calls - other.tool_calls,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One piece of content. Only text so far."""

    text: str


def text_of(content: "tuple[Part, ...]") -> str:
    return "".join(part.text for part in content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRequest:
    """One tool call as the model asked for it.

    `arguments_json` is the model's own text: it may be invalid JSON, and it is shown, hashed and run as it is.
    """

    tool_call_id: str
    tool: str
    arguments_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One entry of a model's context.

    `tool_requests` only with ASSISTANT; `tool_call_id` only with TOOL. Text is Unicode, any length the limits allow.
    `forms`: what an adapter made of it, by the adapter's name: a long conversation is sent again with every turn.
    """

    role: Role
    text: str = ""
    tool_requests: tuple[ToolRequest, ...] = field(default=())
    tool_call_id: str = ""
    forms: dict[str, object] = field(default_factory=dict, init=False, compare=False, repr=False)
