"""Who runs what: claims, leases, wishes to cancel, and the sweep that makes lapsed turns claimable again."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, TypeAlias

from turnkeeper.domain.approval import Approval, ApprovalState
from turnkeeper.domain.turn import TurnState
from turnkeeper.store.contract import Cancel, Claim
from turnkeeper.store.mongo import keys
from turnkeeper.store.mongo.client import Connection, Document, database_errors
from turnkeeper.store.mongo.documents import decode, encode
from turnkeeper.store.mongo.heads import ANY_TIME, NOW, later, literal

OLDEST: Final = 32
BATCH: Final = 256
_RUNNABLE: Final = {"active_turn": {"$gt": ""}}
_GOING: Final = [state.value for state in TurnState if state.moving or state is TurnState.AWAITING_APPROVAL]

_TurnKey: TypeAlias = tuple[str, str, str]


class Claims:
    """What serves this replica's own work: over all tenants, except where one is given."""

    _connection: Connection
    _looked_at: Document | None = None

    async def claim(self, owner: str, *, lease: timedelta) -> Claim | None:
        due: list[Document] = [
            {"$match": {**_RUNNABLE, "lease_until": None, **_reached("wake_at")}},
            {"$sort": {"wake_at": 1}},
            {"$limit": OLDEST},
            {"$set": {"late_by": {"$subtract": [NOW, "$wake_at"]}}},
        ]
        taken = {
            "fence": {"$add": ["$fence", 1]},
            "owner": literal(owner),
            "lease_until": later(lease),
            "wake_at": None,
        }
        with database_errors():
            candidates = await self._connection.heads.aggregate(due).to_list(OLDEST)
            random.shuffle(candidates)
            for head in candidates:
                if await self._change(head, taken, ("active_turn", "lapses", "fence", "lease_until", "wake_at")):
                    return _claim_of(head)
        return None

    async def renew(self, tenant: str, session_id: str, *, owner: str, fence: int, lease: timedelta) -> bool:
        match = {**keys.where(keys.of_session(tenant, session_id)), "owner": owner, "fence": fence}
        with database_errors():
            result = await self._connection.heads.update_one(match, [{"$set": {"lease_until": later(lease)}}])
        return result.matched_count == 1

    async def request_cancel(self, tenant: str, session_id: str, cancel: Cancel) -> bool:
        if not cancel.turn_id:
            return False
        match = {**keys.where(keys.of_session(tenant, session_id)), "active_turn": cancel.turn_id}
        # The first wish for a turn stays. Repeating it waits for the majority like the first.
        first = {"$eq": ["$cancel.turn_id", literal(cancel.turn_id)]}
        wish = {"$cond": [first, "$cancel", literal(encode(cancel))]}
        with database_errors():
            result = await self._connection.heads.update_one(match, [{"$set": {"cancel": wish}}])
        return result.matched_count == 1

    async def cancelled_among(self, owned: Sequence[tuple[str, str]]) -> Sequence[str]:
        """One query. A session that is gone, or whose lease lapsed, is owned no more."""
        ids = [keys.of_session(tenant, session_id) for tenant, session_id in owned]
        undisturbed = {
            "_id": {"$in": ids},
            "tenant": {"$in": sorted({tenant for tenant, _ in owned})},
            "$expr": {"$and": [{"$gt": ["$lease_until", NOW]}, {"$ne": ["$cancel.turn_id", "$active_turn"]}]},
        }
        with database_errors():
            found = await self._connection.heads.find(undisturbed, {"_id": 1}).to_list(None)
        fine = {(each["_id"]["tenant"], each["_id"]["session_id"]) for each in found}
        return [session_id for tenant, session_id in owned if (tenant, session_id) not in fine]

    async def requeue_lapsed(self) -> int:
        """Each look is bounded; what is left over comes with the next sweep."""
        due: Document = {"owner": "", "lease_until": None, "wake_at": NOW}
        with database_errors():
            lapsed = await self._heads({**_RUNNABLE, **_reached("lease_until")})
            count = await self._change_all(
                lapsed, due | {"lapses": {"$add": ["$lapses", 1]}}, ("active_turn", "fence", "owner", "lease_until")
            )
            stranded = await self._heads({"active_turn": "", "queue.0": {"$exists": True}})
            for head in stranded:
                first, *rest = head["queue"]
                front = {"active_turn": literal(first), "queue": literal(rest), "lapses": 0}
                count += await self._change(head, due | front, ("active_turn", "queue", "last_seq", "fence"))
            return count + await self._change_all(
                await self._forgotten(), due, ("active_turn", "last_seq", "fence", "lease_until", "wake_at")
            )

    async def lapsed_approvals(self, *, limit: int) -> Sequence[Approval]:
        match = {"state": ApprovalState.PENDING.value, **_reached("expire_time")}
        with database_errors():
            found = self._connection.approvals.find(match).sort("expire_time").limit(limit)
            return [decode(Approval, each) for each in await found.to_list(limit)]

    async def pending_approvals(self) -> int:
        with database_errors():
            return await self._connection.approvals.count_documents({"state": ApprovalState.PENDING.value})

    async def _heads(self, match: Document) -> list[Document]:
        return await self._connection.heads.find(match).limit(BATCH).to_list(BATCH)

    async def _forgotten(self) -> list[Document]:
        """Heads without lease and wake-up whose turn waits for nobody: a batch of all those, the next one each time."""
        idle: Document = {**_RUNNABLE, "lease_until": None, "wake_at": None}
        beyond = {} if self._looked_at is None else {"_id": {"$gt": self._looked_at}}
        batch = (
            await self._connection.heads.find(idle | beyond)
            .sort([("lease_until", 1), ("wake_at", 1), ("_id", 1)])
            .limit(BATCH)
            .to_list(BATCH)
        )
        self._looked_at = batch[-1]["_id"] if len(batch) == BATCH else None
        if not batch:
            return []
        stuck = await self._stuck_turns(batch)
        return [head for head in batch if _turn_of(head) in stuck]

    async def _stuck_turns(self, batch: Sequence[Document]) -> set[_TurnKey]:
        """Of these heads' turns, those that should move, and those that await approvals which are all decided."""
        match = {"_id": {"$in": [keys.of_member(*_turn_of(head)) for head in batch]}, "state": {"$in": _GOING}}
        turns = await self._connection.turns.find(match, {"state": 1}).to_list(BATCH)
        stuck = {tuple(each["_id"].values()): each["state"] for each in turns}
        awaiting = [key for key, state in stuck.items() if state == TurnState.AWAITING_APPROVAL]
        if awaiting:
            names = ("tenant", "session_id", "turn_id")
            match = {name: {"$in": [key[at] for key in awaiting]} for at, name in enumerate(names)}
            pending = self._connection.approvals.find({"state": ApprovalState.PENDING.value, **match})
            async for approval in pending:
                stuck.pop(tuple(approval[name] for name in names), None)
        return set(stuck)

    async def _change_all(self, heads: Sequence[Document], changed: Document, as_read: Sequence[str]) -> int:
        return sum([await self._change(head, changed, as_read) for head in heads])

    async def _change(self, head: Document, changed: Document, as_read: Sequence[str]) -> bool:
        """Change a head if these fields are as they were read."""
        match = {**keys.where(head["_id"]), **{name: head[name] for name in as_read}}
        return (await self._connection.heads.update_one(match, [{"$set": changed}])).matched_count == 1


def _reached(name: str) -> dict[str, Any]:
    """The time is set, and over by the database's clock."""
    return {name: ANY_TIME, "$expr": {"$lte": [f"${name}", NOW]}}


def _turn_of(head: Document) -> _TurnKey:
    return head["tenant"], head["session_id"], head["active_turn"]


def _claim_of(head: Document) -> Claim:
    return Claim(
        tenant=head["tenant"],
        session_id=head["session_id"],
        turn_id=head["active_turn"],
        fence=head["fence"] + 1,
        lapses=head["lapses"],
        late_by=timedelta(milliseconds=head["late_by"]),
    )
