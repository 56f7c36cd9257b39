"""Claims and leases of turns, and requests to cancel them."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Final

from pymongo.read_concern import ReadConcern

from turnkeeper.domain.session import SessionKey
from turnkeeper.store.changeset import NONE_BUSY, Busy, Cancel, Claim
from turnkeeper.store.mongo import keys, renewals
from turnkeeper.store.mongo.client import ClientSession, Connection, Document
from turnkeeper.store.mongo.documents import encode
from turnkeeper.store.mongo.head_claim import GIVEN_BACK, HeadClaim
from turnkeeper.store.mongo.heads import (
    ANY_TIME,
    AWAKE,
    NEXT_REVISION,
    NOW,
    RUNNABLE,
    later,
    literal,
    reached,
    within,
)
from turnkeeper.store.mongo.indexes import DUE
from turnkeeper.store.mongo.lost_owners import LostOwners
from turnkeeper.store.mongo.renewals import extended, of_owner
from turnkeeper.store.mongo.transactions.group_commit import Entry, GroupCommit
from turnkeeper.store.mongo.transactions.orphans import Orphans
from turnkeeper.store.mongo.transactions.tasks import Tasks
from turnkeeper.store.mongo.transactions.transaction import Transaction
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes

OLDEST: Final = 32
"""A claim picks among this many heads of a tenant that have been due longest."""
LOOKS: Final = 2
"""A claim reads the due heads again if all of them changed since they were read: other claims or changesets."""
OTHERS_FIRST: Final = timedelta(seconds=2)
"""After a run broke on a defect, only other replicas may claim its turn for this long, if there are others."""
_CLAIMED: Final = (
    *(
        "tenant",
        "session_id",
        "agent",
        "active_turn",
        "fence",
        "owner",
        "lapses",
        "lost",
        "broken",
        "revision",
        "lease_until",
    ),
)
_WAITING: Final = {**RUNNABLE, "wake_at": ANY_TIME, "tenant": {"$gte": ""}}
"""Turns that are due, now or later. Mostly there are none: to read that takes a third of a look for those to claim."""
_NEWEST: Final = ReadConcern("local")
"""A claim is stored on a majority, and only if the head is as it was read: so it reads the newest."""


class Claims:
    """Implements `Leases`, and `SessionStore.request_cancel`."""

    _connection: Connection
    _replica: str
    _group_commit: GroupCommit
    _tasks: Tasks
    _orphans: Orphans
    _lost_owners: LostOwners
    _last_tenant: str = ""
    """The tenant of the last claim. The next one is of the tenant after it that has a turn which is due."""

    async def claim(self, owner: str, *, lease: timedelta, without: Busy = NONE_BUSY) -> Claim | None:
        claim = HeadClaim(self._connection, owner=owner, replica=self._replica, lease=lease)
        work = self._tasks.start(self._claim(claim, owner, without))
        with self._connection.call("claim"):
            try:
                claimed = await asyncio.shield(work)
            except BaseException:  # what it leased, if anything, gets no owner
                self._tasks.start(_give_back(claim, work))
                raise
        claim.end()
        return claimed

    async def _claim(self, claim: HeadClaim, owner: str, without: Busy) -> Claim | None:
        for _ in range(LOOKS):
            candidates = await self._candidates(owner, without)
            for head in candidates:
                sent_at = await claim.take(head)
                if sent_at is not None:
                    self._last_tenant = head["tenant"]
                    lost_owners = await self._lost_owners.count(head)
                    return _claim_of(head, lost_owners=lost_owners, sent_at=sent_at, more=len(candidates) > 1)
            if not candidates:
                break
        return None

    async def _candidates(self, owner: str, without: Busy) -> list[Document]:
        """Returns heads that are due, in the order in which to try them: one tenant after the other.

        The first tenant is the one after that of the last claim. The heads of a tenant are in random order: other
        replicas try the same ones. Once nothing is due, any tenant may be the first, so that the next look is one read;
        it asks first whether any turn waits at all.
        """
        heads = self._connection.heads.with_options(read_concern=_NEWEST)
        candidates: list[Document] = []
        last = self._last_tenant
        if not last and await heads.find_one(_WAITING, {"_id": 1}, hint=DUE) is None:
            return candidates
        for tenants in ({"$gt": last}, {"$lte": last}) if last else ({"$gte": ""},):
            if len(candidates) > 1:
                break
            due = _due(owner, tenants=tenants, schema=self._connection.schema, without=without)
            part = await heads.aggregate(due, hint=DUE).to_list(OLDEST)
            random.shuffle(part)
            candidates += sorted(part, key=itemgetter("tenant"))
        if not candidates:
            self._last_tenant = ""
        return candidates

    async def give_back(self, key: SessionKey, *, owner: str, fence: int, broken: bool = False) -> bool:
        changed = GIVEN_BACK
        with self._connection.call("give_back"):
            if broken:
                others_first = OTHERS_FIRST if await self._orphans.others_alive() else timedelta()
                changed = changed | _broken(owner, others_first=others_first)
            match = of_owner(key, owner=owner, fence=fence)
            result = await self._connection.heads.update_one(match, [{"$set": changed}])
        return result.matched_count == 1

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

    async def renew_all(
        self, leases: Mapping[SessionKey, int], *, owner: str, lease: timedelta
    ) -> Mapping[SessionKey, bool]:
        with self._connection.call("renew_all"):
            heads, batches = self._connection.heads, renewals.batches(leases)
            work = (renewals.renew(heads, batch, owner=owner, lease=lease) for batch in batches)
            return renewals.joined(await asyncio.gather(*work, return_exceptions=True))

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
        with self._connection.call("request_cancel"), self._connection.in_time():
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


async def _give_back(claim: HeadClaim, work: asyncio.Task[Claim | None]) -> None:
    await asyncio.wait([work])
    await claim.give_back()


def _due(owner: str, *, tenants: Document, schema: int, without: Busy) -> list[Document]:
    """Returns the pipeline that reads the heads of `tenants` which `owner` may claim.

    They are ordered by their tenant; those of one tenant that have been due longest are in front.
    """
    due, here = reached("wake_at"), {"$expr": {"$lte": ["$broken.until", NOW]}}
    claimable = {
        **RUNNABLE,
        **AWAKE,
        **due,
        **within(schema),
        "tenant": {**tenants, "$nin": sorted(without.tenants)} if without.tenants else tenants,
        "lease_until": None,
        "$or": [{"broken.by": {"$ne": owner}}, here],
    }
    if without.agents:
        claimable["agent"] = {"$nin": sorted(without.agents)}
    return [
        {"$match": claimable},
        {"$sort": {"tenant": 1, "wake_at": 1}},
        {"$limit": OLDEST},
        {"$project": {**dict.fromkeys(_CLAIMED, 1), "late_by": {"$subtract": [NOW, "$wake_at"]}}},
    ]


def _broken(owner: str, *, others_first: timedelta) -> Document:
    """Returns the fields that record a broken run of the active turn, and when the turn is due.

    The next run is due at once, for other replicas first. So is the one after it, for all: it ends the turn. If that
    breaks, too, the turn is due after 1 s, 2 s, 4 s … 1 min.
    """
    before: Document = {"$cond": [{"$eq": ["$broken.turn_id", "$active_turn"]}, "$broken.times", 0]}
    pause: Document = {"$min": [60_000, {"$multiply": [250, {"$pow": [2, {"$min": [before, 10]}]}]}]}
    broken = {
        "turn_id": "$active_turn",
        "times": {"$add": [before, 1]},
        "by": literal(owner),
        "until": {"$cond": [{"$lt": [before, 1]}, later(others_first), NOW]},
    }
    return {"broken": broken, "wake_at": {"$add": [NOW, {"$cond": [{"$lt": [before, 2]}, 0, pause]}]}}


def _claim_of(head: Document, *, lost_owners: int, sent_at: float, more: bool) -> Claim:
    broken = head.get("broken") or {}
    return Claim(
        tenant=head["tenant"],
        session_id=head["session_id"],
        agent=head.get("agent", ""),
        turn_id=head["active_turn"],
        fence=head["fence"] + 1,
        lapses=head["lapses"],
        late_by=timedelta(milliseconds=head["late_by"]),
        lost_owners=lost_owners,
        broken_runs=broken["times"] if broken.get("turn_id") == head["active_turn"] else 0,
        more=more,
        sent_at=sent_at,
    )
