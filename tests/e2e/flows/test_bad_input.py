"""Bad input to every RPC: each is refused with a complete error that names what to change; nothing fails inside."""

import re
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from tests import harness
from tests.e2e.support.environment import Environment
from tests.e2e.support.methods import METHODS, MISSING, TEXT, Method
from tests.status_details import refused
from tests.test_tools import REPOSITORY
from turnkeeper.pb.v1 import agent_pb2, approval_pb2, chat_pb2, message_pb2, session_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = """
[[reply]]
text = "You said something."
"""
KIB = 1024
STATUS = REPOSITORY / "docs" / "reference" / "status.md"


IN_A_SESSION = [method for method in METHODS if getattr(method.request, "session_id", "") == MISSING]
every_method = pytest.mark.parametrize("method", METHODS, ids=str)


def wire_fields(data: bytes) -> list[bytes]:
    """Returns the fields of a message with one-byte tags and lengths, each with its tag."""
    fields: list[bytes] = []
    while data:
        size = 2 + data[1] if data[0] & 7 == 2 else 2
        fields.append(data[:size])
        data = data[size:]
    return fields


async def test_every_method_that_works_is_tried() -> None:
    rows = re.findall(r"^\| (\w+)Service \| (\w+) \| works \|$", STATUS.read_text(), re.MULTILINE)
    assert {(method.service, method.name) for method in METHODS} == set(rows)


class TestBytes:
    """Requests that no stub would send."""

    @every_method
    async def test_an_empty_request(self, env: Environment, method: Method) -> None:
        if method.lists:
            assert await method.call(env.stubs, b"")
            return
        with refused("INVALID_REQUEST") as refusal:
            await method.call(env.stubs, b"")
        assert refusal.details.status == grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.details.fields
        assert set(refusal.details.metadata["fields"].split(",")) == set(refusal.details.fields)

    @every_method
    @pytest.mark.parametrize("data", [b"\xff" * 5, b"\x0a\x7fshort", b"\x0b\x00", b"\x0a\x02\xc3\x28"])
    async def test_bytes_that_are_no_message(self, env: Environment, method: Method, data: bytes) -> None:
        """An endless number, a length beyond the end, a group without an end, a text that is not UTF-8."""
        reason = await method.reason(env.stubs, data)
        first = method.request.DESCRIPTOR.fields_by_number.get(1)
        text_first = first is not None and first.name != "page_size"
        assert reason == "INVALID_REQUEST" if text_first else reason in ("INVALID_REQUEST", "OK")

    @every_method
    async def test_a_request_cut_off_anywhere(self, env: Environment, method: Method) -> None:
        data = method.request.SerializeToString()
        reasons = {await method.reason(env.stubs, data[:size]) for size in range(1, len(data))}
        assert reasons <= {"OK", "INVALID_REQUEST", "SESSION_NOT_FOUND", "APPROVAL_NOT_FOUND", "AGENT_NOT_FOUND"}
        assert "INVALID_REQUEST" in reasons or not data

    @every_method
    async def test_fields_of_another_type_are_no_fields_of_ours(self, env: Environment, method: Method) -> None:
        """Every field as a number and as eight bytes: a text that is required is missing."""
        for wire_type, content in ((0, b"\x07"), (1, b"\x07" * 8), (5, b"\x07" * 4)):
            fields = [bytes([number << 3 | wire_type]) + content for number in range(1, 12)]
            reason = await method.reason(env.stubs, b"".join(fields))
            assert reason in ("OK", "INVALID_REQUEST") if method.lists else reason == "INVALID_REQUEST"

    async def test_the_order_of_fields_does_not_matter(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        request = chat_pb2.SendMessageRequest(session_id=session, request_id="order", content=TEXT)
        data = request.SerializeToString()
        method = Method("Chat", "SendMessage", request)
        answers = [
            chat_pb2.SendMessageResponse.FromString((await method.call(env.stubs, raw))[0])
            for raw in (data, b"".join(reversed(wire_fields(data))))
        ]
        assert answers[0] == answers[1]

    async def test_unknown_fields_are_passed_over(self, env: Environment) -> None:
        data = session_pb2.CreateSessionRequest(request_id="unknown", agent="talker").SerializeToString()
        method = Method("Session", "CreateSession", session_pb2.CreateSessionRequest())
        assert await method.call(env.stubs, data + b"\xc2\x3e\x03new")

    @pytest.mark.parametrize("method", [method for method in METHODS if method.service == "Chat"][:2], ids=str)
    async def test_more_than_a_request_may_have(self, env: Environment, method: Method) -> None:
        """gRPC itself refuses the request; the server goes on."""
        with pytest.raises(aio.AioRpcError) as raised:
            await method.call(env.stubs, b"\xc2\x3e" + b"\x80\x80\x80\x03" + b"x" * (6 << 20))
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await env.stubs.agents.ListAgents(agent_pb2.ListAgentsRequest())


class TestWhatDoesNotExist:
    @pytest.mark.parametrize("method", IN_A_SESSION, ids=str)
    async def test_a_session_that_does_not_exist(self, env: Environment, method: Method) -> None:
        with refused("SESSION_NOT_FOUND") as refusal:
            await method.call(env.stubs, method.request.SerializeToString())
        assert refusal.details.status == grpc.StatusCode.NOT_FOUND
        assert "google.rpc.ResourceInfo" in refusal.details.types

    async def test_a_turn_of_another_session(self, env: Environment) -> None:
        mine, other = [await harness.create_test_session(env.stubs, agent="talker") for _ in range(2)]
        turn = await harness.send_message_to_session(env.stubs, mine, "hello")
        calls: list[Callable[[], object]] = [
            lambda: env.stubs.chat.GetTurn(chat_pb2.GetTurnRequest(session_id=other, turn_id=turn.turn_id)),
            lambda: env.stubs.chat.CancelTurn(chat_pb2.CancelTurnRequest(session_id=other, turn_id=turn.turn_id)),
            lambda: env.stubs.chat.RetryTurn(
                chat_pb2.RetryTurnRequest(session_id=other, turn_id=turn.turn_id, request_id="r")
            ),
        ]
        for call in calls:
            with refused("TURN_NOT_FOUND"):
                await call()  # type: ignore[misc]

    async def test_a_cursor_of_another_session(self, env: Environment) -> None:
        mine, other = [await harness.create_test_session(env.stubs, agent="talker") for _ in range(2)]
        page = await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=mine))
        for after in (page.cursor, page.cursor[:-1], "", "é", "A" * 500):
            with refused("INVALID_REQUEST"):
                await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=other, after=after))
            with refused("INVALID_REQUEST"):
                async for _ in env.stubs.sessions.WatchEvents(
                    session_pb2.WatchEventsRequest(session_id=other, after=after)
                ):
                    pass

    async def test_a_page_token_of_another_list(self, env: Environment) -> None:
        for _ in range(2):
            await harness.create_test_session(env.stubs, agent="talker")
        page = await env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=1))
        token = page.next_page_token
        for request in (
            session_pb2.ListSessionsRequest(page_token=token, agent="talker"),
            session_pb2.ListSessionsRequest(page_token=token + "A"),
            session_pb2.ListSessionsRequest(page_token="é"),
        ):
            with refused("PAGE_TOKEN_INVALID"):
                await env.stubs.sessions.ListSessions(request)
        with refused("PAGE_TOKEN_INVALID"):
            await env.stubs.agents.ListAgents(agent_pb2.ListAgentsRequest(page_token=token))

    @pytest.mark.parametrize("agent", ["unknown", "talker2"])
    async def test_an_agent_that_does_not_exist(self, env: Environment, agent: str) -> None:
        with refused("AGENT_NOT_FOUND"):
            await harness.create_test_session(env.stubs, agent=agent)
        with refused("AGENT_NOT_FOUND"):
            await env.stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name=agent))
        with refused("AGENT_NOT_FOUND"):
            await env.stubs.agents.GetAgent(agent_pb2.GetAgentRequest(name="talker", version="0" * 12))

    async def test_a_turn_that_does_not_exist_has_no_events(self, env: Environment) -> None:
        """A watch of such a turn does not wait for ever."""
        session = await harness.create_test_session(env.stubs, agent="talker")
        with refused("TURN_NOT_FOUND"):
            await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, turn_id=MISSING))
        with refused("TURN_NOT_FOUND"):
            await env.stubs.sessions.WatchEvents(
                session_pb2.WatchEventsRequest(session_id=session, turn_id=MISSING, follow=True)
            ).read()


class TestSizes:
    async def test_a_message_of_256_kib_is_taken(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        text = "é" * (128 * KIB)
        turn = await harness.send_message_to_session(env.stubs, session, text)
        assert turn.state == chat_pb2.TURN_STATE_COMPLETED
        listed = await env.stubs.sessions.ListMessages(session_pb2.ListMessagesRequest(session_id=session))
        assert listed.messages[0].content[0].text == text

    async def test_a_message_of_one_byte_more_is_refused(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        for content in (
            harness.text_parts("x" * (256 * KIB + 1)),
            [message_pb2.Part(text="x" * (4 * KIB)) for _ in range(64)] + [message_pb2.Part(text="x")],
            [message_pb2.Part(text="x" * (16 * KIB)), message_pb2.Part(text="y" * (240 * KIB + 1))],
        ):
            request = chat_pb2.SendMessageRequest(session_id=session, request_id="large", content=content)
            with refused("INVALID_REQUEST") as refusal:
                await env.stubs.chat.SendMessage(request)
            assert refusal.details.fields == ("content",)
        assert harness.kinds(await harness.all_events(env.stubs, session)) == ["session_created"]

    async def test_long_answers_to_long_questions_stay_within_4_kib(self, env: Environment) -> None:
        """The caller's text comes back in the error cut short, and the error stays complete."""
        session = await harness.create_test_session(env.stubs, agent="talker")
        for text in ("x" * 100_000, "é" * 100_000, "🍐" * 100_000, "\x00\n" * 50_000):
            with refused("INVALID_REQUEST"):
                await env.stubs.sessions.ListEvents(session_pb2.ListEventsRequest(session_id=session, types=[text]))
            with refused("INVALID_REQUEST"):
                await env.stubs.sessions.GetSession(session_pb2.GetSessionRequest(session_id=text))
            with refused("INVALID_REQUEST"):
                await env.stubs.sessions.EndSession(session_pb2.EndSessionRequest(session_id=session, reason=text))
        with refused("INVALID_REQUEST"):
            await env.stubs.sessions.ListEvents(
                session_pb2.ListEventsRequest(session_id=session, types=[f"🍐{number}" * 500 for number in range(64)])
            )
        with refused("INVALID_REQUEST"):
            await env.stubs.chat.SendMessage(
                chat_pb2.SendMessageRequest(session_id=session, request_id="r", content=[message_pb2.Part()] * 64)
            )


BAD_SESSIONS = {
    "request_id": {"agent": "talker"},
    "session_id": {"agent": "talker", "session_id": "not an id"},
    "agent": {"agent": "TALKER", "request_id": "r"},
    "title": {"agent": "talker", "request_id": "r", "title": "x" * 201},
    "labels": {"agent": "talker", "request_id": "r", "labels": {"": "x"}},
}


class TestValues:
    @pytest.mark.parametrize("field", BAD_SESSIONS)
    async def test_a_session_that_cannot_be(self, env: Environment, field: str) -> None:
        with refused("INVALID_REQUEST") as refusal:
            await env.stubs.sessions.CreateSession(
                session_pb2.CreateSessionRequest(**BAD_SESSIONS[field])  # type: ignore[arg-type]
            )
        assert refusal.details.fields == (field,)

    async def test_too_many_labels_and_labels_too_long(self, env: Environment) -> None:
        for labels in ({str(n): "x" for n in range(33)}, {"k": "x" * 129}, {"k" * 129: "x"}):
            request = session_pb2.CreateSessionRequest(request_id="labels", agent="talker", labels=labels)
            with refused("INVALID_REQUEST") as refusal:
                await env.stubs.sessions.CreateSession(request)
            assert refusal.details.fields == ("labels",)

    async def test_metadata_that_json_cannot_hold(self, env: Environment) -> None:
        deep = Value(number_value=1)
        for _ in range(20):
            deep = Value(struct_value=Struct(fields={"a": deep}))
        large = Struct(fields={"a": Value(string_value="x" * (16 * KIB))})
        for metadata in (
            Struct(fields={"a": Value(number_value=float("nan"))}),
            Struct(fields={"a": Value(number_value=float("inf"))}),
            large,
        ):
            request = session_pb2.CreateSessionRequest(request_id="metadata", agent="talker", metadata=metadata)
            with refused("INVALID_REQUEST") as refusal:
                await env.stubs.sessions.CreateSession(request)
            assert refusal.details.fields == ("metadata",)
        request = session_pb2.CreateSessionRequest(
            request_id="deep", agent="talker", metadata=Struct(fields={"a": deep})
        )
        response = await env.stubs.sessions.CreateSession(request)
        assert response.session.metadata == request.metadata

    async def test_times_and_waits_that_cannot_be(self, env: Environment) -> None:
        for time in (Timestamp(seconds=10**15), Timestamp(seconds=-(10**15)), Timestamp(nanos=-1)):
            for field in ("created_after", "created_before"):
                request = session_pb2.ListSessionsRequest(**{field: time})  # type: ignore[arg-type]
                with refused("INVALID_REQUEST") as refusal:
                    await env.stubs.sessions.ListSessions(request)
                assert refusal.details.fields == (field,)
        for wait in (Duration(seconds=121), Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=2**62)):
            with refused("INVALID_REQUEST") as refusal:
                await env.stubs.approvals.WaitApproval(approval_pb2.WaitApprovalRequest(approval_id=MISSING, wait=wait))
            assert refusal.details.fields == ("wait",)

    async def test_unknown_numbers_of_enums(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        unknown: list[tuple[str, Callable[[], object]]] = [
            (
                "decision",
                lambda: env.stubs.approvals.DecideApproval(
                    approval_pb2.DecideApprovalRequest(approval_id=MISSING, decision=99, arguments_hash="0")  # type: ignore[arg-type]
                ),
            ),
            (
                "states",
                lambda: env.stubs.chat.ListTurns(chat_pb2.ListTurnsRequest(session_id=session, states=[99])),  # type: ignore[list-item]
            ),
            (
                "states",
                lambda: env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(states=[99])),  # type: ignore[list-item]
            ),
            (
                "kind",
                lambda: env.stubs.approvals.ListApprovals(approval_pb2.ListApprovalsRequest(kind=99)),  # type: ignore[arg-type]
            ),
            (
                "if_busy",
                lambda: env.stubs.chat.SendMessage(
                    chat_pb2.SendMessageRequest(session_id=session, request_id="r", content=TEXT, if_busy=99)  # type: ignore[arg-type]
                ),
            ),
        ]
        for field, call in unknown:
            with refused("INVALID_REQUEST") as refusal:
                await call()  # type: ignore[misc]
            assert refusal.details.fields == (field,)

    async def test_pages_limits_and_orders_that_cannot_be(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        with refused("INVALID_REQUEST"):
            await env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=-1))
        with refused("INVALID_REQUEST"):
            await env.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest(order_by="title"))
        with refused("INVALID_REQUEST"):
            await env.stubs.sessions.ListMessages(
                session_pb2.ListMessagesRequest(session_id=session, order_by="create_time")
            )
        with refused("INVALID_REQUEST"):
            await env.stubs.sessions.ListEvents(
                session_pb2.ListEventsRequest(session_id=session, after_sequence=10**18)
            )
        with refused("INVALID_REQUEST"):
            await harness.send_message_to_session(
                env.stubs, session, "hello", limits=chat_pb2.TurnLimits(max_iterations=-1)
            )
        for schema in ("[]", "{", '{"a": NaN}', "[" * 10_000):
            with refused("INVALID_REQUEST") as refusal:
                await harness.send_message_to_session(env.stubs, session, "hello", response_schema_json=schema)
            assert refusal.details.fields == ("response_schema_json",)

    async def test_a_feature_of_a_later_release_is_unimplemented(self, env: Environment) -> None:
        session = await harness.create_test_session(env.stubs, agent="talker")
        picture = message_pb2.Part(image=message_pb2.Blob(media_type="image/png", inline=b"x"))
        request = chat_pb2.SendMessageRequest(session_id=session, request_id="r", content=[picture])
        with refused("NOT_IMPLEMENTED") as refusal:
            await env.stubs.chat.SendMessage(request)
        assert refusal.details.status == grpc.StatusCode.UNIMPLEMENTED
        assert "field" in refusal.details.metadata
        assert harness.kinds(await harness.all_events(env.stubs, session)) == ["session_created"]
