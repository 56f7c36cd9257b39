"""Spans that are open: the attributes that each kind may get before it ends, and nothing else."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from opentelemetry.context import Context, attach, create_key, detach, set_value
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from turnkeeper.codes import Code, Family
from turnkeeper.telemetry.labels import SERVER_FAULTS

CANCELLED = "CANCELLED"
ROOT = Context()
"""A span that starts in it has no parent."""
W3C = TraceContextTextMapPropagator()
CALL_KEY = create_key("turnkeeper-call")
"""Where the current context holds the open RpcSpan."""

_NOT_THE_TOOLS_FAULT = frozenset({"DENIED", "REJECTED", "EXPIRED", CANCELLED})
_FAULT = Status(StatusCode.ERROR)


def error_type(error: BaseException) -> str:
    """Returns the name of the error's code, or of its class where it has none. Never its text."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    for holder in (error, getattr(error, "detail", None)):
        code = getattr(holder, "code", None)
        if isinstance(code, Code):
            return code.name
    return type(error).__name__


class SpanSpec(NamedTuple):
    """What a span starts with. `context` None makes it a child of the current span; `start_time` None means now."""

    name: str
    attributes: Mapping[str, AttributeValue]
    kind: SpanKind = SpanKind.INTERNAL
    context: Context | None = None
    start_time: int | None = None


class OpenSpan:
    """A context manager; the span is the current one inside. An exception that leaves it is named on it and goes on.

    The first end that is reported counts: what is reported after it changes nothing. `recording` is False where the
    span is not exported; `error` is the `error.type`, empty while there is none.
    """

    def __init__(self, tracer: Tracer, spec: SpanSpec, *, record_content: bool = False) -> None:
        self.recording = False
        self.error = ""
        self._tracer = tracer
        self._spec = spec
        self._record_content = record_content
        self._settled = False
        self._span: Span = INVALID_SPAN
        self._token: Token[Context] | None = None

    @property
    def records_content(self) -> bool:
        """Returns False where content would be dropped, so that the caller need not encode it."""
        return self._record_content and self.recording

    def __enter__(self) -> Self:
        spec = self._spec
        self._span = self._tracer.start_span(
            spec.name,
            spec.context,
            spec.kind,
            spec.attributes,
            start_time=spec.start_time,
            record_exception=False,
            set_status_on_exception=False,
        )
        self.recording = self._span.is_recording()
        self._token = attach(self._context())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            self.raised(error)
        if self._token is not None:
            detach(self._token)
        self._span.end()

    def failed(self, error: str) -> None:
        """Names the error; `error` is a code's name."""
        self._settle(error, fault=error != CANCELLED)

    def raised(self, error: BaseException) -> None:
        """Names the exception that left the span. Its text is not recorded."""
        self.failed(error_type(error))

    def _context(self) -> Context:
        """Returns the context that is current while the span is open."""
        return set_span_in_context(self._span)

    def _set(self, attributes: Mapping[str, AttributeValue]) -> None:
        if self.recording:
            self._span.set_attributes(attributes)

    def _settle(self, error: str, *, fault: bool) -> None:
        if self._settled:
            return
        self._settled = True
        if error:
            self.error = error
            self._set({"error.type": error})
        if fault:
            self._span.set_status(_FAULT)


@dataclass(slots=True)
class TurnLinks:
    """Links the calls that are open on this replica with the turns that run on it, in the direction call → turn.

    The turn's span links to the call that accepted the turn by itself: that works from replica to replica.
    """

    _running: dict[str, SpanContext] = field(default_factory=dict)
    _calls: dict[str, list["RpcSpan"]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Returns True when no call is open that named a turn, and no turn runs."""
        return not self._running and not self._calls

    def call_names(self, turn_id: str, call: "RpcSpan") -> None:
        """Links the call to the turn's attempt: to the one that runs, and to those that start while it is open."""
        self._calls.setdefault(turn_id, []).append(call)
        if (running := self._running.get(turn_id)) is not None:
            call.link(running)

    def call_ended(self, turn_id: str, call: "RpcSpan") -> None:
        """Forgets the call."""
        calls = self._calls[turn_id]
        calls.remove(call)
        if not calls:
            del self._calls[turn_id]

    def turn_began(self, turn_id: str, attempt: SpanContext) -> None:
        """Links the open calls that named the turn to the attempt."""
        self._running[turn_id] = attempt
        for call in self._calls.get(turn_id, ()):
            call.link(attempt)

    def turn_ended(self, turn_id: str, attempt: SpanContext) -> None:
        """Forgets the attempt; a newer one stays."""
        if self._running.get(turn_id) is attempt:
            del self._running[turn_id]


class RpcSpan(OpenSpan):
    """The span of a served call."""

    def __init__(self, tracer: Tracer, spec: SpanSpec, *, links: TurnLinks) -> None:
        super().__init__(tracer, spec)
        self._links = links
        self._turns: list[str] = []

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for turn_id in self._turns:
            self._links.call_ended(turn_id, self)
        super().__exit__(kind, error, traceback)

    def concerns(self, *, session_id: str = "", turn_id: str = "") -> None:
        """Names the session and the turn that the call is about, and links to the turn's span. Empty is not named."""
        if not self.recording:
            return
        if session_id:
            self._set({"gen_ai.conversation.id": session_id})
        if turn_id:
            self._set({"turnkeeper.turn.id": turn_id})
            if turn_id not in self._turns:
                self._turns.append(turn_id)
                self._links.call_names(turn_id, self)

    def link(self, other: SpanContext) -> None:
        """Adds a link to `other`."""
        self._span.add_link(other)

    def finished(self, status: str, *, error: str = "") -> None:
        """Records the end. `status` is the gRPC status name, `error` the name of our code.

        Only a server's fault marks the span as an error.
        """
        if not self._settled:
            self._set({"rpc.response.status_code": status})
        self._settle(error or ("" if status == "OK" else status), fault=status in SERVER_FAULTS)

    def raised(self, error: BaseException) -> None:
        name = error_type(error)
        family = getattr(error, "family", None)
        unnamed = CANCELLED if name == CANCELLED else "UNKNOWN"
        self.finished(family.name if isinstance(family, Family) else unnamed, error=name)

    def _context(self) -> Context:
        context = super()._context()
        return set_value(CALL_KEY, self, context) if self.recording else context


class ChatSpan(OpenSpan):
    """The span of a call to a model."""

    def first_chunk(self, seconds: float) -> None:
        """Records the time from the request to the first chunk."""
        self._set({"gen_ai.response.time_to_first_chunk": seconds})

    def answered(self, model: str, *, finish_reason: str, input_tokens: int, output_tokens: int) -> None:
        """Records the answer. `model` is the one that answered, by its server's account."""
        self._set(
            {
                "gen_ai.response.model": model,
                "gen_ai.response.finish_reasons": (str(finish_reason).lower(),),
                "gen_ai.usage.input_tokens": input_tokens,
                "gen_ai.usage.output_tokens": output_tokens,
            }
        )

    def content(self, *, input_json: str = "", output_json: str = "") -> None:
        """Records messages as JSON; drops them unless content is to be recorded. Empty is not recorded."""
        if self.records_content:
            texts = {"gen_ai.input.messages": input_json, "gen_ai.output.messages": output_json}
            self._set({name: text for name, text in texts.items() if text})


class ToolSpan(OpenSpan):
    """The span of one start of a tool call."""

    def finished(self, outcome: str) -> None:
        """Records the end. A person's decision or a cancellation does not mark the span as an error."""
        outcome = str(outcome)
        self._set({"turnkeeper.tool.outcome": outcome})
        fine = outcome == "OK"
        self._settle("" if fine else outcome, fault=not fine and outcome not in _NOT_THE_TOOLS_FAULT)

    def content(self, *, arguments_json: str = "", result_json: str = "") -> None:
        """Records arguments and result as JSON; drops them unless content is to be recorded. Empty is not recorded."""
        if self.records_content:
            texts = {"gen_ai.tool.call.arguments": arguments_json, "gen_ai.tool.call.result": result_json}
            self._set({name: text for name, text in texts.items() if text})


class AgentSpan(OpenSpan):
    """The span of one attempt at a turn."""

    def __init__(
        self, tracer: Tracer, spec: SpanSpec, *, turn_id: str, callers: Sequence[str], links: TurnLinks
    ) -> None:
        """`callers` are W3C traceparents of the calls that the turn came with."""
        super().__init__(tracer, spec)
        self._turn_id = turn_id
        self._callers = callers
        self._links = links

    def __enter__(self) -> Self:
        super().__enter__()
        if self.recording:
            for caller in self._callers:
                if (parsed := _parsed(caller)).is_valid:
                    self._span.add_link(parsed)
            self._links.turn_began(self._turn_id, self._span.get_span_context())
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self.recording:
            self._links.turn_ended(self._turn_id, self._span.get_span_context())
        super().__exit__(kind, error, traceback)

    def stopped(self, reason: str) -> None:
        """Records why this attempt ended: `reason` is the turn's state after it."""
        self._set({"turnkeeper.turn.state": str(reason)})


def _parsed(traceparent: str) -> SpanContext:
    """Returns the span that `traceparent` names; an invalid one if it is not a traceparent."""
    return get_current_span(W3C.extract({"traceparent": traceparent}, ROOT)).get_span_context()
