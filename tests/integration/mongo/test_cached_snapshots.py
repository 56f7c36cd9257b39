"""After a replica's own commit its cached snapshot is the stored session; after an unknown outcome none is cached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

import pytest
from opentelemetry.metrics import NoOpMeterProvider

from tests.builders import AGENT, NOON, a_session, a_session_key, new_id
from tests.contracts.stores import begin
from tests.integration.mongo.conftest import NewStore
from turnkeeper.domain.event import Event, MessageReceived, TurnCompleted
from turnkeeper.domain.message import Part, Usage
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import StopReason, TurnOptions, TurnState
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.lease import HeldLeases
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.sources import Sources
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, accept, accept_first
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feeds import Feeds
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import (
    Changeset,
    CommitResult,
    Committed,
    Creation,
    LogEnd,
    RequestKey,
    RequestRecord,
    Snapshot,
    StoredEvent,
)
from turnkeeper.store.mongo.client import Document
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.metrics import Metrics

LEASE = timedelta(minutes=1)


@dataclass
class Replica:
    """A log writer with its session cache, on one session."""

    store: MongoStore
    key: SessionKey
    at: datetime = NOON
    session_cache: SessionCache = field(init=False)
    log_writer: LogWriter = field(init=False)

    def __post_init__(self) -> None:
        self.session_cache = SessionCache(self.store, decode=WireCodec().decode)
        self.log_writer = LogWriter(
            self.store,
            Feeds(self.store, poll=1),
            Metrics(NoOpMeterProvider()),
            session_cache=self.session_cache,
            held_leases=HeldLeases(),
            sources=Sources(now=lambda: self.at, new_id=new_id, jitter=lambda: 0.0),
        )

    @classmethod
    async def of_new_session(cls, store: MongoStore) -> Self:
        return cls(store, await begin(store, a_session_key()))

    async def read(self) -> Snapshot:
        stored_snapshot = await self.store.snapshot(self.key)
        assert stored_snapshot is not None
        return stored_snapshot

    async def send(self, request_id: str, *, fingerprint: str = "same") -> Stored[Any] | RequestRecord:
        """Sends a message. No replica takes its turn."""
        message = self.message(request_id, fingerprint)
        return await self.log_writer.append(self.key, lambda uow: accept(uow, message, offer=None), request=message.key)

    def message(self, request_id: str, fingerprint: str = "same") -> NewMessage:
        return NewMessage(
            key=RequestKey(
                tenant=self.key.tenant,
                session_id=self.key.session_id,
                principal="ada",
                family="message",
                request_id=request_id,
            ),
            fingerprint=fingerprint,
            content=(Part(text="hello"),),
            if_busy="REJECT",
            options=TurnOptions(),
        )

    async def same(self, cached: Snapshot) -> None:
        """Asserts that a read returns this snapshot, except for the clock."""
        stored_snapshot = await self.read()
        assert replace(cached, head=replace(cached.head, now=stored_snapshot.head.now)) == stored_snapshot


@pytest.fixture
async def replica(store: MongoStore) -> Replica:
    return await Replica.of_new_session(store)


async def test_a_session_that_its_message_creates_is_known_as_it_is_read(replica: Replica) -> None:
    await run_a_turn(replica)
    replica.key = a_session_key()
    message = replica.message(new_id("request"))
    creation = Creation(session=a_session(replica.key, etag=new_id("etag")), agent=AGENT)
    stored = await replica.log_writer.append_first(creation, lambda uow: accept_first(uow, message, offer=None))
    assert isinstance(stored, Stored)
    assert stored.committed is not None
    after = stored.uow.snapshot_after(stored.committed, by_owner=False)
    await replica.same(replace(after, turn=stored.value[0]))
    again = await replica.log_writer.append_first(creation, lambda uow: accept_first(uow, message, offer=None))
    assert again == stored.value[1]


async def run_a_turn(replica: Replica) -> Snapshot:
    """Runs a turn that is owned from its message on, to its end; compares every snapshot with a read."""
    offer, message = LeaseOffer(owner="one", lease=LEASE, schema=1), replica.message(new_id("request"))
    stored = await replica.log_writer.append(
        replica.key, lambda uow: accept(uow, message, offer=offer), request=message.key
    )
    assert isinstance(stored, Stored)
    assert stored.committed is not None
    after = stored.uow.snapshot_after(stored.committed, by_owner=False)
    running = replace(after, turn=stored.value[0], request=None)
    await replica.same(running)
    for ends in (False, True):
        uow = UnitOfWork(running, at=replica.at, new_id=new_id)
        uow.put_turn(replace(uow.turn, iterations=uow.turn.iterations + 1))
        if ends:
            uow.put_turn(uow.turn.ended_as(TurnState.COMPLETED, at=replica.at))
            uow.append(TurnCompleted(message_id="said", stop_reason=StopReason.FINISHED, usage=Usage()), turn=uow.turn)
            uow.activate_next_turn()
        changeset = uow.changeset(changeset_id=new_id("changeset"), fence=running.head.fence, lease_for=LEASE)
        result = await replica.log_writer.commit(changeset)
        assert isinstance(result, Committed)
        running = uow.snapshot_after(result, by_owner=True)
        stored_snapshot = await replica.store.snapshot(replica.key, turn_id=stored.value[0].id)
        assert stored_snapshot is not None
        assert replace(running, head=replace(running.head, now=stored_snapshot.head.now)) == stored_snapshot
    replica.session_cache.put(CachedSnapshot.fresh(running))
    return running


async def test_after_the_commits_of_a_turn_the_cached_snapshot_is_the_stored_session(replica: Replica) -> None:
    for _ in range(2):
        after = await run_a_turn(replica)
        await replica.same(replace(after, turn=None))


VERBS: dict[str, Callable[[UnitOfWork], int]] = {
    "update": lambda uow: session_rules.update(uow, session_rules.SessionChange(title="new"), etag=""),
    "suspend": lambda uow: session_rules.suspend(uow, by="ada"),
    "end": lambda uow: session_rules.end(uow, {}, by="ada", reason=""),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_after_a_verb_on_an_idle_session_the_cached_snapshot_is_the_stored_session(
    replica: Replica, verb: str
) -> None:
    replica.at += timedelta(seconds=7)
    await replica.log_writer.append(replica.key, VERBS[verb])
    cached = replica.session_cache.pop(replica.key)
    assert cached is not None
    await replica.same(cached.snapshot)


async def test_a_deleted_session_is_not_cached(replica: Replica) -> None:
    await replica.log_writer.append(replica.key, VERBS["update"])
    await replica.log_writer.append(replica.key, lambda uow: session_rules.delete(uow, {}, by="ada", etag=""))
    assert replica.session_cache.pop(replica.key) is None


async def test_a_repeat_is_found_by_the_read_and_on_a_cached_snapshot_by_the_store(replica: Replica) -> None:
    before = await replica.read()
    first = await replica.send("one")
    assert isinstance(first, Stored)
    assert await replica.send("one") == first.uow.request
    replica.session_cache.put(CachedSnapshot.fresh(before))  # as if the first had been stored by another replica
    assert await replica.send("one") == first.uow.request


async def test_a_cached_snapshot_that_is_out_of_date_is_read_again(replica: Replica, store: MongoStore) -> None:
    await replica.log_writer.append(replica.key, VERBS["update"])
    other = Replica(store, replica.key)
    await other.log_writer.append(replica.key, VERBS["suspend"])
    await other.log_writer.append(replica.key, lambda uow: session_rules.resume(uow, by="ada"))
    sent = await replica.send("one")
    assert isinstance(sent, Stored)
    assert sent.uow.snapshot.head.last_seq == 4
    await replica.same(replace(sent.uow.snapshot_after(_of(sent), by_owner=False), turn=sent.value[0], request=None))


async def test_after_an_unknown_outcome_nothing_is_cached(
    new_store: NewStore,
) -> None:
    class Unanswered(MongoStore):
        loses_answers = False

        async def commit(self, changeset: Changeset) -> CommitResult:
            result = await super().commit(changeset)
            if self.loses_answers:
                self.loses_answers = False
                raise ServiceUnavailable
            return result

    store = await new_store(Unanswered)
    assert isinstance(store, Unanswered)
    replica = await Replica.of_new_session(store)
    await replica.log_writer.append(replica.key, VERBS["update"])
    store.loses_answers = True
    with pytest.raises(ServiceUnavailable):
        await replica.send("one")
    assert replica.session_cache.pop(replica.key) is None
    again = await replica.send("one")
    assert isinstance(again, RequestRecord)
    assert again.sequence == 3


def _of(stored: Stored[Any]) -> Committed:
    assert stored.committed is not None
    return stored.committed


async def test_a_conversation_is_not_read_from_a_primary_that_shows_less_of_the_log(
    new_store: NewStore,
) -> None:
    """An event that is skipped once would be missing in every later turn's context."""

    class Behind(MongoStore):
        hidden = 1

        async def _head_with(self, key: SessionKey, ends: Sequence[LogEnd]) -> Document | None:
            head = await super()._head_with(key, ends)
            return head and {**head, "last_seq": head["last_seq"] - self.hidden}

    store = await new_store(Behind)
    assert isinstance(store, Behind)
    replica = await Replica.of_new_session(store)
    await replica.send("m1")
    now = await replica.read()
    conversation = Conversation(store, key=replica.key, decode=_a_message)
    with pytest.raises(ServiceUnavailable):
        await conversation.read(until=now.head.end)
    store.hidden = 0
    await conversation.read(until=now.head.end)
    assert [entry.message.text for entry in conversation.entries()] == ["hello"]


def _a_message(stored: StoredEvent) -> Event:
    message = MessageReceived(message_id="m", content=(Part(text="hello"),), principal="p")
    return Event(sequence=stored.sequence, turn_id=stored.turn_id, attempt=0, create_time=NOON, payload=message)
