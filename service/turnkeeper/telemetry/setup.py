"""Starts telemetry: one setting chooses where metrics and spans go. No global provider is set; what opens is closed."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias, assert_never
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.exporter import InvalidCompressionValueException
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import MeterProvider as Meters
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_METRICS_TIMEOUT,
    OTEL_EXPORTER_OTLP_TIMEOUT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
    OTEL_METRIC_EXPORT_INTERVAL,
)
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import TracerProvider as Tracers
from prometheus_client import CollectorRegistry

from turnkeeper.telemetry.console import metric_lines, span_lines
from turnkeeper.telemetry.exporter_shutdown import drain
from turnkeeper.telemetry.log_throttle import LogThrottle
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.prometheus_endpoint import PrometheusEndpoint
from turnkeeper.telemetry.spans import Spans
from turnkeeper.telemetry.unrecorded_spans import UnrecordedTracers

logger = logging.getLogger(__name__)
Exporter: TypeAlias = Literal["none", "console", "otlp", "prometheus"]

LONGEST_VALUE = 16_384
"""Characters of a span attribute's value; the rest is cut off."""
_SAME_WARNING_EVERY = timedelta(minutes=10)
"""The least time between two log lines with the same warning of the exporter."""

_ENDPOINTS = (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT)


class TelemetryError(Exception):
    """Telemetry cannot start with these settings; the message tells the operator what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What seldom changes."""

    prometheus_host: str = "127.0.0.1"
    provider: str = "openai"
    """`gen_ai.provider.name`: the wire format of the model's server."""
    record_content: bool = False
    """Messages, arguments and results go into spans."""
    metrics_every: timedelta = timedelta(seconds=30)
    """Unless OpenTelemetry's own variable is set."""
    export_within: timedelta = timedelta(seconds=5)
    """The same."""
    shutdown_within: timedelta = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What was started."""

    metrics: Metrics
    spans: Spans
    prometheus_address: str = ""
    """host:port as it was taken; empty without that exporter."""
    closers: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def shutdown(self) -> None:
        """Sends what is buffered and closes everything; a second call does nothing.

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
    """Starts the exporter and returns what records for it.

    `otlp_endpoint` is an http:// or https:// address; empty means OpenTelemetry's own variables or its default. Port 0
    takes a free one. Raises TelemetryError for an address that is malformed, taken or not this machine's, and for a
    variable that OpenTelemetry refuses.
    """
    options = options or Options()
    try:
        resource = Resource.create(
            {
                "service.name": "turnkeeper",
                "service.version": service_version,
                "service.instance.id": service_instance_id,
            }
        )
        match exporter:
            case "none":
                return _telemetry(options, NoOpMeterProvider(), UnrecordedTracers())
            case "console":
                return _pushed(options, resource, span_lines(sys.stderr), metric_lines(sys.stderr))
            case "otlp":
                return _pushed(options, resource, *_otlp(otlp_endpoint, options.export_within))
            case "prometheus":
                return _scraped(options, resource, prometheus_port)
            case _:
                assert_never(exporter)
    except (ValueError, InvalidCompressionValueException) as error:
        raise TelemetryError(f"OpenTelemetry refuses one of its own variables (OTEL_…): {error}") from error


def tracer_provider(resource: Resource) -> TracerProvider:
    """Returns a provider that samples by `OTEL_TRACES_SAMPLER` and cuts long values."""
    limits = SpanLimits(max_span_attribute_length=LONGEST_VALUE)
    return TracerProvider(resource=resource, shutdown_on_exit=False, span_limits=limits)


def _otlp(endpoint: str, within: timedelta) -> tuple[OTLPSpanExporter, OTLPMetricExporter]:
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise TelemetryError("the OTLP endpoint must begin with http:// or https://, as in http://127.0.0.1:4317")
    if endpoint:
        _check_address(endpoint, name="the OTLP endpoint")
    else:
        for name in _ENDPOINTS:
            if address := os.environ.get(name):
                _check_address(address, name=name)
    return (
        OTLPSpanExporter(endpoint=endpoint or None, timeout=_timeout(OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, within)),
        OTLPMetricExporter(endpoint=endpoint or None, timeout=_timeout(OTEL_EXPORTER_OTLP_METRICS_TIMEOUT, within)),
    )


def _check_address(address: str, *, name: str) -> None:
    """Raises TelemetryError for what cannot be dialled, and for a password: gRPC would log it with each failure."""
    try:
        parts = urlsplit(address)
        usable = parts.port != 0 and not re.search(r"\s", address)
        usable = usable and (bool(parts.hostname) or parts.scheme not in ("http", "https"))
    except ValueError:
        usable = False
    if not usable:
        raise TelemetryError(f"{name} is not an address such as http://127.0.0.1:4317")
    if "@" in address:
        raise TelemetryError(f"{name} must hold no user and no password; headers are in {OTEL_EXPORTER_OTLP_HEADERS}")


def _timeout(variable: str, within: timedelta) -> float | None:
    """Returns seconds; None where OpenTelemetry's own variables have them."""
    return None if {variable, OTEL_EXPORTER_OTLP_TIMEOUT} & os.environ.keys() else within.total_seconds()


def _pushed(options: Options, resource: Resource, spans: SpanExporter, metrics: MetricExporter) -> Telemetry:
    """Starts two threads that send; a request never waits for them."""
    processor = BatchSpanProcessor(spans)
    tracers = tracer_provider(resource)
    tracers.add_span_processor(processor)
    own = OTEL_METRIC_EXPORT_INTERVAL in os.environ
    every = None if own else options.metrics_every.total_seconds() * 1000
    reader = PeriodicExportingMetricReader(metrics, export_interval_millis=every)
    meters = MeterProvider([reader], resource, shutdown_on_exit=False)
    throttle = LogThrottle(every=_SAME_WARNING_EVERY)
    throttle.begin()

    def close() -> None:
        flushed = drain(
            [reader.shutdown, processor.shutdown],
            stop=[throttle.mute, metrics.shutdown, spans.shutdown],
            within=options.shutdown_within,
        )
        throttle.end()
        if not flushed:
            seconds = options.shutdown_within.total_seconds()
            logger.warning("the last metrics and spans are lost: the collector did not take them within %g s", seconds)

    return _telemetry(options, meters, tracers, closers=[close])


def _scraped(options: Options, resource: Resource, port: int) -> Telemetry:
    registry = CollectorRegistry()
    host = options.prometheus_host
    try:
        endpoint = PrometheusEndpoint(registry, host=host, port=port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken; choose another, or 0 for a free one" if taken else "cannot be had on this machine"
        raise TelemetryError(f"the Prometheus address {host}:{port} {why}") from error
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    # An exemplar names a recorded span, and this exporter records none: the look for one at each record is left out.
    filter_ = AlwaysOffExemplarFilter()
    meters = MeterProvider([reader], resource, shutdown_on_exit=False, exemplar_filter=filter_)
    return _telemetry(
        options,
        meters,
        UnrecordedTracers(),
        closers=[endpoint.close, meters.shutdown],
        prometheus_address=endpoint.address,
    )


def _telemetry(
    options: Options,
    meters: Meters,
    tracers: Tracers,
    *,
    closers: list[Callable[[], None]] | None = None,
    prometheus_address: str = "",
) -> Telemetry:
    return Telemetry(
        metrics=Metrics(meters, provider=options.provider),
        spans=Spans(tracers, provider=options.provider, record_content=options.record_content),
        prometheus_address=prometheus_address,
        closers=closers or [],
    )
