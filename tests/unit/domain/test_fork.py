"""The copy that a fork begins with."""

from tests.builders import NOON, a_session, a_session_key
from turnkeeper.domain.event import Event, MessageReceived, TurnStarted
from turnkeeper.domain.fork import Copy
from turnkeeper.domain.message import Part
from turnkeeper.domain.turn import ToolCaller


def an_event(number: int, payload: MessageReceived | TurnStarted) -> Event:
    return Event(sequence=number, turn_id="turn", attempt=number - 1, create_time=NOON, payload=payload)


def test_a_copied_turn_knows_the_delegate_that_sent_its_message() -> None:
    message = MessageReceived(message_id="m", content=(Part(text="hello"),), principal="ada", through="portal")
    begun = TurnStarted(message_id="a")
    copy = Copy(session=a_session(a_session_key()), opening=1, options={}, called={})
    copy.take([an_event(1, message), an_event(2, begun)])
    turn = copy.turns["turn"]
    assert turn.causers == {"ada", "portal"}
    assert turn.tool_caller == ToolCaller(turn.agent, "portal", on_behalf_of="ada")
