"""What is traced. docs/reference/telemetry.md lists every span and its attributes.

A call has one span. Each attempt at a turn's work is a trace of its own, linked to the span that accepted the turn, so
that a crash loses one attempt's spans. Errors are named by their code; no exception's text is ever recorded, and no
content unless it was asked for.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from turnkeeper.telemetry.live import AgentSpan, ChatSpan, LiveSpan, RpcSpan, ToolSpan

_W3C = TraceContextTextMapPropagator()
_NOWHERE = Context()
_Live = TypeVar("_Live", bound=LiveSpan)


class Spans:
    """Context managers, one per kind of span. An exception that leaves one is named on the span and goes on."""

    def __init__(self, tracer: Tracer, *, provider: str = "openai", record_content: bool = False) -> None:
        """`provider` is `gen_ai.provider.name`; `record_content` lets messages, arguments and results in."""
        self._tracer = tracer
        self._provider = provider
        self._record_content = record_content

    @contextmanager
    def rpc(
        self, service: str, *, method: str, metadata: Iterable[tuple[str, str | bytes]] | None = ()
    ) -> Iterator[RpcSpan]:
        """A served call, the child of the caller's span if `metadata` (gRPC's, lower-case keys) names one."""
        name = f"{service}/{method}"
        with self._open(
            RpcSpan,
            name,
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
            context=_context_of(metadata or ()),
        ) as live:
            yield live

    @contextmanager
    def invoke_agent(
        self, agent: str, *, session_id: str, turn_id: str, attempt: int, links: Sequence[str] = ()
    ) -> Iterator[AgentSpan]:
        """One attempt at a turn: a new trace, linked to `links` (what `traceparent` gave; others are left out)."""
        with self._open(
            AgentSpan,
            f"invoke_agent {agent}",
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": self._provider,
                "gen_ai.agent.name": agent,
                "gen_ai.conversation.id": session_id,
                "turnkeeper.turn.id": turn_id,
                "turnkeeper.turn.attempt": attempt,
            },
            context=_NOWHERE,
            links=[Link(_parsed(each)) for each in links],
        ) as live:
            yield live

    @contextmanager
    def chat(
        self,
        model: str,
        *,
        session_id: str = "",
        max_output_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Iterator[ChatSpan]:
        """One call to a model, streamed. `model` is the configured name."""
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": model,
            "gen_ai.request.stream": True,
        }
        if session_id:
            attributes["gen_ai.conversation.id"] = session_id
        if max_output_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = max_output_tokens
        if temperature is not None:
            attributes["gen_ai.request.temperature"] = temperature
        with self._open(ChatSpan, f"chat {model}", kind=SpanKind.CLIENT, attributes=attributes) as live:
            yield live

    @contextmanager
    def execute_tool(
        self, tool: str, *, call_id: str, source: str, tool_class: str, session_id: str = ""
    ) -> Iterator[ToolSpan]:
        """One start of a tool call."""
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": tool,
            "gen_ai.tool.call.id": call_id,
            "gen_ai.tool.type": "function",
            "turnkeeper.tool.source": source,
            "turnkeeper.tool.class": str(tool_class),
        }
        if session_id:
            attributes["gen_ai.conversation.id"] = session_id
        with self._open(ToolSpan, f"execute_tool {tool}", attributes=attributes) as live:
            yield live

    @staticmethod
    def traceparent() -> str:
        """The current span as a W3C traceparent, to be kept with a turn or sent along; empty where there is none."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")

    @contextmanager
    def _open(
        self,
        live_type: type[_Live],
        name: str,
        *,
        attributes: dict[str, AttributeValue],
        kind: SpanKind = SpanKind.INTERNAL,
        context: Context | None = None,
        links: Sequence[Link] = (),
    ) -> Iterator[_Live]:
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            live = live_type(span, record_content=self._record_content)
            try:
                yield live
            except BaseException as error:
                live.raised(error)
                raise


def _context_of(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """Only the W3C keys are read; without them the span is a root."""
    carrier = {key: value for key, value in metadata if key in _W3C.fields and isinstance(value, str)}
    return _W3C.extract(carrier, _NOWHERE)


def _parsed(traceparent: str) -> SpanContext:
    context = _W3C.extract({"traceparent": traceparent}, _NOWHERE)
    return get_current_span(context).get_span_context()
