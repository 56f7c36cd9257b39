"""Calls every method of metrics and spans, also those that have no test of their own yet."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from turnkeeper.codes import Code
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.setup import tracer_provider
from turnkeeper.telemetry.spans import Spans

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Meters:
    """Metrics under a real reader, and what it was given."""

    def __init__(self, *, views: Sequence[View] = ()) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = Metrics(MeterProvider([self._reader], Resource({}), shutdown_on_exit=False, views=views))

    def read(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Labels, sorted → the counter's value, or the histogram's sum."""
        return {
            tuple(sorted((key, str(value)) for key, value in (point.attributes or {}).items())): amount(point)
            for point in points(self.read()[name])
        }


class Traces:
    """Spans over a real processor, and what was exported."""

    def __init__(self, *, record_content: bool = False) -> None:
        self.exporter = InMemorySpanExporter()
        tracers = tracer_provider(Resource({}))
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = Spans(tracers, record_content=record_content)


def points(metric: Metric) -> list[NumberDataPoint | HistogramDataPoint]:
    return [point for point in metric.data.data_points if isinstance(point, NumberDataPoint | HistogramDataPoint)]


def amount(point: NumberDataPoint | HistogramDataPoint) -> float:
    return point.value if isinstance(point, NumberDataPoint) else point.sum


def kind(metric: Metric) -> str:
    if isinstance(metric.data, Sum):
        return "counter" if metric.data.is_monotonic else "up-down counter"
    return "gauge" if isinstance(metric.data, Gauge) else "histogram"


def methods(of: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    return ((name, method) for name, method in inspect.getmembers(of, callable) if not name.startswith("_"))


def arguments(function: Callable[..., Any], *, text: Callable[[str], str]) -> Mapping[str, Any]:
    """A value for every parameter, the optional ones too; `text` gives those of the texts, by name."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {parameter.name: _value(parameter, text) for parameter in parameters if parameter.name != "self"}


_BY_NAME: Mapping[str, object] = {
    "links": [TRACEPARENT],
    "other": SpanContext(trace_id=1, span_id=2, is_remote=False),
    "metadata": [("traceparent", TRACEPARENT), ("authorization", "Bearer canary")],
    "server": ("models.example.com", 8080),
}


def _value(parameter: inspect.Parameter, text: Callable[[str], str]) -> object:
    if parameter.name in _BY_NAME:
        return _BY_NAME[parameter.name]
    if parameter.name == "error" and parameter.annotation is BaseException:
        return ValueError("canary")
    match str(parameter.annotation):
        case "<class 'str'>":
            return text(parameter.name)
        case "<class 'int'>" | "int | None":
            return 3
        case "<class 'float'>" | "float | None":
            return 0.5
        case _ if parameter.annotation is Code:
            return Code.SESSION_NOT_FOUND
    raise NotImplementedError(f"no value is known for {parameter}")
