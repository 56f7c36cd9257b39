"""Starts telemetry: one setting says where metrics and spans go. No global provider is set; what opens is closed."""

import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias, assert_never

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry

from turnkeeper.telemetry.exporter_shutdown import drain
from turnkeeper.telemetry.instruments import Instruments
from turnkeeper.telemetry.log_throttle import Quiet
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.prometheus_endpoint import Scrape
from turnkeeper.telemetry.spans import Spans
from turnkeeper.telemetry.tracing import Export, Tracing

Exporter: TypeAlias = Literal["none", "console", "otlp", "prometheus"]

_SCOPE = "turnkeeper"
_SAME_COMPLAINT_EVERY = timedelta(minutes=10)


class TelemetryError(Exception):
    """Telemetry cannot start as it is set; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What seldom changes. `provider` is `gen_ai.provider.name`: the wire format of the model's server."""

    prometheus_host: str = "127.0.0.1"
    provider: str = "openai"
    record_content: bool = False
    metrics_every: timedelta = timedelta(seconds=30)
    export_within: timedelta = timedelta(seconds=5)
    shutdown_within: timedelta = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What was started. `prometheus_address` is host:port as it was taken, empty without that exporter."""

    metrics: Metrics
    spans: Spans
    prometheus_address: str = ""
    closers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def shutdown(self) -> None:
        """Send what is buffered and close everything; a second call does nothing.

        It blocks for `shutdown_within` and one second at most, whatever the collector does: call it by
        `asyncio.to_thread`.
        """
        while self.closers:
            self.closers.pop(0)()


def start(
    exporter: Exporter,
    *,
    service_instance_id: str,
    service_version: str,
    otlp_endpoint: str = "",
    prometheus_port: int = 0,
    options: Options | None = None,
) -> Telemetry:
    """`otlp_endpoint` is an http:// or https:// address; empty means OpenTelemetry's own variables or its default.
    Port 0 takes a free one. Raises TelemetryError where that cannot be."""
    options = options or Options()
    resource = Resource.create(
        {
            "service.name": "turnkeeper",
            "service.version": service_version,
            "service.instance.id": service_instance_id,
        }
    )
    match exporter:
        case "none":
            return _telemetry(options, Instruments(), Tracing())
        case "console":
            return _pushed(
                options, resource, ConsoleSpanExporter(out=sys.stderr), ConsoleMetricExporter(out=sys.stderr)
            )
        case "otlp":
            return _pushed(options, resource, *_otlp(otlp_endpoint, options.export_within))
        case "prometheus":
            return _scraped(options, resource, prometheus_port)
        case _:
            assert_never(exporter)


def _otlp(endpoint: str, within: timedelta) -> tuple[OTLPSpanExporter, OTLPMetricExporter]:
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise TelemetryError("the OTLP endpoint must begin with http:// or https://, as in http://127.0.0.1:4317")
    to, seconds = endpoint or None, within.total_seconds()
    return OTLPSpanExporter(endpoint=to, timeout=seconds), OTLPMetricExporter(endpoint=to, timeout=seconds)


def _pushed(options: Options, resource: Resource, spans: SpanExporter, metrics: MetricExporter) -> Telemetry:
    """Both are sent by threads of their own; a request never waits for them."""
    quiet = Quiet(every=_SAME_COMPLAINT_EVERY)
    quiet.begin()
    every = options.metrics_every.total_seconds() * 1000
    instruments = Instruments()
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=every)
    attach(reader, instruments, resource)
    processor = BatchSpanProcessor(spans)

    def close() -> None:
        quiet.mute()
        drain(
            [reader.shutdown, processor.shutdown],
            stop=[metrics.shutdown, spans.shutdown],
            within=options.shutdown_within,
        )
        quiet.end()

    return _telemetry(options, instruments, traced(processor, resource), closers=[close])


def _scraped(options: Options, resource: Resource, port: int) -> Telemetry:
    registry = CollectorRegistry()
    host = options.prometheus_host
    try:
        endpoint = Scrape(registry, host=host, port=port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken; choose another, or 0 for a free one" if taken else "cannot be had on this machine"
        raise TelemetryError(f"the Prometheus address {host}:{port} {why}") from error
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    instruments = Instruments()
    attach(reader, instruments, resource)
    return _telemetry(
        options,
        instruments,
        Tracing(),
        closers=[endpoint.close, reader.shutdown],
        prometheus_address=endpoint.address,
    )


def attach(reader: MetricReader, instruments: Instruments, resource: Resource) -> None:
    """What `reader` exports is what `instruments` have counted, in place of a MeterProvider's."""

    def collect(_reader: MetricReader, **_: object) -> MetricsData:
        return instruments.read(resource, _SCOPE)

    # The SDK calls it with other arguments than its type says.
    reader._set_collect_callback(collect)  # type: ignore[arg-type]  # noqa: SLF001 - as a MeterProvider does


def traced(processor: SpanProcessor, resource: Resource) -> Tracing:
    """What `OTEL_TRACES_SAMPLER` wants goes to `processor`."""
    sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler
    return Tracing(Export(sampler, processor, resource, InstrumentationScope(_SCOPE)))


def _telemetry(
    options: Options,
    instruments: Instruments,
    tracing: Tracing,
    *,
    closers: list[Callable[[], None]] | None = None,
    prometheus_address: str = "",
) -> Telemetry:
    return Telemetry(
        metrics=Metrics(instruments, provider=options.provider),
        spans=Spans(tracing, provider=options.provider, record_content=options.record_content),
        prometheus_address=prometheus_address,
        closers=closers or [],
    )
