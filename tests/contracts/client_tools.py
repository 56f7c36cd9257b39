"""Tools that a client runs, as a source for the suite: a real server requests each call, and the test is the client."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from tests import harness
from tests.contracts import suite_tools
from tests.contracts.tool_sources import AGENT_OF_SUITE, TIME, SuiteTools
from tests.processes import until
from turnkeeper.domain.message import ToolRequest
from turnkeeper.domain.tool import ClientTool, ToolOutcome, ToolSpec
from turnkeeper.model.playback import ChatRequest
from turnkeeper.model.script import Reply, ScriptedCall
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2
from turnkeeper.tools.contract import ToolContext, ToolError
from turnkeeper.tools.failure import ToolFailed
from turnkeeper.tools.python import PythonTools
from turnkeeper.tools.results import UnfitResult
from turnkeeper.tools.toolbox import Toolbox

AGENTS = '[[agent]]\nname = "clerk"\n'
LONG = timedelta(minutes=5)
"""Turns that would begin later than this are refused: on a busy machine, too, none of the suite's are."""
CONTEXT = ToolContext(key="key", tenant="t", session_id="s", turn_id="t", tool_call_id="c")


class _Chooser:
    """Calls the tool that the message names, with the arguments in its second line."""

    def choose(self, chat: ChatRequest) -> tuple[int, Reply]:
        if chat.tool_results:
            return 1, Reply(text="So be it.")
        name, _, arguments = chat.user.partition("\n")
        return 0, Reply(tool_calls=(ScriptedCall(name=name, arguments=arguments),))


@dataclass(kw_only=True)
class ClientTools(SuiteTools):
    """The suite's tools, run by a client."""

    stubs: harness.Stubs
    functions: PythonTools
    calls: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """The client's own work, by session."""
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(10))
    """Turns at the same time: a busy server refuses more."""

    @property
    def declared(self) -> list[ClientTool]:
        """Returns the tools as the client declares them with each message."""
        return [
            ClientTool(name=spec.name, description=spec.description, schema_json=spec.schema_json)
            for spec in self.functions.specs()
        ]

    def spec(self, tool: str) -> ToolSpec:
        (spec,) = (one.spec for one in self.declared if one.name == tool)
        return spec

    def problem(self, tool: str, arguments_json: str) -> str | None:
        request = ToolRequest(tool_call_id="call", tool=tool, arguments_json=arguments_json)
        (checked,) = self.toolbox.checked([request], AGENT_OF_SUITE, clients=self.declared)
        return None if checked.spec is None else checked.problem

    async def call(self, tool: str, *, timeout: timedelta = TIME, **arguments: Any) -> tuple[ToolOutcome, Any]:
        """Sends a message that leads to the call. A call of a client has no time: its user ends the turn."""
        async with self.room:
            return await self._call(tool, timeout, arguments)

    async def _call(self, tool: str, timeout: timedelta, arguments: dict[str, Any]) -> tuple[ToolOutcome, Any]:
        session = await harness.create_test_session(self.stubs, agent="clerk")
        declared = [
            chat_pb2.ClientTool(name=one.name, description=one.description, schema_json=one.schema_json)
            for one in self.declared
        ]
        text = f"{tool}\n{json.dumps(arguments)}"
        turn = await harness.send_message_to_session(self.stubs, session, text, wait=0, client_tools=declared)
        following = asyncio.create_task(self._follow(session))
        done, _ = await asyncio.wait([following], timeout=timeout.total_seconds())
        if not done:
            if file := arguments.get("file"):
                await until(Path(file).with_suffix(".begun").exists)
            await self._cancel(session, turn.turn_id)
        returned = await following
        name = event_pb2.ToolOutcome.Name(returned.outcome).removeprefix("TOOL_OUTCOME_")
        return ToolOutcome(name), json.loads(returned.result_json)

    async def cancel(self) -> None:
        """Cancels the turns that wait for the client."""
        for session in list(self.calls):
            (turn,) = (await self.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session))).turns
            await self._cancel(session, turn.turn_id)

    async def _cancel(self, session: str, turn_id: str) -> None:
        await self.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))

    async def _follow(self, session: str) -> event_pb2.ToolReturned:
        """Runs what the server requests; a call that the server closes is stopped. Returns how the call ended."""
        watch = self.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
        try:
            async for response in watch:
                for event in response.events:
                    if event.HasField("client_tool_requested"):
                        request = event.client_tool_requested
                        self.calls[session] = asyncio.create_task(self._run(session, request))
                    if event.HasField("tool_returned"):
                        await self._stop(session)
                        return event.tool_returned
        finally:
            watch.cancel()
        raise AssertionError("the stream ended before the call")

    async def _stop(self, session: str) -> None:
        if (task := self.calls.pop(session, None)) is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def _run(self, session: str, request: event_pb2.ClientToolRequested) -> None:
        try:
            result = await self.functions.call(request.tool, json.loads(request.arguments_json), CONTEXT)
        except (ToolError, ToolFailed, UnfitResult) as failed:
            message = failed.failure.message if isinstance(failed, ToolFailed) else str(failed)
            await self._submit(session, request, json.dumps({"error": message or "It broke."}), failed=True)
            return
        try:
            await self._submit(session, request, result, failed=False)
        except grpc.RpcError as refused:
            await self._submit(session, request, json.dumps({"error": str(refused.details())}), failed=True)

    async def _submit(
        self, session: str, request: event_pb2.ClientToolRequested, result_json: str, *, failed: bool
    ) -> None:
        await self.stubs.chat.SubmitToolResult(
            chat_pb2.SubmitToolResultRequest(
                session_id=session, tool_call_id=request.tool_call_id, result_json=result_json, failed=failed
            )
        )


@contextlib.asynccontextmanager
async def client_tools(mongo_uri: str, folder: Path) -> AsyncIterator[SuiteTools]:
    """Tools of a client of a server in this process."""
    functions = PythonTools(suite_tools.TOOLS)

    async def change() -> None:
        functions.replace(suite_tools.CHANGED)

    (folder / "agents.toml").write_text(AGENTS)
    name = f"turnkeeper_test_{secrets.token_hex(6)}"
    async with (
        harness.scripted(_Chooser()) as model,
        harness.serving(mongo_uri, name, model, agents=folder / "agents.toml", accept_wait=LONG) as running,
        harness.connect(running.address) as stubs,
    ):
        yield ClientTools(
            toolbox=Toolbox([]),
            change=change,
            stubs=stubs,
            functions=functions,
            late=frozenset({ToolOutcome.CANCELLED}),
        )
