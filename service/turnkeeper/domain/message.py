"""What a model reads and writes: messages, tool requests, usage."""

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """Who wrote a message of a model's context."""

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
    """Tokens and calls, added up. Tokens are as the model's server counted them, 0 if it did not report any."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Returns the sum, figure by figure."""
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            model_calls=self.model_calls + other.model_calls,
            tool_calls=self.tool_calls + other.tool_calls,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        """Returns the difference, figure by figure."""
        return Usage(
            input_tokens=self.input_tokens - other.input_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            model_calls=self.model_calls - other.model_calls,
            tool_calls=self.tool_calls - other.tool_calls,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a message's content. Only text so far."""

    text: str


def text_of(content: "tuple[Part, ...]") -> str:
    """Returns the text of all parts, joined."""
    return "".join(part.text for part in content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRequest:
    """One tool call as the model requested it."""

    tool_call_id: str
    tool: str
    arguments_json: str
    """The model's own text: it may be invalid JSON, and is shown, hashed and run as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a model's context."""

    role: Role
    text: str = ""
    """Unicode, any length that the limits allow."""
    tool_requests: tuple[ToolRequest, ...] = field(default=())
    """Only with ASSISTANT."""
    tool_call_id: str = ""
    """Only with TOOL: the call that the text is the result of."""
    forms: dict[str, object] = field(default_factory=dict, init=False, compare=False, repr=False)
    """An adapter's encoded form of the message, by the adapter's name.

    A long conversation is sent again with every turn; encoding each message once keeps that cheap.
    """
