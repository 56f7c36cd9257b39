"""Claims one head after the other for one owner, and knows of each for certain whether it is claimed."""

import asyncio
import random
import secrets
import time
from datetime import timedelta
from typing import Final

import pymongo
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from turnkeeper import lease_clock
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Connection, Document
from turnkeeper.store.mongo.heads import NEXT_FENCE, NEXT_REVISION, NOW, change_as_read, later, literal, signed

GIVE_BACK_S: Final = 60.0
"""Seconds for which an abandoned claim is given back while the database is unavailable. After that its lease lapses."""
_NEVER: Final = -1
"""A fence that no head has."""
GIVEN_BACK: Final[Document] = {"owner": "", "lease_until": None, "wake_at": NOW, "revision": NEXT_REVISION}
"""The turn is claimable at once. The fence stays, and no lapse is counted."""


class HeadClaim:
    """One claim. All its writes go over one client session.

    A write whose answer does not come in time may be stored, or may still be on its way. The database refuses it from
    the moment when it has received a later write of the same session. So what is read after that is certain.

    The head keeps the claim's id. Owner and fence do not tell whether the write is stored: the same owner may have
    taken the lease with a message meanwhile, under the same fence.
    """

    def __init__(self, connection: Connection, *, owner: str, replica: str, lease: timedelta) -> None:
        """`replica` signs the claim, as `heads.signed`."""
        self._connection = connection
        self._owner = owner
        self._lease = lease
        self._session = connection.session()
        self._id = secrets.token_hex(8)
        self._taken: Document = {
            "claim": literal(self._id),
            "fence": NEXT_FENCE,
            "owner": literal(owner),
            "lease_until": later(lease),
            "wake_at": None,
            **signed(replica),
        }
        self._open: Document | None = None
        """The head that may be claimed, as the filter of its owner."""

    async def take(self, head: Document) -> float | None:
        """Claims a head as it was read. Returns when the lease began, by the lease clock: before it was sent.

        Returns None if the head has changed, or is locked. Raises PyMongoError if the outcome stays unknown: call
        `give_back` then, and `end` otherwise.
        """
        self._open = {
            **keys.where(head["_id"]),
            "owner": self._owner,
            "fence": head["fence"] + 1,
            "claim": self._id,
        }
        sent_at = lease_clock.now()
        try:
            taken = await change_as_read(self._connection.heads, head, self._taken, session=self._session)
        except PyMongoError:
            taken = None
        if taken is not None:
            return self._known(sent_at if taken else None)
        with pymongo.timeout(self._connection.operation.total_seconds()):
            if not await self._is_stored():
                return self._known(None)
            sent_at = lease_clock.now()
            return self._known(sent_at if await self._change({"lease_until": later(self._lease)}) else None)

    def end(self) -> None:
        """Returns the client session to the driver."""
        self._session.delegate.end_session()

    async def give_back(self) -> None:
        """Makes the head claimable again if it was claimed, however late; tries for GIVE_BACK_S. Then ends."""
        until = time.monotonic() + GIVE_BACK_S
        while self._open is not None and time.monotonic() < until:
            try:
                await self._change(GIVEN_BACK)
                self._open = None
            except PyMongoError:
                await asyncio.sleep(random.uniform(0.25, 0.5))
        self.end()

    def _known(self, sent_at: float | None) -> float | None:
        if sent_at is None:
            self._open = None
        return sent_at

    async def _is_stored(self) -> bool:
        """Returns True if the head is claimed by the write before, which cannot be stored any more otherwise.

        The head may be locked, so the later write is one that matches nothing.
        """
        assert self._open is not None
        heads = self._connection.heads.with_options(write_concern=WriteConcern(1), read_concern=ReadConcern("local"))
        await heads.update_one({**self._open, "fence": _NEVER}, {"$set": {"fence": _NEVER}}, session=self._session)
        return await heads.find_one(self._open, {"_id": 1}) is not None

    async def _change(self, fields: Document) -> bool:
        """Changes the claimed head. Returns True once a majority has the change, False if it is not claimed."""
        assert self._open is not None
        result = await self._connection.heads.update_one(self._open, [{"$set": fields}], session=self._session)
        return result.matched_count == 1
