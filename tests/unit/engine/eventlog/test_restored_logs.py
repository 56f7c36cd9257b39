"""A conversation is of one history of its log: after the database was restored, nothing of the lost one is in it."""

from collections.abc import Sequence
from random import Random

from tests.builders import NOON, a_session, an_event, new_id
from tests.contracts.stores import a_changeset, begin, committed, head_of
from tests.memory_store.state import MemoryDatabase
from tests.memory_store.store import MemoryStore
from turnkeeper.domain.event import Event
from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.session_cache import SessionCache
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import LogEnd

CODEC = WireCodec()


class Log:
    """One session's log on a store in memory, with a way back."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """The methods of the store that were called."""
        self._database = MemoryDatabase(now=lambda: NOON)
        self.store = MemoryStore(self._database, codec=CODEC, enter=self._enter, random=Random(0))
        self.key = SessionKey("default", "session")

    @classmethod
    async def new(cls, *words: str) -> "Log":
        log = cls()
        await begin(log.store, log.key)
        for text in words:
            await log.store_message(text)
        return log

    async def _enter(self, method: str) -> None:
        self.calls.append(method)

    async def store_message(self, text: str) -> tuple[LogEnd, LogEnd, Sequence[Event]]:
        """Stores a message. Returns the ends before and after it, and its event."""
        head = await head_of(self.store, self.key)
        stored = await committed(self.store.commit(a_changeset(head, an_event(text, turn_id=new_id("turn")))))
        return head.end, await self.end(), [CODEC.decode(event) for event in stored.events]

    async def end(self) -> LogEnd:
        return (await head_of(self.store, self.key)).end

    def restore(self, length: int) -> None:
        """Forgets what came after the event of this number."""
        del self._database.sessions[self.key].log[length:]

    def conversation(self) -> Conversation:
        return Conversation(self.store, key=self.key, decode=CODEC.decode)


def words(conversation: Conversation) -> list[str]:
    return [entry.message.text for entry in conversation.entries()]


async def test_a_conversation_that_is_ahead_of_a_restored_log_is_built_again() -> None:
    log = await Log.new("one", "two", "three")
    conversation = log.conversation()
    assert await conversation.read(until=await log.end())
    log.restore(2)
    assert not await conversation.read(until=await log.end())
    assert words(conversation) == ["one"]
    assert await conversation.read(until=await log.end())


async def test_a_conversation_of_another_history_of_the_same_length_is_built_again() -> None:
    log = await Log.new("one", "two")
    conversation = log.conversation()
    await conversation.read(until=await log.end())
    log.restore(2)
    await log.store_message("other")
    assert not await conversation.read(until=await log.end())
    assert words(conversation) == ["one", "other"]


async def test_a_conversation_of_another_history_is_not_continued_by_a_longer_one() -> None:
    log = await Log.new("one", "two")
    conversation = log.conversation()
    await conversation.read(until=await log.end())
    log.restore(2)
    for text in ("other", "and more"):
        await log.store_message(text)
    assert not await conversation.read(until=await log.end())
    assert words(conversation) == ["one", "other", "and more"]


async def test_a_log_that_was_restored_to_its_beginning_has_an_empty_conversation() -> None:
    log = await Log.new("one")
    conversation = log.conversation()
    await conversation.read(until=await log.end())
    log.restore(1)
    assert not await conversation.read(until=await log.end())
    assert not words(conversation)


async def test_a_common_beginning_is_continued() -> None:
    log = await Log.new("one", "two")
    conversation = log.conversation()
    await conversation.read(until=LogEnd(2))
    log.restore(2)
    await log.store_message("other")
    assert await conversation.read(until=await log.end())
    assert words(conversation) == ["one", "other"]


async def test_a_conversation_that_has_more_of_the_log_than_is_asked_for_stays() -> None:
    """Another reader of this replica was faster."""
    log = await Log.new("one")
    earlier = await log.end()
    await log.store_message("two")
    conversation = log.conversation()
    await conversation.read(until=await log.end())
    assert await conversation.read(until=earlier)
    assert words(conversation) == ["one", "two"]


async def test_own_events_extend_only_the_history_that_they_were_decided_on() -> None:
    log = await Log.new("one", "two")
    of_lost, continued = log.conversation(), log.conversation()
    await of_lost.read(until=await log.end())
    log.restore(2)
    await log.store_message("other")
    await continued.read(until=await log.end())
    before, after, events = await log.store_message("next")
    for conversation in (of_lost, continued):
        conversation.extend(events, after=before, end=after)
    assert words(of_lost) == ["one", "two"]
    assert words(continued) == ["one", "other", "next"]
    assert not await of_lost.read(until=after)
    assert words(of_lost) == ["one", "other", "next"]


async def test_the_first_events_extend_an_empty_conversation_without_a_read() -> None:
    log = await Log.new()
    before, after, events = await log.store_message("one")
    conversation = log.conversation()
    conversation.extend(events, after=before, end=after)
    assert words(conversation) == ["one"]
    log.calls.clear()
    assert await conversation.read(until=after)
    assert not log.calls


async def test_a_cached_conversation_of_a_lost_history_is_not_listed() -> None:
    log = await Log.new("one", "two")
    cache = SessionCache(log.store, decode=CODEC.decode)
    session = a_session(log.key)
    assert len(await cache.entries(session, until=await log.end())) == 2
    log.restore(2)
    assert [entry.message.text for entry in await cache.entries(session, until=await log.end())] == ["one"]
    await log.store_message("other")
    assert [entry.message.text for entry in await cache.entries(session, until=await log.end())] == ["one", "other"]
