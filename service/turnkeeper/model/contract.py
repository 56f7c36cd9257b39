"""What the engine asks of a model. One suite in `tests/contracts/` runs on every implementation."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.message import FinishReason, Message, ToolRequest, Usage
from turnkeeper.domain.tool import ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One call. `model` is the provider's name for it; None leaves a knob to the provider."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_output_tokens: int | None = None
    temperature: float | None = None
    response_schema_json: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """The next piece of the answer's text, never empty. What comes in one read of the network is one piece."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """The whole answer, yielded once and last. `text` is exactly the deltas joined."""

    text: str
    tool_requests: tuple[ToolRequest, ...]
    finish_reason: FinishReason
    usage: Usage
    model: str


class ModelFailure(Exception):
    """A call that gave no answer. Nothing a vendor said is in the message.

    `retryable`: another attempt may succeed. `retry_after`: the provider's own wish, if it had one.
    """

    def __init__(self, detail: ErrorDetail, *, retryable: bool, retry_after: timedelta | None = None) -> None:
        super().__init__(detail.message)
        self.detail = detail
        self.retryable = retryable
        self.retry_after = retry_after


class Model(Protocol):
    @property
    def server(self) -> tuple[str, int]:
        """Host and port of the model's server, for telemetry."""
        ...

    def stream(self, request: ModelRequest) -> AsyncIterator[TextDelta | ModelAnswer]:
        """Deltas as they come, then one answer.

        Ends with a ModelAnswer or raises ModelFailure, never both, never neither: a stream without a finish
        reason, cut off, malformed, or silent beyond its deadlines is a failure. It makes one try; retries are
        the turn's. Closing the iterator early (`aclose`) ends the provider's call.
        """
        ...

    async def close(self) -> None:
        """Give back every connection."""
        ...
