"""What is kept of a session after an own step is what the database has; after an unknown outcome, nothing is."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

import pytest

from tests.builders import NOON, a_place, new_id
from tests.contracts.stores import begin
from turnkeeper.domain.event import Event, MessageReceived, TurnCompleted
from turnkeeper.domain.message import Part, Usage
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import StopReason, TurnOptions, TurnState
from turnkeeper.engine.eventlog.conversation import Conversation
from turnkeeper.engine.eventlog.session_cache import CachedSnapshot, SessionCache
from turnkeeper.engine.eventlog.writer import LogWriter, Stored
from turnkeeper.engine.rules import sessions as session_rules
from turnkeeper.engine.rules.messages import LeaseOffer, NewMessage, accept
from turnkeeper.engine.rules.unit_of_work import UnitOfWork
from turnkeeper.engine.streaming.feed import Feeds
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.rpc.codec import WireCodec
from turnkeeper.store.changeset import Committed, RequestKey, RequestRecord, Snapshot, StoredEvent
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.telemetry.instruments import Instruments
from turnkeeper.telemetry.metrics import Metrics

LEASE = timedelta(minutes=1)


@dataclass
class Replica:
    """A journal on a store, and what both keep of one session."""

    store: MongoStore
    place: SessionKey
    at: datetime = NOON
    session_cache: SessionCache = field(init=False)
    log_writer: LogWriter = field(init=False)

    def __post_init__(self) -> None:
        self.session_cache = SessionCache(self.store, decode=WireCodec().decode)
        self.log_writer = LogWriter(
            self.store,
            Feeds(self.store, poll=1),
            Metrics(Instruments()),
            session_cache=self.session_cache,
            now=lambda: self.at,
            new_id=new_id,
            jitter=lambda: 0.0,
        )

    @classmethod
    async def of_new_session(cls, store: MongoStore) -> Self:
        return cls(store, await begin(store, a_place()))

    @property
    def key(self) -> SessionKey:
        return self.place

    async def read(self) -> Snapshot:
        found = await self.store.snapshot(self.key)
        assert found is not None
        return found

    async def send(self, request_id: str, *, fingerprint: str = "same") -> Stored[Any] | RequestRecord:
        """A message. Nobody takes its turn."""
        message = self.message(request_id, fingerprint)
        return await self.log_writer.append(self.key, lambda uow: accept(uow, message, offer=None), request=message.key)

    def message(self, request_id: str, fingerprint: str = "same") -> NewMessage:
        return NewMessage(
            key=RequestKey(
                tenant=self.place.tenant,
                session_id=self.place.session_id,
                principal="ada",
                family="message",
                request_id=request_id,
            ),
            fingerprint=fingerprint,
            content=(Part(text="hello"),),
            if_busy="REJECT",
            options=TurnOptions(),
        )

    async def same(self, known: Snapshot) -> None:
        """But for the clock: what a reading finds."""
        found = await self.read()
        assert replace(known, head=replace(known.head, now=found.head.now)) == found


@pytest.fixture
async def replica(store: MongoStore) -> Replica:
    return await Replica.of_new_session(store)


async def run_a_turn(replica: Replica) -> Snapshot:
    """Taken in the step that stores its message, and ended by its owner; every snapshot as it is known."""
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
        step = uow.changeset(changeset_id=new_id("step"), fence=running.head.fence, lease_for=LEASE)
        verdict = await replica.log_writer.commit(step)
        assert isinstance(verdict, Committed)
        running = uow.snapshot_after(verdict, by_owner=True)
        found = await replica.store.snapshot(replica.key, turn_id=stored.value[0].id)
        assert found is not None
        assert replace(running, head=replace(running.head, now=found.head.now)) == found
    replica.session_cache.keep(CachedSnapshot.now(running))
    return running


async def test_after_the_steps_of_a_turn_what_is_known_is_what_is_stored(replica: Replica) -> None:
    for _ in range(2):
        after = await run_a_turn(replica)
        await replica.same(replace(after, turn=None))


VERBS: dict[str, Callable[[UnitOfWork], int]] = {
    "update": lambda uow: session_rules.update(uow, session_rules.Change(title="new"), etag=""),
    "suspend": lambda uow: session_rules.suspend(uow, by="ada"),
    "end": lambda uow: session_rules.end(uow, {}, by="ada", reason=""),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_after_a_verb_on_an_idle_session_what_is_kept_is_what_is_stored(replica: Replica, verb: str) -> None:
    replica.at += timedelta(seconds=7)
    await replica.log_writer.append(replica.key, VERBS[verb])
    kept = replica.session_cache.take(replica.key)
    assert kept is not None
    await replica.same(kept.snapshot)


async def test_a_deleted_session_is_not_kept(replica: Replica) -> None:
    await replica.log_writer.append(replica.key, VERBS["update"])
    await replica.log_writer.append(replica.key, lambda uow: session_rules.delete(uow, {}, by="ada", etag=""))
    assert replica.session_cache.take(replica.key) is None


async def test_a_repeat_is_found_by_the_reading_and_on_a_kept_snapshot_by_the_store(replica: Replica) -> None:
    before = await replica.read()
    first = await replica.send("one")
    assert isinstance(first, Stored)
    assert await replica.send("one") == first.uow.request
    replica.session_cache.keep(CachedSnapshot.now(before))  # as if the first had been stored by another replica
    assert await replica.send("one") == first.uow.request


async def test_a_kept_snapshot_that_others_left_behind_is_read_anew(replica: Replica, store: MongoStore) -> None:
    await replica.log_writer.append(replica.key, VERBS["update"])
    other = Replica(store, replica.place)
    await other.log_writer.append(replica.key, VERBS["suspend"])
    await other.log_writer.append(replica.key, lambda uow: session_rules.resume(uow, by="ada"))
    sent = await replica.send("one")
    assert isinstance(sent, Stored)
    assert sent.uow.snapshot.head.last_seq == 4
    await replica.same(replace(sent.uow.snapshot_after(_of(sent), by_owner=False), turn=sent.value[0], request=None))


async def test_after_an_unknown_outcome_nothing_is_kept(
    replica: Replica, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replica.log_writer.append(replica.key, VERBS["update"])
    commit = store.commit

    async def commit_and_lose_the_answer(step: Any) -> Any:
        await commit(step)
        raise ServiceUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(store, "commit", commit_and_lose_the_answer)
        with pytest.raises(ServiceUnavailable):
            await replica.send("one")
    assert replica.session_cache.take(replica.key) is None
    again = await replica.send("one")
    assert isinstance(again, RequestRecord)
    assert again.sequence == 3


def _of(stored: Stored[Any]) -> Committed:
    assert stored.committed is not None
    return stored.committed


async def test_a_conversation_that_a_new_primary_does_not_show_whole_is_not_taken_for_the_whole(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was passed over once would be missing in every later turn's context."""
    await replica.send("m1")
    now = await replica.read()
    memory = Conversation(replica.store, key=replica.key, decode=_a_message)
    last_seqs = replica.store.last_seqs

    async def behind(keys: Any) -> dict[Any, int]:
        return {key: last - 1 for key, last in (await last_seqs(keys)).items()}

    monkeypatch.setattr(replica.store, "last_seqs", behind)
    with pytest.raises(ServiceUnavailable):
        await memory.read(until=now.head.last_seq)
    monkeypatch.undo()
    await memory.read(until=now.head.last_seq)
    assert [entry.message.text for entry in memory.entries()] == ["hello"]


def _a_message(stored: StoredEvent) -> Event:
    said = MessageReceived(message_id="m", content=(Part(text="hello"),), principal="p")
    return Event(sequence=stored.sequence, turn_id=stored.turn_id, attempt=0, create_time=NOON, payload=said)
