"""The verbs on client tools: check those that a message declares, and submit the result of a call."""

from collections.abc import Callable, Sequence
from datetime import datetime

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.event import Event
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CLIENT, Call, CallState, ClientTool, ToolResult
from turnkeeper.domain.tool_events import ClientToolRequested
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.agent_versions import AgentVersions
from turnkeeper.engine.eventlog.writer import LogWriter, Stored, behind
from turnkeeper.engine.rules import tool_calls as tool_call_rules
from turnkeeper.errors import InternalError, InvalidRequest, ToolCallNotPending, TurnNotFound
from turnkeeper.store.changeset import StoredEvent
from turnkeeper.store.contract import EventLog, SessionStore
from turnkeeper.telemetry.metrics import Metrics
from turnkeeper.telemetry.spans import Spans
from turnkeeper.tools.toolbox import Toolbox

MOST_REQUESTS = 1000
"""Requests of one turn to its client that are read to find the time of one of them."""
_REQUESTED = frozenset({"client_tool_requested"})


class ClientTools:
    """The verbs on client tools."""

    def __init__(
        self,
        store: SessionStore,
        log_writer: LogWriter,
        *,
        toolbox: Toolbox,
        measures: "CallMeasures",
        agents: AgentVersions,
    ) -> None:
        self._store = store
        self._log_writer = log_writer
        self._toolbox = toolbox
        self._measures = measures
        self._agents = agents

    async def check(self, key: SessionKey, tools: Sequence[ClientTool], *, owner: str) -> None:
        """Raises InvalidRequest if a client tool has the name of one of the tools of the session's agent.

        Looks at no session of another owner.
        """
        stored = await self._store.session(key) if tools else None
        is_owned = stored is not None and stored[0].owner == owner
        agent = await self._agents.pinned_by(stored[0]) if stored is not None and is_owned else None
        problems = self.name_problems(agent, tools) if agent is not None else {}
        if problems:
            listed = "; ".join(f"{path} {problem}" for path, problem in problems.items())
            raise InvalidRequest(f"The request is not valid: {listed}.", fields=problems)

    def name_problems(self, agent: Agent, tools: Sequence[ClientTool]) -> dict[str, str]:
        """Returns the problem of each client tool that has the name of one of the agent's tools, by its path."""
        return {
            f"client_tools[{number}].name": "is the name of one of the agent's own tools"
            for number, tool in enumerate(tools)
            if self._toolbox.find(agent, tool.name) is not None
        }

    async def submit(
        self, key: SessionKey, tool_call_id: str, result: ToolResult, *, by: str, through: str = ""
    ) -> tuple[Turn, int]:
        """Submits a call's result. The repeat of the same result by the same principal is answered as the first.

        `through` is the delegate that submits it on the principal's behalf. Returns the turn as it is now, and the
        number of the call's `tool_returned` event. Raises ToolCallNotPending if the client was not requested to run the
        call, if it has another result, or if it was closed with its turn.
        """
        call = await self._pending(key, tool_call_id, result, by=by)
        if call.state is CallState.REQUESTED:
            requested = await self._measures.requested_at(call)
            stored = await self._log_writer.append(
                key,
                lambda uow: tool_call_rules.submit_result(uow, tool_call_id, result, by=by, through=through),
                turn_id=call.turn_id,
            )
            if not isinstance(stored, Stored):
                raise InternalError
            if stored.value and requested is not None:
                self._measures.submitted(call, result, requested=requested, at=stored.uow.at)
            self._log_writer.notify_owner(key)
            call = await self._pending(key, tool_call_id, result, by=by)
            if call.state is CallState.REQUESTED:
                raise behind(key)
        turn = await self._store.turn(key, call.turn_id)
        if turn is None:
            raise TurnNotFound(session_id=key.session_id, turn_id=call.turn_id)
        return turn, call.sequence

    async def _pending(self, key: SessionKey, tool_call_id: str, result: ToolResult, *, by: str) -> Call:
        """Returns the call. Raises ToolCallNotPending unless it waits for a result, or has this same one already."""
        call = await self._store.call(key, tool_call_id)
        if call is None:
            raise ToolCallNotPending(
                "There is no such call; client_tool_requested names those that wait for a result.",
                session_id=key.session_id,
                metadata={"tool_call_id": tool_call_id},
            )
        if call.state is CallState.REQUESTED or (call.result_hash, call.submitted_by) == (result.hash, by):
            return call
        raise ToolCallNotPending(
            session_id=key.session_id,
            turn_id=call.turn_id,
            metadata={"tool_call_id": tool_call_id, "outcome": call.outcome.value if call.outcome else ""},
        )


class CallMeasures:
    """The metrics and spans of calls that the client runs. They are measured from the request to the result."""

    def __init__(
        self, store: EventLog, *, spans: Spans, metrics: Metrics, decode: Callable[[StoredEvent], Event]
    ) -> None:
        self._store = store
        self._spans = spans
        self._metrics = metrics
        self._decode = decode

    async def requested_at(self, call: Call) -> datetime | None:
        """Returns when the client was requested to run the call; None if that event is trimmed, or without metrics."""
        if not self._metrics.counting:
            return None
        events = await self._store.events(
            call.session_key, after=0, limit=MOST_REQUESTS, kinds=_REQUESTED, turn_id=call.turn_id
        )
        for stored in reversed(events):
            event = self._decode(stored)
            if isinstance(event.payload, ClientToolRequested) and event.payload.tool_call_id == call.id:
                return event.create_time
        return None

    def submitted(self, call: Call, result: ToolResult, *, requested: datetime, at: datetime) -> None:
        """Records the end of a call. The tool's name is on the span alone: a client may choose any name."""
        tool_class, outcome = call.tool_class.value, result.outcome.value
        with self._spans.execute_tool(
            call.tool,
            call_id=call.id,
            source=CLIENT,
            tool_class=tool_class,
            session_id=call.session_id,
            start_time=int(requested.timestamp() * 1_000_000_000),
        ) as span:
            span.content(arguments_json=call.arguments_json, result_json=result.result_json)
            span.finished(outcome)
            seconds = max(0.0, (at - requested).total_seconds())
            self._metrics.tool_finished(CLIENT, tool_class=tool_class, outcome=outcome, seconds=seconds)
