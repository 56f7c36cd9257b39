"""Promise I14: what was approved is what runs.

Arguments, a tool's schema or an agent's policy change between the proposal, the decision and the start: then the call
needs a new approval, or does not run.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import AGENTS, until_event
from tests.status_details import refused
from tests.test_tools import ToolControl
from turnkeeper.model.scripted import ScriptedModel
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

SCRIPT = r"""
[[reply]]
match = '^do (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""
DESCRIBED = "tests.e2e.support.described_tools"
CHANGED, STRICT, NONE = "tests.e2e.support.changed_tools", "tests.e2e.support.strict_tools", "tests.status_details"


@dataclass(slots=True)
class Shop:
    """One database on which servers with different tools and agents follow each other."""

    mongo_uri: str
    database: str
    model: ScriptedModel
    tool_control: ToolControl

    @contextlib.asynccontextmanager
    async def open(self, tools: str = "tests.test_tools", *, agents: Path = AGENTS) -> AsyncIterator[harness.Stubs]:
        """Starts a server with these tools and agents; the one before has ended."""
        self.tool_control.install(tools)
        async with (
            harness.serving(self.mongo_uri, self.database, self.model, agents=agents) as running,
            harness.connect(running.address) as stubs,
        ):
            yield stubs

    async def pending_approval(self, label: str) -> approval_pb2.Approval:
        """Starts a server until it has requested an approval, and ends it. Returns the approval."""
        async with self.open() as stubs:
            session = await harness.create_test_session(stubs, agent="asker")
            await harness.send_message_to_session(stubs, session, f"do {label}")
            return await harness.wait_for_approval(stubs, session)


@pytest_asyncio.fixture
async def shop(mongo_uri: str, database_name: str, tool_control: ToolControl) -> AsyncIterator[Shop]:
    async with harness.scripted(SCRIPT) as model:
        yield Shop(mongo_uri, database_name, model, tool_control)


async def returned(stubs: harness.Stubs, approval: approval_pb2.Approval) -> event_pb2.ToolReturned:
    """Waits for the turn's end. Returns the call's result."""
    ended = await harness.wait_for_turn(stubs, approval.session_id, approval.turn_id)
    assert ended.state == chat_pb2.TURN_STATE_COMPLETED
    events = await harness.all_events(stubs, approval.session_id)
    return next(event.tool_returned for event in events if event.HasField("tool_returned"))


async def second_round(stubs: harness.Stubs, first: approval_pb2.Approval) -> approval_pb2.Approval:
    """Returns the approval of the next round; the first round's hash does not decide it."""
    second = await harness.wait_for_approval(stubs, first.session_id)
    assert (second.round, second.tool_call_id) == (2, first.tool_call_id)
    assert second.arguments_hash != first.arguments_hash
    stale = approval_pb2.Approval(approval_id=second.approval_id, arguments_hash=first.arguments_hash)
    with refused("ARGUMENTS_HASH_MISMATCH"):
        await harness.decide(stubs, stale)
    return second


class TestI14:
    async def test_i14_a_changed_schema_needs_a_new_approval(self, shop: Shop) -> None:
        first = await shop.pending_approval("schema")
        async with shop.open(CHANGED) as stubs:
            await harness.decide(stubs, first)
            second = await second_round(stubs, first)
            assert "schema" in second.changed
            assert not shop.tool_control.effects("schema")
            await harness.decide(stubs, first)
            assert not shop.tool_control.effects("schema"), "the first round's decision, repeated, starts nothing"
            await harness.decide(stubs, second)
            assert (await returned(stubs, second)).outcome == event_pb2.TOOL_OUTCOME_OK
            assert len(shop.tool_control.effects("schema")) == 1

    async def test_i14_arguments_that_no_longer_fit_do_not_run(self, shop: Shop) -> None:
        first = await shop.pending_approval("strict")
        async with shop.open(STRICT) as stubs:
            await harness.decide(stubs, first)
            result = await returned(stubs, first)
            assert (result.outcome, result.started) == (event_pb2.TOOL_OUTCOME_INVALID_ARGUMENTS, False)
            assert not shop.tool_control.effects("strict")

    async def test_i14_a_tool_that_is_gone_does_not_run(self, shop: Shop, tmp_path: Path) -> None:
        first = await shop.pending_approval("gone")
        without = tmp_path / "without.toml"  # no server starts with an agent that names a tool which is gone
        without.write_text('[[agent]]\nname = "asker"\n')
        async with shop.open(NONE, agents=without) as stubs:
            await harness.decide(stubs, first)
            result = await returned(stubs, first)
            assert (result.outcome, result.started) == (event_pb2.TOOL_OUTCOME_NOT_FOUND, False)

    async def test_i14_changed_arguments_need_a_new_approval(self, shop: Shop) -> None:
        first = await shop.pending_approval("shown")
        async with AsyncMongoClient[dict[str, object]](shop.mongo_uri) as client:
            await client[shop.database]["tool_calls"].update_one(
                {"tenant": harness.TENANT, "_id.id": first.tool_call_id},
                {"$set": {"arguments_json": '{"label":"slipped-in"}'}},
            )
        async with shop.open() as stubs:
            await harness.decide(stubs, first)
            second = await second_round(stubs, first)
            assert second.arguments_json == '{"label":"slipped-in"}'
            assert list(second.changed) == ["arguments"]
            assert not shop.tool_control.effects("slipped-in")
            assert not shop.tool_control.effects("shown")
            await harness.decide(stubs, second, approve=False)
            assert (await returned(stubs, second)).outcome == event_pb2.TOOL_OUTCOME_REJECTED

    async def test_i14_a_changed_description_needs_a_new_approval(self, shop: Shop) -> None:
        first = await shop.pending_approval("described")
        async with shop.open(DESCRIBED) as stubs:
            await harness.decide(stubs, first)
            second = await second_round(stubs, first)
            assert list(second.changed) == ["description"]
            assert second.schema_hash == first.schema_hash
            assert second.description_hash != first.description_hash
            await harness.decide(stubs, second)
            assert (await returned(stubs, second)).outcome == event_pb2.TOOL_OUTCOME_OK

    async def test_i14_a_changed_rule_voids_the_decision_though_it_would_let_the_call_run(
        self, shop: Shop, tmp_path: Path
    ) -> None:
        first = await shop.pending_approval("loosened")
        async with shop.open(agents=policy(tmp_path, 'name = "lax"\naction = "auto"')) as stubs:
            assert await still_pending(stubs, first), "a loosened rule frees no call that waits"
            await harness.decide(stubs, first)
            second = await second_round(stubs, first)
            assert (list(second.changed), second.rule) == (["rule"], "lax")
            assert second.rule_text == 'tool = "*", action = "auto", ttl = "1h"'
            assert not shop.tool_control.effects("loosened")
            await harness.decide(stubs, second)
            assert (await returned(stubs, second)).outcome == event_pb2.TOOL_OUTCOME_OK
            free = await harness.send_message_to_session(stubs, first.session_id, "do unasked")
            assert free.state == chat_pb2.TURN_STATE_COMPLETED, "rules are not pinned to the session"

    async def test_i14_a_new_denial_stops_a_call_that_waits(self, shop: Shop, tmp_path: Path) -> None:
        first = await shop.pending_approval("denied")
        async with shop.open(agents=policy(tmp_path, 'when = "args.label == \\"denied\\""\naction = "deny"')) as stubs:
            await harness.decide(stubs, first)
            result = await returned(stubs, first)
            assert (result.outcome, result.started) == (event_pb2.TOOL_OUTCOME_DENIED, False)
            assert not shop.tool_control.effects("denied")

    async def test_i14_the_hash_tells_arguments_schema_and_policy_apart(self, shop: Shop, tmp_path: Path) -> None:
        stricter = tmp_path / "stricter.toml"
        stricter.write_text('[[agent]]\nname = "asker"\ntools = ["act"]\n')
        async with shop.open() as stubs:
            same = {await hash_of(stubs, "same") for _ in range(2)}
            other = await hash_of(stubs, "other")
        async with shop.open(CHANGED) as stubs:
            schema = await hash_of(stubs, "same")
        async with shop.open(agents=stricter) as stubs:
            policy = await hash_of(stubs, "same")
        assert len(same) == 1, "two sessions, the same call"
        assert len(same | {other, schema, policy}) == 4


def policy(folder: Path, rule: str) -> Path:
    """Returns a file of agents whose one rule is about all tools."""
    path = folder / "policy.toml"
    path.write_text(f'[[agent]]\nname = "asker"\ntools = ["act"]\n[[agent.policy]]\ntool = "*"\n{rule}\n')
    return path


async def still_pending(stubs: harness.Stubs, approval: approval_pb2.Approval) -> bool:
    return (await harness.get_approval(stubs, approval.approval_id)).state == approval_pb2.APPROVAL_STATE_PENDING


async def hash_of(stubs: harness.Stubs, label: str) -> str:
    """Returns the hash that an approver of this call in a new session decides on."""
    session = await harness.create_test_session(stubs, agent="asker")
    await harness.send_message_to_session(stubs, session, f"do {label}")
    event = await until_event(stubs, session, "approval_requested")
    return event.approval_requested.arguments_hash
