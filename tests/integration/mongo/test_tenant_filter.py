"""I13 on the driver's own commands: each filter and each new document names the tenant."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from tests.builders import (
    AGENT,
    NOON,
    a_call,
    a_first_event,
    a_preview_chunk,
    a_request,
    a_session,
    a_session_key,
    a_turn,
    an_approval,
    an_event,
)
from tests.contracts.stores import LONG, a_changeset, begin, head_of, purge, trim, until
from tests.contracts.test_store_audit import a_record
from tests.integration.mongo.commands import Command, Recorder, name_of, selections
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.audit import seal_of
from turnkeeper.domain.delegation import Delegation
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.event import SessionResumed
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolResult
from turnkeeper.store.changeset import ApprovalChange, Cancel, Committed, Conflict, Fork, HeadChange, LogEnd
from turnkeeper.store.contract import Store
from turnkeeper.store.filters import ApprovalFilter, SessionFilter
from turnkeeper.store.mongo.store import MongoStore
from turnkeeper.store.operations import TurnFilter

TENANT = "blue"
PLACE = a_session_key(tenant=TENANT)
OVER_ALL_TENANTS = {
    "claim",
    "requeue_lapsed",
    "lapsed_approvals",
    "expiring_approvals",
    "snapshots",
    "active_sessions",
    "waiting_turns",
    "pending_approvals",
    "notifications",
    "unsealed_tenants",
    "audited_tenants",
    "freezes",
    "denials",
    "replicas",
}
WITHOUT_TENANTS = {"linearizable", "secret", "ping", "write_heartbeat", "outcome"}
"""Outcome: it waits for a commit, which reads and writes as every commit does."""


def _names_the_tenant(selection: Command) -> bool:
    return selection.get("tenant") in (TENANT, {"$in": [TENANT]})


def _checked(commands: Sequence[Command]) -> None:
    assert commands, "the call sent nothing"
    for command in commands:
        for selection in selections(command):
            assert _names_the_tenant(selection), f"{name_of(command)} without tenant: {selection}"


async def _commit_everything(store: MongoStore) -> None:
    """Inserts, then updates, in every collection; then a miss, a repeat and a duplicate request."""
    turn, call, approval = a_turn(PLACE), a_call(PLACE), an_approval(PLACE)
    request = a_request(PLACE)
    new: dict[str, Any] = {"new_turns": (turn,), "new_calls": (call,), "new_approvals": (approval,), "request": request}
    first = a_changeset(await head_of(store, PLACE), an_event(), **new)
    for _ in range(2):
        assert isinstance(await store.commit(first), Committed)
    change = ApprovalChange(approval=approval.closed(ApprovalState.WITHDRAWN, at=approval.create_time), lapsed=None)
    changed: dict[str, Any] = {"turns": (turn,), "calls": (call,), "approvals": (change,), "session": a_session(PLACE)}
    head = await head_of(store, PLACE)
    changeset = a_changeset(head, an_event(), head=HeadChange(active_turn=turn.id), **changed)
    assert isinstance(await store.commit(changeset), Committed)
    assert await store.commit(a_changeset(head, an_event())) == Conflict()
    assert not isinstance(await store.commit(a_changeset(head, an_event(), request=request)), Committed)


async def _keep_late_result(store: MongoStore) -> None:
    """Stores a late result that is kept, and one that is not."""
    call = a_call(PLACE, state=CallState.STARTED, attempt=1, fence=1)
    assert isinstance(
        await store.commit(a_changeset(await head_of(store, PLACE), an_event(), new_calls=(call,))), Committed
    )
    result = ToolResult(outcome=ToolOutcome.OK, result_json="1")
    for fence in (2, 1):
        stored = await store.keep_late_result(PLACE, call.id, attempt=1, fence=fence, result=result)
        assert stored is (fence == 1)


async def _fork(store: MongoStore) -> None:
    """Forks a session: started, copied, started again, finished, and repeated."""
    key = a_session_key(tenant=TENANT)
    fork = Fork(session=a_session(key), source_session_id=PLACE.session_id, source_sequence=1)
    request = a_request(PLACE, made_session_id=key.session_id)
    for _ in range(2):
        assert await store.reserve_fork(fork) is not None
    copied = await store.copy_events(fork, [a_first_event()])
    assert copied is not None
    assert await store.copy_events(fork, [a_first_event()]) == copied
    turn, call = a_turn(key), a_call(key)
    for _ in range(2):
        await store.finish_fork(copied, fork.session, turns=(turn,), calls=(call,), request=request)
    assert await store.reserve_fork(fork) is None


async def _freeze(store: MongoStore) -> None:
    """Freezes twice, and unfreezes twice."""
    freeze = Freeze(tenant=TENANT, agent="", principal="ada", reason="", create_time=NOON)
    for is_new in (True, False):
        assert await store.put_freeze(freeze, a_record(TENANT)) is is_new
    for is_there in (True, False):
        assert await store.remove_freeze(TENANT, "", a_record(TENANT)) is is_there


async def _delegate(store: MongoStore) -> None:
    """Delegates twice, lists by each filter, and revokes twice."""
    lent = Delegation(tenant=TENANT, person="ada", delegate="bob", until=NOON + timedelta(days=3650), create_time=NOON)
    for _ in range(2):
        await store.put_delegation(lent, a_record(TENANT))
    which: tuple[dict[str, str], ...] = ({}, {"delegate": "bob"}, {"concerning": "bob"})
    for names in which:
        for after in (None, ("ada", "")):
            assert list(await store.delegations(TENANT, limit=9, after=after, **names)) == [lent]
    for is_there in (True, False):
        assert await store.remove_delegation(TENANT, "ada", "bob", a_record(TENANT)) is is_there


async def _deny(store: MongoStore) -> None:
    """Denies a tool twice, and allows it twice."""
    denial = ToolDenial(tenant=TENANT, pattern="x", principal="ada", reason="", create_time=NOON)
    for _ in range(2):
        await store.put_denial(denial, a_record(TENANT))
    for is_there in (True, False):
        assert await store.remove_denial(TENANT, "x", a_record(TENANT)) is is_there


async def _audit(store: MongoStore) -> None:
    """Stores a record, and seals it."""
    await store.record(a_record(TENANT))
    unsealed = await store.begin_seal(TENANT, limit=9, lease=LONG)
    assert unsealed is not None
    seal = seal_of(TENANT, list(unsealed.records), after=unsealed.end, at=NOON)
    assert await store.put_seal(seal)
    assert (await store.chain_end(TENANT)).hash == seal.hash


async def _read_audit(store: MongoStore) -> None:
    """Reads all of a trail."""
    assert [seal async for seal in store.seals(TENANT, numbers=[1])]
    for records in (store.records(TENANT, seal=1), store.unlisted_records(TENANT, beyond=0)):
        assert [record async for record in records]
    await store.records_of_session(PLACE)


def _calls(store: MongoStore) -> dict[str, Callable[[], Awaitable[object]]]:
    key, tenant = PLACE, PLACE.tenant
    both = [key, SessionKey(tenant, "another")]
    return {
        "create_session": lambda: store.create_session(a_session(PLACE), AGENT, event=a_first_event()),
        "commit": lambda: _commit_everything(store),
        **dict.fromkeys(("reserve_fork", "copy_events", "finish_fork"), lambda: _fork(store)),
        "snapshot": lambda: store.snapshot(key, turn_id="turn"),
        "keep_late_result": lambda: _keep_late_result(store),
        "find_request": lambda: store.find_request(a_request(PLACE).key),
        "request_cancel": lambda: store.request_cancel(key, Cancel(turn_id="turn")),
        "events": lambda: store.events(key, after=0, limit=5, kinds=frozenset({"a"}), turn_id="turn", until=9),
        "last_seqs": lambda: store.last_seqs(both),
        "ends": lambda: store.ends(both),
        "holds": lambda: store.holds(key, LogEnd(1)),
        "session": lambda: store.session(key),
        "sessions": lambda: store.sessions(tenant, SessionFilter(owner="ada"), limit=5, after=None),
        "turn": lambda: store.turn(key, "turn"),
        "turns": lambda: store.turns(key, states=(), limit=5, before=9),
        "call": lambda: store.call(key, "call"),
        "approval": lambda: store.approval(tenant, "approval"),
        "approvals": lambda: store.approvals(tenant, ApprovalFilter(tool="x"), limit=5, after=None),
        "count_approvals": lambda: store.count_approvals(tenant, ApprovalFilter(tool="x"), most=5),
        "approvals_by_id": lambda: store.approvals_by_id(tenant, ["approval", "other"]),
        "agent": lambda: store.agent(tenant, "name", "version"),
        "put_previews": lambda: store.put_previews([a_preview_chunk(PLACE)]),
        "previews": lambda: store.previews(key, message_id="m", attempt=1, after=0),
        "renew": lambda: store.renew(key, owner="one", fence=1, lease=LONG),
        "renew_all": lambda: store.renew_all({key: 1}, owner="one", lease=LONG),
        "give_back": lambda: store.give_back(key, owner="one", fence=1),
        "cancelled_among": lambda: store.cancelled_among(both),
        "active_turns": lambda: store.active_turns(tenant, TurnFilter(tool="x"), limit=5, after=None),
        **dict.fromkeys(("put_freeze", "remove_freeze"), lambda: _freeze(store)),
        **dict.fromkeys(("put_delegation", "remove_delegation", "delegations"), lambda: _delegate(store)),
        **dict.fromkeys(("put_denial", "remove_denial"), lambda: _deny(store)),
        **dict.fromkeys(("record", "begin_seal", "put_seal", "chain_end"), lambda: _audit(store)),
        **dict.fromkeys(("seals", "records", "unlisted_records", "records_of_session"), lambda: _read_audit(store)),
    }


async def test_i13_every_command_names_the_tenant(recorder: Recorder, store: MongoStore) -> None:
    calls = _calls(store)
    promised = {name for name, _ in inspect.getmembers(Store, inspect.isfunction) if not name.startswith("_")}
    assert set(calls) == promised - OVER_ALL_TENANTS - WITHOUT_TENANTS, "a method of the store is not covered"
    for call in calls.values():
        with recorder.recording() as commands:
            await call()
        _checked(commands)
    with recorder.recording() as commands:
        assert await calls["create_session"]() is not None
    _checked(commands)


async def test_i13_what_is_trimmed_and_purged_is_one_tenants(recorder: Recorder, store: MongoStore) -> None:
    key = await begin(store, a_session_key(tenant=TENANT))
    await store.commit(a_changeset(await head_of(store, key), an_event(payload=SessionResumed(principal="ada"))))

    async def trimmed() -> bool:  # ages are whole seconds
        await trim(store)
        return (await head_of(store, key)).compacted_to == 2

    with recorder.recording() as commands:
        await until(trimmed)
    assert {"update", "delete"} <= _checked_but_the_look(commands)
    gone = a_changeset(await head_of(store, key), an_event(), head=HeadChange(deleted=True), session=a_session(key))
    assert isinstance(await store.commit(gone), Committed)
    with recorder.recording() as commands:
        assert await purge(store) == 1
    assert {"update", "find", "delete"} <= _checked_but_the_look(commands)


def _checked_but_the_look(commands: Sequence[Command]) -> set[str]:
    """Checks all commands but the queries over all heads for due ones, and for living replicas. Returns their names."""
    looks = {"heads", "replicas"}
    rest = [command for command in commands if not looks & {command.get("find"), command.get("aggregate")}]
    _checked(rest)
    return {name_of(command) for command in rest}


async def test_i13_what_looks_over_all_tenants_writes_to_one(recorder: Recorder, store: MongoStore) -> None:
    key = await begin(store, a_session_key(tenant=TENANT))
    turn = a_turn(key)
    due = HeadChange(active_turn=turn.id, wake=timedelta())
    await store.commit(a_changeset(await head_of(store, key), an_event(), head=due, new_turns=(turn,)))
    with recorder.recording() as commands:
        assert await store.claim("one", lease=timedelta()) is not None
        assert await store.requeue_lapsed() == 1
    writes = [command for command in commands if name_of(command) not in ("find", "aggregate")]
    assert {name_of(command) for command in writes} == {"update"}
    _checked(writes)
