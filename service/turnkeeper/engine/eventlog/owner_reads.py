"""Reads a session as the owner of its turn, who stops only if another owner has it for certain."""

from turnkeeper.domain.session import SessionKey
from turnkeeper.engine.eventlog.lease import LeaseLost
from turnkeeper.store.changeset import Snapshot
from turnkeeper.store.contract import SessionStore


async def read_as_owner(store: SessionStore, key: SessionKey, *, turn_id: str, fence: int, owner: str = "") -> Snapshot:
    """Returns the session's snapshot, which has this fence and this owner; any owner if `owner` is empty.

    An earlier fence, or no session, proves nothing: a reading may lag behind the claim. Raises LeaseLost if the fence
    is a later one, if its lease was released, or if a linearizable reading shows another fence or no session. Raises
    it also if another owner has the same fence: both claimed the turn, and the database was restored in between.
    """
    snapshot = await store.snapshot(key, turn_id=turn_id)
    if snapshot is None or snapshot.head.fence < fence:
        async with store.linearizable():
            snapshot = await store.snapshot(key, turn_id=turn_id)
    if snapshot is None or snapshot.head.fence != fence or not snapshot.head.owner:
        raise LeaseLost
    if owner and snapshot.head.owner != owner:
        raise LeaseLost
    return snapshot
