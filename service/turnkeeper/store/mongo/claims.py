"""Claims and leases of turns, and requests to cancel them."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import Cancel, Claim
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import encode
from turnkeeper.store.mongo.heads import (
    AWAKE,
    NEXT_FENCE,
    NEXT_REVISION,
    NOW,
    RUNNABLE,
    change_as_read,
    later,
    literal,
    reached,
    signed,
    within,
)
from turnkeeper.store.mongo.indexes import DUE
from turnkeeper.store.mongo.transactions.group_commit import Entry, GroupCommit
from turnkeeper.store.mongo.transactions.transaction import Transaction
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

OLDEST: Final = 32
"""A claim picks among this many heads that have been due longest."""
LOOKS: Final = 2
"""A claim reads the due heads again if all of them changed since they were read: other claims or changesets."""
_CLAIMED: Final = ("tenant", "session_id", "active_turn", "fence", "lapses", "revision", "lease_until")


class Claims:
    """Implements `Leases`, and `SessionStore.request_cancel`."""

    _connection: Connection
    _replica: str
    _group_commit: GroupCommit

    async def claim(self, owner: str, *, lease: timedelta) -> Claim | None:
        due: list[Document] = [
            {
                "$match": {
                    **RUNNABLE,
                    **AWAKE,
                    **reached("wake_at"),
                    **within(self._connection.schema),
                    "lease_until": None,
                }
            },
            {"$sort": {"wake_at": 1}},
            {"$limit": OLDEST},
            {"$project": {**dict.fromkeys(_CLAIMED, 1), "late_by": {"$subtract": [NOW, "$wake_at"]}}},
        ]
        lease_fields: Document = {
            "fence": NEXT_FENCE,
            "owner": literal(owner),
            "lease_until": later(lease),
            "wake_at": None,
            **signed(self._replica),
        }
        with self._connection.call("claim"):
            for _ in range(LOOKS):
                candidates = await self._connection.heads.aggregate(due, hint=DUE).to_list(OLDEST)
                random.shuffle(candidates)
                for head in candidates:
                    if await change_as_read(self._connection.heads, head, lease_fields):
                        return _claim_of(head, more=len(candidates) > 1)
                if not candidates:
                    break
        return None

    async def renew(self, key: SessionKey, *, owner: str, fence: int, lease: timedelta) -> bool:
        match = of_owner(key, owner=owner, fence=fence)

        def write(writes: Writes) -> None:
            writes.compute("heads", match, extended(lease))

        async def look(reader: ClientSession, _: Obstacle) -> bool | None:
            held = await self._connection.heads.find_one(match, {"_id": 1}, session=reader)
            return None if held else False

        with self._connection.transaction_call("renew"):
            return await self._group_commit.commit(
                Entry(head=match, transaction=Transaction(write, result=True, look=look))
            )

    async def request_cancel(self, key: SessionKey, cancel: Cancel) -> bool:
        """Keeps the first request for a turn. A repeat waits for the majority like the first one."""
        if not cancel.turn_id:
            return False
        owned = {"active_turn": cancel.turn_id, "owner": {"$gt": ""}}
        match = {**keys.where(keys.of_session(key)), **owned}
        again = {"$eq": ["$cancel.turn_id", literal(cancel.turn_id)]}
        changed = {
            "cancel": {"$cond": [again, "$cancel", literal(encode(cancel))]},
            "revision": {"$cond": [again, "$revision", NEXT_REVISION]},
        }
        with self._connection.call("request_cancel"):
            result = await self._connection.heads.update_one(match, [{"$set": changed}])
        return result.matched_count == 1

    async def cancelled_among(self, owned: Sequence[SessionKey]) -> Sequence[str]:
        """Sends one query. Sessions that are gone are returned too: they have no owner any more."""
        undisturbed = {
            **keys.where_sessions(owned),
            **AWAKE,
            "$expr": {"$and": [{"$gt": ["$lease_until", NOW]}, {"$ne": ["$cancel.turn_id", "$active_turn"]}]},
        }
        with self._connection.call("cancelled_among"):
            heads = await self._connection.heads.find(undisturbed, {"_id": 1}).to_list(None)
        unchanged = {keys.session_of(head["_id"]) for head in heads}
        return [key.session_id for key in owned if key not in unchanged]


def of_owner(key: SessionKey, *, owner: str, fence: int) -> Document:
    """Returns the filter of a renewal: the owner and its fence are still the head's."""
    return {**keys.where(keys.of_session(key)), "owner": owner, "fence": fence}


def extended(lease: timedelta) -> list[Document]:
    """Returns the update of a renewal."""
    return [{"$set": {"lease_until": later(lease)}}]


def _claim_of(head: Document, *, more: bool) -> Claim:
    return Claim(
        tenant=head["tenant"],
        session_id=head["session_id"],
        turn_id=head["active_turn"],
        fence=head["fence"] + 1,
        lapses=head["lapses"],
        late_by=timedelta(milliseconds=head["late_by"]),
        more=more,
    )
