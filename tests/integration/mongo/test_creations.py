"""A session that is created by a changeset: in batches, after lost answers, and beside replicas of an older version."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import AGENT, a_first_event, a_request, a_session, a_session_key, a_turn, an_event
from tests.contracts.stores import a_changeset, a_first_changeset, begin, committed, head_of, until
from tests.integration.mongo.batches import (
    ABORTED,
    NEVER_ARRIVED,
    REPLY_LOST,
    SOON,
    TAKEN,
    assert_not_stored,
    assert_stored,
    new_changesets,
    sessions_of,
    together,
)
from tests.integration.mongo.commands import Recorder, name_of
from tests.integration.mongo.conftest import Client, FailPoint, NewStore
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import Changeset, Committed, Conflict, Duplicate
from turnkeeper.store.mongo import agent_documents
from turnkeeper.store.mongo.store import MongoStore


def a_creation(**given: Any) -> Changeset:
    key = a_session_key()
    return a_first_changeset(key, an_event(), new_turns=(a_turn(key),), **given)


async def test_a_session_with_its_first_message_is_one_transaction_without_a_read(
    store: MongoStore, recorder: Recorder
) -> None:
    await store.commit(a_creation())  # the agent's version is known to be stored from now on
    key = a_session_key()
    changeset = a_first_changeset(key, an_event(), new_turns=(a_turn(key),), request=a_request(key))
    with recorder.recording() as commands:
        result = await store.commit(changeset)
    written = [(name_of(command), command[name_of(command)]) for command in commands]
    assert written == [
        ("insert", "heads"),
        ("update", "heads"),
        ("insert", "events"),
        ("insert", "sessions"),
        ("insert", "turns"),
        ("insert", "requests"),
        ("commitTransaction", 1),
    ]
    await assert_stored(store, changeset, result)


async def test_the_documents_are_those_of_a_session_that_is_created_before_its_message(
    store: MongoStore, client: Client, database_name: str
) -> None:
    """So a replica of an older version reads nothing new."""
    one, two = a_session_key(), a_session_key()
    session = a_session(one, etag="later")
    await committed(store.commit(a_first_changeset(one, an_event(), session=session)))
    await begin(store, two)
    second = a_changeset(await head_of(store, two), an_event(), session=replace(session, id=two.session_id))
    await committed(store.commit(second))
    own = ("_id", "session_id", "id", "revision", "payload", "step_id", "end")
    for name, key_field in {"heads": "_id.session_id", "sessions": "_id.session_id", "events": "session_id"}.items():
        documents = [
            [
                {field: value for field, value in document.items() if field not in own}
                async for document in client[database_name][name].find({key_field: key.session_id}).sort("seq")
            ]
            for key in (one, two)
        ]
        assert documents[0] == documents[1], name
        assert documents[0], name


@pytest.mark.parametrize("first", ["created", "changed"])
async def test_sessions_are_created_in_the_transaction_of_other_changesets(
    store: MongoStore, recorder: Recorder, first: str
) -> None:
    await store.commit(a_creation())
    changed, created = await new_changesets(store, 3), [a_creation() for _ in range(3)]
    changesets = [*created, *changed] if first == "created" else [*changed, *created]
    with recorder.recording() as commands:
        results = await together(store, *changesets)
    assert sessions_of(commands) == [[changeset.session_id for changeset in changesets]]
    for changeset, result in zip(changesets, results, strict=True):
        await assert_stored(store, changeset, result)


async def test_a_session_that_exists_leaves_the_batch_and_the_rest_is_stored(store: MongoStore) -> None:
    created, changed = [a_creation() for _ in range(3)], await new_changesets(store, 2)
    there = await begin(store)
    refused = a_first_changeset(there, an_event(), new_turns=(a_turn(there),))
    key = a_session_key()
    request = a_request(key)
    await committed(store.commit(a_first_changeset(key, an_event(), request=request)))
    repeated = a_first_changeset(key, an_event(), request=request)
    results = await together(store, created[0], refused, *created[1:], repeated, *changed)
    assert (results[1], results[4]) == (Conflict(), Duplicate(request))
    await assert_not_stored(store, replace(refused, last_seq=1))
    rest = [result for result in results if isinstance(result, Committed)]
    for changeset, result in zip([*created, *changed], rest, strict=True):
        await assert_stored(store, changeset, result)


async def test_a_session_that_another_transaction_creates_leaves_the_batch_once_that_is_stored(
    store: MongoStore, client: Client, database_name: str
) -> None:
    """Until then the database answers with a conflict, and no head shows which entry met it."""
    rival, others = a_creation(), [a_creation() for _ in range(2)]
    heads = client[database_name]["heads"]
    async with client.start_session() as session:
        await session.start_transaction()
        key = rival.session_key
        head = {"tenant": key.tenant, "session_id": key.session_id}
        await heads.insert_one({"_id": head, **head, "last_seq": 0, "forking": {}}, session=session)
        committing = asyncio.create_task(together(store, *others, rival))

        async def stored() -> bool:
            return {*await store.last_seqs([other.session_key for other in others])} == {
                other.session_key for other in others
            }

        await until(stored)
        await session.commit_transaction()
    results = await committing
    assert results[-1] == Conflict()
    for changeset, result in zip(others, results, strict=False):
        await assert_stored(store, changeset, result)


@pytest.mark.parametrize("how", [REPLY_LOST, NEVER_ARRIVED, ABORTED], ids=["reply-lost", "never-arrived", "aborted"])
@pytest.mark.parametrize("count", [1, 3])
async def test_i3_each_session_is_created_once_whatever_happens_to_the_commit(
    store: MongoStore, failing: FailPoint, how: dict[str, Any], count: int
) -> None:
    changesets = [a_creation() for _ in range(count)]
    async with failing(["commitTransaction"], times=3, **how):
        results = await together(store, *changesets)
    for changeset, result in zip(changesets, results, strict=True):
        await assert_stored(store, changeset, result)


async def test_i3_an_unknown_outcome_is_resolved_by_the_changesets_id(new_store: NewStore, failing: FailPoint) -> None:
    """Looked up by a store with more time: the driver of this one may still look for the primary."""
    store, other = await new_store(operation=SOON), await new_store()
    changeset = a_creation(head=TAKEN)
    async with failing(["commitTransaction"], **REPLY_LOST):
        result = await store.commit(changeset)
    await assert_stored(other, changeset, result)


async def test_d2_a_creation_that_lands_after_its_deadline_is_known_then(
    new_store: NewStore, failing: FailPoint
) -> None:
    store = await new_store(operation=SOON)
    await store.commit(a_creation())
    changeset = a_creation(head=TAKEN)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        waiting = asyncio.create_task(store.outcome(changeset))
    await assert_stored(store, changeset, await waiting)


async def test_d2_a_creation_that_was_aborted_is_known_to_be_not_stored(
    new_store: NewStore, client: Client, failing: FailPoint
) -> None:
    store = await new_store(operation=SOON)
    changeset = a_creation(head=TAKEN)
    async with failing(["commitTransaction"], **NEVER_ARRIVED):
        with pytest.raises(ServiceUnavailable):
            await store.commit(changeset)
        await client.admin.command("killAllSessions", [])
    assert await store.outcome(changeset) is None
    await assert_not_stored(store, changeset)
    assert await store.session(changeset.session_key) is None


async def test_an_agents_version_is_looked_for_once_a_while(
    store: MongoStore, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, client: Client, database_name: str
) -> None:
    """A database that was restored to an older state may lack it."""

    async def looks() -> int:
        with recorder.recording() as commands:
            await store.commit(a_creation())
            await store.create_session(a_session(a_session_key()), AGENT, event=a_first_event())
        return sum(command.get("find") == "agents" for command in commands)

    assert await looks() == 1
    assert await looks() == 0
    await client[database_name]["agents"].delete_many({})
    monkeypatch.setattr(agent_documents, "KNOWN_S", 0.0)
    assert await looks() > 0
    assert await store.agent("default", AGENT.name, AGENT.version) == AGENT
