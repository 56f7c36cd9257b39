"""I17: fields that another version stored are read, and kept when this one writes."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import a_call, a_session, a_session_key, a_turn, an_approval, an_event
from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of, trim, until
from tests.integration.mongo.conftest import Client, NewStore
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnKey
from turnkeeper.errors import ServiceUnavailable
from turnkeeper.store.changeset import ApprovalChange, HeadChange, LeaseChange
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.mongo.documents import encode
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.notifications import PreviewChunk

NEWER = {"newer": {"kept": True}, "usage.newer": 1, "options.newer": 2, "cancel.newer": 3}
COLLECTIONS = ("sessions", "heads", "turns", "tool_calls", "approvals")


async def test_i17_unknown_fields_are_tolerated_and_kept(store: MongoStore, client: Client, database_name: str) -> None:
    key = await begin(store)
    turn, call, approval = a_turn(key), a_call(key), an_approval(key)
    new: dict[str, Any] = {"new_turns": (turn,), "new_calls": (call,), "new_approvals": (approval,)}
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), **new)))
    database = client[database_name]
    before = {}
    for name in COLLECTIONS:
        known = {key: value for key, value in NEWER.items() if name in _holders(key)}
        await database[name].update_many({}, {"$set": known})
        before[name] = await database[name].find_one({})
    decided = replace(approval, state=ApprovalState.APPROVED)
    changeset = a_changeset(
        await head_of(store, key),
        an_event(),
        head=HeadChange(lease=LeaseChange.TAKE, owner="one", lease_for=LONG, active_turn=turn.id),
        session=a_session(key, title="new"),
        turns=(replace(turn, attempt=2),),
        calls=(replace(call, attempt=2),),
        approvals=(ApprovalChange(approval=decided, lapsed=False),),
    )
    await committed(store.commit(changeset))
    for name in COLLECTIONS:
        document = await database[name].find_one({})
        assert document is not None
        assert document != before[name]
        assert document["newer"] == {"kept": True}
        assert document["schema"] == 1
        assert document["tenant"] == key.tenant
    changed = await database["turns"].find_one({})
    assert changed is not None
    assert (changed["usage"]["newer"], changed["options"]["newer"], changed["attempt"]) == (1, 2, 2)
    read = await store.turn(key, turn.id)
    assert read == replace(turn, attempt=2)


def _holders(field: str) -> tuple[str, ...]:
    match field.split(".", maxsplit=1)[0]:
        case "usage":
            return ("sessions", "turns")
        case "options":
            return ("turns",)
        case "cancel":
            return ("heads",)
        case _:
            return COLLECTIONS


async def test_i17_every_document_names_its_tenant_and_schema(
    store: MongoStore, client: Client, database_name: str
) -> None:
    key = await begin(store)
    new: dict[str, Any] = {
        "new_turns": (a_turn(key),),
        "new_calls": (a_call(key),),
        "new_approvals": (an_approval(key),),
    }
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), **new)))
    await store.secret("name")
    for name in (*COLLECTIONS, "events", "agents"):
        async for document in client[database_name][name].find({}):
            assert (document["tenant"], document["schema"]) == (key.tenant, 1)


# --- documents that only a newer version can read ------------------------------------------------------------------

MISSING = {"$unset": {"agent": ""}, "$set": {"schema": 7}}
UNKNOWN = {"$set": {"state": "PONDERING", "schema": 7}}
ALL = SessionFilter(newest_first=False)


async def _three(store: MongoStore) -> tuple[list[SessionKey], list[str], list[str]]:
    """Stores three sessions, and three turns and approvals of the first one. Returns the ids."""
    keys = [await begin(store, a_session_key(session_id=name)) for name in "abc"]
    turns = [a_turn(keys[0], id=f"t{number}", first_sequence=number) for number in (3, 2, 1)]
    approvals = [an_approval(keys[0], id=f"a{number}", tool_call_id=f"c{number}") for number in range(3)]
    new: dict[str, Any] = {"new_turns": tuple(turns), "new_approvals": tuple(approvals)}
    await committed(store.commit(a_changeset(await head_of(store, keys[0]), an_event(), **new)))
    return keys, [turn.id for turn in turns], [approval.id for approval in approvals]


@pytest.mark.parametrize("spoiled", [0, 1])
async def test_i17_a_list_passes_over_what_it_cannot_read_and_is_full_all_the_same(
    new_store: NewStore, client: Client, database_name: str, spoiled: int, caplog: pytest.LogCaptureFixture
) -> None:
    counted: Counter[tuple[str, str]] = Counter()

    def count(collection: str, *, schema: str) -> None:
        counted[collection, schema] += 1

    store = await new_store(record_unreadable=count)
    keys, turns, approvals = await _three(store)
    database = client[database_name]
    await database["sessions"].update_one({"_id.session_id": keys[spoiled].session_id}, MISSING)
    await database["turns"].update_one({"_id.id": turns[spoiled]}, MISSING)
    await database["approvals"].update_one({"_id.id": approvals[spoiled]}, MISSING)
    key = keys[0]
    for limit in (1, 2, 3):
        sessions = await store.sessions(key.tenant, ALL, limit=limit, after=None)
        listed = await store.turns(key, states=(), limit=limit, before=None)
        pending = await store.approvals(key.tenant, ApprovalFilter(), limit=limit, after=None)
        assert [session.id for session, _ in sessions] == _others("abc", spoiled)[:limit]
        assert [turn.id for turn in listed] == _others(turns, spoiled)[:limit]
        assert [approval.id for approval in pending] == _others(approvals, spoiled)[:limit]
    assert set(counted) == {("sessions", "7"), ("turns", "7"), ("approvals", "7")}
    lines = [record.message for record in caplog.records if "need a newer version" in record.message]
    assert len(lines) == 3, "one for each collection and schema"


def _others(items: Sequence[str], spoiled: int) -> list[str]:
    return [item for number, item in enumerate(items) if number != spoiled]


async def test_i17_a_list_shows_a_value_that_only_a_newer_version_knows_as_unspecified(
    store: MongoStore, client: Client, database_name: str
) -> None:
    keys, turns, approvals = await _three(store)
    for name in ("sessions", "turns", "approvals"):
        await client[database_name][name].update_many({}, UNKNOWN)
    key = keys[0]
    assert [session.state for session, _ in await store.sessions(key.tenant, ALL, limit=9, after=None)] == [NEW] * 3
    assert [turn.state for turn in await store.turns(key, states=(), limit=9, before=None)] == [NEW] * 3
    pending = await store.approvals(key.tenant, ApprovalFilter(), limit=9, after=None)
    assert [approval.state for approval in pending] == [NEW] * 3
    one = await store.turn(key, turns[0])
    other = await store.approval(key.tenant, approvals[0])
    assert one is not None
    assert other is not None
    assert (one.state, other.state) == (NEW, NEW)


NEW = "UNSPECIFIED"


@pytest.mark.parametrize("update", [MISSING, UNKNOWN], ids=["missing", "unknown value"])
@pytest.mark.parametrize("collection", ["sessions", "turns", "tool_calls", "approvals", "heads"])
async def test_i17_no_decision_rests_on_what_only_a_newer_version_understands(
    store: MongoStore, client: Client, database_name: str, collection: str, update: dict[str, Any]
) -> None:
    """It is never a defect: the caller comes again, and reaches a newer replica."""
    key = await begin(store)
    turn = a_turn(key, id="turn")
    new: dict[str, Any] = {
        "new_turns": (turn,),
        "new_calls": (a_call(key, turn_id="turn"),),
        "new_approvals": (an_approval(key, turn_id="turn"),),
    }
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), **new)))
    names = {"tool_calls": "tool_class", "approvals": "kind", "heads": "fence"}
    field = names.get(collection, "state")
    unknown: dict[str, Any] = {"$set": {field: "PONDERING"}} if update is UNKNOWN else {"$unset": {field: ""}}
    if collection == "heads":
        unknown = {"$unset": {field: ""}}
    await client[database_name][collection].update_one({}, unknown)
    with pytest.raises(ServiceUnavailable, match="newer version") as raised:
        await store.snapshot(key, turn_id="turn")
    assert raised.value.retry_after is not None
    other = await begin(store)
    assert list(await store.snapshots([TurnKey(key, "turn"), TurnKey(other, "turn")])) == [TurnKey(other, "turn")]


async def test_i17_previews_that_cannot_be_read_neither_fail_a_read_nor_end_the_notifications(
    new_store: NewStore, client: Client, database_name: str
) -> None:
    one, other = await new_store(replica="one"), await new_store(replica="two")
    key = await begin(one)
    chunks = [
        PreviewChunk(
            tenant=key.tenant,
            session_id=key.session_id,
            turn_id="t",
            message_id="m",
            attempt=1,
            offset=offset,
            text="text",
        )
        for offset in (0, 4)
    ]
    async with asyncio.timeout(10), other.notifications() as notifications:
        newer = {**encode(chunks[0]), "replica": "three", "schema": 7}
        del newer["text"]
        await client[database_name]["partials"].insert_one(newer)
        await one.put_previews(chunks[1:])
        assert await anext(notifications) == chunks[1]
    assert await one.previews(key, message_id="m", attempt=1, after=0) == chunks[1:]


async def test_i17_a_log_that_cannot_be_trimmed_keeps_no_other_waiting(
    store: MongoStore, client: Client, database_name: str
) -> None:
    newer, other = await begin(store), await begin(store)
    await client[database_name]["heads"].update_one({"_id.session_id": newer.session_id}, {"$unset": {"queue": ""}})

    async def trimmed() -> bool:
        await trim(store, pause=timedelta(milliseconds=50))
        return (await head_of(store, other)).compacted_to == 1

    await until(trimmed)
