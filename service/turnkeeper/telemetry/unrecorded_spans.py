"""Spans that go nowhere: they have ids, which log lines show, and no more. The SDK's take twice as many calls."""

import random
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    Span,
    SpanContext,
    get_current_span,
)


class UnrecordedTracer(NoOpTracer):
    """Makes spans of the current trace, or of a new one."""

    def start_span(self, name: str, context: Context | None = None, *_: Any, **__: Any) -> Span:  # noqa: ARG002
        """Returns a span below the context's; without one it begins a trace."""
        parent = get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else _number(128)
        return NonRecordingSpan(SpanContext(trace_id, _number(64), is_remote=False, trace_state=parent.trace_state))


class UnrecordedTracers(NoOpTracerProvider):
    """Has such tracers."""

    def get_tracer(self, *_: Any, **__: Any) -> UnrecordedTracer:
        """Returns a tracer."""
        return UnrecordedTracer()


def _number(bits: int) -> int:
    """Returns a random number above 0; nothing depends on whether it can be foreseen."""
    return random.getrandbits(bits) or 1
