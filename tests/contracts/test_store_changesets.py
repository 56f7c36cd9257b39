"""Changesets: stored whole or not at all, once."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import (
    NOON,
    a_call,
    a_request,
    a_session,
    a_session_key,
    a_turn,
    an_approval,
    an_event,
)
from tests.contracts.stores import a_changeset, begin, committed, head_of, make_due, run_turn, snapshot_of
from turnkeeper.domain.approval import ApprovalState
from turnkeeper.domain.message import Usage
from turnkeeper.domain.session import SessionKey, SessionState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import (
    ApprovalChange,
    Cancel,
    Changeset,
    Committed,
    Conflict,
    Duplicate,
    HeadChange,
    LeaseChange,
    Snapshot,
)
from turnkeeper.store.contract import Store


async def test_a_changeset_is_stored_whole(store: Store) -> None:
    key = await begin(store)
    turn = a_turn(key)
    calls = (
        a_call(key, turn_id=turn.id, message_id="m2", position=0),
        a_call(key, turn_id=turn.id, message_id="m1", position=1),
        a_call(key, turn_id=turn.id, message_id="m1", position=0),
    )
    approval = an_approval(key, turn_id=turn.id, tool_call_id=calls[0].id)
    session = a_session(key, state=SessionState.ACTIVE, usage=Usage(input_tokens=5), title="hello")
    request = a_request(key, turn_id=turn.id)
    changeset = a_changeset(
        await head_of(store, key),
        *(an_event("one", turn_id=turn.id), an_event("two")),
        head=HeadChange(active_turn=turn.id, queue=("later", "last"), wake=timedelta(hours=1)),
        session=session,
        new_turns=(turn,),
        new_calls=calls,
        new_approvals=(approval,),
        request=request,
    )
    result = await committed(store.commit(changeset))
    assert (result.last_seq, result.fence) == (3, 0)
    assert [event.sequence for event in result.events] == [2, 3]
    assert list(result.events) == list(await store.events(key, after=1, limit=10))
    assert b"two" in result.events[1].payload
    assert result.events[1].payload.endswith(b"#3")
    assert result.events[0].turn_id == turn.id
    snapshot = await snapshot_of(store, key)
    assert snapshot == Snapshot(
        head=replace(snapshot.head, last_seq=3, active_turn=turn.id, queue=("later", "last")),
        session=session,
        turn=turn,
        calls=(calls[2], calls[1], calls[0]),
        approvals=(approval,),
    )
    assert await store.find_request(request.key) == request


async def test_what_changes_is_replaced(store: Store) -> None:
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    call = a_call(key, turn_id=turn.id)
    approval = an_approval(key, turn_id=turn.id, tool_call_id=call.id)
    await committed(
        store.commit(a_changeset(await head_of(store, key), an_event(), new_calls=(call,), new_approvals=(approval,)))
    )
    changed_turn = replace(turn, state=TurnState.COMPLETED, usage=Usage(output_tokens=7), end_time=NOON)
    changed_call = replace(call, attempt=3, started=True)
    decided = replace(approval, state=ApprovalState.APPROVED, decided_by="bob", decide_time=NOON, sequence=4)
    await committed(
        store.commit(
            a_changeset(
                await head_of(store, key),
                an_event(),
                turns=(changed_turn,),
                calls=(changed_call,),
                approvals=(ApprovalChange(approval=decided, lapsed=None),),
            )
        )
    )
    snapshot = await snapshot_of(store, key)
    assert (snapshot.turn, snapshot.calls, snapshot.approvals) == (changed_turn, (changed_call,), ())
    assert await store.approval(key.tenant, approval.id) == decided


async def test_what_changes_beside_what_was_read_is_stored(store: Store) -> None:
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    other = a_turn(key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_turns=(other,))))
    read = await snapshot_of(store, key)
    turns = (replace(turn, tries=2, usage=Usage(output_tokens=7)), replace(other, tries=3, message_id=turn.message_id))
    session = replace(read.session, title="new", usage=Usage(output_tokens=7), update_time=NOON)
    changeset = a_changeset(await head_of(store, key), an_event(), turns=turns, session=session)
    await committed(store.commit(replace(changeset, turn_as_read=read.turn, session_as_read=read.session)))
    assert [await store.turn(key, changed.id) for changed in turns] == list(turns)
    assert (await snapshot_of(store, key)).session == session


async def test_a_snapshot_shows_the_turn_it_is_asked_for(store: Store) -> None:
    key = await begin(store)
    active, _ = await run_turn(store, key)
    other = a_turn(key)
    call = a_call(key, turn_id=other.id)
    changeset = a_changeset(await head_of(store, key), an_event(), new_turns=(other,), new_calls=(call,))
    await committed(store.commit(changeset))
    assert (await snapshot_of(store, key)).turn == active
    snapshot = await snapshot_of(store, key, turn_id=other.id)
    assert (snapshot.turn, snapshot.calls) == (other, (call,))
    assert (await snapshot_of(store, key, turn_id="unknown")).turn is None


async def test_a_head_that_moved_makes_a_changeset_a_conflict(store: Store) -> None:
    key = await begin(store)
    turn, _ = await run_turn(store, key)
    read = await head_of(store, key)
    assert await store.request_cancel(key, Cancel(turn_id=turn.id, by="ada"))
    with_request = await head_of(store, key)
    conflicting = [
        a_changeset(read, an_event()),
        a_changeset(with_request, an_event(), last_seq=read.last_seq - 1),
        a_changeset(with_request, an_event(), last_seq=read.last_seq + 1),
        a_changeset(with_request, an_event(), cancel=""),
        a_changeset(read, an_event(), fence=read.fence),
    ]
    assert [await store.commit(changeset) for changeset in conflicting] == [Conflict()] * len(conflicting)
    assert (await store.events(key, after=read.last_seq, limit=9)) == []
    await committed(store.commit(a_changeset(with_request, an_event())))


async def test_a_changeset_without_events_makes_what_others_decided_a_conflict(store: Store) -> None:
    """Otherwise a decision made on an owned turn could be stored after its release, and no owner would be notified."""
    key = await begin(store)
    _, owned = await run_turn(store, key)
    read = await head_of(store, key)
    release = a_changeset(read, fence=owned.fence, head=HeadChange(lease=LeaseChange.RELEASE))
    assert await store.commit(release) == Committed(last_seq=read.last_seq, fence=owned.fence, events=())
    assert await store.commit(a_changeset(read, an_event())) == Conflict()


async def test_a_claim_makes_what_others_decided_a_conflict(store: Store) -> None:
    key = await begin(store)
    await make_due(store, key)
    read = await head_of(store, key)
    assert await store.claim("one", lease=timedelta(minutes=1)) is not None
    assert await store.commit(a_changeset(read, an_event())) == Conflict()


@pytest.mark.parametrize("kind", ["new_turns", "new_calls", "new_approvals"])
async def test_nothing_is_stored_when_a_new_document_exists(store: Store, kind: str) -> None:
    key = await begin(store)
    document = {"new_turns": a_turn, "new_calls": a_call, "new_approvals": an_approval}[kind](key)
    new: dict[str, Any] = {kind: (document,)}
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), **new)))
    twice = a_changeset(await head_of(store, key), an_event(), new_turns=(a_turn(key, id="t9"),))
    both: dict[str, Any] = {kind: (*getattr(twice, kind), document)}
    twice = replace(twice, **both)
    assert await store.commit(twice) == Conflict()
    assert (await head_of(store, key)).last_seq == 2
    assert await store.turn(key, "t9") is None


@pytest.mark.parametrize("kind", ["turns", "calls", "approvals"])
async def test_nothing_is_stored_when_a_changed_document_is_missing(store: Store, kind: str) -> None:
    key = await begin(store)
    there = a_turn(key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), new_turns=(there,))))
    missing = {
        "turns": a_turn(key),
        "calls": a_call(key),
        "approvals": ApprovalChange(approval=an_approval(key), lapsed=None),
    }[kind]
    changeset = a_changeset(await head_of(store, key), an_event(), turns=(replace(there, attempt=9),))
    both: dict[str, Any] = {kind: (*getattr(changeset, kind), missing)}
    changeset = replace(changeset, **both)
    assert await store.commit(changeset) == Conflict()
    assert (await head_of(store, key)).last_seq == 2
    assert await store.turn(key, there.id) == there


async def test_a_changeset_of_an_unknown_session_is_a_conflict(store: Store) -> None:
    known = await begin(store)
    changeset = a_changeset(replace(await head_of(store, known), session_id="unknown"), an_event())
    assert await store.commit(changeset) == Conflict()
    assert await store.events(SessionKey("default", "unknown"), after=0, limit=9) == []


@pytest.mark.parametrize("lease", list(LeaseChange))
@pytest.mark.parametrize("events", [0, 2])
async def test_the_same_changeset_again_finds_what_the_first_did(store: Store, lease: LeaseChange, events: int) -> None:
    key = await begin(store)
    _, owned = await run_turn(store, key)
    change = HeadChange(lease=lease, owner="two", lease_for=timedelta(minutes=1))
    head = await head_of(store, key)
    changeset = a_changeset(head, *(an_event() for _ in range(events)), fence=owned.fence, head=change)
    first = await committed(store.commit(changeset))
    assert first.fence == owned.fence + (lease in (LeaseChange.TAKE, LeaseChange.BREAK))
    again = await asyncio.gather(*(store.commit(changeset) for _ in range(3)))
    assert again == [first] * 3
    now = await head_of(store, key)
    assert (now.last_seq, now.fence, now.revision) == (head.last_seq + events, first.fence, head.revision + 1)
    for _ in range(2):
        await committed(store.commit(a_changeset(await head_of(store, key), an_event())))
    assert await store.commit(changeset) == first


async def test_five_times_the_same_changeset_at_once_is_stored_once(store: Store) -> None:
    key = await begin(store)
    changeset = a_changeset(await head_of(store, key), an_event())
    results = await asyncio.gather(*(store.commit(changeset) for _ in range(5)))
    assert results == [results[0]] * 5
    assert isinstance(results[0], Committed)
    assert (await head_of(store, key)).last_seq == 2


async def test_i8_a_request_has_one_effect(store: Store) -> None:
    key = await begin(store)
    request = a_request(key, sequence=2)
    assert await store.find_request(request.key) is None
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), request=request)))
    repeat = replace(request, turn_id="another", sequence=3)
    fresh = a_changeset(await head_of(store, key), an_event(), request=repeat)
    old = replace(fresh, last_seq=1, changeset_id="old")
    assert await store.commit(fresh) == Duplicate(request)
    assert await store.commit(old) == Duplicate(request)
    assert (await head_of(store, key)).last_seq == 2
    assert await store.find_request(request.key) == request


@pytest.mark.parametrize("part", ["tenant", "session_id", "principal", "family", "request_id"])
async def test_i8_requests_differ_by_every_part_of_their_key(store: Store, part: str) -> None:
    key = await begin(store)
    request = a_request(key)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), request=request)))
    assert await store.find_request(replace(request.key, **{part: "other"})) is None


async def test_an_event_too_large_is_a_defect(store: Store) -> None:
    key = await begin(store)
    head = await head_of(store, key)
    with pytest.raises(ValueError, match="at most 270336 are allowed"):
        await store.commit(a_changeset(head, an_event("x" * 270_337)))
    await committed(store.commit(a_changeset(head, an_event("x" * 262_144))))


async def test_documents_of_another_session_are_a_defect(store: Store) -> None:
    key = await begin(store)
    foreign_key = a_session_key(tenant="other", session_id=key.session_id)
    head = await head_of(store, key)
    foreign: list[Changeset] = [
        a_changeset(head, new_turns=(a_turn(foreign_key),)),
        a_changeset(head, turns=(a_turn(a_session_key()),)),
        a_changeset(head, new_calls=(a_call(foreign_key),)),
        a_changeset(head, calls=(a_call(foreign_key),)),
        a_changeset(head, new_approvals=(an_approval(foreign_key),)),
        a_changeset(head, approvals=(ApprovalChange(approval=an_approval(foreign_key), lapsed=None),)),
        a_changeset(head, session=a_session(foreign_key)),
        a_changeset(head, request=a_request(foreign_key)),
    ]
    for changeset in foreign:
        with pytest.raises(ValueError, match="another session"):
            await store.commit(changeset)
    assert (await head_of(store, key)).revision == head.revision
