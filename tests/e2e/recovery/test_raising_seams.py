"""Whatever is raised where a model's answer or a caller's value is read, a real process serves the next call."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format, struct_pb2
from grpc import aio

from tests import harness
from tests.e2e.support.hostile_tools import RAISED, SECRET
from tests.e2e.support.raising_server import WORD
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import chat_pb2, error_pb2, session_pb2

AGENTS = """
[[agent]]
name = "host"
tools = ["*"]
[agent.limits]
max_attempts = 1
"""
SCRIPT = f"""
[[reply]]
match = '^raise (?P<how>\\w+)$'
text = "{WORD} {{how}}"
chunk = 64

[[reply]]
match = '^panic$'
after_tools = 0
tool_calls = [{{ name = "in_thread", arguments = {{ how = "Panic" }} }}]

[[reply]]
text = "You said: {{user}}"
"""


async def test_b1_what_is_raised_in_the_seams_to_models_and_callers_ends_one_call_and_no_server(
    mongo_uri: str, database_name: str, tmp_path: Path
) -> None:
    """E4: the text of what a tool raises is in the log of a server that records content."""
    control = ToolControl(tmp_path)
    control.install("tests.e2e.support.hostile_tools")
    (tmp_path / "agents.toml").write_text(AGENTS)
    with (tmp_path / "log").open("w") as log:
        async with (
            harness.scripted(SCRIPT) as model,
            harness.server_process(
                *(mongo_uri, database_name, model),
                program=("tests.e2e.support.raising_server",),
                flags=("--agents", str(tmp_path / "agents.toml"), "--record-content"),
                variables=control.variables,
                stderr=log.fileno(),
            ) as server,
            harness.connect(server.address) as stubs,
        ):
            calls = [call(stubs, how) for call in (fail_in_model, fail_in_schema, fail_in_metadata) for how in RAISED]
            await asyncio.gather(*calls)
            session = await harness.create_test_session(stubs, agent="host")
            turn = await harness.send_message_to_session(stubs, session, "panic", wait=20)
            assert harness.answer_of(turn) == "You said: panic"
            assert server.process.returncode is None
            assert await server.terminate() == 0, "it ends when it is told to, in order"
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "tool in_thread raised Panic (" in line]
    assert SECRET in line


async def fail_in_model(stubs: harness.Stubs, how: str) -> None:
    """Sends a message whose answer cannot be read, and one whose answer can."""
    session = await harness.create_test_session(stubs, agent="host")
    turn = await harness.send_message_to_session(stubs, session, f"raise {how}", wait=0)
    failed = await harness.wait_for_turn(stubs, session, turn.turn_id)
    assert failed.error.code == error_pb2.SESSION_ERROR_CODE_LLM_API_ERROR, how
    turn = await harness.send_message_to_session(stubs, session, "and now", wait=20)
    assert harness.answer_of(turn) == "You said: and now", how


async def fail_in_schema(stubs: harness.Stubs, how: str) -> None:
    session = await harness.create_test_session(stubs, agent="host")
    schema = f'{{"type":"object","title":"{WORD} {how}"}}'
    tools = [chat_pb2.ClientTool(name="look", schema_json=schema)]
    await is_our_defect(harness.send_message_to_session(stubs, session, "look", client_tools=tools))


async def fail_in_metadata(stubs: harness.Stubs, how: str) -> None:
    metadata = json_format.ParseDict({"note": f"{WORD} {how}"}, struct_pb2.Struct())
    request = session_pb2.CreateSessionRequest(request_id=harness.new_request_id(), agent="host", metadata=metadata)
    await is_our_defect(stubs.sessions.CreateSession(request))


async def is_our_defect(call: Awaitable[object]) -> None:
    """Asserts that the call ends as INTERNAL, without the text of what was raised."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in str(caught.value.details())
