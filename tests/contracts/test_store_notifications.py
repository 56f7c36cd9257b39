"""Notifications: changes of any session, soon after they are stored; a renewal causes none."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

from tests.builders import a_call, an_approval, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import LONG, SHORT, a_changeset, begin, committed, head_of, lapse, make_due, run_turn
from turnkeeper.domain.approval import ApprovalKind, ApprovalState
from turnkeeper.domain.tool import CallState, ToolOutcome, ToolResult
from turnkeeper.store.changeset import ApprovalChange, Cancel, HeadChange, LeaseChange
from turnkeeper.store.contract import Store
from turnkeeper.store.notifications import ApprovalNotification, ChangeNotification, Notification


async def _next_approval(notifications: AsyncIterator[Notification]) -> ApprovalNotification:
    """Returns the next notification of an approval; passes over those of sessions."""
    async with asyncio.timeout(10):
        async for notification in notifications:
            if isinstance(notification, ApprovalNotification):
                return notification
    raise AssertionError("the notifications have ended")


async def _next(notifications: AsyncIterator[Notification]) -> ChangeNotification:
    async with asyncio.timeout(10):
        notification = await anext(notifications)
    assert isinstance(notification, ChangeNotification)
    return notification


async def test_every_kind_of_change_is_notified_in_order(new_store: NewStore) -> None:
    here, there = await new_store(), await new_store()
    key = await begin(there)
    about = partial(ChangeNotification, tenant=key.tenant, session_id=key.session_id)
    async with here.notifications() as notifications:
        await committed(there.commit(a_changeset(await head_of(there, key), an_event(), an_event())))
        assert await _next(notifications) == about(last_seq=3)
        turn = await make_due(there, key)
        assert await _next(notifications) == about(last_seq=4, claimable=True)
        claim = await there.claim("two", lease=LONG)
        assert claim is not None
        assert await _next(notifications) == about(by_owner=True, owner="two")
        assert await there.renew(key, owner="two", fence=claim.fence, lease=2 * LONG)
        owners = HeadChange(lease_for=3 * LONG)
        await committed(
            there.commit(a_changeset(await head_of(there, key), an_event(), fence=claim.fence, head=owners))
        )
        assert await _next(notifications) == about(last_seq=5, by_owner=True), "the renewal before it is not notified"
        assert await there.request_cancel(key, Cancel(turn_id=turn.id, by="ada"))
        assert await _next(notifications) == about()
        gone = HeadChange(lease=LeaseChange.BREAK)
        await committed(there.commit(a_changeset(await head_of(there, key), an_event(), head=gone)))
        assert await _next(notifications) == about(last_seq=6, owner="")


async def test_a_lapsed_lease_is_notified_when_it_is_swept(store: Store) -> None:
    key = await begin(store)
    await run_turn(store, key, lease=SHORT)
    async with store.notifications() as notifications:
        await lapse(store, key)
        assert await store.requeue_lapsed() == 1
        swept = await _next(notifications)
    assert swept == ChangeNotification(tenant=key.tenant, session_id=key.session_id, claimable=True, owner="")


async def test_the_next_entry_goes_on_where_the_last_one_ended(store: Store) -> None:
    key = await begin(store)

    async def append() -> None:
        await committed(store.commit(a_changeset(await head_of(store, key), an_event())))

    async with store.notifications() as notifications:
        await append()
        assert (await _next(notifications)).last_seq == 2
    await append()
    async with store.notifications() as notifications:
        assert (await _next(notifications)).last_seq == 3


async def test_a_replica_is_not_notified_of_what_its_own_worker_stores(new_store: NewStore) -> None:
    """Neither a changeset that takes the lease, nor an owner's, nor a claim; all other changes are."""
    here, there = await new_store("here"), await new_store("there")
    key = await begin(here)
    about = partial(ChangeNotification, tenant=key.tenant, session_id=key.session_id)
    async with here.notifications() as near, there.notifications() as far:
        turn, owned = await run_turn(here, key, owner="here")
        for _ in range(3):
            changeset = a_changeset(
                await head_of(here, key), an_event(), fence=owned.fence, head=HeadChange(lease_for=LONG)
            )
            owned = await committed(here.commit(changeset))
        away = HeadChange(lease=LeaseChange.RELEASE, wake=timedelta())
        await committed(here.commit(a_changeset(await head_of(here, key), an_event(), fence=owned.fence, head=away)))
        claim = await here.claim("here", lease=LONG)
        assert claim is not None
        assert await here.request_cancel(key, Cancel(turn_id=turn.id, by="ada"))
        await committed(here.commit(a_changeset(await head_of(here, key), an_event())))
        assert [await _next(near) for _ in range(2)] == [about(), about(last_seq=7)]
        assert [await _next(far) for _ in range(8)] == [
            about(last_seq=2, by_owner=True, owner="here"),
            *(about(last_seq=sequence, by_owner=True) for sequence in (3, 4, 5)),
            about(last_seq=6, claimable=True, owner=""),
            about(by_owner=True, owner="here"),
            about(),
            about(last_seq=7),
        ]


async def test_each_replica_is_notified_of_what_the_others_worker_stores(new_store: NewStore) -> None:
    """A turn that goes from one replica to the other and back is notified each time to the one without it."""
    here, there = await new_store("here"), await new_store("there")
    key = await begin(here)
    async with here.notifications() as near, there.notifications() as far:
        for _ in range(2):
            for worker, owner, listener in ((here, "here", far), (there, "there", near)):
                _, owned = await run_turn(worker, key, owner=owner)
                notification = await _next(listener)
                assert (notification.last_seq, notification.owner) == (owned.last_seq, owner)
                gone = HeadChange(lease=LeaseChange.RELEASE, active_turn="")
                ended = a_changeset(await head_of(worker, key), an_event(), fence=owned.fence, head=gone)
                await committed(worker.commit(ended))
                assert (await _next(listener)).last_seq == owned.last_seq + 1


async def test_each_change_of_an_approval_is_notified_to_all_replicas(new_store: NewStore) -> None:
    """Also what this replica's own worker stores: the inbox has no other source."""
    here, there = await new_store("here"), await new_store("there")
    key = await begin(here)
    async with here.notifications() as near, there.notifications() as far:
        turn, owned = await run_turn(here, key, owner="here")
        call = a_call(key, turn_id=turn.id, state=CallState.UNKNOWN, attempt=1, fence=owned.fence)
        first, second = (an_approval(key, turn_id=turn.id, kind=ApprovalKind.OUTCOME) for _ in range(2))
        first = replace(first, tool_call_id=call.id)
        requested = a_changeset(
            await head_of(here, key), an_event(), fence=owned.fence, new_calls=(call,), new_approvals=(first, second)
        )
        await committed(here.commit(requested))
        late = ToolResult(outcome=ToolOutcome.OK, result_json="1")
        assert await here.keep_late_result(key, call.id, attempt=1, fence=owned.fence, result=late)
        closed = second.closed(ApprovalState.EXPIRED, at=second.create_time)
        expired = ApprovalChange(approval=closed, lapsed=None)
        await committed(here.commit(a_changeset(await head_of(here, key), an_event(), approvals=(expired,))))
        for notifications in (near, far):
            named = [await _next_approval(notifications) for _ in range(4)]
            ids = [notification.approval_id for notification in named]
            assert {notification.tenant for notification in named} == {key.tenant}
            assert (sorted(ids[:2]), ids[2:]) == (sorted((first.id, second.id)), [first.id, second.id])
