"""Hints: what moved in any session, soon; a renewal is none."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from tests.builders import an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import LONG, SHORT, a_step, begin, committed, head_of, lapse, make_due, run_turn
from turnkeeper.store.contract import Store
from turnkeeper.store.hints import Hint, Piece
from turnkeeper.store.step import Cancel, HeadChange, Lease


async def _next(hints: AsyncIterator[Hint | Piece]) -> Hint:
    async with asyncio.timeout(10):
        hint = await anext(hints)
    assert isinstance(hint, Hint)
    return hint


async def test_every_kind_of_move_is_hinted_in_order(new_store: NewStore) -> None:
    here, there = await new_store(), await new_store()
    place = await begin(there)
    about = partial(Hint, tenant=place.tenant, session_id=place.session_id)
    async with here.hints() as hints:
        await committed(there.commit(a_step(await head_of(there, place), an_event(), an_event())))
        assert await _next(hints) == about(last_seq=3)
        turn = await make_due(there, place)
        assert await _next(hints) == about(last_seq=4, claimable=True)
        claim = await there.claim("two", lease=LONG)
        assert claim is not None
        assert await _next(hints) == about(by_owner=True, owner="two")
        assert await there.renew(place.tenant, place.session_id, owner="two", fence=claim.fence, lease=2 * LONG)
        owners = HeadChange(lease_for=3 * LONG)
        await committed(there.commit(a_step(await head_of(there, place), an_event(), fence=claim.fence, head=owners)))
        assert await _next(hints) == about(last_seq=5, by_owner=True), "the renewal before it is no news"
        assert await there.request_cancel(place.tenant, place.session_id, Cancel(turn_id=turn.id, by="ada"))
        assert await _next(hints) == about()
        gone = HeadChange(lease=Lease.BREAK)
        await committed(there.commit(a_step(await head_of(there, place), an_event(), head=gone)))
        assert await _next(hints) == about(last_seq=6, owner="")


async def test_a_lapsed_lease_is_hinted_when_it_is_swept(store: Store) -> None:
    place = await begin(store)
    await run_turn(store, place, lease=SHORT)
    async with store.hints() as hints:
        await lapse(store, place)
        assert await store.requeue_lapsed() == 1
        swept = await _next(hints)
    assert swept == Hint(tenant=place.tenant, session_id=place.session_id, claimable=True, owner="")


async def test_the_next_entry_goes_on_where_the_last_one_ended(store: Store) -> None:
    place = await begin(store)

    async def say() -> None:
        await committed(store.commit(a_step(await head_of(store, place), an_event())))

    async with store.hints() as hints:
        await say()
        assert (await _next(hints)).last_seq == 2
    await say()
    async with store.hints() as hints:
        assert (await _next(hints)).last_seq == 3
