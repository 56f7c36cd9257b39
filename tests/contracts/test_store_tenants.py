"""I13: two tenants that use the same ids never meet; what is foreign looks like what is absent."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from tests.builders import AGENT, a_call, a_request, a_session, a_session_key, a_turn, an_approval, an_event
from tests.contracts.stores import LONG, a_changeset, begin, committed, head_of, lapsed_approvals
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.session import Session, SessionKey
from turnkeeper.domain.tool import Call
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import (
    ApprovalChange,
    Cancel,
    Conflict,
    HeadChange,
    LeaseChange,
    LogEnd,
    RequestRecord,
    Snapshot,
)
from turnkeeper.store.contract import Store
from turnkeeper.store.filters import ApprovalFilter, SessionFilter

SAME = "same"


@dataclass(frozen=True)
class TenantData:
    """One tenant's data. Every id in it is also used by the other tenant."""

    key: SessionKey
    session: Session
    turn: Turn
    call: Call
    approval: Approval
    request: RequestRecord
    fence: int


async def build(store: Store, tenant: str) -> TenantData:
    key = await begin(store, a_session_key(tenant=tenant, session_id=SAME))
    turn = a_turn(key, id=SAME, principal=tenant, state=TurnState.RUNNING)
    call = a_call(key, id=SAME, turn_id=SAME, key=tenant)
    approval = an_approval(key, id=SAME, turn_id=SAME, tool_call_id=SAME, requester=tenant)
    request = a_request(key, fingerprint=tenant)
    request = replace(request, key=replace(request.key, request_id=SAME))
    session = a_session(key, title=tenant)
    changeset = a_changeset(
        await head_of(store, key),
        an_event(f"from {tenant}", turn_id=SAME),
        changeset_id=SAME,
        head=HeadChange(lease=LeaseChange.TAKE, owner=SAME, lease_for=LONG, active_turn=SAME),
        session=session,
        new_turns=(turn,),
        new_calls=(call,),
        new_approvals=(approval,),
        request=request,
    )
    fence = (await committed(store.commit(changeset))).fence
    return TenantData(key, session, turn, call, approval, request, fence)


async def reads(store: Store, tenant: str, session_id: str, some_id: str) -> dict[str, Any]:
    """Everything that can be read by these ids."""
    key = SessionKey(tenant, session_id)
    request = replace(a_request(key).key, request_id=some_id)
    snapshot = await store.snapshot(key)
    session = await store.session(key)
    return {
        "snapshot": _timeless(snapshot),
        "snapshot_of_turn": _timeless(await store.snapshot(key, turn_id=some_id)),
        "request": await store.find_request(request),
        "events": await store.events(key, after=0, limit=9),
        "events_of_turn": await store.events(key, after=0, limit=9, turn_id=some_id),
        "last_seqs": await store.last_seqs([key]),
        "ends": await store.ends([key]),
        "holds": await store.holds(key, LogEnd(1)),
        "session": session and session[0],
        "sessions": [session for session, _ in await store.sessions(tenant, SessionFilter(), limit=9, after=None)],
        "turn": await store.turn(key, some_id),
        "turns": await store.turns(key, states=(), limit=9, before=None),
        "call": await store.call(key, some_id),
        "approval": await store.approval(tenant, some_id),
        "approvals": await store.approvals(tenant, ApprovalFilter(), limit=9, after=None),
        "agent": await store.agent(tenant, AGENT.name, AGENT.version),
    }


def _timeless(snapshot: Snapshot | None) -> Snapshot | None:
    if snapshot is None:
        return None
    return replace(snapshot, head=replace(snapshot.head, now=snapshot.session.create_time))


async def test_i13_each_tenant_reads_its_own_under_the_same_ids(store: Store) -> None:
    tenants = [await build(store, tenant) for tenant in ("blue", "red")]
    for data in tenants:
        tenant = data.key.tenant
        read = await reads(store, tenant, SAME, SAME)
        assert read["snapshot"].session == data.session
        assert (read["snapshot"].turn, read["snapshot"].calls) == (data.turn, (data.call,))
        assert read["snapshot"].approvals == (data.approval,)
        assert read["snapshot_of_turn"] == read["snapshot"]
        assert read["request"] == data.request
        assert [event.sequence for event in read["events"]] == [1, 2]
        assert f"from {tenant}".encode() in read["events"][1].payload
        assert read["events_of_turn"] == read["events"][1:]
        assert read["last_seqs"] == {(tenant, SAME): 2}
        assert [end.sequence for end in read["ends"].values()] == [2]
        assert read["holds"]
        assert (read["session"], read["sessions"]) == (data.session, [data.session])
        assert (read["turn"], read["turns"]) == (data.turn, [data.turn])
        assert read["call"] == data.call
        assert (read["approval"], read["approvals"]) == (data.approval, [data.approval])
        assert read["agent"] == AGENT


async def test_i13_foreign_looks_like_absent(store: Store) -> None:
    await build(store, "blue")
    foreign = await reads(store, "red", SAME, SAME)
    assert foreign == await reads(store, "red", "absent", "absent")
    assert not any(foreign.values())


async def test_i13_writes_reach_the_own_tenant_alone(store: Store) -> None:
    blue, red = [await build(store, tenant) for tenant in ("blue", "red")]
    untouched = await reads(store, "red", SAME, SAME)
    head = await head_of(store, blue.key)
    decided = replace(blue.approval, state=ApprovalState.APPROVED)
    changeset = a_changeset(
        head,
        an_event("only blue"),
        changeset_id=f"{SAME} again",
        head=HeadChange(queue=("next",), wake=timedelta()),
        session=replace(blue.session, title="changed"),
        turns=(replace(blue.turn, attempt=9),),
        calls=(replace(blue.call, attempt=9),),
        approvals=(ApprovalChange(approval=decided, lapsed=None),),
        request=replace(blue.request, key=replace(blue.request.key, request_id="other")),
    )
    await committed(store.commit(changeset))
    assert await store.renew(SessionKey("blue", SAME), owner=SAME, fence=blue.fence, lease=timedelta())
    assert await store.request_cancel(SessionKey("blue", SAME), Cancel(turn_id=SAME, by="ada"))
    assert await reads(store, "red", SAME, SAME) == untouched
    assert list(await store.cancelled_among([SessionKey("red", SAME)])) == []
    assert list(await store.cancelled_among([SessionKey("blue", SAME), SessionKey("red", SAME)])) == [SAME]
    assert (await head_of(store, red.key)).owned


async def test_i13_a_foreign_session_cannot_be_written(store: Store) -> None:
    blue = await build(store, "blue")
    untouched = await reads(store, "blue", SAME, SAME)
    head = replace(await head_of(store, blue.key), tenant="red")
    for fence in (None, blue.fence):
        assert await store.commit(a_changeset(head, an_event(), fence=fence)) == Conflict()
        absent = replace(head, session_id="absent")
        assert await store.commit(a_changeset(absent, an_event(), fence=fence)) == Conflict()
    assert await store.commit(a_changeset(head, an_event(), changeset_id=SAME, last_seq=1)) == Conflict()
    assert not await store.renew(SessionKey("red", SAME), owner=SAME, fence=blue.fence, lease=LONG)
    assert not await store.request_cancel(SessionKey("red", SAME), Cancel(turn_id=SAME))
    assert list(await store.cancelled_among([SessionKey("red", SAME)])) == [SAME]
    assert await reads(store, "blue", SAME, SAME) == untouched


async def test_i13_the_same_session_id_makes_two_sessions(store: Store) -> None:
    for tenant in ("blue", "red", "bl", "blue/same"):
        await begin(store, a_session_key(tenant=tenant, session_id=SAME))
    blue, red = SessionKey("blue", SAME), SessionKey("red", SAME)
    assert await store.last_seqs([blue, red]) == {blue: 1, red: 1}


async def test_i13_what_serves_all_tenants_names_the_tenant(store: Store) -> None:
    for tenant in ("blue", "red"):
        key = await begin(store, a_session_key(tenant=tenant, session_id=SAME))
        turn = a_turn(key, id=SAME)
        approval = an_approval(key, id=SAME, expire_time=expire_time_of(key), turn_id=SAME)
        changeset = a_changeset(
            await head_of(store, key),
            an_event(),
            head=HeadChange(active_turn=SAME),
            new_turns=(turn,),
            new_approvals=(approval,),
        )
        await committed(store.commit(changeset))
    assert await store.requeue_lapsed() == 2
    claims = [await store.claim("one", lease=LONG) for _ in range(2)]
    assert {claim and (claim.session_key, claim.turn_id) for claim in claims} == {
        (SessionKey("blue", SAME), SAME),
        (SessionKey("red", SAME), SAME),
    }
    assert {approval.tenant for approval in await lapsed_approvals(store)} == {"blue", "red"}
    assert await store.pending_approvals() == 2
    assert await store.active_sessions() == 2


def expire_time_of(key: SessionKey) -> Any:
    return a_session(key).create_time
