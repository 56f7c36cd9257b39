"""Spans that are still open: what may be said of them, and nothing else."""

import asyncio
from typing import Self

from turnkeeper.codes import Code, Family
from turnkeeper.telemetry.labels import SERVER_FAULTS
from turnkeeper.telemetry.tracing import Begun, SpanSpec, Tracing

CANCELLED = "CANCELLED"

_NOT_THE_TOOLS_FAULT = frozenset({"DENIED", "REJECTED", "EXPIRED", CANCELLED})


def error_type(error: BaseException) -> str:
    """The name of the error's code, or of its class where it has none. Never its text."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    for holder in (error, getattr(error, "detail", None)):
        code = getattr(holder, "code", None)
        if isinstance(code, Code):
            return code.name
    return type(error).__name__


class LiveSpan:
    """A context manager; open inside. An exception that leaves it is named on the span and goes on.

    The first thing said of its end counts.
    """

    def __init__(self, tracing: Tracing, wanted: SpanSpec, *, record_content: bool = False) -> None:
        self._tracing = tracing
        self._wanted = wanted
        self._attributes = wanted.attributes
        self._record_content = record_content
        self._settled = False
        self._fault = False
        self._begun: Begun | None = None

    def __enter__(self) -> Self:
        self._begun = self._tracing.begin(self._wanted)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            self.raised(error)
        if self._begun:
            self._tracing.end(self._wanted, self._begun, fault=self._fault)

    def failed(self, error: str) -> None:
        """`error` is a code's name."""
        self._settle(error, fault=error != CANCELLED)

    def raised(self, error: BaseException) -> None:
        """An exception left the span. Its text is not recorded."""
        self.failed(error_type(error))

    def _settle(self, error: str, *, fault: bool) -> None:
        if self._settled:
            return
        self._settled = True
        if error:
            self._attributes["error.type"] = error
        self._fault = fault


class RpcSpan(LiveSpan):
    def finished(self, status: str, *, error: str = "") -> None:
        """`status` is the gRPC status name, `error` the name of our code. Only a server's fault marks the span."""
        if not self._settled:
            self._attributes["rpc.response.status_code"] = status
        self._settle(error or ("" if status == "OK" else status), fault=status in SERVER_FAULTS)

    def raised(self, error: BaseException) -> None:
        name = error_type(error)
        family = getattr(error, "family", None)
        unnamed = CANCELLED if name == CANCELLED else "UNKNOWN"
        self.finished(family.name if isinstance(family, Family) else unnamed, error=name)


class ChatSpan(LiveSpan):
    def first_chunk(self, seconds: float) -> None:
        """From the request to the first chunk."""
        self._attributes["gen_ai.response.time_to_first_chunk"] = seconds

    def answered(self, model: str, *, finish_reason: str, input_tokens: int, output_tokens: int) -> None:
        """`model` is the one that answered, by its server's account."""
        self._attributes.update(
            {
                "gen_ai.response.model": model,
                "gen_ai.response.finish_reasons": (str(finish_reason).lower(),),
                "gen_ai.usage.input_tokens": input_tokens,
                "gen_ai.usage.output_tokens": output_tokens,
            }
        )

    def content(self, *, input_json: str, output_json: str) -> None:
        """Messages as JSON; dropped unless content is to be recorded."""
        if self._record_content:
            self._attributes.update({"gen_ai.input.messages": input_json, "gen_ai.output.messages": output_json})


class ToolSpan(LiveSpan):
    def finished(self, outcome: str) -> None:
        """What people decided, or a cancel, is no fault of the tool."""
        outcome = str(outcome)
        self._attributes["turnkeeper.tool.outcome"] = outcome
        fine = outcome == "OK"
        self._settle("" if fine else outcome, fault=not fine and outcome not in _NOT_THE_TOOLS_FAULT)

    def content(self, *, arguments_json: str, result_json: str) -> None:
        """Arguments and result as JSON; dropped unless content is to be recorded."""
        if self._record_content:
            self._attributes.update(
                {"gen_ai.tool.call.arguments": arguments_json, "gen_ai.tool.call.result": result_json}
            )


class AgentSpan(LiveSpan):
    def stopped(self, reason: str) -> None:
        """Why this attempt ended: the turn's state after it."""
        self._attributes["turnkeeper.turn.state"] = str(reason)
