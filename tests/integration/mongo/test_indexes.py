"""Frequent queries examine only the documents that they return, however many others there are."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import AGENT, a_session, a_session_key
from tests.contracts.stores import LONG, begin, make_due, purge
from tests.integration.mongo.commands import Command, Recorder, name_of
from tests.integration.mongo.conftest import Client
from turnkeeper.store.changeset import Busy
from turnkeeper.store.mongo import heads
from turnkeeper.store.mongo.claims import OLDEST
from turnkeeper.store.mongo.documents import SCHEMA
from turnkeeper.store.mongo.store import MongoStore

MANY = 300
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


async def _put_heads(client: Client, database: str, **fields: Any) -> None:
    tenant = fields.pop("tenant", "default")
    sessions = [a_session(a_session_key(tenant=tenant)) for _ in range(MANY)]
    documents = [heads.new(session, changeset_id="c") | fields for session in sessions]
    await client[database].heads.insert_many(documents)


async def _looked_at(client: Client, database: str, command: Command) -> tuple[int, int]:
    """Returns the numbers of documents and index keys that the database examines for the query."""
    fields = ("aggregate", "pipeline", "cursor", "hint", "find", "filter", "projection", "sort", "limit")
    again = {name: command[name] for name in command if name in fields}
    plan = await client[database].command({"explain": again, "verbosity": "executionStats"})
    stats = plan["executionStats"] if "executionStats" in plan else plan["stages"][0]["$cursor"]["executionStats"]
    return stats["totalDocsExamined"], stats["totalKeysExamined"]


def _first(commands: list[Command], name: str) -> Command:
    return next(command for command in commands if name_of(command) == name)


@pytest.mark.parametrize(
    "unclaimable",
    [
        {"suspended": True},
        {"needs": SCHEMA + 1},
        {"log_needs": SCHEMA + 1},
        {"wake_at": FAR},
        {"wake_at": None},
        {"wake_at": None, "lease_until": FAR},
        {"tenant": "a", "wake_at": FAR},
        {"tenant": "z", "wake_at": FAR},
    ],
    ids=" ".join,
)
async def test_a_claim_walks_over_no_head_that_it_cannot_have(
    store: MongoStore, client: Client, database_name: str, recorder: Recorder, unclaimable: Mapping[str, Any]
) -> None:
    await _put_heads(client, database_name, **{"active_turn": "turn", "wake_at": LONG_AGO, **unclaimable})
    key = await begin(store)
    await make_due(store, key)
    with recorder.recording() as commands:
        claim = await store.claim("one", lease=LONG)
        assert await store.claim("one", lease=LONG) is None
    assert claim is not None
    assert claim.session_id == key.session_id
    documents, keys = await _looked_at(client, database_name, _first(commands, "aggregate"))
    assert documents <= 1
    assert keys < MANY / 5


async def test_a_look_of_a_replica_that_had_nothing_to_claim_is_one_read(store: MongoStore, recorder: Recorder) -> None:
    await make_due(store, await begin(store))
    assert await store.claim("one", lease=LONG)
    looks = []
    for _ in range(2):
        with recorder.recording() as commands:
            assert await store.claim("one", lease=LONG) is None
        looks.append([name_of(command) for command in commands])
    both = "after a claim the tenants behind the last one are looked at first, then the others"
    assert looks == [["aggregate", "aggregate"], ["find"]], both


async def test_turns_that_wait_for_a_worker_are_counted_without_a_look_at_others(
    store: MongoStore, client: Client, database_name: str, recorder: Recorder
) -> None:
    await _put_heads(client, database_name, active_turn="turn", lease_until=FAR, owner="one")
    await _put_heads(client, database_name, active_turn="turn", wake_at=FAR)
    await _put_heads(client, database_name, active_turn="turn", wake_at=LONG_AGO, suspended=True)
    await _put_heads(client, database_name)
    key = await begin(store)
    await make_due(store, key)
    with recorder.recording() as commands:
        assert (await store.waiting_turns()).turns == 1
    documents, keys = await _looked_at(client, database_name, _first(commands, "aggregate"))
    assert documents <= 1
    assert keys < MANY / 5


async def test_a_claim_passes_over_the_other_tenants_due_turns(
    store: MongoStore, client: Client, database_name: str, recorder: Recorder
) -> None:
    await _put_heads(client, database_name, active_turn="turn", wake_at=LONG_AGO, tenant="busy")
    await client[database_name].heads.update_one({"tenant": "busy"}, {"$set": {"agent": "free"}})
    key = await begin(store, a_session_key(tenant="quiet"))
    await make_due(store, key)
    assert (claim := await store.claim("one", lease=LONG))
    with recorder.recording() as commands:
        assert (claim := await store.claim("one", lease=LONG))
        assert claim.session_key == key
        assert (claim := await store.claim("one", lease=LONG, without=Busy(agents=frozenset({AGENT.name}))))
    assert claim.agent == "free"
    looks = [
        await _looked_at(client, database_name, command) for command in commands if name_of(command) == "aggregate"
    ]
    assert max(documents for documents, _ in looks) <= OLDEST
    assert looks[0][1] < MANY / 5
    assert looks[-1][0] <= 1, "it fetched the heads of the busy agent"


async def test_a_head_of_an_older_version_is_claimed_in_its_turn(
    store: MongoStore, client: Client, database_name: str
) -> None:
    key = await begin(store)
    await make_due(store, key)
    later_fields = dict.fromkeys(("suspended", "needs", "log_needs"), "")
    await client[database_name].heads.update_one({"session_id": key.session_id}, {"$unset": later_fields})
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert claim.session_id == key.session_id


async def test_a_purge_looks_at_no_session_whose_time_has_not_come(
    store: MongoStore, client: Client, database_name: str, recorder: Recorder
) -> None:
    await _put_heads(client, database_name, deleted_at=datetime.now(UTC))
    with recorder.recording() as commands:
        assert await purge(store, after=DAY) == 0
    assert await _looked_at(client, database_name, _first(commands, "find")) == (0, 0)
    await client[database_name].heads.update_many({}, {"$set": {"deleted_at": LONG_AGO}})
    documents, _ = await _looked_at(client, database_name, _first(commands, "find"))
    assert documents == 1


async def test_a_purge_looks_at_no_fork_that_is_young(
    store: MongoStore, client: Client, database_name: str, recorder: Recorder
) -> None:
    await _put_heads(client, database_name)
    await _put_heads(client, database_name, forking={}, update_time=datetime.now(UTC))
    with recorder.recording() as commands:
        assert await purge(store, after=DAY) == 0
    assert await _looked_at(client, database_name, _first(commands, "find")) == (0, 0)
