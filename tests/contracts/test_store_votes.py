"""A vote is stored with what it leaves pending; one of two at once is decided again, and none counts too late."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.builders import NOON, an_approval, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import a_changeset, begin, committed, head_of, run_turn, snapshot_of
from turnkeeper.domain.approval import Approval, ApprovalDecision, Vote
from turnkeeper.domain.approvers import Approvers
from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import ApprovalChange, Conflict
from turnkeeper.store.contract import Store

TWO = Approvers(groups=frozenset({"finance", "board"}), principals=frozenset({"sue"}), k=2, veto=False, reject_at=3)


def a_vote(person: str) -> Vote:
    return Vote(
        person=person,
        authority="eve",
        through="portal",
        decision=ApprovalDecision.APPROVE,
        arguments_hash="hash-1",
        at=NOON,
        reason="so",
        sequence=9,
    )


async def pending(store: Store, **given: object) -> tuple[SessionKey, Approval]:
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    approval = an_approval(key, turn_id=turn.id, approvers=TWO, **given)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_approvals=(approval,))))
    return key, approval


async def test_votes_are_stored_as_they_are_and_the_approval_stays_pending(store: Store) -> None:
    key, approval = await pending(store)
    voted = replace(approval, votes=(a_vote("bob"), a_vote("joe")))
    change = ApprovalChange(approval=voted, lapsed=False)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))
    assert (await snapshot_of(store, key)).approvals == (voted,)
    assert await store.approval(key.tenant, approval.id) == voted


async def test_a_vote_after_the_expiry_is_a_conflict(store: Store) -> None:
    key, approval = await pending(store, expire_time=datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1))
    change = ApprovalChange(approval=replace(approval, votes=(a_vote("bob"),)), lapsed=False)
    changeset = a_changeset(await head_of(store, key), an_event(), approvals=(change,))
    assert await store.commit(changeset) == Conflict()
    assert await store.approval(key.tenant, approval.id) == approval


async def test_of_two_votes_at_once_one_is_decided_again(new_store: NewStore) -> None:
    replicas = [await new_store(name) for name in ("one", "two")]
    key, approval = await pending(replicas[0])
    head = await head_of(replicas[0], key)
    voted = [replace(approval, votes=(a_vote(name),)) for name in ("bob", "joe")]
    changes = [ApprovalChange(approval=changed, lapsed=False) for changed in voted]
    changesets = [a_changeset(head, an_event(), approvals=(change,)) for change in changes]
    results = await asyncio.gather(
        *(replica.commit(changeset) for replica, changeset in zip(replicas, changesets, strict=True))
    )
    assert sorted(type(result).__name__ for result in results) == ["Committed", "Conflict"]
    stored = await replicas[0].approval(key.tenant, approval.id)
    assert stored == voted[1 - results.index(Conflict())]
