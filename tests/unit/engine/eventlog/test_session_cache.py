"""What a replica caches of sessions: popped once, nothing of deleted sessions, within its bounds."""

from dataclasses import replace
from datetime import timedelta
from typing import cast

from tests.builders import AGENT, NOON, a_head, a_session, a_session_key
from turnkeeper.admission.memory import PROCESS_BYTES, MemoryBudget
from turnkeeper.domain.event import Event, MessageReceived
from turnkeeper.domain.message import Part
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.engine.eventlog.session_cache import MAX_AGE, SNAPSHOT_BYTES, CachedSnapshot, SessionCache
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Creation, LogEnd, Snapshot
from turnkeeper.store.contract import Store

NO_STORE = cast(Store, None)
"""No test here reads from the store."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def session_of(name: str) -> Session:
    return a_session(a_session_key(session_id=name))


def cached(name: str, **head: object) -> CachedSnapshot:
    session = session_of(name)
    known = a_head(SessionKey(session.tenant, name), last_seq=7, fence=2, revision=5, **head)
    return CachedSnapshot(Snapshot(head=known, session=session, turn=None, calls=(), approvals=()), NOON, 1000.0)


def key(name: str) -> SessionKey:
    return session_of(name).key


def a_cache(
    clock: Clock | None = None,
    *,
    sessions: int = 3,
    conversation_bytes: int = 1 << 20,
    memory: MemoryBudget | None = None,
) -> SessionCache:
    return SessionCache(
        NO_STORE,
        decode=WireCodec().decode,
        max_sessions=sessions,
        conversation_bytes=conversation_bytes,
        memory=memory,
        clock=clock or Clock(),
    )


def extend(cache: SessionCache, name: str, text: str = "hello", *, sequence: int = 2) -> None:
    conversation = cache.checkout(session_of(name))
    conversation.extend(events(text, sequence=sequence), after=LogEnd(sequence - 1), end=LogEnd(sequence))
    cache.checkin(session_of(name), conversation)


def events(text: str, *, sequence: int = 2) -> list[Event]:
    message = MessageReceived(message_id="m", content=(Part(text=text),), principal="ada")
    return [Event(sequence=sequence, turn_id=f"turn {sequence}", attempt=0, create_time=NOON, payload=message)]


def count_messages(cache: SessionCache, name: str) -> int:
    """Returns how many messages of the session are cached."""
    conversation = cache.checkout(session_of(name))
    cache.checkin(session_of(name), conversation)
    return len(conversation.messages(""))


def test_a_snapshot_is_popped_once() -> None:
    cache = a_cache()
    cache.put(cached("a"))
    assert cache.pop(key("a")) == cached("a")
    assert cache.pop(key("a")) is None


def test_a_popped_snapshot_has_the_databases_time_of_now() -> None:
    clock = Clock()
    cache = a_cache(clock)
    cache.put(cached("a"))
    clock.now += 90
    popped = cache.pop(key("a"))
    assert popped is not None
    assert popped.snapshot.head.now == NOON + timedelta(seconds=90)


def test_a_snapshot_is_not_popped_beyond_its_age() -> None:
    clock = Clock()
    cache = a_cache(clock)
    cache.put(cached("a"))
    clock.now += MAX_AGE - 1
    popped = cache.pop(key("a"))
    assert popped is not None
    cache.put(popped)  # a turn on a cached snapshot is no read
    clock.now += 1
    assert cache.pop(key("a")) is None


def test_a_busy_or_deleted_session_is_not_cached_and_drops_its_earlier_snapshot() -> None:
    for busy in ({"active_turn": "turn"}, {"queue": ("turn",)}, {"deleted": True}):
        cache = a_cache()
        cache.put(cached("a"))
        cache.put(cached("a", **busy))
        assert cache.pop(key("a")) is None


def test_nothing_of_a_deleted_session_is_cached() -> None:
    cache = a_cache()
    cache.put(cached("a"))
    extend(cache, "a")
    cache.put(cached("a", deleted=True))
    assert cache.pop(key("a")) is None
    assert count_messages(cache, "a") == 0


def test_a_conversation_checked_out_while_its_session_was_deleted_is_not_cached_again() -> None:
    cache = a_cache()
    extend(cache, "a")
    readers = [cache.checkout(session_of("a")), cache.checkout(session_of("a"))]
    cache.put(cached("a", deleted=True))
    for reader in readers:
        reader.extend(events("hello"), after=LogEnd(1), end=LogEnd(2))
        cache.put(cached("a"))  # as it was before
        cache.checkin(session_of("a"), reader)
        assert cache.pop(key("a")) is None
    assert count_messages(cache, "a") == 0


def test_an_undeleted_session_is_cached_again() -> None:
    cache = a_cache()
    conversation = cache.checkout(session_of("a"))
    cache.put(cached("a", deleted=True))
    cache.checkin(session_of("a"), conversation)
    cache.put(cached("a"))
    extend(cache, "a")
    assert cache.pop(key("a")) == cached("a")
    assert count_messages(cache, "a") == 1


def test_the_least_recent_sessions_are_dropped_first() -> None:
    cache = a_cache(sessions=3)
    for name in ("a", "b", "c", "a", "d"):
        cache.put(cached(name))
        extend(cache, name)
    assert [name for name in "abcd" if cache.pop(key(name))] == ["a", "c", "d"]
    assert [count_messages(cache, name) for name in "acd"] == [1, 1, 1]
    assert count_messages(cache, "b") == 0


def test_all_conversations_together_stay_within_their_bytes() -> None:
    cache = a_cache(sessions=100, conversation_bytes=90_000)
    for number in range(8):
        extend(cache, f"session {number}", "x" * 10_000)
    assert [count_messages(cache, f"session {number}") for number in range(4, 8)] == [1, 1, 1, 1]
    assert count_messages(cache, "session 3") == 0


def test_a_conversation_that_is_too_large_is_not_cached_and_takes_no_room() -> None:
    cache = a_cache(sessions=100, conversation_bytes=90_000)
    extend(cache, "large", "x" * 60_000)
    assert count_messages(cache, "large") == 0
    for number in range(4):
        extend(cache, f"session {number}", "x" * 10_000)
    assert [count_messages(cache, f"session {number}") for number in range(4)] == [1, 1, 1, 1]


def test_a_conversation_that_grows_counts_by_its_new_size() -> None:
    cache = a_cache(sessions=100, conversation_bytes=90_000)
    for sequence in range(2, 6):
        extend(cache, "a", "x" * 10_000, sequence=sequence)
    assert count_messages(cache, "a") == 4
    extend(cache, "b", "x" * 10_000)
    assert (count_messages(cache, "b"), count_messages(cache, "a")) == (1, 0)


def test_a_deleted_sessions_conversation_is_dropped() -> None:
    cache = a_cache()
    extend(cache, "a")
    cache.put(cached("a", deleted=True))
    assert count_messages(cache, "a") == 0


def test_a_new_session_of_the_same_id_has_no_conversation() -> None:
    cache = a_cache()
    extend(cache, "a")
    new = replace(session_of("a"), create_time=NOON + timedelta(days=1))
    assert cache.checkout(new).messages("") == ()


def test_the_database_time_of_a_new_session_is_carried_on_from_the_last_read_of_any() -> None:
    clock = Clock()
    cache, creation = a_cache(clock), Creation(session=session_of("new"), agent=AGENT)
    assert cache.new(creation) is None, "no session was read yet"
    cache.put(cached("late", active_turn="turn"))
    cache.put(replace(cached("early"), database_time=NOON - timedelta(hours=1), read_at=900.0))
    clock.now += 5
    first = cache.new(creation)
    assert first is not None
    assert first.snapshot.head == creation.head(now=NOON + timedelta(seconds=5))
    assert (first.snapshot.session, first.snapshot.turn) == (creation.session, None)
    cache.put(first)
    clock.now = 1000.0 + MAX_AGE
    assert cache.new(creation) is None, "a new session's time is no reading"


def test_what_is_cached_and_in_use_counts_in_the_budget() -> None:
    memory = MemoryBudget()
    cache = a_cache(memory=memory)

    def used() -> int:
        return memory.used()["sessions"]

    cache.put(cached("a"))
    extend(cache, "a", "x" * 10_000)
    assert SNAPSHOT_BYTES + 20_000 < used() < SNAPSHOT_BYTES + 30_000
    before = used()
    conversation = cache.checkout(session_of("a"))
    assert used() == before, "a running turn holds its conversation"
    conversation.extend(events("x" * 10_000, sequence=3), after=LogEnd(2), end=LogEnd(3))
    assert used() > before + 20_000
    other = cache.checkout(session_of("a"))
    other.extend(events("y" * 10_000), after=LogEnd(1), end=LogEnd(2))
    for reader in (conversation, other):
        cache.checkin(session_of("a"), reader)
    assert used() == before, "that of the last one"
    cache.put(cached("a", deleted=True))
    assert used() == 0


def test_over_the_budget_conversations_go_first_then_snapshots_those_of_long_ago_before_others() -> None:
    memory = MemoryBudget(PROCESS_BYTES + 3 * SNAPSHOT_BYTES + 90_000)
    memory.most = 0  # no spare
    cache = a_cache(sessions=100, memory=memory)
    for name in "abc":
        cache.put(cached(name))
        extend(cache, name, "x" * 10_000)
    needed = memory.part("needed")
    needed.add(40_000)
    assert [count_messages(cache, name) for name in "abc"] == [0, 1, 1]
    needed.add(50_000 + SNAPSHOT_BYTES)
    assert [count_messages(cache, name) for name in "abc"] == [0, 0, 0]
    assert [cache.pop(key(name)) is not None for name in "abc"] == [False, True, True]
    assert not memory.is_full
