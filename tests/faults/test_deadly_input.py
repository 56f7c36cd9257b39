"""D.1: an input that kills its process ends its turn after five kills; pauses of an owner never do.

The processes are real: the supervisor of `--processes` starts those that ended again.
"""

import os
import secrets
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import aio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.demo.program import children
from tests.e2e.support.polling import eventually
from tests.test_tools import ToolControl
from turnkeeper.engine.rules.turns import MAX_LOST_OWNERS
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2, error_pb2

AGENTS = """
[[agent]]
name = "worker"
tools = ["*"]
[agent.limits]
tool_timeout = "60s"
[[agent.policy]]
tool = "*"
action = "auto"
"""
SCRIPT = r"""
[[reply]]
match = '^die (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "die", arguments = { label = "{label}" } }]

[[reply]]
match = '^hold (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
PAUSES = MAX_LOST_OWNERS + 1


@dataclass(frozen=True, slots=True)
class Deadly:
    """Two processes on one port, with the tools that kill them."""

    server: harness.ServerProcess
    stubs: harness.Stubs
    model: ScriptedModel
    tools: ToolControl

    async def ended(self, turn: chat_pb2.Turn) -> chat_pb2.Turn:
        """Returns the turn once it has ended, whatever processes die meanwhile."""
        request = chat_pb2.GetTurnRequest(session_id=turn.session_id, turn_id=turn.turn_id)

        async def look() -> chat_pb2.Turn | None:
            try:
                now = await self.stubs.chat.GetTurn(request, timeout=3)
            except aio.AioRpcError:
                return None
            return now.turn if now.turn.HasField("end_time") else None

        return await eventually(look, seconds=90)

    def requests(self, words: str) -> int:
        """Returns how many requests the model got with these words."""
        return sum(words.encode() in exchange.body for exchange in self.model.exchanges.all())


@pytest_asyncio.fixture
async def deadly(mongo_uri: str, tmp_path: Path) -> AsyncIterator[Deadly]:
    """Starts them. At the end the documents equal the fold of the logs."""
    database = f"turnkeeper_test_{secrets.token_hex(6)}"
    agents = tmp_path / "agents.toml"
    agents.write_text(AGENTS)
    tools = ToolControl(tmp_path)
    tools.install("tests.faults.deadly_tools")
    flags = ("--processes", "2", "--agents", str(agents), "--lease", "1500ms")
    async with (
        harness.scripted(SCRIPT) as model,
        harness.server_process(mongo_uri, database, model, flags=flags, variables=tools.variables) as server,
        harness.connect(server.address) as stubs,
    ):
        yield Deadly(server, stubs, model, tools)
    await check(mongo_uri, database)
    async with AsyncMongoClient[dict[str, object]](mongo_uri) as client:
        await client.drop_database(database)


@pytest.mark.timeout(150)
async def test_d1_five_kills_by_one_input_end_its_turn_and_the_session_goes_on(deadly: Deadly) -> None:
    session = await harness.create_test_session(deadly.stubs, agent="worker")
    turn = await harness.send_message_to_session(deadly.stubs, session, "die once-more", wait=0)
    failed = await deadly.ended(turn)
    assert failed.state == chat_pb2.TURN_STATE_FAILED
    assert failed.error.code == error_pb2.SESSION_ERROR_CODE_AGENT_CONFIG_ERROR
    assert "5 attempts in a row to run this turn were lost with their server" in failed.error.message
    starts = deadly.tools.effects("once-more")
    assert len({start.pid for start in starts}) == len(starts) == MAX_LOST_OWNERS, "each killed a process of its own"
    assert len({start.key for start in starts}) == 1, "an idempotent call starts again with its key"
    assert deadly.requests("die once-more") == 1, "the model was called once"

    async def answered() -> chat_pb2.Turn | None:
        try:
            return await harness.send_message_to_session(deadly.stubs, session, "hello", request_id="after", wait=10)
        except aio.AioRpcError:
            return None

    assert harness.answer_of(await eventually(answered, seconds=40)) == "You said: hello"
    assert len(deadly.tools.effects("once-more")) == MAX_LOST_OWNERS
    assert len(deadly.model.exchanges.all()) == 2


@pytest.mark.timeout(150)
async def test_d1_more_pauses_of_owners_than_kills_that_count_cost_a_turn_nothing(deadly: Deadly) -> None:
    """Each owner in turn is stopped until another one has the turn, and goes on then."""
    session = await harness.create_test_session(deadly.stubs, agent="worker")
    turn = await harness.send_message_to_session(deadly.stubs, session, "hold on", wait=0)
    for number in range(1, PAUSES + 1):
        owner = (await deadly.tools.started("on", times=number))[-1].pid
        os.kill(owner, signal.SIGSTOP)
        try:
            assert (await deadly.tools.started("on", times=number + 1))[-1].pid != owner
        finally:
            os.kill(owner, signal.SIGCONT)
    deadly.tools.release("on")
    ended = await deadly.ended(turn)
    assert (ended.state, harness.answer_of(ended)) == (chat_pb2.TURN_STATE_COMPLETED, "You said: hold on")
    assert ended.attempt == 1 + PAUSES
    assert len(deadly.model.exchanges.all()) == 2, "once for the call, once with its result"
    assert len(children(deadly.server.pid)) >= 2, "no process ended"
