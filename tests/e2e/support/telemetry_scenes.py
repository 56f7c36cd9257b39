"""The servers, turns and failures whose telemetry tests/e2e/test_sent_telemetry.py looks at."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import until_event
from tests.e2e.support.faults import disconnected, refused_command
from tests.integration.collector import Collector
from tests.processes import until_call
from tests.test_tools import ToolControl
from turnkeeper import dev_credentials
from turnkeeper.faults import VARIABLE
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

CANARY = "canary-5c1e"
STANDSTILL = 3
"""Seconds that the slow reader reads nothing: more than --write-time, and more than its end is held for it."""
SCRIPT = f"""
[[reply]]
match = '^act (?P<label>[\\w-]+)'
tool_calls = [{{ name = "act", arguments = {{ label = "{{label}}" }} }}]

[[reply]]
match = '^fail the tool'
tool_calls = [{{ name = "misbehave", arguments = {{ how = "says so" }} }}]

[[reply]]
match = '^cling'
tool_calls = [{{ name = "misbehave", arguments = {{ how = "clings" }} }}]

[[reply]]
match = '^look'
tool_calls = [{{ name = "look", arguments = {{ at = "{CANARY}" }} }}]

[[reply]]
match = '^hold'
tool_calls = [{{ name = "hold_irreversible", arguments = {{ label = "held" }} }}]

[[reply]]
match = '^fail the model'
text = "Never sent."
fail = "server_error"

[[reply]]
match = '^large'
text = "{"x" * 120_000}"
chunk = 120000

[[reply]]
text = "Told {CANARY}: {{tool_result}}"
"""
EXACT = """
[[agent]]
name = "exact"
description = "Sets what a model call may leave to its server."
temperature = 0.5
[agent.limits]
max_output_tokens = 64
"""
LOOK = chat_pb2.ClientTool(
    name="look", schema_json='{"type":"object","properties":{"at":{"type":"string"}},"required":["at"]}'
)
SMALL_WINDOWS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 * 1024)]


@dataclass(kw_only=True)
class Place:
    """The database, model and tools of one test; starts its servers."""

    mongo_uri: str
    database: str
    model: ScriptedModel
    tool_control: ToolControl
    agents: Path

    @contextlib.asynccontextmanager
    async def server(self, *flags: str, **variables: str) -> AsyncIterator[harness.ServerProcess]:
        async with harness.server_process(
            self.mongo_uri,
            self.database,
            self.model,
            flags=("--agents", str(self.agents), "--lease", "1500ms", "--write-time", "400ms", *flags),
            variables={**self.tool_control.variables, **variables},
        ) as server:
            yield server


@dataclass(kw_only=True)
class Sent:
    """What the collector received, and the session and turn of the calls."""

    collector: Collector
    session_id: str = ""
    turn_id: str = ""

    def named(self, prefix: str) -> list[Span]:
        return [span for span in self.collector.spans if span.name.startswith(prefix)]


async def one_turn(stubs: harness.Stubs) -> None:
    session = await harness.create_test_session(stubs, agent="worker")
    turn = await harness.send_message_to_session(stubs, session, f"act {CANARY}")
    assert turn.state == chat_pb2.TURN_STATE_COMPLETED


async def converse(stubs: harness.Stubs, sent: Sent) -> None:
    """Runs a turn with a tool and an approval on a stream, a repeat, a replay, a tool of the client, an exact agent."""
    sent.session_id = session = await harness.create_test_session(stubs, agent="asker")
    request_id = harness.new_request_id()
    message = chat_pb2.StreamMessageRequest(
        session_id=session, request_id=request_id, content=harness.text_parts(f"act {CANARY}")
    )
    async for response in stubs.chat.StreamMessage(message):
        if response.HasField("turn"):
            sent.turn_id = response.turn.turn_id
    await harness.decide(stubs, await harness.wait_for_approval(stubs, session))
    await harness.wait_for_turn(stubs, session, sent.turn_id)
    async for _ in stubs.chat.StreamMessage(message):
        pass
    async for _ in stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session)):
        pass
    turn = await harness.send_message_to_session(stubs, session, "look", client_tools=[LOOK])
    await stubs.chat.SubmitToolResult(
        chat_pb2.SubmitToolResultRequest(
            session_id=session,
            tool_call_id=turn.pending[0].tool_call_id,
            result_json=json.dumps(CANARY),
        )
    )
    await harness.wait_for_turn(stubs, session, turn.turn_id)
    exact = await harness.create_test_session(stubs, agent="exact")
    await harness.send_message_to_session(stubs, exact, "hello")


async def fail(place: Place, stubs: harness.Stubs) -> None:
    """Causes a caller's mistake, failures of model and tool, a newer document, and a short outage of the database."""
    with pytest.raises(aio.AioRpcError):
        await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id="there-is-none"))
    session = await harness.create_test_session(stubs, agent="hasty")
    with pytest.raises(aio.AioRpcError) as failed:
        await harness.send_message_to_session(stubs, session, "fail the model")
    assert failed.value.code() is grpc.StatusCode.ABORTED
    tools = await harness.create_test_session(stubs, agent="worker")
    await harness.send_message_to_session(stubs, tools, "fail the tool")
    async with AsyncMongoClient[dict[str, Any]](place.mongo_uri) as client:
        newer = {"$unset": {"agent": ""}, "$set": {"schema": 7}}
        await client[place.database]["sessions"].update_one({"tenant": harness.TENANT, "id": tools}, newer)
    await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())
    async with disconnected(place.mongo_uri, "find", "aggregate"):
        with pytest.raises(aio.AioRpcError) as away:
            await stubs.sessions.ListSessions(session_pb2.ListSessionsRequest())
    assert away.value.code() is grpc.StatusCode.UNAVAILABLE


async def leave_a_tool(stubs: harness.Stubs) -> None:
    """Cancels a turn whose tool does not heed that it is cancelled."""
    session = await harness.create_test_session(stubs, agent="worker")
    turn = await harness.send_message_to_session(stubs, session, "cling", wait=0)
    await until_event(stubs, session, "tool_started")
    await stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
    turn = await harness.wait_for_turn(stubs, session, turn.turn_id)
    assert turn.state == chat_pb2.TURN_STATE_CANCELLED


async def lose_a_race(stubs: harness.Stubs, there: harness.Stubs) -> None:
    """Changes a session on another server behind what the first one keeps of it."""
    session = await harness.create_test_session(stubs, agent="talker")
    await harness.send_message_to_session(stubs, session, "hello")
    update = session_pb2.UpdateSessionRequest(
        session=session_pb2.Session(session_id=session, title="changed"), update_mask=FieldMask(paths=["title"])
    )
    await there.sessions.UpdateSession(update)
    await harness.send_message_to_session(stubs, session, "hello again")


async def lose_an_owner(place: Place, stubs: harness.Stubs, otlp: Sequence[str]) -> None:
    """Loses a race to another server, which is then killed while an irreversible tool runs."""
    async with place.server(*otlp) as doomed, harness.connect(doomed.address) as there:
        await lose_a_race(stubs, there)
        session = await harness.create_test_session(there, agent="worker")
        turn = await harness.send_message_to_session(there, session, "hold", wait=0)
        await place.tool_control.started("held")
        await doomed.kill()
    async with asyncio.timeout(20):
        while (await harness.wait_for_turn(stubs, session, turn.turn_id)).state != chat_pb2.TURN_STATE_AWAITING_OUTCOME:
            pass


async def stop_an_owner(place: Place, stubs: harness.Stubs, otlp: Sequence[str]) -> None:
    """Stops a server without a change stream in its turn's second step, until another server owns the turn."""
    async with (
        refused_command(place.mongo_uri, "aggregate", errorCode=13) as forbidden,
        place.server(*otlp, **{VARIABLE: "step.before_first_write=stop@2"}) as stopped,
        harness.connect(stopped.address) as there,
    ):
        await forbidden.entered()
        session = await harness.create_test_session(stubs, agent="talker")
        waiting = asyncio.create_task(_call(harness.send_message_to_session(there, session, "hello")))
        await until_event(stubs, session, "turn_completed")
        os.kill(stopped.pid, signal.SIGCONT)
        await waiting
        assert await stopped.terminate() == 0


async def ask_too_often(place: Place, otlp: Sequence[str]) -> None:
    """Makes more calls than its principal may."""
    limits = place.agents.with_name("limits.toml")
    limits.write_text(
        "[profiles.one]\nprincipal = { GetSession = { per_minute = 1, burst = 1 } }\n[tenants]\ndefault = 'one'\n"
    )
    async with place.server(*otlp, "--limits", str(limits)) as server, harness.connect(server.address) as stubs:
        for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED):
            with pytest.raises(aio.AioRpcError) as error:
                await stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id="there-is-none"))
            assert error.value.code() is code
        assert await server.terminate() == 0


async def ask_too_much(place: Place, otlp: Sequence[str]) -> None:
    """Makes more calls at the same time than a server with room for one takes."""
    async with (
        place.server(*otlp, "--calls-at-work", "1") as server,
        harness.connect(server.address) as stubs,
    ):
        calls = [_call(harness.create_test_session(stubs, agent="talker")) for _ in range(20)]
        await asyncio.gather(*calls)
        assert await server.terminate() == 0


async def renew_a_certificate(place: Place, otlp: Sequence[str]) -> None:
    """Renews the certificate of a server until it is served."""
    folder = place.agents.parent / "credentials"
    folder.mkdir()

    def renew() -> None:
        dev_credentials.write(folder, {}, hosts=["127.0.0.1"], lifetime=timedelta(days=30))

    def served() -> str:
        host, _, port = server.address.partition(":")
        return ssl.get_server_certificate((host, int(port)))

    renew()
    files = ("--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server-key.pem"))
    async with place.server(*otlp, *files) as server:
        old = await asyncio.to_thread(served)
        renew()

        async def is_new() -> bool:
            return await asyncio.to_thread(served) != old

        await until_call(is_new)
        assert await server.terminate() == 0


async def read_too_slowly(address: str, stubs: harness.Stubs) -> None:
    """Opens a stream whose reader accepts nothing for longer than --write-time."""
    session = await harness.create_test_session(stubs, agent="talker")
    for _ in range(6):
        await harness.send_message_to_session(stubs, session, "large")
    async with aio.insecure_channel(address, options=SMALL_WINDOWS) as channel:
        watch = harness.stubs_on(channel, address).sessions.WatchEvents(
            session_pb2.WatchEventsRequest(session_id=session, follow=True)
        )
        with pytest.raises(aio.AioRpcError) as ended:
            await _read_slowly(watch)
        assert ended.value.code() is grpc.StatusCode.ABORTED


async def lose_the_inbox(place: Place, stubs: harness.Stubs) -> None:
    """Watches approvals until the change stream is lost, and the stream begins anew."""
    watch = stubs.approvals.WatchApprovals(approval_pb2.WatchApprovalsRequest())
    async with asyncio.timeout(20), refused_command(place.mongo_uri, "getMore", errorCode=43):
        async for response in watch:
            if response.reset:
                break
    watch.cancel()


async def _read_slowly(watch: AsyncIterable[session_pb2.WatchEventsResponse]) -> None:
    async for _ in watch:
        await asyncio.sleep(STANDSTILL)


async def _call(call: Any) -> None:
    with contextlib.suppress(aio.AioRpcError):
        await call
