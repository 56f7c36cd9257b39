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
text = "Told: {tool_result}"
"""
CATALOGUE = '[[tool]]\ntool = "hold_irreversible"\nconcurrency = 1\n'


@dataclass(kw_only=True)
class Stage:
    """What the servers of the test have in common."""

    mongo_uri: str
    database: str
    model: ScriptedModel
    catalogue: Path
    control: ToolControl

    def server(self) -> AbstractAsyncContextManager[harness.ServerProcess]:
        flags = ("--agents", str(AGENTS), "--catalogue", str(self.catalogue), "--outcome-patience", "0s")
        return harness.server_process(
            self.mongo_uri, self.database, self.model, flags=flags, variables=self.control.variables
        )


@pytest_asyncio.fixture(loop_scope="module")
async def stage(
    mongo_uri: str, module_database: str, tmp_path: Path, tool_control: ToolControl
) -> AsyncIterator[Stage]:
    file = tmp_path / "catalogue.toml"
    file.write_text(CATALOGUE)
    async with harness.scripted(SCRIPT) as model:
        yield Stage(mongo_uri=mongo_uri, database=module_database, model=model, catalogue=file, control=tool_control)


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
    async with stage.server() as server, harness.connect(server.address) as stubs:
        sessions = [await harness.create_test_session(stubs, agent="worker") for _ in range(3)]
        turns = []
        for number, session in enumerate(sessions):
            turns.append(await harness.send_message_to_session(stubs, session, f"hold place-{number}", wait=0))
            await until_event(stubs, session, "tool_called")
        for number, (session, turn) in enumerate(zip(sessions, turns, strict=True)):
            await stage.control.started(f"place-{number}")
            assert not any(stage.control.effects(f"place-{later}") for later in range(number + 1, len(sessions)))
            stage.control.release(f"place-{number}")
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
            assert ended.state == chat_pb2.TURN_STATE_COMPLETED


async def test_a_cancelled_turn_leaves_the_queue(stage: Stage) -> None:
    async with stage.server() as server, harness.connect(server.address) as stubs:
        sessions = [await harness.create_test_session(stubs, agent="worker") for _ in range(3)]
        turns = []
        for number, session in enumerate(sessions):
            turns.append(await harness.send_message_to_session(stubs, session, f"hold queue-{number}", wait=0))
            await until_event(stubs, session, "tool_called")
        cancel = chat_pb2.CancelTurnRequest(session_id=sessions[1], turn_id=turns[1].turn_id)
        await stubs.chat.CancelTurn(cancel)
        cancelled = await harness.wait_for_turn(stubs, sessions[1], turns[1].turn_id)
        assert cancelled.state == chat_pb2.TURN_STATE_CANCELLED
        stage.control.release("queue-0")
        await stage.control.started("queue-2")
        stage.control.release("queue-2")
        ended = await harness.wait_for_turn(stubs, sessions[2], turns[2].turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert not stage.control.effects("queue-1")
