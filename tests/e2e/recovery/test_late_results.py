"""A tool that must not run twice outlives its owner's lease: its result is kept and shown, but is no event.

The owner's process is stopped with SIGSTOP once, for longer than its lease, while the tools of all tests run; another
server takes over.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from tests import harness
from tests.checker.compare import check
from tests.contracts.stores import until
from tests.e2e.support.environment import Environment
from tests.e2e.support.lost_servers import question, returned
from tests.e2e.support.server_processes import doomed as doomed_server
from tests.e2e.support.server_processes import freeze, thaw
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"lease": timedelta(seconds=1.5)}
SCRIPT = r"""
[[reply]]
match = '^fire (?P<label>\S+)'
tool_calls = [{ name = "hold_irreversible", arguments = { label = "{label}" } }]

[[reply]]
text = "Told: {tool_result}"
"""


class Owner(NamedTuple):
    """The server that was stopped beyond its lease while tools ran, and goes on; what came of it by their labels."""

    server: harness.ServerProcess
    turns: Mapping[str, chat_pb2.Turn]
    approvals: Mapping[str, approval_pb2.Approval]
    """Of the outcomes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(env: Environment) -> AsyncIterator[Owner]:
    turns: dict[str, chat_pb2.Turn] = {}
    async with doomed_server(env) as server, harness.connect(server.address) as stubs:
        for label in ("shown", "too-late", "drained"):
            session = await harness.create_test_session(stubs, agent="worker")
            turns[label] = await harness.send_message_to_session(stubs, session, f"fire {label}", wait=0)
            effects = await env.tool_control.started(label)
            assert [effect.pid for effect in effects] == [server.pid]
        freeze(server)
        approvals = {label: await question(env, turn) for label, turn in turns.items()}
        thaw(server)
        yield Owner(server, turns, approvals)


async def in_ledger(env: Environment, turn: chat_pb2.Turn, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Waits until the turn's only call is stored like this, and returns it."""
    call: dict[str, Any] = {}
    # As the service reads: at once after the commit, one node has what a majority is not known to have yet.
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri, readConcernLevel="majority") as client:

        async def read() -> bool:
            its = {"tenant": harness.TENANT, "turn_id": turn.turn_id}
            call.update(await client[env.database]["tool_calls"].find_one(its) or {})
            return bool(call) and holds(call)

        await until(read)
    return call


class TestI5LateResults:
    async def test_i5_a_late_result_is_shown_in_the_approval_and_is_no_event(
        self, env: Environment, owner: Owner
    ) -> None:
        turn, approval = owner.turns["shown"], owner.approvals["shown"]
        assert not approval.late_result_json
        before = harness.kinds(await harness.all_events(env.stubs, turn.session_id))
        env.tool_control.release("shown")
        call = await in_ledger(env, turn, lambda call: bool(call["late_outcome"]))
        assert (call["state"], call["late_outcome"], call["late_result_json"]) == ("UNKNOWN", "OK", '"shown is done"')
        shown = await harness.get_approval(env.stubs, approval.approval_id)
        assert shown.late_result_json == '"shown is done"'
        with refused("ARGUMENTS_HASH_MISMATCH"):  # who has not read what came must not start it again
            await harness.answer(env.stubs, approval, event_pb2.APPROVAL_DECISION_RETRY)
        assert harness.kinds(await harness.all_events(env.stubs, turn.session_id)) == before
        await check(env.mongo_uri, env.database)
        await harness.answer(
            env.stubs, shown, event_pb2.APPROVAL_DECISION_MARK_DONE, result_json=shown.late_result_json
        )
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        assert harness.answer_of(ended) == "Told: shown is done"
        assert len(await returned(env, turn)) == 1
        assert len(env.tool_control.effects("shown")) == 1

    async def test_i5_after_the_answer_it_is_kept_and_changes_nothing(self, env: Environment, owner: Owner) -> None:
        turn, approval = owner.turns["too-late"], owner.approvals["too-late"]
        await harness.answer(env.stubs, approval, event_pb2.APPROVAL_DECISION_GIVE_UP)
        ended = await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
        events = await harness.all_events(env.stubs, turn.session_id)
        env.tool_control.release("too-late")
        call = await in_ledger(env, turn, lambda call: bool(call["late_outcome"]))
        assert (call["state"], call["outcome"]) == ("RETURNED", "UNKNOWN")
        assert await harness.all_events(env.stubs, turn.session_id) == events
        assert await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id) == ended
        assert not (await harness.get_approval(env.stubs, approval.approval_id)).late_result_json
        assert len(env.tool_control.effects("too-late")) == 1

    async def test_i5_a_drain_does_not_wait_for_it_beyond_its_grace(self, env: Environment, owner: Owner) -> None:
        turn, approval = owner.turns["drained"], owner.approvals["drained"]
        await in_ledger(env, turn, lambda call: call["state"] == "UNKNOWN")
        assert await owner.server.terminate() == 0
        assert not (await harness.get_approval(env.stubs, approval.approval_id)).late_result_json
        await harness.answer(env.stubs, approval, event_pb2.APPROVAL_DECISION_GIVE_UP)
        await harness.wait_for_turn(env.stubs, turn.session_id, turn.turn_id)
