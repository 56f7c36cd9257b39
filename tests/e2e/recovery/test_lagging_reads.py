"""A refusal never rests on a reading that lags behind what was acknowledged.

One server's reads show the database as it was; then something is acknowledged by another server. The first one either
finds it, or refuses for certain.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.lagging import (
    COMPLETED,
    LOOK,
    SCRIPT,
    SETTINGS,
    Lagging,
    approval_of,
    behind,
    first_of_watch,
    lagging,
    sent,
    session_of,
)
from tests.harness import Stubs
from tests.status_details import details_of
from turnkeeper.pb.v1 import approval_pb2, chat_pb2, session_pb2

__all__ = ["SCRIPT", "SETTINGS", "behind", "lagging"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

# --- what is not there yet -----------------------------------------------------------------------------------------

Call = Callable[[Stubs, str], Awaitable[Any]]


def _resource(session: str) -> session_pb2.UpdateSessionRequest:
    return session_pb2.UpdateSessionRequest(
        session=session_pb2.Session(session_id=session, title="new"), update_mask=FieldMask(paths=["title"])
    )


OF_A_NEW_SESSION: Mapping[str, Call] = {
    "GetSession": lambda s, k: s.sessions.GetSession(session_pb2.GetSessionRequest(session_id=k)),
    "UpdateSession": lambda s, k: s.sessions.UpdateSession(_resource(k)),
    "SuspendSession": lambda s, k: s.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=k)),
    "EndSession": lambda s, k: s.sessions.EndSession(session_pb2.EndSessionRequest(session_id=k)),
    "DeleteSession": lambda s, k: s.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=k)),
    "ListEvents": lambda s, k: s.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=k)),
    "ListMessages": lambda s, k: s.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=k)),
    "ListCheckpoints": lambda s, k: s.sessions.ListCheckpoints(session_pb2.ListCheckpointsRequest(session_id=k)),
    "ListTurns": lambda s, k: s.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=k)),
    "WatchEvents": first_of_watch,
    "RestoreCheckpoint": lambda s, k: s.sessions.RestoreCheckpoint(
        session_pb2.RestoreCheckpointRequest(session_id=k, sequence=1)
    ),
    "ForkSession": lambda s, k: s.sessions.ForkSession(
        session_pb2.ForkSessionRequest(session_id=k, request_id=harness.new_request_id(), sequence=1)
    ),
    "SendMessage": lambda s, k: sent(s, k, "hello"),
}


@pytest.mark.parametrize("name", OF_A_NEW_SESSION)
async def test_a_new_session_is_found_by_every_call(env: Environment, lagging: Lagging, name: str) -> None:
    await lagging.store.lag()
    session = await session_of(env.stubs)
    await OF_A_NEW_SESSION[name](lagging.stubs, session)
    assert lagging.store.certain_reads


OfTurn = Callable[[Stubs, str, str], Awaitable[Any]]
OF_A_NEW_TURN: Mapping[str, OfTurn] = {
    "GetTurn": lambda s, k, t: s.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=k, turn_id=t)),
    "CancelTurn": lambda s, k, t: s.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=k, turn_id=t)),
    "ListEvents": lambda s, k, t: s.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=k, turn_id=t)),
    "WatchEvents": lambda s, k, t: first_of_watch(s, k, turn_id=t),
}


@pytest.mark.parametrize("name", OF_A_NEW_TURN)
async def test_a_new_turn_is_found_by_every_call(env: Environment, lagging: Lagging, name: str) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    turn = await sent(env.stubs, session, "hello")
    await OF_A_NEW_TURN[name](lagging.stubs, session, turn.turn_id)
    assert lagging.store.certain_reads


async def test_a_failed_turn_is_retried(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs, "hasty")
    await lagging.store.lag()
    turn = await sent_and_failed(env.stubs, session)
    retry = chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn, request_id=harness.new_request_id())
    assert (await lagging.stubs.chat.RetryTurn(retry)).turn.turn_id == turn


async def sent_and_failed(stubs: Stubs, session: str) -> str:
    """Sends a message whose turn fails. Returns the turn's id."""
    with pytest.raises(aio.AioRpcError) as raised:
        await sent(stubs, session, "break")
    return details_of(raised.value).detail.turn_id


OF_A_NEW_APPROVAL: Mapping[str, Callable[[Stubs, approval_pb2.Approval], Awaitable[Any]]] = {
    "GetApproval": lambda s, a: s.approvals.GetApproval(
        approval_pb2.GetApprovalRequest(approval_id=a.approval_id),
    ),
    "WaitApproval": lambda s, a: s.approvals.WaitApproval(
        approval_pb2.WaitApprovalRequest(approval_id=a.approval_id, wait=Duration())
    ),
    "DecideApproval": harness.decide,
}


@pytest.mark.parametrize("name", OF_A_NEW_APPROVAL)
async def test_a_new_approval_is_found_by_every_call(env: Environment, lagging: Lagging, name: str) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    turn = await sent(env.stubs, session, f"do {session}")
    approval = await approval_of(env.stubs, turn)
    answered = await OF_A_NEW_APPROVAL[name](lagging.stubs, approval)
    assert lagging.store.certain_reads
    await lagging.store.catch_up()  # it may be the one that runs the turn
    if name == "DecideApproval":
        assert answered.approval.state == approval_pb2.APPROVAL_STATE_APPROVED
        assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == COMPLETED


async def test_a_call_that_the_client_was_requested_to_run_takes_its_result(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    turn = await sent(env.stubs, session, f"look {session}", client_tools=[LOOK])
    call = turn.pending[0].tool_call_id
    submitted = chat_pb2.SubmitToolResultRequest(session_id=session, tool_call_id=call, result_json='"seen"')
    assert (await lagging.stubs.chat.SubmitToolResult(submitted)).sequence
    await lagging.store.catch_up()  # it may be the one that runs the turn
    assert (await harness.wait_for_turn(env.stubs, session, turn.turn_id)).state == COMPLETED


def _restored(stubs: Stubs, session: str, **at: Any) -> Awaitable[Any]:
    return stubs.sessions.RestoreCheckpoint(session_pb2.RestoreCheckpointRequest(session_id=session, **at))


def _forked(stubs: Stubs, session: str, **at: Any) -> Awaitable[Any]:
    return stubs.sessions.ForkSession(
        session_pb2.ForkSessionRequest(session_id=session, request_id=harness.new_request_id(), **at)
    )


@pytest.mark.parametrize("field", ["checkpoint_id", "sequence"])
@pytest.mark.parametrize("call", [_restored, _forked])
async def test_a_new_checkpoint_is_found(
    env: Environment, lagging: Lagging, call: Callable[..., Awaitable[Any]], field: str
) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    await sent(env.stubs, session, "hello")
    listed = await env.stubs.sessions.ListCheckpoints(session_pb2.ListCheckpointsRequest(session_id=session))
    await call(lagging.stubs, session, **{field: getattr(listed.checkpoints[-1], field)})
    assert lagging.store.certain_reads


async def test_the_repeat_of_a_message_gets_the_first_ones_turn(env: Environment, lagging: Lagging) -> None:
    """Its own turn is under way: without the record the repeat would be refused as busy."""
    session = await session_of(env.stubs, "worker")
    await lagging.store.lag()
    label = f"repeat-{session}"
    turn = await sent(env.stubs, session, f"hold {label}", request_id=label, wait=0)
    assert (await sent(lagging.stubs, session, f"hold {label}", request_id=label, wait=0)).turn_id == turn.turn_id
    await env.tool_control.started(label)
    env.tool_control.release(label)


# --- what was otherwise --------------------------------------------------------------------------------------------


async def test_a_turn_that_ended_is_not_in_the_way(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    turn = await sent(env.stubs, session, f"do {session}")
    await lagging.store.lag()
    await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
    await sent(lagging.stubs, session, "hello", wait=0)


async def test_a_resumed_session_takes_messages(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    await env.stubs.sessions.SuspendSession(session_pb2.SuspendSessionRequest(session_id=session))
    await lagging.store.lag()
    await env.stubs.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=session))
    await sent(lagging.stubs, session, "hello", wait=0)


async def test_an_undeleted_session_is_found(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    await env.stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session))
    await lagging.store.lag()
    await env.stubs.sessions.UndeleteSession(session_pb2.UndeleteSessionRequest(session_id=session))
    await lagging.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session))
    await sent(lagging.stubs, session, "hello", wait=0)


async def test_the_newest_etag_fits(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    await lagging.store.lag()
    changed = await env.stubs.sessions.UpdateSession(_resource(session))
    again = _resource(session)
    again.etag = changed.session.etag
    await lagging.stubs.sessions.UpdateSession(again)


# --- what is answered after a decision -----------------------------------------------------------------------------

ONE_DOCUMENT = frozenset({"read_one"})
SESSIONS = frozenset({"session"})
CHANGES: Mapping[str, Call] = {
    **{name: OF_A_NEW_SESSION[name] for name in ("UpdateSession", "SuspendSession", "EndSession", "DeleteSession")},
    "ResumeSession": lambda s, k: s.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=k)),
    "UndeleteSession": lambda s, k: s.sessions.UndeleteSession(session_pb2.UndeleteSessionRequest(session_id=k)),
    "RestoreCheckpoint": OF_A_NEW_SESSION["RestoreCheckpoint"],
}
UNDOES = {"ResumeSession": "SuspendSession", "UndeleteSession": "DeleteSession"}


@pytest.mark.parametrize("name", CHANGES)
async def test_the_answer_to_a_change_shows_it(env: Environment, lagging: Lagging, name: str) -> None:
    """Also if another server made the same change before, so that this one only finds it."""
    for changed_before in (False, True):
        session = await session_of(env.stubs)
        if name in UNDOES:
            await CHANGES[UNDOES[name]](env.stubs, session)
        await lagging.store.lag(only=SESSIONS)
        changed = (await CHANGES[name](env.stubs, session)).session if changed_before else None
        response = await CHANGES[name](lagging.stubs, session)
        assert response.session.last_sequence >= response.sequence
        assert changed is None or response.session.last_sequence >= changed.last_sequence
        await lagging.store.catch_up()


async def test_the_answer_to_a_retry_shows_it(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs, "hasty")
    turn = await sent_and_failed(env.stubs, session)
    await lagging.store.lag(only=ONE_DOCUMENT | {"last_seqs"})
    request = chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn, request_id=harness.new_request_id())
    shown = (await lagging.stubs.chat.RetryTurn(request)).turn
    assert shown.state != chat_pb2.TURN_STATE_FAILED or shown.attempt == 2, "it may have failed once more by now"


async def test_no_decision_is_acknowledged_that_another_one_came_before(env: Environment, lagging: Lagging) -> None:
    """The decision finds that it is too late; the reading after it does not show that yet."""
    turn = await sent(env.stubs, await session_of(env.stubs), "do it")
    approval = await approval_of(env.stubs, turn)
    await lagging.store.lag(only=ONE_DOCUMENT)
    await harness.decide(env.stubs, approval)
    with pytest.raises(aio.AioRpcError) as refused:
        await harness.decide(lagging.stubs, approval, approve=False)
    assert details_of(refused.value).reason == "APPROVAL_ALREADY_PROCESSED"


async def test_the_answer_to_a_result_has_its_event(env: Environment, lagging: Lagging) -> None:
    session = await session_of(env.stubs)
    turn = await sent(env.stubs, session, "look there", client_tools=[LOOK])
    await lagging.store.lag(only=ONE_DOCUMENT)
    submitted = chat_pb2.SubmitToolResultRequest(
        session_id=session, tool_call_id=turn.pending[0].tool_call_id, result_json='"seen"'
    )
    assert (await lagging.stubs.chat.SubmitToolResult(submitted)).sequence
