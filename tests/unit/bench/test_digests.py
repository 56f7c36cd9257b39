"""Which streams the bench takes for the same, and which it refuses."""

import pytest

from tests.bench.figures import Invalid
from tests.bench.jobs.watch import digest
from turnkeeper.pb.v1 import event_pb2


def durable(sequence: int, text: str = "") -> event_pb2.Event:
    return event_pb2.Event(sequence=sequence, turn_id=f"turn{text}", turn_started=event_pb2.TurnStarted())


def deltas(*texts: str, message_id: str = "m") -> list[event_pb2.Event]:
    events, offset = [], 0
    for text in texts:
        delta = event_pb2.ContentDelta(message_id=message_id, attempt=1, offset=offset, text=text)
        events.append(event_pb2.Event(content_delta=delta))
        offset += len(text.encode())
    return events


def test_the_same_events_and_texts_are_the_same_however_deltas_are_cut() -> None:
    whole = digest([durable(3), *deltas("grüß dich"), durable(4)], answers=["grüß dich"])
    assert digest([durable(3), *deltas("grü", "ß d", "ich"), durable(4)], answers=["grüß dich"]) == whole


@pytest.mark.parametrize(
    "events",
    [
        [durable(3), *deltas("grüß dich")],
        [durable(3, "x"), *deltas("grüß dich"), durable(4)],
        [durable(3), *deltas("grüß dicx"), durable(4)],
    ],
    ids=["an event less", "another event", "another text"],
)
def test_streams_that_differ_have_different_digests(events: list[event_pb2.Event]) -> None:
    assert digest(events) != digest([durable(3), *deltas("grüß dich"), durable(4)])


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([durable(3), durable(5)], "events have a gap"),
        ([durable(3), durable(3)], "events have a gap"),
        ([*deltas("grü", "ß")[1:]], "have a gap at 4"),
        (deltas("grü"), "other answers"),
        ([*deltas("grüß"), *deltas("grüß", message_id="n")], "other answers"),
    ],
    ids=["event missing", "event twice", "delta missing", "text cut short", "a text too many"],
)
def test_a_stream_with_a_gap_is_refused(events: list[event_pb2.Event], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        digest(events, answers=["grüß"])
