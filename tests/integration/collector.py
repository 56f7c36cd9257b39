"""A collector that speaks OTLP over gRPC and stores what it is sent."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """`metrics` has the newest of each name, `received` all of them, those of every process.

    `raw` is every request as it came over the wire, for a search in all of it.
    """

    endpoint = ""

    def __init__(self) -> None:
        self._lock = Lock()
        self.spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}
        self.received: list[Metric] = []
        self.resource: dict[str, str] = {}
        self.raw = b""

    def keep_spans(self, request: trace_pb.ExportTraceServiceRequest) -> trace_pb.ExportTraceServiceResponse:
        with self._lock:
            self.raw += request.SerializeToString()
            for resource in request.resource_spans:
                self.resource |= texts(resource.resource.attributes)
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_pb.ExportTraceServiceResponse()

    def keep_metrics(self, request: metrics_pb.ExportMetricsServiceRequest) -> metrics_pb.ExportMetricsServiceResponse:
        with self._lock:
            self.raw += request.SerializeToString()
            for resource in request.resource_metrics:
                self.received += [metric for scope in resource.scope_metrics for metric in scope.metrics]
                self.metrics |= {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
        return metrics_pb.ExportMetricsServiceResponse()


def texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """Starts a collector on loopback, at `endpoint`, for the block."""
    received = Collector()

    class Traces(trace_grpc.TraceServiceServicer):
        def Export(self, request: trace_pb.ExportTraceServiceRequest, context: grpc.ServicerContext) -> object:  # noqa: N802
            return received.keep_spans(request)

    class Metrics(metrics_grpc.MetricsServiceServicer):
        def Export(self, request: metrics_pb.ExportMetricsServiceRequest, context: grpc.ServicerContext) -> object:  # noqa: N802
            return received.keep_metrics(request)

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]  # generated
        metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]  # generated
        received.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield received
        finally:
            server.stop(0).wait()
