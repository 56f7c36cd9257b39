"""Tools that the caller runs: which it may bring, and the result it hands in."""

from collections.abc import Awaitable, Callable, Sequence

from turnkeeper.domain.agent import Agent
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call, CallState, ClientTool, ToolResult
from turnkeeper.domain.turn import Turn
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import tool_calls as tool_call_rules
from turnkeeper.errors import InternalError, InvalidRequest, ToolCallNotPending
from turnkeeper.store.contract import SessionStore
from turnkeeper.tools.toolbox import Toolbox


class ClientTools:
    """What a caller does with tools of its own."""

    def __init__(
        self,
        store: SessionStore,
        log_writer: LogWriter,
        *,
        toolbox: Toolbox,
        agent_of: Callable[[Session], Awaitable[Agent | None]],
        woken: Callable[[SessionKey], None],
    ) -> None:
        """`agent_of` gives the version that a session pinned; `woken` is told the session whose turn may go on."""
        self._store = store
        self._log_writer = log_writer
        self._toolbox = toolbox
        self._agent_of = agent_of
        self._woken = woken

    async def check(self, key: SessionKey, tools: Sequence[ClientTool]) -> None:
        """Raises InvalidRequest when one of them has the name of a tool that the session's agent has."""
        found = await self._store.session(key) if tools else None
        agent = await self._agent_of(found[0]) if found is not None else None
        if agent is None:
            return
        problems = {
            f"client_tools[{number}].name": "is the name of one of the agent's own tools"
            for number, tool in enumerate(tools)
            if self._toolbox.find(agent, tool.name) is not None
        }
        if problems:
            told = "; ".join(f"{path} {problem}" for path, problem in problems.items())
            raise InvalidRequest(f"The request is not valid: {told}.", fields=problems)

    async def submit(self, key: SessionKey, tool_call_id: str, result: ToolResult, *, by: str) -> tuple[Turn, int]:
        """The turn as it is now, and the number of `tool_returned`. The same result by the same caller is a repeat.

        Raises ToolCallNotPending for a call that nobody asked the client for, that was answered otherwise, or that
        was closed with its turn.
        """
        call = await self._pending(key, tool_call_id, result, by=by)
        if call.state is CallState.REQUESTED:
            stored = await self._log_writer.append(
                key,
                lambda uow: tool_call_rules.submit_result(uow, tool_call_id, result, by=by),
                turn_id=call.turn_id,
            )
            if not isinstance(stored, Stored):
                raise InternalError
            self._woken(key)
            call = await self._pending(key, tool_call_id, result, by=by)
        turn = await self._store.turn(key, call.turn_id)
        if turn is None:
            raise InternalError
        return turn, call.sequence

    async def _pending(self, key: SessionKey, tool_call_id: str, result: ToolResult, *, by: str) -> Call:
        """The call, which waits for a result or has had this very one."""
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
