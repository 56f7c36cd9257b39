"""Promise I5 of a call that waits for room: it has not started, so no person decides on it after its owner is lost."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.environment import AGENTS, until_event
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import chat_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^hold (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
match = '^read and hold (?P<label>\S+)'
after_tools = 0
tool_calls = [
  { name = "hold_reading", arguments = { label = "reading" } },
  { name = "hold_irreversible", arguments = { label = "{label}" } },
]

[[reply]]
text = "Told: {tool_result}"
"""
SINGLE = """
[[agent]]
name = "single"
description = "Runs one tool at a time."
tools = ["*"]
limits = { parallel_tools = 1 }
policy = [{ tool = "hold_reading", action = "approve" }, { tool = "*", action = "auto" }]
"""
CATALOGUE = '[[tool]]\ntool = "hold_irreversible"\nconcurrency = 1\n'


@dataclass(kw_only=True)
class Stage:
    """What the servers of the test have in common."""

    mongo_uri: str
    database: str
    model: ScriptedModel
    agents: Path
    catalogue: Path
    control: ToolControl

    def server(self) -> AbstractAsyncContextManager[harness.ServerProcess]:
        flags = ("--agents", str(self.agents), "--catalogue", str(self.catalogue), "--outcome-patience", "0s")
        return harness.server_process(
            self.mongo_uri, self.database, self.model, flags=flags, variables=self.control.variables
        )


@pytest_asyncio.fixture(loop_scope="module")
async def stage(
    mongo_uri: str, module_database: str, tmp_path: Path, tool_control: ToolControl
) -> AsyncIterator[Stage]:
    agents, catalogue = tmp_path / "agents.toml", tmp_path / "catalogue.toml"
    agents.write_text(AGENTS.read_text() + SINGLE)
    catalogue.write_text(CATALOGUE)
    files = {"agents": agents, "catalogue": catalogue}
    async with harness.scripted(SCRIPT) as model:
        yield Stage(mongo_uri=mongo_uri, database=module_database, model=model, control=tool_control, **files)


async def in_line(stubs: harness.Stubs, *labels: str) -> list[chat_pb2.Turn]:
    """Returns the turns of new sessions whose calls came one after the other: the first one runs."""
    turns = []
    for label in labels:
        session = await harness.create_test_session(stubs, agent="worker")
        turns.append(await harness.send_message_to_session(stubs, session, f"hold {label}", wait=0))
        await until_event(stubs, session, "tool_called")
    return turns


async def completes(stubs: harness.Stubs, turn: chat_pb2.Turn) -> None:
    ended = await harness.wait_for_turn(stubs, turn.session_id, turn.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED


async def test_i5_a_call_that_waited_for_room_starts_at_the_next_owner_without_a_question(stage: Stage) -> None:
    async with stage.server() as lost, harness.connect(lost.address) as stubs:
        first = await harness.create_test_session(stubs, agent="worker")
        await harness.send_message_to_session(stubs, first, "hold runs", wait=0)
        await stage.control.started("runs")
        second = await harness.create_test_session(stubs, agent="worker")
        turn = await harness.send_message_to_session(stubs, second, "hold waits", wait=0)
        await until_event(stubs, second, "tool_called")
        assert "tool_started" not in harness.kinds(await harness.all_events(stubs, second))
        await lost.kill()
    async with stage.server() as keeper, harness.connect(keeper.address) as stubs:
        await stage.control.started("waits")
        stage.control.release("waits")
        ended = await harness.wait_for_turn(stubs, second, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        kinds = harness.kinds(await harness.all_events(stubs, second))
        assert (kinds.count("tool_started"), "approval_requested" in kinds) == (1, False)
        assert len(stage.control.effects("waits")) == 1
        await until_event(stubs, first, "approval_requested")
        stage.control.release("runs")
    await check(stage.mongo_uri, stage.database)


async def test_a_call_that_waits_for_room_starts_when_there_is_some(stage: Stage) -> None:
    labels = ["place-0", "place-1", "place-2"]
    async with stage.server() as server, harness.connect(server.address) as stubs:
        turns = await in_line(stubs, *labels)
        for number, turn in enumerate(turns):
            await stage.control.started(labels[number])
            assert not any(stage.control.effects(later) for later in labels[number + 1 :])
            stage.control.release(labels[number])
            await completes(stubs, turn)


async def test_a_cancelled_turn_leaves_the_queue(stage: Stage) -> None:
    async with stage.server() as server, harness.connect(server.address) as stubs:
        _, second, third = await in_line(stubs, "queue-0", "queue-1", "queue-2")
        cancel = chat_pb2.CancelTurnRequest(session_id=second.session_id, turn_id=second.turn_id)
        await stubs.chat.CancelTurn(cancel)
        cancelled = await harness.wait_for_turn(stubs, second.session_id, second.turn_id)
        assert cancelled.state == chat_pb2.TURN_STATE_CANCELLED
        stage.control.release("queue-0")
        await stage.control.started("queue-2")
        stage.control.release("queue-2")
        await completes(stubs, third)
        assert not stage.control.effects("queue-1")


async def test_a_call_that_got_room_starts_before_one_of_its_turn_that_needs_none(stage: Stage) -> None:
    """Otherwise it keeps a place, idle, from the calls of all other turns for as long as the other one runs."""
    async with stage.server() as server, harness.connect(server.address) as stubs:
        await in_line(stubs, "before")
        session = await harness.create_test_session(stubs, agent="single")
        turn = await harness.send_message_to_session(stubs, session, "read and hold behind", wait=0)
        await harness.decide(stubs, await harness.wait_for_approval(stubs, session))
        stage.control.release("before")
        await stage.control.started("behind")
        assert not stage.control.effects("reading"), "it comes first in the message, and may start as well"
        for label in ("behind", "reading"):
            stage.control.release(label)
        await completes(stubs, turn)
