"""The contract between the engine and a model. `tests/contracts/` runs one suite on every implementation."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from turnkeeper.codes import ErrorDetail
from turnkeeper.domain.message import FinishReason, Message, ToolRequest, Usage
from turnkeeper.domain.tool import ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One call of a model."""

    model: str
    """The provider's name for it."""
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    """The tools that the model may call."""
    max_output_tokens: int | None = None
    """None leaves it to the provider."""
    temperature: float | None = None
    """None leaves it to the provider."""
    response_schema_json: str = ""
    """The JSON Schema that the answer must match; empty for none."""
    patience: Callable[[], float] = field(default=lambda: 0.0, compare=False, repr=False)
    """Returns the seconds for which the caller has no use for more text. What comes meanwhile may be read together."""
    show: Callable[[str], bool] | None = field(default=None, compare=False, repr=False)
    """Takes text that comes after the first part that was yielded, in its order: a model may call it, from the event
    loop, in place of a yield. Returns False if the caller wants no more text. None: all text is to be yielded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """The whole answer, yielded once and last."""

    text: str
    """All parts of the text, joined."""
    tool_requests: tuple[ToolRequest, ...]
    finish_reason: FinishReason
    usage: Usage
    model: str
    """The model's name, as its server reported it."""


class ModelFailure(Exception):
    """The call ended without an answer. The message holds no text of the provider."""

    def __init__(
        self, detail: ErrorDetail, *, retryable: bool, retry_after: timedelta | None = None, repeated_once: bool = False
    ) -> None:
        """`retryable`: another try may succeed. `retry_after`: the pause that the provider asks for, if any.

        `repeated_once`: the server had begun to answer, or the call broke on a defect. A further try costs a whole
        answer and is likely to be no better, so there is one at most.
        """
        super().__init__(detail.message)
        self.detail = detail
        self.retryable = retryable
        self.retry_after = retry_after
        self.repeated_once = repeated_once


class Model(Protocol):
    """A language model at one address."""

    @property
    def server(self) -> tuple[str, int]:
        """Returns host and port of the model's server, for telemetry."""
        ...

    def stream(self, request: ModelRequest) -> AsyncIterator[str | ModelAnswer]:
        """Yields parts of the answer's text as they arrive, none of them empty, then one answer.

        What arrives in one read of the network is one part. Later parts may go to `ModelRequest.show` instead.
        Either yields a ModelAnswer last or raises ModelFailure. It fails if the provider's stream is malformed, is cut
        off, ends without a finish reason, or sends no token within a deadline. It makes one try; the turn's owner
        decides whether there is another one. Closing the iterator early (`aclose`) ends the provider's call.
        """
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...
