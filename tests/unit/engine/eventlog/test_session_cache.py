"""What a replica keeps of sessions: taken once, by whom it concerns, within bounds."""

from dataclasses import replace
from datetime import timedelta
from typing import cast

from tests.builders import NOON, a_place, a_session
from turnkeeper.domain.event import Event, MessageReceived
from turnkeeper.domain.message import Part
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.engine.eventlog.session_cache import GOOD_FOR, CachedSnapshot, SessionCache
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Cancel, Head, Snapshot
from turnkeeper.store.contract import Store

NO_STORE = cast(Store, None)
"""Nothing here reads."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def session_of(name: str) -> Session:
    return a_session(a_place(session_id=name))


def seen(name: str, **head: object) -> CachedSnapshot:
    session = session_of(name)
    known = Head(
        session_id=name,
        tenant=session.tenant,
        last_seq=7,
        fence=2,
        owner="",
        owned=False,
        active_turn="",
        queue=(),
        cancel=Cancel(),
        lapses=0,
        now=NOON,
        revision=5,
    )
    known = replace(known, **head)  # type: ignore[arg-type]
    return CachedSnapshot(Snapshot(head=known, session=session, turn=None, calls=(), approvals=()), NOON, 1000.0)


def key(name: str) -> SessionKey:
    return session_of(name).key


def warm(clock: Clock | None = None, *, sessions: int = 3, memory_bytes: int = 1 << 20) -> SessionCache:
    return SessionCache(
        NO_STORE, decode=WireCodec().decode, sessions=sessions, memory_bytes=memory_bytes, clock=clock or Clock()
    )


def remember(kept: SessionCache, name: str, text: str = "hello", *, sequence: int = 2) -> None:
    memory = kept.recall(session_of(name))
    memory.take(said(text, sequence=sequence))
    kept.remember(session_of(name), memory)


def said(text: str, *, sequence: int = 2) -> list[Event]:
    message = MessageReceived(message_id="m", content=(Part(text=text),), principal="ada")
    return [Event(sequence=sequence, turn_id=f"turn {sequence}", attempt=0, create_time=NOON, payload=message)]


def known(kept: SessionCache, name: str) -> int:
    """How many messages it recalls."""
    memory = kept.recall(session_of(name))
    kept.remember(session_of(name), memory)
    return len(memory.messages(""))


def test_a_snapshot_is_decided_on_once() -> None:
    kept = warm()
    kept.keep(seen("a"))
    assert kept.take(key("a")) == seen("a")
    assert kept.take(key("a")) is None


def test_the_databases_clock_goes_on() -> None:
    clock = Clock()
    kept = warm(clock)
    kept.keep(seen("a"))
    clock.now += 90
    taken = kept.take(key("a"))
    assert taken is not None
    assert taken.snapshot.head.now == NOON + timedelta(seconds=90)


def test_an_old_clock_is_read_again() -> None:
    clock = Clock()
    kept = warm(clock)
    kept.keep(seen("a"))
    clock.now += GOOD_FOR - 1
    used = kept.take(key("a"))
    assert used is not None
    kept.keep(used)  # a turn on what is kept is no reading
    clock.now += 1
    assert kept.take(key("a")) is None


def test_what_runs_or_is_deleted_is_not_kept_nor_what_was_known_before() -> None:
    for busy in ({"active_turn": "turn"}, {"queue": ("turn",)}, {"deleted": True}):
        kept = warm()
        kept.keep(seen("a"))
        kept.keep(seen("a", **busy))
        assert kept.take(key("a")) is None


def test_nothing_of_a_deleted_session_is_kept() -> None:
    kept = warm()
    kept.keep(seen("a"))
    remember(kept, "a")
    kept.keep(seen("a", deleted=True))
    assert kept.take(key("a")) is None
    assert known(kept, "a") == 0


def test_whoever_had_the_conversation_of_a_session_when_it_was_deleted_gives_nothing_back() -> None:
    kept = warm()
    remember(kept, "a")
    readers = [kept.recall(session_of("a")), kept.recall(session_of("a"))]
    kept.keep(seen("a", deleted=True))
    for reader in readers:
        reader.take(said("hello"))
        kept.keep(seen("a"))  # as it was before
        kept.remember(session_of("a"), reader)
        assert kept.take(key("a")) is None
    assert known(kept, "a") == 0


def test_a_session_that_is_shown_again_is_kept_again() -> None:
    kept = warm()
    memory = kept.recall(session_of("a"))
    kept.keep(seen("a", deleted=True))
    kept.remember(session_of("a"), memory)
    kept.keep(seen("a"))
    remember(kept, "a")
    assert kept.take(key("a")) == seen("a")
    assert known(kept, "a") == 1


def test_the_sessions_of_longest_ago_go_first() -> None:
    kept = warm(sessions=3)
    for name in ("a", "b", "c", "a", "d"):
        kept.keep(seen(name))
        remember(kept, name)
    assert [name for name in "abcd" if kept.take(key(name))] == ["a", "c", "d"]
    assert [known(kept, name) for name in "acd"] == [1, 1, 1]
    assert known(kept, "b") == 0


def test_all_conversations_together_stay_within_their_bytes() -> None:
    kept = warm(sessions=100, memory_bytes=90_000)
    for number in range(8):
        remember(kept, f"session {number}", "x" * 10_000)
    assert [known(kept, f"session {number}") for number in range(4, 8)] == [1, 1, 1, 1]
    assert known(kept, "session 3") == 0


def test_one_that_is_too_large_is_not_kept_and_takes_no_room() -> None:
    kept = warm(sessions=100, memory_bytes=90_000)
    remember(kept, "large", "x" * 60_000)
    assert known(kept, "large") == 0
    for number in range(4):
        remember(kept, f"session {number}", "x" * 10_000)
    assert [known(kept, f"session {number}") for number in range(4)] == [1, 1, 1, 1]


def test_a_conversation_that_grows_counts_as_what_it_is_now() -> None:
    kept = warm(sessions=100, memory_bytes=90_000)
    for sequence in range(2, 6):
        remember(kept, "a", "x" * 10_000, sequence=sequence)
    assert known(kept, "a") == 4
    remember(kept, "b", "x" * 10_000)
    assert (known(kept, "b"), known(kept, "a")) == (1, 0)


def test_a_deleted_sessions_conversation_is_forgotten() -> None:
    kept = warm()
    remember(kept, "a")
    kept.keep(seen("a", deleted=True))
    assert known(kept, "a") == 0


def test_a_new_session_of_the_same_id_has_no_conversation() -> None:
    kept = warm()
    remember(kept, "a")
    new = replace(session_of("a"), create_time=NOON + timedelta(days=1))
    assert kept.recall(new).messages("") == ()
