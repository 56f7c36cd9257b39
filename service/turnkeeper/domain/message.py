"""What a model reads and writes: messages, tool requests, usage."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

MOST_CALLS: Final = 1024
"""Tool calls of one answer, at most."""
MOST_TOKENS: Final = 1_000_000_000
"""Tokens of one model call, at most: far more than any model reads. A server that reports more is wrong."""
_MOST_SUM: Final = 2**63 - 1
"""The largest number that the database and the protos hold. A sum that would pass it stays there."""


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
    """Sums of tokens and calls. The model's server counts the tokens; they are 0 if it reports none."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Returns the sum of each figure, as far as it can be stored."""
        return Usage(
            input_tokens=min(self.input_tokens + other.input_tokens, _MOST_SUM),
            output_tokens=min(self.output_tokens + other.output_tokens, _MOST_SUM),
            model_calls=self.model_calls + other.model_calls,
            tool_calls=self.tool_calls + other.tool_calls,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        """Returns the difference of each figure."""
        return Usage(
            input_tokens=self.input_tokens - other.input_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
            model_calls=self.model_calls - other.model_calls,
            tool_calls=self.tool_calls - other.tool_calls,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a message's content. It is always text in this release."""

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
    """The model's own text; it may be invalid JSON. What its server repeats or encodes twice is there once."""
    provider_json: str = ""
    """What the model's server sent with the call and needs again: its own id, and all that it put beside it.

    A JSON object that only the adapter of the model reads; empty if there was nothing.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a model's context."""

    role: Role
    text: str = ""
    """The content as text; empty for a message of tool requests alone."""
    tool_requests: tuple[ToolRequest, ...] = field(default=())
    """The tool calls that it requests, in order. Empty unless the role is ASSISTANT."""
    tool_call_id: str = ""
    """The call whose result the text is. Empty unless the role is TOOL."""
    forms: dict[str, object] = field(default_factory=dict, init=False, compare=False, repr=False)
    """The message as an adapter of a model encodes it, by the adapter's name. The adapter fills it at the first use.

    A long conversation is sent again with every model call; so each message is encoded once.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtfulMessage(Message):
    """A message of a turn that failed because the model's server refused its request. It may be the reason."""
