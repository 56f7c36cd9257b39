"""A wait of minutes or days holds nothing: no lease, no task, no server. Any server that runs when it ends goes on."""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.e2e.support.faults import swept
from tests.e2e.support.polling import eventually
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import approval_pb2, chat_pb2
from turnkeeper.store.embedded import EmbeddedMongo

SCRIPT = r"""
[[reply]]
match = "^(?P<label>patience)"
fail = "rate_limit"
retry_after = 600
times = 1

[[reply]]
match = '^do (?P<label>[\w-]+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^mine (?P<label>[\w-]+)'
tool_calls = [{ name = "look", arguments = { at = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
AGENTS = """
[[agent]]
name = "patient"
tools = ["act"]
[[agent.policy]]
tool = "act"
action = "approve"
ttl = "72h"
"""
LOOK = chat_pb2.ClientTool(name="look", schema_json='{"type":"object"}')
TEN_MINUTES = 600_000


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    file = tmp_path / "agents.toml"
    file.write_text(AGENTS)
    return file


class Place:
    """A database on which servers start and stop."""

    def __init__(self, uri: str, database: str, model: ScriptedModel, agents: Path) -> None:
        self.uri = uri
        self.database = database
        self._model = model
        self._agents = agents

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[harness.Stubs]:
        async with (
            harness.serving(self.uri, self.database, self._model, agents=self._agents) as running,
            harness.connect(running.address) as stubs,
        ):
            yield stubs

    async def head(self, session: str) -> dict[str, Any]:
        """Returns the head, with the database's own clock as `now`."""
        async with AsyncMongoClient[dict[str, Any]](self.uri, tz_aware=True) as client:
            heads = client[self.database]["heads"]
            pipeline = [{"$match": {"tenant": harness.TENANT, "session_id": session}}, {"$set": {"now": "$$NOW"}}]
            (head,) = await (await heads.aggregate(pipeline)).to_list()
        return head

    async def unheld(self, session: str) -> dict[str, Any]:
        """Waits until the turn has no owner. Returns the head."""

        async def look() -> dict[str, Any] | None:
            head = await self.head(session)
            return head if (head["owner"], head["lease_until"]) == ("", None) else None

        return await eventually(look)

    async def pass_time(self, collection: str, session: str, field: str, milliseconds: int) -> None:
        """Moves the stored time nearer, as if this time had passed."""
        async with AsyncMongoClient[dict[str, Any]](self.uri) as client:
            changed = [{"$set": {field: {"$subtract": [f"${field}", milliseconds]}}}]
            its = {"tenant": harness.TENANT, "session_id": session}
            done = await client[self.database][collection].update_one(its, changed)
        assert done.modified_count == 1


@pytest.fixture
async def place(mongo_uri: str, database_name: str, tool_control: ToolControl, agents: Path) -> AsyncIterator[Place]:
    async with harness.scripted(SCRIPT) as model:
        yield Place(mongo_uri, database_name, model, agents)
    await check(mongo_uri, database_name)


async def waiting(stubs: harness.Stubs, message: str, **fields: Any) -> tuple[str, chat_pb2.Turn]:
    session = await harness.create_test_session(stubs, agent="patient")
    return session, await harness.send_message_to_session(stubs, session, message, **fields)


class TestLongWaits:
    async def test_a_retry_after_of_ten_minutes_is_a_wake_up_for_any_server(self, place: Place) -> None:
        async with place.serving() as stubs:
            session, turn = await waiting(stubs, "patience", wait=0)
            head = await place.unheld(session)
            shown = await stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id))
            assert shown.turn.state == chat_pb2.TURN_STATE_BACKING_OFF
            assert timedelta(minutes=9) < head["wake_at"] - head["now"] <= timedelta(minutes=10)
            await swept(place.uri, place.database)
            assert (await place.head(session))["revision"] == head["revision"]
        await place.pass_time("heads", session, "wake_at", TEN_MINUTES)
        async with place.serving() as stubs:
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED

    async def test_an_approval_is_decided_when_no_server_of_its_time_is_left(
        self, place: Place, tool_control: ToolControl
    ) -> None:
        async with place.serving() as stubs:
            session, turn = await waiting(stubs, "do unhurried")
            assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
            assert (await place.unheld(session))["wake_at"] is None
        await place.pass_time("approvals", session, "expire_time", 71 * 3_600_000)
        async with place.serving() as stubs:
            await swept(place.uri, place.database)
            approval = await harness.wait_for_approval(stubs, session)
            await harness.decide(stubs, approval)
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: unhurried is done"
        assert len(tool_control.effects("unhurried")) == 1

    async def test_an_approval_undecided_for_three_days_expires_when_a_server_is_back(
        self, place: Place, tool_control: ToolControl
    ) -> None:
        async with place.serving() as stubs:
            session, turn = await waiting(stubs, "do forgotten")
        await place.pass_time("approvals", session, "expire_time", 73 * 3_600_000)
        async with place.serving() as stubs:
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
            while ended.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL:
                waited = approval_pb2.WaitApprovalRequest(approval_id=turn.pending[0].approval_id)
                await stubs.approvals.WaitApproval(waited)
                ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert "was not approved" in harness.answer_of(ended)
        assert not tool_control.effects("forgotten")

    async def test_a_clients_result_is_taken_when_no_server_of_its_time_is_left(self, place: Place) -> None:
        async with place.serving() as stubs:
            session, turn = await waiting(stubs, "mine away", client_tools=[LOOK])
            assert turn.state == chat_pb2.TURN_STATE_AWAITING_TOOL
            assert (await place.unheld(session))["wake_at"] is None
        async with place.serving() as stubs:
            await swept(place.uri, place.database)
            result = chat_pb2.SubmitToolResultRequest(
                session_id=session, tool_call_id=turn.pending[0].tool_call_id, result_json=json.dumps("a ship")
            )
            await stubs.chat.SubmitToolResult(result)
            ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: a ship"

    async def test_an_approval_outlives_a_restart_of_everything_the_database_included(
        self, tmp_path: Path, database_name: str, tool_control: ToolControl, agents: Path
    ) -> None:
        async with harness.scripted(SCRIPT) as model:
            async with (
                EmbeddedMongo(tmp_path / "data") as uri,
                Place(uri, database_name, model, agents).serving() as stubs,
            ):
                session, turn = await waiting(stubs, "do restarted")
                request_id = harness.new_request_id()
                client_session, client_turn = await waiting(
                    stubs, "mine restarted", client_tools=[LOOK], request_id=request_id
                )
            async with EmbeddedMongo(tmp_path / "data") as uri:
                async with Place(uri, database_name, model, agents).serving() as stubs:
                    await harness.decide(stubs, await harness.wait_for_approval(stubs, session))
                    ended = await harness.wait_for_turn(stubs, session, turn.turn_id)
                    result = chat_pb2.SubmitToolResultRequest(
                        session_id=client_session,
                        tool_call_id=client_turn.pending[0].tool_call_id,
                        result_json='"seen"',
                    )
                    await stubs.chat.SubmitToolResult(result)
                    again = await harness.send_message_to_session(
                        stubs, client_session, "mine restarted", client_tools=[LOOK], request_id=request_id
                    )
                await check(uri, database_name)
        assert harness.answer_of(ended) == "Told: restarted is done"
        assert len(tool_control.effects("restarted")) == 1
        assert (again.turn_id, harness.answer_of(again)) == (client_turn.turn_id, "Told: seen")
