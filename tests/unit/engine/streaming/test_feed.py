"""A session's live tail: the ring is always the end of the log, and no text is cut inside a character."""

from hypothesis import given
from hypothesis import strategies as st

from tests.cpu_time import least_cpu_seconds
from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feed import CACHED_TEXTS, MIN_WATCHERS_TO_SHARE, RING_BYTES, RING_EVENTS, Feed
from turnkeeper.engine.streaming.preview import characters_from, whole_characters
from turnkeeper.store.changeset import StoredEvent

texts = st.text(alphabet=st.sampled_from("aé€🎉\u0301"), max_size=30)


def event(sequence: int, *, kind: str = "tool_called", size: int = 1, turn_id: str = "t") -> StoredEvent:
    return StoredEvent(sequence=sequence, kind=kind, turn_id=turn_id, payload=b"x" * size)


def numbers(events: list[StoredEvent] | None) -> list[int] | None:
    return None if events is None else [event.sequence for event in events]


@given(texts, st.integers(4, 9))
def test_chunks_are_whole_characters_and_make_the_whole_text(text: str, most: int) -> None:
    data, offset, chunks = text.encode(), 0, []
    while offset < len(data):
        begins, chunk = characters_from(data, offset, most=most)
        assert begins == offset
        assert 0 < len(chunk) <= most
        chunks.append(chunk.decode())
        offset += len(chunk)
    assert "".join(chunks) == text


@given(texts, st.integers(0, 200))
def test_a_chunk_from_inside_a_character_begins_with_that_character(text: str, offset: int) -> None:
    data = text.encode()
    begins, chunk = characters_from(data, offset, most=100)
    if offset >= len(data):
        assert chunk == b""
        return
    assert offset - 3 <= begins <= offset
    assert data[begins:].decode().startswith(chunk.decode())


@given(texts, st.integers(0, 200))
def test_a_cut_character_is_left_out(text: str, most: int) -> None:
    data = text.encode()
    whole = whole_characters(data[:most])
    assert text.startswith(whole.decode())
    assert len(data[:most]) - len(whole) <= 3


@given(st.lists(texts.filter(bool), max_size=6), st.integers(0, 200), st.integers(4, 50))
def test_a_preview_gives_the_rest_from_any_byte(chunks: list[str], offset: int, most: int) -> None:
    preview = Feed().begin_preview(turn_id="t", message_id="m", attempt=1)
    for chunk in chunks:
        preview.append(chunk)
    whole = "".join(chunks).encode()
    assert preview.text().encode() == whole
    assert preview.size == len(whole)
    begins, rest = preview.text_from(offset, most=most)
    if offset < len(whole):
        assert whole[begins : begins + len(rest)] == rest
        assert rest
        assert begins <= offset < begins + 4 + len(rest)


def test_a_reader_that_is_far_behind_costs_no_more_than_one_at_the_end() -> None:
    preview = Feed().begin_preview(turn_id="t", message_id="m", attempt=1)
    for _ in range(100_000):
        preview.append("x")

    def read() -> None:
        for offset in range(0, 100_000, 1000):
            assert preview.text_from(offset, most=16) == (offset, b"x" * 16)

    assert least_cpu_seconds(read) < 0.1


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=12), st.integers(0, 60))
def test_what_the_ring_holds_is_the_end_of_the_log_or_nothing(changesets: list[tuple[int, bool]], after: int) -> None:
    """Changesets of this replica are published; of another replica's only the number is known."""
    feed, last = Feed(), 0
    for size, local in changesets:
        batch = [event(last + number) for number in range(1, size + 1)]
        last += size
        if local:
            feed.publish(batch)
        else:
            feed.notify_grown(last)
    held = numbers(feed.since(after))
    assert feed.last_seq == last
    assert held is None or held == list(range(after + 1, last + 1))


def test_the_ring_drops_the_oldest_by_number_and_by_size() -> None:
    feed = Feed()
    feed.publish([event(number) for number in range(1, RING_EVENTS + 11)])
    assert feed.since(9) is None
    assert numbers(feed.since(10)) == list(range(11, RING_EVENTS + 11))
    large = Feed()
    large.publish([event(number, size=RING_BYTES // 2) for number in (1, 2, 3)])
    assert large.since(0) is None
    assert numbers(large.since(1)) == [2, 3]


def test_events_that_are_published_twice_are_held_once() -> None:
    feed = Feed()
    feed.publish([event(1), event(2)])
    feed.publish([event(1), event(2), event(3)])
    assert numbers(feed.since(0)) == [1, 2, 3]


def test_the_last_texts_are_held_for_watchers_that_are_behind() -> None:
    feed = Feed()
    for number in range(1, CACHED_TEXTS + 3):
        feed.begin_preview(turn_id="t", message_id=f"m{number}", attempt=number).append("é")
        feed.publish([event(number, kind="message_completed")])
        assert feed.preview is None
    assert list(feed.texts) == [f"m{number}" for number in range(3, CACHED_TEXTS + 3)]
    assert feed.texts["m3"] == (3, "é".encode(), "")


def test_a_text_ends_for_watchers_before_its_owner_knows() -> None:
    feed = Feed()
    preview = feed.begin_preview(turn_id="t", message_id="m", attempt=1, started_after=5)
    for before in (event(5, kind="attempt_failed"), event(6, kind="turn_cancelled", turn_id="u"), event(7)):
        preview.apply(before)
        assert not preview.ended
    preview.apply(event(8, kind="turn_cancelled"))
    assert preview.ended


async def test_a_change_notifies_those_who_subscribed_before() -> None:
    feed = Feed()
    changed, grown = feed.changed.subscribe(), feed.grown.subscribe()
    feed.begin_preview(turn_id="t", message_id="m", attempt=1).append("x")
    assert changed.done()
    assert not grown.done()
    feed.publish([event(1)])
    assert grown.done()
    assert not feed.changed.subscribe().done()


def test_watchers_at_one_position_get_the_same_batch_until_a_change() -> None:
    feed, position, other = Feed(), StreamPosition(sequence=3, live=True), StreamPosition(sequence=2, live=True)
    feed.watchers = MIN_WATCHERS_TO_SHARE
    everything, text = EventFilter(), EventFilter(previews=True)
    batch = Batch(position)
    feed.share_batch(position, everything, batch)
    assert feed.shared_batch(position, everything) is batch
    assert feed.shared_batch(position, text) is None
    assert feed.shared_batch(other, everything) is None
    feed.notify_changed()
    assert feed.shared_batch(position, everything) is None


def test_text_that_no_longer_counts_is_not_shared() -> None:
    feed, position, event_filter = Feed(), StreamPosition(sequence=3, live=True), EventFilter(previews=True)
    feed.watchers = MIN_WATCHERS_TO_SHARE
    batch = Batch(position)
    batch.preview = feed.begin_preview(turn_id="t", message_id="m", attempt=1, started_after=3)
    feed.share_batch(position, event_filter, batch)
    assert feed.shared_batch(position, event_filter) is batch
    batch.preview.apply(event(4, kind="attempt_failed"))
    assert feed.shared_batch(position, event_filter) is None
