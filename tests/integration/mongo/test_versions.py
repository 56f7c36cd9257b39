"""I17: fields that another version stored are read, and kept when this one writes."""

from dataclasses import replace
from typing import Any

from tests.builders import a_call, a_session, a_turn, an_approval, an_event
from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of
from tests.integration.mongo.conftest import Client
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.store.changeset import ApprovalChange, HeadChange, LeaseChange
from turnkeeper.store.mongo.store import MongoStore

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
