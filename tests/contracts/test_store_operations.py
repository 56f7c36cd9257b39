"""What operators see of a tenant's turns and of the replicas, and freezes that are stored with their record."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import NOON, a_call, a_session_key, a_turn, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of, make_due, run_turn, until
from tests.contracts.test_store_audit import a_record, stored
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import Cancel, HeadChange
from turnkeeper.store.contract import Store
from turnkeeper.store.operations import ActiveTurn, TurnFilter

TENANT = "acme"
DENIAL = ToolDenial(tenant=TENANT, pattern="refund", principal="olga", reason="fraud", create_time=NOON)
FREEZE = Freeze(tenant=TENANT, agent="", principal="olga", reason="load", create_time=NOON)


async def listed(store: Store, tenant: str = TENANT, **where: Any) -> list[ActiveTurn]:
    return list(await store.active_turns(tenant, TurnFilter(**where), limit=100, after=None))


async def ids(store: Store, **where: Any) -> list[str]:
    return [active.turn.id for active in await listed(store, **where)]


async def queue(store: Store, key: SessionKey, *turns: Turn) -> None:
    change = HeadChange(queue=tuple(turn.id for turn in turns))
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=change, new_turns=turns)))


async def test_a_turn_that_runs_is_listed_with_its_owner_and_its_open_tools(store: Store) -> None:
    key = await begin(store, a_session_key(tenant=TENANT))
    turn, _ = await run_turn(store, key, owner="one", lease=LONG)
    calls = (
        a_call(key, turn_id=turn.id, tool="open", state=CallState.STARTED),
        a_call(key, turn_id=turn.id, tool="open", state=CallState.READY),
        a_call(key, turn_id=turn.id, tool="closed", state=CallState.RETURNED),
    )
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_calls=calls)))
    assert await listed(store) == [ActiveTurn(turn=turn, tools=("open",), owner="one", cancelling=False)]
    assert await store.request_cancel(key, Cancel(turn_id=turn.id, by="olga"))
    assert (await listed(store))[0].cancelling
    assert await listed(store, "other") == []


async def test_queued_turns_are_listed_behind_it_and_ended_ones_are_not(store: Store) -> None:
    key = await begin(store, a_session_key(tenant=TENANT))
    running = await make_due(store, key, id="t1")
    await queue(store, key, a_turn(key, id="t3"), a_turn(key, id="t2"))
    assert await ids(store) == ["t1", "t2", "t3"]
    assert [active.owner for active in await listed(store)] == ["", "", ""]
    ended = replace(running, state=TurnState.COMPLETED)
    change = HeadChange(active_turn="t3", queue=("t2",))
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), head=change, turns=(ended,))))
    assert await ids(store) == ["t2", "t3"]


async def test_deleted_sessions_are_left_out(store: Store) -> None:
    key = await begin(store, a_session_key(tenant=TENANT))
    await make_due(store, key)
    deleted = a_changeset(await head_of(store, key), an_event(), head=HeadChange(deleted=True))
    await committed(store.commit(deleted))
    assert await listed(store) == []


@pytest.mark.parametrize(
    "where",
    [
        {"agent": "clerk"},
        {"principal": "bob"},
        {"session_id": "b"},
        {"states": (TurnState.AWAITING_APPROVAL, TurnState.RUNNING)},
        {"created_before": NOON - timedelta(hours=1)},
        {"tool": "print"},
    ],
)
async def test_a_filter_leaves_out_what_does_not_match(store: Store, where: dict[str, Any]) -> None:
    for name in ("a", "b", "c"):
        key = await begin(store, a_session_key(tenant=TENANT, session_id=name))
        given: dict[str, Any] = {
            "agent": "clerk",
            "principal": "bob",
            "state": TurnState.AWAITING_APPROVAL,
            "create_time": NOON - timedelta(hours=2),
        }
        turn = await make_due(store, key, id=name, **(given if name == "b" else {}))
        call = a_call(key, turn_id=turn.id, tool="print" if name == "b" else "scan", state=CallState.AWAITING)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_calls=(call,))))
    assert await ids(store, **where) == ["b"]
    assert await ids(store) == ["a", "b", "c"]


async def test_pages_follow_each_other_without_a_gap(store: Store) -> None:
    for name in ("a", "b", "c"):
        key = await begin(store, a_session_key(tenant=TENANT, session_id=name))
        await make_due(store, key, id="t1")
        await queue(store, key, a_turn(key, id="t2"))
    after: tuple[str, str] | None = None
    places: list[tuple[str, str]] = []
    while page := await store.active_turns(TENANT, TurnFilter(), limit=2, after=after):
        assert len(page) <= 2
        places += [(active.turn.session_id, active.turn.id) for active in page]
        after = places[-1]
    assert places == [(session, turn) for session in ("a", "b", "c") for turn in ("t1", "t2")]


async def test_a_freeze_is_stored_once_with_its_record(store: Store) -> None:
    record, second = a_record(), a_record()
    assert await store.put_freeze(FREEZE, record)
    assert not await store.put_freeze(replace(FREEZE, reason="other"), second)
    of_agent = replace(FREEZE, agent="clerk")
    assert await store.put_freeze(of_agent, third := a_record())
    assert list(await store.freezes()) == [FREEZE, of_agent]
    records = [record async for record in store.records(TENANT, seal=0)]
    assert sorted(records) == sorted([stored(record), stored(third)])


async def test_a_freeze_is_removed_once_with_a_record(store: Store) -> None:
    assert not await store.remove_freeze(TENANT, "", a_record())
    await store.put_freeze(FREEZE, a_record())
    assert not await store.remove_freeze("other", "", a_record("other"))
    assert await store.remove_freeze(TENANT, "", last := a_record())
    assert not await store.remove_freeze(TENANT, "", a_record())
    assert await store.freezes() == []
    assert stored(last) in [record async for record in store.records(TENANT, seal=0)]
    assert await store.put_freeze(FREEZE, a_record())


async def test_a_denial_takes_the_place_of_the_one_before_and_ends_by_the_stores_clock(store: Store) -> None:
    await store.put_denial(DENIAL, first := a_record())
    await store.put_denial(replace(DENIAL, reason="other"), second := a_record())
    of_all = replace(DENIAL, pattern="*", until=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1))
    await store.put_denial(of_all, third := a_record())
    await store.put_denial(replace(DENIAL, pattern="past_*", until=NOON), fourth := a_record())
    assert list(await store.denials()) == [of_all, replace(DENIAL, reason="other")], "the last one is over"
    records = [record async for record in store.records(TENANT, seal=0)]
    assert sorted(records) == sorted(map(stored, (first, second, third, fourth)))


async def test_a_denial_is_removed_once_with_a_record(store: Store) -> None:
    assert not await store.remove_denial(TENANT, DENIAL.pattern, a_record())
    await store.put_denial(DENIAL, a_record())
    assert not await store.remove_denial("other", DENIAL.pattern, a_record("other"))
    assert await store.remove_denial(TENANT, DENIAL.pattern, last := a_record())
    assert not await store.remove_denial(TENANT, DENIAL.pattern, a_record())
    assert await store.denials() == []
    assert stored(last) in [record async for record in store.records(TENANT, seal=0)]


async def test_many_freeze_at_once_and_one_is_first(new_store: NewStore) -> None:
    replicas = [await new_store(name) for name in ("one", "two", "three")]
    freezes = [replace(FREEZE, principal=str(number)) for number in range(9)]
    results = await asyncio.gather(
        *(replicas[number % 3].put_freeze(freeze, a_record()) for number, freeze in enumerate(freezes))
    )
    assert results.count(True) == 1
    assert list(await replicas[0].freezes()) == [freezes[results.index(True)]]
    assert len([record async for record in replicas[0].records(TENANT, seal=0)]) == 1


async def test_replicas_are_listed_with_what_they_own(new_store: NewStore) -> None:
    one, two = await new_store("one"), await new_store("two")
    await one.write_heartbeat(silent_after=LONG)
    await two.write_heartbeat(silent_after=timedelta(milliseconds=1))
    await run_turn(one, await begin(one, a_session_key(tenant=TENANT)), owner="one", lease=LONG)

    async def one_is_alone() -> bool:
        return [replica.alive for replica in await one.replicas()] == [True, False]

    await until(one_is_alone)
    first, second = await one.replicas()
    assert (first.name, first.alive, first.turns) == ("one", True, 1)
    assert (second.name, second.alive, second.turns) == ("two", False, 0)
