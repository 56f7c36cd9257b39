"""Which delta restarts the text: exactly the first one after text that no longer counts."""

import random
from collections.abc import Sequence

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.streaming.batch import EventFilter
from turnkeeper.engine.streaming.batch_builder import BatchBuilder
from turnkeeper.engine.streaming.feed import Feed
from turnkeeper.pb.v1 import event_pb2, message_pb2
from turnkeeper.rpc import cursor
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import StoredEvent

LIVE = StreamPosition(sequence=1, live=True)
ALL = EventFilter(previews=True)
Delta = tuple[str, str, bool]
"""Message id, text, `restarts`."""


def event(sequence: int, kind: str, *, turn_id: str = "t", **payload: object) -> StoredEvent:
    message = event_pb2.Event(session_id="s", sequence=sequence, turn_id=turn_id, attempt=sequence)
    getattr(message, kind).SetInParent()
    for name, value in payload.items():
        setattr(getattr(message, kind), name, value)
    return StoredEvent(sequence=sequence, kind=kind, turn_id=turn_id, payload=message.SerializeToString())


def completed(sequence: int, message_id: str, text: str, *, attempt: int = 1, turn_id: str = "t") -> StoredEvent:
    content = [message_pb2.Part(text=text)] if text else []
    stop = message_pb2.FINISH_REASON_STOP
    whole = event_pb2.MessageCompleted(message_id=message_id, content=content, finish_reason=stop)
    stored = event_pb2.Event(sequence=sequence, turn_id=turn_id, attempt=attempt, message_completed=whole)
    return StoredEvent(sequence=sequence, kind="message_completed", turn_id=turn_id, payload=stored.SerializeToString())


class Session:
    """One session's live tail on one replica, and what a watcher at a position gets of it."""

    def __init__(self, last_seq: int = 1) -> None:
        self.feed = Feed()
        self.feed.notify_grown(last_seq)
        self.log: list[StoredEvent] = []

    def store(self, *events: StoredEvent) -> None:
        self.feed.publish(events)
        self.log += events

    def write(self, text: str, *, message_id: str, attempt: int, turn_id: str = "t", remote: bool = False) -> None:
        begin = self.feed.begin_remote_preview if remote else self.feed.begin_preview
        begin(turn_id=turn_id, message_id=message_id, attempt=attempt, started_after=self.feed.last_seq).append(text)

    def more(self, text: str) -> None:
        assert self.feed.preview is not None
        self.feed.preview.append(text)

    def read(self, position: StreamPosition, event_filter: EventFilter = ALL) -> tuple[list[Delta], StreamPosition]:
        """Returns the deltas from this position on, and the position after them as a cursor carries it."""
        page: Sequence[StoredEvent] = [event for event in self.log if event.sequence > position.sequence]
        batch = BatchBuilder(WireCodec()).build(page, "s", position, feed=self.feed, event_filter=event_filter)
        events = [event_pb2.Event.FromString(payload) for payload in batch.events]
        deltas = [event.content_delta for event in events if event.HasField("content_delta")]
        key = SessionKey("default", "s")
        after = cursor.decode(cursor.encode(batch.position, key=key), key=key)
        assert after == batch.position
        return [(delta.message_id, delta.text, delta.restarts) for delta in deltas], after


def begun(text: str = "Par") -> tuple[Session, StreamPosition]:
    """Returns a session whose first message is being written, and the position of a watcher that has its text."""
    session = Session()
    session.write(text, message_id="m1", attempt=1)
    deltas, position = session.read(LIVE)
    assert deltas == [("m1", text, False)]
    return session, position


def test_a_message_begins_and_goes_on_without_a_restart() -> None:
    session, position = begun()
    session.more("is")
    assert session.read(position)[0] == [("m1", "is", False)]
    assert session.read(LIVE)[0] == [("m1", "Paris", False)]


def test_the_first_delta_after_a_failed_attempt_restarts_and_no_other() -> None:
    session, position = begun()
    session.store(event(2, "attempt_failed"))
    nothing, failed = session.read(position)
    assert nothing == []
    session.write("Lon", message_id="m2", attempt=2)
    deltas, later = session.read(failed)
    assert deltas == [("m2", "Lon", True)]
    session.more("don")
    assert session.read(later)[0] == [("m2", "don", False)]
    assert session.read(position)[0] == [("m2", "London", True)], "at the cursor inside the first attempt's text"


def test_the_text_of_a_lost_log_is_not_sent_for_the_message_of_the_log_that_replaced_it() -> None:
    """The database was restored to the first attempt; another replica wrote the message anew, and more after it."""
    session, position = begun()
    session.more("is")
    lost, *new = (
        completed(2, "m1", "Paris"),
        event(2, "attempt_superseded"),
        completed(3, "m1", "London", attempt=2),
    )
    session.feed.publish([lost._replace(changeset_id="lost")])
    session.feed.notify_grown(3)
    session.log += [event._replace(changeset_id="new") for event in new]
    assert session.read(position)[0] == [("m1", "London", True)]


def test_a_watcher_without_text_gets_no_restart() -> None:
    session, _ = begun()
    session.store(event(2, "attempt_failed"))
    session.write("London", message_id="m2", attempt=2)
    assert session.read(LIVE)[0] == [("m2", "London", False)]
    assert session.read(StreamPosition(sequence=2, live=True))[0] == [("m2", "London", False)]


def test_a_later_attempt_at_the_same_message_restarts_without_any_event_between() -> None:
    session, position = begun()
    session.write("London", message_id="m1", attempt=2)
    deltas, later = session.read(position)
    assert deltas == [("m1", "London", True)]
    session.more("derry")
    session.store(completed(2, "m1", "Londonderry", attempt=2))
    assert session.read(later)[0] == [("m1", "derry", False)]
    assert session.read(position)[0] == [("m1", "Londonderry", True)]


def test_another_replica_restarts_for_a_cursor_of_the_first_one() -> None:
    _, position = begun()
    other = Session()
    other.store(event(2, "attempt_superseded"))
    other.write("London", message_id="m2", attempt=2, remote=True)
    assert other.read(position)[0] == [("m2", "London", True)]
    same = Session()
    same.write("Paris", message_id="m1", attempt=1, remote=True)
    assert same.read(position)[0] == [("m1", "is", False)]


def test_a_watcher_that_returns_when_the_answer_is_whole_gets_a_restart() -> None:
    session, position = begun()
    session.store(event(2, "attempt_failed"))
    session.write("London", message_id="m2", attempt=2)
    session.store(completed(3, "m2", "London", attempt=2))
    deltas, later = session.read(position)
    assert deltas == [("m2", "London", True)]
    session.write("And", message_id="m3", attempt=2)
    assert session.read(later)[0] == [("m3", "And", False)], "the message before it is whole"


def test_a_whole_message_is_never_thrown_away() -> None:
    session, position = begun("Paris")
    session.store(completed(2, "m1", "Paris"), event(3, "attempt_superseded"))
    session.write("Then", message_id="m2", attempt=2)
    assert session.read(position)[0] == [("m2", "Then", False)]


def test_an_attempt_without_text_restarts_with_an_empty_delta() -> None:
    """It may be the turn's last message: no later delta would withdraw the text of the failed attempt."""
    session, position = begun()
    session.store(event(2, "attempt_failed"))
    session.write("", message_id="m2", attempt=2)
    session.store(completed(3, "m2", "", attempt=2))
    deltas, later = session.read(position)
    assert deltas == [("m2", "", True)]
    assert session.read(later)[0] == [], "once"
    session.write("Done", message_id="m3", attempt=2)
    assert session.read(later)[0] == [("m3", "Done", False)]
    assert session.read(position)[0] == [("m2", "", True), ("m3", "Done", False)]


def test_a_message_without_text_restarts_nothing_where_no_text_was_shown() -> None:
    session = Session()
    session.store(completed(2, "m1", ""))
    assert session.read(LIVE)[0] == []


def test_a_filter_that_leaves_out_events_changes_no_restart() -> None:
    session, position = begun()
    few = EventFilter(previews=True, kinds=frozenset({"turn_completed"}), turn_id="t")
    session.store(event(2, "attempt_failed"))
    session.write("London", message_id="m2", attempt=2)
    assert session.read(position, few)[0] == [("m2", "London", True)]


def test_a_retry_restarts_and_the_next_turn_does_not() -> None:
    session, position = begun()
    session.store(event(2, "attempt_failed"), event(3, "turn_failed"))
    _, failed = session.read(position)
    session.store(event(4, "turn_retried"))
    session.write("London", message_id="m2", attempt=2)
    assert session.read(failed)[0] == [("m2", "London", True)]

    session, position = begun()
    session.store(event(2, "turn_cancelled"), event(3, "turn_started", turn_id="u"))
    session.write("Oslo", message_id="m9", attempt=1, turn_id="u")
    assert session.read(position)[0] == [("m9", "Oslo", False)]


def test_another_turns_events_change_nothing_for_a_watcher_of_this_one() -> None:
    session, position = begun()
    own = EventFilter(previews=True, turn_id="t")
    session.store(event(2, "turn_failed"), event(3, "turn_started", turn_id="u"))
    session.write("Oslo", message_id="m9", attempt=1, turn_id="u")
    session.store(completed(4, "m9", "Oslo", turn_id="u"))
    session.store(event(5, "turn_retried"))
    session.write("London", message_id="m2", attempt=2)
    assert session.read(position, own)[0] == [("m2", "London", True)]


def test_a_large_text_restarts_once() -> None:
    session, position = begun()
    session.store(event(2, "attempt_failed"))
    session.write("x" * 40_000, message_id="m2", attempt=2)
    assert [restarts for _, _, restarts in session.read(position)[0]] == [True, False, False]
    session.store(completed(3, "m2", "x" * 40_000, attempt=2))
    assert [restarts for _, _, restarts in session.read(position)[0]] == [True, False, False]


def test_the_text_that_was_shown_last_is_what_the_long_way_gives() -> None:
    assert sum(map(_texts_by_the_short_way, range(60))) > 20


def _texts_by_the_short_way(seed: int) -> int:
    """Compares the two ways at random positions. Returns how often the short one gave a batch."""
    chance = random.Random(seed)
    session, builder = Session(), BatchBuilder(WireCodec())
    remote, held = chance.random() < 0.3, chance.random() < 0.9
    session.write(chance.choice(["Par", "né", "x" * 20_000]), message_id="m1", attempt=2, remote=remote)
    preview = session.feed.preview
    assert preview is not None
    preview.lease_held = lambda: held
    short = 0
    for _ in range(20):
        session.more(chance.choice(["is", "é", " ", "日本", "y" * 17_000]))
        if chance.random() < 0.1:
            session.feed.notify_grown(session.feed.last_seq + 1)
        if chance.random() < 0.05:
            preview.ended = True
        position = StreamPosition(
            sequence=session.feed.last_seq - chance.choice([0, 0, 0, 1]),
            message_id=chance.choice(["m1", "m1", "m1", "m0", ""]),
            attempt=chance.choice([2, 2, 2, 1, 3]),
            offset=chance.choice([preview.chunks[-1].offset] * 3 + [chunk.offset for chunk in preview.chunks]),
            live=chance.random() < 0.9,
        )
        event_filter = EventFilter(previews=True, turn_id=chance.choice(["", "t", "t", "u"]))
        batch = builder.shown_last("s", position, feed=session.feed, event_filter=event_filter)
        if batch is not None:
            short += 1
            long = builder.build([], "s", position, feed=session.feed, event_filter=event_filter)
            assert (batch.events, batch.position, batch.preview) == (long.events, long.position, long.preview)
    return short
