"""What the tests of a store share: a codec, common situations, waiting for a condition."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tests.builders import AGENT, NOON, a_first_event, a_session, a_session_key, a_turn, an_event, new_id
from turnkeeper.domain.approval import Approval
from turnkeeper.domain.event import NewEvent, name_of
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.turn import Turn, TurnState
from turnkeeper.store.changeset import (
    Changeset,
    CommitResult,
    Committed,
    Creation,
    Head,
    HeadChange,
    LeaseChange,
    Snapshot,
)
from turnkeeper.store.contract import Store
from turnkeeper.store.maintenance import Retention

LONG = timedelta(minutes=1)
"""A lease that does not lapse while a test runs."""
SHORT = timedelta(milliseconds=30)
"""A lease that soon lapses."""


class TextCodec:
    """Encodes events as readable bytes; the number is appended, as the contract specifies."""

    def encode(self, session_id: str, event: NewEvent) -> bytes:
        return f"{session_id} {event.turn_id} {name_of(event.payload)} {event.payload}".encode()

    def number(self, payload: bytes, sequence: int) -> bytes:
        return payload + b" #%d" % sequence


def a_changeset(read: Head, *events: NewEvent, fence: int | None = None, **given: Any) -> Changeset:
    """Returns a changeset decided on this head; an owner's if it has a fence."""
    changeset = Changeset(
        changeset_id=new_id("changeset"),
        tenant=read.tenant,
        session_id=read.session_id,
        last_seq=read.last_seq,
        last_changeset=read.last_changeset,
        fence=fence,
        head_fence=read.fence if fence is None else fence,
        cancel=read.cancel.turn_id,
        revision=read.revision if fence is None else None,
        events=events,
    )
    return replace(changeset, **given)


def a_first_changeset(key: SessionKey, *events: NewEvent, **given: Any) -> Changeset:
    """Returns a changeset that creates the session; its log begins with the event of `a_first_event`."""
    creation = Creation(session=a_session(key, etag=new_id("etag")), agent=AGENT)
    return a_changeset(creation.head(now=NOON), a_first_event(), *events, creates=creation, **given)


async def head_of(store: Store, key: SessionKey) -> Head:
    return (await snapshot_of(store, key)).head


async def snapshot_of(store: Store, key: SessionKey, *, turn_id: str = "") -> Snapshot:
    snapshot = await store.snapshot(key, turn_id=turn_id)
    assert snapshot is not None
    return snapshot


async def begin(store: Store, key: SessionKey | None = None) -> SessionKey:
    """Creates a session with its first event. Returns its key."""
    key = key or a_session_key()
    assert await store.create_session(a_session(key), AGENT, event=a_first_event()) is None
    return key


async def committed(commit: Awaitable[CommitResult]) -> Committed:
    """Returns the result of a commit that must succeed."""
    result = await commit
    assert isinstance(result, Committed), result
    return result


async def run_turn(
    store: Store, key: SessionKey, *, owner: str = "one", lease: timedelta = LONG, **given: Any
) -> tuple[Turn, Committed]:
    """Returns a new active turn, leased to this owner."""
    turn = a_turn(key, **{"state": TurnState.RUNNING, **given})
    change = HeadChange(lease=LeaseChange.TAKE, owner=owner, lease_for=lease, active_turn=turn.id)
    changeset = a_changeset(await head_of(store, key), an_event(turn_id=turn.id), head=change, new_turns=(turn,))
    return turn, await committed(store.commit(changeset))


async def make_due(store: Store, key: SessionKey, *, wake: timedelta = timedelta(), **given: Any) -> Turn:
    """Returns a new active turn without an owner, to be claimed."""
    turn = a_turn(key, **given)
    change = HeadChange(active_turn=turn.id, wake=wake)
    changeset = a_changeset(await head_of(store, key), an_event(turn_id=turn.id), head=change, new_turns=(turn,))
    await committed(store.commit(changeset))
    return turn


async def lapsed_approvals(store: Store) -> list[Approval]:
    """Returns all lapsed approvals, in the order in which the store yields them."""
    return [approval async for page in store.lapsed_approvals() for approval in page.approvals]


async def purge(store: Retention, *, after: timedelta = timedelta()) -> int:
    """Purges all that is due. Returns how many sessions are gone."""
    return sum([gone async for gone in store.purge(after=after)])


async def trim(store: Retention, *, keep: timedelta = timedelta(), pause: timedelta = timedelta()) -> int:
    """Trims all logs that are due. Returns how many events are gone."""
    return sum([gone async for gone in store.trim(keep=keep, pause=pause)])


async def until(condition: Callable[[], Awaitable[bool]], *, within: float = 10.0) -> None:
    """Waits for a condition. Fails if it does not become true in time."""
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.005)


async def lapse(store: Store, key: SessionKey) -> None:
    """Waits until the lease has lapsed by the store's own clock."""

    async def lapsed() -> bool:
        return not (await head_of(store, key)).owned

    await until(lapsed)
