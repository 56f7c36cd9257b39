"""A live answer says itself when each of its chunks was meant to come."""

import pytest

from tests.bench import pacing
from tests.bench.figures import Invalid
from tests.bench.jobs.live import read_answer, request_of
from tests.bench.pacing import CHUNK, Pace
from turnkeeper.pb.v1 import chat_pb2, event_pb2, message_pb2

PACE = Pace(3, apart_ms=20, first_ms=50)
BEGINS = 1000.5
ANSWER = pacing.first_chunk(BEGINS) + pacing.later_chunk(1) + pacing.later_chunk(2)
DONE = chat_pb2.TURN_STATE_COMPLETED


def _delta(first: int, last: int) -> event_pb2.Event:
    text = ANSWER[first * CHUNK : last * CHUNK]
    return event_pb2.Event(content_delta=event_pb2.ContentDelta(text=text, offset=first * CHUNK, attempt=1))


def _whole(text: str = ANSWER) -> event_pb2.Event:
    return event_pb2.Event(message_completed=event_pb2.MessageCompleted(content=[message_pb2.Part(text=text)]))


def _response(*events: event_pb2.Event, state: chat_pb2.TurnState.ValueType = DONE) -> bytes:
    return chat_pb2.StreamMessageResponse(events=events, turn=chat_pb2.Turn(state=state)).SerializeToString()


def _late(*responses: tuple[float, bytes]) -> list[float]:
    text, late = read_answer("s", list(responses), PACE)
    assert text == ANSWER
    return late


def test_the_model_is_asked_by_the_last_message() -> None:
    earlier = Pace(256, apart_ms=0, first_ms=200)
    assert pacing.pace_of(f'[{{"content":"{earlier.message}"}},{{"content":"{PACE.message}"}}]'.encode()) == PACE
    assert pacing.pace_of(b'{"messages":[]}') is None
    assert pacing.pace_of(request_of("s", PACE)) == PACE


def test_an_answer_takes_its_first_chunk_and_those_after_it() -> None:
    assert PACE.seconds == pytest.approx(0.09)


def test_each_delta_is_compared_with_the_model_s_own_time() -> None:
    late = _late(
        (BEGINS + 0.001, _response(_delta(0, 1))),
        (BEGINS + 0.023, _response(_delta(1, 2))),
        (BEGINS + 0.040, _response(_delta(2, 3), _whole())),
    )
    assert late == pytest.approx([0.001, 0.003, 0.0], abs=1e-6)


def test_chunks_that_came_together_are_each_late_by_their_own_time() -> None:
    late = _late((BEGINS + 0.041, _response(_delta(0, 3))), (BEGINS + 0.1, _response(_whole())))
    assert late == pytest.approx([0.041, 0.021, 0.001], abs=1e-6)


def test_what_no_delta_showed_came_with_the_whole_message() -> None:
    late = _late((BEGINS, _response(_delta(0, 1))), (BEGINS + 0.1, _response(_whole())))
    assert late == pytest.approx([0.0, 0.08, 0.06], abs=1e-6)


@pytest.mark.parametrize("begins", [4294.967295, 4294.967297, 8589.934592])
def test_the_clock_of_the_first_chunk_may_wrap(begins: float) -> None:
    text = pacing.first_chunk(begins) + ANSWER[CHUNK:]
    assert pacing.lateness([(begins + 0.05, 24)], text, PACE) == pytest.approx([0.05, 0.03, 0.01], abs=1e-6)


@pytest.mark.parametrize(
    "responses",
    [
        [_response(_delta(0, 3), _whole(), state=chat_pb2.TURN_STATE_FAILED)],
        [_response(_delta(0, 3), _whole()), _response(state=chat_pb2.TURN_STATE_RUNNING)],
        [_response(_delta(0, 3))],
        [_response(_delta(0, 1), _delta(2, 3), _whole())],
        [_response(_delta(0, 2), _whole(ANSWER[: 2 * CHUNK]))],
        [_response(_whole(ANSWER + "more"))],
        [_response(_whole("not hex!" + ANSWER[CHUNK:]))],
        [],
    ],
    ids=["failed", "running", "no whole", "a gap", "cut", "more", "no time", "nothing"],
)
def test_an_answer_that_is_not_exact_fails_the_run(responses: list[bytes]) -> None:
    with pytest.raises(Invalid):
        read_answer("s", [(BEGINS, response) for response in responses], PACE)
