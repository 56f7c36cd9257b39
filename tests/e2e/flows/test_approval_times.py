"""The time to decide: the warning before its end, and ExtendApproval."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment, until_event
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
match = "^ask"
tool_calls = [{ name = "act", arguments = { label = "one" } }]

[[reply]]
text = "Done."
"""


async def request_approval(env: Environment) -> approval_pb2.Approval:
    session = await harness.create_test_session(env.stubs, agent="asker")
    turn = await harness.send_message_to_session(env.stubs, session, "ask")
    return await harness.get_approval(env.stubs, turn.pending[0].approval_id)


async def extend(env: Environment, approval: approval_pb2.Approval, ttl: Duration) -> approval_pb2.Approval:
    request = approval_pb2.ExtendApprovalRequest(approval_id=approval.approval_id, ttl=ttl)
    response = await env.stubs.approvals.ExtendApproval(request)
    assert response.sequence
    return response.approval


async def test_a_person_gets_more_time_and_everybody_sees_it(env: Environment) -> None:
    approval = await request_approval(env)
    longer = await extend(env, approval, approval.longest_ttl)
    assert longer.ttl == longer.longest_ttl == approval.longest_ttl
    more = longer.expire_time.ToDatetime() - approval.expire_time.ToDatetime()
    assert more == approval.ttl.ToTimedelta()
    event = await until_event(env.stubs, approval.session_id, "approval_extended")
    assert event.ignorable
    assert event.approval_extended.expire_time == longer.expire_time
    assert event.approval_extended.ttl == longer.ttl
    assert await extend(env, approval, approval.longest_ttl) == longer
    too_long = Duration(seconds=approval.longest_ttl.seconds + 1)
    with refused("INVALID_REQUEST") as refusal:
        await extend(env, approval, too_long)
    assert "ttl" in refusal.details.fields
    await harness.decide(env.stubs, longer)
    with refused("APPROVAL_ALREADY_PROCESSED"):
        await extend(env, approval, approval.longest_ttl)


async def test_time_that_is_added_in_a_suspension_counts_after_it(env: Environment) -> None:
    approval = await request_approval(env)
    await env.stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=approval.session_id))
    longer = await extend(env, approval, approval.longest_ttl)
    assert not longer.HasField("expire_time")
    await env.stubs.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=approval.session_id))
    resumed = await harness.get_approval(env.stubs, approval.approval_id)
    assert resumed.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC) > 1.9 * approval.ttl.ToTimedelta()


async def test_an_approval_that_will_expire_soon_is_announced_once(env: Environment) -> None:
    approval = await request_approval(env)
    async with AsyncMongoClient[dict[str, object]](env.mongo_uri) as client:
        due = {"$set": {"expiring_time": datetime.now(UTC) - timedelta(seconds=1)}}
        where = {"tenant": harness.TENANT, "id": approval.approval_id}
        assert (await client[env.database]["approvals"].update_one(where, due)).modified_count == 1
    event = await until_event(env.stubs, approval.session_id, "approval_expiring")
    assert event.ignorable
    assert event.approval_expiring.approval_id == approval.approval_id
    assert event.approval_expiring.expire_time == approval.expire_time
    await extend(env, approval, approval.longest_ttl)
    kinds = harness.kinds(await harness.all_events(env.stubs, approval.session_id))
    assert (kinds.count("approval_expiring"), kinds.count("approval_extended")) == (1, 1)
