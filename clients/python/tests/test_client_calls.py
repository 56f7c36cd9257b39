"""Single calls: what is sent, what is repeated, how long they may take, and every page of a list."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from turnkeeper_client import Client
from turnkeeper_client.channel import Config
from turnkeeper_client.errors import Aborted, ClientClosed, Details, ResourceExhausted, TransportError, Unavailable
from turnkeeper_client.overload import AGAIN, BUDGET, FIRST_TRIES, TRIES_PER_ANSWER, RetryBudget, seconds_to_try_again
from turnkeeper_client.pb.v1 import agent_pb2, approval_pb2, chat_pb2, error_pb2, event_pb2, session_pb2
from turnkeeper_client.pb.v1.message_pb2 import Message, Part
from turnkeeper_client_testing.events import completed, done, started, summary, watch_response
from turnkeeper_client_testing.server import STAY, Refuse, refuse, stage

AWAY = Refuse(status=grpc.StatusCode.UNAVAILABLE)
TURN = chat_pb2.Turn(turn_id="t1", session_id="s1")
APPROVAL = approval_pb2.Approval(approval_id="a1", arguments_hash="abc")
SESSION = session_pb2.Session(session_id="s1")


async def test_a_call_is_repeated_while_the_service_is_unavailable() -> None:
    draining = refuse(error_pb2.SESSION_ERROR_CODE_SERVER_DRAINING)
    async with stage() as on:
        on.script.answers += [AWAY, draining, chat_pb2.SendMessageResponse(turn=TURN)]
        assert await on.client.session("s1").send("Hello") == TURN
        assert len({request.request_id for request in on.script.requests}) == 1
        assert len(on.script.requests) == 3
        assert on.script.requests[0].request_id


async def test_a_call_larger_than_grpcs_own_buffer_is_repeated_too() -> None:
    async with stage() as on:
        on.script.answers += [AWAY, chat_pb2.SendMessageResponse(turn=TURN)]
        content = [Part(text="x" * 250_000), Part(text="y" * 250_000)]
        assert await on.client.session("s1").send(content) == TURN


async def test_in_a_mesh_the_sidecar_repeats() -> None:
    async with stage(config="mesh") as on:
        on.script.answers += [refuse(error_pb2.SESSION_ERROR_CODE_SERVICE_UNAVAILABLE)]
        with pytest.raises(Unavailable):
            await on.client.session("s1").send("Hello")
        assert len(on.script.requests) == 1


async def test_a_failed_turn_is_never_repeated() -> None:
    async with stage() as on:
        on.script.answers += [refuse(error_pb2.SESSION_ERROR_CODE_LLM_TIMEOUT)]
        with pytest.raises(Aborted) as raised:
            await on.client.session("s1").send("Hello")
        assert raised.value.turn_id == "t1"
        assert len(on.script.requests) == 1


async def test_a_call_on_a_lost_connection_is_repeated() -> None:
    async with stage() as on:
        on.script.answers += [STAY, chat_pb2.SendMessageResponse(turn=TURN)]
        sending = asyncio.ensure_future(on.client.session("s1").send("Hello"))
        await on.script.call_arrived()
        on.relay.cut()
        assert await sending == TURN


@pytest.mark.parametrize("config", ["direct", "mesh"])
async def test_every_call_has_a_time_limit(config: Config) -> None:
    async with stage([watch_response()], [watch_response()], config=config) as on:
        session = on.client.session("s1")
        calls: list[tuple[Callable[[], Awaitable[object]], float]] = [
            (lambda: session.send("Hello"), 130),
            (lambda: session.turn("t1"), 130),
            (lambda: on.client.approvals.wait("a1"), 130),
            (lambda: on.client.approvals.get("a1"), 10),
            (session.get, 10),
            (lambda: session.cancel("t1"), 10),
            (lambda: session.submit_tool_result("c1", "1"), 10),
            (lambda: on.client.agents.get("a"), 10),
        ]
        on.script.answers += [
            chat_pb2.SendMessageResponse(),
            chat_pb2.GetTurnResponse(),
            approval_pb2.WaitApprovalResponse(),
            approval_pb2.GetApprovalResponse(),
            session_pb2.GetSessionResponse(),
            chat_pb2.CancelTurnResponse(),
            chat_pb2.SubmitToolResultResponse(),
            agent_pb2.GetAgentResponse(),
        ]
        for call, _ in calls:
            await call()
        async for _ in session.follow():
            pass
        async for _ in session.stream("Hello"):
            pass
        limits = [*(limit for _, limit in calls), 900, 900]
        assert on.script.deadlines == [pytest.approx(limit, abs=3) for limit in limits]


async def test_an_unhealthy_replica_gets_no_call() -> None:
    health = health_aio.HealthServicer()
    async with stage(health=health) as on:
        await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(TransportError):
            await on.client.session("s1").get()
        assert on.script.requests == []
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        on.script.answers += [session_pb2.GetSessionResponse(session=SESSION)]
        assert await on.client.session("s1").get() == SESSION


async def test_a_closed_client_raises_an_error() -> None:
    async with Client("127.0.0.1:1") as client:
        pass
    with pytest.raises(ClientClosed):
        await client.session("s1").get()


async def test_a_session_is_forked_and_taken_back_at_a_checkpoint_at_an_event_or_at_its_end() -> None:
    async with stage() as on:
        place = session_pb2.Checkpoint(checkpoint_id="tool_call-7", sequence=7)
        forked = session_pb2.ForkSessionResponse(session=session_pb2.Session(session_id="s2"))
        restored = session_pb2.RestoreCheckpointResponse(session=SESSION)
        on.script.answers += [session_pb2.ListCheckpointsResponse(checkpoints=[place]), *[forked] * 3, *[restored] * 2]
        session = on.client.session("s1")
        assert [checkpoint async for checkpoint in session.checkpoints()] == [place]
        for at in ("tool_call-7", 7, None):
            assert (await session.fork(at, new_session_id="s2")).id == "s2"
        for at in ("tool_call-7", 7):
            assert await session.restore(at) == SESSION
        _, *forks, by_name, by_number = on.script.requests
        assert [fork.WhichOneof("at") for fork in forks] == ["checkpoint_id", "sequence", None]
        assert len({fork.request_id for fork in forks}) == 3
        assert {fork.new_session_id for fork in forks} == {"s2"}
        assert (by_name.checkpoint_id, by_number.sequence) == ("tool_call-7", 7)


async def test_closing_the_client_ends_a_call_with_an_error() -> None:
    async with stage() as on:
        on.script.answers += [STAY]
        sending = asyncio.ensure_future(on.client.session("s1").send("Hello"))
        await on.script.call_arrived()
        await on.client.close()
        with pytest.raises(TransportError):
            await sending


async def test_creating_a_session() -> None:
    async with stage() as on:
        on.script.answers += [session_pb2.CreateSessionResponse(session=SESSION)] * 2
        session = await on.client.sessions.create("helper", labels={"team": "a"}, metadata={"page": 3})
        assert session.id == "s1"
        await on.client.sessions.create("helper", session_id="s1", title="Ours")
        generated, named = on.script.requests
        assert generated.request_id
        assert generated.agent == "helper"
        assert generated.labels == {"team": "a"}
        assert generated.metadata["page"] == 3
        # A named session is the same by its name and body: a new id in the body would make it another.
        assert (named.session_id, named.request_id, named.title) == ("s1", "", "Ours")


async def test_lists_give_every_page() -> None:
    async with stage() as on:
        client, session = on.client, on.client.session("s1")
        on.script.answers += [
            session_pb2.ListSessionsResponse(sessions=[SESSION], next_page_token="p2"),
            session_pb2.ListSessionsResponse(sessions=[session_pb2.Session(session_id="s2")]),
            chat_pb2.ListTurnsResponse(turns=[TURN]),
            session_pb2.ListMessagesResponse(messages=[Message(message_id="m1")]),
            approval_pb2.ListApprovalsResponse(approvals=[APPROVAL]),
            agent_pb2.ListAgentsResponse(agents=[agent_pb2.Agent(name="helper")]),
            session_pb2.ListEventsResponse(events=[started(1)], cursor="c1", more=True),
            session_pb2.ListEventsResponse(events=[completed(2, "x"), done(3)], cursor="c3"),
        ]
        assert [item.session_id async for item in client.sessions.list(agent="helper")] == ["s1", "s2"]
        assert [request.page_token for request in on.script.requests] == ["", "p2"]
        assert {request.agent for request in on.script.requests} == {"helper"}
        assert [turn async for turn in session.turns(states=[chat_pb2.TURN_STATE_FAILED])] == [TURN]
        assert [item.message_id async for item in session.messages(newest_first=True)] == ["m1"]
        assert on.script.requests[-1].order_by == "sequence desc"
        pending = client.approvals.list(states=[approval_pb2.APPROVAL_STATE_PENDING])
        assert [approval async for approval in pending] == [APPROVAL]
        assert [agent.name async for agent in client.agents.list()] == ["helper"]
        assert summary([event async for event in session.events(after=0)]) == [1, 2, 3]
        assert on.script.requests[-1].after == "c1"


async def test_a_decision_names_the_arguments_that_were_shown() -> None:
    async with stage() as on:
        on.script.answers += [approval_pb2.DecideApprovalResponse(approval=APPROVAL)] * 2
        await on.client.approvals.approve(APPROVAL)
        await on.client.approvals.reject(APPROVAL, reason="no")
        approve, reject = on.script.requests
        assert (approve.decision, approve.arguments_hash) == (event_pb2.APPROVAL_DECISION_APPROVE, "abc")
        assert (reject.decision, reject.arguments_hash) == (event_pb2.APPROVAL_DECISION_REJECT, "abc")
        assert reject.reason == "no"


async def test_an_edit_names_the_arguments_shown_and_those_to_run() -> None:
    async with stage() as on:
        on.script.answers += [approval_pb2.DecideApprovalResponse(approval=APPROVAL)]
        assert await on.client.approvals.approve_edited(APPROVAL, '{"a":1}') == APPROVAL
        (request,) = on.script.requests
        assert (request.decision, request.arguments_hash) == (event_pb2.APPROVAL_DECISION_APPROVE, "abc")
        assert request.edited_arguments_json == '{"a":1}'


async def test_the_answers_about_an_unknown_outcome() -> None:
    async with stage() as on:
        on.script.answers += [approval_pb2.DecideApprovalResponse(approval=APPROVAL)] * 3
        await on.client.approvals.retry(APPROVAL)
        await on.client.approvals.mark_done(APPROVAL, result_json="{}")
        await on.client.approvals.give_up(APPROVAL, reason="gone")
        assert {request.arguments_hash for request in on.script.requests} == {"abc"}
        assert [(request.decision, request.result_json, request.reason) for request in on.script.requests] == [
            (event_pb2.APPROVAL_DECISION_RETRY, "", ""),
            (event_pb2.APPROVAL_DECISION_MARK_DONE, "{}", ""),
            (event_pb2.APPROVAL_DECISION_GIVE_UP, "", "gone"),
        ]


async def test_authority_is_lent_listed_and_taken_back() -> None:
    lent = approval_pb2.ApprovalDelegation(person="eve", delegate="sue")
    until = datetime(2026, 1, 2, 12, tzinfo=UTC)
    async with stage() as on:
        on.script.answers += [
            approval_pb2.DelegateApprovalsResponse(delegation=lent),
            approval_pb2.ListApprovalDelegationsResponse(delegations=[lent], next_page_token="2"),
            approval_pb2.ListApprovalDelegationsResponse(delegations=[lent]),
            approval_pb2.RevokeApprovalDelegationResponse(revoked=True),
        ]
        approvals = on.client.approvals
        assert await approvals.delegate("sue", until=until) == lent
        assert [delegation async for delegation in approvals.delegations("sue")] == [lent, lent]
        assert await approvals.revoke_delegation("sue", person="eve")
        with pytest.raises(ValueError, match="until needs a time zone"):
            await approvals.delegate("sue", until=datetime(2026, 1, 2))  # noqa: DTZ001 - what is refused
        first, listed, page, last = on.script.requests
        assert (first.principal, first.until.ToDatetime(tzinfo=UTC)) == ("sue", until)
        assert (listed.principal, page.page_token) == ("sue", "2")
        assert (last.principal, last.person) == ("sue", "eve")


async def test_turns_and_ends() -> None:
    async with stage() as on:
        session = on.client.session("s1")
        on.script.answers += [
            chat_pb2.GetTurnResponse(turn=TURN),
            chat_pb2.RetryTurnResponse(turn=TURN),
            session_pb2.EndSessionResponse(session=SESSION),
            session_pb2.GetSessionResponse(session=SESSION),
        ]
        assert await session.turn("t1", wait=timedelta(seconds=1.5)) == TURN
        assert await session.retry("t1") == TURN
        assert await session.end("bye") == SESSION
        assert await on.client.sessions.get("s1") == SESSION
        get, retry, end, _ = on.script.requests
        assert get.wait.ToTimedelta() == timedelta(seconds=1.5)
        assert retry.request_id
        assert end.reason == "bye"


async def test_the_raw_stubs_are_there() -> None:
    async with stage() as on:
        on.script.answers += [chat_pb2.GetTurnResponse(turn=TURN)]
        response = await on.client.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id="s1", turn_id="t1"))
        assert response.turn == TURN


async def test_a_session_is_suspended_resumed_changed_deleted_and_undeleted() -> None:
    async with stage() as on:
        on.script.answers += [
            session_pb2.SuspendSessionResponse(session=SESSION),
            session_pb2.ResumeSessionResponse(session=SESSION),
            session_pb2.UpdateSessionResponse(session=SESSION),
            session_pb2.DeleteSessionResponse(session=SESSION),
            session_pb2.UndeleteSessionResponse(session=SESSION),
        ]
        session, sessions = on.client.session("s1"), on.client.sessions
        assert await session.suspend() == await session.resume() == SESSION
        assert await sessions.update("s1", title="", metadata={"a": 1}, etag="e") == SESSION
        assert await sessions.delete("s1", etag="e") == await sessions.undelete("s1") == SESSION
        update = on.script.requests[2]
        assert (update.session.session_id, update.session.metadata["a"], update.etag) == ("s1", 1, "e")
        assert list(update.update_mask.paths) == ["title", "metadata"]
        assert on.script.requests[3].etag == "e"


def overloaded(
    retry_after: float, code: error_pb2.SessionErrorCode.ValueType = error_pb2.SESSION_ERROR_CODE_OVERLOADED
) -> Refuse:
    return refuse(code, retry_after=timedelta(seconds=retry_after))


@pytest.mark.parametrize("code", sorted(AGAIN))
async def test_a_call_that_an_overloaded_replica_refused_is_made_again_after_the_given_time(
    code: error_pb2.SessionErrorCode.ValueType,
) -> None:
    async with stage(config="mesh") as on:
        on.script.answers += [overloaded(0.3, code), chat_pb2.SendMessageResponse(turn=TURN)]
        began = time.monotonic()
        assert await on.client.session("s1").send("Hello") == TURN
        assert time.monotonic() - began >= 0.3
        assert len({request.request_id for request in on.script.requests}) == 1


async def test_it_is_not_made_again_after_the_callers_deadline() -> None:
    async with stage(config="mesh") as on:
        on.script.answers += [overloaded(60)]
        with pytest.raises(ResourceExhausted) as raised:
            await on.client.session("s1").get()
        assert raised.value.retry_after == timedelta(seconds=60)
        assert len(on.script.requests) == 1


async def test_answered_calls_are_what_allows_further_ones() -> None:
    async with stage(config="mesh") as on:
        session = on.client.session("s1")
        while BUDGET.take():
            pass
        on.script.answers += [overloaded(0.0)]
        with pytest.raises(ResourceExhausted):
            await session.get()
        on.script.answers += [session_pb2.GetSessionResponse(session=SESSION)] * round(1 / TRIES_PER_ANSWER)
        for _ in range(round(1 / TRIES_PER_ANSWER)):
            await session.get()
        on.script.answers += [overloaded(0.0), session_pb2.GetSessionResponse(session=SESSION)]
        assert await session.get() == SESSION
    for _ in range(round(FIRST_TRIES / TRIES_PER_ANSWER)):
        BUDGET.answered()


async def test_grpcs_own_retries_of_direct_come_back_when_they_are_asked_to() -> None:
    async with stage() as on:
        refusal = Refuse(status=grpc.StatusCode.RESOURCE_EXHAUSTED, pushback="700")
        on.script.answers += [refusal, chat_pb2.SendMessageResponse(turn=TURN)]
        began = time.monotonic()
        request = chat_pb2.SendMessageRequest(session_id="s1", request_id="r1")
        assert (await on.client.stubs.chat.SendMessage(request)).turn == TURN
        assert time.monotonic() - began >= 0.7


async def test_grpcs_own_retries_of_direct_leave_alone_what_waiting_does_not_help() -> None:
    async with stage() as on:
        limited = refuse(error_pb2.SESSION_ERROR_CODE_LLM_RATE_LIMIT)
        on.script.answers += [replace(limited, pushback="-1")]
        with pytest.raises(ResourceExhausted):
            await on.client.session("s1").send("Hello")
        assert len(on.script.requests) == 1


def test_a_service_that_is_overloaded_for_long_gets_few_further_calls() -> None:
    error = ResourceExhausted(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "",
        Details(code=error_pb2.SESSION_ERROR_CODE_OVERLOADED, retry_after=timedelta()),
    )
    budget = RetryBudget()
    deadline = time.monotonic() + 60
    for _ in range(int(FIRST_TRIES)):
        seconds_to_try_again(error, deadline=deadline, budget=budget)
    with pytest.raises(ResourceExhausted):
        seconds_to_try_again(error, deadline=deadline, budget=budget)
    for _ in range(int(1 / TRIES_PER_ANSWER)):
        budget.answered()
    seconds_to_try_again(error, deadline=deadline, budget=budget)
    with pytest.raises(ResourceExhausted):
        seconds_to_try_again(error, deadline=deadline, budget=budget)
