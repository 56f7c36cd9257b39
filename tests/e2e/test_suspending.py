"""SuspendSession and ResumeSession: what is under way is stored, nothing new starts, no time to decide runs out."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import grpc
import pytest

from tests import harness
from tests.e2e.world import World, until_event
from tests.problems import refused
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

KNOBS = {"sweep": timedelta(milliseconds=50)}
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


async def get(world: World, session: str) -> session_pb2.Session:
    return (await world.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))).session


async def log_of(world: World, session: str) -> list[str]:
    return harness.kinds(await harness.all_events(world.stubs, session))


async def begun(world: World, agent: str, message: str) -> tuple[str, chat_pb2.Turn]:
    session = await harness.create_test_session(world.stubs, agent=agent)
    return session, await harness.send_message_to_session(world.stubs, session, message, wait=0)


async def quiet(world: World, session: str, *, sweeps: int = 4) -> list[str]:
    """The log, once it stayed the same while other sessions' turns began and ended: whoever could claim would have."""
    for _ in range(sweeps):
        other = await harness.create_test_session(world.stubs, agent="talker")
        turn = await harness.send_message_to_session(world.stubs, other, "hello")
        assert turn.state == COMPLETED
        await asyncio.sleep(0.1)  # two sweeps, a poll: there is nothing that would tell
    return await log_of(world, session)


async def test_a_suspended_session_takes_no_message_and_says_so(world: World) -> None:
    session = await harness.create_test_session(world.stubs, agent="talker")
    first = await suspend(world.stubs, session)
    assert (first.session.state, first.sequence) == (SUSPENDED, 2)
    again = await suspend(world.stubs, session)
    assert (again.session.etag, again.sequence) == (first.session.etag, 0)
    with refused("SESSION_SUSPENDED") as refusal:
        await harness.send_message_to_session(world.stubs, session, "hello")
    assert refusal.problem.status == grpc.StatusCode.FAILED_PRECONDITION
    resumed = await resume(world.stubs, session)
    assert (resumed.session.state, resumed.sequence) == (session_pb2.SESSION_STATE_CREATED, 3)
    assert (await resume(world.stubs, session)).sequence == 0
    turn = await harness.send_message_to_session(world.stubs, session, "hello")
    assert turn.state == COMPLETED
    assert (await get(world, session)).title == "hello"
    assert (await log_of(world, session))[1:3] == ["session_suspended", "session_resumed"]


async def test_a_tool_under_way_ends_and_its_result_is_stored_but_the_model_is_not_asked(world: World) -> None:
    session, turn = await begun(world, "worker", "hold s-tool")
    await world.workshop.started("s-tool")
    await suspend(world.stubs, session)
    world.workshop.release("s-tool")
    await until_event(world.stubs, session, "tool_returned")
    assert (await quiet(world, session))[-1] == "tool_returned"
    assert len(world.heard("hold s-tool")) == 1
    assert (await harness.wait_for_turn(world.stubs, session, turn.turn_id, seconds=0)).state == RUNNING
    assert (await resume(world.stubs, session)).session.state == ACTIVE
    assert (await harness.wait_for_turn(world.stubs, session, turn.turn_id)).state == COMPLETED
    assert len(world.workshop.effects("s-tool")) == 1


async def test_a_model_call_under_way_ends_and_its_tools_wait(world: World) -> None:
    session, turn = await begun(world, "worker", "slow s-model")
    await world.until_heard("slow s-model")
    await suspend(world.stubs, session)
    await until_event(world.stubs, session, "message_completed")
    kinds = await quiet(world, session)
    assert kinds[-2:] == ["message_completed", "tool_called"]
    assert world.workshop.effects("s-model") == []
    await resume(world.stubs, session)
    assert (await harness.wait_for_turn(world.stubs, session, turn.turn_id)).state == COMPLETED
    assert len(world.workshop.effects("s-model")) == 1


async def test_a_suspension_by_another_replica_reaches_the_owner(world: World) -> None:
    session, turn = await begun(world, "worker", "hold s-other")
    await world.workshop.started("s-other")
    async with world.another() as other:
        await suspend(other, session)
        world.workshop.release("s-other")
        await until_event(other, session, "tool_returned")
        assert (await quiet(world, session))[-1] == "tool_returned"
        await resume(other, session)
        assert (await harness.wait_for_turn(other, session, turn.turn_id)).state == COMPLETED
    assert len(world.heard("hold s-other")) == 2


async def test_what_is_approved_while_suspended_runs_after_it(world: World) -> None:
    session, turn = await begun(world, "asker", "do s-approved")
    approval = await harness.wait_for_approval(world.stubs, session)
    await harness.wait_for_turn(world.stubs, session, turn.turn_id)
    await suspend(world.stubs, session)
    decided = await harness.decide(world.stubs, approval)
    assert decided.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
    assert (await quiet(world, session))[-1] == "approval_decided"
    assert world.workshop.effects("s-approved") == []
    await resume(world.stubs, session)
    assert (await harness.wait_for_turn(world.stubs, session, turn.turn_id)).state == COMPLETED
    assert len(world.workshop.effects("s-approved")) == 1


async def test_an_approval_does_not_expire_while_its_session_is_suspended(world: World) -> None:
    session, turn = await begun(world, "hurried", "do s-clock")
    approval = await harness.wait_for_approval(world.stubs, session)
    await harness.wait_for_turn(world.stubs, session, turn.turn_id)
    await suspend(world.stubs, session)
    await quiet(world, session, sweeps=10)
    request = approval_pb2.GetApprovalRequest(approval_id=approval.approval_id)
    paused = (await world.stubs.approvals.GetApproval(request)).approval
    assert paused.state == approval_pb2.APPROVAL_STATE_PENDING
    assert not paused.HasField("expire_time")
    assert (await log_of(world, session))[-1] == "session_suspended"
    await resume(world.stubs, session)
    going = (await world.stubs.approvals.GetApproval(request)).approval
    assert going.expire_time.ToDatetime() - approval.expire_time.ToDatetime() > timedelta(seconds=1)
    await until_event(world.stubs, session, "approval_expired")
    with refused("APPROVAL_EXPIRED"):
        await harness.decide(world.stubs, approval)


async def test_what_is_asked_while_suspended_has_its_whole_time_after_it(world: World) -> None:
    session, _ = await begun(world, "hurried", "slow s-asked")
    await world.until_heard("slow s-asked")
    await suspend(world.stubs, session)
    approval = await harness.wait_for_approval(world.stubs, session)
    assert not approval.HasField("expire_time")
    assert (await quiet(world, session, sweeps=10))[-1] == "approval_requested"
    await resume(world.stubs, session)
    await harness.decide(world.stubs, approval)
    await world.workshop.started("s-asked")


async def cancel(world: World, session: str, turn_id: str) -> object:
    return await world.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn_id))


async def end(world: World, session: str, _: str) -> object:
    return await world.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))


@pytest.mark.parametrize("way", [cancel, end])
async def test_a_suspended_session_s_turn_can_be_cancelled_and_the_session_ended(
    world: World, way: Callable[[World, str, str], Awaitable[object]]
) -> None:
    session, turn = await begun(world, "asker", f"do s-{way.__name__}")
    approval = await harness.wait_for_approval(world.stubs, session)
    await harness.wait_for_turn(world.stubs, session, turn.turn_id)
    await suspend(world.stubs, session)
    await way(world, session, turn.turn_id)
    assert (await harness.wait_for_turn(world.stubs, session, turn.turn_id)).state == CANCELLED
    request = approval_pb2.GetApprovalRequest(approval_id=approval.approval_id)
    found = (await world.stubs.approvals.GetApproval(request)).approval
    assert found.state == approval_pb2.APPROVAL_STATE_WITHDRAWN
    state = (await get(world, session)).state
    assert state == (SUSPENDED if way is cancel else session_pb2.SESSION_STATE_ENDED)


async def test_a_session_that_is_over_can_neither_be_suspended_nor_resumed(world: World) -> None:
    session = await harness.create_test_session(world.stubs, agent="talker")
    await end(world, session, "")
    for call in (suspend, resume):
        with refused("SESSION_NOT_ACTIVE"):
            await call(world.stubs, session)


async def test_decide_races_suspend_and_resume_and_nothing_is_lost(world: World) -> None:
    async def one(number: int) -> None:
        label = f"s-race-{number}"
        session, turn = await begun(world, "asker", f"do {label}")
        approval = await harness.wait_for_approval(world.stubs, session)
        async with asyncio.TaskGroup() as group:
            group.create_task(suspend(world.stubs, session))
            group.create_task(harness.decide(world.stubs, approval))
        await resume(world.stubs, session)
        assert (await harness.wait_for_turn(world.stubs, session, turn.turn_id)).state == COMPLETED
        assert len(world.workshop.effects(label)) == 1

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(one(number))


async def test_an_update_changes_what_its_mask_names_and_nothing_else(world: World) -> None:
    session = await harness.create_test_session(world.stubs, agent="talker")
    before = await get(world, session)
    request = session_pb2.UpdateSessionRequest(etag=before.etag)
    request.session.session_id, request.session.title = session, "Better"
    request.session.labels["team"] = "red"
    request.session.metadata.update({"ticket": "T-1"})
    request.update_mask.paths.extend(["title", "metadata"])
    changed = await world.stubs.sessions.UpdateSession(request)
    assert (changed.session.title, dict(changed.session.labels)) == ("Better", {})
    assert changed.session.metadata["ticket"] == "T-1"
    assert changed.session.etag != before.etag
    again = await world.stubs.sessions.UpdateSession(request)  # its answer may have been lost
    assert (again.session, again.sequence) == (changed.session, 0)
    request.session.title = "Worse"
    with refused("ETAG_MISMATCH"):
        await world.stubs.sessions.UpdateSession(request)
    events = await harness.all_events(world.stubs, session)
    assert [list(event.session_updated.fields) for event in events[1:]] == [["title", "metadata"]]
    for paths in ([], ["state"], ["title", "owner"]):
        del request.update_mask.paths[:]
        request.update_mask.paths.extend(paths)
        with refused("INVALID_REQUEST") as refusal:
            await world.stubs.sessions.UpdateSession(request)
        assert refusal.problem.fields == ("update_mask",)


async def test_a_watcher_sees_the_suspension_and_stays(world: World) -> None:
    session = await harness.create_test_session(world.stubs, agent="talker")
    watch = world.stubs.sessions.WatchEvents(session_pb2.WatchEventsRequest(session_id=session, follow=True))
    await suspend(world.stubs, session)
    await resume(world.stubs, session)
    seen: list[event_pb2.Event] = []
    async with asyncio.timeout(10):
        async for response in watch:
            seen.extend(response.events)
            if len(seen) == 3:
                break
    watch.cancel()
    assert harness.kinds(seen) == ["session_created", "session_suspended", "session_resumed"]
