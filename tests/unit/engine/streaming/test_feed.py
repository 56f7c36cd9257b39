"""A session's live tail: the ring never lies about the log, and no piece of text begins or ends inside a character."""

from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.domain.cursor import StreamPosition
from turnkeeper.engine.streaming.batch import Batch, EventFilter
from turnkeeper.engine.streaming.feed import CROWD, KEPT_TEXTS, RING_BYTES, RING_EVENTS, Feed
from turnkeeper.engine.streaming.preview import piece_of, whole_characters
from turnkeeper.store.changeset import StoredEvent

texts = st.text(alphabet=st.sampled_from("aé€🎉\u0301"), max_size=30)


def event(sequence: int, *, kind: str = "tool_called", size: int = 1, turn_id: str = "t") -> StoredEvent:
    return StoredEvent(sequence=sequence, kind=kind, turn_id=turn_id, payload=b"x" * size)


def numbers(found: list[StoredEvent] | None) -> list[int] | None:
    return None if found is None else [each.sequence for each in found]


@given(texts, st.integers(4, 9))
def test_pieces_are_whole_characters_and_make_the_whole_text(text: str, most: int) -> None:
    data, offset, pieces = text.encode(), 0, []
    while offset < len(data):
        begins, piece = piece_of(data, offset, most=most)
        assert begins == offset
        assert 0 < len(piece) <= most
        pieces.append(piece.decode())
        offset += len(piece)
    assert "".join(pieces) == text


@given(texts, st.integers(0, 200))
def test_a_piece_from_inside_a_character_begins_with_that_character(text: str, offset: int) -> None:
    data = text.encode()
    begins, piece = piece_of(data, offset, most=100)
    if offset >= len(data):
        assert piece == b""
        return
    assert offset - 3 <= begins <= offset
    assert data[begins:].decode().startswith(piece.decode())


@given(texts, st.integers(0, 200))
def test_a_cut_character_is_left_out(text: str, most: int) -> None:
    data = text.encode()
    kept = whole_characters(data[:most])
    assert text.startswith(kept.decode())
    assert len(data[:most]) - len(kept) <= 3


@given(st.lists(texts.filter(bool), max_size=6), st.integers(0, 200), st.integers(4, 50))
def test_a_preview_gives_the_rest_from_any_byte(chunks: list[str], offset: int, most: int) -> None:
    preview = Feed().begin(turn_id="t", message_id="m", attempt=1)
    for chunk in chunks:
        preview.append(chunk)
    whole = "".join(chunks).encode()
    assert preview.text().encode() == whole
    assert preview.size == len(whole)
    begins, piece = preview.beyond(offset, most=most)
    if offset < len(whole):
        assert whole[begins : begins + len(piece)] == piece
        assert piece
        assert begins <= offset < begins + 4 + len(piece)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=12), st.integers(0, 60))
def test_what_the_ring_holds_is_the_end_of_the_log_or_nothing(steps: list[tuple[int, bool]], after: int) -> None:
    """Steps of this replica are published; of those of others it only hears."""
    feed, last = Feed(), 0
    for size, ours in steps:
        batch = [event(last + number) for number in range(1, size + 1)]
        last += size
        if ours:
            feed.publish(batch)
        else:
            feed.heard(last)
    found = numbers(feed.since(after))
    assert feed.last_seq == last
    assert found is None or found == list(range(after + 1, last + 1))


def test_the_ring_forgets_the_oldest_by_number_and_by_size() -> None:
    feed = Feed()
    feed.publish([event(number) for number in range(1, RING_EVENTS + 11)])
    assert feed.since(9) is None
    assert numbers(feed.since(10)) == list(range(11, RING_EVENTS + 11))
    large = Feed()
    large.publish([event(number, size=RING_BYTES // 2) for number in (1, 2, 3)])
    assert large.since(0) is None
    assert numbers(large.since(1)) == [2, 3]


def test_what_comes_twice_is_there_once() -> None:
    feed = Feed()
    feed.publish([event(1), event(2)])
    feed.publish([event(1), event(2), event(3)])
    assert numbers(feed.since(0)) == [1, 2, 3]


def test_the_last_texts_are_kept_for_those_who_lag_behind() -> None:
    feed = Feed()
    for number in range(1, KEPT_TEXTS + 3):
        feed.begin(turn_id="t", message_id=f"m{number}", attempt=number).append("é")
        feed.publish([event(number, kind="message_completed")])
        assert feed.preview is None
    assert list(feed.texts) == [f"m{number}" for number in range(3, KEPT_TEXTS + 3)]
    assert feed.texts["m3"] == (3, "é".encode())


def test_a_text_is_over_for_readers_before_its_owner_knows() -> None:
    feed = Feed()
    preview = feed.begin(turn_id="t", message_id="m", attempt=1, since=5)
    for before in (event(5, kind="attempt_failed"), event(6, kind="turn_cancelled", turn_id="u"), event(7)):
        feed.passed(before)
        assert not preview.over
    feed.passed(event(8, kind="turn_cancelled"))
    assert preview.over


async def test_a_change_wakes_those_who_took_the_signal_before() -> None:
    feed = Feed()
    changed, grown = feed.changed.next(), feed.grown.next()
    feed.begin(turn_id="t", message_id="m", attempt=1).append("x")
    assert changed.done()
    assert not grown.done()
    feed.publish([event(1)])
    assert grown.done()
    assert not feed.changed.next().done()


def test_watchers_at_the_same_place_get_the_same_batch_until_something_changes() -> None:
    feed, place, other = Feed(), StreamPosition(sequence=3, live=True), StreamPosition(sequence=2, live=True)
    feed.watchers = CROWD
    all_of_it, text = EventFilter(), EventFilter(previews=True)
    batch = Batch(place)
    feed.share(place, all_of_it, batch)
    assert feed.shared(place, all_of_it) is batch
    assert feed.shared(place, text) is None
    assert feed.shared(other, all_of_it) is None
    feed.notify()
    assert feed.shared(place, all_of_it) is None


def test_text_that_counts_no_more_is_shared_with_nobody() -> None:
    feed, place, wanted = Feed(), StreamPosition(sequence=3, live=True), EventFilter(previews=True)
    feed.watchers = CROWD
    batch = Batch(place)
    batch.preview = feed.begin(turn_id="t", message_id="m", attempt=1, since=3)
    feed.share(place, wanted, batch)
    assert feed.shared(place, wanted) is batch
    feed.passed(event(4, kind="attempt_failed"))
    assert feed.shared(place, wanted) is None
