"""A turn counts only when a client got all of it."""

import pytest

from tests.bench.figures import Invalid
from tests.bench.jobs.turns import StreamedTurn, first_text
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2

ANSWER = "all of it"
DONE = chat_pb2.TURN_STATE_COMPLETED


def _delta(text: str, *, offset: int = 0, attempt: int = 1) -> event_pb2.Event:
    return event_pb2.Event(content_delta=event_pb2.ContentDelta(text=text, offset=offset, attempt=attempt))


def _whole(text: str = ANSWER) -> event_pb2.Event:
    return event_pb2.Event(message_completed=event_pb2.MessageCompleted(content=[message_pb2.Part(text=text)]))


def _streamed(*batches: list[event_pb2.Event], state: chat_pb2.TurnState.ValueType = DONE) -> StreamedTurn:
    """One response for each batch, a second apart, and the last one."""
    responses = [chat_pb2.StreamMessageResponse(events=events) for events in batches]
    responses.append(chat_pb2.StreamMessageResponse(turn=chat_pb2.Turn(state=state)))
    return StreamedTurn("s", [(float(at), response.SerializeToString()) for at, response in enumerate(responses, 1)])


def test_the_first_text_is_the_first_delta() -> None:
    assert first_text(_streamed([], [_delta("all ")], [_delta("of it", offset=4), _whole()]), ANSWER) == 2.0


def test_without_deltas_it_is_the_whole_message() -> None:
    assert first_text(_streamed([], [], [_whole()]), ANSWER) == 3.0


def test_a_higher_attempt_begins_anew() -> None:
    again = [_delta("all of it", attempt=2), _whole()]
    assert first_text(_streamed([_delta("all of")], again), ANSWER) == 1.0


@pytest.mark.parametrize(
    "streamed",
    [
        _streamed([_whole()], state=chat_pb2.TURN_STATE_RUNNING),
        _streamed([_whole()], state=chat_pb2.TURN_STATE_FAILED),
        _streamed([_delta(ANSWER)]),
        _streamed([_whole("all of")]),
        _streamed([_delta("something else"), _whole()]),
        _streamed([_delta("all"), _delta("it", offset=7), _whole()]),
        _streamed([_delta("all"), _delta("all"), _whole()]),
        StreamedTurn("s", []),
    ],
    ids=["running", "failed", "no whole", "cut", "other deltas", "a gap", "twice", "nothing"],
)
def test_a_turn_that_is_not_whole_fails_the_run(streamed: StreamedTurn) -> None:
    with pytest.raises(Invalid):
        first_text(streamed, ANSWER)
