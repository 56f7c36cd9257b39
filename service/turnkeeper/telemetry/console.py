"""Exporters that write to a stream, one JSON line for each span and one for each instrument's set of labels."""

import json
from collections.abc import Iterator
from typing import TextIO

from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    HistogramDataPoint,
    MetricExporter,
    MetricsData,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.util import ns_to_iso_str
from opentelemetry.trace import format_span_id, format_trace_id


def span_lines(stream: TextIO) -> SpanExporter:
    """Returns an exporter that writes one line a span."""
    return ConsoleSpanExporter(out=stream, formatter=_span_line)


def metric_lines(stream: TextIO) -> MetricExporter:
    """Returns an exporter that writes one line for each set of labels of each instrument."""
    return ConsoleMetricExporter(out=stream, formatter=lambda data: "".join(_metric_lines(data)))


def _span_line(span: ReadableSpan) -> str:
    start, end = span.start_time or 0, span.end_time or 0
    context = span.get_span_context()
    line = {
        "time": ns_to_iso_str(start),
        "span": span.kind.name.lower(),
        "name": span.name,
        "milliseconds": round((end - start) / 1_000_000, 3),
        "status": span.status.status_code.name,
        "trace_id": format_trace_id(context.trace_id) if context else "",
        "span_id": format_span_id(context.span_id) if context else "",
        "parent_id": format_span_id(span.parent.span_id) if span.parent else "",
        "links": [format_span_id(link.context.span_id) for link in span.links],
        "attributes": dict(span.attributes or {}),
    }
    return json.dumps(line) + "\n"


def _metric_lines(data: MetricsData) -> Iterator[str]:
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    line: dict[str, object] = {"time": ns_to_iso_str(point.time_unix_nano), "metric": metric.name}
                    match point:
                        case NumberDataPoint():
                            line["value"] = point.value
                        case HistogramDataPoint():
                            line |= {"count": point.count, "sum": point.sum, "min": point.min, "max": point.max}
                        case _:
                            line |= {"count": point.count, "sum": point.sum}
                    yield json.dumps({**line, "unit": metric.unit, "labels": dict(point.attributes or {})}) + "\n"
