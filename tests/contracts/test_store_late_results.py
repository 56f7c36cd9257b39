"""What a lost owner's tool returned after all: kept once, for that start alone, without an event."""

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import a_call, a_session_key, an_approval, an_event
from tests.contracts.stores import a_changeset, begin, committed, head_of, run_turn, snapshot_of
from turnkeeper.domain.approval import Approval, ApprovalKind, ApprovalState, hash_with_late_result
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import Call, CallState, ToolOutcome, ToolResult
from turnkeeper.store.changeset import ApprovalChange, Conflict
from turnkeeper.store.contract import Store

OK = ToolResult(outcome=ToolOutcome.OK, result_json='"It was printed."')
OTHER = ToolResult(outcome=ToolOutcome.FAILED, result_json='"No paper."')


async def a_lost_call(
    store: Store, key: SessionKey, *, approval: Approval | None = None, **given: Any
) -> tuple[Call, Approval]:
    turn, _ = await run_turn(store, key)
    call = a_call(
        key, **{"turn_id": turn.id, "state": CallState.UNKNOWN, "attempt": 3, "fence": 7, "started": True, **given}
    )
    approval = approval or an_approval(key, kind=ApprovalKind.OUTCOME)
    approval = replace(approval, turn_id=turn.id, tool_call_id=call.id)
    changeset = a_changeset(await head_of(store, key), an_event(), new_calls=(call,), new_approvals=(approval,))
    await committed(store.commit(changeset))
    return call, approval


async def keep(store: Store, call: Call, result: ToolResult = OK, **other: Any) -> bool:
    named: dict[str, Any] = {
        "attempt": call.attempt,
        "fence": call.fence,
        **other,
    }
    return await store.keep_late_result(call.session_key, call.id, result=result, **named)


async def ledger(store: Store, call: Call) -> Call:
    key = call.session_key
    return next(entry for entry in (await snapshot_of(store, key, turn_id=call.turn_id)).calls if entry.id == call.id)


async def test_it_is_on_the_call_and_on_the_approval_and_not_in_the_log(store: Store) -> None:
    key = await begin(store)
    call, approval = await a_lost_call(store, key)
    before = await head_of(store, key)
    assert await keep(store, call)
    stored = await ledger(store, call)
    assert (stored.late_attempt, stored.late_outcome, stored.late_result_json) == (3, OK.outcome, OK.result_json)
    assert stored == replace(call, late_attempt=3, late_outcome=OK.outcome, late_result_json=OK.result_json)
    shown = await store.approval(key.tenant, approval.id)
    read = hash_with_late_result(approval.arguments_hash, OK.result_json)
    assert shown == replace(approval, late_result_json=OK.result_json, arguments_hash=read)
    assert (await head_of(store, key)).last_seq == before.last_seq


async def test_only_the_first_is_kept_and_a_repeat_is_harmless(store: Store) -> None:
    call, approval = await a_lost_call(store, await begin(store))
    assert await keep(store, call)
    assert await keep(store, call)
    assert not await keep(store, call, OTHER)
    assert (await ledger(store, call)).late_result_json == OK.result_json
    shown = await store.approval(call.tenant, approval.id)
    assert shown is not None
    assert shown.late_result_json == OK.result_json


@pytest.mark.parametrize("other", [{"attempt": 2}, {"attempt": 4}, {"fence": 6}, {"fence": 8}])
async def test_of_another_start_it_is_not_kept(store: Store, other: dict[str, Any]) -> None:
    call, _ = await a_lost_call(store, await begin(store))
    assert not await keep(store, call, **other)
    assert (await ledger(store, call)).late_outcome is None


@pytest.mark.parametrize(
    ("state", "outcome", "stored"),
    [
        (CallState.AWAITING, None, False),
        (CallState.READY, None, False),
        (CallState.STARTED, None, True),
        (CallState.RETURNED, ToolOutcome.UNKNOWN, True),
        (CallState.RETURNED, ToolOutcome.CANCELLED, True),
        (CallState.RETURNED, ToolOutcome.OK, False),
    ],
)
async def test_where_the_tools_own_result_is_missing(
    store: Store, state: CallState, outcome: ToolOutcome | None, stored: bool
) -> None:
    call, _ = await a_lost_call(store, await begin(store), state=state, outcome=outcome)
    assert await keep(store, call) is stored


@pytest.mark.parametrize("changed", [{"state": ApprovalState.EXPIRED}, {"kind": ApprovalKind.TOOL_CALL}])
async def test_an_approval_that_is_closed_or_of_another_kind_does_not_show_it(
    store: Store, changed: dict[str, Any]
) -> None:
    key = await begin(store)
    approval = an_approval(key, **{"kind": ApprovalKind.OUTCOME, **changed})
    call, approval = await a_lost_call(store, key, approval=approval)
    assert await keep(store, call)
    assert await store.approval(key.tenant, approval.id) == approval


async def test_what_was_decided_without_knowing_it_is_a_conflict(store: Store) -> None:
    key = await begin(store)
    call, approval = await a_lost_call(store, key)
    head = await head_of(store, key)
    change = ApprovalChange(approval=approval.closed(ApprovalState.EXPIRED, at=approval.create_time), lapsed=None)
    returned = call.returned(ToolOutcome.UNKNOWN)
    changeset = a_changeset(head, an_event(), calls=(returned,), approvals=(change,))
    assert await keep(store, call)
    assert await store.commit(changeset) == Conflict()
    now = (await ledger(store, call)).returned(ToolOutcome.UNKNOWN)
    assert await store.commit(a_changeset(head, an_event(), calls=(now,), approvals=(change,))) == Conflict()
    read = replace(change.approval, arguments_hash=hash_with_late_result(approval.arguments_hash, OK.result_json))
    known = ApprovalChange(approval=read, lapsed=None)
    await committed(store.commit(a_changeset(head, an_event(), calls=(now,), approvals=(known,))))


async def test_i13_another_tenants_call_is_not_touched(store: Store) -> None:
    mine, yours = (
        a_session_key(tenant="mine", session_id="late-same"),
        a_session_key(tenant="yours", session_id="late-same"),
    )
    for key in (mine, yours):
        await begin(store, key)
    call, _ = await a_lost_call(store, mine, id="same")
    same, approval = await a_lost_call(store, yours, id="same")
    assert await keep(store, call)
    assert await ledger(store, same) == same
    assert await store.approval("yours", approval.id) == approval
