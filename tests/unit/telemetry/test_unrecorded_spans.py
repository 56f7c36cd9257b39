"""Spans that go nowhere still tell which lines of the log belong together."""

from opentelemetry.trace import SpanContext, get_current_span

from tests.call_counts import calls_of
from turnkeeper.telemetry.spans import Spans
from turnkeeper.telemetry.unrecorded_spans import UnrecordedTracer, UnrecordedTracers

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def current() -> SpanContext:
    return get_current_span().get_span_context()


def test_a_span_below_another_is_of_its_trace() -> None:
    spans = Spans(UnrecordedTracers())
    with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=1) as attempt:
        outer = current()
        with spans.chat("small"):
            inner = current()
        assert current() == outer
    assert not attempt.recording
    assert outer.is_valid
    assert inner.is_valid
    assert (inner.trace_id, inner.is_remote) == (outer.trace_id, False)
    assert inner.span_id != outer.span_id


def test_each_attempt_is_a_trace_of_its_own() -> None:
    spans = Spans(UnrecordedTracers())
    traces = set()
    for attempt in range(3):
        with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=attempt):
            traces.add(current().trace_id)
    assert len(traces) == 3


def test_a_call_goes_on_with_its_callers_trace() -> None:
    with Spans(UnrecordedTracers()).rpc(
        "turnkeeper.v1.ChatService", method="A", metadata=[("traceparent", TRACEPARENT)]
    ):
        assert f"{current().trace_id:032x}" == TRACEPARENT.split("-")[1]
        assert Spans.traceparent().split("-")[1] == TRACEPARENT.split("-")[1]


def test_a_span_is_cheap() -> None:
    tracer = UnrecordedTracer()
    tracer.start_span("one")
    _, calls = calls_of(lambda: tracer.start_span("two"))
    assert calls.total() < 15
