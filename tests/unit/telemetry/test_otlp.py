"""Our encoder of spans makes what OpenTelemetry's makes."""

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

from tests.unit.telemetry.calls import TRACEPARENT, Traces
from turnkeeper.telemetry.otlp import encoded


def spans_of_every_kind() -> list[ReadableSpan]:
    traces = Traces(record_content=True)
    spans = traces.spans
    remote = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1,other=2")]
    with spans.rpc("S", method="A", metadata=remote) as call:
        root = spans.traceparent()
        call.finished("OK")
    with spans.rpc("S", method="B") as call:
        call.finished("INTERNAL", error="INTERNAL_ERROR")
    links = [root, TRACEPARENT]
    with spans.invoke_agent("helper", session_id="s", turn_id="t", attempt=1, links=links) as agent:
        with spans.chat("small", session_id="s", max_output_tokens=1, temperature=1.0) as chat:
            chat.first_chunk(1.0)
            chat.answered("small", finish_reason="STOP", input_tokens=2**40, output_tokens=0)
            chat.content(input_json="ä" * 200, output_json="")
        with spans.execute_tool("pay", call_id="c", source="samples", tool_class="READ_ONLY") as tool:
            tool.finished("FAILED")
        agent.stopped("COMPLETED")
    return list(traces.exporter.get_finished_spans())


def test_it_encodes_as_opentelemetry_does() -> None:
    spans = spans_of_every_kind()
    assert encoded(spans) == encode_spans(spans)
    assert encoded(spans) == encode_spans(spans)  # once more, from what was kept


def test_one_span_is_enough() -> None:
    for span in spans_of_every_kind():
        assert encoded([span]) == encode_spans([span])


@pytest.mark.parametrize("same", [(1, 1.0), (1.0, 1), (1, True), (True, 1)])
def test_values_that_are_equal_keep_their_types(same: tuple[int | float, int | float]) -> None:
    for value in same:
        span = ReadableSpan("x", spans_of_every_kind()[0].context, attributes={"k": value}, start_time=1, end_time=2)
        assert encoded([span]) == encode_spans([span])


def test_a_text_that_is_not_unicode_costs_nothing_but_itself() -> None:
    traces = Traces()
    with traces.spans.execute_tool("pay\ud800", call_id="c\udfff", source="samples", tool_class="READ_ONLY"):
        pass
    (span,) = encoded(traces.exporter.get_finished_spans()).resource_spans[0].scope_spans[0].spans
    assert span.name == "execute_tool pay?"
    assert {each.key: each.value.string_value for each in span.attributes}["gen_ai.tool.call.id"] == "c?"
