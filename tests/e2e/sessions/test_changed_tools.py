"""No session is lost to its tools: whatever became of them and of its agent, the next message works."""

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import check_pairs, until_event
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2, event_pb2

SCRIPT = r"""
[[reply]]
match = '^act'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "asked" } }]

[[reply]]
match = '^hold'
after_tools = 0
tool_calls = [{ name = "hold_irreversible", arguments = { label = "held" } }]

[[reply]]
match = '^look'
after_tools = 0
tool_calls = [{ name = "look", arguments = {} }]

[[reply]]
match = '^add'
after_tools = 0
tool_calls = [{ name = "add", arguments = { a = 1, b = 2 } }]

[[reply]]
match = '^time'
after_tools = 0
tool_calls = [{ name = "time__get_current_time", arguments = { timezone = "UTC" } }]

[[reply]]
text = "As you say."
"""
CLERK: Final = """
[[agent]]
name = "clerk"
tools = ["act", "hold_*", "add"]
limits = { tool_timeout = "200ms" }
policy = [{ tool = "act", action = "approve", ttl = "3s" }, { tool = "*", action = "auto" }]
"""
LEFT: Final[Mapping[str, str]] = {
    "act": "approval_requested",
    "hold": "approval_requested",
    "look": "client_tool_requested",
    "add": "turn_completed",
}
"""How a session is left: waiting for a decision, for a decision on an unknown outcome, for its client, or at rest."""
NO_TOOLS = "tests.status_details"
CHANGES: Final[Mapping[str, dict[str, str]]] = {
    "tools gone": {"tools": NO_TOOLS, "agents": '[[agent]]\nname = "clerk"\n'},
    "agent gone": {"agents": '[[agent]]\nname = "another"\n'},
    "agent changed": {"agents": '[[agent]]\nname = "clerk"\ninstructions = "Be brief."\n'},
    "tools forbidden": {
        "catalogue": '[[tool]]\ntool = "*"\nclass = "forbidden"\n',
        "agents": '[[agent]]\nname = "another"\n',
    },
    "tools kept from it": {
        "catalogue": '[[tool]]\ntool = "*"\nagents = ["another"]\n',
        "agents": "[[agent]]\nname = 'x'",
    },
}


SERVER: Final = """
[[server]]
name = "time"
mcp = "stdio"
command = [{command}]

[[tool]]
tool = "time__*"
class = "read_only"
"""
TIME: Final = SERVER.format(command=f'"{Path(sys.executable).with_name("mcp-server-time")}", "--local-timezone", "UTC"')
ASKS_TIME: Final = """
[[agent]]
name = "clerk"
tools = ["time__*"]
policy = [{ tool = "*", action = "approve" }]
"""


@dataclass(slots=True)
class House:
    """One database on which servers with different files follow each other."""

    mongo_uri: str
    database: str
    model: ScriptedModel
    tool_control: ToolControl
    folder: Path

    @contextlib.asynccontextmanager
    async def open(
        self, *, tools: str = "tests.test_tools", agents: str = CLERK, catalogue: str = ""
    ) -> AsyncIterator[harness.Stubs]:
        """Starts a server with these tools and files; the one before has ended."""
        self.tool_control.install(tools)
        files: dict[str, Any] = {}
        for name, content in (("agents", agents), ("catalogue", catalogue)):
            if content:
                files[name] = self.folder / f"{name}.toml"
                files[name].write_text(content)
        async with (
            harness.serving(
                self.mongo_uri, self.database, self.model, drain_grace=timedelta(milliseconds=200), **files
            ) as running,
            harness.connect(running.address) as stubs,
        ):
            yield stubs


@pytest_asyncio.fixture
async def house(mongo_uri: str, database_name: str, tool_control: ToolControl, tmp_path: Path) -> AsyncIterator[House]:
    async with harness.scripted(SCRIPT) as model:
        yield House(mongo_uri, database_name, model, tool_control, tmp_path)
        for exchange in model.exchanges.all():
            check_pairs(json.loads(exchange.body)["messages"])


async def completes(stubs: harness.Stubs, session: str, *, if_busy: chat_pb2.IfBusy.ValueType) -> None:
    turn = await harness.send_message_to_session(stubs, session, "thanks", if_busy=if_busy)
    ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
    assert (ended.state, harness.answer_of(ended)) == (chat_pb2.TURN_STATE_COMPLETED, "As you say.")


@pytest.mark.parametrize("change", list(CHANGES))
async def test_the_next_message_works_however_the_session_was_left(house: House, change: str) -> None:
    sessions: dict[str, str] = {}
    async with house.open() as stubs:
        for words, kind in LEFT.items():
            sessions[words] = session = await harness.create_test_session(stubs, agent="clerk")
            look = [chat_pb2.ClientTool(name="look", schema_json='{"type":"object"}')] if words == "look" else []
            await harness.send_message_to_session(stubs, session, words, wait=0, client_tools=look)
            await until_event(stubs, session, kind)
    async with house.open(**CHANGES[change]) as stubs:
        for session in sessions.values():
            await completes(stubs, session, if_busy=chat_pb2.IF_BUSY_INTERRUPT)


@pytest.mark.parametrize("change", list(CHANGES))
async def test_a_message_behind_an_abandoned_approval_works_once_that_has_expired(house: House, change: str) -> None:
    async with house.open() as stubs:
        session = await harness.create_test_session(stubs, agent="clerk")
        await harness.send_message_to_session(stubs, session, "act", wait=0)
        await harness.wait_for_approval(stubs, session)
    async with house.open(**CHANGES[change]) as stubs:
        await completes(stubs, session, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
    assert not house.tool_control.effects("asked")


@pytest.mark.parametrize("change", ["tools gone", "tools forbidden", "tools kept from it"])
async def test_an_approval_of_a_call_whose_tool_is_gone_starts_nothing(house: House, change: str) -> None:
    async with house.open() as stubs:
        session = await harness.create_test_session(stubs, agent="clerk")
        turn = await harness.send_message_to_session(stubs, session, "act", wait=0)
        approval = await harness.wait_for_approval(stubs, session)
    async with house.open(**CHANGES[change]) as stubs:
        await harness.decide(stubs, approval)
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        await completes(stubs, session, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
    assert not house.tool_control.effects("asked")


@pytest.mark.parametrize(
    ("catalogue", "outcome"),
    [
        pytest.param(TIME, event_pb2.TOOL_OUTCOME_OK, id="still there"),
        pytest.param(SERVER.format(command='"false"'), event_pb2.TOOL_OUTCOME_FAILED, id="down"),
        pytest.param("", event_pb2.TOOL_OUTCOME_NOT_FOUND, id="gone"),
    ],
)
async def test_the_next_message_works_though_a_tools_server_is_lost(
    house: House, catalogue: str, outcome: event_pb2.ToolOutcome.ValueType
) -> None:
    async with house.open(agents=ASKS_TIME, catalogue=TIME) as stubs:
        session = await harness.create_test_session(stubs, agent="clerk")
        turn = await harness.send_message_to_session(stubs, session, "time", wait=0)
        approval = await harness.wait_for_approval(stubs, session)
    async with house.open(agents=ASKS_TIME, catalogue=catalogue) as stubs:
        await harness.decide(stubs, approval)
        ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        events = await harness.all_events(stubs, session)
        (returned,) = (event.tool_returned for event in events if event.HasField("tool_returned"))
        assert returned.outcome == outcome
        may_be_of_server = outcome in (event_pb2.TOOL_OUTCOME_OK, event_pb2.TOOL_OUTCOME_FAILED)
        assert returned.trusted is not may_be_of_server, "what a server may have written is not trusted"
        await completes(stubs, session, if_busy=chat_pb2.IF_BUSY_ENQUEUE)
