"""Promise I8: the same request_id with the same request has one effect, however often and wherever it is sent.

Every mutating RPC is sent one to five times, at once, to two servers on one database. Another request under the same
id is refused.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import grpc
import pytest
import pytest_asyncio

from tests import harness
from tests.e2e.support.environment import Environment, until_event
from tests.status_details import refused
from turnkeeper.pb.v1 import chat_pb2, event_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = r"""
[[reply]]
match = '^broken (?P<label>\S+)'
fail = "bad_request"
times = 5

[[reply]]
match = "^silent"
fail = "slow_first_token"

[[reply]]
match = '^do (?P<label>\S+)'
tool_calls = [{ name = "act", arguments = { label = "{label}" } }]

[[reply]]
text = "You said: {user}"
"""
TIMES = (1, 2, 3, 4, 5)
T = TypeVar("T")
Call = Callable[[harness.Stubs], Awaitable[T]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(env: Environment) -> AsyncIterator[tuple[harness.Stubs, harness.Stubs]]:
    async with env.another() as other:
        yield env.stubs, other


Servers = tuple[harness.Stubs, harness.Stubs]


async def at_once(servers: Servers, times: int, call: Call[T]) -> list[T]:
    """Sends a call so often at once, to both servers by turns. Returns its answers."""
    targets: Iterable[harness.Stubs] = itertools.islice(itertools.cycle(servers), times)
    return list(await asyncio.gather(*(call(stubs) for stubs in targets)))


async def kinds_of(servers: Servers, session: str) -> list[str]:
    return harness.kinds(await harness.all_events(servers[0], session))


@pytest.mark.parametrize("times", TIMES)
class TestI8SentSeveralTimesAtOnce:
    async def test_i8_create_session_without_an_id(self, servers: Servers, times: int) -> None:
        request = session_pb2.CreateSessionRequest(
            request_id=harness.new_request_id(), agent="talker", title="one", labels={"a": "1", "b": "2"}
        )
        responses = await at_once(servers, times, lambda stubs: stubs.sessions.CreateSession(request))
        assert len({response.session.session_id for response in responses}) == 1
        assert all(response == responses[0] for response in responses)
        assert await kinds_of(servers, responses[0].session.session_id) == ["session_created"]

    async def test_i8_create_session_with_an_id(self, servers: Servers, times: int) -> None:
        session_id = f"mine-{harness.new_request_id()}"
        request = session_pb2.CreateSessionRequest(session_id=session_id, agent="talker")
        responses = await at_once(servers, times, lambda stubs: stubs.sessions.CreateSession(request))
        assert all(response == responses[0] for response in responses)
        assert await kinds_of(servers, session_id) == ["session_created"]

    async def test_i8_send_message(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()
        turns = await at_once(
            servers,
            times,
            lambda stubs: harness.send_message_to_session(stubs, session, "hello", request_id=request_id),
        )
        assert {turn.turn_id for turn in turns} == {turns[0].turn_id}
        assert {harness.answer_of(turn) for turn in turns} == {"You said: hello"}
        assert (await kinds_of(servers, session)).count("message_received") == 1

    async def test_i8_send_message_to_a_busy_session(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        await harness.send_message_to_session(servers[0], session, "silent", wait=0)
        for if_busy in (chat_pb2.IF_BUSY_ENQUEUE, chat_pb2.IF_BUSY_INTERRUPT):
            request_id = harness.new_request_id()

            async def send(
                stubs: harness.Stubs, request_id: str = request_id, if_busy: chat_pb2.IfBusy.ValueType = if_busy
            ) -> chat_pb2.Turn:
                return await harness.send_message_to_session(
                    stubs, session, "hello", request_id=request_id, wait=0, if_busy=if_busy
                )

            turns = await at_once(servers, times, send)
            assert {turn.turn_id for turn in turns} == {turns[0].turn_id}
        assert (await kinds_of(servers, session)).count("message_received") == 3

    async def test_i8_send_message_that_creates_its_session(self, servers: Servers, times: int) -> None:
        for session_id in ("", f"chosen-{harness.new_request_id()}"):
            request = chat_pb2.SendMessageRequest(
                session_id=session_id,
                request_id=harness.new_request_id(),
                content=harness.text_parts("hello"),
                create_session=chat_pb2.CreateSessionParams(agent="talker"),
            )

            async def send(
                stubs: harness.Stubs, request: chat_pb2.SendMessageRequest = request
            ) -> chat_pb2.SendMessageResponse:
                return await stubs.chat.SendMessage(request)

            responses = await at_once(servers, times, send)
            assert {response.turn.turn_id for response in responses} == {responses[0].turn.turn_id}
            kinds = await kinds_of(servers, responses[0].turn.session_id)
            assert (kinds.count("session_created"), kinds.count("message_received")) == (1, 1)

    async def test_i8_stream_message(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request = chat_pb2.StreamMessageRequest(
            session_id=session, request_id=harness.new_request_id(), content=harness.text_parts("hello")
        )
        streams = await at_once(servers, times, lambda stubs: streamed(stubs, request))
        durable = [[event.sequence for event in events if event.sequence] for events, _ in streams]
        assert all(numbers == durable[0] for numbers in durable)
        assert {turn.turn_id for _, turn in streams} == {streams[0][1].turn_id}
        assert (await kinds_of(servers, session)).count("message_received") == 1

    async def test_i8_send_and_stream_are_one_family(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()
        stream = chat_pb2.StreamMessageRequest(
            session_id=session, request_id=request_id, content=harness.text_parts("hello"), previews=False
        )
        sends = at_once(
            servers,
            times,
            lambda stubs: harness.send_message_to_session(stubs, session, "hello", request_id=request_id, wait=20),
        )
        turns, streams = await asyncio.gather(sends, at_once(servers, times, lambda stubs: streamed(stubs, stream)))
        assert {turn.turn_id for turn in turns} | {turn.turn_id for _, turn in streams} == {turns[0].turn_id}
        assert (await kinds_of(servers, session)).count("message_received") == 1

    async def test_i8_retry_turn(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        turn = await harness.send_message_to_session(servers[0], session, "silent", wait=0)
        await servers[0].chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
        request = chat_pb2.RetryTurnRequest(
            session_id=session, turn_id=turn.turn_id, request_id=harness.new_request_id()
        )
        retried = await at_once(servers, times, lambda stubs: stubs.chat.RetryTurn(request))
        assert len({(response.sequence, response.cursor) for response in retried}) == 1
        assert (await kinds_of(servers, session)).count("turn_retried") == 1

    async def test_i8_cancel_turn(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        turn = await harness.send_message_to_session(servers[0], session, "silent", wait=0)
        request = chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id)
        cancelled = await at_once(servers, times, lambda stubs: stubs.chat.CancelTurn(request))
        assert {response.turn.state for response in cancelled} == {chat_pb2.TURN_STATE_CANCELLED}
        assert len({(response.sequence, response.cursor) for response in cancelled}) == 1
        assert (await kinds_of(servers, session)).count("turn_cancelled") == 1

    async def test_i8_end_session(self, servers: Servers, times: int) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        await harness.send_message_to_session(servers[0], session, "silent", wait=0)
        request = session_pb2.EndSessionRequest(session_id=session)
        ended = await at_once(servers, times, lambda stubs: stubs.sessions.EndSession(request))
        assert {response.session.state for response in ended} == {session_pb2.SESSION_STATE_ENDED}
        kinds = await kinds_of(servers, session)
        assert (kinds.count("turn_cancelled"), kinds.count("session_ended")) == (1, 1)
        assert [response.sequence for response in ended if response.sequence] == [kinds.index("turn_cancelled") + 1]

    @pytest.mark.parametrize("approve", [True, False], ids=["approve", "reject"])
    async def test_i8_decide_approval(self, servers: Servers, env: Environment, times: int, approve: bool) -> None:
        session = await harness.create_test_session(servers[0], agent="asker")
        label = f"{approve}-{times}"
        turn = await harness.send_message_to_session(servers[0], session, f"do {label}")
        approval = await harness.wait_for_approval(servers[0], session)
        decided = await at_once(servers, times, lambda stubs: harness.decide(stubs, approval, approve=approve))
        assert all(response == decided[0] for response in decided)
        ended = await harness.wait_for_turn(servers[0], session, turn.turn_id)
        assert ended.state == chat_pb2.TURN_STATE_COMPLETED
        assert len(env.tool_control.effects(label)) == int(approve)
        kinds = await kinds_of(servers, session)
        assert (kinds.count("approval_decided"), kinds.count("tool_started")) == (1, int(approve))


async def streamed(
    stubs: harness.Stubs, request: chat_pb2.StreamMessageRequest
) -> tuple[list[event_pb2.Event], chat_pb2.Turn]:
    """Returns all events of one stream, and the turn of its last response."""
    events: list[event_pb2.Event] = []
    turn = chat_pb2.Turn()
    async for response in stubs.chat.StreamMessage(request):
        events.extend(response.events)
        turn = response.turn
    return events, turn


class TestI8ARepeatGetsThePresentState:
    async def test_i8_a_message_that_was_answered_long_ago(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()
        first = await harness.send_message_to_session(servers[0], session, "first", request_id=request_id)
        await harness.send_message_to_session(servers[0], session, "second")
        await servers[0].sessions.EndSession(session_pb2.EndSessionRequest(session_id=session))
        again = await harness.send_message_to_session(servers[1], session, "first", request_id=request_id)
        assert again == first

    async def test_i8_a_message_whose_turn_waits(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="asker")
        request_id = harness.new_request_id()
        first = await harness.send_message_to_session(servers[0], session, "do wait", request_id=request_id)
        again = await harness.send_message_to_session(servers[1], session, "do wait", request_id=request_id)
        assert again == first
        assert again.state == chat_pb2.TURN_STATE_AWAITING_APPROVAL

    async def test_i8_how_long_to_wait_and_what_to_see_is_no_part_of_the_request(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()
        first = await harness.send_message_to_session(servers[0], session, "hello", request_id=request_id, wait=0)
        again = await harness.send_message_to_session(servers[0], session, "hello", request_id=request_id, wait=9.5)
        assert again.turn_id == first.turn_id
        request = chat_pb2.StreamMessageRequest(
            session_id=session, request_id=request_id, content=harness.text_parts("hello"), previews=False
        )
        _, turn = await streamed(servers[1], request)
        assert turn.turn_id == first.turn_id

    async def test_i8_a_repeat_during_the_first_call_joins_it(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="asker")
        request_id = harness.new_request_id()
        sent = [harness.send_message_to_session(stubs, session, "do join", request_id=request_id) for stubs in servers]
        pending = asyncio.gather(*sent)
        approval = await harness.wait_for_approval(servers[0], session)
        turns = await pending
        assert {turn.state for turn in turns} == {chat_pb2.TURN_STATE_AWAITING_APPROVAL}
        await harness.decide(servers[0], approval, approve=False)

    async def test_i8_a_session_made_by_an_agent_that_is_gone(self, servers: Servers, env: Environment) -> None:
        request = session_pb2.CreateSessionRequest(request_id=harness.new_request_id(), agent="talker")
        response = await servers[0].sessions.CreateSession(request)
        async with env.another(agents=None) as other:
            again = await other.sessions.CreateSession(request)
        assert again == response


class TestI8AnotherRequestUnderTheSameId:
    async def test_i8_another_message(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()
        await harness.send_message_to_session(servers[0], session, "one thing", request_id=request_id)
        others: list[dict[str, object]] = [
            {"text": "another thing"},
            {"text": "one thing", "if_busy": chat_pb2.IF_BUSY_ENQUEUE},
            {"text": "one thing", "limits": chat_pb2.TurnLimits(max_iterations=1)},
            {"text": "one thing", "response_schema_json": "{}"},
        ]
        for other in others:
            with refused("REQUEST_ID_REUSED") as refusal:
                await harness.send_message_to_session(servers[1], session, request_id=request_id, **other)  # type: ignore[arg-type]
            assert refusal.details.status == grpc.StatusCode.INVALID_ARGUMENT
            assert refusal.details.metadata["request_id"] == request_id
        request = chat_pb2.StreamMessageRequest(
            session_id=session, request_id=request_id, content=harness.text_parts("streamed")
        )
        with refused("REQUEST_ID_REUSED"):
            await streamed(servers[1], request)
        assert (await kinds_of(servers, session)).count("message_received") == 1

    async def test_i8_two_different_messages_at_once_one_is_refused(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()

        async def send(stubs: harness.Stubs, words: str) -> str:
            try:
                turn = await harness.send_message_to_session(stubs, session, words, request_id=request_id)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return harness.answer_of(turn)

        answers = await asyncio.gather(send(servers[0], "left"), send(servers[1], "right"))
        assert sorted(answers)[0] == "INVALID_ARGUMENT"
        assert sorted(answers)[1] in ("You said: left", "You said: right")

    async def test_i8_another_session(self, servers: Servers) -> None:
        request_id = harness.new_request_id()
        request = session_pb2.CreateSessionRequest(request_id=request_id, agent="talker", title="one")
        await servers[0].sessions.CreateSession(request)
        for other in (
            session_pb2.CreateSessionRequest(request_id=request_id, agent="talker", title="two"),
            session_pb2.CreateSessionRequest(request_id=request_id, agent="worker", title="one"),
            session_pb2.CreateSessionRequest(request_id=request_id, agent="talker", title="one", labels={"a": "b"}),
        ):
            with refused("REQUEST_ID_REUSED"):
                await servers[1].sessions.CreateSession(other)

    async def test_i8_another_body_for_a_chosen_session_id(self, servers: Servers) -> None:
        session_id = f"taken-{harness.new_request_id()}"
        await servers[0].sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=session_id, agent="talker"))
        with refused("SESSION_ALREADY_EXISTS") as refusal:
            await servers[1].sessions.CreateSession(
                session_pb2.CreateSessionRequest(session_id=session_id, agent="worker")
            )
        assert refusal.details.status == grpc.StatusCode.ALREADY_EXISTS

    async def test_i8_another_turn_to_retry(self, servers: Servers) -> None:
        session = await harness.create_test_session(servers[0], agent="talker")
        request_id = harness.new_request_id()
        turns = []
        for number in range(2):
            turn = await harness.send_message_to_session(servers[0], session, "silent", wait=0)
            await servers[0].chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
            turns.append(turn.turn_id)
            request = chat_pb2.RetryTurnRequest(session_id=session, turn_id=turn.turn_id, request_id=request_id)
            if number == 0:
                await servers[0].chat.RetryTurn(request)
                await servers[0].chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=session, turn_id=turn.turn_id))
                continue
            with refused("REQUEST_ID_REUSED"):
                await servers[1].chat.RetryTurn(request)

    async def test_i8_the_same_id_in_another_session_or_family_is_another_request(self, servers: Servers) -> None:
        request_id = harness.new_request_id()
        sessions = [await harness.create_test_session(servers[0], agent="talker") for _ in range(2)]
        turns = [
            await harness.send_message_to_session(servers[0], session, "silent", wait=0, request_id=request_id)
            for session in sessions
        ]
        assert turns[0].turn_id != turns[1].turn_id
        await until_event(servers[0], sessions[0], "turn_started")
        await servers[0].chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=sessions[0], turn_id=turns[0].turn_id))
        retried = await servers[0].chat.RetryTurn(
            chat_pb2.RetryTurnRequest(session_id=sessions[0], turn_id=turns[0].turn_id, request_id=request_id)
        )
        assert retried.turn.turn_id == turns[0].turn_id
