"""What is traced. docs/reference/telemetry.md lists every span and its attributes.

A call has one span. Each attempt at a turn's work is a trace of its own, linked to the span of the call that the turn
came with, so that a crash loses one attempt's spans. Errors are named by their code; no exception's text is ever
recorded, and no content unless a setting asks for it.
"""

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache

from opentelemetry.context import Context, get_value
from opentelemetry.trace import SpanKind, TracerProvider
from opentelemetry.util.types import AttributeValue

from turnkeeper.telemetry.metrics import SCOPE
from turnkeeper.telemetry.open_spans import (
    CALL_KEY,
    ROOT,
    W3C,
    AgentSpan,
    ChatSpan,
    RpcSpan,
    SpanSpec,
    ToolSpan,
    TurnLinks,
)


class Spans:
    """Context managers, one per kind of span. An exception that leaves one is named on the span and goes on."""

    def __init__(self, tracers: TracerProvider, *, provider: str = "openai", record_content: bool = False) -> None:
        """`provider` is `gen_ai.provider.name`; `record_content` lets messages, arguments and results in."""
        self._tracer = tracers.get_tracer(SCOPE)
        self._provider = provider
        self._record_content = record_content
        self.links = TurnLinks()

    def rpc(self, service: str, *, method: str, metadata: Iterable[tuple[str, str | bytes]] | None = ()) -> RpcSpan:
        """Returns the span of a served call: a child of the caller's span if `metadata` names one.

        `metadata` is gRPC's, with lower-case keys.
        """
        name = f"{service}/{method}"
        spec = SpanSpec(name, _call_attributes(name), SpanKind.SERVER, _context_of(metadata or ()))
        return RpcSpan(self._tracer, spec, links=self.links)

    @staticmethod
    def call_concerns(*, session_id: str = "", turn_id: str = "") -> None:
        """Names the session and the turn on the span of the call that is current; does nothing outside of one."""
        call = get_value(CALL_KEY)
        if isinstance(call, RpcSpan):
            call.concerns(session_id=session_id, turn_id=turn_id)

    def invoke_agent(
        self, agent: str, *, session_id: str, turn_id: str, attempt: int, links: Sequence[str] = ()
    ) -> AgentSpan:
        """Returns the span of one attempt at a turn: a new trace, linked to `links`.

        `links` are W3C traceparents, as `traceparent` returned them; anything else is left out.
        """
        spec = SpanSpec(
            f"invoke_agent {agent}",
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": self._provider,
                "gen_ai.agent.name": agent,
                "gen_ai.conversation.id": session_id,
                "turnkeeper.turn.id": turn_id,
                "turnkeeper.turn.attempt": attempt,
            },
            context=ROOT,
        )
        return AgentSpan(self._tracer, spec, turn_id=turn_id, callers=links, links=self.links)

    def chat(
        self,
        model: str,
        *,
        server: tuple[str, int] | None = None,
        session_id: str = "",
        max_output_tokens: int | None = None,
        temperature: float | None = None,
    ) -> ChatSpan:
        """Returns the span of one call to a model, streamed.

        `model` is the configured name, `server` the host and port of the model's server.
        """
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": model,
            "gen_ai.request.stream": True,
        }
        if server is not None:
            attributes["server.address"], attributes["server.port"] = server
        if session_id:
            attributes["gen_ai.conversation.id"] = session_id
        if max_output_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = max_output_tokens
        if temperature is not None:
            attributes["gen_ai.request.temperature"] = temperature
        spec = SpanSpec(f"chat {model}", attributes, SpanKind.CLIENT)
        return ChatSpan(self._tracer, spec, record_content=self._record_content)

    def execute_tool(
        self,
        tool: str,
        *,
        call_id: str,
        source: str,
        tool_class: str,
        session_id: str = "",
        start_time: int | None = None,
    ) -> ToolSpan:
        """Returns the span of one start of a tool call.

        `start_time` in nanoseconds since the epoch, for a call that was started before; None means now, and so does a
        time to come: it may be that of another replica, whose clock is ahead.
        """
        if start_time is not None:
            start_time = min(start_time, time.time_ns())
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
        spec = SpanSpec(f"execute_tool {tool}", attributes, start_time=start_time)
        return ToolSpan(self._tracer, spec, record_content=self._record_content)

    @staticmethod
    def traceparent() -> str:
        """Returns the current span as a W3C traceparent, to be stored with a turn or sent; empty if there is none."""
        carrier: dict[str, str] = {}
        W3C.inject(carrier)
        return carrier.get("traceparent", "")


@lru_cache(maxsize=256)
def _call_attributes(name: str) -> dict[str, AttributeValue]:
    return {"rpc.system.name": "grpc", "rpc.method": name}


def _context_of(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    """Returns the caller's span by the W3C keys, the only ones that are read; without them the span is a root."""
    for key, _ in metadata:
        if key == "traceparent":
            break
    else:
        return ROOT
    carrier = {key: value for key, value in metadata if key in W3C.fields and isinstance(value, str)}
    return W3C.extract(carrier, ROOT)
