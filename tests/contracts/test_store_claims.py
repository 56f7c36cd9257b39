"""Claims, lapsed leases, requests to cancel."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from tests.builders import AGENT, a_call, a_session_key, a_turn, an_approval, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, lapse, make_due, run_turn, until
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import Busy, Cancel, Claim, HeadChange, LeaseChange
from turnkeeper.store.contract import Store
from turnkeeper.store.maintenance import UnclaimedTurns

WAITING = HeadChange(lease=LeaseChange.RELEASE)


async def test_a_claim_leases_the_turn(store: Store) -> None:
    key = await begin(store)
    turn = await make_due(store, key)
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert timedelta() <= claim.late_by < timedelta(seconds=10)
    assert claim == Claim(
        tenant=key.tenant,
        session_id=key.session_id,
        agent=AGENT.name,
        turn_id=turn.id,
        fence=1,
        lapses=0,
        late_by=claim.late_by,
    )
    head = await head_of(store, key)
    assert (head.owner, head.owned, head.fence, head.active_turn) == ("one", True, 1, turn.id)
    assert await store.claim("two", lease=LONG) is None
    await committed(store.commit(a_changeset(head, an_event(), fence=claim.fence)))


async def test_turns_that_wait_for_a_worker_are_counted_with_the_longest_wait(store: Store) -> None:
    assert await store.waiting_turns() == UnclaimedTurns(0, timedelta())
    keys = [await begin(store) for _ in range(4)]
    for key in keys[:3]:
        await make_due(store, key)
    await run_turn(store, keys[3], lease=LONG)
    suspended = HeadChange(suspended=True)
    await committed(store.commit(a_changeset(await head_of(store, keys[0]), an_event(), head=suspended)))

    async def have_waited() -> bool:
        return (await store.waiting_turns()).longest >= timedelta(milliseconds=50)

    await until(have_waited)
    waiting, longest = await store.waiting_turns()
    assert waiting == 2, "neither the suspended one nor the one with an owner"
    assert longest < timedelta(seconds=30)
    claims = [await store.claim("one", lease=LONG) for _ in range(2)]
    assert None not in claims
    assert await store.waiting_turns() == UnclaimedTurns(0, timedelta())


async def test_i4_eight_claimers_get_each_turn_once(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    keys = await asyncio.gather(*(begin(replicas[0]) for _ in range(12)))
    turns = {(await make_due(replicas[0], key)).id for key in keys}

    async def claim_all(number: int) -> list[Claim]:
        claims: list[Claim] = []
        while len(claims) < 24 and (claim := await replicas[number % 2].claim(f"owner-{number}", lease=LONG)):
            claims.append(claim)
        return claims

    claims: list[Claim] = []
    while len(claims) < len(turns):
        new_claims = [claim for claims in await asyncio.gather(*map(claim_all, range(8))) for claim in claims]
        assert new_claims, "a turn that is due was not claimable"
        claims += new_claims
    assert Counter(claim.turn_id for claim in claims) == Counter(turns)
    assert {claim.fence for claim in claims} == {1}
    assert await replicas[0].claim("late", lease=LONG) is None


async def claimed(store: Store, owner: str) -> Claim:
    """The next claim: after the first lapse it is due a little later each time."""
    claims: list[Claim] = []

    async def claim() -> bool:
        claims.extend(filter(None, [await store.claim(owner, lease=SHORT)]))
        return bool(claims)

    await until(claim)
    return claims[0]


async def test_i4_fences_only_grow(store: Store) -> None:
    key = await begin(store)
    await make_due(store, key)
    fences: list[int] = []
    for owner in ("one", "two", "one"):
        claim = await claimed(store, owner)
        fences.append(claim.fence)
        await lapse(store, key)
        assert await store.requeue_lapsed() == 1
    assert fences == [1, 2, 3]


async def test_any_of_the_32_due_longest_may_be_claimed_and_no_other(store: Store) -> None:
    keys = await asyncio.gather(*(begin(store) for _ in range(34)))
    for key in keys:
        await make_due(store, key)
    order = [key.session_id for key in keys]
    positions: list[int] = []
    for _ in range(6):
        claim = await store.claim("one", lease=LONG)
        assert claim is not None
        positions.append(order.index(claim.session_id))
        assert positions[-1] < 32
        order.remove(claim.session_id)
    assert positions != [0] * 6, "it always takes the oldest: all claimers would meet at it"


async def due_of(store: Store, tenant: str) -> SessionKey:
    """A session of the tenant whose turn is due."""
    key = await begin(store, a_session_key(tenant=tenant))
    await make_due(store, key)
    return key


async def test_each_tenant_with_a_due_turn_has_its_turn(store: Store) -> None:
    """However many turns of one tenant are due, and for how long."""
    await asyncio.gather(*(due_of(store, "busy") for _ in range(40)))
    for tenant in ("zoe", "ada", "busy.2"):
        await due_of(store, tenant)
    claims = [await store.claim("one", lease=LONG) for _ in range(5)]
    assert [claim and claim.tenant for claim in claims] == ["ada", "busy", "busy.2", "zoe", "busy"]


async def test_a_claim_tells_whether_other_turns_are_due_of_whichever_tenant(store: Store) -> None:
    await due_of(store, "ada")
    await due_of(store, "zoe")
    await due_of(store, "ada")
    claims = [await store.claim("one", lease=LONG) for _ in range(3)]
    assert [claim and (claim.tenant, claim.more) for claim in claims] == [("ada", True), ("zoe", True), ("ada", False)]


async def test_a_turn_of_a_busy_agent_or_tenant_waits(store: Store) -> None:
    key = await due_of(store, "ada")
    assert await store.claim("one", lease=LONG, without=Busy(agents=frozenset({AGENT.name, "another"}))) is None
    assert await store.claim("one", lease=LONG, without=Busy(tenants=frozenset({"ada", "zoe"}))) is None
    others = Busy(agents=frozenset({"another"}), tenants=frozenset({"zoe"}))
    claim = await store.claim("one", lease=LONG, without=others)
    assert claim is not None
    assert claim.session_key == key


async def test_i4_a_lease_that_had_not_lapsed_by_a_second_clock_is_kept(store: Store) -> None:
    key = await begin(store)
    before = (await head_of(store, key)).now
    _, owned = await run_turn(store, key, lease=SHORT)
    await lapse(store, key)
    assert await store.requeue_lapsed(lapsed_by=before) == 0
    assert (await head_of(store, key)).owner == "one"
    assert await store.renew(key, owner="one", fence=owned.fence, lease=SHORT)
    await lapse(store, key)
    assert await store.requeue_lapsed(lapsed_by=(await head_of(store, key)).now) == 1


async def test_i9_a_lapsed_lease_is_requeued_and_counted(store: Store) -> None:
    key = await begin(store)
    turn = await make_due(store, key)
    for lapses in range(3):
        claim = await claimed(store, "one")
        assert (claim.turn_id, claim.lapses) == (turn.id, lapses)
        assert await store.claim("two", lease=LONG) is None
        await lapse(store, key)
        assert await store.requeue_lapsed() == 1
        assert await store.requeue_lapsed() == 0
        head = await head_of(store, key)
        assert (head.owner, head.owned, head.lapses) == ("", False, lapses + 1)


async def test_i9_an_owners_changeset_sets_the_count_back(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key, lease=SHORT)
    await lapse(store, key)
    await store.requeue_lapsed()
    claim = await store.claim("two", lease=LONG)
    assert claim is not None
    await committed(store.commit(a_changeset(await head_of(store, key), an_event())))
    assert (await head_of(store, key)).lapses == 1
    await committed(store.commit(a_changeset(await head_of(store, key), fence=claim.fence)))
    assert (await head_of(store, key)).lapses == 0
    assert claim.fence == owned.fence + 1


async def test_a_live_owner_keeps_its_turn(store: Store) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    assert await store.requeue_lapsed() == 0
    head = await head_of(store, key)
    assert (head.owner, head.owned, head.fence) == ("one", True, owned.fence)


async def test_four_sweepers_requeue_each_turn_once(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    keys = await asyncio.gather(*(begin(replicas[0]) for _ in range(6)))
    for key in keys:
        await run_turn(replicas[0], key, lease=SHORT)
    for key in keys:
        await lapse(replicas[0], key)
    counts = await asyncio.gather(*(replicas[number % 2].requeue_lapsed() for number in range(4)))
    assert sum(counts) == len(keys)
    assert [(await head_of(replicas[0], key)).lapses for key in keys] == [1] * len(keys)


async def test_a_sweeper_and_a_renewal_exclude_each_other(store: Store) -> None:
    """Whichever is first: the turn is either still owned or claimable; never both, never neither."""
    for _ in range(20):
        key = await begin(store)
        _, owned = await run_turn(store, key, lease=SHORT)
        await lapse(store, key)
        renewed, swept = await asyncio.gather(
            store.renew(key, owner="one", fence=owned.fence, lease=LONG),
            store.requeue_lapsed(),
        )
        assert (renewed, swept) in ((True, 0), (False, 1))
        assert (await head_of(store, key)).owned == renewed


async def test_a_queue_without_an_active_turn_goes_on(store: Store) -> None:
    key = await begin(store)
    await committed(store.commit(a_changeset(await head_of(store, key), head=HeadChange(queue=("first", "next")))))
    assert await store.requeue_lapsed() == 1
    head = await head_of(store, key)
    assert (head.active_turn, head.queue) == ("first", ("next",))
    claim = await store.claim("one", lease=LONG)
    assert claim is not None
    assert claim.turn_id == "first"
    assert await store.requeue_lapsed() == 0


async def test_a_sweep_without_rescues_requeues_lapsed_leases_alone(store: Store) -> None:
    stranded, lapsed = await begin(store), await begin(store)
    await committed(store.commit(a_changeset(await head_of(store, stranded), head=HeadChange(queue=("first",)))))
    await run_turn(store, lapsed, lease=SHORT)
    await lapse(store, lapsed)
    assert await store.requeue_lapsed(rescues=False) == 1
    assert (await head_of(store, stranded)).queue == ("first",)
    assert await store.requeue_lapsed() == 1


@pytest.mark.parametrize("state", [TurnState.AWAITING_APPROVAL, TurnState.AWAITING_OUTCOME])
async def test_a_turn_that_awaits_no_approval_any_more_goes_on(store: Store, state: TurnState) -> None:
    key = await begin(store)
    turn, owned = await run_turn(store, key, state=state)
    call = a_call(key, turn_id=turn.id)
    approval = an_approval(key, turn_id=turn.id, tool_call_id=call.id)
    other = an_approval(key, turn_id="another")
    waits = a_changeset(
        await head_of(store, key),
        an_event(),
        fence=owned.fence,
        head=WAITING,
        new_calls=(call,),
        new_approvals=(approval, other),
    )
    await committed(store.commit(waits))
    assert await store.requeue_lapsed() == 0

    stranded = await begin(store)
    turn, owned = await run_turn(store, stranded, state=state)
    await committed(store.commit(a_changeset(await head_of(store, stranded), fence=owned.fence, head=WAITING)))
    assert await store.requeue_lapsed() == 1
    claim = await store.claim("two", lease=LONG)
    assert claim is not None
    assert (claim.turn_id, claim.lapses) == (turn.id, 0)


async def test_a_turn_waits_for_its_client_as_long_as_a_call_is_requested(store: Store) -> None:
    for state, requeued in ((CallState.REQUESTED, 0), (CallState.RETURNED, 1)):
        key = await begin(store)
        turn, owned = await run_turn(store, key, state=TurnState.AWAITING_TOOL)
        calls = (
            a_call(key, turn_id=turn.id, state=state),
            a_call(key, turn_id="another", state=CallState.REQUESTED),
        )
        waits = a_changeset(await head_of(store, key), an_event(), fence=owned.fence, head=WAITING, new_calls=calls)
        await committed(store.commit(waits))
        assert await store.requeue_lapsed() == requeued


async def test_a_turn_without_an_owner_or_a_reason_to_wait_goes_on(store: Store) -> None:
    expected = {state: state.moving or state.awaits_answers for state in TurnState if not state.ended}
    keys = {}
    for state in expected:
        key = await begin(store)
        turn = a_turn(key, state=state)
        changeset = a_changeset(await head_of(store, key), head=HeadChange(active_turn=turn.id), new_turns=(turn,))
        await committed(store.commit(changeset))
        keys[key.session_id] = state
    assert await store.requeue_lapsed() == sum(expected.values())
    claimed = set()
    while claim := await store.claim("one", lease=LONG):
        claimed.add(keys[claim.session_id])
    assert claimed == {state for state, requeued in expected.items() if requeued}


async def test_a_turn_that_waits_for_its_time_is_left_alone(store: Store) -> None:
    key = await begin(store)
    await make_due(store, key, wake=timedelta(hours=1), state=TurnState.BACKING_OFF)
    assert await store.requeue_lapsed() == 0
    assert await store.claim("one", lease=LONG) is None


async def test_a_request_to_cancel_is_kept_for_the_active_turn_alone(store: Store) -> None:
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    read = await head_of(store, key)
    request = Cancel(turn_id=turn.id, by="ada", reason="REQUESTED")

    async def request_cancel(cancel: Cancel) -> bool:
        return await store.request_cancel(key, cancel)

    assert not await request_cancel(Cancel(turn_id="another", by="ada", reason="REQUESTED"))
    assert not await request_cancel(Cancel())
    assert (await head_of(store, key)).revision == read.revision
    assert await request_cancel(request)
    with_request = await head_of(store, key)
    assert with_request.cancel == request
    assert await request_cancel(Cancel(turn_id=turn.id, by="bob", reason="INTERRUPTED"))
    assert (await head_of(store, key)).cancel == request
    assert (await head_of(store, key)).revision == with_request.revision


async def test_a_request_to_cancel_needs_an_owner(store: Store) -> None:
    key = await begin(store)
    turn, owned = await run_turn(store, key)
    let_go = HeadChange(lease=LeaseChange.RELEASE)
    await committed(store.commit(a_changeset(await head_of(store, key), fence=owned.fence, head=let_go)))
    assert not await store.request_cancel(key, Cancel(turn_id=turn.id, by="ada"))
    assert (await head_of(store, key)).cancel == Cancel()


async def test_an_owner_sees_what_disturbs_its_turns(store: Store) -> None:
    keys = [await begin(store) for _ in range(5)]
    fine, cancelled, lapsed, ended, later = keys
    for key in keys:
        turn, owned = await run_turn(store, key, lease=SHORT if key is lapsed else LONG)
        if key is cancelled:
            assert await store.request_cancel(key, Cancel(turn_id=turn.id))
        if key is ended:
            done = HeadChange(lease=LeaseChange.RELEASE, active_turn="")
            await committed(store.commit(a_changeset(await head_of(store, key), fence=owned.fence, head=done)))
        if key is later:
            other = HeadChange(active_turn="next", cancel=Cancel(turn_id=turn.id))
            await committed(store.commit(a_changeset(await head_of(store, key), fence=owned.fence, head=other)))
    await lapse(store, lapsed)
    owned_once = [*keys, SessionKey("default", "gone"), SessionKey("other", fine.session_id)]
    disturbed = await store.cancelled_among(owned_once)
    assert list(disturbed) == [cancelled.session_id, lapsed.session_id, ended.session_id, "gone", fine.session_id]
    assert await store.cancelled_among([]) == []
