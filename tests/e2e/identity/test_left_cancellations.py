"""A cancellation of many turns, once it has begun, goes on without its caller."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import AGENTS
from tests.identities import connect_as, row, settings_of
from tests.processes import until, until_call
from tests.test_tools import ToolControl
from turnkeeper.pb.v1 import chat_pb2, operator_pb2
from turnkeeper.store.changeset import Changeset, CommitResult
from turnkeeper.store.mongo.store import MongoStore

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANNA, OLGA = "acme/anna", "acme/olga"
ROLES = {ANNA: ["caller"], OLGA: ["operator"]}
TURNS: Final = 3
OF_AGENT: Final = operator_pb2.TurnFilter(agent="asker")
SCRIPT = """
[[reply]]
tool_calls = [{ name = "act", arguments = { label = "never" } }]
"""


class HeldCommits(MongoStore):
    """Its commits wait from when they are held until they go on."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.is_held = False
        self.waiting = 0
        self.goes_on = asyncio.Event()

    async def commit(self, changeset: Changeset) -> CommitResult:
        if self.is_held:
            self.waiting += 1
            await self.goes_on.wait()
        return await super().commit(changeset)


class Served(NamedTuple):
    address: str
    store: HeldCommits


@pytest_asyncio.fixture(loop_scope="module")
async def served(
    mongo_uri: str, module_database: str, tmp_path: Path, tool_control: ToolControl
) -> AsyncIterator[Served]:
    rows = [row(name.split("/")[1], tenant="acme", roles=roles) for name, roles in ROLES.items()]
    stores: list[HeldCommits] = []

    def new_store(*arguments: Any, **settings: Any) -> HeldCommits:
        stores.append(HeldCommits(*arguments, **settings))
        return stores[-1]

    settings = {"agents": AGENTS, "new_store": new_store, **settings_of(tmp_path, *rows)}
    async with (
        harness.scripted(SCRIPT) as model,
        harness.serving(mongo_uri, module_database, model, **settings) as running,
    ):
        yield Served(running.address, stores[0])


async def test_a_cancellation_goes_on_when_its_caller_leaves(served: Served) -> None:
    turns: list[chat_pb2.Turn] = []
    async with connect_as(served.address, ANNA) as anna, connect_as(served.address, OLGA) as olga:
        for _ in range(TURNS):
            session = await harness.create_test_session(anna, agent="asker")
            turns.append(await harness.send_message_to_session(anna, session, "act"))
            assert turns[-1].state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        served.store.is_held = True
        left = asyncio.ensure_future(
            olga.operator.CancelTurns(operator_pb2.CancelTurnsRequest(filter=OF_AGENT, expected_count=TURNS))
        )
        await until(lambda: served.store.waiting == TURNS)
        left.cancel()
        for _ in range(10):  # once these are answered, the server knows that the caller has left
            await olga.operator.ListActiveTurns(operator_pb2.ListActiveTurnsRequest())
        served.store.goes_on.set()

        async def none_is_active() -> bool:
            return not (await olga.operator.ListActiveTurns(operator_pb2.ListActiveTurnsRequest())).turns

        await until_call(none_is_active)
        for turn in turns:
            ended = await harness.wait_for_turn(anna, turn.session_id, turn.turn_id)
            assert ended.state == chat_pb2.TURN_STATE_CANCELLED
