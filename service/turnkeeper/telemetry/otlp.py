"""Spans in OTLP's form, for a third of what OpenTelemetry's own encoder costs; the sending is OpenTelemetry's.

Most of a span is the same from one to the next: its name, kind and most attributes are kept in their wire form. Wire
forms of a message one after the other are the message with all of their fields, so a span is put together from them.
"""

from collections.abc import Sequence
from functools import lru_cache

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

_KEPT = 4096
_LONGEST_KEPT = 128
"""Characters; a longer text is hardly the same twice."""

_KINDS = {
    SpanKind.INTERNAL: Span.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: Span.SPAN_KIND_SERVER,
    SpanKind.CLIENT: Span.SPAN_KIND_CLIENT,
}
_CODES = {StatusCode.UNSET: Status.STATUS_CODE_UNSET, StatusCode.ERROR: Status.STATUS_CODE_ERROR}
_OURS = int(SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
_REMOTE = _OURS | int(SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)


class SpansToOtlp(OTLPSpanExporter):
    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        return encoded(data)


def encoded(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """What OpenTelemetry's encoder makes of `spans`, of which there is one at least, all of one resource and scope.

    A text that is not Unicode loses what is not, where theirs drops the attribute or the batch.
    """
    first = spans[0]
    blank = ReadableSpan(
        "",
        first.context,
        resource=first.resource,
        instrumentation_scope=first.instrumentation_scope,
        start_time=0,
        end_time=0,
    )
    request = encode_spans([blank])
    kept = request.resource_spans[0].scope_spans[0].spans
    del kept[:]
    for span in spans:
        _fill(kept.add(), span)
    return request


def _fill(target: Span, span: ReadableSpan) -> None:
    context, parent = span.context, span.parent
    remote = parent is not None and parent.is_remote
    parts = [_shape(span.name, span.kind, span.status.status_code, remote)]
    for key, value in (span.attributes or {}).items():
        long = isinstance(value, str) and len(value) > _LONGEST_KEPT
        parts.append(_attribute.__wrapped__(key, value) if long else _attribute(key, value))
    target.MergeFromString(b"".join(parts))
    target.trace_id = context.trace_id.to_bytes(16, "big")
    target.span_id = context.span_id.to_bytes(8, "big")
    if parent is not None:
        target.parent_span_id = parent.span_id.to_bytes(8, "big")
    if context.trace_state:
        target.trace_state = ",".join(f"{key}={value}" for key, value in context.trace_state.items())
    target.start_time_unix_nano, target.end_time_unix_nano = span.start_time or 0, span.end_time or 0
    for link in span.links:
        to = link.context
        flags = _REMOTE if to.is_remote else _OURS
        target.links.add(trace_id=to.trace_id.to_bytes(16, "big"), span_id=to.span_id.to_bytes(8, "big"), flags=flags)


@lru_cache(maxsize=_KEPT)
def _shape(name: str, kind: SpanKind, status: StatusCode, remote: bool) -> bytes:
    flags = _REMOTE if remote else _OURS
    span = Span(name=_unicode(name), kind=_KINDS[kind], status=Status(code=_CODES[status]), flags=flags)
    return span.SerializeToString()


@lru_cache(maxsize=_KEPT, typed=True)
def _attribute(key: str, value: AttributeValue) -> bytes:
    """A span with this attribute and nothing else."""
    span = Span()
    into = span.attributes.add(key=key).value
    match value:
        case bool():
            into.bool_value = value
        case str():
            into.string_value = _unicode(value)
        case int():
            into.int_value = value
        case float():
            into.double_value = value
        case tuple():
            for each in value:
                into.array_value.values.add(string_value=_unicode(str(each)))
        case _:
            raise TypeError(f"{key} is of no type that a span of ours has")
    return span.SerializeToString()


def _unicode(text: str) -> str:
    """A model may say half a surrogate pair, which no UTF-8 can."""
    return text.encode(errors="replace").decode()
