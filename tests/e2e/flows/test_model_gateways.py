"""Gateways behind the whole service: what they refuse is left out, and what they report is in the log of the turn."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests import harness
from tests.contracts.gateway import Call, Gateway, answering, gateway, refusing
from turnkeeper.pb.v1 import chat_pb2, error_pb2

COMPLETED, FAILED = chat_pb2.TURN_STATE_COMPLETED, chat_pb2.TURN_STATE_FAILED
AGENT = """
[[agent]]
name = "clerk"
model = "gpt-4o"
temperature = 0.5
base_url = "{base_url}?api-version=2024-10-21"
extra_headers = {{ api-key = "${{AZURE_OPENAI_KEY}}", authorization = "" }}
[agent.extra_body]
parallel_tool_calls = false
"""


@asynccontextmanager
async def talking(
    mongo_uri: str, database: str, server: Gateway, folder: Path
) -> AsyncIterator[tuple[harness.Stubs, str]]:
    """Serves an agent at this gateway; yields its session."""
    agents = folder / "agents.toml"
    agents.write_text(AGENT.format(base_url=server.base_url))
    key = {"AZURE_OPENAI_KEY": "azure-key-1"}
    async with (
        harness.serving(mongo_uri, database, "http://127.0.0.1:9/v1", agents=agents, more=key) as running,
        harness.connect(running.address) as stubs,
    ):
        yield stubs, await harness.create_test_session(stubs, agent="clerk")


async def play(stubs: harness.Stubs, session: str) -> chat_pb2.Turn:
    """Sends a message, and returns its turn once it has ended."""
    turn = await harness.send_message_to_session(stubs, session, "hello", wait=0)
    return await harness.wait_for_turn(stubs, session, turn.turn_id)


async def test_a_turn_gets_past_what_its_server_refuses(mongo_uri: str, database_name: str, tmp_path: Path) -> None:
    def reply(call: Call) -> str:
        for field in ("stream_options", "temperature"):
            if field in call.body:
                return refusing(f'{{"error":{{"message":"Unknown parameter: \'{field}\'.","param":"{field}"}}}}')
        return answering("Good evening.")

    async with (
        gateway(reply) as server,
        talking(mongo_uri, database_name, server, tmp_path) as (stubs, session),
    ):
        first, second = await play(stubs, session), await play(stubs, session)
    assert [first.state, second.state] == [COMPLETED, COMPLETED]
    assert harness.answer_of(second) == "Good evening."
    assert len(server.calls) == 4, "two repeats, once"
    for call in server.calls:
        assert call.target == "/v1/chat/completions?api-version=2024-10-21"
        assert call.headers["api-key"] == "azure-key-1"
        assert "authorization" not in call.headers
        assert call.body["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        ("400 No", '{"error":{"message":"Deployment xyz is paused: azure-key-1."}}', "AGENT_CONFIG_ERROR"),
        ("400 No", '{"message":"Input is too long for requested model xyz."}', "LLM_TOKEN_LIMIT"),
        ("400 No", '{"error":{"message":"xyz does not support response_format or tools"}}', "AGENT_CONFIG_ERROR"),
    ],
)
async def test_a_turns_error_names_the_servers_sentence_in_the_log(
    mongo_uri: str,
    database_name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    status: str,
    body: str,
    code: str,
) -> None:
    async with (
        gateway(lambda _: refusing(body, status=status)) as server,
        talking(mongo_uri, database_name, server, tmp_path) as (stubs, session),
    ):
        turn = await play(stubs, session)
        events = await harness.all_events(stubs, session)
    assert turn.state == FAILED
    assert len(server.calls) == 1
    assert error_pb2.SessionErrorCode.Name(turn.error.code).removeprefix("SESSION_ERROR_CODE_") == code
    log_id = turn.error.metadata["log_id"]
    assert log_id in turn.error.message
    (line,) = [record.getMessage() for record in caplog.records if f"log id {log_id}" in record.getMessage()]
    assert "xyz" in line
    texts = [str(turn), *map(str, events)]
    assert not [text for text in texts if "xyz" in text], "no event and no turn has the server's text"
    assert "azure-key-1" not in caplog.text
