"""Reads a session as the owner of its turn, who stops only if another owner has it for certain."""

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import LeaseLost
from turnkeeper.store.changeset import Snapshot
from turnkeeper.store.contract import SessionStore


async def read_as_owner(store: SessionStore, key: SessionKey, *, turn_id: str, fence: int) -> Snapshot:
    """Returns the session's snapshot, which has this fence and an owner.

    An earlier fence, or no session, proves nothing: a reading may lag behind the claim. Raises LeaseLost if the fence
    is a later one, if its lease was released, or if a linearizable reading shows another fence or no session.
    """
    snapshot = await store.snapshot(key, turn_id=turn_id)
    if snapshot is None or snapshot.head.fence < fence:
        async with store.linearizable():
            snapshot = await store.snapshot(key, turn_id=turn_id)
    if snapshot is None or snapshot.head.fence != fence or not snapshot.head.owner:
        raise LeaseLost
    return snapshot
