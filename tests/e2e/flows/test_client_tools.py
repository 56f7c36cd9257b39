"""Tools that the client runs: offered, called, waited for, and answered by SubmitToolResult."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from pymongo import AsyncMongoClient

from tests import harness
from tests.e2e.support.environment import Environment, transcript
from tests.e2e.support.faults import swept
from tests.e2e.support.stream_reader import Reader, stream
from tests.processes import until_call
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^mine (?P<label>[\w-]+)'
tool_calls = [{ name = "look", arguments = { at = "{label}" } }]

[[reply]]
match = '^wrong (?P<label>[\w-]+)'
tool_calls = [{ name = "look", arguments = { at = 7 } }]

[[reply]]
match = '^pair (?P<label>[\w-]+)'
tool_calls = [{ name = "look", arguments = { at = "left" } }, { name = "look", arguments = { at = "right" } }]

[[reply]]
match = '^mixed (?P<label>[\w-]+)'
tool_calls = [
    { name = "look", arguments = { at = "{label}" } },
    { name = "act", arguments = { label = "{label}-act" } },
    { name = "hold_reading", arguments = { label = "{label}-read" } },
]

[[reply]]
text = "Told: {tool_result}"
"""
LOOK = chat_pb2.ClientTool(
    name="look",
    description="Look at a place.",
    schema_json='{"type":"object","properties":{"at":{"type":"string"}},"required":["at"]}',
)
PLAIN = LOOK.schema_json
AWAITING = chat_pb2.TURN_STATE_AWAITING_TOOL
COMPLETED = chat_pb2.TURN_STATE_COMPLETED


async def waiting(env: Environment, message: str, *, agent: str = "asker", **fields: Any) -> tuple[str, chat_pb2.Turn]:
    """Sends a message whose turn waits for the client. Returns session and turn."""
    session = await harness.create_test_session(env.stubs, agent=agent)
    tools = fields.pop("client_tools", [LOOK])
    return session, await harness.send_message_to_session(env.stubs, session, message, client_tools=tools, **fields)


async def submit(
    stubs: harness.Stubs, session: str, call: str, result: object = "seen", *, failed: bool = False
) -> chat_pb2.SubmitToolResultResponse:
    return await stubs.chat.SubmitToolResult(
        chat_pb2.SubmitToolResultRequest(
            session_id=session, tool_call_id=call, result_json=json.dumps(result), failed=failed
        )
    )


async def head_of(env: Environment, session: str) -> dict[str, Any]:
    async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
        head = await client[env.database]["heads"].find_one({"tenant": harness.TENANT, "session_id": session})
    assert head is not None
    return head


def returned(events: list[event_pb2.Event]) -> list[event_pb2.ToolReturned]:
    return [event.tool_returned for event in events if event.HasField("tool_returned")]


class TestClientTools:
    async def test_the_client_runs_it_and_the_turn_goes_on_with_its_result(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine answered")
        assert turn.state == AWAITING
        (item,) = turn.pending
        assert (item.tool, item.approval_id) == ("look", "")
        events = await harness.all_events(env.stubs, session)
        assert harness.kinds(events)[-2:] == ["tool_called", "client_tool_requested"]
        assert (events[-2].tool_called.action, events[-2].tool_called.tool_class) == (
            event_pb2.POLICY_ACTION_AUTO,
            event_pb2.TOOL_CLASS_IRREVERSIBLE,
        )
        request = events[-1].client_tool_requested
        assert (request.tool_call_id, request.arguments_json) == (item.tool_call_id, '{"at":"answered"}')
        response = await submit(env.stubs, session, item.tool_call_id, "a cat")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: a cat"
        events = await harness.all_events(env.stubs, session)
        assert events[response.sequence - 1].tool_returned.tool_call_id == item.tool_call_id
        (result,) = returned(events)
        assert (result.outcome, result.result_json, result.started) == (event_pb2.TOOL_OUTCOME_OK, '"a cat"', True)
        assert transcript(env.model_requests("mine answered")[1])[-1] == "tool: a cat"

    async def test_it_is_offered_beside_the_agents_own_tools_and_only_in_its_turn(self, env: Environment) -> None:
        session, turn = await waiting(env, "hello offered", agent="plain")
        assert turn.state == COMPLETED
        await harness.send_message_to_session(env.stubs, session, "hello again")
        names = [
            [tool["function"]["name"] for tool in json.loads(exchange.body).get("tools", [])]
            for exchange in env.model.exchanges.all()
            if "hello offered" in exchange.body.decode()
        ]
        assert names == [["add", "write_note", "look"], ["add", "write_note"]]

    async def test_a_failure_reaches_the_model(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine failed")
        await submit(env.stubs, session, turn.pending[0].tool_call_id, {"error": "it is dark"}, failed=True)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert "it is dark" in harness.answer_of(ended)
        (result,) = returned(await harness.all_events(env.stubs, session))
        assert result.outcome == event_pb2.TOOL_OUTCOME_FAILED

    async def test_arguments_that_do_not_fit_go_to_the_model_and_not_to_the_client(self, env: Environment) -> None:
        session, turn = await waiting(env, "wrong arguments")
        assert turn.state == COMPLETED
        events = await harness.all_events(env.stubs, session)
        assert "client_tool_requested" not in harness.kinds(events)
        assert returned(events)[0].outcome == event_pb2.TOOL_OUTCOME_INVALID_ARGUMENTS

    async def test_a_turn_that_waits_for_its_client_holds_nothing(self, env: Environment) -> None:
        session, _ = await waiting(env, "mine unheld")
        head = await head_of(env, session)
        assert (head["owner"], head["lease_until"], head["wake_at"]) == ("", None, None)

    async def test_the_last_of_two_results_lets_the_turn_go_on(self, env: Environment) -> None:
        session, turn = await waiting(env, "pair parted")
        left, right = (item.tool_call_id for item in turn.pending)
        half = (await submit(env.stubs, session, right, "r")).turn
        assert half.state == AWAITING
        assert [item.tool_call_id for item in half.pending] == [left]
        await submit(env.stubs, session, left, "l")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == COMPLETED
        requests = env.model_requests("pair parted")
        assert [line for line in transcript(requests[1]) if line.startswith("tool")] == ["tool: r", "tool: l"]
        assert len(requests) == 2

    async def test_two_results_at_once_on_two_servers_lose_no_wake_up(self, env: Environment) -> None:
        async with env.another() as other:
            for number in range(8):
                session, turn = await waiting(env, f"pair rush{number}")
                left, right = (item.tool_call_id for item in turn.pending)
                await asyncio.gather(submit(env.stubs, session, left), submit(other, session, right))
                ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
                assert ended.state == COMPLETED

    async def test_beside_an_approval_the_decision_is_shown_first_and_each_answer_counts(
        self, env: Environment
    ) -> None:
        session, turn = await waiting(env, "mixed both", wait=0)
        await env.tool_control.started("both-read")
        approval = await harness.wait_for_approval(env.stubs, session)
        env.tool_control.release("both-read")
        turn = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert turn.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL
        assert [(item.tool, bool(item.approval_id)) for item in turn.pending] == [("look", False), ("act", True)]
        await harness.decide(env.stubs, approval, approve=False)
        turn = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert turn.state == AWAITING
        assert [item.tool for item in turn.pending] == ["look"]
        await submit(env.stubs, session, turn.pending[0].tool_call_id)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == COMPLETED
        assert len(env.model_requests("mixed both")) == 2

    async def test_answers_that_come_while_a_sibling_runs_reach_the_model(self, env: Environment) -> None:
        session, turn = await waiting(env, "mixed early", wait=0)
        await env.tool_control.started("early-read")
        approval = await harness.wait_for_approval(env.stubs, session)
        events = await harness.all_events(env.stubs, session)
        call = next(event.client_tool_requested for event in events if event.HasField("client_tool_requested"))
        response = await submit(env.stubs, session, call.tool_call_id, "early bird")
        assert response.turn.state == chat_pb2.TURN_STATE_RUNNING
        await harness.decide(env.stubs, approval, approve=False)
        env.tool_control.release("early-read")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert ended.state == COMPLETED
        results = [line for line in transcript(env.model_requests("mixed early")[1]) if line.startswith("tool")]
        assert len(results) == 3
        assert "tool: early bird" in results

    async def test_when_the_first_server_is_gone_another_goes_on(self, env: Environment) -> None:
        async with env.another() as first:
            session = await harness.create_test_session(first, agent="asker")
            turn = await harness.send_message_to_session(first, session, "mine moved", client_tools=[LOOK])
            assert turn.state == AWAITING
        await submit(env.stubs, session, turn.pending[0].tool_call_id, "still there")
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert harness.answer_of(ended) == "Told: still there"

    async def test_a_stream_ends_at_a_client_s_tool_and_goes_on_when_it_is_opened_again(self, env: Environment) -> None:
        session, reader = await harness.create_test_session(env.stubs, agent="asker"), Reader(whole=False)
        wish: dict[str, Any] = {"request_id": harness.new_request_id(), "client_tools": [LOOK]}
        async for _ in stream(env.stubs, session, "mine streamed", reader, **wish):
            pass
        assert reader.turn is not None
        assert (reader.turn.state, reader.kinds[-1]) == (AWAITING, "client_tool_requested")
        await submit(env.stubs, session, reader.turn.pending[0].tool_call_id)
        async for _ in stream(env.stubs, session, "mine streamed", reader, **wish):
            pass
        assert reader.turn.state == COMPLETED
        assert reader.kinds[-3:] == ["tool_returned", "message_completed", "turn_completed"]

    async def test_a_call_that_a_cancellation_met_is_closed_and_takes_no_result(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine cancelled")
        await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        with refused("TOOL_CALL_NOT_PENDING") as refusal:
            await submit(env.stubs, session, turn.pending[0].tool_call_id)
        assert refusal.details.status == grpc.StatusCode.FAILED_PRECONDITION
        (result,) = returned(await harness.all_events(env.stubs, session))
        assert (result.outcome, result.started) == (event_pb2.TOOL_OUTCOME_CANCELLED, True)
        assert "did not run" not in result.result_json
        again = await harness.send_message_to_session(env.stubs, session, "what now?")
        assert again.state == COMPLETED

    async def test_ending_the_session_closes_the_call(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine ended")
        await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        with refused("TOOL_CALL_NOT_PENDING"):
            await submit(env.stubs, session, turn.pending[0].tool_call_id)

    async def test_a_turn_that_waits_for_a_client_that_was_answered_is_requeued(self, env: Environment) -> None:
        """No part of the service creates such a turn; the sweeper repairs it all the same."""
        session, turn = await waiting(env, "mine stuck")
        call = turn.pending[0].tool_call_id
        head = await head_of(env, session)
        await swept(env.mongo_uri, env.database)  # a declared wait is left alone
        assert (await head_of(env, session))["revision"] == head["revision"]
        async with AsyncMongoClient[dict[str, Any]](env.mongo_uri) as client:
            calls = client[env.database]["tool_calls"]
            its, changed = {"tenant": harness.TENANT, "id": call, "session_id": session}, {"$set": {"state": "READY"}}
            assert (await calls.update_one(its, changed)).matched_count == 1

            async def claimed() -> bool:
                return bool((await head_of(env, session))["fence"] > head["fence"])

            await until_call(claimed)
            await env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
            await calls.update_one(its, {"$set": {"started": True}})


class TestRepeats:
    async def test_the_same_result_again_is_the_first_effect_and_another_is_refused(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine twice")
        call = turn.pending[0].tool_call_id
        first = await submit(env.stubs, session, call, {"a": 1, "b": 2})
        again = await submit(env.stubs, session, call, {"b": 2, "a": 1})
        assert (again.sequence, again.cursor) == (first.sequence, first.cursor)
        ended = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        late = await submit(env.stubs, session, call, {"a": 1, "b": 2})
        assert (late.sequence, late.turn.state) == (first.sequence, ended.state)
        for other, failed in (({"a": 1}, False), ({"a": 1, "b": 2}, True)):
            with refused("TOOL_CALL_NOT_PENDING") as refusal:
                await submit(env.stubs, session, call, other, failed=failed)
            assert refusal.details.metadata["outcome"] == "OK"
        assert len(returned(await harness.all_events(env.stubs, session))) == 1

    async def test_five_at_once_on_two_servers_have_one_effect(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine five")
        call = turn.pending[0].tool_call_id
        async with env.another() as other:
            stubs = [env.stubs, other, env.stubs, other, env.stubs]
            answers = await asyncio.gather(*(submit(stub, session, call, "once") for stub in stubs))
        assert len({answer.sequence for answer in answers}) == 1
        await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        assert len(returned(await harness.all_events(env.stubs, session))) == 1

    async def test_client_tools_belong_to_the_request(self, env: Environment) -> None:
        session, request_id = await harness.create_test_session(env.stubs, agent="asker"), harness.new_request_id()
        wish: dict[str, Any] = {"request_id": request_id, "client_tools": [LOOK]}
        turn = await harness.send_message_to_session(env.stubs, session, "mine told", **wish)
        again = await harness.send_message_to_session(env.stubs, session, "mine told", **wish)
        assert again.turn_id == turn.turn_id
        with refused("REQUEST_ID_REUSED"):
            await harness.send_message_to_session(env.stubs, session, "mine told", request_id=request_id)


class TestRefused:
    async def test_tools_that_no_message_may_bring_are_named(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="asker")
        bad = {
            "client_tools[0].name": [chat_pb2.ClientTool(name="no good", schema_json=PLAIN)],
            "client_tools[1].name": [LOOK, LOOK],
            "client_tools[0].schema_json": [chat_pb2.ClientTool(name="look", schema_json='{"type":"string"}')],
            "client_tools": [chat_pb2.ClientTool(name=f"look{number}", schema_json=PLAIN) for number in range(33)],
        }
        large = [chat_pb2.ClientTool(name="look", description="x" * 65_536, schema_json=PLAIN)]
        own = [chat_pb2.ClientTool(name="act", schema_json=PLAIN)]
        for path, tools in (*bad.items(), ("client_tools", large), ("client_tools[0].name", own)):
            with refused("INVALID_REQUEST") as refusal:
                await harness.send_message_to_session(env.stubs, session, "mine", client_tools=tools)
            assert refusal.details.fields == (path,)
        assert harness.kinds(await harness.all_events(env.stubs, session)) == ["session_created"]

    async def test_results_that_cannot_be_sent_to_the_model_change_nothing(self, env: Environment) -> None:
        session, turn = await waiting(env, "mine malformed")
        call = turn.pending[0].tool_call_id
        for result in ("seen", "NaN", '"\\ud83d"', f'"{"x" * 65_535}"', "[" * 10_000):
            with refused("TOOL_VALIDATION_ERROR") as refusal:
                await env.stubs.chat.SubmitToolResult(
                    chat_pb2.SubmitToolResultRequest(session_id=session, tool_call_id=call, result_json=result)
                )
            assert refusal.details.fields == ("result_json",)
        with refused("INVALID_REQUEST") as refusal:
            await env.stubs.chat.SubmitToolResult(chat_pb2.SubmitToolResultRequest(session_id=session))
        assert refusal.details.fields == ("tool_call_id", "result_json")
        still = await env.stubs.chat.GetTurn(
            chat_pb2.GetTurnRequest(session_id=session, turn_id=turn.turn_id, wait=Duration())
        )
        assert still.turn.state == AWAITING

    async def test_results_of_calls_that_no_client_runs(self, env: Environment) -> None:
        session, turn = await waiting(env, "mixed others", wait=0)
        env.tool_control.release("others-read")
        turn = await harness.wait_for_turn(env.stubs, session, turn.turn_id)
        act = next(item.tool_call_id for item in turn.pending if item.approval_id)
        for call in ("unknown", act):
            with refused("TOOL_CALL_NOT_PENDING") as refusal:
                await submit(env.stubs, session, call)
            assert refusal.details.metadata["tool_call_id"] == call
        with refused("SESSION_NOT_FOUND"):
            await submit(env.stubs, "nowhere", act)
