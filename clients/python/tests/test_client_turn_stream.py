"""Sending a message as a stream: once, whatever happens to the connection, to its exact text."""

import grpc
import pytest

from turnkeeper_client import Role, name_of
from turnkeeper_client import text_of as message_text
from turnkeeper_client.errors import Aborted
from turnkeeper_client.pb.v1 import error_pb2
from turnkeeper_client.pb.v1.chat_pb2 import (
    IF_BUSY_ENQUEUE,
    TURN_STATE_AWAITING_APPROVAL,
    TURN_STATE_COMPLETED,
    Turn,
    TurnState,
)
from turnkeeper_client.pb.v1.event_pb2 import DeltaKind
from turnkeeper_client.pb.v1.message_pb2 import Part
from turnkeeper_client.streams import TurnStream
from turnkeeper_client_testing.events import (
    completed,
    delta,
    done,
    ended,
    failed,
    message_response,
    started,
    summary,
    superseded,
)
from turnkeeper_client_testing.server import STAY, Refuse, Step, cut_off, stage

CUT = Refuse(status=grpc.StatusCode.UNAVAILABLE)


async def text_of(stream: TurnStream) -> list[str]:
    """Returns the texts, with `|` before one that begins anew."""
    return ["|" * text.restart + text async for text in stream.text()]


def state_of(stream: TurnStream) -> TurnState.ValueType | None:
    return stream.turn.state if stream.turn is not None else None


async def test_an_answer_arrives_delta_by_delta_with_its_turn() -> None:
    steps = [
        message_response(started(2), delta(0, "Par"), cursor="c1"),
        message_response(delta(3, "is"), completed(3, "Paris"), cursor="c2"),
        ended(done(4), cursor="c3"),
    ]
    async with stage(steps) as on:
        stream = on.client.session("s1").stream("Where?", if_busy=IF_BUSY_ENQUEUE)
        assert state_of(stream) is None
        assert await text_of(stream) == ["Par", "is"]
        assert state_of(stream) == TURN_STATE_COMPLETED
        assert stream.cursor == "c3"
        request = on.script.requests[0]
        assert request.session_id == "s1"
        assert request.content[0].text == "Where?"
        assert request.if_busy == IF_BUSY_ENQUEUE
        assert request.previews
        assert request.request_id == stream.request_id


async def test_a_message_is_repeated_under_its_request_id_from_the_last_cursor() -> None:
    first: list[Step] = [
        message_response(started(2), cursor="c1"),
        message_response(delta(0, "Par"), cursor="c2"),
        STAY,
    ]
    second: list[Step] = [message_response(delta(0, "Par"), delta(3, "i"), cursor="c3"), CUT]
    third = [ended(delta(4, "s"), completed(3, "Paris"), done(4), cursor="c4")]
    async with stage(first, second, third) as on:
        stream = on.client.session("s1").stream("Where?")
        texts = []
        async for text in stream.text():
            texts.append(text)
            if text == "Par":
                on.relay.cut()
        assert texts == ["Par", "i", "s"]
        assert [text.offset for text in texts] == [0, 3, 4]
        assert len({request.request_id for request in on.script.requests}) == 1
        assert [request.after for request in on.script.requests] == ["", "c2", "c3"]
        assert [request.content[0].text for request in on.script.requests] == ["Where?"] * 3


async def test_every_message_has_a_request_id_of_its_own_unless_one_is_given() -> None:
    async with stage() as on:
        session = on.client.session("s1")
        assert session.stream("a").request_id != session.stream("a").request_id
        assert session.stream("a", request_id="mine").request_id == "mine"


async def test_a_stream_of_an_earlier_process_is_taken_up_with_its_cursor() -> None:
    async with stage([ended(delta(3, "is"), completed(3, "Paris"))]) as on:
        stream = on.client.session("s1").stream("Where?", request_id="mine", after="c2")
        assert await text_of(stream) == ["is"]
        assert on.script.requests[0].after == "c2"


async def test_a_failed_turn_raises_its_error_and_is_not_sent_again() -> None:
    steps: list[Step] = [message_response(started(2)), cut_off(error_pb2.SESSION_ERROR_CODE_LLM_API_ERROR)]
    async with stage(steps, [ended()]) as on:
        with pytest.raises(Aborted) as raised:
            await text_of(on.client.session("s1").stream("Where?"))
        assert raised.value.code == error_pb2.SESSION_ERROR_CODE_LLM_API_ERROR
        assert raised.value.turn_id == "t1"
        assert len(on.script.requests) == 1


async def test_a_waiting_turn_goes_on_with_another_loop() -> None:
    first: list[Step] = [ended(started(2), cursor="c1", state=TURN_STATE_AWAITING_APPROVAL)]
    second = [ended(started(2), completed(5, "Done."), cursor="c2")]
    async with stage(first, second) as on:
        stream = on.client.session("s1").stream("Delete it")
        assert summary([event async for event in stream]) == [2]
        assert state_of(stream) == TURN_STATE_AWAITING_APPROVAL
        assert await text_of(stream) == ["Done."]
        assert state_of(stream) == TURN_STATE_COMPLETED
        assert on.script.requests[0].request_id == on.script.requests[1].request_id
        assert on.script.requests[1].after == "c1"


async def test_another_attempt_begins_the_text_anew_and_late_deltas_do_not_count() -> None:
    steps = [
        message_response(started(2), delta(0, "Pa"), failed(3), delta(0, "Lo", attempt=2), delta(2, "ris")),
        message_response(delta(2, "nd", attempt=2), superseded(4, attempt=3), delta(4, "on", attempt=2)),
        message_response(delta(0, "Rome", attempt=3, message="m2"), completed(5, "Rome!", attempt=3, message="m2")),
        ended(delta(5, "!", attempt=3, message="m2"), done(6, attempt=3)),
    ]
    async with stage(steps) as on:
        assert await text_of(on.client.session("s1").stream("Where?")) == ["Pa", "|Lo", "nd", "|Rome", "!"]


async def test_the_stream_itself_drops_what_does_not_count() -> None:
    steps = [
        message_response(delta(0, "a", attempt=2), delta(1, "b", attempt=1), delta(5, "gap", attempt=2)),
        ended(completed(3, "abc", attempt=2), delta(1, "late", attempt=3)),
    ]
    async with stage(steps) as on:
        assert summary([event async for event in on.client.session("s1").stream("?")]) == ["a", 3]


async def test_whole_messages_are_those_of_the_session() -> None:
    asks = completed(3, "Let me look.")
    asks.message_completed.tool_requests.add(tool_call_id="c1", tool="clock", arguments_json="{}")
    steps = [message_response(started(2), delta(0, "Let"), asks), ended(completed(5, "Noon.", message="m2"), done(6))]
    async with stage(steps) as on:
        messages = [message async for message in on.client.session("s1").stream("When?").messages()]
    assert [(name_of(Role, message.role), message_text(message)) for message in messages] == [
        ("ASSISTANT", "Let me look."),
        ("ASSISTANT", "Noon."),
    ]
    assert [message.sequence for message in messages] == [3, 5]
    assert [request.tool for request in messages[0].tool_requests] == ["clock"]


def test_the_text_of_what_has_none_is_empty_and_every_value_has_a_name() -> None:
    turn = Turn(state=TURN_STATE_AWAITING_APPROVAL)
    assert (message_text(turn), name_of(TurnState, turn.state)) == ("", "AWAITING_APPROVAL")
    assert message_text(Turn(answer=[Part(text="a"), Part(), Part(text="b")])) == "ab"
    assert message_text(completed(3, "x").message_completed) == "x"
    assert name_of(TurnState, TurnState.ValueType(99)) == "99"
    assert name_of(DeltaKind, 1) == "TEXT"
