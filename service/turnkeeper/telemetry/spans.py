"""What is traced. docs/reference/telemetry.md lists every span and its attributes.

A call has one span. Each attempt at a turn's work is a trace of its own, linked to the span that accepted the turn, so
that a crash loses one attempt's spans. Errors are named by their code; no exception's text is ever recorded, and no
content unless it was asked for.
"""

from collections.abc import Iterable, Sequence

from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from turnkeeper.telemetry.open_spans import AgentSpan, ChatSpan, RpcSpan, ToolSpan
from turnkeeper.telemetry.tracing import Attributes, SpanSpec, Tracing

_W3C = TraceContextTextMapPropagator()
_NOWHERE = Context()


class Spans:
    """Context managers, one per kind of span. An exception that leaves one is named on the span and goes on."""

    def __init__(self, tracing: Tracing, *, provider: str = "openai", record_content: bool = False) -> None:
        """`provider` is `gen_ai.provider.name`; `record_content` lets messages, arguments and results in."""
        self._tracing = tracing
        self._provider = provider
        self._record_content = record_content

    def rpc(self, service: str, *, method: str, metadata: Iterable[tuple[str, str | bytes]] | None = ()) -> RpcSpan:
        """A served call, the child of the caller's span if `metadata` (gRPC's, lower-case keys) names one."""
        name = f"{service}/{method}"
        attributes: Attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        wanted = SpanSpec(name, attributes, SpanKind.SERVER, context=_context_of(metadata or ()))
        return RpcSpan(self._tracing, wanted)

    def invoke_agent(
        self, agent: str, *, session_id: str, turn_id: str, attempt: int, links: Sequence[str] = ()
    ) -> AgentSpan:
        """One attempt at a turn: a new trace, linked to `links` (what `traceparent` gave; others are left out)."""
        wanted = SpanSpec(
            f"invoke_agent {agent}",
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": self._provider,
                "gen_ai.agent.name": agent,
                "gen_ai.conversation.id": session_id,
                "turnkeeper.turn.id": turn_id,
                "turnkeeper.turn.attempt": attempt,
            },
            context=_NOWHERE,
            links=tuple(Link(parsed) for each in links if (parsed := _parsed(each)).is_valid),
        )
        return AgentSpan(self._tracing, wanted)

    def chat(
        self,
        model: str,
        *,
        session_id: str = "",
        max_output_tokens: int | None = None,
        temperature: float | None = None,
    ) -> ChatSpan:
        """One call to a model, streamed. `model` is the configured name."""
        attributes: Attributes = {
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
        wanted = SpanSpec(f"chat {model}", attributes, SpanKind.CLIENT)
        return ChatSpan(self._tracing, wanted, record_content=self._record_content)

    def execute_tool(self, tool: str, *, call_id: str, source: str, tool_class: str, session_id: str = "") -> ToolSpan:
        """One start of a tool call."""
        attributes: Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": tool,
            "gen_ai.tool.call.id": call_id,
            "gen_ai.tool.type": "function",
            "turnkeeper.tool.source": source,
            "turnkeeper.tool.class": str(tool_class),
        }
        if session_id:
            attributes["gen_ai.conversation.id"] = session_id
        wanted = SpanSpec(f"execute_tool {tool}", attributes)
        return ToolSpan(self._tracing, wanted, record_content=self._record_content)

    @staticmethod
    def traceparent() -> str:
        """The current span as a W3C traceparent, to be kept with a turn or sent along; empty where there is none."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get("traceparent", "")


def _context_of(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """Only the W3C keys are read; without them the span is a root."""
    for key, _ in metadata:
        if key == "traceparent":
            break
    else:
        return _NOWHERE
    carrier = {key: value for key, value in metadata if key in _W3C.fields and isinstance(value, str)}
    return _W3C.extract(carrier, _NOWHERE)


def _parsed(traceparent: str) -> SpanContext:
    context = _W3C.extract({"traceparent": traceparent}, _NOWHERE)
    return get_current_span(context).get_span_context()
