"""Many at once: numbering, wake-ups, requests, approvals."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.builders import NOON, a_request, a_turn, an_approval, an_event
from tests.contracts.conftest import NewStore
from tests.contracts.stores import (
    LONG,
    a_changeset,
    begin,
    committed,
    head_of,
    lapsed_approvals,
    run_turn,
    snapshot_of,
    until,
)
from tests.memory_store import leases
from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.event import NewEvent
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.changeset import (
    ApprovalChange,
    Changeset,
    CommitResult,
    Committed,
    Conflict,
    Duplicate,
    HeadChange,
    LeaseChange,
    StoredEvent,
)
from turnkeeper.store.contract import Store
from turnkeeper.store.mongo import shares

WRITERS = 4
STEPS = 15


async def write(store: Store, key: SessionKey, decide: Callable[[], Awaitable[Changeset]]) -> Committed:
    """Read and decide again until it is stored."""
    while True:
        result = await store.commit(await decide())
        if isinstance(result, Committed):
            return result
        assert result == Conflict()


async def test_i1_a_reader_sees_every_event_once_in_order_under_four_writers(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    key = await begin(replicas[0])
    written: list[StoredEvent] = []
    read: list[StoredEvent] = []
    writing = True

    async def writer(number: int) -> None:
        store = replicas[number % 2]
        for changeset in range(STEPS):
            events = [an_event(f"{number}-{changeset}-{part}") for part in range(1 + changeset % 3)]

            async def decide(events: list[NewEvent] = events) -> Changeset:
                return a_changeset(await head_of(store, key), *events)

            written.extend((await write(store, key, decide)).events)

    async def reader(store: Store) -> None:
        while True:
            last_look = not writing
            after = read[-1].sequence if read else 0
            page = await store.events(key, after=after, limit=5)
            read.extend(page)
            if last_look and not page:
                return

    async with asyncio.TaskGroup() as group:
        group.create_task(reader(replicas[1]))
        async with asyncio.TaskGroup() as writers:
            for number in range(WRITERS):
                writers.create_task(writer(number))
        writing = False
    assert [event.sequence for event in read] == list(range(1, len(written) + 2))
    assert read[1:] == sorted(written, key=lambda event: event.sequence)
    assert (await head_of(replicas[0], key)).last_seq == len(read)


async def test_two_decisions_at_once_never_lose_the_wake_up(store: Store) -> None:
    """Each sees the other pending, so neither would wake the turn: one of them must decide again."""
    key = await begin(store)
    turn, owned = await run_turn(store, key, state=TurnState.AWAITING_APPROVAL)
    approvals = [an_approval(key, turn_id=turn.id) for _ in range(2)]
    waits = a_changeset(
        await head_of(store, key),
        an_event(),
        fence=owned.fence,
        head=HeadChange(lease=LeaseChange.RELEASE),
        new_approvals=tuple(approvals),
    )
    await committed(store.commit(waits))

    async def decision(approval: Approval) -> Changeset:
        snapshot = await snapshot_of(store, key)
        others = [pending for pending in snapshot.approvals if pending.id != approval.id]
        decided = replace(approval, state=ApprovalState.APPROVED, decided_by="bob")
        return a_changeset(
            snapshot.head,
            an_event(),
            approvals=(ApprovalChange(approval=decided, lapsed=False),),
            head=HeadChange(wake=None if others else timedelta()),
        )

    changesets = [await decision(approval) for approval in approvals]
    results = await asyncio.gather(*(store.commit(changeset) for changeset in changesets))
    assert sorted(type(result).__name__ for result in results) == ["Committed", "Conflict"]
    assert await store.claim("two", lease=LONG) is None
    await committed(store.commit(await decision(approvals[results.index(Conflict())])))
    assert await store.claim("two", lease=LONG) is not None


async def test_i8_of_five_requests_at_once_one_has_its_effect(new_store: NewStore) -> None:
    replicas = [await new_store() for _ in range(2)]
    key = await begin(replicas[0])
    request_key = a_request(key).key

    async def send(number: int) -> CommitResult:
        """As the engine does: look the request up first; after a conflict decide again."""
        store = replicas[number % 2]
        while True:
            head = await head_of(store, key)
            record = replace(a_request(key, turn_id=f"turn-{number}", sequence=head.last_seq + 1), key=request_key)
            result = await store.commit(a_changeset(head, an_event(), request=record))
            if result != Conflict():
                return result

    results = await asyncio.gather(*(send(number) for number in range(5)))
    winners = [result for result in results if isinstance(result, Committed)]
    assert len(winners) == 1
    record = await replicas[0].find_request(request_key)
    assert record is not None
    assert record.sequence == winners[0].last_seq
    assert record.turn_id == f"turn-{results.index(winners[0])}"
    assert [result for result in results if result != winners[0]] == [Duplicate(record)] * 4
    assert (await head_of(replicas[0], key)).last_seq == 2


async def _ask(store: Store, key: SessionKey, *, ttl: timedelta, **given: object) -> Approval:
    """A pending approval that expires that long from now, by the store's clock."""
    head = await head_of(store, key)
    approval = an_approval(key, expire_time=head.now + ttl, **given)
    await committed(store.commit(a_changeset(head, an_event(), new_approvals=(approval,))))
    return approval


def _leave(approval: Approval, state: ApprovalState, *, lapsed: bool | None) -> ApprovalChange:
    left = replace(approval, state=state, decide_time=NOON, decided_by=state.value)
    return ApprovalChange(approval=left, lapsed=lapsed)


@pytest.mark.parametrize("lapsed", [True, False, None])
@pytest.mark.parametrize("expired", [True, False])
async def test_i7_the_stores_clock_decides_whether_an_approval_lapsed(
    store: Store, lapsed: bool | None, expired: bool
) -> None:
    key = await begin(store)
    ttl = timedelta(milliseconds=-1) if expired else timedelta(hours=1)
    approval = await _ask(store, key, ttl=ttl)
    change = _leave(approval, ApprovalState.APPROVED, lapsed=lapsed)
    result = await store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,)))
    allowed = lapsed is None or lapsed is expired
    assert isinstance(result, Committed if allowed else Conflict)
    assert (await head_of(store, key)).last_seq == 2 + allowed
    stored = await store.approval(key.tenant, approval.id)
    assert stored == (change.approval if allowed else approval)


@pytest.mark.parametrize(
    "as_read", [{"round": 2}, {"arguments_hash": "other"}, {}], ids=["other-round", "other-hash", "no-longer-pending"]
)
async def test_i6_an_approval_is_decided_as_it_was_read(store: Store, as_read: dict[str, object]) -> None:
    key = await begin(store)
    approval = await _ask(store, key, ttl=timedelta(hours=1))
    if not as_read:
        first = _leave(approval, ApprovalState.REJECTED, lapsed=False)
        await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(first,))))
    before = await store.approval(key.tenant, approval.id)
    late = _leave(replace(approval, **as_read), ApprovalState.APPROVED, lapsed=False)  # type: ignore[arg-type]
    assert await store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(late,))) == Conflict()
    assert await store.approval(key.tenant, approval.id) == before


async def test_i6_i7_an_approval_leaves_pending_once_at_its_expiry(new_store: NewStore) -> None:
    """Approvers, a canceller and two sweepers race across the moment of expiry; in each session one of them wins."""
    replicas = [await new_store() for _ in range(2)]
    ways = [
        (ApprovalState.APPROVED, False),
        (ApprovalState.REJECTED, False),
        (ApprovalState.EXPIRED, True),
        (ApprovalState.EXPIRED, True),
    ]

    async def contend(key: SessionKey, approval: Approval, number: int) -> int:
        store = replicas[number % 2]
        state, lapsed = ways[number]
        wins = 0
        while (current := await store.approval(key.tenant, approval.id)) and current.state is ApprovalState.PENDING:
            head = await head_of(store, key)
            early = not lapsed and number == 0 and head.now < approval.expire_time - timedelta(milliseconds=5)
            if early:
                continue
            changeset = a_changeset(head, an_event(), approvals=(_leave(approval, state, lapsed=lapsed),))
            result = await store.commit(changeset)
            if isinstance(result, Committed):
                wins += 1
                after = (await head_of(store, key)).now
                assert head.now < approval.expire_time if not lapsed else after >= approval.expire_time
        return wins

    async def race(number: int) -> int:
        key = await begin(replicas[0])
        approval = await _ask(replicas[0], key, ttl=timedelta(milliseconds=30 + 10 * number))
        contenders = range(1 if number % 2 else 0, len(ways))
        return sum(await asyncio.gather(*(contend(key, approval, contender) for contender in contenders)))

    assert await asyncio.gather(*(race(number) for number in range(6))) == [1] * 6


async def test_i7_only_lapsed_pending_approvals_are_swept(store: Store) -> None:
    key = await begin(store)
    soon = await _ask(store, key, ttl=timedelta(milliseconds=40))
    past = await _ask(store, key, ttl=timedelta(seconds=-5))
    decided = await _ask(store, key, ttl=timedelta(seconds=-5))
    await _ask(store, key, ttl=timedelta(hours=1))
    change = _leave(decided, ApprovalState.WITHDRAWN, lapsed=None)
    await committed(store.commit(a_changeset(await head_of(store, key), an_event(), approvals=(change,))))
    assert await store.pending_approvals() == 3

    async def both() -> bool:
        return await lapsed_approvals(store) == [past, soon]

    await until(both)


async def test_living_replicas_share_what_has_lapsed(new_store: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has just lapsed is in one share, by the replicas' names; what lapsed long ago is everybody's.

    "Just" is less than an hour here, and "long ago" is more, so that the result is that of a slow machine as well.
    """
    for module in (shares, leases):
        monkeypatch.setattr(module, "SHARE_KEPT", timedelta(hours=1))
    dead, b, a, c = [await new_store(name) for name in ("dead", "b", "a", "c")]
    for replica in (b, a, c):
        await replica.write_heartbeat(silent_after=LONG)
    await dead.write_heartbeat(silent_after=timedelta(milliseconds=1))
    key = await begin(a)
    old = [await _ask(a, key, ttl=timedelta(hours=-hours)) for hours in (3, 2)]
    fresh = [await _ask(a, key, ttl=timedelta(milliseconds=ms - 200)) for ms in range(5)]

    async def one_is_dead() -> bool:
        return {replica.name for replica in await a.replicas() if not replica.alive} == {"dead"}

    await until(one_is_dead)
    first_pages = [await _first_page(replica) for replica in (a, b, c)]
    everything = [await lapsed_approvals(replica) for replica in (a, b, c)]
    assert first_pages == [old, fresh[:2], fresh[2:]]
    assert everything == [[*old, *old[::-1]], [*fresh[:2], *old[::-1]], [*fresh[2:], *old]]


async def test_one_replica_has_all_that_has_lapsed_once(new_store: NewStore) -> None:
    alone = await new_store("alone")
    await alone.write_heartbeat(silent_after=LONG)
    key = await begin(alone)
    lapsed = [await _ask(alone, key, ttl=timedelta(seconds=-seconds)) for seconds in (30, 20, 10)]
    assert await lapsed_approvals(alone) == lapsed


async def _first_page(store: Store) -> Sequence[Approval]:
    async for page in store.lapsed_approvals():
        return page.approvals
    return []


async def test_the_same_round_is_opened_once(store: Store) -> None:
    key = await begin(store)
    first = await _ask(store, key, ttl=timedelta(hours=1), tool_call_id="call")
    again = an_approval(key, tool_call_id="call", round=1)
    turn = a_turn(key)
    changeset = a_changeset(await head_of(store, key), an_event(), new_turns=(turn,), new_approvals=(again,))
    assert await store.commit(changeset) == Conflict()
    assert await store.turn(key, turn.id) is None
    await committed(store.commit(replace(changeset, changeset_id="next", new_approvals=(replace(again, round=2),))))
    assert await store.approval(key.tenant, first.id) == first
