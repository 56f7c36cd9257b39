"""The model and the tools of the simulation: each call of them waits until the test lets it go on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta

from tests.unit.engine.simulation.observed import Observed
from turnkeeper.codes import Code, ErrorDetail
from turnkeeper.domain.agent import Agent, AgentLimits
from turnkeeper.domain.message import FinishReason, Message, ToolRequest, Usage
from turnkeeper.domain.policy import PolicyRule
from turnkeeper.domain.tool import PolicyAction, ToolClass, ToolSpec
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.execution.model_call import ModelCaller
from turnkeeper.engine.streaming.preview import Preview
from turnkeeper.model.contract import ModelAnswer, ModelFailure, ModelRequest
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.contract import ToolContext, ToolError
from turnkeeper.tools.toolbox import Toolbox

FIRST_SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"}}}'
CHANGED_SCHEMA = '{"type":"object","properties":{"n":{"type":"integer"},"to":{"type":"string"}}}'
CLASSES = {
    "look": ToolClass.READ_ONLY,
    "note": ToolClass.IDEMPOTENT,
    "fire": ToolClass.IRREVERSIBLE,
    "pay": ToolClass.IRREVERSIBLE,
    "write": ToolClass.IDEMPOTENT,
    "never": ToolClass.IRREVERSIBLE,
}
TOOLS = (*CLASSES, "missing")
AGENT = Agent(
    name="assistant",
    model="small",
    instructions="Be brief.",
    tools=("*",),
    policy=(
        PolicyRule(tool="note", action=PolicyAction.NOTIFY),
        PolicyRule(tool="fire", action=PolicyAction.AUTO),
        PolicyRule(tool="transfer", action=PolicyAction.AUTO),
        PolicyRule(tool="never", action=PolicyAction.DENY),
        PolicyRule(tool="*", action=PolicyAction.APPROVE, ttl=timedelta(minutes=5)),
    ),
    limits=AgentLimits(max_iterations=3, max_attempts=3, parallel_tools=2, tool_timeout=timedelta(seconds=20)),
)
TIMEOUT = ErrorDetail(code=Code.LLM_TIMEOUT, message="The model did not answer.")


class Defect(Exception):
    """A defect of the service, at a time that the test chooses."""


@dataclass(slots=True, eq=False)
class ModelCall:
    """A call of the model that is not answered yet."""

    owner: str
    turn: Turn
    observed: Observed
    text: str = ""
    _items: "asyncio.Queue[str | ModelAnswer | Exception]" = field(default_factory=asyncio.Queue)

    def respond(self, response: str, tools: Sequence[str], *, text: str, good: bool) -> None:
        """Fails, requests tools, or answers; or sends a part of the text. `good`: the tools take the arguments."""
        match response:
            case "begins":
                self.send(text)
            case "fails":
                self.fail(ModelFailure(TIMEOUT, retryable=True))
            case "fails for long":
                self.fail(ModelFailure(TIMEOUT, retryable=True, retry_after=timedelta(seconds=60)))
            case "fails for good":
                self.fail(ModelFailure(TIMEOUT, retryable=False))
            case "asks":
                self.send(text)
                arguments = '{"n": 1}' if good else '{"n": "one"}'
                requests = [ToolRequest(tool_call_id="", tool=tool, arguments_json=arguments) for tool in tools]
                self.answer(requests, FinishReason.TOOL_CALLS)
            case _:
                self.send(text)
                self.answer([], FinishReason.LENGTH if response == "is cut" else FinishReason.STOP)

    def send(self, text: str) -> None:
        """Sends the next part of the answer's text."""
        self.text += text
        self.observed.texts.setdefault(self.turn.next_message_id, set()).add(self.text)
        self.observed.sent[self.turn.id, self.turn.attempt, self.turn.next_message_id] = self.text
        self._items.put_nowait(text)

    def answer(self, requests: Sequence[ToolRequest], finish_reason: FinishReason) -> None:
        """Ends the answer."""
        self._items.put_nowait(
            ModelAnswer(
                text=self.text,
                tool_requests=tuple(requests),
                finish_reason=finish_reason,
                usage=Usage(input_tokens=3, output_tokens=2, model_calls=1),
                model=AGENT.model,
            )
        )

    def fail(self, error: Exception) -> None:
        """Ends the call with an error."""
        self._items.put_nowait(error)

    async def stream(self) -> AsyncIterator[str | ModelAnswer]:
        """Yields what the test sends."""
        while True:
            item = await self._items.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, ModelAnswer):
                return


_CURRENT: ContextVar[ModelCall] = ContextVar("the call of the current task")


class SimulatedModel:
    """A model whose answers the test makes up."""

    server = ("model", 0)

    def stream(self, request: ModelRequest) -> AsyncIterator[str | ModelAnswer]:
        """Returns the stream of the call that the current task makes."""
        return _CURRENT.get().stream()

    async def close(self) -> None:
        """Has nothing to close."""


class ObservedCaller(ModelCaller):
    """One replica's calls of the model. Those that are not answered yet are in `calls`."""

    def __init__(self, owner: str, observed: Observed, *, toolbox: Toolbox, spans: Spans, metrics: Metrics) -> None:
        model = SimulatedModel()
        super().__init__(lambda _: model, toolbox=toolbox, spans=spans, metrics=metrics)
        self._owner = owner
        self._observed = observed
        self.calls: list[ModelCall] = []

    async def call(self, agent: Agent, turn: Turn, messages: tuple[Message, ...], preview: Preview) -> ModelAnswer:
        """Checks the call, then waits for the test's answer."""
        self._observed.model_is_called(self._owner, agent, turn, messages, after=preview.started_after)
        call = ModelCall(self._owner, turn, self._observed)
        _CURRENT.set(call)
        self.calls.append(call)
        try:
            return await super().call(agent, turn, messages, preview)
        finally:
            self.calls.remove(call)


@dataclass(slots=True, eq=False)
class ToolRun:
    """A tool that runs."""

    turn_id: str
    done: "asyncio.Future[bool]"

    def finish(self, *, ok: bool) -> None:
        """Ends the tool, with a result or a failure."""
        if not self.done.done():
            self.done.set_result(ok)


class SimulatedTools:
    """One replica's tools: a source whose tools run until the test ends them. Those that run are in `runs`."""

    listing = 1

    def __init__(self, schema: str, observed: Observed) -> None:
        self._specs = {
            name: ToolSpec(name=name, description="", schema_json=schema, tool_class=tool_class, source="python")
            for name, tool_class in CLASSES.items()
        }
        self._observed = observed
        self.runs: list[ToolRun] = []

    def specs(self) -> list[ToolSpec]:
        """Returns all tools."""
        return list(self._specs.values())

    async def call(self, name: str, arguments: dict[str, object], context: ToolContext) -> str:
        """Checks the start, then waits for the test."""
        self._observed.tool_is_started(self._specs[name], AGENT, context, arguments)
        run = ToolRun(context.turn_id, asyncio.get_running_loop().create_future())
        self.runs.append(run)
        try:
            if not await run.done:
                raise ToolError("It failed.")
        finally:
            self.runs.remove(run)
        return '"done"'
