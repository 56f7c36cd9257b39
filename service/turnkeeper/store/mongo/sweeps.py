"""Sweeps over all tenants: finds lapsed leases, lapsed approvals, and turns that no owner will run otherwise.

A sweep races with live owners, other sweepers and every changeset: it reads, then changes each head only if it still is
as it was read.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Final

from pymongo.read_concern import ReadConcern

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import TurnKey, TurnState
from turnkeeper.store.maintenance import LapsedPage, UnclaimedTurns
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Collection, Connection, Document
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.heads import ANY_TIME, AWAKE, NOW, RUNNABLE, change_as_read, literal, reached, within
from turnkeeper.store.mongo.indexes import DUE
from turnkeeper.store.mongo.lost_owners import LostOwners
from turnkeeper.store.mongo.shares import Shares
from turnkeeper.store.mongo.transactions.orphans import Orphans

BATCH: Final = 256
"""Heads of each kind that one sweep examines, at most; the next sweep examines the rest."""
PAGE: Final = 256
"""Lapsed approvals that are read at once."""
_REQUEUED: Final[Document] = {"owner": "", "lease_until": None, "wake_at": NOW}
_LATER_EACH_TIME: Final = {
    "$add": [NOW, {"$multiply": [500, {"$min": [30, {"$subtract": [{"$pow": [2, "$lapses"]}, 1]}]}]}]
}
"""When the turn of a lapsed lease is due: at once, then after 0.5 s, 1.5 s, 3.5 s … 15 s, by the number of lapses.

A turn that kills its owners before their first changeset is retried less and less often.
"""
_PENDING: Final = {"state": ApprovalState.PENDING.value}
_REQUESTED: Final = {"state": CallState.REQUESTED.value}
_WAIT_FOR_PEOPLE: Final = frozenset(state.value for state in TurnState if state.waits_for_people)
_WAIT_FOR_CLIENTS: Final = frozenset({TurnState.AWAITING_TOOL.value})
_NOT_ENDED: Final = [state.value for state in TurnState if state.moving or state.awaits_answers]


class Sweeps:
    """Implements `Maintenance`."""

    _connection: Connection
    _orphans: Orphans
    _lost_owners: LostOwners
    _shares: Shares
    _looked_at: Document | None = None

    async def requeue_lapsed(self, *, lapsed_by: datetime | None = None, rescues: bool = True) -> int:
        with self._connection.call("requeue_lapsed"):
            await self._orphans.end_silent(lapsed_by)
            count = await self._lapsed(lapsed_by)
            return count + await self._stranded() + await self._idle() if rescues else count

    async def lapsed_approvals(self) -> AsyncIterator[LapsedPage]:
        def lapsed(ago: timedelta) -> Document:
            return {**_PENDING, **reached("expire_time", ago=ago)}

        pages = self._shares.pages("lapsed_approvals", self._connection.approvals, lapsed, by="expire_time", size=PAGE)
        async with aclosing(pages):
            async for documents, left in pages:
                yield LapsedPage(self._connection.unreadable.passed_over(documents, _approval), left)

    async def expiring_approvals(self) -> AsyncIterator[Sequence[Approval]]:
        def due(ago: timedelta) -> Document:
            return {**_PENDING, **reached("expiring_time", ago=ago)}

        pages = self._shares.pages("expiring_approvals", self._connection.approvals, due, by="expiring_time", size=PAGE)
        async with aclosing(pages):
            async for documents, _ in pages:
                yield self._connection.unreadable.passed_over(documents, _approval)

    async def active_sessions(self) -> int:
        with self._connection.call("active_sessions"):
            return await self._connection.heads.count_documents(RUNNABLE, hint="lease")

    async def waiting_turns(self) -> UnclaimedTurns:
        """Sends one query, which reads the heads that are due and no other: one with a wake-up has no lease."""
        due: Document = {**RUNNABLE, **AWAKE, **reached("wake_at")}
        counted: Document = {"_id": None, "count": {"$sum": 1}, "longest": {"$max": {"$subtract": [NOW, "$wake_at"]}}}
        with self._connection.call("waiting_turns"):
            groups = await self._connection.heads.aggregate([{"$match": due}, {"$group": counted}], hint=DUE).to_list(1)
        if not groups:
            return UnclaimedTurns(0, timedelta())
        return UnclaimedTurns(groups[0]["count"], timedelta(milliseconds=groups[0]["longest"]))

    async def pending_approvals(self) -> int:
        with self._connection.call("pending_approvals"):
            return await self._connection.approvals.count_documents(_PENDING)

    async def _lapsed(self, lapsed_by: datetime | None) -> int:
        """Requeues turns whose lease lapsed, after aborting the open transactions of their owners.

        With `lapsed_by`, only those that had lapsed then, whatever the database's clock shows as it reads.
        """
        lapsed: Document = {**RUNNABLE, **reached("lease_until")}
        if lapsed_by is not None:
            lapsed["lease_until"] = {**ANY_TIME, "$lte": lapsed_by}
        heads = await self._connection.heads.find(lapsed).limit(BATCH).to_list(BATCH)
        await self._orphans.end(head["owner"] for head in heads)
        due = {**_REQUEUED, "wake_at": _LATER_EACH_TIME, "lapses": {"$add": ["$lapses", 1]}}
        lost = await self._lost_owners.after_lapse(heads)
        return await self._change(heads, *({**due, "lost": literal(owners)} for owners in lost))

    async def _stranded(self) -> int:
        """Activates the first turn of queues whose session has no active turn."""
        match = {"active_turn": "", "queue.0": {"$exists": True}}
        count = 0
        for head in await self._connection.heads.find(match).limit(BATCH).to_list(BATCH):
            first, *rest = head["queue"]
            front = {"active_turn": literal(first), "queue": literal(rest), "lapses": 0}
            count += await self._change([head], _REQUEUED | front)
        return count

    async def _idle(self) -> int:
        """Requeues turns without a lease and a wake-up that await no answer. Each sweep examines the next batch.

        Skips turns that need a newer schema: only that version knows what such a turn may wait for.
        """
        idle: Document = {**RUNNABLE, **AWAKE, "lease_until": None, "wake_at": None, **within(self._connection.schema)}
        if self._looked_at is not None:
            idle["_id"] = {"$gt": self._looked_at}
        order = [("lease_until", 1), ("wake_at", 1), ("_id", 1)]
        batch = await self._connection.heads.find(idle).sort(order).limit(BATCH).to_list(BATCH)
        self._looked_at = batch[-1]["_id"] if len(batch) == BATCH else None
        stuck = await self._stuck_turns([_turn_of(head) for head in batch]) if batch else set()
        return await self._change([head for head in batch if _turn_of(head) in stuck], _REQUEUED)

    async def _stuck_turns(self, turns: Sequence[TurnKey]) -> set[TurnKey]:
        """Returns those of the turns that should move: no answer is awaited, or all awaited answers have come."""
        match = {**keys.where_turns(turns), "state": {"$in": _NOT_ENDED}}
        states: dict[TurnKey, str] = {}
        async for turn in self._connection.turns.find(match, {"state": 1}):
            states[keys.turn_of(turn["_id"])] = turn["state"]
        for waiting, collection, still_open in (
            (_WAIT_FOR_PEOPLE, self._connection.approvals, _PENDING),
            (_WAIT_FOR_CLIENTS, self._connection.calls, _REQUESTED),
        ):
            for turn in await _turns_with(collection, still_open, [turn for turn in states if states[turn] in waiting]):
                states.pop(turn, None)
        return set(states)

    async def _change(self, heads: Sequence[Document], *changes: Document) -> int:
        """Changes each head, all in the same way or each in its own. Returns how many have changed."""
        pairs = list(zip(heads, changes if len(changes) == len(heads) else changes * len(heads), strict=True))
        collection = self._connection.heads
        results = await asyncio.gather(*(change_as_read(collection, head, change) for head, change in pairs))
        unknown = [head for head, is_changed in zip(heads, results, strict=True) if is_changed is None]
        return sum(map(bool, results)) + await self._changed_late(unknown)

    async def _changed_late(self, heads: Sequence[Document]) -> int:
        """Returns how many of these heads have changed since they were read, also where no majority has that yet."""
        if not heads:
            return 0
        as_read = [{**keys.where(head["_id"]), "revision": head["revision"]} for head in heads]
        newest = self._connection.heads.with_options(read_concern=ReadConcern("local"))
        return len(heads) - await newest.count_documents({"$or": as_read})


def _approval(document: Document) -> Approval:
    return decode(Approval, document, strict=True)


async def _turns_with(collection: Collection, match: Document, turns: Sequence[TurnKey]) -> set[TurnKey]:
    """Returns those of the turns that have such a document, and possibly others that the caller did not name."""
    if not turns:
        return set()
    theirs = keys.where_of_turns(turns)
    documents = collection.find({**match, **theirs}, dict.fromkeys(theirs, 1))
    return {TurnKey(keys.session_of(document), document["turn_id"]) async for document in documents}


def _turn_of(head: Document) -> TurnKey:
    return TurnKey(keys.session_of(head), head["active_turn"])
