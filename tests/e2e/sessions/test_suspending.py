"""SuspendSession and ResumeSession: running steps are stored, no new one starts, and no approval expires meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests import harness
from tests.e2e.support.environment import Environment, until_event
from tests.e2e.support.faults import swept
from tests.processes import until
from tests.status_details import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"sweep": timedelta(milliseconds=50)}
SCRIPT = r"""
[[reply]]
match = '^slow (?P<label>\S+)'
after_tools = 0
first_delay = "600ms"
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
match = '^hold (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "hold_reading", arguments = { label = "{label}" } }]

[[reply]]
match = '^do (?P<label>\S+)'
after_tools = 0
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
SUSPENDED, ACTIVE = session_pb2.SESSION_STATE_SUSPENDED, session_pb2.SESSION_STATE_ACTIVE
RUNNING, COMPLETED = chat_pb2.TURN_STATE_RUNNING, chat_pb2.TURN_STATE_COMPLETED
WAITING, CANCELLED = chat_pb2.TURN_STATE_AWAITING_APPROVAL, chat_pb2.TURN_STATE_CANCELLED


async def suspend(stubs: harness.Stubs, session: str) -> session_pb2.SuspendSessionResponse:
    return await stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))


async def resume(stubs: harness.Stubs, session: str) -> session_pb2.ResumeSessionResponse:
    return await stubs.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session))


async def get(env: Environment, session: str) -> session_pb2.Session:
    return (await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))).session


async def log_of(env: Environment, session: str) -> list[str]:
    return harness.kinds(await harness.all_events(env.stubs, session))


async def begun(env: Environment, agent: str, message: str) -> tuple[str, chat_pb2.Turn]:
    session = await harness.create_test_session(env.stubs, agent=agent)
    return session, await harness.send_message_to_session(env.stubs, session, message, wait=0)


async def quiet(env: Environment, session: str) -> list[str]:
    """Waits while other sessions' turns begin and end, and servers sweep: any claim would show. Returns the log."""
    for _ in range(4):
        other = await harness.create_test_session(env.stubs, agent="talker")
        turn = await harness.send_message_to_session(env.stubs, other, "hello")
        assert turn.state == COMPLETED
    await swept(env.mongo_uri, env.database)
    return await log_of(env, session)


async def second_after(moment: Timestamp) -> None:
    """Waits until the moment is a second ago."""
    await until(lambda: datetime.now(UTC) > moment.ToDatetime(UTC) + timedelta(seconds=1))


async def test_a_suspended_session_refuses_messages(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    first = await suspend(env.stubs, session)
    assert (first.session.state, first.sequence) == (SUSPENDED, 2)
    again = await suspend(env.stubs, session)
    assert (again.session.etag, again.sequence) == (first.session.etag, 0)
    with refused("SESSION_SUSPENDED") as refusal:
        await harness.send_message_to_session(env.stubs, session, "hello")
    assert refusal.details.status == grpc.StatusCode.FAILED_PRECONDITION
    resumed = await resume(env.stubs, session)
    assert (resumed.session.state, resumed.sequence) == (session_pb2.SESSION_STATE_CREATED, 3)
    assert (await resume(env.stubs, session)).sequence == 0
    turn = await harness.send_message_to_session(env.stubs, session, "hello")
    assert turn.state == COMPLETED
    assert (await get(env, session)).title == "hello"
    assert (await log_of(env, session))[1:3] == ["session_suspended", "session_resumed"]


async def test_a_running_tool_ends_and_its_result_is_stored_but_the_model_is_not_called(env: Environment) -> None:
    session, turn = await begun(env, "worker", "hold s-tool")
    await env.tool_control.started("s-tool")
    await suspend(env.stubs, session)
    env.tool_control.release("s-tool")
    await until_event(env.stubs, session, "tool_returned")
    assert (await quiet(env, session))[-1] == "tool_returned"
    assert len(env.model_requests("hold s-tool")) == 1
    assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id, seconds=0)).state == RUNNING
    assert (await resume(env.stubs, session)).session.state == ACTIVE
    assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == COMPLETED
    assert len(env.tool_control.effects("s-tool")) == 1


async def test_a_model_call_under_way_ends_and_its_tools_wait(env: Environment) -> None:
    session, turn = await begun(env, "worker", "slow s-model")
    await env.wait_for_model_requests("slow s-model")
    await suspend(env.stubs, session)
    await until_event(env.stubs, session, "message_completed")
    kinds = await quiet(env, session)
    assert kinds[-2:] == ["message_completed", "tool_called"]
    assert env.tool_control.effects("s-model") == []
    await resume(env.stubs, session)
    assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == COMPLETED
    assert len(env.tool_control.effects("s-model")) == 1


async def test_a_suspension_by_another_replica_reaches_the_owner(env: Environment) -> None:
    session, turn = await begun(env, "worker", "hold s-other")
    await env.tool_control.started("s-other")
    async with env.another() as other:
        await suspend(other, session)
        env.tool_control.release("s-other")
        await until_event(other, session, "tool_returned")
        assert (await quiet(env, session))[-1] == "tool_returned"
        await resume(other, session)
        assert (await harness.wait_for_turn(other, session, turn.turn_id)).state == COMPLETED
    assert len(env.model_requests("hold s-other")) == 2


async def test_what_is_approved_while_suspended_runs_after_it(env: Environment) -> None:
    session, turn = await begun(env, "asker", "do s-approved")
    approval = await harness.wait_for_approval(env.stubs, session)
    await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    await suspend(env.stubs, session)
    decided = await harness.decide(env.stubs, approval)
    assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
    assert (await quiet(env, session))[-1] == "approval_decided"
    assert env.tool_control.effects("s-approved") == []
    await resume(env.stubs, session)
    assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == COMPLETED
    assert len(env.tool_control.effects("s-approved")) == 1


async def test_an_approval_does_not_expire_while_its_session_is_suspended(env: Environment) -> None:
    session, turn = await begun(env, "hurried", "do s-clock")
    approval = await harness.wait_for_approval(env.stubs, session)
    await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    await suspend(env.stubs, session)
    await second_after(approval.expire_time)
    await quiet(env, session)
    paused = await harness.get_approval(env.stubs, approval.approval_id)
    assert paused.state == approval_pb2.APPROVAL_STATE_PENDING
    assert not paused.HasField("expire_time")
    assert (await log_of(env, session))[-1] == "session_suspended"
    await resume(env.stubs, session)
    going = await harness.get_approval(env.stubs, approval.approval_id)
    assert going.expire_time.ToDatetime() - approval.expire_time.ToDatetime() > timedelta(seconds=1)
    await until_event(env.stubs, session, "approval_expired")
    with refused("APPROVAL_EXPIRED"):
        await harness.decide(env.stubs, approval)


async def test_an_approval_requested_while_suspended_has_its_whole_time_after_it(env: Environment) -> None:
    session, _ = await begun(env, "hurried", "slow s-asked")
    await env.wait_for_model_requests("slow s-asked")
    await suspend(env.stubs, session)
    approval = await harness.wait_for_approval(env.stubs, session)
    assert not approval.HasField("expire_time")
    await second_after(approval.create_time)
    assert (await quiet(env, session))[-1] == "approval_requested"
    await resume(env.stubs, session)
    await harness.decide(env.stubs, approval)
    await env.tool_control.started("s-asked")


async def cancel(env: Environment, session: str, turn_id: str) -> object:
    return await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))


async def end(env: Environment, session: str, _: str) -> object:
    return await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))


@pytest.mark.parametrize("way", [cancel, end])
async def test_a_suspended_session_s_turn_can_be_cancelled_and_the_session_ended(
    env: Environment, way: Callable[[Environment, str, str], Awaitable[object]]
) -> None:
    session, turn = await begun(env, "asker", f"do s-{way.__name__}")
    approval = await harness.wait_for_approval(env.stubs, session)
    await harness.wait_for_turn(env.stubs, session, turn.turn_id)
    await suspend(env.stubs, session)
    await way(env, session, turn.turn_id)
    assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == CANCELLED
    withdrawn = await harness.get_approval(env.stubs, approval.approval_id)
    assert withdrawn.state == approval_pb2.APPROVAL_STATE_WITHDRAWN
    state = (await get(env, session)).state
    assert state == (SUSPENDED if way is cancel else session_pb2.SESSION_STATE_ENDED)


async def test_a_session_that_is_over_can_neither_be_suspended_nor_resumed(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    await end(env, session, "")
    for call in (suspend, resume):
        with refused("SESSION_NOT_ACTIVE"):
            await call(env.stubs, session)


async def test_decide_races_suspend_and_resume_and_nothing_is_lost(env: Environment) -> None:
    async def one(number: int) -> None:
        label = f"s-race-{number}"
        session, turn = await begun(env, "asker", f"do {label}")
        approval = await harness.wait_for_approval(env.stubs, session)
        async with asyncio.TaskGroup() as group:
            group.create_task(suspend(env.stubs, session))
            group.create_task(harness.decide(env.stubs, approval))
        await resume(env.stubs, session)
        assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == COMPLETED
        assert len(env.tool_control.effects(label)) == 1

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(one(number))


async def test_an_update_changes_what_its_mask_names_and_nothing_else(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    before = await get(env, session)
    request = session_pb2.UpdateSessionRequest(etag=before.etag)
    request.session.session_id, request.session.title = session, "Better"
    request.session.labels["team"] = "red"
    request.session.metadata.update({"ticket": "T-1"})
    request.update_mask.paths.extend(["title", "metadata"])
    changed = await env.stubs.sessions.UpdateSession(request)
    assert (changed.session.title, dict(changed.session.labels)) == ("Better", {})
    assert changed.session.metadata["ticket"] == "T-1"
    assert changed.session.etag != before.etag
    again = await env.stubs.sessions.UpdateSession(request)  # its answer may have been lost
    assert (again.session, again.sequence) == (changed.session, 0)
    request.session.title = "Worse"
    with refused("ETAG_MISMATCH"):
        await env.stubs.sessions.UpdateSession(request)
    events = await harness.all_events(env.stubs, session)
    assert [list(event.session_updated.fields) for event in events[1:]] == [["title", "metadata"]]
    for paths in ([], ["state"], ["title", "owner"]):
        del request.update_mask.paths[:]
        request.update_mask.paths.extend(paths)
        with refused("INVALID_REQUEST") as refusal:
            await env.stubs.sessions.UpdateSession(request)
        assert refusal.details.fields == ("update_mask",)


async def test_a_watcher_sees_the_suspension_and_stays(env: Environment) -> None:
    session = await harness.create_test_session(env.stubs, agent="talker")
    watch = env.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
    await suspend(env.stubs, session)
    await resume(env.stubs, session)
    events: list[event_pb2.Event] = []
    async with asyncio.timeout(10):
        async for response in watch:
            events.extend(response.events)
            if len(events) == 3:
                break
    watch.cancel()
    assert harness.kinds(events) == ["session_created", "session_suspended", "session_resumed"]
