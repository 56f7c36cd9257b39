"""Unknown is not aborted: a changeset while the database, the network or the caller fails in the middle."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import AGENT, a_first_event, a_request, a_session, a_session_key, a_turn, an_event
from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of, run_turn, until
from tests.integration.mongo.batches import ABORTED, CONFLICT, NEVER_ARRIVED, REPLY_LOST, SOON
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.domain.session import SessionKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import (
    Changeset,
    Committed,
    Conflict,
    Duplicate,
    HeadChange,
    LeaseChange,
    RequestKey,
    RequestRecord,
)
from turnkeeper.store.mongo.client import ClientSession
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.mongo.transactions.outcomes import Outcomes


async def _changeset(store: MongoStore, key: SessionKey) -> Changeset:
    return a_changeset(await head_of(store, key), an_event("one"), an_event("two"), new_turns=(a_turn(key),))


async def _stored_once(store: MongoStore, changeset: Changeset, result: object) -> None:
    """Asserts that the changeset's events and turn are stored once, and that this is known."""
    events = await store.events(changeset.session_key, after=0, limit=99)
    assert [event.sequence for event in events] == [1, 2, 3]
    assert result == Committed(last_seq=3, fence=0, events=tuple(events[1:]))
    assert await store.turn(changeset.session_key, changeset.new_turns[0].id) == changeset.new_turns[0]
    assert await store.commit(changeset) == result


async def _nothing_open(client: Client) -> None:
    """Asserts that no transaction is open on the server."""

    async def none_open() -> bool:
        status = await client.admin.command("serverStatus")
        return bool(status["transactions"]["currentOpen"] == 0)

    await until(none_open)


@pytest.mark.parametrize(
    "how", [REPLY_LOST, NEVER_ARRIVED, ABORTED], ids=["reply-lost", "never-arrived", "aborted-for-certain"]
)
async def test_i3_a_commit_that_fails_for_a_while_is_stored_once(
    store: MongoStore, failing: FailPoint, how: dict[str, Any]
) -> None:
    """More often than the driver tries again by itself."""
    changeset = await _changeset(store, await begin(store))
    async with failing(["commitTransaction"], times=3, **how):
        result = await store.commit(changeset)
    await _stored_once(store, changeset, result)


@pytest.mark.parametrize("how", [CONFLICT, NEVER_ARRIVED], ids=["conflict", "never-arrived"])
@pytest.mark.parametrize("command", ["update", "insert"])
async def test_a_write_that_fails_for_a_while_is_stored_once(
    store: MongoStore, client: Client, failing: FailPoint, how: dict[str, Any], command: str
) -> None:
    changeset = await _changeset(store, await begin(store))
    async with failing([command], times=2, **how):
        result = await store.commit(changeset)
    await _stored_once(store, changeset, result)
    await _nothing_open(client)


@pytest.mark.parametrize("events", [True, False])
async def test_i3_an_unknown_outcome_is_resolved_by_the_changesets_id(
    new_store: NewStore, failing: FailPoint, events: bool
) -> None:
    """The commit was carried out, but until the deadline each answer is a write concern error."""
    store = await new_store(operation=SOON)
    key = await begin(store)
    change = HeadChange(lease=LeaseChange.TAKE, owner="one", lease_for=LONG)
    changeset = a_changeset(await head_of(store, key), *([an_event()] if events else []), head=change)
    async with failing(["commitTransaction"], **REPLY_LOST):
        result = await store.commit(changeset)
        assert result == Committed(last_seq=1 + events, fence=1, events=result.events)  # type: ignore[union-attr]
    assert await store.commit(changeset) == result
    assert (await head_of(store, key)).fence == 1


async def test_i3_what_stays_unknown_is_neither_answered_nor_given_up(
    new_store: NewStore, client: Client, failing: FailPoint
) -> None:
    """No commit arrives until the deadline: the caller gets UNAVAILABLE; the outcome is settled in the background."""
    store, other = await new_store(operation=SOON), await new_store()
    key = await begin(store)
    changeset = await _changeset(store, key)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        assert (await head_of(other, key)).last_seq == 1

    async def resolved() -> bool:
        return (await head_of(other, key)).last_seq == 3

    await until(resolved)
    await _stored_once(other, changeset, await other.commit(changeset))
    await _nothing_open(client)


async def test_i3_closing_waits_for_what_is_unknown(new_store: NewStore, failing: FailPoint) -> None:
    store, other = await new_store(operation=SOON), await new_store()
    key = await begin(store)
    changeset = await _changeset(store, key)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        closing = asyncio.create_task(store.close())
    await closing
    assert (await head_of(other, key)).last_seq == 3
    await _stored_once(other, changeset, await other.commit(changeset))


async def test_a_conflict_that_lasts_is_unavailable_and_leaves_nothing_behind(
    new_store: NewStore, client: Client, database_name: str
) -> None:
    """Another open transaction keeps the head locked."""
    store = await new_store(operation=SOON)
    key = await begin(store)
    changeset = await _changeset(store, key)
    async with client.start_session() as session:
        await session.start_transaction()
        heads = client[database_name]["heads"]
        await heads.update_one({"session_id": key.session_id}, {"$set": {"compacted_to": 0, "x": 1}}, session=session)
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        await session.abort_transaction()
    await _nothing_open(client)
    await _stored_once(store, changeset, await store.commit(changeset))


async def test_writes_that_never_arrive_leave_no_open_transaction(
    new_store: NewStore, client: Client, failing: FailPoint
) -> None:
    """The head was written, then the line went dead until the deadline: the abort does not arrive either."""
    store, other = await new_store(operation=SOON), await new_store()
    key = await begin(store)
    changeset = await _changeset(store, key)
    async with failing(["insert", "abortTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
    await _nothing_open(client)
    await _stored_once(other, changeset, await other.commit(changeset))


@pytest.mark.parametrize("command", ["update", "insert", "commitTransaction"])
async def test_a_cancelled_caller_leaves_no_half_done_changeset(
    store: MongoStore, client: Client, recorder: Recorder, failing: FailPoint, command: str
) -> None:
    """The commit goes on to its end without it."""
    key = await begin(store)
    changeset = await _changeset(store, key)

    async def sent() -> bool:
        return any(name_of(sent) == command for sent in recorder.commands)

    async with failing([command], times=1, blockConnection=True, blockTimeMS=300):
        with recorder.recording():
            caller = asyncio.create_task(store.commit(changeset))
            await until(sent)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller

    async def stored() -> bool:
        return (await head_of(store, key)).last_seq == 3

    await until(stored)
    await _stored_once(store, changeset, await store.commit(changeset))
    await _nothing_open(client)


@pytest.mark.parametrize("how", [REPLY_LOST, NEVER_ARRIVED, ABORTED], ids=["reply-lost", "never-arrived", "aborted"])
async def test_a_new_session_is_made_once_whatever_happens_to_the_commit(
    store: MongoStore, failing: FailPoint, how: dict[str, Any]
) -> None:
    key = a_session_key()
    async with failing(["commitTransaction"], times=3, **how):
        assert await store.create_session(a_session(key), AGENT, event=a_first_event()) is None
    assert await store.create_session(a_session(key), AGENT, event=a_first_event()) == a_session(key)
    assert len(await store.events(key, after=0, limit=9)) == 1


async def test_an_owner_that_lost_its_turn_while_the_outcome_was_unknown_gets_committed(
    store: MongoStore, failing: FailPoint
) -> None:
    """Its changeset was stored, and then the turn was taken over: that is Committed, not Fenced."""
    key = await begin(store)
    _, owned = await run_turn(store, key)
    changeset = a_changeset(await head_of(store, key), an_event(), fence=owned.fence)
    first = await committed(store.commit(changeset))
    await run_turn(store, key, owner="two")
    assert await store.commit(changeset) == first
    silent = a_changeset(await head_of(store, key), fence=owned.fence)
    assert await store.commit(silent) != Conflict()


async def test_a_commit_that_comes_through_while_it_is_looked_for_is_no_duplicate_of_itself(
    store: MongoStore,
) -> None:
    """The record is found, but the head was read before it. A caller that gets Duplicate would not run its turn."""
    key = await begin(store)
    request = a_request(key)
    changeset = replace(await _changeset(store, key), request=request)
    unsent = [changeset]

    class Slower(Outcomes):
        """Reads the record only when the commit has come through."""

        async def find_request(self, key: RequestKey, *, session: ClientSession | None = None) -> RequestRecord | None:
            if unsent:
                await committed(store.commit(unsent.pop()))
            return await super().find_request(key, session=session)

    connection = store._connection  # noqa: SLF001 - looked up as an unsure commit is
    async with connection.session() as session:
        result = await Slower(connection).of_changeset(changeset, session)
        twin = await Outcomes(connection).of_changeset(replace(changeset, changeset_id="twin"), session)
    await _stored_once(store, changeset, result)
    assert twin == Duplicate(request)


async def test_d2_a_reading_that_lags_behind_the_decision_is_no_conflict(store: MongoStore) -> None:
    """After an election a reading may show the head as it was, or no head: the changeset may still be stored."""
    key = await begin(store)
    read = await head_of(store, key)
    changeset = a_changeset(read, an_event())
    lagging = {
        "events": replace(changeset, last_seq=read.last_seq + 1),
        "fence": replace(changeset, head_fence=read.fence + 1),
        "revision": replace(changeset, revision=read.revision + 1),
        "session": replace(changeset, session_id="absent"),
    }
    connection = store._connection  # noqa: SLF001 - looked up as an unsure commit is
    async with connection.session() as session:
        results = {name: await Outcomes(connection).of_changeset(late, session) for name, late in lagging.items()}
        moved = await Outcomes(connection).of_changeset(replace(changeset, last_seq=read.last_seq - 1), session)
    assert results == dict.fromkeys(lagging)
    assert moved == Conflict()
