"""Reads what runs, and stores freezes and denials of tools."""

from collections.abc import Sequence
from typing import Final

from turnkeeper.domain.audit import AuditRecord
from turnkeeper.domain.denial import ToolDenial
from turnkeeper.domain.freeze import Freeze
from turnkeeper.domain.session import SessionKey
from turnkeeper.domain.tool import CallState
from turnkeeper.domain.turn import Turn, TurnKey
from turnkeeper.store.mongo import heads, keys
from turnkeeper.store.mongo.audit_documents import audit_document
from turnkeeper.store.mongo.client import ClientSession, Document
from turnkeeper.store.mongo.documents import decode
from turnkeeper.store.mongo.heads import NOW
from turnkeeper.store.mongo.recorded import RecordedDocuments, recorded
from turnkeeper.store.mongo.transactions.transaction import Transaction
from turnkeeper.store.mongo.transactions.writes import Obstacle, Writes
from turnkeeper.store.operations import ActiveTurn, ReplicaState, TurnFilter

SESSIONS_AT_ONCE: Final = 256
"""Sessions whose turns are read together."""
LEASE_INDEX: Final = "lease"
"""The index of the heads with an active turn: there are few, also where there are many sessions."""
_HEAD: Final = ("session_id", "tenant", "active_turn", "queue", "owner", "cancel", "lease_until")


class OperationDocuments(RecordedDocuments):
    """Implements `OperationStore`."""

    async def active_turns(
        self, tenant: str, where: TurnFilter, *, limit: int, after: tuple[str, str] | None
    ) -> Sequence[ActiveTurn]:
        turns: list[ActiveTurn] = []
        beyond = after or ("", "")
        while len(turns) < limit:
            page = await self._active_heads(tenant, where, from_session=beyond[0])
            matching = await self._turns_of(tenant, page, where)
            turns += [active for active in matching if (active.turn.session_id, active.turn.id) > beyond]
            if len(page) < SESSIONS_AT_ONCE:
                break
            beyond = max(beyond, (page[-1]["session_id"], "\U0010ffff"))
        return turns[:limit]

    async def _active_heads(self, tenant: str, where: TurnFilter, *, from_session: str) -> Sequence[Document]:
        session: Document = {"$eq": where.session_id} if where.session_id else {"$gte": from_session}
        match = {"tenant": tenant, "session_id": session, "active_turn": {"$gt": ""}, **heads.findable(deleted=False)}
        fields = {**dict.fromkeys(_HEAD, 1), "leased": {"$gt": ["$lease_until", NOW]}}
        with self._reading("active_turns") as read:
            cursor = read(self._connection.heads).find(match, fields).hint(LEASE_INDEX).sort("session_id")
            documents: list[Document] = await cursor.limit(SESSIONS_AT_ONCE).to_list(SESSIONS_AT_ONCE)
        return documents

    async def _turns_of(self, tenant: str, page: Sequence[Document], where: TurnFilter) -> Sequence[ActiveTurn]:
        """Returns the turns of these heads that match, by session and turn id."""
        of_head = {
            TurnKey(SessionKey(tenant, head["session_id"]), turn_id): head
            for head in page
            for turn_id in (head["active_turn"], *head["queue"])
        }
        if not of_head:
            return []
        opened = {**keys.where_of_turns(of_head), "state": {"$ne": CallState.RETURNED.value}}
        names = {"session_id": 1, "turn_id": 1, "tool": 1}
        with self._reading("active_turns") as read:
            documents = await read(self._connection.turns).find(keys.where_turns(of_head)).to_list(None)
            calls = await read(self._connection.calls).find(opened, names).to_list(None)
        tools: dict[TurnKey, dict[str, None]] = {}
        for call in calls:
            tools.setdefault(TurnKey(SessionKey(tenant, call["session_id"]), call["turn_id"]), {})[call["tool"]] = None
        turns = self._connection.unreadable.passed_over(documents, lambda document: decode(Turn, document))
        of_turn = {TurnKey(turn.session_key, turn.id): turn for turn in turns}
        active = (_active(turn, of_head[key], tuple(tools.get(key, ()))) for key, turn in of_turn.items())
        return sorted(
            (item for item in active if where.fits(item.turn, item.tools)),
            key=lambda item: (item.turn.session_id, item.turn.id),
        )

    async def freezes(self) -> Sequence[Freeze]:
        with self._connection.call("freezes"), self._connection.in_time():
            documents = await self._connection.freezes.find({}).sort("_id").to_list(None)
        return self._connection.unreadable.passed_over(documents, lambda document: decode(Freeze, document))

    async def put_freeze(self, freeze: Freeze, record: AuditRecord) -> bool:
        key = keys.of_freeze(freeze.tenant, freeze.agent)

        def write(writes: Writes) -> None:
            writes.insert("freezes", recorded(key, freeze, record))
            writes.insert("audit_records", audit_document(record))

        async def look(session: ClientSession, _: Obstacle) -> bool | None:
            stored = await self._connection.freezes.find_one(keys.where(key), session=session)
            return None if stored is None else bool(stored.get("record") == record.id)

        with self._connection.transaction_call("put_freeze"):
            return await self._transactions.run(Transaction(write, result=True, look=look))

    async def remove_freeze(self, tenant: str, agent: str, record: AuditRecord) -> bool:
        return await self._remove_recorded("remove_freeze", "freezes", keys.of_freeze(tenant, agent), record)

    async def denials(self) -> Sequence[ToolDenial]:
        in_force: Document = {"$or": [{"until": None}, {"$expr": {"$gt": ["$until", NOW]}}]}
        with self._connection.call("denials"), self._connection.in_time():
            documents = await self._connection.denials.find(in_force).sort("_id").to_list(None)
        return self._connection.unreadable.passed_over(documents, lambda document: decode(ToolDenial, document))

    async def put_denial(self, denial: ToolDenial, record: AuditRecord) -> None:
        key = keys.of_denial(denial.tenant, denial.pattern)
        await self._put_recorded("put_denial", "denials", key, denial, record)

    async def remove_denial(self, tenant: str, pattern: str, record: AuditRecord) -> bool:
        return await self._remove_recorded("remove_denial", "denials", keys.of_denial(tenant, pattern), record)

    async def replicas(self) -> Sequence[ReplicaState]:
        alive = {"$gte": [{"$add": ["$at", {"$ifNull": ["$silent_after", 0]}]}, NOW]}
        leased = {"active_turn": {"$gt": ""}, "$expr": {"$gt": ["$lease_until", NOW]}}
        pipeline: list[Document] = [{"$match": leased}, {"$group": {"_id": "$owner", "turns": {"$sum": 1}}}]
        with self._connection.call("replicas"), self._connection.in_time():
            documents = await self._connection.replicas.find({}, {"at": 1, "alive": alive}).sort("_id").to_list(None)
            counts = await self._connection.heads.aggregate(pipeline, hint=LEASE_INDEX).to_list(None)
        turns: dict[str, int] = {count["_id"]: count["turns"] for count in counts}
        return [
            ReplicaState(
                name=document["_id"],
                heartbeat=document["at"],
                alive=bool(document["alive"]),
                turns=turns.get(document["_id"], 0),
            )
            for document in documents
            if "at" in document
        ]


def _active(turn: Turn, head: Document, tools: tuple[str, ...]) -> ActiveTurn:
    is_first = head["active_turn"] == turn.id
    return ActiveTurn(
        turn=turn,
        tools=tools,
        owner=head["owner"] if is_first and head["leased"] else "",
        cancelling=head["cancel"]["turn_id"] == turn.id,
    )
